"""tools/compare_policies.py and what it stands on: what is measured, resuming, shards, failures, the report."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from micro import OVERRIDES, SIDE, blob, micro_model, micro_predictor, micro_weights, one_thread, picture  # noqa: F401
from PIL import Image
from webdriver import browser, programs

from sam2_mem.build_sam import build_policy, build_sam2
from sam2_mem.checkpoint import save_part
from sam2_mem.cli.compare import Options, PredictorBuilder, overrides_of
from sam2_mem.config import compose
from sam2_mem.evaluation import charts
from sam2_mem.evaluation.benchmark.measured_pass import MemoryCounter, PassCost, Stopwatch, measured_pass
from sam2_mem.evaluation.benchmark.policy_costs import BenchmarkClip, Setting, count_memory
from sam2_mem.evaluation.comparison.jobs import Job, Plan, PolicyEntry, Result, ResultFolder
from sam2_mem.evaluation.comparison.report import (
    BINS,
    MOST_THUMBNAILS,
    breakdowns,
    bytes_of_videos,
    over_time,
    worst_pictures,
    write_report,
)
from sam2_mem.evaluation.comparison.runner import run_plan
from sam2_mem.evaluation.comparison.statistics import bootstrap, object_values, policy_row, policy_rows, read_comparison
from sam2_mem.evaluation.comparison.videos import ComparisonVideo, comparison_videos, groups_of_videos
from sam2_mem.evaluation.datasets import open_dataset
from sam2_mem.evaluation.packed_masks import PackedMasks
from sam2_mem.evaluation.scoring import evaluate
from sam2_mem.evaluation.synthetic import SyntheticSet
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import FrameMasks, PromptPlan, segment
from sam2_mem.video import Frame, open_video, read_mask_png
from sam2_mem.video.source import Frames
from sam2_mem.video.stored import ArraySource

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "compare_policies.py"
main = runpy.run_path(str(TOOL))["main"]

# -- small things to compare ----------------------------------------------------------------------------------------


def entry(name: str, policy: str | None = None) -> PolicyEntry:
    settings = {"policy": policy or name}
    return PolicyEntry(name=name, settings=settings, build=lambda: micro_predictor(policy or name))


def clips(*names: str, of: str = "dev-v1", frames: int = 10) -> tuple[ComparisonVideo, ...]:
    """Short, small clips in the manner of the benchmark."""
    made = []
    for video in comparison_videos(f"synthetic:{of}", names):
        spec = replace(video.truth.spec, num_frames=frames, height=SIDE, width=SIDE)
        clip = replace(video.truth, spec=spec)
        made.append(replace(video, truth=clip, open=clip.source, plan=lambda source, clip=clip: clip.plan()))
    return tuple(made)


def small_plan(**changes: Any) -> Plan:
    given = {
        "entries": (entry("fifo"), entry("keyframe")),
        "videos": clips("late_1", "occlusion_1", "splitting_1"),
        "baseline": "fifo",
        "common": {"weights": "micro"},
    }
    return Plan(**given | changes)


def compared(folder: Path, plan: Plan | None = None, **options: Any) -> ResultFolder:
    """A run with its report."""
    found = ResultFolder(folder)
    run_plan(plan or small_plan(), found, **options)
    write_report(found)
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> ResultFolder:
    """A complete run, to look at only."""
    return compared(tmp_path_factory.mktemp("done"))


TIMED = ("frames_per_second", "cpu_milliseconds", "peak_bytes", "growth_bytes")


def lasting(root: Path) -> dict[str, Any]:
    """All that a run leaves behind, without times and peak memory."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and "submitit" not in p.parts):
        name = path.relative_to(root).as_posix()
        if name.startswith("report/quality_costs") or name == "report/index.html":
            continue  # show times; the numbers are in the files below
        found[name] = _lasting_text(name, path)
    return found


def results_of(root: Path) -> dict[str, Any]:
    """The same without the report and what is written with it."""
    return {name: content for name, content in lasting(root).items() if not name.startswith(("report/", "results."))}


def _lasting_text(name: str, path: Path) -> Any:
    if name.endswith((".png", ".svg", ".jpg")):
        return path.read_bytes()
    text = path.read_text()
    if name.endswith("summary.csv"):
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(io.StringIO(text))]
    if name.endswith(".md"):
        return re.sub(r"On this machine:\n\n(\|.*\n)+|- (Machines|Code):.*\n", "", text)
    if name == "results.jsonl" or name.startswith("jobs/"):
        return [{k: v for k, v in json.loads(line).items() if k != "machine"} for line in text.splitlines()]
    return text


# -- names of policies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "overrides"),
    [
        ("xmem", []),
        ("rmem:bank_size=8", ["memory_policy.bank_size=8"]),
        ("rmem:bank_size=8,gap=3", ["memory_policy.bank_size=8", "memory_policy.gap=3"]),
        ("fifo+refiner=hq", ["refiner=hq"]),
        ("hq_smem:tau_mem=1e+5+refiner=hq+model.image_size=256",
         ["memory_policy.tau_mem=1e+5", "refiner=hq", "model.image_size=256"]),
        ("fifo+++model.x=[1,2]", ["++model.x=[1,2]"]),
        ("rmem:a=[1,2],b=3", ["memory_policy.a=[1,2]", "memory_policy.b=3"]),
    ],
)  # fmt: skip
def test_short_descriptions_of_policies(policy: str, overrides: list[str]) -> None:
    name = re.split("[:+]", policy)[0]
    assert overrides_of(policy) == [f"memory_policy={name}", *overrides]


