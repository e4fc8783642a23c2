"""The measuring tool: what it counts is right and its table is complete. How long anything takes is not tested."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from micro import SIDE, TOKENS, blob, micro_model, one_thread, picture  # noqa: F401

from sam2_mem.build_sam import build_policy
from sam2_mem.cli.arguments import names
from sam2_mem.cli.benchmark import (
    parse_arguments,
    policy_named,
    prompts_of,
    synthetic_clip,
    to_and_fro,
    video_clip,
)
from sam2_mem.evaluation.benchmark import profile as profiling
from sam2_mem.evaluation.benchmark import reference_benchmark as reference
from sam2_mem.evaluation.benchmark.policy_costs import (
    WARM_UP,
    BenchmarkClip,
    Block,
    Mark,
    PolicyCost,
    Setting,
    StreamCost,
    compare,
    cost_table,
    count_memory,
    growth_per_frame,
    measure_stream,
    resident_bytes,
    run_block,
    stream_table,
)
from sam2_mem.evaluation.benchmark.reference_benchmark import (
    BlockTime,
    PredictorSpec,
    StoredClip,
    agreement,
    compare_speed,
)
from sam2_mem.evaluation.benchmark.suite import Case, cases_of, run_suite, suite_table
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.prompts import Prompt

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark.py"
POINTERS = 16


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(model=micro_model())


def clip_of(frames: int = WARM_UP + 3, objects: int = 1) -> BenchmarkClip:
    prompts = tuple(Prompt(n + 1, mask=blob(n)) for n in range(objects))
    return BenchmarkClip(picture=picture, num_frames=frames, prompts=prompts)


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_two_blocks_of_one_policy_give_the_same_masks(setting: Setting) -> None:
    one, other = (run_block(setting, FIFO(), clip_of(8, 2)) for _ in range(2))
    assert one.masks == other.masks
    assert len(one.milliseconds) == 8 and min(one.milliseconds) > 0


def test_control_another_memory_gives_other_masks(setting: Setting) -> None:
    blind = FIFO(num_maskmem=1, max_obj_ptrs_in_encoder=1)
    assert run_block(setting, FIFO(), clip_of(12)).masks != run_block(setting, blind, clip_of(12)).masks


def test_times_leave_out_the_first_frames() -> None:
    assert Block(milliseconds=(1e6,) * WARM_UP + (1.0, 3.0, 2.0), masks="").median() == 2.0


# -- counting ---------------------------------------------------------------------------------------------------------


def test_counts_of_fifo(setting: Setting) -> None:
    counter = count_memory(setting, FIFO(), clip_of(30))
    maps = [0, *range(1, 7), *[7] * 23]
    assert counter.tokens_read == [TOKENS * n for n in maps], "the prompt and up to six maps"
    assert counter.pointers_read == [min(t, POINTERS) for t in range(30)]
    assert counter.largest[0] == TOKENS and max(counter.largest) <= FIFO().capacity(TOKENS)
    assert counter.state_bytes[-1] > counter.largest[-1] * micro_model().memory_width * 2, (
        "two bytes a channel, and pointers"
    )


def test_pathways_that_read_the_same_count_once(setting: Setting) -> None:
    counter = count_memory(setting, build_policy("sam2long"), clip_of(4))
    assert counter.tokens_read[1] == TOKENS, "after the prompt there is one pathway"
    alone = count_memory(setting, replace(build_policy("sam2long"), num_pathway=1), clip_of(30))
    tree = count_memory(setting, build_policy("sam2long"), clip_of(30))
    assert max(alone.tokens_read) <= TOKENS * 7 and max(tree.tokens_read) > max(alone.tokens_read)


def test_tokens_are_those_of_the_object_that_holds_most(setting: Setting) -> None:
    one, two = (count_memory(setting, FIFO(), clip_of(10, n)) for n in (1, 2))
    assert one.largest == two.largest and two.state_bytes[-1] > one.state_bytes[-1]


# -- comparing --------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_row_for_every_policy_and_number_of_objects(setting: Setting) -> None:
    policies = {"fifo": FIFO(), "keyframe": build_policy("keyframe")}
    costs = list(compare(setting, policies, clip_of(objects=2), objects=(1, 2)))
    assert [(c.policy, c.objects) for c in costs] == [("fifo", 1), ("keyframe", 1), ("fifo", 2), ("keyframe", 2)]
    assert all(c.repeatable and c.blocks == 2 and c.ratio_min <= c.ratio <= c.ratio_max for c in costs)
    assert all(c.tokens_end <= c.capacity for c in costs)
    plain, marked = cost_table(costs).splitlines(), cost_table(costs, markdown=True).splitlines()
    assert [line.split()[:2] for line in plain[1:]] == [[c.policy, str(c.objects)] for c in costs]
    assert len(marked) == 2 + len(costs) and len({line.count("|") for line in marked}) == 1


@dataclass(frozen=True, kw_only=True)
class Dice(FIFO):
    def read(self, state: Any, frame: Any) -> Any:
        (read,) = super().read(state, frame)
        return (replace(read, items=tuple(replace(i, gain=0.1 + 2 * torch.rand(()).item()) for i in read.items)),)


def test_control_masks_that_differ_between_blocks_are_reported(setting: Setting) -> None:
    costs = list(compare(setting, {"fifo": FIFO(), "dice": Dice()}, clip_of()))
    assert [c.repeatable for c in costs] == [True, False]
    assert "dice (!)" in cost_table(costs) and "(!) its masks" in cost_table(costs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": {"keyframe": FIFO()}}, "expected fifo among the policies"),
        ({"clip": clip_of(WARM_UP)}, "more than 17 frames"),
        ({"objects": (2,)}, "expected 1..1 objects"),
        ({"rounds": 0}, "rounds >= 1"),
    ],
)
def test_mistakes(setting: Setting, change: dict[str, Any], message: str) -> None:
    given = {"policies": {"fifo": FIFO()}, "clip": clip_of()} | change
    with pytest.raises(ValueError, match=message):
        list(compare(setting, given.pop("policies"), given.pop("clip"), **given))


def test_a_clip_needs_a_prompt() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        BenchmarkClip(picture=picture, num_frames=3, prompts=())


# -- long streams -----------------------------------------------------------------------------------------------------


def test_a_stream_is_measured_every_so_often(setting: Setting) -> None:
    cost = measure_stream(setting, "fifo", FIFO(), clip_of(60), every=20)
    assert [m.frame for m in cost.marks] == [20, 40, 60]
    assert cost.bounded and TOKENS * 7 < cost.most_tokens <= cost.capacity == FIFO().capacity(TOKENS)
    assert cost.marks[0].bytes < cost.marks[1].bytes == cost.marks[2].bytes
    assert (cost.slope is None) == (resident_bytes() is None)
    head, row = stream_table([cost]).splitlines()
    assert head.count("MB at") == 3 and row.startswith("fifo")


def test_control_what_grows_is_seen(setting: Setting) -> None:
    cost = measure_stream(setting, "all", FIFO(retain_all=True), clip_of(40), every=10)
    sizes = [m.bytes for m in cost.marks]
    assert sizes == sorted(set(sizes)) and cost.capacity is None and cost.most_tokens == 40 * TOKENS


def test_control_more_than_the_bound_is_reported() -> None:
    cost = StreamCost(policy="x", objects=1, marks=(Mark(1, 1, None),), most_tokens=2, capacity=1, slope=None)
    assert not cost.bounded and "x (!)" in stream_table([cost]) and "unknown" in stream_table([cost])


def test_growth_is_bytes_per_frame() -> None:
    assert growth_per_frame([Mark(f, 0, 1000 + 7 * f) for f in (100, 200, 300)]) == pytest.approx(7.0)
    assert growth_per_frame([Mark(100, 0, None), Mark(200, 0, None)]) is None


# -- the tool ---------------------------------------------------------------------------------------------------------


def tool(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(TOOL), *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOL), run_name="__main__")
    return stopped.value.code


SMALL = ("--image_size", "64", "--size", "64", "--weights", "random")


@pytest.mark.full
def test_tool_policies(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    status = tool(
        monkeypatch,
        "policies",
        *SMALL,
        "--frames",
        "18",
        "--objects",
        "1",
        "--policies",
        "keyframe",
        "--markdown",
        "--json",
        str(out),
    )
    lines = capsys.readouterr().out.splitlines()
    assert status == 0 and [re.split(r"[ |]+", line)[1] for line in lines[2:]] == ["fifo", "keyframe"]
    results = json.loads(out.read_text())["results"]
    assert [r["policy"] for r in results] == ["fifo", "keyframe"]
    assert results[0].keys() == PolicyCost.__dataclass_fields__.keys()


def test_tool_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("memory", *SMALL, "--frames", "4", "--every", "2", "--policies", "fifo")
    assert tool(monkeypatch, *arguments) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert "MB at 2" in head and "MB at 4" in head and row.startswith("fifo")


def test_policies_with_fields(setting: Setting) -> None:
    assert names("fifo,rmem:bank_size=8,gap=3,xmem") == ("fifo", "rmem:bank_size=8,gap=3", "xmem")
    assert policy_named("fifo:num_maskmem=3") == FIFO(num_maskmem=3) and policy_named("fifo") == FIFO()
    with pytest.raises(ValueError, match="name or name:field=value"):
        policy_named("fifo+attention=pooled")


def test_equal_pathways_are_one_row(setting: Setting) -> None:
    """The setting in which the cost of a tree is measured while its pathways are equal."""
    certain, sure = clip_of(30), policy_named("sam2long:uncertainty=0")
    assert max(count_memory(setting, sure, certain).tokens_read) <= 7 * TOKENS
    assert max(count_memory(setting, build_policy("sam2long"), certain).tokens_read) > 7 * TOKENS


# -- where time goes --------------------------------------------------------------------------------------------------


class Clock:
    """Of a part in seconds; the network takes no time at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds
        monkeypatch.setattr(profiling.time, "perf_counter", lambda: self.now)

    def run(self, part: str, function: Any, *args: Any, steady: bool = True) -> Any:
        self.now += self.seconds[part]
        return function(*args)


