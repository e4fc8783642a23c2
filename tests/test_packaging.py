"""What is installed, what imports what, and what the scripts beside the library do."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from make_golden_keys import CONFIGS, golden_path

import sam2_mem
from sam2_mem.checkpoint import OFFICIAL_MODELS, sha256_of
from sam2_mem.cli.command import COMMANDS
from sam2_mem.video import read_mask_png

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [str(part) for part in command]
    return subprocess.run(words, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300)


# Importing the package


def loaded_after(statement: str) -> list[str]:
    """Which of the heavy packages a fresh interpreter holds after a statement."""
    heavy = ("torch", "hydra", "omegaconf", "numpy", "cv2")
    code = f"{statement}\nimport sys\nprint(*[name for name in {heavy} if name in sys.modules])"
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_import_starts_neither_torch_nor_hydra() -> None:
    assert loaded_after("import sam2_mem; sam2_mem.__version__, dir(sam2_mem)") == []


def test_that_the_heavy_packages_would_be_noticed() -> None:
    assert {"torch", "hydra"} <= set(loaded_after("import hydra, torch"))


def test_procedural_video_starts_neither_torch_nor_hydra() -> None:
    assert loaded_after("import sam2_mem.synthetic.demo, sam2_mem.synthetic.export") == ["numpy", "cv2"]


def test_public_names() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", sam2_mem.__version__)
    missing = [name for name in sam2_mem.__all__ if not hasattr(sam2_mem, name)]
    assert missing == []
    assert set(sam2_mem.__all__) <= set(dir(sam2_mem))
    with pytest.raises(AttributeError, match="no attribute 'build_sam3'; it offers .*build_sam2"):
        _ = sam2_mem.build_sam3


# The order of dependencies. A part may import itself and the parts named here, nothing else of this project.

PARTS = (
    "files",
    "claims",
    "types",
    "prompts",
    "config",
    "checkpoint",
    "checkpoint_names",
    "published",
    "model",
    "memory",
    "video",
    "tracking",
    "synthetic",
    "evaluation",
    "training",
    "build_sam",
    "onnx",
    "studio",
    "cli",
    "sam2_image_predictor",
    "sam2_video_predictor",
    "automatic_mask_generator",
    "utils",
)
"""The last four are import paths of SAM 2 for what lies elsewhere here."""
LIBRARY = frozenset({"types", "prompts", "model", "memory", "video", "tracking"})
MAY_IMPORT = {
    "": frozenset({"_moved"}),
    "_moved": frozenset(),
    "files": frozenset(),
    "claims": frozenset(),
    "types": frozenset(),
    "prompts": frozenset(),
    "config": frozenset(),
    "checkpoint": frozenset({"checkpoint_names"}),
    "checkpoint_names": frozenset(),
    "published": frozenset(),
    "model": frozenset({"types"}),
    "memory": frozenset({"types", "model"}),
    "video": frozenset({"types", "model"}),
    "tracking": LIBRARY,
    "synthetic": frozenset(),
    "evaluation": LIBRARY | {"synthetic"},
    "training": LIBRARY | {"checkpoint", "synthetic"},
    "build_sam": LIBRARY | {"checkpoint", "config"},
    "onnx": LIBRARY | {"build_sam", "checkpoint", "config"},
    "studio": LIBRARY | {"build_sam", "checkpoint", "config", "evaluation"},
    "cli": frozenset(PARTS[:-4]),
    **{name: frozenset({"tracking"}) for name in PARTS[-4:]},
    "__main__": frozenset({"cli"}),
    "tools": frozenset({"", *PARTS}),
}
# SAM 2's predictors have a class method `from_pretrained`, which has to build a model: inside it, and only there,
# the tracking part may reach up.
REACHES_UP = ("tracking", "from_pretrained", "build_sam")
SYNTHETIC_NEEDS = sys.stdlib_module_names | {"numpy", "cv2", "PIL"}
MAY_COMPOSE_CONFIGS = ("config", "build_sam", "onnx", "cli", "tools")
# Every part may say where its earlier names are now, write files that are complete or not there, and share work.
EVERYWHERE = ("_moved", "files", "claims")


def python_files(root: Path) -> list[Path]:
    return sorted([*(root / "sam2_mem").rglob("*.py"), *(root / "tools").rglob("*.py")])


def module_name(root: Path, file: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The part that a module belongs to; the package itself is the part ''."""
    names = module.split(".")
    if names[0] == "tools":
        return "tools"
    return names[1] if len(names) > 1 else ""


