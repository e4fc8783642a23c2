"""The command ``sam2-mem studio``: builds the network, starts the server, says where the page is."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import webbrowser
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.cli.arguments import add_machine_arguments, command_parser, exit_status, set_threads, user_path
from sam2_mem.config import compose_video
from sam2_mem.synthetic.demo import demo_clip
from sam2_mem.synthetic.export import write_demo

USAGE = """A page on this machine: click on objects, track them, see what memory reads, change the policy, export.

    sam2-mem studio --demo
    sam2-mem studio clip.mp4
    sam2-mem studio frames/ --policy dam4sam
    sam2-mem studio clip.mp4 --config sam2.1_hiera_t --checkpoint checkpoints/sam2.1_hiera_tiny.pt

Without --checkpoint it works with nano_v2, the small model that comes with the package: rough outlines, enough to try
everything. The address that is printed holds a secret; who lacks it gets nothing. Files are read and written inside
the working folder only. docs/studio.md has pictures and keys. It needs: pip install "sam2_mem[studio]"
"""
SMALL_MODEL = (
    "The small model nano_v2 is at work, since no checkpoint was named: clicks and boxes work, outlines are rough. For an "
    "official one: --config sam2.1_hiera_t --checkpoint FILE"
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(USAGE)
    parser.add_argument("video", nargs="?", help="a video file, a folder of images, or a saved session")
    parser.add_argument("--demo", action="store_true", help="write a short clip into the working folder, and open it")
    parser.add_argument("--folder", type=user_path, help="working folder (default: this one, or that of the video)")
    parser.add_argument("--config", default="nano_v2", help="of the network (default: nano_v2)")
    parser.add_argument("--checkpoint", help="weights; random for random ones (default: those of the config)")
    parser.add_argument("--policy", default="fifo", help="memory policy to begin with (default: fifo)")
    parser.add_argument(
        "--archive_mb",
        type=float,
        help="memory of past frames that a session keeps for corrections that come back to them, in MiB (default: that of 4096 "
        "frames of an object, at most 256)",
    )
    parser.add_argument("--port", type=int, default=8765, help="0 for any that is free (default: 8765)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--no_browser", action="store_true", help="do not open the page")
    add_machine_arguments(parser, device="auto")
    args = parser.parse_args(argv)
    if args.demo and args.video:
        parser.error("give a video or --demo, not both")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """0: ended by the user; 2: the arguments cannot be used, or the studio's packages are not installed."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    args = parse_arguments(argv)
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        print(f'error: the studio needs {" and ".join(missing)}: pip install "sam2_mem[studio]"', file=sys.stderr)
        return 2
    return exit_status(lambda: serve(args))


def serve(args: argparse.Namespace) -> int:
    """Run the server until Ctrl-C."""
    import uvicorn

    from sam2_mem.studio.security import new_token
    from sam2_mem.studio.server import Studio, studio_app

    set_threads(args.threads)
    folder, video = working_folder(args.folder, args.video, args.demo)
    listening = socket.socket(socket.AF_INET6 if ":" in args.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((args.host, args.port))
    except OSError as error:
        raise OSError(f"cannot listen on port {args.port} ({error.strerror}); try --port 0") from error
    check_weights(args.config, args.checkpoint)
    predictor = build_sam2_video_predictor(args.config, args.checkpoint, device=args.device, memory_policy=args.policy)
    archive_bytes = None if args.archive_mb is None else int(args.archive_mb * 2**20)
    studio = Studio(
        predictor,
        folder,
        config=args.config,
        checkpoint=args.checkpoint,
        policy=args.policy,
        archive_bytes=archive_bytes,
    )
    studio.first_video = video
    if args.checkpoint is None:
        studio.note = SMALL_MODEL if Path(args.config).stem == "nano_v2" else ""
    port, token = listening.getsockname()[1], new_token()
    names = host_names(args.host)
    hosts = [f"{f'[{name}]' if ':' in name else name}:{port}" for name in names]
    address = f"http://{hosts[0]}/{token}/"
    listening.listen()  # from here on requests wait for the server, so that the page may be opened
    announce(address, folder, studio.note, args.host)
    if not args.no_browser:
        webbrowser.open(address)
    settings = uvicorn.Config(studio_app(studio, token, hosts), log_level="warning", access_log=False, lifespan="off")

    class Server(uvicorn.Server):
        def handle_exit(self, *arguments: Any) -> None:
            """Before it ends, pages that wait for changes are answered."""
            super().handle_exit(*arguments)
            for session in studio.sessions.values():
                session.changes.note()

    try:
        Server(settings).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        studio.close()
    return 0


def host_names(host: str) -> list[str]:
    """The names under which a server that listens on ``host`` may be asked; that of its page first."""
    if host in LOOPBACK:
        return ["localhost", "127.0.0.1", "::1"]
    own = socket.gethostname()
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(own, None)})
    except OSError:
        addresses = []
    return [own if host in ("0.0.0.0", "::") else host, own, *addresses, *LOOPBACK]


def working_folder(folder: Path | None, video: str | None, demo: bool) -> tuple[Path, str | None]:
    """The working folder, and the path in it of what is opened first."""
    if demo:
        folder = Path.cwd() if folder is None else folder
        root = folder / "sam2_mem_demo"
        if not (root / "demo").is_dir():
            write_demo(demo_clip(), root)
        return folder, "sam2_mem_demo/demo"
    if video is None:
        return Path.cwd() if folder is None else folder, None
    path = Path(video).expanduser().resolve()
    if not path.exists():
        raise FileNotFoundError(f"no such video: '{video}'; expected a video file or a folder of images")
    if folder is None:
        folder = Path.cwd() if path.is_relative_to(Path.cwd()) else path.parent
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"expected a video inside the working folder '{folder}', got '{video}'; change --folder")
    return folder, path.relative_to(folder.resolve()).as_posix()


def check_weights(config: str, checkpoint: str | None) -> None:
    """ValueError for a network that would work with random weights that nobody asked for."""
    if checkpoint is None and compose_video(config).get("checkpoint") is None:
        raise ValueError(
            f"expected --checkpoint with --config {config}, which has no weights of its own; checkpoints/download_ckpts.sh "
            "fetches the official ones, --config nano_v2 brings its own, --checkpoint random is for trials"
        )


def announce(address: str, folder: Path, note: str, host: str) -> None:
    print(f"sam2_mem studio: {address}\nworking folder: {folder.resolve()}")
    if note:
        print(note)
    if host not in LOOPBACK:
        print(
            f"WARNING: it listens on {host}: whoever reaches this machine and has the address can use it, unencrypted"
        )
    print("Ctrl-C ends it.", flush=True)