def test_profile(setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    learns = [p.requires_grad for p in setting.model.parameters()]
    clock = Clock(monkeypatch, encode_image=0.5, attend=0.2, decode=0.1, encode_memory=0.3)
    monkeypatch.setattr(setting.model, "runner", clock.run)
    shown = clip_of(WARM_UP + 4, objects=2)
    slow = replace(shown, picture=lambda t: (setattr(clock, "now", clock.now + 0.05), picture(t))[1])
    found = {p.name: p for p in profiling.profile(setting, FIFO(), slow, trace=tmp_path / "trace.json")}
    assert list(found) == ["frame", "encode_image", "attend", "decode", "encode_memory", "the rest"]
    ms = {name: round(p.milliseconds) for name, p in found.items()}
    assert ms == {
        "frame": 1150,
        "encode_image": 500,
        "attend": 200,
        "decode": 100,
        "encode_memory": 300,
        "the rest": 50,
    }
    assert found["the rest"].gflop is None and found["the rest"].rate is None
    parts = [found[name].gflop for name in ("encode_image", "attend", "decode", "encode_memory")]
    assert min(parts) > 0 and found["frame"].gflop == pytest.approx(sum(parts))
    assert found["attend"].rate == pytest.approx(found["attend"].gflop / 0.2)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [p.requires_grad for p in setting.model.parameters()] == learns
    assert len(profiling.profile_table(list(found.values())).splitlines()) == 7


def test_operations_grow_with_objects(setting: Setting) -> None:
    one, two = ({p.name: p.gflop for p in profiling.profile(setting, FIFO(), clip_of(WARM_UP + 3, n))} for n in (1, 2))
    assert two["encode_image"] == one["encode_image"] and two["decode"] == pytest.approx(2 * one["decode"], rel=0.01)
    assert one["attend"] < two["attend"] < 2 * one["attend"], "the first self-attention is shared"


def test_tool_profile(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    wide = ("--image_size", "64", "--size", "96x64", "--weights", "random")
    rows = ("--objects", "3", "--override", "tracker.max_rows=2", "--policies", "fifo:num_maskmem=2")
    assert tool(monkeypatch, "profile", *wide, "--frames", "20", *rows, "--json", str(out)) == 0
    assert capsys.readouterr().out.startswith("part")
    calls = {p["name"]: p["calls"] for p in json.loads(out.read_text())["results"]}
    assert calls["encode_image"] == 1 and calls["decode"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--frames", "19"), "at least 20 frames"),
        (("--policies", "fifo,xmem"), "one policy to profile, got fifo, xmem"),
        (("--override", "tracker.most_rows=2"), "most_rows"),
    ],
)
def test_profile_mistakes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: tuple[str, ...], message: str
) -> None:
    assert tool(monkeypatch, "profile", *SMALL, "--frames", "20", *change) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "3x", "1x2x3"])
