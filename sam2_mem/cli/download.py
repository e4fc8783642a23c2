"""Published weights of the SAM 2 family: into a folder, resumed, checked, and only then under their names.

    sam2-mem download                             # what there is
    sam2-mem download sam2.1_hiera_tiny           # into ./checkpoints
    sam2-mem download sam2.1_hiera_tiny edgetam --dir weights
    sam2-mem download yonigozlan/EdgeTAM-hf       # any video model of transformers on the Hugging Face Hub

Size and SHA-256 are checked where they are known. The licence of weights is that of their publisher.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from sam2_mem.checkpoint import HOW_TO_DOWNLOAD
from sam2_mem.cli.arguments import command_parser, exit_status, user_path
from sam2_mem.published import PublishedModel, download, published_model, published_models


def main(argv: Sequence[str] | None = None) -> int:
    """0: all are there; 1: one could not be fetched; 2: there is no such name."""
    parser = command_parser(__doc__ or "")
    parser.add_argument("names", nargs="*", help="names, files or ids on the Hub (default: list them)")
    parser.add_argument("--dir", type=user_path, default=Path("checkpoints"), help="where to (default: ./checkpoints)")
    parser.add_argument("--mirror", help="an address that holds the files, in place of their own")
    args = parser.parse_args(argv)
    if not args.names:
        print("\n".join(_line(model) for model in published_models().values()))
        return 0
    return exit_status(lambda: _download([published_model(name) for name in args.names], args.dir, args.mirror))


def _line(model: PublishedModel) -> str:
    return f"{model.name:28s} {_size(model):>19s}  {model.licence:11s} {model.url}"


def _size(model: PublishedModel) -> str:
    return "size not known" if model.bytes is None else f"{model.bytes:,} bytes"


def offer(path: Path) -> Path | None:
    """Ask whoever is at the terminal whether a published file that is missing is to be downloaded to its path, and do so.

    None where it is not a published one, nobody is there, or the answer is not yes. Errors are those of ``download``.
    """
    model = _published(path)
    if model is None or not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        return None
    print(f"download {model.name} ({_size(model)}) to {path}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        return None
    return download(model, path.parent, progress=_show)


def how_to_download(path: Path) -> str:
    """The command that brings a file to its path, if it is a published one."""
    model = _published(path)
    if model is None:
        return HOW_TO_DOWNLOAD
    return f"run `sam2-mem download {model.name} --dir {quote(str(path.parent))}` to download it ({_size(model)})"


def _published(path: Path) -> PublishedModel | None:
    return next((model for model in published_models().values() if model.filename == path.name), None)


def _download(models: Sequence[PublishedModel], folder: Path, mirror: str | None) -> int:
    failed = 0
    for model in models:
        try:
            path = download(model, folder, mirror=mirror, progress=_show)
        except (ValueError, OSError) as error:
            failed += 1
            print(f"error: {model.name}: {error}", file=sys.stderr)
        else:
            note = "" if model.sha256 else " (no SHA-256 of it is known, so it is not checked by that)"
            config = "" if model.config is None else f", config {Path(model.config).stem}"
            print(f"{path}{config}{note}")
    return 1 if failed else 0


def _show(count: int, total: int | None) -> None:
    if sys.stderr.isatty():
        share = "" if not total else f" of {total / 1e6:.0f}"
        print(f"\r{count / 1e6:.0f}{share} MB", end="\n" if count == total else "", file=sys.stderr, flush=True)
