"""Appearance features of other networks than SAM 2: what HQ-SMem takes from DINO. They are asked once per frame.

An embedder is anything that turns one normalised picture (3, S, S) into an ``AppearanceMap``. The
predictor runs it beside the image encoder; the tracker averages its map over masks.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.types import AppearanceMap

Embedder = Callable[[Tensor], AppearanceMap]
"""Normalised picture (3, S, S), ImageNet mean and deviation -> its features."""


class DINOEmbedder(nn.Module):
    """Patch tokens of a vision transformer of the DINO family, from the optional package timm.

    Args:
        name: of a transformer of timm with square patches.
        image_size: side of its square input in pixels.
        pretrained: let timm fetch its weights.
        weights: a file with a state dict to load instead.
        backbone: a network to use in place of timm's; it has ``forward_features`` ((1, 3, S, S) -> (1, T, D)) and
            ``num_prefix_tokens``.
    """

    def __init__(
        self,
        *,
        name: str = "vit_small_patch14_dinov2.lvd142m",
        image_size: int = 518,
        pretrained: bool = True,
        weights: str | PathLike[str] | None = None,
        backbone: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if image_size < 1:
            raise ValueError(f"expected image_size >= 1, got {image_size}")
        self.image_size = image_size
        if backbone is None:
            make = _timm().create_model
            backbone = make(name, pretrained=pretrained and weights is None, num_classes=0, img_size=image_size)
        if weights is not None:
            backbone.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.backbone = backbone.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, picture: Tensor) -> AppearanceMap:
        """(3, S, S) -> patch tokens in float32 on their grid."""
        side = (self.image_size, self.image_size)
        pixels = F.interpolate(picture[None].float(), size=side, mode="bilinear", antialias=True)
        backbone: Any = self.backbone
        tokens = backbone.forward_features(pixels)[0, backbone.num_prefix_tokens :]
        across = round(len(tokens) ** 0.5)
        if across * across != len(tokens):
            raise ValueError(f"expected patch tokens on a square grid, got {len(tokens)}; choose another network")
        return AppearanceMap(feat=tokens.float(), grid=(across, across))


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError as error:
        raise ValueError(
            "expected the package timm for the DINO embedder, which is not installed; pip install timm, or use another "
            "embedding, such as memory_policy.embed=obj_pool"
        ) from error
