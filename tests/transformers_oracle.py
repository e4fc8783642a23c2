"""Transformers' SAM 2 and EdgeTAM with random weights, driven like a predictor of ours: a second opinion on our numbers.

Videos are as large as the network's input, so that neither side resizes anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import LOUDER
from safetensors.torch import save_file
from torch import Tensor

from sam2_mem.checkpoint_names import official_names
from sam2_mem.video import normalize, to_model_input

os.environ.setdefault("HF_HUB_OFFLINE", "1")

needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("timm") is None,
    reason="NOT TESTED AGAINST TRANSFORMERS: a package is missing; `pip install transformers==5.24.0 timm==1.0.31`",
)

HIERA = {
    "t": {},
    "s": {"blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]},
    "b+": {
        "hidden_size": 112,
        "num_attention_heads": 2,
        "embed_dim_per_stage": [112, 224, 448, 896],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "blocks_per_stage": [2, 3, 16, 3],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    },
    "l": {
        "hidden_size": 144,
        "num_attention_heads": 2,
        "embed_dim_per_stage": [144, 288, 576, 1152],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "blocks_per_stage": [2, 6, 36, 4],
        "global_attention_blocks": [23, 33, 43],
        "window_size_per_stage": [8, 4, 16, 8],
    },
}
"""What the sizes of transformers' Sam2HieraDetConfig differ in from its default, the tiny one."""


def _maps(size: int) -> list[list[int]]:
    return [[size // stride] * 2 for stride in (4, 8, 16)]


def sam2_config(letter: str, *, is_2_1: bool, size: int) -> Any:
    """A configuration of transformers for a published size at an image size of ``size``."""
    import transformers

    trunk = transformers.Sam2HieraDetConfig(**HIERA[letter], image_size=[size, size])
    vision = transformers.Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=trunk.embed_dim_per_stage[::-1],
        backbone_feature_sizes=_maps(size),
    )
    return transformers.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"image_size": size},
        image_size=size,
        memory_attention_rope_feat_sizes=[size // 16] * 2,
        enable_temporal_pos_encoding_for_object_pointers=is_2_1,
        enable_occlusion_spatial_embedding=is_2_1,
    )


