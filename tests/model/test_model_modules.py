"""The stateless network modules against the reference implementation: same weights, same inputs, same outputs.

Every comparison has a control: a small change of one weight or setting must break it.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import pytest
import torch
from micro import in_tiers
from torch import Tensor, nn

from sam2_mem.model.fpn import FpnNeck, ImageEncoder
from sam2_mem.model.layers import MLP, DropPath, LayerNorm2d
from sam2_mem.model.mask_decoder import DecodedMasks, MaskDecoder
from sam2_mem.model.position_encoding import RandomFourierPosition, sine_1d, sine_position_map
from sam2_mem.model.prompt_encoder import PromptEncoder
from sam2_mem.model.trunks.hiera import Hiera
from sam2_mem.model.two_way_transformer import TwoWayTransformer

TOLERANCE = 1e-5  # of the largest magnitude in the reference's output

needs_reference = pytest.mark.skipif(
    find_spec("sam2") is None,
    reason="NOT TESTED AGAINST THE REFERENCE: package sam2 is missing; install it with `pip install sam2==1.1.0`",
)


@dataclass(frozen=True, kw_only=True)
class Size:
    embed_dim: int
    num_heads: int
    stages: tuple[int, ...]
    global_blocks: tuple[int, ...]
    background: int = 7
    windows: tuple[int, ...] = (8, 4, 14, 7)


SIZES = {
    "t": Size(embed_dim=96, num_heads=1, stages=(1, 2, 7, 2), global_blocks=(5, 7, 9)),
    "s": Size(embed_dim=96, num_heads=1, stages=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "b+": Size(embed_dim=112, num_heads=2, stages=(2, 3, 16, 3), global_blocks=(12, 16, 20), background=14),
    "l": Size(embed_dim=144, num_heads=2, stages=(2, 6, 36, 4), global_blocks=(23, 33, 43), windows=(8, 4, 16, 8)),
}


def make_encoder(name: str) -> ImageEncoder:
    size = SIZES[name]
    trunk = Hiera(
        embed_dim=size.embed_dim,
        num_heads=size.num_heads,
        stages=size.stages,
        global_att_blocks=size.global_blocks,
        window_pos_embed_bkg_spatial_size=(size.background, size.background),
        window_spec=size.windows,
    )
    return ImageEncoder(trunk=trunk, neck=FpnNeck(backbone_channel_list=trunk.channel_list))


@lru_cache(maxsize=1)  # the largest takes 0.9 GB
def reference_model(name: str) -> nn.Module:
    from sam2.build_sam import build_sam2_video_predictor

    config = f"configs/sam2.1/sam2.1_hiera_{name}.yaml"
    return build_sam2_video_predictor(config, None, device="cpu", apply_postprocessing=False)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Fill every parameter so that nothing is zero and activations keep a sensible scale."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
        parameter.data = (noise if parameter.ndim > 1 else 0.5 + noise) / max(fan_in, 4) ** 0.5


@pytest.fixture(autouse=True, scope="module")
def _let_go():
    yield
    reference_model.cache_clear()


def copy_weights(ours: nn.Module, reference: nn.Module, *, share: bool = False) -> None:
    """Random weights for both; ``share``: the same tensors, not copies."""
    randomise(reference)
    ours.load_state_dict(reference.state_dict(), strict=True, assign=share)
    ours.eval(), reference.eval()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    assert expected.isfinite().all() and expected.std() > 0
    return ((ours - expected).abs().max() / expected.abs().max()).item()


def worst_error(ours: list[Tensor], expected: list[Tensor]) -> float:
    assert len(ours) == len(expected) > 0
    return max(relative_error(mine, theirs) for mine, theirs in zip(ours, expected))


def nudge(parameter: Tensor) -> None:
    with torch.no_grad():
        parameter.add_(0.05 * parameter.abs().mean() * normal(*parameter.shape, seed=9).sign())


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


# State-dict names


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


@needs_reference
@pytest.mark.parametrize("name", in_tiers(SIZES, ["t"]))
def test_state_dict_names_and_shapes(name):
    reference = reference_model(name)
    with torch.device("meta"):
        encoder, prompts = make_encoder(name), PromptEncoder(image_embedding_size=64, image_size=1024)
        decoder, wrong = MaskDecoder(), MaskDecoder(num_multimask_outputs=2)
    assert shapes(encoder) == shapes(reference.image_encoder)
    assert shapes(prompts) == shapes(reference.sam_prompt_encoder)
    assert shapes(decoder) == shapes(reference.sam_mask_decoder)
    assert shapes(wrong) != shapes(reference.sam_mask_decoder)


def test_modules_build_without_the_reference():
    """A few official names, so that a missing reference does not leave the keys untested."""
    with torch.device("meta"):
        keys = {*shapes(make_encoder("t")), *shapes(MaskDecoder())}
        keys |= set(shapes(PromptEncoder(image_embedding_size=64, image_size=1024)))
    assert {
        "trunk.pos_embed_window",
        "trunk.patch_embed.proj.weight",
        "trunk.blocks.1.proj.weight",
        "trunk.blocks.11.mlp.layers.1.bias",
        "neck.convs.3.conv.weight",
        "pe_layer.positional_encoding_gaussian_matrix",
        "not_a_point_embed.weight",
        "mask_downscaling.4.weight",
        "transformer.layers.1.cross_attn_image_to_token.out_proj.bias",
        "output_upscaling.1.weight",
        "output_hypernetworks_mlps.3.layers.2.weight",
        "obj_score_token.weight",
        "pred_obj_score_head.layers.0.weight",
        "conv_s1.bias",
    } <= keys


# Image encoder


@needs_reference
@pytest.mark.parametrize(
    ("name", "side"),
    [("t", 96), *(pytest.param(*case, marks=pytest.mark.full) for case in [("t", 256), ("b+", 128), ("l", 64)])],
)
def test_trunk_and_neck(name, side):
    with torch.device("meta"):
        ours = make_encoder(name)
    reference = reference_model(name).image_encoder
    copy_weights(ours, reference, share=True)
    images = normal(2, 3, side, side)
    stages, expected = ours.trunk(images), reference.trunk(images)
    assert worst_error(stages, expected) < TOLERANCE
    assert tuple(ours.trunk.channel_list) == tuple(reference.trunk.channel_list)
    assert worst_error(ours.neck(expected), reference.neck(expected)[0]) < TOLERANCE
    assert worst_error(ours(images), reference(images)["backbone_fpn"]) < TOLERANCE


@needs_reference
@pytest.mark.parametrize(
    "parameter",
    ["trunk.pos_embed", "trunk.pos_embed_window", "trunk.blocks.1.proj.weight", "trunk.blocks.5.attn.qkv.bias"],
)
def test_trunk_comparison_notices_a_changed_weight(parameter):
    ours, reference = make_encoder("t"), reference_model("t").image_encoder
    copy_weights(ours, reference)
    nudge(ours.get_parameter(parameter))
    images = normal(1, 3, 128, 128)
    assert worst_error(ours.trunk(images), reference.trunk(images)) > 10 * TOLERANCE


@needs_reference
def test_neck_comparison_notices_other_top_down_levels():
    ours, reference = FpnNeck(fpn_top_down_levels=(3,)), reference_model("t").image_encoder.neck
    copy_weights(ours, reference)
    maps = [normal(1, 96 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]
    ours_out, expected = ours(maps), reference(maps)[0]
    assert relative_error(ours_out[3], expected[3]) < TOLERANCE
    assert relative_error(ours_out[2], expected[2]) > 0.01


def test_trunk_refuses_sizes_it_cannot_tile():
    with pytest.raises(ValueError, match="multiples of"):
        make_encoder("t").trunk(normal(1, 3, 80, 64))


def test_image_encoder_refuses_another_trunk():
    with pytest.raises(ValueError, match="backbone_channel_list"):
        ImageEncoder(trunk=Hiera(embed_dim=16, stages=(1, 1, 1, 1), global_att_blocks=()), neck=FpnNeck())


def test_drop_path_only_in_training():
    layer, x = DropPath(0.5), torch.ones(400, 3)
    assert torch.equal(layer.eval()(x), x)
    torch.manual_seed(0)
    dropped = layer.train()(x)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped[:, 0], dropped[:, 2])
    assert 0.8 < dropped.mean() < 1.2
    blocks = Hiera(drop_path_rate=0.2).blocks
    assert isinstance(blocks[0].drop_path, nn.Identity)
    assert blocks[-1].drop_path.rate == pytest.approx(0.2)


# Small layers


@needs_reference
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_mlp(activation, sigmoid):
    from sam2.modeling.sam2_utils import MLP as ReferenceMLP  # noqa: N811 - a class, not a constant

    kind = {"relu": nn.ReLU, "gelu": nn.GELU}[activation]
    reference = ReferenceMLP(8, 12, 5, 3, activation=kind, sigmoid_output=sigmoid)
    ours = MLP(8, 12, 5, 3, activation=activation, sigmoid_output=sigmoid)
    copy_weights(ours, reference)
    x = normal(4, 8)
    assert relative_error(ours(x), reference(x)) < TOLERANCE
    other = MLP(8, 12, 5, 3, activation="gelu" if activation == "relu" else "relu", sigmoid_output=sigmoid)
    other.load_state_dict(ours.state_dict())
    assert relative_error(other(x), reference(x)) > TOLERANCE


@needs_reference
def test_layer_norm_2d():
    from sam2.modeling.sam2_utils import LayerNorm2d as ReferenceNorm

    ours, coarser, reference = LayerNorm2d(8), LayerNorm2d(8, eps=1e-2), ReferenceNorm(8)
    copy_weights(ours, reference)
    coarser.load_state_dict(ours.state_dict())
    x = normal(2, 8, 5, 6)
    assert relative_error(ours(x), reference(x)) < TOLERANCE
    assert relative_error(coarser(x), reference(x)) > TOLERANCE


# Position encodings


@needs_reference
@pytest.mark.parametrize(("height", "width", "channels"), [(16, 16, 256), (8, 12, 64), (1, 1, 64), (64, 64, 64)])
def test_sine_position_map(height, width, channels):
    from sam2.modeling.position_encoding import PositionEmbeddingSine

    expected = PositionEmbeddingSine(channels, normalize=True, warmup_cache=False)(torch.zeros(1, 1, height, width))[0]
    ours = sine_position_map(height, width, channels)
    assert relative_error(ours, expected) < TOLERANCE
    assert relative_error(sine_position_map(height, width, channels, temperature=9000.0), expected) > TOLERANCE
    assert sine_position_map(height, width, channels, dtype=torch.bfloat16).dtype == torch.bfloat16


@needs_reference
@pytest.mark.parametrize("dim", [64, 256])
def test_sine_1d(dim):
    from sam2.modeling.sam2_utils import get_1d_sine_pe

    positions = torch.linspace(-1, 1, 31)
    expected = get_1d_sine_pe(positions, dim)
    assert relative_error(sine_1d(positions, dim), expected) < TOLERANCE
    assert relative_error(sine_1d(positions + 1e-3, dim), expected) > TOLERANCE


@needs_reference
def test_random_fourier_position():
    from sam2.modeling.position_encoding import PositionEmbeddingRandom

    reference, ours = PositionEmbeddingRandom(16), RandomFourierPosition(channels=32)
    ours.load_state_dict(reference.state_dict())
    assert relative_error(ours.grid(6, 9), reference((6, 9))) < TOLERANCE
    assert relative_error(ours.grid(9, 6).mT, reference((6, 9))) > TOLERANCE
    xy = normal(2, 4, 2).sigmoid() * 100
    assert relative_error(ours(xy / 100), reference.forward_with_coords(xy, (100, 100))) < TOLERANCE


# Prompt encoder


@pytest.fixture
def prompt_encoders():
    from sam2.modeling.sam.prompt_encoder import PromptEncoder as ReferencePrompts

    reference = ReferencePrompts(
        embed_dim=64, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=16
    )
    ours = PromptEncoder(embed_dim=64, image_embedding_size=8, image_size=128)
    copy_weights(ours, reference)
    return ours, reference


POINTS = torch.tensor([[[0.0, 0.0], [128.0, 64.0], [5.5, 99.0]], [[10.0, 20.0], [100.0, 120.0], [0.0, 0.0]]])
LABELS = {"clicks": [[1, 0, 1], [0, 1, -1]], "boxes": [[2, 3, 1], [2, 3, -1]], "padding": [[-1, -1, -1], [-1, 1, -1]]}


@needs_reference
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_prompt_encoder(prompt_encoders, kind, with_mask, dtype):
    ours, reference = prompt_encoders
    labels = torch.tensor(LABELS[kind], dtype=dtype)
    mask = 10 * normal(2, 1, 32, 32) if with_mask else None
    expected = reference(points=(POINTS, labels), boxes=None, masks=mask)
    assert worst_error(list(ours(POINTS, labels, mask)), list(expected)) < TOLERANCE
    swapped = torch.where(labels == 1, 0, torch.where(labels == 2, 3, labels))
    if kind != "padding":
        assert relative_error(ours(POINTS, swapped, mask)[0], expected[0]) > TOLERANCE
    assert relative_error(ours(POINTS + 0.01, labels, mask)[0], expected[0]) > TOLERANCE


@needs_reference
def test_prompt_encoder_without_points(prompt_encoders):
    ours, reference = prompt_encoders
    padding = (torch.zeros(3, 1, 2), -torch.ones(3, 1, dtype=torch.int32))
    expected = list(reference(points=padding, boxes=None, masks=None))
    assert worst_error([x.expand_as(y) for x, y in zip(ours(), expected)], expected) < TOLERANCE
    assert ours()[0].shape == (1, 2, 64)
    mask = normal(3, 1, 32, 32)
    expected = list(reference(points=padding, boxes=None, masks=mask))
    assert worst_error(list(ours(mask_logits=mask)), expected) < TOLERANCE
    nudge(ours.mask_downscaling[3].weight)
    assert worst_error(list(ours(mask_logits=mask)), expected) > TOLERANCE


@needs_reference
def test_dense_position(prompt_encoders):
    ours, reference = prompt_encoders
    assert relative_error(ours.dense_position(), reference.get_dense_pe()) < TOLERANCE
    ours.pe_layer.positional_encoding_gaussian_matrix += 1e-3
    assert relative_error(ours.dense_position(), reference.get_dense_pe()) > TOLERANCE


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"points": torch.zeros(1, 2, 2)}, "give both"),
        ({"points": torch.zeros(1, 2, 2), "labels": torch.zeros(1, 3)}, "one label per point"),
        ({"mask_logits": torch.zeros(1, 1, 31, 32)}, "resize the mask"),
        (
            {"mask_logits": torch.zeros(2, 1, 32, 32), "points": torch.zeros(3, 1, 2), "labels": torch.zeros(3, 1)},
            "one batch size",
        ),
    ],
)
def test_prompt_encoder_refuses(prompts, message):
    with pytest.raises(ValueError, match=message):
        PromptEncoder(embed_dim=8, image_embedding_size=8, image_size=128)(**prompts)


# Mask decoder


@dataclass(frozen=True, kw_only=True)
class DecoderInput:
    image: Tensor
    image_pe: Tensor
    sparse: Tensor
    dense: Tensor
    fine: tuple[Tensor, Tensor]

    def ours(self, decoder: MaskDecoder, multimask: bool) -> DecodedMasks:
        heads = decoder.high_res_heads()
        high_res = heads[0](self.fine[0]), heads[1](self.fine[1])
        result = decoder(self.image, self.image_pe, self.sparse, self.dense, high_res, multimask)
        assert result.maps.cells.shape == self.image.expand_as(self.dense).shape
        return result._replace(maps=None)

    def reference(self, decoder: nn.Module, multimask: bool) -> DecodedMasks:
        fine = [decoder.conv_s0(self.fine[0]), decoder.conv_s1(self.fine[1])]
        image = self.image.expand(len(self.sparse), -1, -1, -1)
        return DecodedMasks(*decoder(image, self.image_pe, self.sparse, self.dense, multimask, False, fine))


def decoder_input(*, dim: int, objects: int = 3, side: int = 8, shared_image: bool = False) -> DecoderInput:
    images = 1 if shared_image else objects
    return DecoderInput(
        image=normal(images, dim, side, side, seed=2),
        image_pe=normal(1, dim, side, side, seed=3),
        sparse=normal(objects, 4, dim, seed=4),
        dense=normal(objects, dim, side, side, seed=5),
        fine=(normal(images, dim, 4 * side, 4 * side, seed=6), normal(images, dim, 2 * side, 2 * side, seed=7)),
    )


def decoders(*, dim: int = 64, **options) -> tuple[MaskDecoder, nn.Module]:
    from sam2.modeling.sam.mask_decoder import MaskDecoder as ReferenceDecoder
    from sam2.modeling.sam.transformer import TwoWayTransformer as ReferenceTransformer

    official = {
        "use_high_res_features": True,
        "iou_prediction_use_sigmoid": True,
        "pred_obj_scores": True,
        "pred_obj_scores_mlp": True,
        "use_multimask_token_for_obj_ptr": True,
    }
    transformer = ReferenceTransformer(depth=2, embedding_dim=dim, num_heads=8, mlp_dim=2048)
    reference = ReferenceDecoder(transformer_dim=dim, transformer=transformer, **official, **options)
    ours = MaskDecoder(transformer_dim=dim, **options)
    copy_weights(ours, reference)
    return ours, reference


@needs_reference
@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("dim", [64, 256])
def test_mask_decoder(dim, multimask):
    ours, reference = decoders(dim=dim)
    inputs = decoder_input(dim=dim)
    result, expected = inputs.ours(ours, multimask), inputs.reference(reference, multimask)
    assert worst_error(list(result[:3]), list(expected[:3])) < TOLERANCE
    assert torch.allclose(result.object_logit, expected.object_logit, atol=1e-5, rtol=TOLERANCE)
    assert result.masks.shape == (3, 3 if multimask else 1, 32, 32)


@needs_reference
@pytest.mark.parametrize(
    ("parameter", "output"),
    [
        ("transformer.layers.0.cross_attn_image_to_token.v_proj.weight", 0),
        ("transformer.layers.1.norm1.weight", 0),
        ("conv_s0.weight", 0),
        ("conv_s1.weight", 0),
        ("output_upscaling.1.bias", 0),
        ("output_hypernetworks_mlps.2.layers.1.weight", 0),
        ("iou_prediction_head.layers.2.weight", 1),
        ("mask_tokens.weight", 2),
        ("pred_obj_score_head.layers.1.weight", 3),
    ],
)
def test_mask_decoder_comparison_notices_a_changed_weight(parameter, output):
    ours, reference = decoders()
    inputs = decoder_input(dim=64)
    expected = inputs.reference(reference, True)[output]
    assert relative_error(inputs.ours(ours, True)[output], expected) < TOLERANCE
    nudge(ours.get_parameter(parameter))
    assert relative_error(inputs.ours(ours, True)[output], expected) > TOLERANCE


@needs_reference
def test_mask_decoder_falls_back_when_the_single_mask_is_unstable():
    setting = {"dynamic_multimask_via_stability": True, "dynamic_multimask_stability_delta": 0.05}
    ours, reference = decoders(**setting)
    inputs = decoder_input(dim=64, objects=8)
    plain = decoders()[0]
    single, alternatives = inputs.ours(plain, False), inputs.ours(plain, True)
    area = [(single.masks > level).flatten(1).sum(1) for level in (0.05, -0.05)]
    threshold = (area[0] / area[1]).median().item()  # one half of the objects is stable
    for decoder in (ours, reference):
        decoder.dynamic_multimask_stability_thresh = threshold
    result = inputs.ours(ours, False)
    assert worst_error(list(result[:4]), list(inputs.reference(reference, False)[:4])) < TOLERANCE
    kept = (result.masks == single.masks).flatten(1).all(1)
    assert 0 < kept.sum() < 8
    replaced = (result.masks == alternatives.masks).flatten(2).all(2).any(1)
    assert torch.equal(replaced, ~kept)
    ours.train()
    assert torch.equal(inputs.ours(ours, False).masks, single.masks)


@needs_reference
@pytest.mark.parametrize("level", [-1e6, 1e6])
def test_empty_and_full_masks_count_as_stable(level):
    ours, reference = decoders(dynamic_multimask_via_stability=True, dynamic_multimask_stability_thresh=0.98)
    masks = normal(2, 4, 8, 8) * 0.1
    masks[0, 0] = level
    iou = normal(2, 4, seed=3)
    expected = reference._dynamic_multimask_via_stability(masks, iou)
    assert torch.equal(ours._stable_mask(masks, iou)[0], expected[0])
    assert torch.equal(ours._stable_mask(masks, iou)[1], expected[1])
    assert (expected[0][0] == level).all() and not torch.equal(expected[0][1, 0], masks[1, 0])


@needs_reference
def test_mask_decoder_shares_one_image():
    ours, reference = decoders()
    inputs = decoder_input(dim=64, shared_image=True)
    assert worst_error(list(inputs.ours(ours, True)[:4]), list(inputs.reference(reference, True)[:4])) < TOLERANCE


def test_mask_decoder_refuses_prompts_of_unequal_batches():
    inputs = decoder_input(dim=64)
    with pytest.raises(ValueError, match="one batch size"):
        MaskDecoder(transformer_dim=64)(
            inputs.image, inputs.image_pe, inputs.sparse[:2], inputs.dense, inputs.fine, False
        )


@needs_reference
def test_two_way_transformer():
    from sam2.modeling.sam.transformer import TwoWayTransformer as ReferenceTransformer

    reference = ReferenceTransformer(depth=3, embedding_dim=32, num_heads=4, mlp_dim=40)
    ours = TwoWayTransformer(dim=32, depth=3, num_heads=4, mlp_dim=40)
    copy_weights(ours, reference)
    image, code, tokens = normal(2, 32, 4, 4, seed=2), normal(2, 32, 4, 4, seed=3), normal(2, 5, 32, seed=4)
    cells, cell_code = image.flatten(2).mT, code.flatten(2).mT
    expected = list(reference(image, code, tokens))
    assert worst_error(list(ours(tokens, cells, cell_code)), expected) < TOLERANCE
    ours.layers[0].first = False
    assert worst_error(list(ours(tokens, cells, cell_code)), expected) > TOLERANCE