@pytest.mark.parametrize("policy", ["", ":a=1", "rmem:bank_size", "fifo+hq"])
def test_descriptions_that_say_nothing_are_refused(policy: str) -> None:
    with pytest.raises(ValueError, match="expected a policy as name"):
        overrides_of(policy)


def test_descriptions_compose() -> None:
    config = compose("nano_v2", overrides_of("rmem:bank_size=8+refiner=hq+model.image_size=256"))
    assert (config.memory_policy.bank_size, config.model.image_size) == (8, 256)
    assert config.refiner._target_.endswith("HQRefiner")


# -- one pass -------------------------------------------------------------------------------------------------------


def blobs(count: int) -> tuple[list[np.ndarray], PromptPlan]:
    prompts = [Prompt(1, mask=blob(0)), Prompt(2, mask=blob(1))]
    return [picture(i) for i in range(count)], PromptPlan((1, 2), {0: lambda frame: prompts})


@pytest.mark.full
def test_masks_are_those_of_an_unmeasured_pass() -> None:
    images, plan = blobs(24)
    for policy in ("fifo", "sam2long", "xmem"):
        predictor, kept = micro_predictor(policy), PackedMasks()
        measured_pass(predictor, open_video(images), plan, kept.add)
        assert type(predictor.policy) is type(build_policy(policy)), "the policy is put back"
        state = predictor.init_state(open_video(images))
        for shown in segment(predictor, state, plan):
            for obj_id, mask in shown.masks.items():
                assert np.array_equal(kept.mask(shown.frame.name, obj_id), mask)


def test_counts_are_those_of_the_benchmark() -> None:
    images, plan = blobs(24)
    prompts = tuple(plan.at[0](None))
    for name in ("fifo", "sam2long"):
        cost = measured_pass(micro_predictor(name), open_video(images), plan, lambda shown: None)
        clip = BenchmarkClip(picture=images.__getitem__, num_frames=24, prompts=prompts)
        counter = count_memory(Setting(model=micro_model()), build_policy(name), clip)
        assert cost.state_bytes == tuple(counter.state_bytes) and cost.frames == 24
        assert cost.tokens_read == pytest.approx(counter.tokens_read) and cost.pointers_read == pytest.approx(
            counter.pointers_read
        )
        assert max(cost.tokens_held) <= max(counter.largest) and cost.tokens_held[0] == counter.largest[0]


def timed(*, frame: float = 0.0, mask: float = 0.0, network: float = 0.0) -> PassCost:
    """A pass of ten frames in which something takes its time."""
    images, plan = blobs(10)
    predictor = micro_predictor()
    encode = predictor.encode

    class Slow(ArraySource):
        def _decode(self, indices: range) -> Frames:
            for shown in super()._decode(indices):
                time.sleep(frame)
                yield shown

    def encoded(shown: Frame) -> Any:
        time.sleep(network)
        return encode(shown)

    predictor.encode = encoded
    return measured_pass(predictor, Slow(images), plan, lambda shown: time.sleep(mask))


@pytest.mark.full
def test_the_clock_stands_while_frames_are_made_and_masks_are_judged() -> None:
    assert timed(frame=0.2, mask=0.2).seconds < 2.0, "of four seconds of sleep"


@pytest.mark.full
def test_control_the_clock_runs_while_the_network_works() -> None:
    assert timed(network=0.2).seconds > 2.0


def test_stopwatch_within_a_pause_of_a_pause() -> None:
    watch = Stopwatch()
    watch.start()
    with watch.paused():
        with watch.paused():
            time.sleep(0.05)
        time.sleep(0.05)
    time.sleep(0.02)
    watch.stop()
    assert 0.02 <= watch.seconds < 0.06 and watch.cpu_seconds < 0.02, "asleep"


