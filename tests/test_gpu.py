"""On a CUDA device: the same masks as on the CPU, half precision, bounded memory, training.

    make test-gpu

SAM2_MEM_TEST_DEVICE=cpu runs them on the CPU, to check the tests themselves.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from device_counts import MORE_WAITS
from helpers import NANO_128
from torch.nn.attention import SDPBackend

from sam2_mem.build_sam import build_policy, build_sam2, build_sam2_video_predictor
from sam2_mem.config import policy_names
from sam2_mem.model.acceleration.cuda_graphs import cuda_graphs
from sam2_mem.model.attention_operators import Exact, Memory, Packed
from sam2_mem.model.rope import rotation_at
from sam2_mem.model.rotary_attention import RotaryAttention
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.mask_postprocessing import fill_holes
from sam2_mem.tracking.video_checkpoint import load_checkpoint, save_checkpoint
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import PromptPlan, VideoPass
from sam2_mem.training.clips import Clip, ClipSpec
from sam2_mem.training.plan import Optimisation, Stage, TrainingPlan
from sam2_mem.training.procedural import ProceduralClips
from sam2_mem.training.rollout import RolloutSettings
from sam2_mem.training.trainer import Trainer
from sam2_mem.training.validation import first_masks, held_out
from sam2_mem.video import Frame

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[1]
DEVICE = os.environ.get("SAM2_MEM_TEST_DEVICE", "cuda")
SIZE = "model.image_size=192"
FRAMES = 24
CLOSE, SAME = 2e-2, 0.995  # logits; IoU of masks


@pytest.fixture(scope="module")
def clip() -> Clip:
    return held_out("easy", 1, num_frames=FRAMES, first_seed=30_000_005)[0]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Matrix products in float32, so that devices can be compared."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before)


@contextmanager
def half() -> Iterator[None]:
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        yield


def track(predictor: SAM2VideoPredictor, clip: Clip, *, repeat: int = 1, within=nullcontext) -> torch.Tensor:
    """(T, N, 1, H, W) logits of a stream, on the CPU."""
    _, first = first_masks(clip)
    state, shown = predictor.init_state(), []
    with torch.inference_mode(), within():
        for t in range(FRAMES * repeat):
            given = [Prompt(i, mask=mask) for i, mask in enumerate(first)] if t == 0 else ()
            shown.append(predictor.track_frame(state, clip.frames[t % FRAMES], given)[2].float().cpu())
    return torch.stack(shown)


def import_path() -> str:
    """PYTHONPATH of a command: this checkout, then what the tests themselves import from."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def nano(device: str, policy: str = "fifo", *overrides: str) -> SAM2VideoPredictor:
    return build_sam2_video_predictor(
        "nano_v2", device=device, memory_policy=policy, hydra_overrides_extra=[SIZE, *overrides]
    )


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a > 0, b > 0
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


@pytest.mark.parametrize("policy", policy_names())
def test_masks_are_those_of_the_cpu(policy: str, clip: Clip) -> None:
    here, there = track(nano(DEVICE, policy), clip), track(nano("cpu", policy), clip)
    assert 0 < (there > 0).float().mean() < 0.9
    assert iou(here, there) > SAME
    if policy == "fifo":  # others may decide otherwise where two scores are all but equal
        assert (here - there).abs().max() < CLOSE


def test_control_other_weights_differ(clip: Clip) -> None:
    other = nano(DEVICE)
    with torch.no_grad():
        other.model.memory_attention.norm.weight.mul_(1.05)
    assert (track(other, clip) - track(nano("cpu"), clip)).abs().max() > CLOSE


def test_half_precision(clip: Clip) -> None:
    """Under autocast, as SAM 2 is used on GPUs; a stream of several objects gives nearly the same masks."""
    full, rough = track(nano(DEVICE), clip), track(nano(DEVICE), clip, within=half)
    assert not torch.equal(full, rough)
    assert rough.isfinite().all() and iou(full, rough) > 0.9


