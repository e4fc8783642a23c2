"""Runs exported parts in the place of the network's own: the runner (``SAM2.runner``) of an exported network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sam2_mem.model.mask_decoder import DecodedMasks
from sam2_mem.model.memory_attention import Attended, measure_usage
from sam2_mem.model.sam2 import SAM2, Decoded, as_decoded, embed_prompts
from sam2_mem.onnx.manifest import PartFile
from sam2_mem.types import RowBatch, Usage

PROVIDERS = ("CPUExecutionProvider",)


def needs(*packages: str) -> None:
    """ImportError that says what to install where a package is missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ImportError(f'expected the packages of the extra onnx, got no {missing[0]}: pip install "sam2_mem[onnx]"')


class RunPart(Protocol):
    """Runs a part by its name: tensors in, tensors out."""

    def __call__(self, name: str, *inputs: Tensor) -> Sequence[Tensor]: ...


class Sessions:
    """Sessions of onnxruntime.

    Args:
        files: by the name of the part.
        entries: what the manifest says of them.
        providers: where they run, of onnxruntime, best first.
        threads: of the CPU; 0 for as many as PyTorch has.

    Raises:
        ValueError: onnxruntime does not have a provider.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        entries: Mapping[str, PartFile],
        *,
        providers: Sequence[str] = PROVIDERS,
        threads: int = 0,
    ) -> None:
        needs("onnxruntime")
        import onnxruntime

        missing = [name for name in providers if name not in onnxruntime.get_available_providers()]
        if missing:
            have = ", ".join(onnxruntime.get_available_providers())
            raise ValueError(f"expected providers out of {have}, got {missing[0]}; install the onnxruntime that has it")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        self._entries = dict(entries)
        self._sessions = {
            name: onnxruntime.InferenceSession(str(path), options, providers=list(providers))
            for name, path in files.items()
        }

    def __call__(self, name: str, *inputs: Tensor) -> list[Tensor]:
        """Outputs on the CPU."""
        shapes = self._entries[name].inputs
        for (key, shape), x in zip(shapes.items(), inputs, strict=True):
            if len(shape) != x.ndim or any(isinstance(n, int) and n != m for n, m in zip(shape, x.shape)):
                raise ValueError(f"expected {key} of {name} to be {shape}, got {list(x.shape)}; export for that size")
        feed = {key: x.detach().contiguous().numpy() for key, x in zip(shapes, inputs)}
        return [torch.from_numpy(x) for x in self._sessions[name].run(None, feed)]


class PartRunner:
    """Calls exported parts where the network would call its own.

    Args:
        model: the network, for prompts and for the choice among masks.
        run: a part.
    """

    def __init__(self, model: SAM2, run: RunPart) -> None:
        self._model, self._run = model, run
        self._calls: dict[str, Callable[..., Any]] = {
            "encode_image": self._encode_image,
            "attend": self._attend,
            "decode": self._decode,
            "encode_memory": self._encode_memory,
        }

    def __call__(self, part: str, function: Callable, *args: Any, steady: bool = True) -> Any:
        """What ``function(*args)`` would give; ``part`` is its name."""
        if torch.is_autocast_enabled("cpu"):
            raise ValueError(
                "expected an exported network outside of autocast, got it within: its parts are in float32"
            )
        return self._calls[part](*args)

    def _encode_image(self, images: Tensor) -> list[Tensor]:
        maps = [self._run("image_encoder", image[None]) for image in images]
        return [torch.cat(level) for level in zip(*maps, strict=True)]

    def _attend(
        self, low: Tensor, low_pos: Tensor, grid: tuple[int, int], rows: RowBatch, usage: Usage, query_code: Any
    ) -> Attended:
        shape = rows.feat.shape[:2]
        gain = rows.feat.new_ones(shape) if rows.gain is None else rows.gain
        bias = rows.feat.new_zeros(shape) if rows.bias is None else rows.bias
        xy = rows.xy.expand(rows.rows, -1, -1)
        features, query, key = self._run("memory_attention", low, low_pos, rows.feat, rows.pos, xy, gain, bias)
        if usage is Usage.NONE:
            return Attended(features, None)
        chunk = self._model.memory_attention.usage_chunk
        query = query.expand(rows.rows, -1, -1, -1)
        return Attended(features, measure_usage(query, key, rows, usage, chunk=chunk))

    def _decode(
        self,
        conditioned: Tensor,
        high: tuple[Tensor, Tensor] | None,
        grid: tuple[int, int],
        points: Tensor | None,
        labels: Tensor | None,
        mask_logits: Tensor | None,
        candidates: bool,
        keep_maps: bool,
    ) -> Decoded:
        assert not keep_maps, "only networks with sensory memory, which are not exported, ask for maps"
        sparse, dense = embed_prompts(self._model, conditioned, grid, points, labels, mask_logits)
        fine = [x[None] for x in high or ()]
        masks, iou, pointers, objectness = self._run("mask_decoder", conditioned, sparse, dense, *fine)
        proposed = DecodedMasks(masks, iou, tokens=pointers, object_logit=objectness)
        selected = self._model.sam_mask_decoder.select(proposed, candidates)
        return as_decoded(selected, selected.tokens)

    def _encode_memory(
        self, low: Tensor, grid: tuple[int, int], logits: Tensor, binarize: Tensor, present: Tensor
    ) -> Tensor:
        return self._run("memory_encoder", low, logits.float(), binarize, present)[0]
