"""A video predictor whose network was exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from sam2_mem.build_sam import build_network, build_policy, predictor_of
from sam2_mem.checkpoint import build_with_weights
from sam2_mem.config import compose_video
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.sam2 import SAM2
from sam2_mem.onnx.manifest import Manifest
from sam2_mem.onnx.parts import WEIGHTS
from sam2_mem.onnx.runtime import PROVIDERS, PartRunner, RunPart, Sessions
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor

AFTER_EXPORT = ("memory_policy", "memory_bound", "tracker", "predictor", "refiner", "embedder", "checkpoint")
"""Sections of a config that are not part of an exported network."""
IN_PYTORCH = ("binarize_prompted_masks", "multimask_", "dynamic_multimask_")
"""Settings of a network, or how they begin, that act outside of its parts."""


class OnnxPredictor(SAM2VideoPredictor):
    """``SAM2VideoPredictor`` whose network is run by onnxruntime, on the CPU and in float32 as far as PyTorch is concerned.

    The same tracker and policies as ever; what the parts do not hold, such as codes of time, prompts and a token distiller,
    is run by PyTorch with the weights that were exported beside them.
    """

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        memory_policy: str | DictConfig | MemoryPolicy | None = None,
        overrides: Sequence[str] = (),
        apply_postprocessing: bool = True,
        providers: Sequence[str] = PROVIDERS,
        threads: int = 0,
    ) -> OnnxPredictor:
        """Open a folder that ``export_network`` or ``sam2-mem export`` has written.

        Args:
            folder: with a manifest.
            memory_policy: see ``build_sam2_video_predictor``.
            overrides: of the config, of policy, tracker and predictor; the network is as it was exported.
            apply_postprocessing: see ``build_sam2_video_predictor``.
            providers: of onnxruntime, where the parts run, best first.
            threads: of onnxruntime; 0 for as many as PyTorch has.

        Raises:
            FileNotFoundError: there is no manifest, or a file is missing.
            ValueError: a file is another one; an override is of the network; there is no such provider.
            ImportError: without onnxruntime.
        """
        folder = Path(folder).expanduser()
        config = exported_config(Manifest.read(folder), overrides, apply_postprocessing=apply_postprocessing)
        return cls.of_config(folder, config, memory_policy=memory_policy, providers=providers, threads=threads)

    @classmethod
    def of_config(
        cls,
        folder: Path,
        config: DictConfig,
        *,
        memory_policy: str | DictConfig | MemoryPolicy | None = None,
        providers: Sequence[str] = PROVIDERS,
        threads: int = 0,
    ) -> OnnxPredictor:
        """The same with a whole config, from ``exported_config``."""
        manifest = Manifest.read(folder)
        policy = build_policy(config.memory_policy if memory_policy is None else memory_policy)
        files = {name: folder / entry.file for name, entry in manifest.parts.items()}
        sessions = Sessions(files, manifest.parts, providers=providers, threads=threads)
        model = _network(config, folder / manifest.rest.file, sessions)
        return cast("OnnxPredictor", predictor_of(config, model, policy, kind=cls))

    def to(self, *args: Any, **kwargs: Any) -> OnnxPredictor:
        """Stays where it is; ``providers`` of ``load`` say where the parts run.

        Raises:
            ValueError: for another device than the CPU, or another dtype.
        """
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device not in (None, torch.device("cpu")) or dtype not in (None, torch.float32):
            raise ValueError(
                f"expected an exported network to stay on the CPU in float32, got {dtype or device}; give `providers` to "
                "OnnxPredictor.load, or build the network with build_sam2_video_predictor"
            )
        return self


def exported_config(
    manifest: Manifest, overrides: Sequence[str] = (), *, apply_postprocessing: bool = True
) -> DictConfig:
    """The config of the export with overrides of what was not exported; ValueError for those of what was."""
    exported = OmegaConf.create(manifest.config)
    assert isinstance(exported, DictConfig)
    config = compose_video(exported, overrides, apply_postprocessing=apply_postprocessing)
    if (length := OmegaConf.select(config, "tracker.clip_length", default=1)) != 1:
        raise ValueError(
            f"expected tracker.clip_length=1 with an exported network, whose parts take one frame at a time, got {length}"
        )
    before, after = _fixed(exported), _fixed(config)
    changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    if changed:
        was, got = before.get(changed[0]), after.get(changed[0])
        raise ValueError(f"expected {changed[0]}={was}, as the network was exported, got {got}; export it with that")
    return config


def _fixed(config: DictConfig) -> dict[str, Any]:
    """Values that must be those of the export, by dotted names."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    flat = {f"model.{key}": value for key, value in plain["model"].items() if not key.startswith(IN_PYTORCH)}
    return flat | {key: value for key, value in plain.items() if key not in ("model", *AFTER_EXPORT)}


def _network(config: DictConfig, rest: Path, run: RunPart) -> SAM2:
    """The network, with the weights that no part holds; those of the parts take no memory and cannot be computed with."""
    model = build_with_weights(lambda: build_network(config), rest, allow_missing=WEIGHTS)
    assert isinstance(model, SAM2)
    for prefix in WEIGHTS:
        model.get_submodule(prefix.rstrip(".")).to("meta")
    model.runner = PartRunner(model, run)
    return model.eval()