@pytest.mark.parametrize("policy", ["fifo", "sparse", "keyframe"])
def test_memory_that_waits_on_the_host(policy: str, clip: Clip) -> None:
    predictor = nano(DEVICE, policy, "tracker.storage_device=cpu")
    _, first = first_masks(clip)
    state = predictor.init_state()
    predictor.track_frame(state, clip.frames[0], [Prompt(0, mask=first[0])])
    held = [e.tokens.feat.device.type for e in state.tracker.tracks[0].state.all_entries()]
    assert held == ["cpu"]
    assert iou(track(predictor, clip), track(nano(DEVICE, policy), clip)) > SAME


@pytest.mark.parametrize(
    ("policy", "overrides"), [("fifo", ()), ("sam2long", ()), ("fifo", ("tracker.storage_device=cpu",))]
)
def test_a_saved_pass_goes_on(policy: str, overrides: tuple[str, ...], clip: Clip, tmp_path: Path) -> None:
    predictor = nano(DEVICE, policy, *overrides)
    _, first = first_masks(clip)
    plan = PromptPlan((0,), {0: lambda frame: [Prompt(0, mask=first[0])]})
    passes = [VideoPass(predictor, predictor.init_state(clip.frames, interactive=False), plan) for _ in range(2)]
    masks = {}
    for shown in passes[0]:
        masks[shown.frame.index] = shown.masks[0]
        if shown.frame.index == 5:
            save_checkpoint(tmp_path / "a.pt", passes[0].checkpoint(), predictor.policy, predictor.device, {})
    checkpoint, _ = load_checkpoint(tmp_path / "a.pt", predictor.policy, predictor.device)
    held = {
        entry.tokens.feat.device.type for entry in checkpoint.tracks[0].state.all_entries() if entry.tokens is not None
    }
    assert held == {"cpu" if overrides else torch.device(DEVICE).type}
    passes[1].go_on(checkpoint)
    later = {shown.frame.index: shown.masks[0] for shown in passes[1]}
    assert list(later) == list(range(6, FRAMES))
    assert iou(*(torch.from_numpy(np.stack([m[i] for i in later])) for m in (masks, later))) > SAME


@pytest.mark.parametrize("policy", ["fifo", "xmem", "sam2long"])
def test_device_memory_is_flat(policy: str, clip: Clip) -> None:
    if DEVICE == "cpu":
        pytest.skip("only CUDA counts what it has given out")
    overrides = [f"memory_policy={policy}"]
    if policy == "xmem":  # prototypes would grow for 480 frames
        overrides.append("memory_policy.max_long_term=512")
    predictor, sizes = (
        build_sam2_video_predictor("nano_v2", device=DEVICE, hydra_overrides_extra=[SIZE, *overrides]),
        [],
    )
    _, first = first_masks(clip)
    state = predictor.init_state()
    for t in range(400):
        given = [Prompt(i, mask=mask) for i, mask in enumerate(first)] if t == 0 else ()
        predictor.track_frame(state, clip.frames[t % FRAMES], given)
        if t in (200, 399):
            gc.collect()
            sizes.append(torch.cuda.memory_allocated())
    assert sizes[1] <= 1.05 * sizes[0], sizes


def test_nothing_stays_on_the_device(clip: Clip) -> None:
    if DEVICE == "cpu":
        pytest.skip("only CUDA counts what it has given out")
    predictor = nano(DEVICE)
    track(predictor, clip)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        track(predictor, clip)
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**16


def test_holes_are_filled_alike() -> None:
    torch.manual_seed(0)
    logits = torch.nn.functional.avg_pool2d(torch.randn(3, 1, 64, 64), 3, 1, 1).squeeze(1)
    there = fill_holes(logits, 8)
    assert not torch.equal(there, logits)
    assert torch.equal(fill_holes(logits.to(DEVICE), 8).cpu(), there)


# -- vos_optimized ----------------------------------------------------------------------------------------------------


def optimized(policy: str = "fifo", *overrides: str) -> SAM2VideoPredictor:
    if DEVICE == "cpu":
        pytest.skip("tests/model/test_cuda_graphs.py does this on the CPU")
    overrides = list(overrides)
    return build_sam2_video_predictor(
        "nano_v2", device=DEVICE, vos_optimized=True, memory_policy=policy, hydra_overrides_extra=[SIZE, *overrides]
    )


