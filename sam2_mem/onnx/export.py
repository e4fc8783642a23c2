"""Writes a network as four ONNX files, the weights that are left, and a manifest."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save
from torch import Tensor

from sam2_mem import __version__
from sam2_mem.files import atomic_path, sha256_of
from sam2_mem.model.sam2 import SAM2
from sam2_mem.onnx.manifest import REST, Manifest, PartFile
from sam2_mem.onnx.parts import PARTS, WEIGHTS, Part, check_exportable
from sam2_mem.onnx.runtime import Sessions, needs

logger = logging.getLogger(__name__)

OPSET = 18
TOLERANCE = 1e-4
"""Largest difference from PyTorch, relative to the largest value, with which a part is written."""


def export_network(
    model: SAM2,
    config: DictConfig,
    folder: str | Path,
    *,
    weights: Mapping[str, Any] | None = None,
    programs: bool = False,
) -> Manifest:
    """Write the parts of a network for ``OnnxPredictor``, and for any program that runs ONNX.

    Every part is run once by onnxruntime on random inputs and compared with PyTorch before it is written.

    Args:
        model: in float32, for inference.
        config: that it was built from, as ``sam2_mem.config.compose`` gives it.
        folder: where to; files there are replaced, the manifest last.
        weights: where they came from, for the manifest.
        programs: also write ``<part>.pt2``, for ``torch.export.load``.

    Raises:
        ValueError: the network has a part that is not exported, or a part's results differ from PyTorch's.
        ImportError: without the packages of the extra ``onnx``.
    """
    needs("onnx", "onnxscript", "onnxruntime")
    check_exportable(model)
    folder = Path(folder)
    files: dict[str, PartFile] = {}
    program_files: dict[str, PartFile] = {}
    for kind in PARTS:
        part = kind(model).eval()
        examples = part.examples()
        with torch.no_grad():
            program = torch.export.export(part, examples, dynamic_shapes=_dynamic_shapes(part), strict=False)
            files[kind.name] = _write_onnx(part, program, examples, folder)
            if programs:
                program_files[kind.name] = _write_program(part, program, folder)
        logger.info("%s: largest difference %.1e", files[kind.name].file, files[kind.name].largest_difference)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    manifest = Manifest(
        image_size=model.image_size,
        parts=files,
        programs=program_files,
        rest=_write_rest(model, folder),
        config={key: value for key, value in plain.items() if key not in ("checkpoint", "distiller_checkpoint")},
        weights=dict(weights or {}),
        usage_layer=model.memory_attention.usage_layer,
        sam2_mem=__version__,
    )
    manifest.write(folder)
    return manifest


def _dynamic_shapes(part: Part) -> tuple[Any, ...]:
    """As ``torch.export`` takes them: one for each argument of ``forward``, the fine maps of the decoder together."""
    shapes = [dict.fromkeys(sizes, torch.export.Dim.DYNAMIC) for sizes in part.inputs.values()]
    named = len([name for name in part.inputs if not name.startswith("high_")])
    return (*shapes[:named], *([tuple(shapes[named:])] if part.name == "mask_decoder" else []))


def _write_onnx(part: Part, program: Any, examples: Sequence[Tensor], folder: Path) -> PartFile:
    name = f"{part.name}.onnx"
    with atomic_path(folder / name) as path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program,
                (),
                str(path),
                dynamo=True,
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        shapes = {
            key: [sizes.get(place, size) for place, size in enumerate(example.shape)]
            for (key, sizes), example in zip(part.inputs.items(), examples, strict=True)
        }
        entry = PartFile(file=name, sha256=sha256_of(path), inputs=shapes, outputs=list(part.outputs))
        difference = _difference(part, Sessions({part.name: path}, {part.name: entry}), examples)
    return PartFile(**{**vars(entry), "largest_difference": difference})


def _difference(part: Part, sessions: Sessions, examples: Sequence[Tensor]) -> float:
    """The largest between PyTorch and onnxruntime, relative to the largest value of each output; with two rows and with one."""
    first_rows = [x[:1] if sizes else x for x, sizes in zip(examples, part.inputs.values(), strict=True)]
    largest = 0.0
    for inputs in (examples, first_rows):
        for ours, theirs in zip(part(*inputs), sessions(part.name, *inputs), strict=True):
            scale = float(ours.abs().max().clamp(min=1e-6))
            largest = max(largest, float((ours - theirs).abs().max()) / scale)
    if not largest <= TOLERANCE:  # NaN too
        raise ValueError(
            f"expected {part.name} by onnxruntime within {TOLERANCE} of PyTorch, got {largest:.1e}; nothing was written of it: "
            "try other versions of onnxscript and onnxruntime"
        )
    return largest


def _write_program(part: Part, program: Any, folder: Path) -> PartFile:
    path = folder / f"{part.name}.pt2"
    with atomic_path(path) as written, written.open("wb") as file:
        torch.export.save(program, file)
    return PartFile(file=path.name, sha256=sha256_of(path), outputs=list(part.outputs))


def _write_rest(model: SAM2, folder: Path) -> PartFile:
    """Weights that no part holds."""
    state = {key: x.detach().contiguous() for key, x in model.state_dict().items() if not key.startswith(WEIGHTS)}
    with atomic_path(folder / REST) as path:
        path.write_bytes(save(state))
    return PartFile(file=REST, sha256=sha256_of(folder / REST))
