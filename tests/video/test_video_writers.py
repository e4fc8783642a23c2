"""Mask writers: what is written reads back, in constant memory, and a killed run leaves nothing half-written."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

import sam2_mem.video
from sam2_mem.video import (
    ContactSheetWriter,
    Frame,
    MultiWriter,
    OverlayWriter,
    PaletteWriter,
    PerObjectWriter,
    RLEWriter,
    davis_palette,
    draw_overlay,
    finished_frames,
    finished_object_frames,
    object_color,
    open_video,
    palette_masks,
    per_object_masks,
    read_mask_png,
    read_rle,
)

HEIGHT, WIDTH = 45, 61


def disc(x: int, y: int, radius: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def make_frame(index: int, height: int = HEIGHT, width: int = WIDTH) -> Frame:
    return Frame(index, f"{index:05d}", np.full((height, width, 3), 100 + index % 50, np.uint8))


def make_masks(index: int) -> dict[int, np.ndarray]:
    return {7: disc(20 + index, 20, 10), 2: disc(30, 22, 9), 300: np.zeros((HEIGHT, WIDTH), bool)}


def assert_same(masks: dict[int, np.ndarray], expected: dict[int, np.ndarray]) -> None:
    assert sorted(masks) == sorted(expected)
    for obj_id, mask in expected.items():
        assert masks[obj_id].dtype == bool and np.array_equal(masks[obj_id], mask)


def png_header(path: Path) -> tuple[int, int]:
    """Bit depth and colour type."""
    header = path.read_bytes()[:26]
    return header[24], header[25]


# ---- palette PNG


def test_palette_png_reads_back(tmp_path):
    frame = make_frame(12)
    masks = {obj_id: disc(10 * place + 8, 20, 4) for place, obj_id in enumerate((1, 2, 9, 200, 255))}
    with PaletteWriter(tmp_path, "dog") as writer:
        writer.write(frame, masks)
    path = tmp_path / "dog" / "00012.png"
    assert png_header(path) == (8, 3), "8 bits, indexed"
    read = read_mask_png(path)
    assert read.ids.dtype == np.uint8 and np.array_equal(read.palette, davis_palette())
    assert_same(palette_masks(path), masks)
    assert sorted(palette_masks(path, ignore=(255,))) == [1, 2, 9, 200]
    with Image.open(path) as image:
        assert image.mode == "P" and image.convert("RGB").getpixel((8, 20)) == (128, 0, 0)


def test_lower_id_wins_an_overlap(tmp_path):
    left, right = disc(20, 20, 12), disc(30, 20, 12)
    for masks in ({5: left, 3: right}, {3: right, 5: left}):
        with PaletteWriter(tmp_path, "v") as writer:
            writer.write(make_frame(0), masks)
        assert_same(palette_masks(tmp_path / "v" / "00000.png"), {3: right, 5: left & ~right})


@pytest.mark.parametrize("few", [2, 16, 256])
def test_input_palette_is_reused_at_8_bits(tmp_path, few):
    palette = np.random.default_rng(0).integers(0, 256, (few, 3), dtype=np.uint8)
    prompt = Image.fromarray(disc(20, 20, 5).astype(np.uint8))
    prompt.putpalette(palette.tobytes())
    prompt.save(tmp_path / "prompt.png")
    given = read_mask_png(tmp_path / "prompt.png").palette
    with PaletteWriter(tmp_path, "v", given) as writer:
        writer.write(make_frame(0), {1: disc(20, 20, 5)})
    written = tmp_path / "v" / "00000.png"
    assert png_header(written) == (8, 3)
    assert np.array_equal(read_mask_png(written).palette[:few], palette)
    assert not np.array_equal(davis_palette()[:few], palette)


@pytest.mark.parametrize("palette", [[1, 2], np.zeros((257, 3)), b"", "red", [[300, 2], [1]]])
def test_bad_palette(tmp_path, palette):
    with pytest.raises(ValueError, match="expected a palette"):
        PaletteWriter(tmp_path, "v", palette)


@pytest.mark.parametrize("obj_id", [0, 256, -1])
def test_ids_that_do_not_fit_a_palette(tmp_path, obj_id):
    expected = pytest.raises(ValueError, match=f"1 to 255.*got {obj_id};.*per-object")
    with PaletteWriter(tmp_path, "v") as writer, expected:
        writer.write(make_frame(0), {obj_id: disc(20, 20, 5)})
    assert not list(tmp_path.rglob("*.png"))


def test_palettes():
    palette = davis_palette()
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        4: (0, 0, 128),
        7: (128, 128, 128),
        8: (64, 0, 0),
        9: (192, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        21: (128, 64, 128),
        255: (224, 224, 192),
    }
    assert {obj_id: tuple(int(v) for v in palette[obj_id]) for obj_id in known} == known
    assert len({tuple(colour) for colour in palette.tolist()}) == 256
    colours = [object_color(obj_id) for obj_id in range(1, 9)]
    assert min(np.abs(np.subtract(a, b)).sum() for a in colours for b in colours if a is not b) > 60


# ---- per-object PNG


def test_per_object_pngs_read_back_and_may_overlap(tmp_path):
    with PerObjectWriter(tmp_path, "dog") as writer:
        writer.write(make_frame(3), make_masks(3))
        writer.write(make_frame(4), {0: disc(9, 9, 4), 1234: disc(5, 5, 3)})
    assert sorted(p.name for p in (tmp_path / "dog").iterdir()) == ["000", "002", "007", "1234", "300"]
    path = tmp_path / "dog" / "007" / "00003.png"
    assert png_header(path) == (8, 0), "8 bits, gray"
    assert np.unique(np.array(Image.open(path))).tolist() == [0, 1]
    assert (make_masks(3)[7] & make_masks(3)[2]).any()
    assert_same(per_object_masks(tmp_path / "dog", "00003"), make_masks(3))
    assert_same(per_object_masks(tmp_path / "dog", "00004"), {0: disc(9, 9, 4), 1234: disc(5, 5, 3)})
    assert per_object_masks(tmp_path / "dog", "00099") == {}
    with pytest.raises(FileNotFoundError, match="no such folder of masks"):
        per_object_masks(tmp_path / "cat", "00003")


def test_several_values_in_a_per_object_png(tmp_path):
    (tmp_path / "001").mkdir()
    Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).save(tmp_path / "001" / "00000.png")
    with pytest.raises(ValueError, match="expected one object.*palette_masks"):
        per_object_masks(tmp_path, "00000")


# ---- reading masks


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("colour_type", [0, 3])
def test_png_of_every_bit_depth(tmp_path, bits, colour_type):
    """PIL cannot write gray PNGs of 2 and 4 bits, so the file is put together here."""
    ids = np.random.default_rng(bits).integers(0, min(2**bits, 200), (5, 16), dtype=np.uint8)
    ids[0, :2] = 0, 1
    per_byte = 8 // bits
    shifts = np.array([8 - bits * (place + 1) for place in range(per_byte)])
    packed = (ids.reshape(5, -1, per_byte).astype(int) << shifts).sum(-1).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 16, 5, bits, colour_type, 0, 0, 0)
    palette = chunk(b"PLTE", davis_palette()[: 2**bits].tobytes()) if colour_type == 3 else b""
    path = tmp_path / "ids.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )
    read = read_mask_png(path)
    assert np.array_equal(read.ids, ids) and read.ids.dtype == np.uint8
    assert (read.palette is None) == (colour_type == 0)


def test_sixteen_bit_ids(tmp_path):
    ids = np.array([[0, 1, 300], [65535, 2, 0]], np.uint16)
    Image.fromarray(ids).save(tmp_path / "ids.png")
    read = read_mask_png(tmp_path / "ids.png")
    assert read.ids.dtype == np.uint16 and np.array_equal(read.ids, ids) and read.palette is None
    assert sorted(palette_masks(tmp_path / "ids.png")) == [1, 2, 300, 65535]


def test_mask_reading_errors(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match="rgb.png'.*RGB image; colours are not ids"):
        read_mask_png(tmp_path / "rgb.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "mask.jpg")
    with pytest.raises(ValueError, match="expected a PNG in '.*mask.jpg'"):
        read_mask_png(tmp_path / "mask.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), dtype=np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    with pytest.raises(ValueError, match="cannot read mask '.*cut.png'"):
        read_mask_png(tmp_path / "cut.png")
    with pytest.raises(FileNotFoundError):
        read_mask_png(tmp_path / "none.png")


# ---- what every writer checks


@pytest.mark.parametrize(
    "masks,message",
    [
        ({1: np.zeros((HEIGHT, WIDTH), np.float32)}, "object 1: expected a bool .*got float32.*logits > 0"),
        ({1: np.zeros((1, HEIGHT, WIDTH), bool)}, r"got bool \(1, 45, 61\)"),
        ({"1": np.zeros((HEIGHT, WIDTH), bool)}, "integer object id, got str"),
        ({1: np.zeros((HEIGHT, WIDTH + 1), bool)}, "mask of object 1 to be 45x61.*got 45x62"),
        ({1: np.zeros((HEIGHT, WIDTH), bool), 2: np.zeros((9, 9), bool)}, "mask of object 2 to be 45x61.*got 9x9"),
    ],
)
def test_bad_masks(tmp_path, masks, message):
    writer = PaletteWriter(tmp_path, "v")
    writer.write(make_frame(0), {})
    with pytest.raises(ValueError, match=r"frame 1 \('00001'\)" + ".*" + message):
        writer.write(make_frame(1), masks)


class Bare:
    """A frame-like thing without pixels."""

    index, name = 4, "img4"


def test_frame_like_torch_masks_and_unknown_size(tmp_path):
    with PaletteWriter(tmp_path, "v") as writer:
        with pytest.raises(ValueError, match="frame 4.*pass image="):
            writer.write(Bare(), {})
        writer.write(Bare(), {1: torch.from_numpy(disc(20, 20, 5))})
        assert_same(palette_masks(tmp_path / "v" / "img4.png"), {1: disc(20, 20, 5)})
        writer.write(Bare(), {})
        assert palette_masks(tmp_path / "v" / "img4.png") == {}
    with pytest.raises(ValueError, match="PaletteWriter is closed"):
        writer.write(Bare(), {})


# ---- kill and resume

KILLED = """
import os, sys, numpy as np
from sam2_mem.video import Frame, PaletteWriter, PerObjectWriter, RLEWriter, OverlayWriter, MultiWriter
out = sys.argv[1]
real = os.replace
writers = [PaletteWriter(out + "/pal", "v"), PerObjectWriter(out + "/obj", "v"),
           RLEWriter(out + "/m.json", video="v"), OverlayWriter(out + "/o.mp4")]
