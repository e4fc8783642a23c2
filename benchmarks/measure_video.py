#!/usr/bin/env python3
"""PyAV, OpenCV and torchcodec on one H.264 clip that is made up here: decoding in order, and single frames in random order.

    benchmarks/measure_video.py --size 1280x720 --frames 240

Seconds of processor time, and whether pixels are equal to PyAV's. torchcodec needs the libraries of a system-wide FFmpeg. OpenCV's
random access is its own seek by frame number, which other files show not to be exact.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from sam2_mem.cli.arguments import picture_size
from sam2_mem.video import open_video


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=picture_size, default=(1280, 720))
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--keyframe", type=int, default=60, help="frames between keyframes (default: 60)")
    parser.add_argument("--random", type=int, default=30, help="frames in random order (default: 30)")
    args = parser.parse_args()
    width, height = args.size if isinstance(args.size, tuple) else (args.size, args.size)
    cv2.setNumThreads(1)
    order = random.Random(0).sample(range(args.frames), args.random)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        make_clip(path, width, height, args.frames, args.keyframe)
        print(f"{width}x{height}, {args.frames} frames, a keyframe in {args.keyframe}")
        truth: dict[int, np.ndarray] = {}
        for name, read in (("sam2_mem (PyAV)", by_ours), ("OpenCV", by_opencv), ("torchcodec", by_torchcodec)):
            report(name, read, path, order, truth)


def make_clip(path: Path, width: int, height: int, frames: int, keyframe: int) -> None:
    """A ground of soft noise that moves, with a disc on it."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 36, 3), dtype=np.uint8)
    ground = cv2.resize(noise, (width + frames, height), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        options = {"preset": "fast", "crf": "20", "g": str(keyframe), "bf": "2"}
        stream = container.add_stream("libx264", rate=Fraction(25), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            image = ground[:, index : index + width].copy()
            cv2.circle(image, (width // 10 + 3 * index, height // 2), height // 12, (20, 30, 240), -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))


Reader = Callable[[Path, "list[int] | None"], Iterator[np.ndarray]]
"""Frames of a file: those of a list, or all."""


def report(name: str, read: Reader, path: Path, order: list[int], truth: dict[int, np.ndarray]) -> None:
    try:
        start = time.process_time()
        count = sum(1 for _ in read(path, None))
        in_order = time.process_time() - start
        start = time.process_time()
        frames = list(read(path, order))
        at_random = time.process_time() - start
    except (ImportError, RuntimeError) as error:
        print(f"{name:16s} not measured: {str(error).splitlines()[0]}")
        return
    if not truth:
        truth.update(zip(order, frames))
    equal = sum(np.array_equal(truth[index], frame) for index, frame in zip(order, frames))
    print(
        f"{name:16s} in order {1000 * in_order / count:6.2f} ms a frame, at random {1000 * at_random / len(order):7.2f} ms; "
        f"{equal} of {len(order)} frames equal to PyAV's",
        flush=True,
    )


def by_ours(path: Path, order: list[int] | None) -> Iterator[np.ndarray]:
    with open_video(path, prefetch=0, indexed=order is not None) as source:
        if order is None:
            yield from (frame.image for frame in source)
        else:
            source.count_frames()
            yield from (source[index].image for index in order)


def by_opencv(path: Path, order: list[int] | None) -> Iterator[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    for index in range(count) if order is None else order:
        if order is not None:
            capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        yield cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
    capture.release()


def by_torchcodec(path: Path, order: list[int] | None) -> Iterator[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    for index in range(len(decoder)) if order is None else order:
        yield decoder[index].numpy()


if __name__ == "__main__":
    main()