def test_stopwatch_counts_the_work_of_this_process() -> None:
    watch, began = Stopwatch(), time.process_time()
    watch.start()
    while time.process_time() < began + 0.05:
        pass
    with watch.paused():
        while time.process_time() < began + 0.1:
            pass
    watch.stop()
    assert 0.04 < watch.cpu_seconds < 0.07 and watch.seconds > 0.04


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak of a while")
def test_peak_memory_is_that_since_it_was_asked_for() -> None:
    """In a process of its own: what other tests have freed and the allocator has kept would be used again."""
    script = """
import numpy as np, torch
from sam2_mem.evaluation.benchmark.measured_pass import PeakMemory
block = np.ones(50_000_000, np.uint8)
del block
before = PeakMemory(torch.device("cpu"))
print(before.growth())
block = np.ones(50_000_000, np.uint8)
del block
print(before.growth(), before.peak())
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    first, second, peak = (int(float(v)) for v in done.stdout.split())
    assert first < 20_000_000, "what was freed before does not count"
    assert second > 40_000_000 and peak > second


def test_networks_are_shared_only_where_their_weights_are_the_same(tmp_path: Path) -> None:
    model = build_sam2("nano_v2", device="cpu", hydra_overrides_extra=["distiller=spatial"])
    with torch.no_grad():
        for parameter in model.memory_encoder.distiller.parameters():
            parameter.add_(0.5)
    save_part(model.memory_encoder.distiller, "memory_encoder.distiller.", tmp_path / "d.safetensors")
    builder = PredictorBuilder(Options(out=tmp_path, device="cpu", config="nano_v2"))

    def network(policy: str):
        return builder.entry(policy).build().model

    trained = f"fifo+distiller=spatial+distiller_checkpoint={tmp_path / 'd.safetensors'}"
    plain, same, other = (network(p) for p in ("fifo+distiller=spatial", "rmem+distiller=spatial", trained))
    assert plain is same and other is not plain
    ours, theirs = (next(m.memory_encoder.distiller.parameters()) for m in (plain, other))
    assert not torch.equal(ours, theirs)


def test_a_counted_policy_is_the_same_policy() -> None:
    twin = MemoryCounter(FIFO(num_maskmem=3)).counting_policy()
    assert isinstance(twin, FIFO) and twin.num_maskmem == 3 and replace(twin, num_maskmem=2).num_maskmem == 2


def test_kept_masks() -> None:
    rng = np.random.default_rng(0)
    masks = {obj_id: rng.random((7, 9)) < 0.5 for obj_id in (3, 1, 300)} | {2: np.zeros((7, 9), bool)}
    kept = PackedMasks()
    kept.add(FrameMasks(Frame(0, "a", np.zeros((7, 9, 3), np.uint8)), masks))
    for obj_id, mask in masks.items():
        assert np.array_equal(kept.mask("a", obj_id), mask)
    ids = kept.ids("a")
    assert (ids[masks[1]] == 1).all() and (ids[masks[3] & ~masks[1]] == 3).all()
    assert (ids[masks[300] & ~masks[1] & ~masks[3]] == 300).all() and set(np.unique(ids)) == {0, 1, 3, 300}
    with pytest.raises(ValueError, match="expected a prediction for frame b, got none"):
        kept.ids("b")


# -- results --------------------------------------------------------------------------------------------------------


def test_a_result_for_every_job(done: ResultFolder) -> None:
    comparison = read_comparison(done)
    assert [(r.video, r.policy) for r in comparison.results] == [
        (video, policy) for video in ("occlusion_1", "splitting_1", "late_1") for policy in ("fifo", "keyframe")
    ]
    assert not comparison.missing and not comparison.failed
    for result in comparison.results:
        assert result.frames == 10 == len(result.state_bytes) == len(result.tokens_read)
        assert result.machine["frames_per_second"] == pytest.approx(10 / result.machine["seconds"])
    late = next(r for r in comparison.results if r.video == "late_1")
    entries = clips("late_1")[0].truth.entries
    assert {one["object"]: one["at"][0] - 1 for one in late.objects} == {str(k): t for k, t in entries.items()}


@pytest.mark.full
def test_scores_are_those_of_the_evaluator_on_the_masks_written(tmp_path: Path) -> None:
    root = tmp_path / "data"
    SyntheticSet("small", tuple(video.truth for video in clips("splitting_1", "late_1"))).export(root)
    plan = small_plan(videos=tuple(comparison_videos(f"synthetic:{root}")), masks=True)
    folder = compared(tmp_path / "run", plan)
    for policy in ("fifo", "keyframe"):
        (masks,) = (folder.root / "masks").glob(f"{policy}__*")
        dataset = open_dataset("synthetic", root, masks)
        report = evaluate(dataset.protocol, dataset.videos)
        expected = {("synthetic", one.video, one.obj_id): one.values[0] for one in report.objects}
        assert len(expected) == 7 and not report.failures
        assert object_values(read_comparison(folder).of(policy, "synthetic"), "J&F") == expected
    (folder.root / "masks").rename(tmp_path / "away")
    again = run_plan(plan, folder)
    assert all(result.machine["began"] > 0 for result in again)
    assert len(list((folder.root / "masks").rglob("*.png"))) == 2 * 2 * 10, "masks that are gone are made again"


def test_a_folder_of_davis_2016(tmp_path: Path) -> None:
    for index in range(8):
        for kind, content in (("JPEGImages", picture(index)), ("Annotations", blob(0, index) * np.uint8(255))):
            path = tmp_path / kind / "480p" / "dog" / f"{index:05d}.{'jpg' if kind == 'JPEGImages' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    (video,) = comparison_videos(f"davis2016:{tmp_path}")
    assert (video.data, video.name, video.protocol.name) == ("davis2016", "dog", "davis2016")
    (result, _) = run_plan(small_plan(videos=(video,), masks=True), ResultFolder(tmp_path / "run"))
    assert result.error is None and result.objects[0]["at"] == list(range(1, 7)), "without the first and the last"
    (masks,) = (tmp_path / "run" / "masks").glob("fifo__*")
    dataset = open_dataset("davis2016", tmp_path, masks)
    assert evaluate(dataset.protocol, dataset.videos).objects[0].values == tuple(result.objects[0]["values"].values())
    assert set(np.unique(read_mask_png(masks / "dog" / "00000.png").ids)) == {0, 255}


def test_objects_that_may_overlap(tmp_path: Path) -> None:
    """The layout of SA-V: one folder for each object; both show the same blob here."""
    for index in range(6):
        path = tmp_path / "JPEGImages_24fps" / "v" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(index)).save(path)
        for obj_id in ("000", "001"):
            path = tmp_path / "Annotations_6fps" / "v" / obj_id / f"{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(blob(0, index).astype(np.uint8)).save(path)
    plan = small_plan(videos=tuple(comparison_videos(f"sav:{tmp_path}")), masks=True)
    (result, _) = run_plan(plan, ResultFolder(tmp_path / "run"))
    one, other = result.objects
    assert result.error is None and (one["object"], other["object"]) == ("000", "001")
    assert one["values"] == other["values"]
    (masks,) = (tmp_path / "run" / "masks").glob("fifo__*")
    assert len(list((masks / "v" / "001").glob("*.png"))) == 6
    first = [read_mask_png(masks / "v" / obj_id / "00000.png").ids for obj_id in ("000", "001")]
    assert first[0].any() and np.array_equal(*first), "without overlap one of them would be empty"


def test_videos_can_be_cut_short(tmp_path: Path) -> None:
    (full, short) = (
        run_plan(small_plan(videos=clips("late_1"), max_frames=n), ResultFolder(tmp_path / str(n)))[0]
        for n in (None, 6)
    )
    assert short.frames == 6 and full.frames == 10
    assert short.objects[0]["per_frame"]["J"] == full.objects[0]["per_frame"]["J"][:5]
    assert {one["object"] for one in short.objects} < {one["object"] for one in full.objects}


# -- failures -------------------------------------------------------------------------------------------------------


def test_an_incomplete_comparison_says_so_first_and_mixes_no_means(
    done: ResultFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done.root, tmp_path / "run")
    folder = ResultFolder(tmp_path / "run")
    assert main(["--out", str(folder.root), "--report"]) == 0 and "INCOMPLETE" not in report_of(folder)
    whole = read_comparison(folder)
    gone = next(r for r in whole.results if r.policy == "keyframe" and len(r.objects) > 1)
    folder.path(Job(policy=gone.policy, data=gone.data, video=gone.video, seed=gone.seed)).unlink()
    assert main(["--out", str(folder.root), "--report"]) == 1
    assert "it is not complete" in capsys.readouterr().out
    rest = [r for r in whole.results if r.video != gone.video]
    total = sum(len(r.objects) for r in whole.results if r.policy == "fifo")
    common = total - len(gone.objects)
    report = report_of(folder)
    assert (
        report.index("INCOMPLETE: 0 runs failed, 1 are missing")
        < report.index("Scores over the")
        < report.index("MISSING")
    )
    assert f"Scores over the {common} objects that every policy has:" in report
    assert f"| keyframe (!) | {common} of {total} |" in report and f"| fifo | {total} |" in report
    rows = {row.policy: row for row in policy_rows(read_comparison(folder))}
    for policy in ("fifo", "keyframe"):
        column = next(iter(rows[policy].figures))
        values = object_values([r for r in rest if r.policy == policy], column).values()
        assert rows[policy].figures[column] == pytest.approx(np.mean(list(values))) and rows[policy].compared == common
    of_all = np.mean(list(object_values([r for r in whole.results if r.policy == "fifo"], column).values()))
    assert rows["fifo"].figures[column] != pytest.approx(of_all), "the control: the mean over all objects is another"


def report_of(folder: ResultFolder) -> str:
    return (folder.root / "report" / "report.md").read_text()


@pytest.mark.full
def test_a_failing_policy_and_a_failing_video_are_recorded_and_tried_again(tmp_path: Path) -> None:
    def broken() -> SAM2VideoPredictor:
        raise RuntimeError("no such thing")

    def missing() -> Any:
        raise FileNotFoundError("where is it?")

    bad = PolicyEntry(name="bad", settings={"policy": "bad"}, build=broken)
    videos = clips("splitting_1", "late_1")
    plan = small_plan(
        entries=(entry("fifo"), bad, entry("keyframe")),
        videos=(replace(videos[0], open=missing), videos[1]),
    )
    folder = compared(tmp_path, plan)
    errors = {(r.video, r.policy): r.error for r in read_comparison(folder).results}
    assert errors["late_1", "fifo"] is errors["late_1", "keyframe"] is None
    assert errors["late_1", "bad"] == "RuntimeError: no such thing"
    assert errors["splitting_1", "fifo"] == "FileNotFoundError: where is it?"
    report = (tmp_path / "report" / "report.md").read_text()
    assert "FAILED: bad on synthetic:dev-v1 late_1, seed 0: RuntimeError: no such thing" in report
    assert "| fifo (!) | 5 |" in report and "| bad (!) | 0 of 5 | - |" in report
    mended = small_plan(entries=(entry("fifo"), entry("bad", "fifo"), entry("keyframe")), videos=videos)
    assert all(r.error is None for r in run_plan(mended, folder))


def test_a_policy_that_fails_in_the_middle_of_a_video_leaves_no_scores(tmp_path: Path) -> None:
    class Fragile(FIFO):
        def read(self, state: Any, frame: Any) -> Any:
            if frame.index == 5:
                raise ZeroDivisionError("frame 5")
            return super().read(state, frame)

    fragile = PolicyEntry(name="fragile", settings={}, build=lambda: micro_predictor(Fragile()))
    plan = small_plan(entries=(entry("fifo"), fragile), videos=clips("splitting_1"))
    fine, failed = run_plan(plan, ResultFolder(tmp_path))
    assert fine.error is None and failed.error == "ZeroDivisionError: frame 5" and failed.objects == ()


# -- resuming and shards --------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_twice(tmp_path: Path) -> None:
    folder, plan = ResultFolder(tmp_path), small_plan(videos=clips("late_1"))
    first, second = run_plan(plan, folder), run_plan(plan, folder)
    assert first == second, "the same results, with the same times"
    other = small_plan(videos=clips("late_1"), entries=(entry("fifo"), entry("keyframe", "rmem")))
    changed = run_plan(other, folder)
    assert changed[0] == first[0] and changed[1].settings != first[1].settings


def test_a_data_set_at_another_place_is_another_one(tmp_path: Path) -> None:
    clip = clips("splitting_1")[0].truth
    roots = [tmp_path / name for name in ("one", "other")]
    for root in roots:
        SyntheticSet("small", (clip,)).export(root)
    plans = [small_plan(videos=tuple(comparison_videos(f"synthetic:{root}"))) for root in roots]
    first, second, again = (run_plan(plan, ResultFolder(tmp_path / "run")) for plan in (plans[0], plans[1], plans[1]))
    assert first[0].settings != second[0].settings and second == again


def test_another_network_is_not_mixed_in(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    run_plan(small_plan(videos=clips("late_1")), folder)
    with pytest.raises(ValueError, match="(?s)results of the same network.*weights: micro there, others now"):
        run_plan(small_plan(videos=clips("late_1"), common={"weights": "others"}), folder)


class Cut(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_run_cut_off_anywhere_ends_the_same(done: ResultFolder, tmp_path: Path, seed: int) -> None:
    """Cut inside a pass, after a random number of frames, again and again."""
    rng, cuts = random.Random(seed), 0
    for _ in range(100):
        left = [rng.randint(1, 28)]

        def build(policy: str, left: list[int] = left) -> SAM2VideoPredictor:
            predictor = micro_predictor(policy)
            encode = predictor.encode

            def once(frame: Frame) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Cut
                return encode(frame)

            predictor.encode = once
            return predictor

        entries = [
            PolicyEntry(name=n, settings={"policy": n}, build=lambda n=n: build(n)) for n in ("fifo", "keyframe")
        ]
        try:
            run_plan(small_plan(entries=tuple(entries)), ResultFolder(tmp_path))
            break
        except Cut:
            cuts += 1
    assert cuts >= 2, "it was cut off at all"
    assert lasting(tmp_path) == results_of(done.root)


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.full), 3])
def test_shards_merge_to_one_process(done: ResultFolder, tmp_path: Path, count: int) -> None:
    folder = ResultFolder(tmp_path)
    for index in reversed(range(count)):
        run_plan(small_plan(), folder, shard=slice(index, None, count))
        if index:
            assert len(read_comparison(folder).missing) > 0
    write_report(folder)
    assert lasting(tmp_path) == lasting(done.root)


def test_control_other_results_are_noticed(done: ResultFolder, tmp_path: Path) -> None:
    other = compared(tmp_path, small_plan(entries=(entry("fifo"), entry("keyframe", "rmem"))))
    ours, theirs = lasting(other.root), lasting(done.root)
    differing = {name for name in ours if ours[name] != theirs.get(name)}
    assert {"report/summary.csv", "report/objects.csv", "report/report.md", "results.jsonl"} <= differing


def arguments(out: Path, weights: Path, *extra: object) -> list[str]:
    given = ["--out", out, "--config", "sam2.1_hiera_t", "--checkpoint", weights, "--set", *OVERRIDES]
    videos = ["--videos", "late_1", "splitting_1", "--max_frames", 12, "--device", "cpu", "--threads", 1]
    return [str(part) for part in (*given, *videos, "--policies", "fifo", "rmem:bank_size=3", *extra)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def whole(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command leaves when nothing happens to it."""
    out = tmp_path_factory.mktemp("whole")
    assert main(arguments(out, weights)) == 0
    return out