def absolute(node: ast.ImportFrom, importer: str, is_package: bool) -> str:
    """The full name of the module in `from X import ...`, with leading dots resolved."""
    if not node.level:
        return node.module or ""
    above = importer.split(".")[: -node.level + is_package or None]
    return ".".join([*above, *([node.module] if node.module else [])])


def imports(node: ast.AST, importer: str, is_package: bool, function: str = "") -> Iterator[tuple[str, str]]:
    """Every (imported name, function it is imported in) below a node. `from a import b` gives 'a.b'."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            origin = absolute(child, importer, is_package)
            yield from ((f"{origin}.{alias.name}", function) for alias in child.names)
        inside = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        yield from imports(child, importer, is_package, inside)


def own_part(name: str) -> str | None:
    """The part of this project that an imported name belongs to, None for other packages."""
    names = name.split(".")
    if names[0] == "tools":
        return "tools"
    if names[0] != "sam2_mem" or name == "sam2_mem.__version__":
        return None
    public = sam2_mem._HOME_OF.get(names[1]) if len(names) == 2 else None
    second = (public or name).split(".")[1:2]
    return second[0] if second and second[0] in (*PARTS, *EVERYWHERE) else ""


def policy_of(module: str) -> str | None:
    match = re.match(r"sam2_mem\.memory\.policies\.(\w+)", module)
    return match[1] if match else None


def violation(importer: str, name: str, function: str) -> str | None:
    """What is wrong with one import, None when nothing is."""
    here, there, package = part_of(importer), own_part(name), name.split(".")[0]
    if package == "sam2":
        return "the reference package belongs in tests only"
    if package in ("hydra", "omegaconf") and here not in MAY_COMPOSE_CONFIGS:
        return "only config.py and build_sam.py compose configurations"
    if here == "synthetic" and there is None and package not in SYNTHETIC_NEEDS:
        return "procedural video needs NumPy, OpenCV and Pillow only"
    if policy_of(importer) and policy_of(name) and policy_of(importer) != policy_of(name):
        return "one policy imports another"
    if (
        there is None
        or there in EVERYWHERE
        or there == here
        or there in MAY_IMPORT[here]
        or (here, function, there) == REACHES_UP
    ):
        return None
    return f"{here or 'the package itself'} may not import {there or 'the package itself'}"


def violations(root: Path) -> list[str]:
    found = []
    for file in python_files(root):
        importer = module_name(root, file)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for name, function in imports(tree, importer, file.name == "__init__.py"):
            wrong = violation(importer, name, function)
            if wrong:
                found.append(f"{importer} imports {name}: {wrong}")
    return found


def test_dependency_order() -> None:
    assert {part_of(module_name(ROOT, file)) for file in python_files(ROOT)} <= MAY_IMPORT.keys()
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "statement", "reason"),
    [
        ("sam2_mem/types.py", "from sam2_mem.model.rope import rotate", "types may not import model"),
        ("sam2_mem/model/rope.py", "import sam2_mem.memory.tokens", "model may not import memory"),
        ("sam2_mem/model/rope.py", "from sam2_mem import checkpoint", "model may not import checkpoint"),
        ("sam2_mem/memory/reading.py", "from sam2_mem.tracking import tracker", "memory may not import tracking"),
        ("sam2_mem/memory/reading.py", "from ..tracking.tracker import Tracker", "memory may not import tracking"),
        ("sam2_mem/memory/__init__.py", "from ..tracking import tracker", "memory may not import tracking"),
        ("sam2_mem/memory/reading.py", "def f():\n    from ..video import folder", "memory may not import video"),
        ("sam2_mem/video/folder.py", "from sam2_mem.memory import tokens", "video may not import memory"),
        ("sam2_mem/tracking/tracker.py", "from sam2_mem.build_sam import build_sam2", "tracking may not import"),
        ("sam2_mem/tracking/tracker.py", "from sam2_mem import build_sam2", "tracking may not import build_sam"),
        ("sam2_mem/tracking/tracker.py", "from sam2_mem.evaluation import metrics", "tracking may not import"),
        ("sam2_mem/evaluation/metrics.py", "from sam2_mem.training import loop", "may not import training"),
        ("sam2_mem/evaluation/metrics.py", "from sam2_mem.training.clips import x", "may not import training"),
        ("sam2_mem/evaluation/synthetic.py", "from sam2_mem.training import loop", "may not import training"),
        ("sam2_mem/synthetic/scenes.py", "from sam2_mem.video import open_video", "synthetic may not import video"),
        ("sam2_mem/synthetic/export.py", "from ..training import clips", "synthetic may not import training"),
        ("sam2_mem/synthetic/shapes.py", "from torch import Tensor", "NumPy, OpenCV and Pillow only"),
        ("sam2_mem/build_sam.py", "import tools.train", "build_sam may not import tools"),
        ("sam2_mem/__init__.py", "from .build_sam import build_sam2", "the package itself may not import build_sam"),
        ("sam2_mem/memory/policies/rmem.py", "from .fifo import Fifo", "one policy imports another"),
        ("sam2_mem/memory/policies/rmem.py", "from sam2_mem.memory.policies import fifo", "one policy imports another"),
        ("sam2_mem/tracking/tracker.py", "from omegaconf import DictConfig", "only config.py and build_sam.py compose"),
        ("sam2_mem/model/sam2.py", "def f():\n    import hydra.utils", "only config.py and build_sam.py compose"),
        ("tools/train.py", "from sam2.build_sam import build_sam2", "the reference package belongs in tests only"),
    ],
)
def test_a_forbidden_import_is_noticed(tmp_path: Path, file: str, statement: str, reason: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(statement)
    found = violations(tmp_path)
    assert len(found) == 1 and reason in found[0]


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("sam2_mem/memory/policies/rmem.py", "from ..policy import MemoryPolicy\nfrom sam2_mem.memory import tokens"),
        ("sam2_mem/memory/__init__.py", "from .policy import MemoryPolicy\nimport sam2_mem.types"),
        ("sam2_mem/tracking/tracker.py", "from sam2_mem.memory.policy import MemoryPolicy\nfrom . import track"),
        ("sam2_mem/synthetic/export.py", "import math\nimport cv2\nfrom PIL import Image\nfrom .scenes import Level"),
        ("sam2_mem/build_sam.py", "import hydra, omegaconf\nfrom sam2_mem import checkpoint, __version__"),
        ("sam2_mem/tracking/p.py", "class P:\n    def from_pretrained(c):\n        from sam2_mem import build_sam2_hf"),
        ("tools/train.py", "import hydra\nimport sam2_mem\nfrom sam2_mem.training import loop"),
    ],
)
def test_an_allowed_import_is_not_reported(tmp_path: Path, file: str, statement: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(statement)
    assert violations(tmp_path) == []


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout that also holds files which must stay out, and one that must not."""
    source = tmp_path_factory.mktemp("source")
    for name in ("sam2_mem", "configs", "checkpoints"):
        ignore = shutil.ignore_patterns("__pycache__", "*.pt")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
    for name in ("sam2.1_hiera_tiny.pt", "someone_elses.safetensors"):
        (source / "checkpoints" / name).write_bytes(b"weights")
    out = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    result = run(sys.executable, "-m", "pip", "wheel", *options, "-w", out, source, cwd=out)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(out.glob("sam2_mem-*.whl"))