@pytest.mark.parametrize("policy", ["fifo", "sam2long", "xmem", "distilled"])
def test_optimized(policy: str, clip: Clip) -> None:
    """Graphs and weights cast once give what autocast gives."""
    fast = optimized(policy)
    shown = track(fast, clip)
    assert iou(shown, track(nano(DEVICE, policy), clip, within=half)) > SAME
    assert iou(shown, track(nano(DEVICE, policy), clip)) > 0.9
    runner = fast.model.runner
    assert not runner.refused and {"encode_image", "decode", "encode_memory"} <= {key[0] for key in runner.recordings}


def test_optimized_a_second_video_is_not_the_first(clip: Clip) -> None:
    """Recordings made on one video serve another one, backwards."""
    fast, other = optimized(), Clip(frames=clip.frames[::-1].copy(), ids=clip.ids[::-1].copy())
    track(fast, clip)
    assert iou(track(fast, other), track(nano(DEVICE), other, within=half)) > SAME


def test_optimized_memory_is_flat(clip: Clip) -> None:
    """From the video on in which shapes that come once a video, while memory fills up, have been recorded too."""
    predictor, sizes = optimized(), []
    settings = predictor.model.runner.settings
    for _ in range(settings.after + 3):
        track(predictor, clip)
        gc.collect()
        sizes.append(torch.cuda.memory_allocated())
    assert len(predictor.model.runner.recordings) <= settings.max_recordings
    assert sizes[-1] <= sizes[-2] + 2**16, sizes


@pytest.mark.parametrize(("policy", "fast"), [*((policy, False) for policy in policy_names()), ("fifo", True)])
def test_one_wait_a_frame(policy: str, fast: bool, clip: Clip) -> None:
    """The host waits for the device once a frame, for the scores; and where masks are fetched."""
    predictor = optimized(policy) if fast else nano(DEVICE, policy)
    if DEVICE == "cpu":
        pytest.skip("nothing to wait for")
    _, first = first_masks(clip)
    tracker = predictor.init_state().tracker
    with torch.inference_mode():
        for t in range(FRAMES):
            features = predictor.encode(Frame(t, str(t), clip.frames[t]))
            tracker.step(features, [Prompt(i, mask=mask) for i, mask in enumerate(first)] if t == 0 else ())
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                tracker.step(predictor.encode(Frame(FRAMES, "next", clip.frames[0])))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    said = [str(w.message) for w in waits if "synchroniz" in str(w.message)]
    assert 1 <= len(said) <= 1 + len(first) * MORE_WAITS.get(policy, 0), said


@torch.inference_mode()
def test_after_a_refused_recording_work_goes_on() -> None:
    """On the stream of before, and what is refused does not spoil the next recording."""
    if DEVICE == "cpu":
        pytest.skip("tests/test_simulated_cuda.py does this without a device")
    x = torch.ones(3, device=DEVICE)
    before, record = torch.cuda.current_stream(x.device), cuda_graphs(x.device)
    with pytest.raises(RuntimeError):
        record(lambda: x if x.sum().item() else -x)
    assert torch.cuda.current_stream(x.device) == before
    assert (x + 1).tolist() == [2, 2, 2]
    replay, out = record(lambda: 2 * x)
    x.fill_(5)
    replay()
    assert out.tolist() == [10, 10, 10]


def test_optimized_on_a_device_that_is_not_the_current_one(clip: Clip) -> None:
    if DEVICE == "cpu" or torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices; tests/test_simulated_cuda.py does this without one")
    other = build_sam2_video_predictor("nano_v2", device="cuda:1", vos_optimized=True, hydra_overrides_extra=[SIZE])
    assert iou(track(other, clip), track(optimized(), clip)) > SAME


def test_the_kernel_is_chosen_by_measurement(clip: Clip) -> None:
    fast = optimized()
    track(fast, clip)
    kernel = fast.model.memory_attention.layers[0].cross_attn_image.kernel
    assert kernel.choices and set(kernel.choices.values()) <= {*kernel.backends, None}
    assert SDPBackend.CUDNN_ATTENTION not in kernel.backends


