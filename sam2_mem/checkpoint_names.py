"""Names in weights files of the SAM 2 family: what other publishers call the parts of the network becomes what the official
SAM 2 files call them, and the entries of a file say which network it is of.

Known are files of transformers (``Sam2VideoModel``, ``EdgeTamVideoModel``, the trackers of ``Sam3TrackerVideoModel`` and
``Sam3VideoModel``), of EdgeTAM, of SAM 3's tracker, and prefixes that wrappers of PyTorch leave.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

State = Mapping[str, Tensor]
Rules = tuple[tuple[str, str], ...]
"""Regular expressions and what replaces them, applied one after the other to every name."""

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Prefixes of all names: of data parallelism, of torch.compile, and of a module around the network."""

# Heads of three layers and networks of two have the same names of layers in transformers, so the heads come first.
_HEAD = r"(iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.\d+|^object_pointer_proj)\."
_TRANSFORMERS: Rules = (
    (_HEAD + r"layers\.0\.", r"\1.layers.1."),
    (_HEAD + r"proj_in\.", r"\1.layers.0."),
    (_HEAD + r"proj_out\.", r"\1.layers.2."),
    (r"mlp\.proj_in\.", "mlp.layers.0."),
    (r"mlp\.proj_out\.", "mlp.layers.1."),
    (r"mlp\.up_proj\.", "linear1."),
    (r"mlp\.down_proj\.", "linear2."),
    (r"\.o_proj\.", ".out_proj."),
    (r"mask_embed\.conv1\.", "mask_downscaling.0."),
    (r"mask_embed\.layer_norm1\.", "mask_downscaling.1."),
    (r"mask_embed\.conv2\.", "mask_downscaling.3."),
    (r"mask_embed\.layer_norm2\.", "mask_downscaling.4."),
    (r"mask_embed\.conv3\.", "mask_downscaling.6."),
    (r"upscale_conv1\.", "output_upscaling.0."),
    (r"upscale_layer_norm\.", "output_upscaling.1."),
    (r"upscale_conv2\.", "output_upscaling.3."),
    (r"layer_norm", "norm"),
    (r"shared_embedding\.positional_embedding$", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"\.feature_projection\.", ".pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"\.memory_fuser\.", ".fuser."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"(fuser\.layers\.\d+)\.scale$", r"\1.gamma"),
    (r"mask_downsampler\.final_conv\.", "mask_downsampler.encoder.12."),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (r"^vision_encoder\.backbone\.timm_model\.", "image_encoder.trunk.body."),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^vision_encoder\.neck\.", "image_encoder.neck."),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
)
_TRANSFORMERS_SAM3: Rules = (
    (r"vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"\.embeddings\.patch_embeddings\.projection\.", ".patch_embed.proj."),
    (r"\.embeddings\.position_embeddings$", ".pos_embed"),
    (r"trunk\.layer_norm\.", "trunk.ln_pre."),
    (r"trunk\.layers\.(\d+)\.", r"trunk.blocks.\1."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.layers.0."),
    (r"\.mlp\.fc2\.", ".mlp.layers.1."),
    (r"vision_encoder\.neck\.fpn_layers\.", "image_encoder.neck.convs."),
    (r"\.scale_layers\.0\.", ".dconv_2x2_0."),
    (r"\.scale_layers\.2\.", ".dconv_2x2_1."),
    (r"\.proj1\.", ".conv_1x1."),
    (r"\.proj2\.", ".conv_3x3."),
)
_TRANSFORMERS_PERCEIVER: Rules = (
    (r"latents_1d$", "latents"),
    (r"\.layer_norm_input\.", ".attn.norm_x."),
    (r"\.layer_norm_latents\.", ".attn.norm_latents."),
    (r"\.layer_norm_self\.", ".self_attn.norm."),
    (r"\.layer_norm\.", ".norm."),
    (r"mlp\.norm\.", "ff.0."),
    (r"mlp\.up_proj\.", "ff.1."),
    (r"mlp\.down_proj\.", "ff.3."),
    (r"cross_attention\.", "attn."),
    (r"self_attention\.", "self_attn."),
    (r"\.q_proj\.", ".to_q."),
    (r"\.o_proj\.", ".to_out."),
)
_SAM3_VISION = (
    *(f"vision_encoder.backbone.{part}." for part in ("embeddings", "layers", "layer_norm")),
    "vision_encoder.neck.fpn_layers.",
)
"""Parts of transformers' image encoder of SAM 3; SAM 2's has none of these names."""
_EDGETAM: Rules = ((r"^spatial_perceiver\.", "memory_encoder.distiller."),)
_SAM3: Rules = (
    (r"^transformer\.encoder\.", "memory_attention."),
    (r"^maskmem_backbone\.", "memory_encoder."),
    (r"mlp\.(lin1|fc1)\.", "mlp.layers.0."),
    (r"mlp\.(lin2|fc2)\.", "mlp.layers.1."),
    (r"\.dconv_2x2\.", ".dconv_2x2_0."),
)
_SAM3_PARTS = {
    "tracker_model.": "",
    "detector_model.vision_encoder.backbone.": "vision_encoder.backbone.",
    "tracker_neck.": "vision_encoder.neck.",
    "tracker.": "",
    "detector.backbone.vision_backbone.trunk.": "image_encoder.trunk.",
    "detector.backbone.vision_backbone.sam2_convs.": "image_encoder.neck.convs.",
}
"""What SAM 3's tracker uses of a file that also holds its detector: transformers' names, then those of the official file."""
_SAM3_UNUSED = (re.compile(r"neck\.convs\.3\."), re.compile(r"\.freqs_cis$"))
"""Entries that a tracker does without: the coarsest map, which is the detector's, and codes that follow from sizes."""


def official_names(state: State, source: object = "the file") -> dict[str, Tensor]:
    """``state`` under the names of the official SAM 2 files, where its own are known; others stay.

    EdgeTAM's perceiver is named as what it is here, a token distiller.

    Args:
        state: name -> tensor.
        source: what the log calls it.
    """
    state = _without_wrappers(state, source)
    if any(name.startswith(("tracker.", "tracker_model.")) for name in state):
        state = _tracker_of_sam3(state, source)
    if any(name.startswith(("vision_encoder.", "shared_image_embedding.", "no_memory_embedding")) for name in state):
        logger.info("%s has transformers' names; read as those of the official files", source)
        state = _from_transformers(state)
    if "maskmem_backbone.out_proj.weight" in state:
        state = _renamed(state, _SAM3)
    if "image_encoder.trunk.ln_pre.weight" in state:
        state = _trunk_of_sam3(state)
    return _renamed(state, _EDGETAM)


def _renamed(state: State, rules: Rules) -> dict[str, Tensor]:
    return {_rename(name, rules): value for name, value in state.items()}


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _without_wrappers(state: State, source: object) -> dict[str, Tensor]:
    """Without the prefixes that all names have in common, and without torch.compile's inside of names."""
    names = list(state)
    removed: list[str] = []
    while (prefix := next((p for p in WRAPPERS if all(n.startswith(p) for n in names)), None)) is not None:
        removed.append(prefix)
        names = [name.removeprefix(prefix) for name in names]
    plain = [name.replace("_orig_mod.", "") for name in names]
    if plain != names:
        removed.append("_orig_mod.")
    if removed:
        logger.info("%s: the prefix %s of its entries is left out", source, "".join(removed))
    return dict(zip(plain, state.values()))


def _tracker_of_sam3(state: State, source: object) -> dict[str, Tensor]:
    """What the tracker of SAM 3 uses of a file that also holds its detector."""
    tracker = {}
    for name, value in state.items():
        prefix = next((p for p in _SAM3_PARTS if name.startswith(p)), None)
        if prefix is not None:
            tracker[_SAM3_PARTS[prefix] + name.removeprefix(prefix)] = value
    logger.info("%s holds SAM 3; %d of its %d entries are the tracker's", source, len(tracker), len(state))
    return tracker


def _trunk_of_sam3(state: State) -> dict[str, Tensor]:
    """Without what the tracker does not use; a position of a class token is not."""
    used = {name: value for name, value in state.items() if not any(unused.search(name) for unused in _SAM3_UNUSED)}
    code = used["image_encoder.trunk.pos_embed"]
    return used | {"image_encoder.trunk.pos_embed": code[:, code.shape[1] - isqrt(code.shape[1]) ** 2 :]}


# -- transformers -------------------------------------------------------------------------------------------------------


def _from_transformers(state: State) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "shared_image_embedding.positional_embedding":
            continue  # a copy of the prompt encoder's
        if name == "prompt_encoder.point_embed.weight":
            renamed |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": row[None] for i, row in enumerate(value)}
        elif name.startswith("spatial_perceiver."):
            renamed[_rename(name, _TRANSFORMERS_PERCEIVER)] = value
        elif name.startswith(_SAM3_VISION):
            renamed[_rename(name, _TRANSFORMERS_SAM3)] = value
        else:
            renamed[_downsampler_layer(_rename(name, _TRANSFORMERS))] = value
    return _with_joint_projections(renamed)


def _downsampler_layer(name: str) -> str:
    """Layers of the mask downsampler are groups of three in the official files: convolution, norm, activation."""
    return re.sub(
        r"mask_downsampler\.layers\.(\d+)\.(conv|norm)\.",
        lambda match: f"mask_downsampler.encoder.{3 * int(match[1]) + (match[2] == 'norm')}.",
        name,
    )


def _with_joint_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The perceiver's projections of keys and values are one matrix in the official file, and so are those of queries, keys
    and values in the trunk of SAM 3."""
    joint = dict(state)
    for name in state:
        if name.startswith("image_encoder.trunk.") and ".attn.q_proj." in name:
            parts = [joint.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
            joint[name.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
        if name.startswith("spatial_perceiver.") and name.endswith(".k_proj.weight"):
            value = joint.pop(name.replace(".k_proj.", ".v_proj."))
            joint[name.replace(".k_proj.", ".to_kv.")] = torch.cat([joint.pop(name), value])
    return joint


# -- which network ------------------------------------------------------------------------------------------------------


class PublishedNetwork(NamedTuple):
    """A published network.

    Attributes:
        family: SAM 2.0, SAM 2.1, EdgeTAM, EfficientTAM, SAM 3, or one that cannot be used here.
        advice: the config to use, or why there is none.
        config: the config, where the entries alone say which.
    """

    family: str
    advice: str
    config: str | None = None

    @classmethod
    def of_config(cls, family: str, config: str) -> PublishedNetwork:
        """One whose entries say which config it needs."""
        return cls(family, f"use {config}", config)


SIZES = {(96, 12): "tiny", (96, 16): "small", (112, 24): "base_plus", (144, 48): "large"}
"""(channels of the first stage, number of blocks) of a Hiera trunk -> the size's name."""
LETTERS = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
ONLY_IN_2_1 = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.")
"""Entries that SAM 2.1 has and SAM 2.0 lacks."""
_TRUNK_BLOCK = re.compile(r"image_encoder\.trunk\.blocks\.(\d+)\.")


def network_of(state: State) -> PublishedNetwork | None:
    """The published network that a state dict of official names is of, None where it is none that is known."""
    return next((network for recognise in _RECOGNISERS if (network := recognise(state)) is not None), None)


def hiera_size(state: State) -> str | None:
    """The name of the official size that an image encoder has, None where it is none of them."""
    pos_embed = state.get("image_encoder.trunk.pos_embed")
    blocks = {int(match[1]) for name in state if (match := _TRUNK_BLOCK.match(name))}
    return None if pos_embed is None else SIZES.get((pos_embed.shape[1], len(blocks)))


def has_2_1_entries(names: Iterable[str]) -> bool:
    """Whether some of the names are of SAM 2.1 and not of SAM 2.0."""
    return any(name.startswith(ONLY_IN_2_1) for name in names)


def _edgetam(state: State) -> PublishedNetwork | None:
    if (
        "memory_encoder.distiller.latents_2d" not in state
        or "image_encoder.trunk.body.stem.conv1.c.weight" not in state
    ):
        return None
    return PublishedNetwork.of_config("EdgeTAM", "configs/edgetam/edgetam.yaml")


def _efficienttam(state: State) -> PublishedNetwork | None:
    lateral = state.get("image_encoder.neck.convs.0.conv_1x1.weight")
    if lateral is None or "image_encoder.neck.convs.0.norm_0.weight" not in state:
        return None
    size = "s" if lateral.shape[1] == 384 else "ti"
    names = ", ".join(f"efficienttam_{size}{kind}" for kind in ("", "_1", "_2", "_512x512"))
    return PublishedNetwork("EfficientTAM", f"use that of configs/efficienttam/ which the file is named after: {names}")


def _sam2(state: State) -> PublishedNetwork | None:
    size = hiera_size(state)
    if size is None or "image_encoder.trunk.pos_embed_window" not in state:
        return None
    family = "sam2.1" if has_2_1_entries(state) else "sam2"
    config = f"configs/{family}/{family}_hiera_{LETTERS[size]}.yaml"
    return PublishedNetwork.of_config("SAM 2.1" if family == "sam2.1" else "SAM 2.0", config)


def _sam3(state: State) -> PublishedNetwork | None:
    multiplexed = any("multiplex" in name or name.startswith("maskmem_backbone.") for name in state)
    key = state.get("memory_attention.layers.0.cross_attn_image.k_proj.weight")
    if multiplexed or (key is not None and key.shape[1] == 256):
        return PublishedNetwork(
            "SAM 3.1", "it is another network than SAM 2 (many objects in one memory map) and not supported"
        )
    if "image_encoder.trunk.ln_pre.weight" in state:
        return PublishedNetwork.of_config("SAM 3", "configs/sam3/sam3_tracker.yaml")
    if key is not None and not any(name.startswith("image_encoder.") for name in state):
        return PublishedNetwork(
            "a tracker without its image encoder", "take the file that holds the image encoder as well"
        )
    return None


def _first_sam(state: State) -> PublishedNetwork | None:
    if "image_encoder.patch_embed.proj.weight" not in state:
        return None
    return PublishedNetwork("the first SAM", "it has no memory of videos; take a SAM 2 or SAM 2.1 file")


_RECOGNISERS: tuple[Callable[[State], PublishedNetwork | None], ...] = (
    _edgetam,
    _efficienttam,
    _sam2,
    _sam3,
    _first_sam,
)
