"""A network as four ONNX files and a manifest, for onnxruntime, with PyTorch or without.

    sam2-mem export --config sam2.1_hiera_t --weights checkpoints/sam2.1_hiera_tiny.pt --out sam2.1_tiny_onnx
    sam2-mem segment --onnx sam2.1_tiny_onnx --video clip.mp4 --box 100,80,300,260 --output out memory_policy=samurai

The parts are image_encoder, memory_attention (any number of rows and tokens), mask_decoder (any number of rows and prompts) and
memory_encoder. Each is compared with PyTorch before it is written. ``OnnxPredictor`` runs every memory policy on them; sizes and the
config are those of the export, overrides included:

    sam2-mem export --config nano_v2 --out nano_onnx
    sam2-mem export --config sam2.1_hiera_s --weights sam2.1_hiera_small.pt --out small_512_onnx model.image_size=512
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sam2_mem.build_sam import build_sam2
from sam2_mem.checkpoint import local_path
from sam2_mem.cli.arguments import command_parser, exit_status, user_path
from sam2_mem.config import checkpoint_dir, compose_video
from sam2_mem.files import sha256_of
from sam2_mem.onnx import export_network


def main(argv: Sequence[str] | None = None) -> int:
    """0: written; 2: it cannot be."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)
    parser = command_parser(__doc__ or "")
    parser.add_argument("--config", default="nano_v2", help="a model config (default: nano_v2)")
    parser.add_argument("--weights", help="a checkpoint, or random (default: that of the config)")
    parser.add_argument("--out", type=user_path, required=True, help="folder; files of the same names are replaced")
    parser.add_argument("--programs", action="store_true", help="also write <part>.pt2, for torch.export.load")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config in Hydra's syntax")
    args = parser.parse_intermixed_args(argv)

    def export() -> int:
        config = compose_video(args.config, args.overrides, apply_postprocessing=False)
        weights = args.weights or config.get("checkpoint")
        if weights is None:
            raise ValueError(f"{args.config} names no checkpoint: expected --weights FILE, or random, got none")
        model = build_sam2(config, args.weights, device="cpu", apply_postprocessing=False)
        manifest = export_network(model, config, args.out, weights=_described(weights), programs=args.programs)
        for name, entry in manifest.parts.items():
            print(f"{args.out / entry.file}  largest difference from PyTorch {entry.largest_difference:.1e}  {name}")
        return 0

    return exit_status(export)


def _described(weights: str) -> dict[str, object]:
    if weights == "random":
        return {"random": True}
    path = local_path(weights)
    path = path if path.is_file() else checkpoint_dir() / Path(weights).name
    return {"path": str(path), "sha256": sha256_of(path)}
