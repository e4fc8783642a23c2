"""Reading and loading weights: every mistake is named, and a module is filled completely or not at all."""

from __future__ import annotations

import builtins
import hashlib
import json
import logging
import math
import sys
import types
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from make_golden_keys import CONFIGS, golden_path
from safetensors.torch import save_file
from torch import nn

from sam2_mem.build_sam import build_sam2
from sam2_mem.checkpoint import (
    OFFICIAL_MODELS,
    OTHER_MODELS,
    CheckpointError,
    build_with_weights,
    hub_checkpoint,
    load_checkpoint,
    read_state_dict,
    sha256_of,
)
from sam2_mem.config import config_names

# What the publisher says: millions of parameters, cut (not rounded) to one decimal.
PUBLISHED_MILLIONS = {"t": 38.9, "s": 46.0, "b+": 80.8, "l": 224.4}


class Foreign:
    """A class that no checkpoint may bring along."""


def small_module(width: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A file in the official form, with the weights of a small module."""
    path = tmp_path / "official.pt"
    torch.save({"model": small_module().state_dict()}, path)
    return path


# Reading


@pytest.mark.parametrize("form", ["official", "flat", "old format", "with extras", "safetensors"])
def test_reads_every_accepted_form(tmp_path: Path, form: str) -> None:
    expected = weights(small_module())
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(expected, path)
    elif form == "flat":
        torch.save(expected, path)
    elif form == "old format":
        torch.save({"model": expected}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"model": expected} | ({"epoch": 3} if form == "with extras" else {}), path)
    assert same(read_state_dict(path), expected)


def test_missing_file_says_how_to_download(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pt.*checkpoints/download_ckpts\.sh"):
        read_state_dict(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("form", ["archive", "old format", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, form: str, kept: float) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(weights(small_module()), path)
    else:
        torch.save({"model": weights(small_module())}, path, _use_new_zipfile_serialization=form == "archive")
    content = path.read_bytes()
    read_state_dict(path)
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match="damaged, incomplete or foreign"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"\x7fELF" * 64, bytes(range(256)) * 8, b"PK\x03\x04"])
def test_foreign_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged, incomplete or foreign"):
        read_state_dict(path)


def test_corrupt_inside_of_a_whole_archive(official: Path) -> None:
    content = bytearray(official.read_bytes())
    start = content.index(b"\x80\x02")  # where the pickle in the archive begins
    content[start + 2 : start + 32] = b"\xff" * 30
    official.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged, incomplete or foreign"):
        read_state_dict(official)


@pytest.mark.parametrize("new_format", [True, False])
def test_pickled_objects_are_refused_and_explained(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "w.pt"
    content = {"model": weights(small_module()), "trainer": Foreign()}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"pickled Python object \(\S*Foreign\).*run any code.*refused"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, r"keys \[state_dict, epoch\]"),
        ({"model": {"a": 1}}, r'keys \[model\], where "model" is not a state dict'),
        ({}, r"keys \[\]"),
        ([torch.zeros(1)], "got list"),
        ({f"k{i}": i for i in range(20)}, r"k11 and 8 more\]"),
    ],
)
def test_content_that_is_no_state_dict(tmp_path: Path, content: object, got: str) -> None:
    path = tmp_path / "w.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r'expected \{"model": state_dict\}.*' + got):
        read_state_dict(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_weights_are_named(tmp_path: Path, value: float) -> None:
    state = weights(small_module()) | {"steps": torch.tensor(7)}
    state["0.bias"][1] = value
    state["1.weight"][0] = value
    torch.save({"model": state}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"finite.*in 0\.bias, 1\.weight;"):
        read_state_dict(tmp_path / "w.pt")


# Loading


def test_load_fills_the_module(official: Path) -> None:
    module = small_module()
    assert not same(weights(module), read_state_dict(official))
    assert load_checkpoint(module, official) == ()
    assert same(weights(module), read_state_dict(official))


def test_values_take_the_dtype_of_the_module(official: Path) -> None:
    module = small_module().to(torch.bfloat16)
    load_checkpoint(module, str(official))
    expected = {key: value.to(torch.bfloat16) for key, value in read_state_dict(official).items()}
    assert {value.dtype for value in module.state_dict().values()} == {torch.bfloat16}
    assert same(weights(module), expected)


def test_weights_stay_when_the_file_goes(official: Path) -> None:
    expected = {key: value.clone() for key, value in read_state_dict(official).items()}
    module = small_module()
    load_checkpoint(module, official)
    official.write_bytes(b"\0" * official.stat().st_size)
    official.unlink()
    assert same(weights(module), expected)


def test_every_mismatch_is_reported_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = weights(small_module())
    del state["0.bias"], state["1.bias"]
    state |= {"extra.a": torch.zeros(2), "extra.b": torch.zeros(1, 4), "1.weight": torch.zeros(5)}
    torch.save({"model": state}, tmp_path / "w.pt")
    module = small_module()
    before = weights(module)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(module, tmp_path / "w.pt")
    lines = str(caught.value).splitlines()
    assert lines[1:] == [
        "2 missing in the file:",
        "  0.bias (3,)",
        "  1.bias (3,)",
        "2 unknown to the model:",
        "  extra.a (2,)",
        "  extra.b (1, 4)",
        "1 of another shape:",
        "  1.weight: model (3,), file (5,)",
    ]
    assert same(weights(module), before)


def test_non_finite_file_leaves_the_module_alone(tmp_path: Path) -> None:
    module = small_module()
    before = weights(module)
    torch.save({"model": {key: value + math.nan for key, value in before.items()}}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        load_checkpoint(module, tmp_path / "w.pt")
    assert same(weights(module), before)


def test_allowed_parts_may_be_absent_and_are_logged(official: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = small_module()
    module.add_module("sensory", nn.Linear(2, 2))
    nn.init.zeros_(module.sensory.weight)
    before = weights(module.sensory)
    with caplog.at_level(logging.INFO, logger="sam2_mem.checkpoint"):
        absent = load_checkpoint(module, official, allow_missing=("sensory.", "distiller."))
    assert absent == ("sensory.weight", "sensory.bias")
    assert "sensory.weight" in caplog.text and "sensory.bias" in caplog.text
    assert same(weights(module.sensory), before)
    assert torch.equal(module[0].weight, read_state_dict(official)["0.weight"])
    with pytest.raises(CheckpointError, match="2 missing in the file"):
        load_checkpoint(module, official)
    with pytest.raises(CheckpointError, match="2 missing in the file"):
        load_checkpoint(module, official, allow_missing=("distiller.",))


def test_an_allowed_part_may_not_be_there_by_half(tmp_path: Path) -> None:
    module = small_module()
    module.add_module("sensory", nn.Linear(2, 2))
    state = weights(module)
    del state["sensory.bias"]
    torch.save({"model": state}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"sensory\.bias"):
        load_checkpoint(module, tmp_path / "w.pt", allow_missing=("sensory.",))


def test_meta_module_is_refused(official: Path) -> None:
    with pytest.raises(CheckpointError, match="meta device.*to_empty"):
        load_checkpoint(small_module().to("meta"), official)


# Building


def test_weights_are_not_loaded_where_they_cannot_be_held() -> None:
    with pytest.raises(ValueError, match="expected a device that can hold weights, got meta"):
        build_sam2("nano_v2", device="meta")
    assert build_sam2("nano_v2", "random", device="meta").device.type == "meta"


def with_sensory() -> nn.Module:
    module = small_module()
    module.add_module("sensory", nn.Linear(2, 2))
    return module


def test_a_complete_file_leaves_nothing_to_draw(official: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    module = build_with_weights(small_module, official)
    assert torch.equal(torch.get_rng_state(), before), "no random numbers were drawn"
    assert same(weights(module), read_state_dict(official))
    assert all(p.requires_grad and p.is_leaf for p in module.parameters())
    small_module()
    assert not torch.equal(torch.get_rng_state(), before), "control: the constructor draws"


def test_parts_that_a_file_lacks_are_initialised(official: Path) -> None:
    torch.manual_seed(3)
    expected = weights(with_sensory().sensory)
    torch.manual_seed(3)
    module = build_with_weights(with_sensory, official, allow_missing=("sensory.",))
    assert same(weights(module.sensory), expected)
    assert torch.equal(module[0].weight, read_state_dict(official)["0.weight"])
    with pytest.raises(CheckpointError, match="2 missing in the file"):
        build_with_weights(with_sensory, official)


def test_a_built_module_does_not_hang_on_its_file(official: Path) -> None:
    expected = {key: value.clone() for key, value in read_state_dict(official).items()}
    module = build_with_weights(small_module, official)
    official.write_bytes(b"\0" * official.stat().st_size)
    assert same(weights(module), expected)


def test_large_finite_weights_are_finite(tmp_path: Path) -> None:
    module = small_module()
    huge = {key: torch.full_like(value, 3e38) for key, value in weights(module).items()}
    torch.save({"model": huge}, tmp_path / "w.pt")
    assert all(value.isfinite().all() for value in read_state_dict(tmp_path / "w.pt").values())


class Shaped(nn.Module):
    """A module with the given entries and nothing else; dots are allowed in their names."""

    def __init__(self, shapes: dict[str, list[int]]) -> None:
        super().__init__()
        for key, shape in shapes.items():
            *path, name = key.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            owner.register_buffer(name, torch.zeros(shape, dtype=torch.uint8))


def golden(config: str) -> dict[str, list[int]]:
    return json.loads(golden_path(config).read_text(encoding="utf-8"))


def mismatch_report(tmp_path: Path, *, model: str, file: str) -> str:
    """The report when the file of one official model meets the configuration of another."""
    path = tmp_path / "w.pt"
    torch.save({"model": {key: torch.zeros(shape, dtype=torch.uint8) for key, shape in golden(file).items()}}, path)
    module = Shaped(golden(model))
    if model == file:
        load_checkpoint(module, path)
        return ""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(module, path)
    return str(caught.value)


T, S, B = (f"configs/sam2.1/sam2.1_hiera_{size}.yaml" for size in ("t", "s", "b+"))
T_2_0 = "configs/sam2/sam2_hiera_t.yaml"


@pytest.mark.parametrize(
    ("model", "file", "hints"),
    [
        (T, T_2_0, ["this is a SAM 2.0 checkpoint and the model is SAM 2.1; use configs/sam2/..."]),
        (T_2_0, T, ["this is a SAM 2.1 checkpoint and the model is SAM 2.0; use configs/sam2.1/..."]),
        (T, B, ["the file looks like a 'base_plus' model, the configuration like 'tiny'"]),
        (S, T, ["the file looks like a 'tiny' model, the configuration like 'small'"]),
        (B, T_2_0, ["this is a SAM 2.0 checkpoint", "the file looks like a 'tiny' model"]),
        (T, T, []),
    ],
)
def test_hints_name_the_wrong_family_or_size(tmp_path: Path, model: str, file: str, hints: list[str]) -> None:
    report = mismatch_report(tmp_path, model=model, file=file)
    assert report.count("Hint: ") == len(hints)
    assert all(hint in report for hint in hints)


WRAPPERS = {
    "DataParallel": lambda key: f"module.{key}",
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "a compiled part": lambda key: key.replace("0.", "0._orig_mod.", 1),
    "a trainer": lambda key: f"model.{key}",
    "all of them": lambda key: f"module._orig_mod.model.{key}",
    "some other name": lambda key: f"student.net.{key}",
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_of_the_names_is_taken_off(wrapper, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    expected = weights(small_module())
    torch.save({"model": {wrapper(key): value for key, value in expected.items()}}, tmp_path / "w.pt")
    for load in (load_checkpoint, lambda module, path: build_with_weights(lambda: module, path)):
        module = small_module()
        load(module, tmp_path / "w.pt")
        assert same(weights(module), expected)
    assert "is left out" in caplog.text or "is read as 0.weight" in caplog.text


def test_a_wrapper_around_some_names_only_is_an_error(tmp_path: Path) -> None:
    state = {f"model.{key}": value for key, value in weights(small_module()).items()}
    torch.save(state | {"criterion.weight": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="unknown to the model"):
        load_checkpoint(small_module(), tmp_path / "w.pt")


FAMILIES = {"encoder.layer.{}.weight": None}


@pytest.mark.parametrize("key", FAMILIES)
def test_weights_of_another_kind_are_told_in_few_lines(key: str, tmp_path: Path) -> None:
    """No family and no size of SAM 2 is guessed where almost nothing fits."""
    torch.save(
        {"model": {key.format(i): torch.zeros(1) for i in range(50)} | {"pos": torch.zeros(1)}}, tmp_path / "w.pt"
    )
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(Shaped(golden(T)), tmp_path / "w.pt")
    lines = str(caught.value).splitlines()
    assert len(lines) <= 3 + 2 * 13 + 1 and "  and 39 more" in lines
    hints = [line for line in lines if line.startswith("Hint")]
    assert hints == [] if FAMILIES[key] is None else len(hints) == 1 and FAMILIES[key] in hints[0]
    assert "SAM 2.0" not in str(caught.value) and "delete" not in str(caught.value)


def test_a_file_of_another_size_is_reported_in_full(tmp_path: Path) -> None:
    """The control of the above: another size of the same network."""
    report = mismatch_report(tmp_path, model=T, file=B)
    assert len(report.splitlines()) > 200 and "more" not in report


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x89PNG\r\n\x1a\n" + bytes(50), b"# a text\n" * 9])
def test_a_file_of_another_kind_is_not_to_be_deleted(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"foreign file .*; name another file, or run checkpoints") as caught:
        read_state_dict(tmp_path / "w.pt")
    assert "delete" not in str(caught.value)


# Addresses


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path):
    """Serve tmp_path/www on a local port; yields the address."""
    root = tmp_path / "www"
    root.mkdir()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(root)))
    Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_address_is_downloaded_once(
    official: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    served = tmp_path / "www" / "w.pt"
    served.write_bytes(official.read_bytes())
    first, second = small_module(), small_module()
    load_checkpoint(first, f"{server}/w.pt")
    served.unlink()
    load_checkpoint(second, f"{server}/w.pt")
    assert same(weights(first), read_state_dict(official))
    assert same(weights(second), weights(first))


def test_address_that_does_not_answer(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=r"could not download http://.*404.*download_ckpts\.sh"):
        load_checkpoint(small_module(), f"{server}/absent.pt")


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"abc" * 1_000_000)
    assert sha256_of(path) == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


# The Hub


def test_hub_knows_the_eight_official_models() -> None:
    sizes = ("tiny", "small", "base-plus", "large")
    assert list(OFFICIAL_MODELS) == [f"facebook/{name}-hiera-{size}" for name in ("sam2", "sam2.1") for size in sizes]
    assert {model.config for model in OFFICIAL_MODELS.values()} == set(CONFIGS)
    assert OFFICIAL_MODELS["facebook/sam2-hiera-base-plus"] == (
        "configs/sam2/sam2_hiera_b+.yaml",
        "sam2_hiera_base_plus.pt",
    )
    assert OFFICIAL_MODELS["facebook/sam2.1-hiera-large"] == (
        "configs/sam2.1/sam2.1_hiera_l.yaml",
        "sam2.1_hiera_large.pt",
    )


def test_hub_download(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = lambda *, repo_id, filename: f"/cache/{repo_id}/{filename}"
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    config, path, overrides = hub_checkpoint("facebook/sam2.1-hiera-tiny")
    assert overrides == ()
    assert config == "configs/sam2.1/sam2.1_hiera_t.yaml"
    assert path == Path("/cache/facebook/sam2.1-hiera-tiny/sam2.1_hiera_tiny.pt")


def test_hub_unknown_id_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="facebook/sam2-hiera-tiny.*facebook/sam2.1-hiera-large.*got 'sam3'"):
        hub_checkpoint("sam3")


def fake_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A Hub whose repositories are folders of ``folder``."""
    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = lambda *, repo_id, filename: str(folder / repo_id / filename)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


def test_hub_knows_models_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_hub(monkeypatch, tmp_path)
    assert hub_checkpoint("facebook/EdgeTAM") == (
        "configs/edgetam/edgetam.yaml",
        tmp_path / "facebook/EdgeTAM/edgetam.pt",
        (),
    )
    config, path, _ = hub_checkpoint("yunyangx/efficient-track-anything/efficienttam_s_2")
    assert config == "configs/efficienttam/efficienttam_s_2.yaml"
    assert path == tmp_path / "yunyangx/efficient-track-anything/efficienttam_s_2.pt"
    for model in OTHER_MODELS.values():
        assert model.config in config_names()


def test_hub_reads_repositories_of_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_hub(monkeypatch, tmp_path)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "sam2_video", "image_size": [512, 512]}))
    shapes = json.loads((golden_path(T).parent / "family" / "hf_sam2_video_tiny.json").read_text(encoding="utf-8"))
    save_file(
        {key: torch.zeros(shape, dtype=torch.uint8) for key, shape in shapes.items()}, folder / "model.safetensors"
    )
    assert hub_checkpoint("owner/name") == (T, folder / "model.safetensors", ("model.image_size=512",))
    (folder / "config.json").write_text(json.dumps({"model_type": "sam3"}))
    with pytest.raises(ValueError, match="sam2_video or .* or sam3_tracker_video, got 'sam3'"):
        hub_checkpoint("owner/name")