def edgetam_config(size: int, side: int, *, trunk: dict[str, Any] | None = None, **settings: Any) -> Any:
    """The same for EdgeTAM, whose perceiver has ``side`` x ``side`` windows and as many global latents; ``trunk``: arguments
    of timm's RepViT, none for the published one."""
    import transformers

    trunk = trunk or {}
    widths = trunk.get("embed_dim", (48, 96, 192, 384))
    backbone = transformers.TimmWrapperConfig(
        architecture="repvit_m1",
        model_args={"in_chans": 3, "features_only": True, "out_indices": (0, 1, 2, 3), **trunk},
        do_pooling=False,
    )
    vision = transformers.EdgeTamVisionConfig(
        backbone_config=backbone, backbone_channel_list=list(widths[::-1]), backbone_feature_sizes=_maps(size)
    )
    return transformers.EdgeTamVideoConfig(
        vision_config=vision,
        prompt_encoder_config={"image_size": size},
        image_size=size,
        memory_attention_rope_feat_sizes=[size // 16] * 2,
        memory_attention_rope_k_sizes=[side, side],
        perceiver_resampler_num_latents=side**2,
        perceiver_resampler_num_latents_2d=side**2,
        enable_temporal_pos_encoding_for_object_pointers=False,
        enable_occlusion_spatial_embedding=False,
        **settings,
    )


def sam3_config(size: int) -> Any:
    """The same for SAM 3's tracker, with a small trunk of two layers, the second of which attends to the whole picture."""
    import transformers

    trunk = transformers.Sam3ViTConfig(
        hidden_size=64,
        intermediate_size=296,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=size,
        window_size=5,
        global_attn_indexes=[1],
        pretrain_image_size=56,
    )
    return transformers.Sam3TrackerVideoConfig(
        vision_config=transformers.Sam3VisionConfig(backbone_config=trunk), image_size=size
    )


@torch.no_grad()
def enliven(model: Any, loudness: float = 1.0, seed: int = 0) -> None:
    """Random weights under which masks are neither empty nor full and memory matters, in place; mask logits are
    ``loudness`` times as large as they would be."""
    torch.manual_seed(seed)
    for value in model.parameters():  # those without a name of their own in the official files keep these values
        value.normal_(std=0.02)
    generator = torch.Generator().manual_seed(seed)
    for name, value in official_names(model.state_dict()).items():
        if not value.is_floating_point() or "to_kv" in name:
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            value.copy_(1 + 0.5 * noise.abs())
        elif name.endswith("gamma"):
            value.fill_(0.2)
        elif value.ndim >= 2 and not name.startswith(("no_", "maskmem")):
            value.copy_(noise / max(1, value[0].numel()) ** 0.5 * _gain(name))
        elif name.endswith("weight"):
            value.copy_(1 + 0.1 * noise)
        else:
            value.copy_(0.05 * noise)
    codes = model.prompt_encoder.shared_embedding.positional_embedding
    model.shared_image_embedding.positional_embedding.copy_(codes)
    model.get_parameter("mask_decoder.pred_obj_score_head.proj_out.bias").fill_(5.0)
    for head in model.mask_decoder.output_hypernetworks_mlps:
        head.proj_out.weight.mul_(loudness)
        head.proj_out.bias.mul_(loudness)


def _gain(name: str) -> float:
    import re

    return next((gain for pattern, gain in LOUDER.items() if re.fullmatch(pattern, name) and "score" not in name), 1.0)


def saved(model: Any, path: Path) -> Path:
    """The weights as transformers would publish them."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, path)
    return path


class TransformersPredictor:
    """Drives a video model of transformers by the methods that ``helpers.Session`` calls.

    ``as_official``: a mask that was given is treated as by the official code of SAM 2: its object pointer comes from the single
    mask token (transformers takes the best of the three others), and it enters memory by way of its logits at a quarter of the
    size (transformers takes the mask at full size). In SAM 3, masks become probabilities before they are resized for memory
    (transformers resizes logits).

    Memory stays in the precision that it is made in: transformers itself rounds SAM 2's to bfloat16, and EdgeTAM's not.
    """

    def __init__(self, model: Any, *, as_official: bool = True) -> None:
        self.model = model.eval()
        self.as_official = as_official
        self.is_edgetam = type(model).__name__ == "EdgeTamVideoModel"
        self.is_sam3 = type(model).__name__ == "Sam3TrackerVideoModel"
        if as_official:
            forward = model._single_frame_forward
            model._single_frame_forward = lambda **given: forward(**{"multimask_output": False, **given})
        self.size = model.config.image_size

    @torch.inference_mode()
    def init_state(self, frames: np.ndarray) -> Any:
        from transformers.models.edgetam_video.modeling_edgetam_video import EdgeTamVideoInferenceSession
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        session_type = EdgeTamVideoInferenceSession if self.is_edgetam else Sam2VideoInferenceSession
        pictures = torch.stack([to_model_input(frame, self.size) for frame in frames])
        video = pictures / 127.5 - 1 if self.is_sam3 else normalize(pictures, "cpu")
        return session_type(video=video, video_height=self.size, video_width=self.size, dtype=torch.float32)

    def add_new_mask(
        self, session: Any, frame: int, obj_id: int, mask: np.ndarray
    ) -> tuple[int, Sequence[int], Tensor]:
        return self._prompt(session, frame, obj_id, None, torch.from_numpy(mask).float()[None, None])

    def add_new_points_or_box(
        self,
        session: Any,
        frame: int,
        obj_id: int,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        clear_old_points: bool = True,
        box: np.ndarray | None = None,
    ) -> tuple[int, Sequence[int], Tensor]:
        assert clear_old_points
        if box is not None:
            points, labels = box.reshape(2, 2), np.array([2, 3], np.int32)
        inputs = {"point_coords": torch.tensor(points)[None, None], "point_labels": torch.tensor(labels)[None, None]}
        return self._prompt(session, frame, obj_id, inputs, None)

    def _prompt(
        self, session: Any, frame: int, obj_id: int, points: dict[str, Tensor] | None, mask: Tensor | None
    ) -> tuple[int, Sequence[int], Tensor]:
        masks = self._run(session, frame, session.obj_id_to_idx(obj_id), points=points, mask=mask)
        return frame, [obj_id], self._at_video_size(masks)

    @torch.inference_mode()
    def _run(
        self,
        session: Any,
        frame: int,
        number: int,
        *,
        points: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        reverse: bool = False,
    ) -> Tensor:
        """One object on one frame, prompted or tracked: (1, 1, h, w)."""
        is_prompted = points is not None or mask is not None
        out = self.model._run_single_frame_inference(
            inference_session=session,
            frame_idx=frame,
            obj_idx=number,
            batch_size=1,
            is_init_cond_frame=is_prompted,
            point_inputs=points,
            mask_inputs=mask,
            reverse=reverse,
            **({"run_mem_encoder": True} if self.is_edgetam else {}),
        )
        is_given = mask is not None and self.as_official
        if is_given or not self.is_edgetam:  # SAM 2's memory is left to the caller
            masks = self._at_video_size(out["pred_masks"]) if is_given else out["high_res_masks"]
            out |= self._memory(session, frame, masks, out["object_score_logits"], binarize=is_prompted)
        session.store_output(number, frame, output_value=out, is_conditioning_frame=is_prompted)
        return out["pred_masks"]

    def _memory(
        self, session: Any, frame: int, masks: Tensor, objectness: Tensor, *, binarize: bool
    ) -> dict[str, Tensor]:
        low = self.model._prepare_vision_features(session, frame, 1)[0][-1]
        if self.is_sam3 and self.as_official:
            probabilities = (masks > 0).float() if binarize else masks.sigmoid()
            side = 4 * self.model.prompt_encoder.mask_input_size[0]
            resized = F.interpolate(probabilities, (side, side), mode="bilinear", antialias=True)
            masks, binarize = resized.logit(), False
        with mock.patch.object(torch, "bfloat16", torch.float32):
            features, pos = self.model._encode_new_memory(
                current_vision_feats=low,
                pred_masks_high_res=masks,
                object_score_logits=objectness,
                is_mask_from_pts=binarize,
            )
        return {"maskmem_features": features, "maskmem_pos_enc": pos}

    def propagate_in_video(
        self, session: Any, start: int, most: int, reverse: bool = False
    ) -> Iterator[tuple[int, Sequence[int], Tensor]]:
        """The loop of transformers without its last step, which fails where objects are prompted in different ways."""
        for frame in range(start - most, start + 1)[::-1] if reverse else range(start, start + most + 1):
            masks = []
            for number in range(session.get_obj_num()):
                prompted = session.output_dict_per_obj[number]["cond_frame_outputs"].get(frame)
                masks.append(
                    self._run(session, frame, number, reverse=reverse) if prompted is None else prompted["pred_masks"]
                )
            yield frame, list(session.obj_ids), self._at_video_size(torch.cat(masks))

    def _at_video_size(self, masks: Tensor) -> Tensor:
        """(N, 1, h, w) -> (N, 1, S, S)."""
        return F.interpolate(masks.float().flatten(0, 1)[:, None], (self.size,) * 2, mode="bilinear")
