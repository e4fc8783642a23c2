#!/usr/bin/env python
"""What a frame costs with each network of the SAM 2 family on a CPU, and beside the same networks in transformers.

    python benchmarks/measure_networks.py networks --rounds 3
    python benchmarks/measure_networks.py transformers --size 512

Random weights. `networks`: one frame (image encoder and tracker) with a full bank, again and again from one state, all networks and policies
in turn. `transformers`: the same weights in both, clicks on frame 0, memory in float32, every frame by the one and then the other; their
masks are compared. Times are processor seconds of one thread, the least of all turns, which holds on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

from sam2_mem import SAM2VideoPredictor, build_sam2_video_predictor  # noqa: E402
from sam2_mem.cli.benchmark import synthetic_clip  # noqa: E402
from sam2_mem.evaluation.benchmark.profile import counting  # noqa: E402
from sam2_mem.evaluation.benchmark.reference_benchmark import amplified  # noqa: E402
from sam2_mem.evaluation.tables import text_table  # noqa: E402
from sam2_mem.memory.tokens import tensor_bytes  # noqa: E402
from sam2_mem.model.memory_attention import Attended  # noqa: E402
from sam2_mem.types import FrameFeatures, RowBatch, Usage  # noqa: E402
from sam2_mem.video import Frame  # noqa: E402

NETWORKS = (
    "sam2.1_hiera_t@1024",
    "edgetam@1024",
    "edgetam@512",
    "efficienttam_ti@1024",
    "efficienttam_ti_1@1024",
    "efficienttam_ti_512x512@512",
)
WARM_UP = 8
"""Frames after which the memory of seven maps is full."""


def seconds_of(function: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds and the result."""
    began = time.process_time()
    result = function()
    return time.process_time() - began, result


# -- networks ---------------------------------------------------------------------------------------------------------


class SteadyFrame:
    """The first frame after the warm-up, as often as it is called.

    The frames of the warm-up are one picture, encoded once and decoded without reading memory: what a frame costs depends on the sizes of
    memory alone.
    """

    def __init__(self, network: str, policy: str) -> None:
        config, size = network.split("@")
        torch.manual_seed(0)
        overrides = [f"++model.image_size={size}"]
        self.predictor = build_sam2_video_predictor(
            config, "random", device="cpu", memory_policy=policy, hydra_overrides_extra=overrides
        )
        self.predictor.model.load_state_dict(amplified(self.predictor.model.state_dict()))
        clip = synthetic_clip(2, int(size), 1)
        self.tracker = self.predictor.init_state(num_frames=WARM_UP + 1).tracker
        features = self.predictor.encode(Frame(0, "0", clip.picture(0)))
        with mock.patch.object(self.predictor.model, "attend", self._without_reading):
            for index in range(WARM_UP):
                self.tracker.step(replace(features, index=index), clip.prompts if index == 0 else ())
        self.frame = Frame(WARM_UP, str(WARM_UP), clip.picture(1))
        self.tracks = {i: copy.copy(track) for i, track in self.tracker.tracks.items()}

    @staticmethod
    def _without_reading(features: FrameFeatures, rows: RowBatch, usage: Usage = Usage.NONE) -> Attended:
        return Attended(features.low.expand(len(rows.lengths), -1, -1), None)

    def __call__(self) -> Tensor:
        self.tracker.tracks = {i: copy.copy(track) for i, track in self.tracks.items()}
        for track in self.tracker.tracks.values():
            track.outputs, track.tracked = dict(track.outputs), copy.deepcopy(track.tracked)
        return self.tracker.step(self.predictor.encode(self.frame)).masks

    @property
    def state_bytes(self) -> int:
        """Of one object's memory."""
        [track] = self.tracks.values()
        return tensor_bytes(track.state.tensors())