def test_sizes_that_are_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: str) -> None:
    assert tool(monkeypatch, "profile", "--size", size) == 2
    assert "--size" in capsys.readouterr().err


# -- every case -------------------------------------------------------------------------------------------------------


def result(path: Path, ratio: float) -> None:
    pairs = [{"ours": {"wall": 1.0}, "peer": {"wall": ratio}}] * 2
    alone = {"first_mask": 0.5, "slope": 2e3}
    about = {"agreement": {"mean_iou": 1.0}, "race": {"pairs": pairs}, "ours": alone, "peer": alone | {"slope": None}}
    path.write_text(json.dumps({"results": about}))


def test_a_suite_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    cases = [Case("a", "peer", ("--objects=1",)), Case("b", "policies", ()), Case("c", "peer", ())]
    result(tmp_path / "a.json", 3.0)
    ran: list[list[str]] = []

    def run(command: list[str], **streams: Any) -> None:
        ran.append(command[2:])
        if command[2] == "peer":
            result(Path(command[-1]), 2.0)

    found = list(run_suite(cases, TOOL, tmp_path, ("--device=cpu",), ("--peer=x:y",), run))
    assert ran == [["policies", "--device=cpu", "--json", f"{tmp_path}/b.json"],
                   ["peer", "--device=cpu", "--peer=x:y", "--json", f"{tmp_path}/c.json"]]  # fmt: skip
    assert [case.name for case, _ in found] == ["a", "c"], "b failed"
    lines = suite_table(found).splitlines()
    assert [re.split(r"  +", line)[:5] for line in lines[1:]] == [["a", "1.00000", "1000", "3000", "3.00"],
                                                                 ["c", "1.00000", "1000", "2000", "2.00"]]  # fmt: skip
    assert "0.002" in lines[1] and "--objects=1" not in (tmp_path / "c.txt").read_text()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_case_is_a_command_that_the_tool_takes(device: str) -> None:
    cases = cases_of(device)
    assert len({case.name for case in cases}) == len(cases) > 10
    for case in cases:
        beside = ("--peer=x:y",) if case.verb == "peer" else ()
        common = ("--weights=random", f"--device={device}", "--threads=0", *beside)
        assert parse_arguments(case.command(TOOL, common, Path("x.json"))[2:]).verb == case.verb