OURS = [f"sam2_mem_nano_v2{kind}.safetensors" for kind in ("", "_temporal")]


def test_wheel_carries_configs_code_and_the_small_models(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"sam2_mem/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "configs").rglob("*.yaml")}
    code = {file.relative_to(ROOT).as_posix() for file in (ROOT / "sam2_mem").rglob("*.py")}
    assert {f"sam2_mem/{config}" for config in CONFIGS} <= configs
    beside = {*(f"sam2_mem/checkpoints/{name}" for name in OURS), "sam2_mem/py.typed"}
    data = {file.relative_to(ROOT).as_posix() for file in (ROOT / "sam2_mem").rglob("*.[!p]*") if file.is_file()}
    assert {"sam2_mem/evaluation/datasets.yaml", "sam2_mem/evaluation/templates/comparison.html"} <= data
    assert {f"sam2_mem/studio/static/{name}" for name in ("index.html", "app.js", "studio.css")} <= data
    assert configs | code | data | beside <= packed


def test_wheel_carries_no_official_weights_and_nothing_beside_the_package(wheel: Path) -> None:
    packed = zipfile.ZipFile(wheel).namelist()
    weights = [name for name in packed if name.endswith((".pt", ".safetensors"))]
    assert sorted(weights) == [f"sam2_mem/checkpoints/{name}" for name in OURS]
    tops = {name.split("/")[0] for name in packed}
    assert tops == {"sam2_mem", f"sam2_mem-{sam2_mem.__version__}.dist-info"}


def test_wheel_brings_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        [name] = [name for name in packed.namelist() if name.endswith("entry_points.txt")]
        assert "sam2-mem = sam2_mem.cli.command:main" in packed.read(name).decode()


def test_wheel_names_the_pythons_that_the_workflow_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        [name] = [name for name in packed.namelist() if name.endswith("dist-info/METADATA")]
        text = packed.read(name).decode()
    versions = re.findall(r"^Classifier: Programming Language :: Python :: (3\.\d+)$", text, re.MULTILINE)
    tested = re.search(r"python-version: (\[.+\])", (ROOT / ".github/workflows/tests.yml").read_text())
    assert tested is not None and json.loads(tested[1]) == versions
    assert f"\nRequires-Python: >={versions[0]}\n" in text


@dataclass(frozen=True)
class Elsewhere:
    """An environment of its own in a folder without a checkout. What the package requires comes from this environment."""

    folder: Path

    @property
    def site(self) -> Path:
        return next(self.folder.glob("env/lib/python*/site-packages"))

    def run(self, *command: str | Path) -> str:
        """Output of a program of the environment."""
        name, *words = command
        result = run(self.folder / "env/bin" / name, *words, cwd=self.folder, PYTHONPATH="")
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """Not yet with the package."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", symlinks=True)
    environment = Elsewhere(folder)
    required = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    (environment.site / "required.pth").write_text("\n".join(required))
    return environment


def install(wheel: Path, elsewhere: Elsewhere) -> None:
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--no-compile", "--force-reinstall")
    python = elsewhere.folder / "env/bin/python"
    result = run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=elsewhere.folder)
    assert result.returncode == 0, result.stdout + result.stderr


HELP = """
from sam2_mem.cli.command import COMMANDS, main
for name in COMMANDS:
    print("----", flush=True)
    try:
        main([name, "--help"])
    except SystemExit as ended:
        assert ended.code == 0, name
"""


@pytest.mark.full
@pytest.mark.extended
def test_the_wheel_alone_segments(wheel: Path, elsewhere: Elsewhere) -> None:
    where = "import importlib.util; print(importlib.util.find_spec('sam2_mem'))"
    assert elsewhere.run("python", "-c", where) == "None\n", "a checkout or an installed package would be used instead"
    install(wheel, elsewhere)
    assert f"origin='{elsewhere.site}/sam2_mem/__init__.py'" in elsewhere.run("python", "-c", where)
    assert elsewhere.run("sam2-mem", "--version").strip() == sam2_mem.__version__
    assert "usage: sam2-mem COMMAND" in elsewhere.run("sam2-mem", "--help")
    helps = elsewhere.run("python", "-c", HELP).split("----\n")[1:]
    assert [text.split()[:3] for text in helps] == [["usage:", "sam2-mem", name] for name in COMMANDS]
    elsewhere.run("sam2-mem", "synthetic", "demo", "--out", "videos")
    video = ("--video", "videos/demo", "--box", "16,102,86,158", "--max_frames", "3")
    said = elsewhere.run("sam2-mem", "segment", "--sam2_cfg", "nano_v2", *video, "--device", "cpu", "--output", "out")
    assert "1 of 1 videos are complete" in said
    masks = sorted(elsewhere.folder.glob("out/demo/*.png"))
    assert len(masks) == 3 and all(read_mask_png(mask).ids.any() for mask in masks)
    assert (elsewhere.folder / "out/demo_overlay.mp4").is_file()
    beside = {path.name for path in elsewhere.folder.iterdir()}
    assert beside == {"env", "videos", "out"}, "nothing is written anywhere else"


def test_official_weights_cannot_be_committed() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout of the repository")
    names = [
        "checkpoints/sam2.1_hiera_tiny.pt",
        "checkpoints/x.safetensors",
        "checkpoints/sam2_mem_nano_v2.safetensors",
    ]
    ignored = run("git", "-c", "safe.directory=*", "check-ignore", "--no-index", *names).stdout.split()
    assert ignored == names[:2]


# checkpoints/download_ckpts.sh

SCRIPT = ROOT / "checkpoints" / "download_ckpts.sh"


def listed(*arguments: str) -> list[list[str]]:
    result = run("bash", SCRIPT, "--list", *arguments)
    assert result.returncode == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()]


def test_script_names_the_files_that_the_library_knows() -> None:
    assert {line[0] for line in listed("all")} == {model.filename for model in OFFICIAL_MODELS.values()}
    for name, _, sha256, url in listed("all"):
        folder = "092824" if name.startswith("sam2.1") else "072824"
        assert url == f"https://dl.fbaipublicfiles.com/segment_anything_2/{folder}/{name}"
        assert re.fullmatch(r"[0-9a-f]{64}", sha256)


def test_script_byte_counts_fit_the_models() -> None:
    """A float32 file is four bytes a value plus at most 0.2 % of headers."""
    counts = {line[0]: int(line[1]) for line in listed("all")}
    for config, filename in OFFICIAL_MODELS.values():
        shapes = json.loads(golden_path(config).read_text(encoding="utf-8")).values()
        assert 1 < counts[filename] / (4 * sum(math.prod(shape) for shape in shapes)) < 1.002


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], [f"sam2.1_hiera_{size}.pt" for size in ("tiny", "small", "base_plus", "large")]),
        (["2.0", "small", "large"], ["sam2_hiera_small.pt", "sam2_hiera_large.pt"]),
        (["tiny", "all"], ["sam2.1_hiera_tiny.pt", "sam2_hiera_tiny.pt"]),
    ],
)
def test_script_selects(arguments: list[str], names: list[str]) -> None:
    assert [line[0] for line in listed(*arguments)] == names


def test_script_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = run("bash", SCRIPT, "2.0", "--dry-run", "--dir", tmp_path / "new")
    assert result.returncode == 0 and result.stdout.count("would download") == 4
    assert not (tmp_path / "new").exists()


def test_script_refuses_an_unknown_argument() -> None:
    result = run("bash", SCRIPT, "huge")
    assert result.returncode == 1 and "got 'huge'" in result.stderr


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """A local server with one small file in the place of the tiny model; yields its address."""
    folder = tmp_path / "www" / "092824"
    folder.mkdir(parents=True)
    (folder / "sam2.1_hiera_tiny.pt").write_bytes(b"weights" * 1000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path / "www")))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def script_expecting(content: bytes, folder: Path) -> Path:
    """A copy of the script whose table describes the given content as the tiny model."""
    tiny = listed("tiny")[0]
    text = SCRIPT.read_text(encoding="utf-8")
    text = text.replace(tiny[1], str(len(content))).replace(tiny[2], hashlib.sha256(content).hexdigest())
    (folder / "script.sh").write_text(text, encoding="utf-8")
    return folder / "script.sh"


needs_downloader = pytest.mark.skipif(
    not (shutil.which("curl") or shutil.which("wget")), reason="needs curl or wget, of which there is neither"
)


@needs_downloader
def test_script_keeps_a_file_that_passes_its_checks(tmp_path: Path, mirror: str) -> None:
    content = b"weights" * 1000
    script = script_expecting(content, tmp_path)
    out = tmp_path / "out"
    result = run("bash", script, "tiny", "--dir", out, SAM2_CKPT_URL=mirror)
    assert result.returncode == 0, result.stderr
    assert [file.name for file in out.iterdir()] == ["sam2.1_hiera_tiny.pt"]
    assert sha256_of(out / "sam2.1_hiera_tiny.pt") == hashlib.sha256(content).hexdigest()
    again = run("bash", script, "tiny", "--dir", out, SAM2_CKPT_URL="http://127.0.0.1:9")
    assert again.returncode == 0 and "already here" in again.stdout


@needs_downloader
def test_script_finishes_a_complete_part_without_the_network(tmp_path: Path) -> None:
    content = b"weights" * 1000
    (tmp_path / "sam2.1_hiera_tiny.pt.part").write_bytes(content)
    script = script_expecting(content, tmp_path)
    result = run("bash", script, "tiny", "--dir", tmp_path, SAM2_CKPT_URL="http://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "sam2.1_hiera_tiny.pt").read_bytes() == content


@needs_downloader
@pytest.mark.parametrize(
    ("content", "wrong"),
    [(b"x" * 5000, "expected 5000 bytes, got 7000"), (b"WEIGHTS" * 1000, "expected SHA-256 ")],
)
def test_script_removes_a_file_that_fails(tmp_path: Path, mirror: str, content: bytes, wrong: str) -> None:
    script = script_expecting(content, tmp_path)
    result = run("bash", script, "tiny", "--dir", tmp_path / "out", SAM2_CKPT_URL=mirror)
    assert result.returncode == 1 and wrong in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_script_does_not_trust_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "sam2.1_hiera_tiny.pt").write_bytes(b"something else")
    result = run("bash", SCRIPT, "tiny", "--dir", tmp_path)
    assert result.returncode == 1 and "is not the official file (expected 156008466 bytes, got 14)" in result.stderr
    assert (tmp_path / "sam2.1_hiera_tiny.pt").exists()


@pytest.mark.parametrize("script", [".ci/run", "checkpoints/download_ckpts.sh"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    result = run("bash", "-n", script)
    assert result.returncode == 0, result.stderr
