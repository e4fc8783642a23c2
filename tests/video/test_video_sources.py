"""Video sources: every kind of input, exact frames, bounded memory, threads that end, errors that say what to do."""

from __future__ import annotations

import importlib
import threading
import time
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sam2_mem.video import Frame, normalize, open_video, stored, streams, to_model_input
from sam2_mem.video import source as source_module
from sam2_mem.video.stored import REVERSE_BLOCK

HEIGHT, WIDTH = 48, 64


def make_image(index: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Noise that differs from frame to frame, under eight black or white blocks that spell the index in binary."""
    image = np.random.default_rng(index).integers(90, 160, (height, width, 3), dtype=np.uint8)
    for bit in range(8):
        image[:24, bit * 8 : bit * 8 + 8] = 255 * (index >> bit & 1)
    return image


def read_index(image: np.ndarray) -> int:
    """The index that `make_image` wrote; survives lossy coding."""
    return sum(int(image[4:20, bit * 8 + 2 : bit * 8 + 6].mean() > 127) << bit for bit in range(8))


def write_folder(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for index, name in enumerate(names):
        Image.fromarray(make_image(index)).save(folder / name)
    return folder


def write_clip(path: Path, count: int, fourcc: str = "mp4v") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), 24.0, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for index in range(count):
        writer.write(make_image(index)[..., ::-1])
    writer.release()
    return path


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sam2_mem-prefetch"]


@pytest.fixture
def alive(monkeypatch):
    """The frames alive in this process, whoever holds them: a check on the source's own book-keeping."""
    made = weakref.WeakSet()

    class CountedFrame(Frame):
        def __init__(self, *args):
            super().__init__(*args)
            made.add(self)

    monkeypatch.setattr(source_module, "Frame", CountedFrame)
    return made


@pytest.fixture(autouse=True)
def no_thread_is_left_behind():
    yield
    assert prefetch_threads() == []


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", 40)


# ---- folders


@pytest.mark.parametrize(
    "names",
    [
        ["1.jpg", "2.jpg", "10.jpg"],
        ["00000.jpg", "00001.JPG", "00002.jpeg"],
        ["frame_00002.png", "frame_00012.png", "frame_00100.PNG"],
        ["frame00012.jpg", "frame00024.jpg", "frame00100.jpg"],
        ["a9.png", "a10.jpg", "b1.png"],
    ],
)
def test_folder_is_in_natural_order_and_keeps_names(tmp_path, names):
    folder = write_folder(tmp_path / "video", names)
    (folder / "._00000.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("not a frame")
    with open_video(str(folder)) as source:
        frames = list(source)
        assert [f.name for f in frames] == [Path(n).stem for n in names]
        assert [f.index for f in frames] == [0, 1, 2]
        assert [read_index(f.image) for f in frames] == [0, 1, 2]
        assert [source.name(i) for i in range(3)] == [f.name for f in frames]
        assert (source.height, source.width, source.num_frames, len(source), source.seekable) == (48, 64, 3, 3, True)
        assert frames[0].image.dtype == np.uint8 and frames[0].image.shape == (48, 64, 3)


def test_png_folder_is_lossless_and_gray_files_become_rgb(tmp_path):
    folder = write_folder(tmp_path / "video", ["0.png", "1.png"])
    gray = make_image(7)[..., 0]
    Image.fromarray(gray).save(folder / "2.png")
    Image.fromarray(np.dstack([make_image(8), gray])).save(folder / "3.png")
    source = open_video(folder)
    assert np.array_equal(source[1].image, make_image(1))
    assert np.array_equal(source[2].image, np.stack([gray] * 3, -1))
    assert np.array_equal(source[3].image, make_image(8))


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such video.*nowhere"):
        open_video(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.bmp").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.jpg, \.jpeg, \.png.*found a\.bmp"):
        open_video(tmp_path / "empty")
    folder = write_folder(tmp_path / "twice", ["a.jpg", "b.jpg", "a.png"])
    with pytest.raises(ValueError, match=r"share one name.*a\.(jpg|png)' and 'a\.(jpg|png)'"):
        open_video(folder)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("damage", [b"no jpeg at all", None])
def test_corrupt_jpeg_in_the_middle(tmp_path, prefetch, damage):
    folder = write_folder(tmp_path / "video", [f"{i:05d}.jpg" for i in range(6)])
    bad = folder / "00003.jpg"
    bad.write_bytes(damage or bad.read_bytes()[:400])
    seen = []
    with open_video(folder, prefetch=prefetch) as source:
        with pytest.raises(ValueError, match=r"frame 3 \('.*00003\.jpg'\)"):
            for frame in source:
                seen.append(frame.index)
        assert seen == [0, 1, 2]
        assert source[4].index == 4
        with pytest.raises(ValueError, match="00003"):
            source[3]


def test_frames_of_differing_size(tmp_path):
    folder = write_folder(tmp_path / "video", ["0.png", "1.png"])
    Image.fromarray(make_image(2, 50, 64)).save(folder / "2.png")
    with pytest.raises(ValueError, match=r"frame 2 \('2'\): expected 48x64.*got 50x64"):
        list(open_video(folder))
    with pytest.raises(ValueError, match="frame 1 .*expected 48x64.*got 48x65"):
        list(open_video([make_image(0), make_image(1, 48, 65)]))
    with pytest.raises(ValueError, match="frame 1 .*expected 48x64.*got 47x64"):
        list(open_video(iter([make_image(0), make_image(1, 47, 64)])))


def test_sixteen_bit_png_is_refused(tmp_path):
    folder = write_folder(tmp_path / "video", ["0.png"])
    Image.fromarray(np.full((48, 64), 4000, np.uint16)).save(folder / "1.png")
    with pytest.raises(ValueError, match="frame 1 .*8 bits per channel"):
        list(open_video(folder))


# ---- iteration, ranges, index access: the same rules for folders, files and arrays


@pytest.fixture(params=["folder", "file", "array"])
def forty(request, tmp_path, clip):
    if request.param == "file":
        source = open_video(clip)
    elif request.param == "folder":
        source = open_video(write_folder(tmp_path / "forty", [f"{i}.png" for i in range(40)]))
    else:
        source = open_video(np.stack([make_image(i) for i in range(40)]))
    with source:
        yield source


def indices(frames) -> list[int]:
    """Indices, checked against what is written in the pixels."""
    found = [(frame.index, read_index(frame.image)) for frame in frames]
    assert all(index == seen for index, seen in found)
    return [index for index, _ in found]


def test_ranges(forty):
    assert indices(forty) == list(range(40))
    assert indices(forty) == list(range(40)), "a second pass starts at frame 0 again"
    assert indices(forty.frames(5, 9)) == [5, 6, 7, 8]
    assert indices(forty.frames(36, 99)) == [36, 37, 38, 39]
    assert indices(forty.frames(3, None, 9)) == list(range(3, 40, 9))
    assert indices(forty.frames(step=-1)) == list(range(39, -1, -1))
    assert indices(forty.frames(20, None, -1)) == list(range(20, -1, -1))
    assert indices(forty.frames(38, 2, -3)) == list(range(38, 2, -3))
    assert indices(forty.frames(4, 4)) == []
    assert forty.num_frames == len(forty) == forty.count_frames() == 40


def test_reverse_without_knowing_the_length(clip):
    with open_video(clip) as source:
        assert source.num_frames is None
        assert indices(source.frames(35, 30, -1)) == [35, 34, 33, 32, 31]
        assert source.num_frames is None
        with pytest.raises(IndexError, match="frame 77 is out of range"):
            list(source.frames(77, None, -1))
        with pytest.raises(IndexError, match="frame 77 is out of range; valid frames are 0 to 39"):
            list(source.frames(77))


def test_index_access_in_any_order(forty):
    order = [0, 39, 3, 4, 2, 1, 20, 19, 18, 17, 16, 39, 0]
    assert indices(forty[i] for i in order) == order
    for index in (40, -1, 1000):
        with pytest.raises(IndexError, match=f"frame {index} is out of range; valid frames are 0 to 39"):
            forty.count_frames() and forty[index]


def test_bad_ranges(forty):
    forty.count_frames()
    with pytest.raises(ValueError, match="step other than 0"):
        forty.frames(step=0)
    with pytest.raises(IndexError, match="0 to 39"):
        forty.frames(40)
    with pytest.raises(IndexError, match="stop >= 0"):
        forty.frames(0, -1)
    forty.close()
    with pytest.raises(ValueError, match="closed"):
        forty.frames()
    with pytest.raises(ValueError, match="closed"):
        forty[0]


# ---- files


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mov", ".mkv", ".MP4", ".m4v", ".webm"])
def test_containers(tmp_path, suffix):
    fourcc = {".avi": "MJPG", ".webm": "VP80"}.get(suffix, "mp4v")
    with open_video(write_clip(tmp_path / f"clip{suffix}", 20, fourcc)) as source:
        assert (source.height, source.width, source.fps) == (48, 64, 24.0)
        assert indices(source) == list(range(20))
        assert source[3].name == "00003"
        assert np.abs(source[3].image[4:20, 2:14].astype(int) - 255).max() < 40


def test_file_colours_are_rgb(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "red.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.full((48, 64, 3), (0, 0, 255), np.uint8))
    writer.release()
    red, green, blue = open_video(tmp_path / "red.mp4")[1].image.reshape(-1, 3).mean(0)
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize("how", ["pass", "count", "index"])
def test_wrong_frame_count_in_the_container(clip, monkeypatch, how):
    real = stored.VideoReader

    def lying(path):
        reader = real(path)
        reader.stated_length = 999
        return reader

    monkeypatch.setattr(stored, "VideoReader", lying)
    with open_video(clip) as source:
        assert source.num_frames is None
        with pytest.raises(TypeError, match=r"count_frames\(\)"):
            len(source)
        if how == "pass":
            list(source)
        elif how == "count":
            assert source.count_frames() == 40
        else:
            with pytest.raises(IndexError, match="0 to 39"):
                source[60]
            assert source[5].index == 5
        assert source.num_frames == len(source) == 40


def test_file_errors(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match="cannot read video '.*broken.mp4'.*ffmpeg"):
        open_video(tmp_path / "broken.mp4")
    (tmp_path / "clip.flv").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"clip\.flv.*\.mp4, \.mov, \.avi, \.mkv, \.webm, \.m4v"):
        open_video(tmp_path / "clip.flv")
    with pytest.raises(FileNotFoundError):
        open_video(tmp_path / "missing.mp4")


# ---- arrays


def test_arrays_and_tensors_give_the_same_frames():
    video = np.stack([make_image(i) for i in range(4)])
    channels_first = np.ascontiguousarray(video.transpose(0, 3, 1, 2))
    forms = [
        video,
        list(video),
        tuple(Image.fromarray(image) for image in video),
        torch.from_numpy(video),
        torch.from_numpy(channels_first),
        [torch.from_numpy(image) for image in channels_first],
        torch.from_numpy(channels_first).float() / 255,
        video.astype(np.float64) / 255,
        torch.from_numpy(video / 255).half(),
        torch.from_numpy(video / 255).half().permute(0, 3, 1, 2),
    ]
    for form in forms:
        source = open_video(form)
        assert (len(source), source.height, source.width, source.held_frames) == (4, 48, 64, 0)
        assert all(np.array_equal(frame.image, video[frame.index]) for frame in source)
        assert [frame.name for frame in source] == ["00000", "00001", "00002", "00003"]


@pytest.mark.parametrize(
    "video,message",
    [
        (np.zeros((2, 48, 64), np.uint8), r"expected a video of shape.*got \(2, 48, 64\)"),
        (np.zeros((48, 64, 3), np.uint8), r"image\[None\]"),
        (np.zeros((2, 48, 64, 1), np.uint8), "repeat a gray image"),
        (np.zeros((2, 48, 64, 4), np.uint8), "drop the alpha"),
        (torch.zeros((2, 4, 48, 64), dtype=torch.uint8), "drop the alpha"),
        (np.zeros((2, 48, 64, 5), np.uint8), "one RGB image per frame"),
        ([np.zeros((48, 64), np.uint8)], "frame 0: .*repeat a gray image"),
        (np.zeros((2, 48, 64, 3), np.int64), "expected uint8.*got int64"),
        (np.full((2, 48, 64, 3), 200.0), r"float pixels in \[0, 1\], got values from 200 to 200"),
        (np.full((2, 48, 64, 3), -0.5), r"float pixels in \[0, 1\]"),
        (np.full((2, 48, 64, 3), np.nan), r"float pixels in \[0, 1\], got values from nan"),
        (np.zeros((2, 48, 64, 3), bool), "got bool"),
        (np.zeros((2, 0, 64, 3), np.uint8), "at least one pixel"),
        (np.zeros((0, 48, 64, 3), np.uint8), "at least one frame"),
        ([], "at least one frame"),
        (["a.jpg", "b.jpg"], r"cannot read 'a\.jpg': expected a picture, got no such file"),
        ([Path("a.jpg"), make_image(0)], "a list of picture files only, got ndarray among them"),
        ({1, 2}, "got set"),
        ({"a": 1}, "got dict"),
        (None, "got NoneType"),
        (True, "got bool"),
        (b"bytes", "got bytes"),
    ],
)
def test_refused_input(video, message):
    with pytest.raises(ValueError, match=message):
        open_video(video)


def test_floats_are_rounded_to_the_nearest_byte():
    assert open_video(np.full((1, 4, 4, 3), 1.9 / 255))[0].image.max() == 2


def test_float_frame_out_of_range_later_in_the_video():
    video = np.zeros((3, 8, 8, 3), np.float32)
    video[2] = 90
    with pytest.raises(ValueError, match="frame 2: "):
        list(open_video(video))


def test_source_is_returned_as_it_is(clip):
    source = open_video(clip)
    assert open_video(source) is source


def test_bad_options(clip):
    for options in ({"prefetch": -1}, {"cache": -1}, {"cache": 1.5}):
        with pytest.raises(ValueError, match="expected (prefetch|cache) to be an integer >= 0"):
            open_video(clip, **options)


# ---- streams


def test_generator_is_pulled_only_on_demand():
    pulled = []

    def camera():
        for index in range(30):
            pulled.append(index)
            yield make_image(index)

    source = open_video(camera(), cache=2)
    assert not source.seekable and source.num_frames is None
    assert (source.height, source.width) == (48, 64) and source.held_frames == 1
    with pytest.raises(TypeError, match="length of this IteratorSource is not known"):
        len(source)
    frames = iter(source)
    assert indices([next(frames), next(frames)]) == [0, 1] and pulled == [0, 1]
    frames.close()
    assert indices(source.frames(stop=5)) == [2, 3, 4], "a new pass goes on where the last one stopped"
    assert pulled == [0, 1, 2, 3, 4]
    assert indices([source[4], source[3], source[7]]) == [4, 3, 7]
    with pytest.raises(IndexError, match="frame 1 has passed; valid frames are 8 upwards and.*cache: 6, 7"):
        source[1]
    with pytest.raises(IndexError, match="cannot go back"):
        source.frames(3)
    with pytest.raises(ValueError, match="reverse"):
        source.frames(step=-1)
    assert indices(source.frames(10, None, 5)) == [10, 15, 20, 25]
    assert source.num_frames == len(source) == 30
    with pytest.raises(IndexError, match="0 to 29"):
        source[30]


def test_iterator_may_reuse_its_buffer_and_mix_types():
    def reuse():
        buffer = np.zeros((8, 8, 3), np.uint8)
        for value in range(3):
            buffer[:] = value
            yield buffer

    source = open_video(reuse())
    assert [int(f.image[0, 0, 0]) for f in source] == [0, 1, 2]
    assert [int(source[i].image[0, 0, 0]) for i in range(3)] == [0, 1, 2]
    mixed = [make_image(0), Image.fromarray(make_image(1)), torch.from_numpy(make_image(2).transpose(2, 0, 1).copy())]
    assert indices(open_video(iter(mixed))) == [0, 1, 2]
    with pytest.raises(ValueError, match="frame 1: .*got NoneType"):
        list(open_video(iter([make_image(0), None])))
    with pytest.raises(ValueError, match="ended before its first frame"):
        _ = open_video(iter([])).height


def test_camera(monkeypatch):
    class FakeCamera:
        def __init__(self, index):
            self.left = 3 if index == 1 else None

        def isOpened(self):  # noqa: N802 - OpenCV's name
            return self.left is not None

        def get(self, _):
            return 30.0

        def read(self):
            self.left -= 1
            return (False, None) if self.left < 0 else (True, np.full((48, 64, 3), (0, 0, 250), np.uint8))

        def release(self):
            self.left = None

    monkeypatch.setattr(streams.cv2, "VideoCapture", FakeCamera)
    with open_video(1) as source:
        assert source.num_frames is None and source.width == 64
        frames = list(source)
        assert [f.index for f in frames] == [0, 1, 2] and frames[0].image[0, 0].tolist() == [250, 0, 0]
    for index in (63, -1):
        with pytest.raises(ValueError, match=f"cannot open camera {index}: .*connected camera"):
            open_video(index)


# ---- memory and threads


@pytest.mark.parametrize("kind", ["folder", "file", "iterator"])
@pytest.mark.parametrize("prefetch,cache", [(2, 4), (0, 0), (5, 1)])
def test_held_frames_are_bounded_on_a_long_clip(tmp_path, alive, kind, prefetch, cache):
    count = 150
    if kind == "folder":
        base = write_folder(tmp_path / "long", ["0.jpg"])
        for index in range(1, count):
            (base / f"{index}.jpg").hardlink_to(base / "0.jpg")
        given = base
    else:
        given = write_clip(tmp_path / "long.mp4", count) if kind == "file" else (make_image(i) for i in range(count))
    bound = prefetch + cache + 1
    peak = stated = 0
    with open_video(given, prefetch=prefetch, cache=cache) as source:
        for frame in source:
            index = frame.index
            del frame
            if index % 10 == 9:
                time.sleep(0.01)  # let the thread run as far ahead as it may
                stated = max(stated, source.held_frames)
                peak = max(peak, len(alive))
        assert index == count - 1
    assert max(stated, peak) <= bound
    assert peak >= cache, "the count of live frames must see the cache"
    assert source.held_frames == 0 and len(alive) == 0


def test_held_frames_reverse_and_backward_access(clip, alive):
    with open_video(clip, prefetch=2, cache=4) as source:
        bound = 2 + 4 + 1 + REVERSE_BLOCK
        peak = 0
        for frame in source.frames(step=-1):
            del frame
            peak = max(peak, source.held_frames, len(alive))
        assert REVERSE_BLOCK // 2 < peak <= bound
        for index in range(39, -1, -1):
            assert source[index].index == index and source.held_frames <= 4
    assert source.held_frames == 0


def test_stepping_back_through_a_file_decodes_little(clip, monkeypatch):
    opened = []
    real = stored.VideoReader
    monkeypatch.setattr(stored, "VideoReader", lambda path: opened.append(path) or real(path))
    source = open_video(clip, cache=4)
    assert indices(source[i] for i in range(39, -1, -1)) == list(range(39, -1, -1))
    assert len(opened) <= 1 + 40 // 4
    source.close()


def wait_for_no_threads() -> bool:
    deadline = time.time() + 5
    while prefetch_threads() and time.time() < deadline:
        time.sleep(0.005)
    return not prefetch_threads()


@pytest.mark.parametrize("end", ["close", "drop", "source", "raise", "finish"])
def test_prefetch_thread_ends(clip, end):
    source = open_video(clip)
    frames = iter(source)
    next(frames)
    assert len(prefetch_threads()) == 1
    deadline = time.time() + 5
    while source.held_frames < 3 and time.time() < deadline:
        time.sleep(0.005)
    assert source.held_frames == 3, "frame 0 in the cache and two ahead"
    if end == "close":
        frames.close()
    elif end == "drop":
        del frames
    elif end == "source":
        source.close()
    elif end == "raise":
        with pytest.raises(RuntimeError):
            frames.throw(RuntimeError("consumer failed"))
    else:
        list(frames)
    assert wait_for_no_threads()
    assert source.held_frames == {"source": 0, "finish": 4}.get(end, 1), "frames decoded ahead are let go"
    source.close()


def test_prefetch_overlaps_and_stops_at_its_depth(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "video", [f"{i}.png" for i in range(12)])
    decoded = []
    real = stored.FolderSource._fetch
    monkeypatch.setattr(stored.FolderSource, "_fetch", lambda self, index: decoded.append(index) or real(self, index))
    for depth in (0, 3):
        decoded.clear()
        frames = iter(open_video(folder, prefetch=depth))
        next(frames)
        time.sleep(0.2)
        assert decoded == list(range(depth + 1))
        frames.close()


# ---- pixels for the model


def oracle_frames(folder: Path, image_size: int) -> torch.Tensor:
    try:
        misc = importlib.import_module("sam2.utils.misc")
    except ImportError:
        pytest.skip("PARITY NOT CHECKED: the reference package 'sam2' is not installed (pip install sam2==1.1.0)")
    return misc.load_video_frames(str(folder), image_size, offload_video_to_cpu=True)[0]


@pytest.mark.parametrize("image_size", [32, 128])
def test_model_input_equals_the_reference_loader(tmp_path, image_size):
    folder = write_folder(tmp_path / "video", [f"{i:05d}.jpg" for i in range(4)])
    expected = oracle_frames(folder, image_size)
    with open_video(folder) as source:
        frames = [frame.image for frame in source]
    ours = normalize(torch.stack([to_model_input(image, image_size) for image in frames]), "cpu")
    assert ours.dtype == torch.float32 and torch.equal(ours, expected)
    size = (image_size, image_size)
    by_cv2 = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in frames])
    control = normalize(torch.from_numpy(by_cv2).permute(0, 3, 1, 2), "cpu")
    assert not torch.equal(control, expected) and (control - expected).abs().max() > 0.05