@pytest.mark.full
def test_tool_suite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A small case, for real: ours beside ours, the peer told apart by its memory."""
    small = ("--config=nano_v2", "--image_size=64", "--size=64", "--frames=27", "--block=5", "--no_alone")
    cases = (
        Case("same", "peer", small),
        Case("other", "peer", (*small, "--peer_override=memory_policy.num_maskmem=1")),
    )
    monkeypatch.setattr("sam2_mem.cli.benchmark.cases_of", lambda device: cases)
    assert tool(monkeypatch, "suite", "--peer", OURSELVES, "--out", str(tmp_path), "--threads", "1") == 0
    head, same, other = capsys.readouterr().out.splitlines()
    assert "ratio" in head and same.startswith("same   1.00000") and not other.startswith("other  1.00000")


def test_tool_memory_of_a_clip_played_to_and_fro(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [to_and_fro(t, 3) for t in range(9)] == [0, 1, 2, 1, 0, 1, 2, 1, 0] and to_and_fro(5, 2) == 1
    arguments = ("memory", *SMALL, "--frames", "9", "--every", "3", "--policies", "fifo", "--loop")
    assert tool(monkeypatch, *arguments, "3") == 0
    assert "process MB" in capsys.readouterr().out
    assert tool(monkeypatch, *arguments, "1") == 2
    assert "at least 2 frames" in capsys.readouterr().err


# -- beside a peer ----------------------------------------------------------------------------------------------------

OURSELVES = "sam2_mem.build_sam:build_sam2_video_predictor"
BESIDE = ("peer", *SMALL, "--peer", OURSELVES, "--frames", "27", "--block", "5", "--objects", "2", "--threads", "1")


@pytest.mark.full
@pytest.mark.extended
def test_tool_peer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Ours beside ours: the masks are the same, everything is reported for both."""
    out = tmp_path / "out.json"
    assert tool(monkeypatch, *BESIDE, "--alone_frames", "30", "--json", str(out)) == 0
    said = capsys.readouterr().out
    assert "mean IoU 1.00000" in said and "ratio" in said and said.count("alone: first prompt") == 2
    found = json.loads(out.read_text())["results"]
    assert len(found["race"]["pairs"]) == 2 and found["agreement"]["logit"] == 0.0
    assert found["race"]["gflop"] is None and "operations of" not in said, "no frame is left to count"
    for side in ("ours", "peer"):
        assert found[side]["first_prompt"] > 0 and found[side]["first_mask"] > 0 and found[side]["frames"] == 30


