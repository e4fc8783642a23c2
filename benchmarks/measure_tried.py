#!/usr/bin/env python
"""What was tried and left out because it gains nothing, beside what is used: the table of docs/performance.md.

    python benchmarks/measure_tried.py --threads 1

Some of what is used stands there too, for comparison. Milliseconds on a CPU, the best of several, both ways in turns;
sizes are those of SAM 2 at an image size of 1024 and, where it says so, 256. What is tried is checked to give the same
numbers first.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

from switches import linear_maps_by_torch, scores_to_the_base_of_e  # noqa: E402

from sam2_mem.model.acceleration.onednn_linear import linear  # noqa: E402
from sam2_mem.model.prompt_encoder import PromptEncoder  # noqa: E402
from sam2_mem.model.rope import Rotation, grid_coordinates, rotate, rotation_at  # noqa: E402
from sam2_mem.model.rotary_attention import RotaryAttention, attend_in_tiles  # noqa: E402

SIDE, MAPS, WIDTH, NARROW = 64, 7, 256, 64
KEYS_1024, KEYS_256 = 28736, 1856
ROUNDS = 5


def beside(name: str, used: Callable[[], Tensor], tried: Callable[[], Tensor], *, close: float = 2e-3) -> None:
    """Print both times."""
    gap = (used() - tried()).abs().max().item()
    if gap > close:
        raise RuntimeError(f"{name}: results differ by {gap:.1e}, expected at most {close:.0e}")
    best = {used: float("inf"), tried: float("inf")}
    for i in range(ROUNDS):
        for function in (used, tried) if i % 2 else (tried, used):
            began = time.perf_counter()
            function()
            best[function] = min(best[function], time.perf_counter() - began)
    print(f"{name:58s} used {1000 * best[used]:8.2f} ms   tried {1000 * best[tried]:8.2f} ms", flush=True)


def alone(name: str, function: Callable[[], object]) -> None:
    """Print what could be saved at most."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - began)
    print(f"{name:58s} takes {1000 * best:7.2f} ms", flush=True)


def real_rotation() -> None:
    for keys in (KEYS_256, KEYS_1024):
        x, turn = torch.randn(1, 1, keys, WIDTH), rotation_at(64 * torch.rand(1, 1, keys, 2), WIDTH)
        real = Rotation(turn.cos, turn.sin)
        beside(f"rotary encoding of {keys} keys, complex | real", lambda: rotate(x, turn), lambda: rotate(x, real))


def kept_keys() -> None:
    attention = RotaryAttention(width=WIDTH, key_width=NARROW).eval()
    for keys in (KEYS_256, KEYS_1024):
        x, turn = torch.randn(1, keys, NARROW), rotation_at(64 * torch.rand(1, 1, keys, 2), WIDTH)
        alone(f"keys of four layers, {keys} tokens", lambda: [attention.keys(x, turn) for _ in range(4)])


def tiled_self_attention() -> None:
    q, k, v = torch.randn(1024, WIDTH), torch.randn(SIDE**2, WIDTH), torch.randn(SIDE**2, WIDTH)
    beside(
        "self-attention of 1024 queries, torch's kernel | tiles",
        lambda: F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0],
        lambda: attend_in_tiles(q, k, v),
    )


def bare_exponentials() -> None:
    q, k, value = torch.randn(1024, WIDTH), torch.randn(KEYS_1024, WIDTH), torch.randn(KEYS_1024, NARROW)

    def bare() -> Tensor:
        counted = torch.cat([value, value.new_ones(len(value), 1)], dim=1)
        total, room = q.new_zeros(len(q), NARROW + 1), q.new_empty(len(q), 512)
        part = q * WIDTH**-0.5
        for start in range(0, len(k), 512):
            keys = k[start : start + 512]
            scores = torch.mm(part, keys.t(), out=room[:, : len(keys)] if len(keys) == 512 else None)
            total.addmm_(scores.exp_(), counted[start : start + 512])
        return total[:, :-1] / total[:, -1:]

    beside("1024 queries read memory, with | without the largest score", lambda: attend_in_tiles(q, k, value), bare)


def powers_of_e() -> None:
    q, k, value = torch.randn(1024, WIDTH), torch.randn(KEYS_1024, WIDTH), torch.randn(KEYS_1024, NARROW)

    def tried() -> Tensor:
        with scores_to_the_base_of_e():
            return attend_in_tiles(q, k, value)

    beside("1024 queries read memory, powers of two | of e", lambda: attend_in_tiles(q, k, value), tried)


