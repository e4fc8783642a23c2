"""The page docs/sam2.md: every public symbol of the package ``sam2``, and what stands for it here. To write it anew:

python tests/sam2_symbols.py
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from sam2_mem.cli.vos_arguments import parse_arguments

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sam2.md"
VERSION = "1.1.0"
SCRIPTS = ("sam2.benchmark",)
"""Modules that run when they are imported."""

FLAGS = {
    "--sam2_cfg": "a name",
    "--sam2_checkpoint": "a file",
    "--base_video_dir": "a folder",
    "--input_mask_dir": "a folder",
    "--video_list_file": "a file",
    "--output_mask_dir": "a folder",
    "--score_thresh": "a number",
    "--use_all_masks": "",
    "--per_obj_png_file": "",
    "--apply_postprocessing": "",
    "--track_object_appearing_later_in_video": "",
    "--use_vos_optimized_video_predictor": "",
}
"""Flags of tools/vos_inference.py with what they take. The tool is in SAM 2's repository and not in its package."""

NETWORK = "the network takes tensors and keeps nothing"
NOTES = {
    "sam2.automatic_mask_generator.SAM2AutomaticMaskGenerator.generate": "holes and specks also on a CPU, where SAM 2 warns and goes on",
    "sam2.benchmark": "`sam2-mem benchmark`",
    "sam2.build_sam.build_sam2": "`ckpt_path=None` is the config's own weights, and random ones are announced",
    "sam2.build_sam.build_sam2_video_predictor": "as `build_sam2`; `memory_policy` chooses what is remembered",
    "sam2.sam2_image_predictor.SAM2ImagePredictor.predict": "after `set_image_batch` it is refused, there it answers for the last image",
    "sam2.sam2_video_predictor.NO_OBJ_SCORE": "`sam2_mem.types.ABSENT_LOGIT`",
    "sam2.sam2_video_predictor.SAM2VideoPredictor": "made by `build_sam2_video_predictor`; its own arguments are parts. The keys "
    "`++model.fill_hole_area` and so on are understood",
    "sam2.sam2_video_predictor.SAM2VideoPredictor.init_state": "a stream without `video_path`; frames are read as they are needed",
    "sam2.sam2_video_predictor.SAM2VideoPredictor.propagate_in_video": "a correction of a tracked frame takes effect; there it does "
    "with `++model.add_all_frames_to_correct_as_cond=true`",
    "sam2.sam2_video_predictor.SAM2VideoPredictorVOS": "as `SAM2VideoPredictor`",
    "sam2.sam2_video_predictor.SAM2VideoPredictorVOS.forward_image": f"`sam2_mem.model.sam2.SAM2.encode_image`; {NETWORK}",
    "sam2.sam2_video_predictor_legacy": "the predictor of `sam2_mem.sam2_video_predictor`; objects may be added at any time",
    "sam2.modeling.sam2_base.NO_OBJ_SCORE": "`sam2_mem.types.ABSENT_LOGIT`",
    "sam2.modeling.sam2_base.SAM2Base": f"`sam2_mem.model.sam2.SAM2`; {NETWORK}",
    "sam2.modeling.sam2_base.SAM2Base.device": "`sam2_mem.model.sam2.SAM2.device`",
    "sam2.modeling.sam2_base.SAM2Base.forward": "refused in both",
    "sam2.modeling.sam2_base.SAM2Base.forward_image": f"`sam2_mem.model.sam2.SAM2.encode_image`; {NETWORK}",
    "sam2.modeling.sam2_base.SAM2Base.track_step": "`sam2_mem.tracking.tracker.Tracker.step`, for all objects at once",
    "sam2.modeling.backbones.hieradet": "`sam2_mem.model.trunks.hiera.Hiera` and its parts",
    "sam2.modeling.backbones.image_encoder": "`sam2_mem.model.fpn.ImageEncoder`, `sam2_mem.model.fpn.FpnNeck`",
    "sam2.modeling.backbones.utils": "`sam2_mem.model.trunks.hiera.PatchEmbed`; windows are cut in `sam2_mem.model.trunks.hiera`",
    "sam2.modeling.memory_attention": "`sam2_mem.model.memory_attention.MemoryAttention` and its layer",
    "sam2.modeling.memory_encoder": "`sam2_mem.model.memory_encoder.MemoryEncoder` and its parts",
    "sam2.modeling.position_encoding": "`sam2_mem.model.position_encoding.sine_position_map`, "
    "`sam2_mem.model.position_encoding.RandomFourierPosition`, `sam2_mem.model.rope.rotate`",
    "sam2.modeling.sam.mask_decoder": "`sam2_mem.model.mask_decoder.MaskDecoder`",
    "sam2.modeling.sam.prompt_encoder": "`sam2_mem.model.prompt_encoder.PromptEncoder`",
    "sam2.modeling.sam.transformer": "`sam2_mem.model.two_way_transformer.TwoWayTransformer`, "
    "`sam2_mem.model.rotary_attention.RotaryAttention`",
    "sam2.modeling.sam2_utils": "`sam2_mem.memory.reading.closest_prompts`, `sam2_mem.model.position_encoding.sine_1d`, "
    "`sam2_mem.model.layers.MLP`, `sam2_mem.training.drawn_prompts.DrawnPrompts`",
    "sam2.utils.misc.get_sdpa_settings": "torch chooses the kernel",
    "sam2.utils.misc.get_connected_components": "`sam2_mem.tracking.mask_postprocessing.small_regions`, on every device",
    "sam2.utils.misc.mask_to_box": "`sam2_mem.utils.amg.batched_mask_to_box`",
    "sam2.utils.misc.AsyncVideoFrameLoader": "`sam2_mem.video.open_video`, which decodes ahead",
    "sam2.utils.misc.load_video_frames": "`sam2_mem.video.open_video`",
    "sam2.utils.misc.load_video_frames_from_jpg_images": "`sam2_mem.video.open_video`",
    "sam2.utils.misc.load_video_frames_from_video_file": "`sam2_mem.video.open_video`",
    "sam2.utils.misc.fill_holes_in_mask_scores": "`sam2_mem.tracking.mask_postprocessing.fill_holes`",
    "sam2.utils.misc.concat_points": "`sam2_mem.prompts.Prompt`",
    "sam2.utils.transforms.SAM2Transforms": "`sam2_mem.tracking.image_predictor.SAM2ImagePredictor` resizes by itself",
    "sam2.utils.transforms.SAM2Transforms.forward_batch": "`sam2_mem.tracking.image_predictor.SAM2ImagePredictor.set_image_batch`",
    "sam2.utils.transforms.SAM2Transforms.transform_coords": "`sam2_mem.tracking.image_predictor.SAM2ImagePredictor.to_input`",
    "sam2.utils.transforms.SAM2Transforms.transform_boxes": "`sam2_mem.tracking.image_predictor.SAM2ImagePredictor.to_input`",
    "sam2.utils.transforms.SAM2Transforms.postprocess_masks": "`sam2_mem.tracking.mask_postprocessing.repaint_around`",
    'state["constants"]': "positions of memory are the network's own and not kept here",
}
"""What is to be said of a symbol; that of a module stands for all of its symbols."""