def test_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_hub(name: str, *args: object, **kwargs: object) -> object:
        if name == "huggingface_hub":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_hub)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        hub_checkpoint("facebook/sam2.1-hiera-tiny")


# Our models have exactly the entries of the official ones


def differences(ours: dict[str, list[int]], official_shapes: dict[str, list[int]]) -> list[str]:
    keys = sorted(ours.keys() | official_shapes.keys())
    return [key for key in keys if ours.get(key) != official_shapes.get(key)]


@pytest.mark.parametrize("config", CONFIGS)
def test_model_has_the_official_keys_shapes_and_size(config: str) -> None:
    from sam2_mem.build_sam import build_sam2

    model = build_sam2(config, "random", device="meta")
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert differences(ours, golden(config)) == []
    size = Path(config).stem.rsplit("_", 1)[1]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert math.floor(parameters / 1e5) / 10 == PUBLISHED_MILLIONS[size]


def test_a_wrong_key_or_shape_is_noticed() -> None:
    shapes = golden(T)
    renamed = {key.replace("no_mem_embed", "no_memory_embed"): shape for key, shape in shapes.items()}
    widened = shapes | {"no_mem_embed": [1, 1, 257]}
    assert differences(renamed, shapes) == ["no_mem_embed", "no_memory_embed"]
    assert differences(widened, shapes) == ["no_mem_embed"]
    assert differences(dict(shapes), shapes) == []
