"""Write tests/golden/<config>.json: key -> shape of every entry of the eight official models' state dicts.

The lists are made from the reference package, with its own configurations and no weights:
``SAM2_BUILD_CUDA=0 pip install --no-build-isolation --no-deps sam2==1.1.0``, then ``python tests/make_golden_keys.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = tuple(
    f"configs/{family}/{family}_hiera_{size}.yaml" for family in ("sam2", "sam2.1") for size in ("t", "s", "b+", "l")
)


def golden_path(config: str) -> Path:
    return GOLDEN / f"{Path(config).stem}.json"


def reference_shapes(config: str) -> dict[str, list[int]]:
    """Shapes of the reference model's state dict, in its order."""
    from sam2.build_sam import build_sam2

    torch.manual_seed(0)
    model = build_sam2(config, ckpt_path=None, device="cpu", apply_postprocessing=False)
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def write(path: Path, shapes: dict[str, list[int]]) -> None:
    lines = [f"  {json.dumps(key)}: {json.dumps(shape)}" for key, shape in shapes.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for config in CONFIGS:
        shapes = reference_shapes(config)
        write(golden_path(config), shapes)
        print(f"{golden_path(config).name}: {len(shapes)} keys")


if __name__ == "__main__":
    main()