def replace(source, target):
    if "00003" in str(target) and "/{where}/" in str(target):
        os._exit(9)
    real(source, target)
os.replace = replace
writer = MultiWriter(*writers)
for i in range(6):
    mask = np.zeros((45, 61), bool); mask[i:20, 5:40] = True
    writer.write(Frame(i, f"{{i:05d}}", np.zeros((45, 61, 3), np.uint8)), {{1: mask, 2: ~mask}})
"""


def run_killed(out: Path, where: str) -> None:
    root = Path(sam2_mem.video.__file__).parents[2]
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS="1")
    run = subprocess.run([sys.executable, "-c", KILLED.format(where=where), str(out)], env=env)
    assert run.returncode == 9, "the run must have been killed in the middle"


def test_killed_run_leaves_only_complete_files(tmp_path):
    run_killed(tmp_path, "002")
    done = {f"{i:05d}" for i in range(3)}
    assert finished_frames(tmp_path / "pal", "v") == done | {"00003"}
    assert finished_object_frames(tmp_path / "obj", "v") == done, "object 2 lacks frame 3"
    assert finished_object_frames(tmp_path / "obj", "v", [1]) == done | {"00003"}
    assert finished_object_frames(tmp_path / "obj", "v", [1, 5]) == set()
    for path in tmp_path.rglob("*.png"):
        assert read_mask_png(path).ids.shape == (45, 61)
    assert not (tmp_path / "m.json").exists() and not (tmp_path / "o.mp4").exists()
    leftovers = [p for p in tmp_path.rglob("*") if p.name.startswith(".")]
    assert {p.suffix for p in leftovers} <= {".part", ".mp4"} and leftovers
    with PerObjectWriter(tmp_path / "obj", "v") as writer:
        writer.write(make_frame(3), {1: disc(9, 9, 3), 2: disc(30, 9, 3)})
    assert not list((tmp_path / "obj").rglob(".*")), "the resumed run cleans up after the killed one"
    assert finished_object_frames(tmp_path / "obj", "v") == done | {"00003"}


def test_finished_frames_of_nothing(tmp_path):
    assert finished_frames(tmp_path, "v") == set() == finished_object_frames(tmp_path, "v")


def test_rle_resumes_after_a_kill(tmp_path):
    run_killed(tmp_path, "obj/v/001")
    path = tmp_path / "m.json"
    with pytest.raises(FileNotFoundError, match="not finished.*m.jsonl"):
        read_rle(path)
    with (tmp_path / "m.jsonl").open("ab") as journal:
        journal.write(b'{"index":3,"name":"00003","obj')  # what a kill in the middle of a line leaves
    with pytest.raises(RuntimeError), RLEWriter(path, video="v") as writer:
        assert writer.finished == {"00000", "00001", "00002"}
        writer.write(make_frame(4), {1: disc(4, 9, 5)})
        raise RuntimeError
    with RLEWriter(path, video="v") as writer:
        assert writer.finished == {"00000", "00001", "00002", "00004"}
        for index in range(6):
            frame = make_frame(index)
            if frame.name not in writer.finished:
                writer.write(frame, {1: disc(index, 9, 5)})
    video = read_rle(path)
    assert [f.name for f in video.frames] == [f"{i:05d}" for i in range(6)]
    assert [len(f.objects) for f in video.frames] == [2, 2, 2, 1, 1, 1]
    assert not (tmp_path / "m.jsonl").exists()


# ---- RLE


def test_rle_reads_back_and_has_the_stated_form(tmp_path):
    path = tmp_path / "deep" / "masks.json"
    with RLEWriter(path, video="dog") as writer:
        for index in (2, 0, 1):
            writer.write(make_frame(index), make_masks(index))
        writer.write(make_frame(0), make_masks(9))
        assert not path.exists()
    video = read_rle(path)
    assert (video.video, video.height, video.width) == ("dog", HEIGHT, WIDTH)
    assert [(f.index, f.name) for f in video.frames] == [(0, "00000"), (1, "00001"), (2, "00002")]
    for frame, drawn in zip(video.frames, (9, 1, 2), strict=True):
        assert_same(frame.masks(), make_masks(drawn))

    content = json.loads(path.read_text())
    assert list(content) == ["video", "height", "width", "frames"]
    item = content["frames"][1]["objects"][1]
    assert list(content["frames"][1]) == ["index", "name", "objects"]
    assert list(item) == ["id", "size", "counts", "area", "bbox"]
    mask = make_masks(1)[7]
    assert item["id"] == 7 and item["area"] == mask.sum() and item["bbox"] == [11, 10, 21, 21]
    assert np.array_equal(coco.decode(item), mask), "other COCO readers take an entry as it is"
    assert content["frames"][1]["objects"][2]["area"] == 0


def test_rle_errors_and_corner_cases(tmp_path):
    path = tmp_path / "m.json"
    with pytest.raises(ValueError, match="ending in .json"):
        RLEWriter(tmp_path / "m.txt", video="v")
    with RLEWriter(path, video="empty"):
        pass
    assert read_rle(path).frames == () and read_rle(path).height is None
    path.unlink()
    with pytest.raises(RuntimeError), RLEWriter(path, video="a") as writer:
        writer.write(make_frame(0), make_masks(0))
        raise RuntimeError
    assert not path.exists() and (tmp_path / "m.jsonl").exists()
    with pytest.raises(ValueError, match="belongs to video 'a', not 'b'"):
        RLEWriter(path, video="b")
    with RLEWriter(path, video="a") as writer, pytest.raises(ValueError, match="to be 45x61"):
        writer.write(make_frame(1), {1: np.zeros((9, 9), bool)})
    with RLEWriter(path, video="b", resume=False) as writer:
        writer.write(make_frame(5), {})
    assert [f.index for f in read_rle(path).frames] == [5]
    path.write_text('{"frames": 3}')
    with pytest.raises(ValueError, match="expected a JSON file written by RLEWriter"):
        read_rle(path)
    with pytest.raises(FileNotFoundError):
        read_rle(tmp_path / "none.json")


# ---- pictures


def test_overlay_draws_inside_masks_only():
    image = make_frame(0, 200, 240).image
    masks = {1: disc(60, 60, 30, 200, 240), 2: disc(180, 140, 30, 200, 240), 3: np.zeros((200, 240), bool)}
    before = image.copy()
    plain = draw_overlay(image, masks, contour=False, labels=False)
    assert np.array_equal(image, before), "the input is not drawn on"
    outside = ~(masks[1] | masks[2])
    assert np.array_equal(plain[outside], image[outside])
    for obj_id in (1, 2):
        expected = np.round(0.5 * 100 + 0.5 * np.array(object_color(obj_id)))
        assert np.abs(plain[masks[obj_id]] - expected).max() <= 1
    full = draw_overlay(image, masks)
    rows, columns = np.nonzero((full != plain).any(-1) & ~disc(60, 60, 33, 200, 240))
    assert (disc(180, 140, 33, 200, 240)[rows, columns]).all(), "contours and labels stay at their objects"
    assert np.abs(full[60, 90] - np.array(object_color(1))).max() < 10, "contour"
    assert (full[50:70, 50:70] > 200).all(-1).any(), "label"


def test_place_of_labels():
    ring = disc(100, 100, 80, 200, 240) & ~disc(100, 100, 40, 200, 240)
    out = draw_overlay(np.zeros((200, 240, 3), np.uint8), {8: ring}, contour=False)
    white = (out > 200).all(-1)
    assert white.any() and ring[white].all()
    small = disc(120, 100, 6, 200, 240)
    out = draw_overlay(np.zeros((200, 240, 3), np.uint8), {8: small}, contour=False)
    assert (out[small] == out[100, 120]).all(), "the label does not hide a small object"
    assert (out[75:94, 110:130] > 200).all(-1).any(), "it stands above it"
    corner = np.zeros((200, 240), bool)
    corner[:2, :2] = True
    out = draw_overlay(np.zeros((200, 240, 3), np.uint8), {123456: corner}, contour=False)
    assert (out[:30] > 128).all(-1).sum() > 30, "the label is moved into the picture"


@pytest.mark.parametrize("height,width", [(48, 64), (45, 61)])
def test_overlay_video(tmp_path, height, width):
    path = tmp_path / "sub" / "overlay.mp4"
    with OverlayWriter(path, fps=12, labels=False, contour=False) as writer:
        for index in range(20):
            frame = make_frame(index, height, width)
            writer.write(frame, {1: disc(30, 22, 15, height, width)}, image=np.full_like(frame.image, 100))
            assert not path.exists()
    assert os.listdir(path.parent) == ["overlay.mp4"]
    with open_video(path) as video:
        assert video.count_frames() == 20 and video.fps == 12
        assert (video.height, video.width) == (height + height % 2, width + width % 2)
        image = video[10].image.astype(int)
        tinted = np.round(0.5 * 100 + 0.5 * np.array(object_color(1)))
        assert np.abs(image[22, 30] - tinted).max() < 25 and np.abs(image[3, 3] - 100).max() < 25
        assert np.abs(image[-1, 3] - 100).max() < 25, "an odd last row is kept"


def test_overlay_errors(tmp_path):
    with pytest.raises(ValueError, match="ending in .mp4"):
        OverlayWriter(tmp_path / "o.gif")
    with pytest.raises(ValueError, match="fps > 0"):
        OverlayWriter(tmp_path / "o.mp4", fps=0)
    with pytest.raises(ValueError, match="nothing to draw on"), OverlayWriter(tmp_path / "o.mp4") as writer:
        writer.write(Bare(), {1: disc(3, 3, 3)})
    with pytest.raises(RuntimeError), OverlayWriter(tmp_path / "o.mp4") as writer:
        writer.write(make_frame(0), {})
        raise RuntimeError
    with OverlayWriter(tmp_path / "o.mp4"):
        pass
    expected = pytest.raises(ValueError, match="any of the codecs zzzz")
    with OverlayWriter(tmp_path / "o.mp4", codecs=("zzzz",)) as writer, expected:
        writer.write(make_frame(0), {})
    assert os.listdir(tmp_path) == []
    with OverlayWriter(tmp_path / "o.mp4", codecs=("zzzz", "mp4v")) as writer:
        writer.write(make_frame(0), {})
    assert open_video(tmp_path / "o.mp4").count_frames() == 1


@pytest.mark.parametrize("count,tiles", [(1, 1), (5, 5), (8, 8), (9, 8), (100, 8), (333, 8)])
def test_contact_sheet_is_bounded_and_spread(tmp_path, count, tiles):
    held = 0
    with ContactSheetWriter(tmp_path / "s.png", max_tiles=8, tile_width=64, columns=4) as writer:
        for index in range(count):
            # The brightness tells the place in the video; an object fills the lower end of every tile.
            image = np.full((96, 128, 3), 40 + 200 * index // count, np.uint8)
            lower = np.zeros((96, 128), bool)
            lower[70:] = True
            writer.write(Frame(index, f"{index:05d}", image), {1: lower})
            held = max(held, len(writer._tiles))
    assert held <= 16
    sheet = np.array(Image.open(tmp_path / "s.png"))
    columns = min(4, tiles)
    assert sheet.shape == (-(-tiles // 4) * 48, columns * 64, 3)
    values = [int(sheet[48 * (i // 4) + 24, 64 * (i % 4) + 32, 0]) for i in range(tiles)]
    assert values == sorted(values) and values[0] == 40
    if count >= 100:
        assert max(np.diff(values)) < 60 and values[-1] > 40 + 200 * 0.85, "spread over the whole video"
    assert sheet[43, 50].tolist() == np.round(0.5 * 40 + 0.5 * np.array(object_color(1))).tolist()


def test_contact_sheet_options(tmp_path):
    with ContactSheetWriter(tmp_path / "s.png", every=10, tile_width=32) as writer:
        for index in range(25):
            writer.write(make_frame(index), {})
    assert Image.open(tmp_path / "s.png").size == (3 * 32, 24)
    with pytest.raises(ValueError, match="max_tiles >= 2"):
        ContactSheetWriter(tmp_path / "t.png", max_tiles=1)
    with ContactSheetWriter(tmp_path / "t.png"):
        pass
    assert os.listdir(tmp_path) == ["s.png"]


# ---- several writers at once


def test_multi_writer(tmp_path):
    with MultiWriter(PaletteWriter(tmp_path, "p"), RLEWriter(tmp_path / "m.json", video="v")) as writer:
        for index in range(3):
            writer.write(make_frame(index), {1: disc(20 + index, 9, 5)})
    assert finished_frames(tmp_path, "p") == {"00000", "00001", "00002"}
    assert_same(read_rle(tmp_path / "m.json").frames[2].masks(), palette_masks(tmp_path / "p" / "00002.png"))


def test_multi_writer_ends_all_even_if_one_fails(tmp_path, monkeypatch):
    overlay, rle = OverlayWriter(tmp_path / "o.mp4"), RLEWriter(tmp_path / "m.json", video="v")
    monkeypatch.setattr(overlay, "_finish", lambda: 1 / 0)
    writer = MultiWriter(overlay, rle)
    writer.write(make_frame(0), {})
    with pytest.raises(ZeroDivisionError):
        writer.close()
    assert len(read_rle(tmp_path / "m.json").frames) == 1
    rle = RLEWriter(tmp_path / "n.json", video="v")
    with pytest.raises(RuntimeError), MultiWriter(rle, PaletteWriter(tmp_path, "p")) as writer:
        writer.write(make_frame(0), {})
        raise RuntimeError
    assert not (tmp_path / "n.json").exists() and (tmp_path / "n.jsonl").exists() and rle._file.closed


def test_failed_png_leaves_no_file(tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"), PaletteWriter(tmp_path, "v") as writer:
        writer.write(make_frame(0), {1: disc(3, 3, 3)})
    assert os.listdir(tmp_path / "v") == []