@pytest.mark.full
def test_a_killed_process_started_again_ends_the_same(whole: Path, weights: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(TOOL), *arguments(tmp_path, weights)], env=environment)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "jobs").glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.random() * 0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "jobs").glob("*.json")), "it was killed after it had begun"
    assert main(arguments(tmp_path, weights)) == 0
    for part in (tmp_path / "jobs").glob(".*.part"):
        part.unlink()  # may be left of the write that was cut off
    assert lasting(tmp_path) == lasting(whole)


@pytest.mark.full
def test_shards_of_the_command(whole: Path, weights: Path, tmp_path: Path) -> None:
    for index in range(2):
        assert not (tmp_path / "report").exists()
        assert main(arguments(tmp_path, weights, "--num_shards", 2, "--shard_id", index)) == 0
    assert lasting(tmp_path) == lasting(whole)


def test_runs_that_share_do_every_video_once(done: ResultFolder, tmp_path: Path) -> None:
    plan, begun = small_plan(), []

    def progress(jobs: Sequence[Job]) -> Sequence[Job]:
        begun.extend(dict.fromkeys(job.video for job in jobs))
        return jobs

    folder = ResultFolder(tmp_path)
    results = run_plan(plan, folder, share=True, progress=progress)
    assert begun == [video.name for video in plan.videos]
    assert lasting(tmp_path) == results_of(done.root)
    assert run_plan(plan, folder, share=True, progress=progress) == results and len(begun) == 3