def test_normalize_every_byte_value():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    in_double = torch.arange(256, dtype=torch.float64) / 255
    expected = (in_double.float()[None] - mean[:, None]) / std[:, None]
    assert torch.equal(normalize(frames, "cpu").reshape(3, 256), expected)
    half = normalize(frames[None, None], "cpu", torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.shape == (1, 1, 3, 16, 16)
    assert torch.equal(half[0, 0].reshape(3, 256), expected.bfloat16())


def test_model_input_shape_and_errors():
    out = to_model_input(make_image(3), 20)
    assert out.shape == (3, 20, 20) and out.dtype == torch.uint8 and out.is_contiguous()
    for image, size, message in (
        (make_image(0)[..., 0], 20, "expected an"),
        (make_image(0).astype(np.float32), 20, "got float32"),
        (make_image(0), 0, "image_size >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            to_model_input(image, size)
    with pytest.raises(ValueError, match="expected uint8"):
        normalize(torch.zeros(3, 4, 4), "cpu")


def test_frames_are_resized_ahead_where_they_are_decoded(tmp_path, monkeypatch):
    folder, threads = write_folder(tmp_path / "frames", [f"{i}.png" for i in range(5)]), set()

    def noted(image, size):
        threads.add(threading.current_thread().name)
        return to_model_input(image, size)

    monkeypatch.setattr("sam2_mem.video.frame.to_model_input", noted)
    with open_video(folder) as source:
        source.image_size = 20
        for frame in source.frames():
            assert torch.equal(frame.model_input(20), to_model_input(frame.image, 20)) and not frame.resized
        assert frame.index == 4 and threads == {"sam2_mem-prefetch"}
        assert torch.equal(frame.model_input(24), to_model_input(frame.image, 24)), "another size is made on demand"
