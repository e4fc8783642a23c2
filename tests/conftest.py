"""Fixtures shared by several files: one clip, and the tiny network at image size 128 with lively random weights.

Also the order of the tests (``--order``), and the peak memory of the test processes in the summary.
"""

import gc
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from clips import Clip, make_clip
from helpers import centre_scores, encode_once, lively_state, make_predictor, return_memory, save_state, threads

from sam2_mem import SAM2VideoPredictor

LONGEST_FIRST = (
    "test_policy_contract.py",
    "test_parity.py",
    "test_comparison.py",
    "test_sessions.py",
    "test_config.py",
    "test_trace.py",
    "test_docs_policies.py",
    "test_notebooks.py",
    "test_bounded_policy.py",
)
"""Files that start before all others, in this order, so that no process is left alone with one of them at the end."""

peaks = pytest.StashKey[dict[str, int]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--order",
        default="longest",
        help="order of the tests: 'longest' files first, 'reversed', or the seed of a shuffle",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[peaks] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped, and say so, where there is no CUDA device and none is named in their stead."""
    sort_items(items, config.getoption("order"))
    if torch.cuda.is_available() or "SAM2_MEM_TEST_DEVICE" in os.environ:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; run `make test-gpu` where there is one"))


def pytest_collection_finish() -> None:
    """The garbage collector need not look at what was imported, a million objects, again and again."""
    gc.collect()
    gc.freeze()


def sort_items(items: list[pytest.Item], order: str) -> None:
    """In place. A shuffle keeps the tests of a file together, so that what they share is built once."""
    if order == "longest":
        places = {name: place for place, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: places.get(item.path.name, len(places)))
    elif order == "reversed":
        items.reverse()
    else:
        generator = random.Random(int(order))
        ranks = {path: generator.random() for path in sorted({item.path for item in items})}
        generator.shuffle(items)
        items.sort(key=lambda item: ranks[item.path])


# -- peak memory of the processes -------------------------------------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """MiB that this process had at most; a worker sends its own to the process that reports."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak"] = peak
    else:
        session.config.stash[peaks]["main"] = peak


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    if "peak" in getattr(node, "workeroutput", {}):
        node.config.stash[peaks][node.gateway.id] = node.workeroutput["peak"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    sizes = config.stash[peaks]
    tested = sorted(sizes.keys() - {"main"}) or ["main"]
    terminalreporter.write_line("peak memory: " + ", ".join(f"{name} {sizes[name]} MiB" for name in tested))


@pytest.fixture(autouse=True, scope="module")
def memory_returned() -> Iterator[None]:
    """What a file held is freed before the next one starts."""
    yield
    return_memory()


# -- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def clip() -> Clip:
    """40 frames with three shapes."""
    return make_clip(40)


@pytest.fixture(scope="session")
def clip_folder(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip as a folder of JPEG files."""
    return clip.save(tmp_path_factory.mktemp("clip") / "frames")


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny 2.1 network; at image size 128 objects come and go."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    state = lively_state()
    with threads(1):
        centre_scores(state, make_predictor(save_state(state, path)), make_clip(12))
    return save_state(state, path)


@pytest.fixture(scope="session")
def tiny(tiny_weights: Path) -> SAM2VideoPredictor:
    """The tiny 2.1 network at image size 128 under the default policy; it encodes every distinct picture once. For
    other policies: ``helpers.with_policy(tiny, policy)``. Do not change its weights; build your own from
    ``tiny_weights``."""
    predictor = make_predictor(tiny_weights)
    encode_once(predictor.model, {})
    return predictor