@pytest.mark.full
@pytest.mark.extended
def test_two_processes_that_share(whole: Path, weights: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(TOOL), *arguments(tmp_path, weights, "--share")]
    first, second = (subprocess.Popen(command, env=environment) for _ in range(2))
    deadline = time.monotonic() + 120
    while not list((tmp_path / "jobs").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    first.kill()
    assert second.wait(120) == 0 and first.wait() != 0
    for part in tmp_path.rglob(".*.part"):
        part.unlink()  # may be left of a write that was cut off
    assert lasting(tmp_path) == lasting(whole)


@pytest.mark.full
def test_submitit(whole: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="SUBMITIT IS NOT INSTALLED: pip install sam2_mem[cluster]")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    assert main(arguments(tmp_path, weights, "--num_shards", 2, "--launcher", "local")) == 0
    assert lasting(tmp_path) == lasting(whole)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra, told in (
        (["--data", "davis2016"], "expected synthetic:<set>"),
        (["--data", "synthetic:v0"], "expected a synthetic set of long-v1, long-v2, dev-v1, seeds-v1"),
        (["--data", "nodata:/tmp"], "expected a data set of davis2016"),
        (["--videos", "late_9"], "expected names of videos of synthetic:dev-v1, got late_9"),
        (["--baseline", "xmem"], "expected the baseline among the policies"),
        (["--report"], "expected the folder of a comparison"),
        (["--num_shards", "2", "--shard_id", "2"], "expected 0 <= shard_id < num_shards"),
    ):
        assert main(["--out", str(tmp_path / "run"), "--policies", "fifo", *extra]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_policy_that_does_not_exist_does_not_stop_the_others(weights: Path, tmp_path: Path) -> None:
    assert main([*arguments(tmp_path, weights), "nosuch", "fifo:max_prompts=0", "--videos", "late_1"]) == 1
    errors = {r.policy: r.error for r in read_comparison(ResultFolder(tmp_path)).results}
    assert errors["fifo"] is errors["rmem:bank_size=3"] is None
    assert "expected a memory policy out of" in errors["nosuch"] and "max_prompts" in errors["fifo:max_prompts=0"]


# -- statistics -----------------------------------------------------------------------------------------------------


def test_bootstrap() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0.3, 1.0, 400)
    found = bootstrap(values)
    expected = 1.96 * values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean()) and found.num_values == 400
    assert found.high - found.mean == pytest.approx(expected, rel=0.1) == found.mean - found.low
    assert found == bootstrap(list(values)), "nothing is random about it"
    assert bootstrap([0.25] * 7)[:3] == (0.25, 0.25, 0.25)
    assert math.isnan(bootstrap([]).mean) and bootstrap([]).num_values == 0
    wide = bootstrap(values, confidence=0.5)
    assert wide.high - wide.low < 0.5 * (found.high - found.low)