@pytest.mark.full
def test_operations_beside_a_peer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of the same network equal, of one that reads less memory fewer; counting needs a frame of its own."""
    out = tmp_path / "out.json"
    less = ("--peer_override", "memory_policy.num_maskmem=1", "--least_iou", "0")
    for more, ratio in ((), 1.0), (less, 0.8):
        assert tool(monkeypatch, *BESIDE, "--frames", "28", "--no_alone", *more, "--json", str(out)) == 0
        ours, theirs = json.loads(out.read_text())["results"]["race"]["gflop"]
        assert 0.01 < ours < 1 and (theirs == ours if ratio == 1.0 else theirs < 0.95 * ours)
        assert f"ratio {theirs / ours:.3f}" in capsys.readouterr().out


@pytest.mark.full
def test_no_ratio_where_masks_differ(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The control: another memory on our side."""
    other = ("--override", "memory_policy.num_maskmem=1", "--override", "memory_policy.max_obj_ptrs_in_encoder=1")
    assert tool(monkeypatch, *BESIDE, *other) == 1
    said = capsys.readouterr().out
    assert "no ratio" in said and "wall" not in said
    assert tool(monkeypatch, *BESIDE, *other, "--least_iou", "0", "--no_alone") == 0
    assert "ratio" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--peer", "nowhere:build"), "expected a peer as module:function"),
        (("--peer", "json"), "expected a peer as module:function"),
        (("--frames", "26"), "at least 27 frames"),
        (("--alone_frames", "0"), "expected alone_frames of at least 1"),
        (("--policies", "xmem"), "--override memory_policy=NAME"),
        (("--weights", "none.pt"), "none.pt"),
    ],
)
def test_peer_mistakes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: tuple[str, ...], message: str
) -> None:
    assert tool(monkeypatch, *BESIDE, *change) == 2
    assert message in capsys.readouterr().err