@torch.inference_mode()
def measure_networks(args: argparse.Namespace) -> None:
    names = [(network, policy) for network in args.networks for policy in args.policies]
    frames = {name: SteadyFrame(*name) for name in names}
    gigaflops = {}
    for name, frame in frames.items():
        with counting() as counter:
            frame()
        gigaflops[name] = counter.get_total_flops() / 1e9
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in names}
    for turn in range(args.rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            seconds[name].append(seconds_of(frames[name])[0])
            print(f"{turn} {'/'.join(name)}: {seconds[name][-1]:.2f} s", file=sys.stderr)
    least = {name: min(times) for name, times in seconds.items()}
    first = names[0]
    rows = [
        [
            network,
            policy,
            f"{least[network, policy]:.2f}",
            f"{least[network, policy] / least[first]:.3f}",
            f"{gigaflops[network, policy]:.0f}",
            f"{gigaflops[network, policy] / gigaflops[first]:.3f}",
            f"{frames[network, policy].state_bytes / 2**20:.2f}",
            f"{frames[first].state_bytes / frames[network, policy].state_bytes:.1f}x",
        ]
        for network, policy in names
    ]
    header = ["network", "policy", "s a frame", "of the first", "GFLOP", "of the first", "MiB an object", "less"]
    print(text_table(header, rows, markdown=True))


# -- beside transformers ----------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A network of both, on one clip."""

    theirs: Any
    ours: SAM2VideoPredictor
    clip: Any

    def run(self, objects: int, frames: int) -> tuple[list[float], list[float], float, float]:
        """Least seconds of a tracked frame of theirs and ours; the least IoU of masks and the largest difference of logits."""
        session, state = self.theirs.init_state(self.clip.frames), self.ours.init_state(self.clip.frames)
        for number in range(1, objects + 1):
            for predictor, place in ((self.theirs, session), (self.ours, state)):
                predictor.add_new_points_or_box(place, 0, number, points=[self.clip.centre(number)], labels=[1])
        passes = self.ours.propagate_in_video(state)
        spent: tuple[list[float], list[float]] = ([], [])
        agreement, apart = 1.0, 0.0
        in_float32 = mock.patch.object(
            torch, "bfloat16", torch.float32
        )  # transformers rounds SAM 2's memory without a switch
        with closing(passes), torch.inference_mode(), in_float32:
            next(passes)
            for index in range(1, frames):
                seconds, out = seconds_of(lambda: self.theirs.model(inference_session=session, frame_idx=index))
                spent[0].append(seconds)
                seconds, (_, _, masks) = seconds_of(lambda: next(passes))
                spent[1].append(seconds)
                expected = self.theirs._at_video_size(out.pred_masks)
                both, either = ((masks > 0) & (expected > 0)).sum(), ((masks > 0) | (expected > 0)).sum()
                agreement = min(agreement, float(both / either.clamp(min=1)))
                apart = max(apart, float((masks - expected).abs().max()))
        return *spent, agreement, apart


def cases(size: int, frames: int) -> Iterator[tuple[str, Case]]:
    import transformers
    from clips import make_clip
    from helpers import make_predictor
    from transformers_oracle import TransformersPredictor, edgetam_config, enliven, sam2_config, saved

    clip = make_clip(frames, size, size)
    models = {
        "edgetam": (transformers.EdgeTamVideoModel, edgetam_config(size, 16)),
        "sam2.1_hiera_t": (transformers.Sam2VideoModel, sam2_config("t", is_2_1=True, size=size)),
    }
    for name, (kind, config) in models.items():
        model = kind(config)
        enliven(model, loudness=0.2)
        with tempfile.TemporaryDirectory() as folder:
            path = saved(model, Path(folder) / "model.safetensors")
            overrides = ("tracker.memory_dtype=float32", "++tracker.fill_hole_area=0")
            ours = make_predictor(path, *overrides, config=name, image_size=size, postprocessing=True)
        yield name, Case(TransformersPredictor(model, as_official=False), ours, clip)


def measure_transformers(args: argparse.Namespace) -> None:
    rows = []
    for name, case in cases(args.size, args.frames):
        for objects in args.objects:
            theirs, ours, agreement, apart = case.run(objects, args.frames)
            full = slice(-3, None)  # the frames on which memory is fullest
            least = min(theirs[full]), min(ours[full])
            figures = [f"{least[0]:.2f}", f"{least[1]:.2f}", f"{least[0] / least[1]:.2f}"]
            rows.append([name, str(args.size), str(objects), *figures, f"{agreement:.4f}", f"{apart:.1e}"])
            print(" ".join(rows[-1]), file=sys.stderr)
    header = ["network", "size", "objects", "transformers s", "ours s", "ratio", "least IoU", "logits apart"]
    print(text_table(header, rows, markdown=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    networks = verbs.add_parser("networks", help="networks and policies in turn")
    networks.add_argument("--networks", nargs="+", default=NETWORKS, metavar="CONFIG@SIZE")
    networks.add_argument("--policies", nargs="+", default=("fifo", "keyframe"))
    networks.add_argument("--rounds", type=int, default=3)
    networks.set_defaults(measure=measure_networks)
    beside = verbs.add_parser("transformers", help="the same network in transformers, frame by frame in turn")
    beside.add_argument("--size", type=int, default=512)
    beside.add_argument("--objects", type=int, nargs="+", default=(1, 3))
    beside.add_argument("--frames", type=int, default=10)
    beside.set_defaults(measure=measure_transformers)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.measure(args)


if __name__ == "__main__":
    main()