def fake(policy: str, video: str, values: Sequence[float], seed: int = 0, **changes: Any) -> Result:
    """Objects 1, 2, ... with these J&F."""
    objects = tuple(
        {"object": str(k), "frames": 2, "values": {"J&F": v}, "at": [1, 2], "per_frame": {"J": [v, v]}}
        for k, v in enumerate(values, start=1)
    )
    given = {"data": "d", "settings": "s", "protocol": "davis2017", "frames": 3, "objects": objects}
    return Result(policy=policy, video=video, seed=seed, **given | changes)


def fake_folder(root: Path, results: Sequence[Result]) -> ResultFolder:
    folder = ResultFolder(root)
    for result in results:
        folder.put(result)
    run = {
        "policies": dict.fromkeys(r.policy for r in results),
        "videos": [["d", video] for video in dict.fromkeys(r.video for r in results)],
        "protocols": {"d": "davis2017"},
        "seeds": sorted({r.seed for r in results}),
        "baseline": "base",
    }
    (root / "run.json").write_text(json.dumps(run))
    return folder


def test_differences_are_paired_by_object_and_averaged_over_seeds(tmp_path: Path) -> None:
    results = [
        fake("base", "a", [0.9, 0.1]),
        fake("base", "b", [0.5]),
        fake("other", "a", [1.0, 0.2], seed=0),
        fake("other", "a", [0.9, 0.1], seed=1),
        fake("other", "b", [0.55], seed=0),
        fake("base", "c", [0.0], error="broke", objects=()),
        fake("other", "c", [0.7]),
    ]
    row = policy_row(read_comparison(fake_folder(tmp_path, results)), "d", "other")
    assert row.difference.num_values == 3 and row.objects == 4
    assert row.difference.mean == pytest.approx(0.05) and row.difference.low == pytest.approx(0.05)
    assert row.figures["J&F"] == pytest.approx((0.95 + 0.15 + 0.55) / 3), "c, which base lacks, is in no mean"


def test_control_unpaired_objects_would_give_a_wide_interval() -> None:
    one, other = np.array([0.9, 0.1, 0.5]), np.array([0.95, 0.15, 0.55])
    assert np.ptp(bootstrap(other)[1:3]) > 0.3 > np.ptp(bootstrap(other - one)[1:3])


def test_over_time() -> None:
    objects = ({"object": "1", "frames": 3, "values": {}, "at": [1, 40, 79], "per_frame": {"J": [1.0, 0.5, 0.0]}},)
    series = over_time([fake("a", "v", [], frames=80, objects=objects)])
    assert series.y == [100.0, 50.0, 0.0] and len(series.x) == 3 < BINS
    assert series.x == sorted(series.x) and 0 < series.x[0] < 3 and 97 < series.x[-1] < 100