def test_agreement_by_hand() -> None:
    one = torch.full((2, 4, 4), -1.0)
    one[0, :2] = 1.0
    other = one.clone()
    other[0, 0] = 3.0
    other[0, 1, :2] = -1.0
    found = agreement([one, one], [one, other])
    assert found.mean_iou == pytest.approx((1 + 1 + 6 / 8 + 1) / 4) and found.least_iou == pytest.approx(6 / 8)
    assert found.logit == 2.0 and found.present == 0.5 and found.area == pytest.approx((8 / 16 + 6 / 16) / 2)
    assert not found.conclusive() and agreement([one[:1]], [one[:1]]).conclusive()
    assert not agreement([one[:1].abs()], [one[:1].abs()]).conclusive(), "all object"


def test_race_compares_the_masks_it_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frame by frame; what is left of the clip after the last block is not asked for."""
    given = {"ours": 1.0, "peer": -1.0}
    frames = WARM_UP + 2 * 3 + 2

    def track(arm: PredictorSpec, predictor: Any, clip: StoredClip) -> Iterator[torch.Tensor]:
        yield from (torch.full((1, 2, 2), given[arm.builder] * (t + 1)) for t in range(frames))

    monkeypatch.setattr(reference, "track", track)
    ours, other = (PredictorSpec(builder=name, config="", weights="") for name in ("ours", "peer"))
    nets = (torch.nn.Identity(), torch.nn.Identity())
    _, found = compare_speed((ours, other), StoredClip(folder=Path(), num_frames=frames), nets, 3)
    assert found.frames == frames - 1 and found.mean_iou == 0.0, "one more for counting operations"
    _, same = compare_speed((ours, ours), StoredClip(folder=Path(), num_frames=frames), nets, 3)
    assert same.mean_iou == 1.0 and same.logit == 0.0


def test_race_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, reference, reference, ours; what is left of the clip is not timed, and the ratio is the peer's time over ours."""
    turns: list[tuple[str, int]] = []

    def advance(arm: PredictorSpec, run: str, frames: int) -> BlockTime:
        turns.append((arm.builder, frames))
        seconds = 3.0 if arm.builder == "peer" else 2.0
        return BlockTime(seconds, 2 * seconds)

    monkeypatch.setattr(reference, "_advance", advance)
    monkeypatch.setattr(reference, "_stored", lambda run, store: run)
    monkeypatch.setattr(reference, "track", lambda arm, predictor, clip: arm.builder)
    monkeypatch.setattr(reference, "agreement", lambda a, b: (a, b))
    monkeypatch.setattr(reference, "_gflop", lambda predictor, run: {"ours": 1.0, "peer": 1.5}[run])
    ours, other = (PredictorSpec(builder=name, config="", weights="") for name in ("ours", "peer"))
    found, _ = compare_speed((ours, other), StoredClip(folder=Path(), num_frames=WARM_UP + 19), (None, None), 5)
    assert turns == [("ours", WARM_UP), ("peer", WARM_UP), ("ours", 5), ("peer", 5), ("peer", 5), ("ours", 5)]
    assert found.ratios("wall") == [1.5, 1.5] and found.milliseconds("ours", "cpu") == 4000
    assert found.gflop == (1.0, 1.5)


def test_tool_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool(monkeypatch, "memory", *SMALL, "--policies", "fif") == 2
    assert "fif" in capsys.readouterr().err


def test_synthetic_clips_have_the_objects_asked_for() -> None:
    found = synthetic_clip(3, 64, 5)
    assert found.num_frames == 3 and [p.obj_id for p in found.prompts] == [1, 2, 3, 4, 5]
    assert found.picture(2).shape == (64, 64, 3)


def test_clips_of_videos(tmp_path: Path) -> None:
    for t in range(4):
        cv2.imwrite(str(tmp_path / f"{t:05d}.jpg"), picture(t))
    ids = np.zeros((SIDE, SIDE), np.uint8)
    ids[:8, :8], ids[20:, 20:] = 3, 7
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "first.png"), ids)
    found = video_clip(tmp_path, tmp_path / "masks" / "first.png", 3)
    assert found.num_frames == 3 and [p.obj_id for p in found.prompts] == [3, 7]
    assert prompts_of(ids, 1)[0].mask.sum() == 64