def test_rows_of_unequal_length_end_to_end() -> None:
    """The kernel for rows of unequal length, beside exact attention with padding."""
    if DEVICE == "cpu":
        pytest.skip("tests/model/test_attention_operators.py does this on the CPU")
    torch.manual_seed(0)
    attention = RotaryAttention(width=256, key_width=64).to(DEVICE, torch.bfloat16).eval()
    lengths, longest = (700, 300, 44), 700
    place = rotation_at(torch.rand(1, 1, longest, 2, device=DEVICE) * 16, 256)
    here = rotation_at(torch.rand(1, 1, 128, 2, device=DEVICE) * 16, 256)
    key, q = (
        torch.randn(n, m, w, device=DEVICE, dtype=torch.bfloat16) for n, m, w in ((3, longest, 64), (1, 128, 256))
    )
    ends = torch.tensor(lengths, device=DEVICE)[:, None]
    bias = torch.zeros(3, longest, device=DEVICE).masked_fill(
        torch.arange(longest, device=DEVICE) >= ends, float("-inf")
    )
    pointer = torch.zeros(3, longest, dtype=torch.bool, device=DEVICE)
    memory = Memory(key, key, place, bias, pointer, lengths=lengths, counted=False)
    with torch.inference_mode():
        asked = attention.queries(q, here)
        packed, exact = (operator(attention, asked, memory).float() for operator in (Packed(), Exact()))
        wrong = Packed()(attention, asked, replace(memory, lengths=(longest,) * 3)).float()
    assert (packed - exact).abs().max() < CLOSE
    assert (wrong - exact).abs().max() > CLOSE


# -- training ---------------------------------------------------------------------------------------------------------


def plan(amp: bool) -> TrainingPlan:
    spec = ClipSpec(num_frames=3, max_gap=1, size=128)
    clips = ProceduralClips(levels={"easy": 1.0}, count=2, length=6)
    stage = Stage(until=3, clips=clips, clip_spec=spec, batch=2, rollout=RolloutSettings())
    return TrainingPlan(stages=[stage], optimisation=Optimisation(rate=1e-4, warmup=1), amp=amp, log_every=1)


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
def test_training(amp: bool, tmp_path: Path) -> None:
    """Three steps lose about what they lose on the CPU, and what was trained here goes on there."""
    losses = {}
    for device in (DEVICE, "cpu"):
        model = build_sam2(NANO_128, device=device, mode="train", apply_postprocessing=False)
        training = Trainer(
            model, build_policy("fifo"), plan(amp), folder=tmp_path / device.replace(":", "_"), fresh=False
        )
        reports: list[float] = []
        training.run(after_step=lambda report, into=reports: into.append(report.total))
        losses[device] = np.array(reports)
    assert np.isfinite(losses[DEVICE]).all()
    np.testing.assert_allclose(losses[DEVICE][0], losses["cpu"][0], rtol=0.1 if amp else 0.02)
    model = build_sam2(NANO_128, device="cpu", mode="train", apply_postprocessing=False)
    resumed = Trainer(model, build_policy("fifo"), plan(amp), folder=tmp_path / DEVICE.replace(":", "_"), fresh=False)
    assert resumed.resume() and resumed.step == 3


def test_two_gpus_train_together(tmp_path: Path) -> None:
    if DEVICE == "cpu" or torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices; tests/training/test_training.py does this with two processes on the CPU")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "tools" / "train.py"), "run", "hiera_nano", "--out", str(tmp_path), "--until", "2"]
    command += ["sources.easy.count=2", "plan.log_every=1", "plan.validation.every=0"]
    environment = os.environ | {"PYTHONPATH": import_path(), "SAM2_MEM_CLIPS": str(tmp_path / "clips")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_line(tmp_path: Path) -> None:
    demo = ROOT / "notebooks" / "videos"
    command = [sys.executable, str(ROOT / "tools" / "vos_inference.py"), "--sam2_cfg", NANO_128]
    command += ["--base_video_dir", str(demo), "--video_list_file", str(demo / "demo.txt"), "--device", DEVICE]
    command += ["--input_mask_dir", str(demo / "demo_prompts"), "--output_mask_dir", str(tmp_path / "out")]
    command += ["--track_object_appearing_later_in_video"]
    environment = os.environ | {"PYTHONPATH": import_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["device"]["type"] == torch.device(DEVICE).type