# -- the report -----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what a browser would fetch or run, and checks that tags are closed."""

    VOID = ("meta", "img", "br", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_the_worst_frames(done: ResultFolder) -> None:
    """A picture of each of the worst videos of each policy, and no more."""
    comparison = read_comparison(done)
    for data in comparison.data:
        for policy, pictures in worst_pictures(comparison, done, data).items():
            scores = [r.worst["J"] for r in comparison.of(policy, data)]
            assert 0 < len(pictures) <= MOST_THUMBNAILS and f"J {100 * min(scores):.1f}" in pictures[0].caption
            page = (done.root / "report" / "index.html").read_text()
            assert all(picture.content in page for picture in pictures)
    for result in comparison.results:
        lowest = min(value for scores in result.objects for value in scores["per_frame"]["J"])
        assert result.worst["J"] == lowest
        with Image.open(done.thumbnail(result.job)) as picture:
            assert picture.size == (SIDE, SIDE)


def test_the_page_needs_nothing_else(done: ResultFolder) -> None:
    text = (done.root / "report" / "index.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == [] and page.scripts == 1, "the one that sorts tables"
    drawn = [link for link in page.links if link.startswith("data:image/svg+xml;base64,")]
    assert len(drawn) == 5 and all(link.startswith("data:image/jpeg;base64,") for link in set(page.links) - set(drawn))
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert "keyframe" in text and "J&amp;F - fifo" in text


@pytest.mark.full
def test_the_page_in_a_browser(done: ResultFolder, tmp_path: Path) -> None:
    if programs() is None:
        pytest.skip("CHROMIUM AND CHROMEDRIVER ARE MISSING: the page has not been opened in a browser")
    with browser() as chrome:
        chrome.open(done.root / "report" / "index.html")
        said = [line for line in chrome.console() if "favicon" not in line["message"]]
        assert said == []
        sizes = chrome.run(
            "return [...document.images].filter(i => i.src.includes('svg')).map(i => [i.complete, i.naturalWidth, i.naturalHeight])"
        )
        assert sizes == [[True, *charts.SIZE]] * 5
        assert (
            chrome.run("return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:'))") == []
        )
        cells = chrome.run("return [...document.querySelectorAll('tbody tr td:first-child')].map(c => c.textContent)")
        assert cells[:10] == ["fifo", "keyframe"] * 5 and len(cells) == 10 + 10
        bold = chrome.run("return [...document.querySelectorAll('td.best')].map(c => parseFloat(c.textContent))")
        assert bold and all(isinstance(value, (int, float)) for value in bold)
        sort = "const t = document.querySelector('table'); t.tHead.rows[0].cells[2].click();"
        values = "return [...t.tBodies[0].rows].map(r => parseFloat(r.cells[2].textContent));"
        once, twice = chrome.run(sort + values), chrome.run(sort + values)
        assert once == sorted(once, reverse=True) and twice == once[::-1], "a click sorts, another turns it round"
        chrome.click("summary")
        assert chrome.run("return document.querySelector('details').open")
        assert chrome.run("return document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out"
        chrome.picture(tmp_path / "page.png")
    assert len(np.unique(np.array(Image.open(tmp_path / "page.png").convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    plan = small_plan(entries=(entry("fifo"), entry("<b>&|", "fifo")), videos=clips("splitting_1"))
    folder = compared(tmp_path, plan)
    page = Page()
    page.feed((folder.root / "report" / "index.html").read_text())
    assert page.open == []
    lines = [x for x in (folder.root / "report" / "report.md").read_text().splitlines() if x.startswith("| <b>")]
    assert lines and all("\\|" in line for line in lines)


def test_tables(done: ResultFolder) -> None:
    report = done.root / "report"
    summary = list(csv.DictReader((report / "summary.csv").open()))
    objects = list(csv.DictReader((report / "objects.csv").open()))
    assert [row["policy"] for row in summary] == ["fifo", "keyframe"] and len(objects) == 2 * (3 + 2 + 5)
    for row in summary:
        own = [float(o["J&F"]) for o in objects if o["policy"] == row["policy"]]
        assert float(row["J&F"]) == pytest.approx(np.mean(own)) and int(row["objects"]) == 10
        assert float(row["frames_per_second"]) > 0 and int(row["state_bytes"]) > 0
        assert float(row["cpu_milliseconds"]) > 0
    assert float(summary[0]["difference"]) == 0 == float(summary[0]["high"])
    assert float(summary[1]["low"]) <= float(summary[1]["difference"]) <= float(summary[1]["high"])
    markdown = (report / "report.md").read_text()
    blocks = re.findall(r"(?:^\|.*\n?)+", markdown, re.MULTILINE)
    assert len(blocks) == 3 + 2
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1 and len(block.splitlines()) == 4


def test_tables_by_track(done: ResultFolder) -> None:
    comparison = read_comparison(done)
    tables = breakdowns(comparison, "synthetic:dev-v1")
    assert [table.title for table in tables] == ["J&F by track", "J-visible by track"], "one seed, so none by seed"
    objects = list(csv.DictReader((done.root / "report" / "objects.csv").open()))
    for column, table in zip(("J&F", "J-visible"), tables):
        assert table.head == ["policy", "occlusion", "splitting", "late", "deviation"]
        for policy, *cells in table.lines:
            mine = [o for o in objects if o["policy"] == policy and o[column]]
            means = [np.mean([100 * float(o[column]) for o in mine if o["video"] == f"{t}_1"]) for t in table.head[1:4]]
            assert cells == [f"{value:.1f}" for value in (*means, np.std(means, ddof=1))]


def test_tables_by_seed_of_the_clips(tmp_path: Path) -> None:
    videos = clips("splitting_1", "splitting_3", of="seeds-v1", frames=5)
    comparison = read_comparison(compared(tmp_path, small_plan(videos=videos)))
    tables = breakdowns(comparison, "synthetic:seeds-v1")
    assert [table.title for table in tables] == ["J&F by seed", "J-visible by seed"], "one track, so none by track"
    assert tables[0].head == ["policy", "33000001", "33000003", "deviation"]
    assert groups_of_videos("davis2016:folder") == {} and groups_of_videos("synthetic:folder") == {}


@pytest.mark.full
def test_two_data_sets_also_have_rows_over_both(tmp_path: Path) -> None:
    one, other = clips("splitting_1")[0], replace(clips("late_1")[0], data="synthetic:other")
    comparison = read_comparison(compared(tmp_path, small_plan(videos=(one, other))))
    assert comparison.groups == ["synthetic:dev-v1", "synthetic:other", "all"]
    parts = [policy_row(comparison, group, "keyframe") for group in comparison.groups]
    assert [row.objects for row in parts] == [2, 5, 7]
    expected = (2 * parts[0].figures["J&F"] + 5 * parts[1].figures["J&F"]) / 7
    assert parts[2].figures == {"J&F": pytest.approx(expected)}


# -- charts ---------------------------------------------------------------------------------------------------------


def test_charts_show_their_series(tmp_path: Path) -> None:
    axes = charts.Axes(title="t", x_label="x", y_label="y")
    up = charts.Series(name="up", x=[0, 1, 2], y=[0, 1, 2])
    gap = charts.Series(name="gap", x=[0, 1, 2, 3], y=[2, math.nan, 1, 0])
    empty = charts.Series(name="empty", x=[], y=[])
    charts.line_chart(tmp_path / "a.png", axes, [up, gap, empty])
    charts.line_chart(tmp_path / "b.png", axes, [up, gap, empty])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    picture = np.array(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert picture.shape == (charts.SIZE[1], charts.SIZE[0], 3)
    plot = picture[60:-60, 60:800]  # without the legend
    for index, seen in ((0, True), (1, True), (2, False)):
        color = 255 * np.array(charts.series_color(index))
        near = np.abs(plot - color).max(2) < 12
        assert (near.sum() > 50) == seen


def test_long_names_break_before_a_plus_sign() -> None:
    name = "fifo+memory_bound=tokens+memory_bound.max_bytes=131072"
    assert charts._wrapped(name) == "fifo+memory_bound=tokens\n+memory_bound.max_bytes=131072"
    assert charts._wrapped("fifo+distiller=pool2") == "fifo+distiller=pool2" and len(charts._wrapped("y" * 40)) == 41


def test_a_scatter_chart_shows_each_point_in_every_panel(tmp_path: Path) -> None:
    axes = charts.Axes(title="t", x_label="bytes", y_label="y", panels=("time",))
    points = [
        charts.Series(name="both", x=(1.0, 30.0), y=(50.0, 50.0)),
        charts.Series(name="no time", x=(2.0, math.nan), y=(40.0, 40.0)),
        charts.Series(name="no score", x=(2.0, 10.0), y=(math.nan, math.nan)),
    ]
    for shown, counts in ((points, (2, 1, 0)), (points[1:], (1, 0))):
        charts.scatter_chart(tmp_path / "a.png", axes, shown)
        picture = np.array(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)[40:-60]
        legend = 700
        for index, count in enumerate(counts):
            near = np.abs(picture - 255 * np.array(charts.series_color(index))).max(2) < 12
            halves = near[:, 60 : legend // 2 + 20].sum() > 20, near[:, legend // 2 + 20 : legend].sum() > 20
            assert sum(halves) == count, (index, halves)


def test_a_forest_chart_tells_intervals_above_below_and_around_zero_apart(tmp_path: Path) -> None:
    axes = charts.Axes(title="t", x_label="x", y_label="")
    ranges = [
        charts.Range(name="better", value=2.0, low=1.0, high=3.0),
        charts.Range(name="like", value=0.1, low=-1.0, high=1.0),
        charts.Range(name="worse", value=-2.0, low=-3.0, high=-1.0),
    ]
    colors = (charts.ABOVE, charts.AROUND, charts.BELOW)
    for shown in (ranges, ranges[:1]):
        charts.forest_chart(tmp_path / "a.svg", axes, shown)
        text = (tmp_path / "a.svg").read_text()
        assert [color in text for color in colors] == [True, len(shown) > 1, len(shown) > 1]


def test_a_box_chart_shows_quarters_and_values_beyond(tmp_path: Path) -> None:
    axes = charts.Axes(title="t", x_label="x", y_label="")
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    for name, shown in (("a", values), ("b", [*values[:-1], 50.0]), ("c", [*values, math.nan]), ("d", [])):
        charts.box_chart(tmp_path / f"{name}.svg", axes, [charts.Spread(name="fifo", values=shown)])
    a, b, c, d = ((tmp_path / f"{name}.svg").read_text() for name in "abcd")
    color = "#" + "".join(f"{round(255 * value):02x}" for value in charts.series_color(0))
    assert a == c and a.count(color) == 1 < b.count(color), "a box, and a point beyond"
    assert d.count(color) == 0


def test_sizes_of_memory_over_videos(done: ResultFolder) -> None:
    results = read_comparison(done).of("keyframe", "synthetic:dev-v1")
    sizes = bytes_of_videos(results, "keyframe").values
    assert sizes == [max(r.state_bytes) / 1e6 for r in results] and len(set(sizes)) > 1
    assert "State over all videos, synthetic:dev-v1" in (done.root / "report" / "index.html").read_text()


def test_names_of_lines_do_not_overlap(tmp_path: Path) -> None:
    """Twelve lines that end at one height, and one far below."""
    axes = charts.Axes(title="t", x_label="x", y_label="y")
    lines = [charts.Series(name=f"line{n}", x=[0, 1], y=[0, 10 + 0.01 * n]) for n in range(12)]
    charts.line_chart(tmp_path / "a.svg", axes, [*lines, charts.Series(name="low", x=[0, 1], y=[0, 1])])
    text = (tmp_path / "a.svg").read_text()
    places = re.findall(r"<!-- (line\d+|low) -->\s*<g [^>]*transform=\"translate\(([\d.]+) ([\d.]+)\)", text)
    heights = sorted(float(y) for _, _, y in places)
    assert len(places) == 13 and min(b - a for a, b in itertools.pairwise(heights)) > 8


def test_charts_as_svg(tmp_path: Path) -> None:
    """The same bytes for the same numbers, names as they are, and a point between gaps is drawn."""
    axes = charts.Axes(title="a < b, $J&F$", x_label="x", y_label="y", y_range=(0.0, 4.0))
    dot = charts.Series(name="xmem:a=$1+b=2_" + "y" * 40, x=[0, 1, 2], y=[math.nan, 2, math.nan])
    for name in ("a.svg", "b.svg"):
        charts.line_chart(tmp_path / name, axes, [dot])
    charts.line_chart(tmp_path / "c.svg", axes, [replace(dot, y=[math.nan] * 3)])
    a, b, c = ((tmp_path / f"{name}.svg").read_text() for name in "abc")
    color = "#" + "".join(f"{round(255 * value):02x}" for value in charts.series_color(0))
    assert a == b and 0 < c.count(color) < a.count(color)
    assert "<dc:date>" not in a and ElementTree.fromstring(a).get("width") == "720pt", "960 pixels"