def linear_maps() -> None:
    for rows, wide, wider in (4096, 384, 1536), (256, 256, 2048):
        x, up, down = torch.randn(rows, wide), torch.randn(wider, wide) / 20, torch.randn(wide, wider) / 40

        def used() -> Tensor:
            return linear(linear(x, up, activation="gelu"), down)

        def by_torch() -> Tensor:
            with linear_maps_by_torch():
                return used()

        beside(f"{rows} x {wide} to {wider}, GELU, and back, oneDNN | torch", used, by_torch)
        residual = torch.randn(rows, wide)
        beside(
            f"{rows} x {wider} to {wide} and a sum, apart | in one product",
            lambda: linear(linear(x, up), down) + residual,
            lambda: torch.ops.mkldnn._linear_pointwise(linear(x, up), residual, down, None, "add"),
        )


def small_linear_maps() -> None:
    for rows, wide, wider in (64, 64, 64), (256, 64, 256), (256, 256, 256):
        x, weight = torch.randn(rows, wide), torch.randn(wider, wide)

        def often() -> Tensor:
            return [linear(x, weight) for _ in range(1000)][-1]

        def by_torch() -> Tensor:
            with linear_maps_by_torch():
                return often()

        def by_one_dnn() -> Tensor:
            with patch("sam2_mem.model.acceleration.onednn_linear.MIN_WORK", 1):
                return often()

        beside(f"a thousand times {rows} x {wide} to {wider}, torch | oneDNN", by_torch, by_one_dnn)


def constants_of_the_decoder() -> None:
    for size in (256, 1024):
        encoder = PromptEncoder(image_embedding_size=size // 16, image_size=size)
        alone(f"position code and no-prompt embedding, {size}", lambda: (encoder.dense_position(), encoder()))


def narrow_keys() -> None:
    """Scores without keys as wide as the model: half of the channels of a key turn with its column x, half with its row y,
    so that a score is (A(q, x) + B(q, y)) . m with vectors as wide as memory, made once for all maps."""
    queries, cells = 1024, SIDE**2
    turns = rotation_at(grid_coordinates(SIDE, SIDE), WIDTH)
    q, m, w = torch.randn(queries, WIDTH), torch.randn(MAPS, SIDE, SIDE, NARROW), torch.randn(WIDTH, NARROW) / 8
    keys = rotate((m.reshape(-1, NARROW) @ w.t()), turns.map(lambda t: t.repeat(MAPS, 1)))
    half = WIDTH // 2

    def wide() -> Tensor:
        room = q.new_empty(queries, cells)
        return torch.stack([torch.mm(q, part.t(), out=room)[:, ::97].clone() for part in keys.split(cells)])

    def turned_back(x: Tensor, channels: slice, cos: Tensor, sin: Tensor) -> Tensor:
        """What memory is multiplied with at each of 64 columns, or rows: (64, Cm, queries)."""
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs[:, None] * torch.complex(cos, -sin)).flatten(2)
        return (turned @ w[channels]).permute(1, 2, 0).contiguous()

    columns, rows = turns.cos[:SIDE, : half // 2], turns.cos[::SIDE, half // 2 :]
    column_sin, row_sin = turns.sin[:SIDE, : half // 2], turns.sin[::SIDE, half // 2 :]
    room = q.new_empty(MAPS, SIDE, SIDE, queries)

    def narrow() -> Tensor:
        a = turned_back(q[:, :half], slice(0, half), columns, column_sin)
        b = turned_back(q[:, half:], slice(half, WIDTH), rows, row_sin)
        for y in range(SIDE):
            for f in range(MAPS):
                torch.mm(m[f, y], b[y], out=room[f, y])
        for x in range(SIDE):
            room.view(MAPS * SIDE, SIDE, queries)[:, x].addmm_(m[:, :, x].reshape(-1, NARROW), a[x])
        return room.flatten(1, 2)[:, ::97].transpose(1, 2)

    beside("scores of 1024 queries, keys as wide as the model | memory", wide, narrow)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for measure in (
        real_rotation, kept_keys, tiled_self_attention, bare_exponentials, powers_of_e,
        linear_maps, small_linear_maps, constants_of_the_decoder, narrow_keys,
    ):  # fmt: skip
        measure()


if __name__ == "__main__":
    main()