class Row(NamedTuple):
    """``status`` is "same", "differs" or "elsewhere"."""

    symbol: str
    signature: str
    status: str
    note: str


def reference_modules() -> Iterator[str]:
    import sam2

    yield from (module.name for module in pkgutil.walk_packages(sam2.__path__, "sam2.") if not module.ispkg)


def symbols(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public names that a module defines, with methods and properties of its classes."""
    for name, value in vars(module).items():
        if (
            name.startswith("_")
            or inspect.ismodule(value)
            or getattr(value, "__module__", module.__name__) != module.__name__
        ):
            continue
        yield name, value
        if inspect.isclass(value):
            yield from ((f"{name}.{n}", getattr(value, n)) for n in vars(value) if not n.startswith("_"))


def parameters(value: Any) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(value).parameters.values() if p.name != "self"]


def shown(value: Any) -> str:
    """A signature without types."""
    if not callable(value):
        return ""
    bare = [p.replace(annotation=p.empty) for p in parameters(value)]
    return re.sub(r"<(?:function|class) .*?>", "...", str(inspect.Signature(bare)))


def differences(value: Any, here: Any) -> str:
    """What a call of SAM 2's could meet here: parameters that are missing, out of place, or have another default."""
    if not callable(value) or isinstance(value, property):
        return ""
    mine, places = {p.name: p for p in parameters(here)}, [p.name for p in parameters(here)]
    kinds, texts = {p.kind for p in mine.values()}, []
    for place, parameter in enumerate(parameters(value)):
        own = mine.get(parameter.name)
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            texts += [] if parameter.kind in kinds else ["unknown arguments are refused"]
        elif own is None:
            texts.append(f"no `{parameter.name}`")
        elif (own.default or None) != (parameter.default or None):
            texts.append(f"`{parameter.name}={_default(own)}`")
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD and places.index(parameter.name) != place:
            texts.append(f"`{parameter.name}` is argument {places.index(parameter.name) + 1}")
    return ", ".join(texts)


def _default(parameter: inspect.Parameter) -> str:
    return "" if parameter.default is parameter.empty else repr(parameter.default)


def here(path: str) -> Any:
    """What has this path, or that of SAM 2, in this package; None where nothing has."""
    parts = re.sub(r"^sam2\.", "sam2_mem.", path).split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for name in parts[cut:]:
            value = getattr(value, name, None)
        return value
    return None


def rows() -> list[Row]:
    result = []
    for name in reference_modules():
        if name in SCRIPTS:
            result.append(Row(name, "", "elsewhere", NOTES[name]))
            continue
        if name in NOTES:
            names = ", ".join(symbol for symbol, _ in symbols(importlib.import_module(name)))
            result.append(Row(name, names, "elsewhere", NOTES[name]))
            continue
        for symbol, value in symbols(importlib.import_module(name)):
            path = f"{name}.{symbol}"
            own = here(path)
            changes = "" if own is None else differences(value, own)
            status = "elsewhere" if own is None else "differs" if changes else "same"
            note = "; ".join(text for text in (changes, NOTES.get(path, "")) if text)
            result.append(Row(path, shown(value), status, note))
    return result


def state_rows() -> list[Row]:
    """Keys of what ``init_state`` returns."""
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    from sam2_mem.tracking.inference_state import _KEYS

    keys = dict.fromkeys(re.findall(r'inference_state\["(\w+)"\] =', inspect.getsource(SAM2VideoPredictor.init_state)))
    paths = {f'state["{key}"]': key in _KEYS for key in keys}
    return [Row(path, "", "same" if known else "elsewhere", NOTES.get(path, "")) for path, known in paths.items()]


def flag_rows() -> list[Row]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parse_arguments(["--help"])
    return [Row(f, takes, "same" if f"  {f}" in text.getvalue() else "elsewhere", "") for f, takes in FLAGS.items()]


def table(head: tuple[str, str], lines: list[Row]) -> str:
    text = f"| {head[0]} | {head[1]} | here | |\n|---|---|---|---|\n"
    return text + "".join(
        f"| `{r.symbol}` | {f'`{r.signature}`' if r.signature else ''} | {r.status} | {r.note} |\n" for r in lines
    )


def page() -> str:
    lines = rows()
    counts = dict.fromkeys(("same", "differs", "elsewhere"), 0)
    for row in lines:
        counts[row.status] += row.signature.count(", ") + 1 if row.symbol in NOTES and row.signature[:1] != "(" else 1
    return f"""# SAM 2's symbols

Written by `tests/sam2_symbols.py` from the package `sam2` {VERSION} and this one; a test writes it again and compares. Of
{sum(counts.values())} public symbols {counts["same"]} are the same: under the same path with `sam2_mem` for `sam2`, taking the same
arguments at the same places with the same defaults. {counts["differs"]} differ, in what the last column says, and
{counts["elsewhere"]} are elsewhere, mostly parts of the network. Results are compared in `tests/test_parity.py`,
`tests/tracking/test_automatic_masks.py` and `tests/test_sam2_notebooks.py`.

## The package

{table(("symbol", "signature there"), lines)}
## Keys of a video's state

{table(("key", ""), state_rows())}
## Flags of tools/vos_inference.py

Those of `sam2-mem segment` and of `tools/vos_inference.py` here.

{table(("flag", "takes"), flag_rows())}"""


if __name__ == "__main__":
    PAGE.write_text(page())
