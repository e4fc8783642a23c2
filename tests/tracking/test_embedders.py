"""Features of another network beside SAM 2's; the real DINO weights are not at hand, its interface is."""

from __future__ import annotations

import sys
from dataclasses import replace

import micro
import pytest
import torch
from torch import Tensor, nn

from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.config import ConfigError, compose
from sam2_mem.tracking.embedders import DINOEmbedder


class Patches(nn.Module):
    """Mean colours of 8 x 8 patches behind two prefix tokens, as timm's transformers give their tokens."""

    num_prefix_tokens = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.dropout = nn.Dropout(0.5)

    def forward_features(self, pixels: Tensor) -> Tensor:
        tokens = nn.functional.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2) * self.scale
        return torch.cat([torch.full((1, 2, 3), 100.0), self.dropout(tokens)], dim=1)


def test_patch_tokens_without_the_prefix():
    embedder = DINOEmbedder(image_size=32, backbone=Patches())
    picture = torch.zeros(3, 64, 64)
    picture[0, :32] = 1.0
    seen = embedder(picture)
    assert seen.grid == (4, 4) and seen.feat.shape == (16, 3)
    assert seen.feat[:4, 0].tolist() == pytest.approx([1.0] * 4, abs=1e-3)
    assert seen.feat[12:].abs().max() < 1e-3
    assert not seen.feat.requires_grad and not any(p.requires_grad for p in embedder.parameters())


def test_weights_from_a_file(tmp_path):
    other = Patches()
    nn.init.constant_(other.scale, 3.0)
    torch.save(other.state_dict(), tmp_path / "w.pt")
    embedder = DINOEmbedder(image_size=32, backbone=Patches(), weights=tmp_path / "w.pt")
    assert embedder(torch.ones(3, 32, 32)).feat.max() == pytest.approx(3.0, abs=1e-4)


def test_tokens_off_a_square_grid_are_refused():
    odd = Patches()
    odd.num_prefix_tokens = 3
    with pytest.raises(ValueError, match="expected patch tokens on a square grid, got 15"):
        DINOEmbedder(image_size=32, backbone=odd)(torch.ones(3, 32, 32))
    with pytest.raises(ValueError, match="expected image_size >= 1, got 0"):
        DINOEmbedder(image_size=0, backbone=odd)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="expected the package timm .* pip install timm"):
        DINOEmbedder()
    with pytest.raises(ConfigError, match="pip install timm"):
        build_sam2_video_predictor(
            compose(micro.micro_config(), ["embedder=dino"]), "random", device="cpu", apply_postprocessing=False
        )


def test_the_predictor_asks_once_per_frame():
    asked = []

    class Noted(DINOEmbedder):
        def forward(self, picture: Tensor):
            asked.append(picture.shape)
            return super().forward(picture)

    config = compose(micro.micro_config(), ["memory_policy=hq_smem", "memory_policy.embed=dino", "memory_policy.gap=1"])
    with pytest.raises(ValueError, match="expected an embedder"):
        build_sam2_video_predictor(config, "random", device="cpu", apply_postprocessing=False)
    predictor = micro.micro_predictor("fifo")
    predictor.embedder = Noted(image_size=32, backbone=Patches())
    session = predictor.init_state(micro.pictures(5))
    for number in range(3):
        predictor.add_new_mask(session, 0, number + 1, micro.blob(number))
    list(predictor.propagate_in_video(session))
    assert asked == [(3, 64, 64)] * 5
    features = predictor.encode(next(iter(session.source)))
    assert features.appearance.grid == (4, 4)
    assert replace(features, appearance=None).low is features.low
