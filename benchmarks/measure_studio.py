#!/usr/bin/env python3
"""The studio on a long video: how soon a frame is there, and how much memory it has while it tracks.

    benchmarks/measure_studio.py --out runs/studio                         # 10,000 frames of 1280 x 720, nano_v2
    benchmarks/measure_studio.py --out runs/studio --objects 2 --browser
    benchmarks/measure_studio.py --out runs/studio --frames 600 --size 320x180   # a trial

It draws the video (once), starts `sam2-mem studio` on it as a process of its own, asks as the page asks, and prints Markdown.
--browser also measures in Chromium, by Playwright, from a click to the picture on the page. Memory is that of the server's
process (VmRSS), read while all objects are tracked from the first frame to the last.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the video and the figures")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--size", default="1280x720", help="width x height (default: 1280x720)")
    parser.add_argument("--config", default="nano_v2")
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--archive_mb", type=float, help="as of the command")
    parser.add_argument("--track", type=int, help="frames to track (default: all)")
    parser.add_argument("--asked", type=int, default=40, help="random frames that are asked for (default: 40)")
    parser.add_argument("--browser", action="store_true", help="also measure in Chromium")
    return parser.parse_args()


def draw_video(path: Path, frames: int, width: int, height: int) -> None:
    """A textured ground that slides, and discs that move on it; mp4v, 25 frames a second."""
    generator = np.random.default_rng(0)
    ground = cv2.resize(generator.integers(40, 200, (height // 8, width // 4, 3), np.uint8), (2 * width, height))
    part = path.with_suffix(".part.mp4")
    writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (width, height))
    for index in range(frames):
        shift = index % width
        image = np.ascontiguousarray(ground[:, shift : shift + width])
        for number in range(4):
            cv2.circle(
                image, centre(index, number, width, height), height // 9, (40 + 60 * number, 90, 250 - 60 * number), -1
            )
        writer.write(image)
    writer.release()
    part.rename(path)


def centre(index: int, number: int, width: int, height: int) -> tuple[int, int]:
    """Where disc ``number`` is on a frame."""
    angle = index / 90 + number * 1.57
    return int(width * (0.5 + 0.33 * np.cos(angle))), int(height * (0.5 + 0.3 * np.sin(angle)))


class Server:
    """`sam2-mem studio` on a video."""

    def __init__(self, video: Path, config: str, archive_mb: float | None) -> None:
        words = ["studio", "--port", "0", "--no_browser", "--config", config, "--device", "cpu", "--threads", "1"]
        words += [] if archive_mb is None else ["--archive_mb", str(archive_mb)]
        command = [sys.executable, "-m", "sam2_mem", *words, str(video), "--folder", str(video.parent)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]
        self.ask("api/start")

    def ask(self, path: str, /, **body: Any) -> bytes:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.address + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.read()

    def state(self, key: str) -> dict[str, Any]:
        return json.loads(self.ask(f"api/sessions/{key}/changes?since=1000000000&wait=0.5"))["state"]

    def megabytes(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1000


def seconds(action: Any) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def measure_frames(server: Server, video: Path, asked: int) -> tuple[str, dict[str, float]]:
    """The id of the session, and seconds: to the first frame, until all are indexed, to random ones."""
    begun = time.perf_counter()
    key = json.loads(server.ask("api/sessions", path=video.name))["key"]
    server.ask(f"api/sessions/{key}/frame/0?width=1280")
    figures = {"first": time.perf_counter() - begun}
    while not (state := server.state(key))["exact"]:
        time.sleep(0.2)
    figures["indexed"] = time.perf_counter() - begun
    generator = random.Random(0)
    wanted = [generator.randrange(state["frames"]) for _ in range(asked)]
    times = [seconds(lambda: server.ask(f"api/sessions/{key}/frame/{index}?width=1280")) for index in wanted]
    figures |= {"random": statistics.median(times), "random_most": max(times)}
    return key, figures


def measure_browser(server: Server) -> dict[str, float]:
    """Seconds in Chromium: from the address to the picture, from a click in the timeline to the picture, with masks where frames
    have been tracked."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1440, "height": 900})
        shown = "body[data-shown='{}']"
        figures = {"page": seconds(lambda: (page.goto(server.address), page.wait_for_selector(shown.format(0))))}
        page.wait_for_timeout(3000)  # thumbnails
        box = page.locator("#timeline").bounding_box()
        assert box is not None
        times = []
        for number in range(12):
            x = 96 + (0.05 + 0.07 * number) * (box["width"] - 96)
            before = page.get_attribute("body", "data-shown")
            begun = time.perf_counter()
            page.mouse.click(box["x"] + x, box["y"] + 30)
            page.wait_for_selector(f"body:not([data-shown='{before}'])")
            times.append(time.perf_counter() - begun)
            page.wait_for_timeout(500)
        chromium.close()
    return figures | {"scrub": statistics.median(times), "scrub_most": max(times)}


def measure_tracking(server: Server, key: str, args: argparse.Namespace, size: tuple[int, int]) -> list[list[float]]:
    """Rows of frames tracked, seconds, and MB of the server."""
    for number in range(args.objects):
        x, y = centre(0, number, *size)
        r = size[1] // 9
        prompt = {"kind": "prompt", "frame": 0, "obj_id": number + 1, "box": [x - r, y - r, x + r, y + r]}
        server.ask(f"api/sessions/{key}/step", **prompt)
    begun, rows = time.perf_counter(), [[0.0, 0.0, server.megabytes()]]
    count = args.track or args.frames
    server.ask(f"api/sessions/{key}/track", frame=0, max_frames=count - 1)
    every = max(1, count // 10)
    while (job := server.state(key)["job"]) is not None:
        if job["done"] >= every * len(rows):
            rows.append([job["done"], time.perf_counter() - begun, server.megabytes()])
            print(f"  {rows[-1][0]} frames, {rows[-1][1]:.0f} s, {rows[-1][2]:.0f} MB", file=sys.stderr, flush=True)
        time.sleep(0.05)
    return [*rows, [float(count), time.perf_counter() - begun, server.megabytes()]]


def main() -> None:
    args = parse_arguments()
    width, height = (int(side) for side in args.size.split("x"))
    args.out.mkdir(parents=True, exist_ok=True)
    video = args.out / f"long_{args.frames}_{args.size}.mp4"
    if not video.exists():
        draw_video(video, args.frames, width, height)
    server = Server(video, args.config, args.archive_mb)
    try:
        key, figures = measure_frames(server, video, args.asked)
        if args.browser:
            figures |= measure_browser(server)
        rows = measure_tracking(server, key, args, (width, height))
        if args.browser:
            figures |= {f"{name}, tracked": value for name, value in measure_browser(server).items()}
    finally:
        server.process.kill()
    print(f"{args.frames} frames of {args.size}, {args.config}, {args.objects} objects\n\n| | s |\n|---|---|")
    print("".join(f"| {name} | {value:.3f} |\n" for name, value in figures.items()))
    print("| frames tracked | s | MB |\n|---|---|---|")
    print("".join(f"| {done:.0f} | {spent:.0f} | {megabytes:.0f} |\n" for done, spent, megabytes in rows))
    (args.out / "figures.json").write_text(json.dumps({"figures": figures, "tracking": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
