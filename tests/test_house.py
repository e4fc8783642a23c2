"""The house rules that a machine can check: docstrings, documents, workflows, pins, sizes and names."""

from __future__ import annotations

import ast
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from sam2_mem import _moved

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "sam2_mem"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(root: Path) -> dict[str, ast.Module]:
    """Syntax trees by the file's path from above ``root``."""
    files = sorted(root.rglob("*.py"))
    return {str(file.relative_to(root.parent)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


@pytest.fixture(scope="module")
def library() -> dict[str, ast.Module]:
    return parsed(LIBRARY)


# -- docstrings: one entry a line, names that exist -------------------------------------------------------------------

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")


class Section(NamedTuple):
    title: str
    entries: list[str]
    """Each entry with its continuation lines, joined by spaces."""


def sections(docstring: str) -> Iterator[Section]:
    """The Google-style sections of a cleaned docstring. An entry is indented by four, its further lines by more."""
    lines = docstring.splitlines()
    for start, line in enumerate(lines):
        if line.rstrip(":") not in SECTIONS or not line.endswith(":"):
            continue
        entries: list[str] = []
        for following in lines[start + 1 :]:
            if following and not following.startswith("    "):
                break
            if re.match(r" {4}\S", following):
                entries.append(following.strip())
            elif entries and following.strip():
                entries[-1] += " " + following.strip()
        yield Section(line.rstrip(":"), entries)


def parameters(function: Function) -> set[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [arg for arg in (arguments.vararg, arguments.kwarg) if arg is not None]
    return {arg.arg for arg in [*named, *starred]}


def base_names(node: ast.ClassDef) -> list[str]:
    bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in bases]


def fields(node: ast.ClassDef, classes: dict[str, list[ast.ClassDef]]) -> set[str]:
    """What a class docstring may list: annotated and assigned names, properties, what ``__init__`` takes; inherited ones too."""
    names: set[str] = set()
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            names.add(item.target.id)
        elif isinstance(item, ast.Assign):
            names |= {target.id for target in item.targets if isinstance(target, ast.Name)}
        elif isinstance(item, Function):
            names |= parameters(item) | assigned_to_self(item) if item.name == "__init__" else {item.name}
    above = [base for name in base_names(node) for base in classes.get(name, []) if base is not node]
    return names.union(*(fields(base, classes) for base in above))


def assigned_to_self(function: Function) -> set[str]:
    stored = (
        node for node in ast.walk(function) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    )
    return {node.attr for node in stored if isinstance(node.value, ast.Name) and node.value.id == "self"}


def number_of_results(function: Function) -> int:
    """The values in the annotated result: those of a tuple, of what an iterator yields, else one."""
    annotation = function.returns
    while isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in (
        "Iterator",
        "Generator",
        "Iterable",
    ):
        inner = annotation.slice
        annotation = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "tuple":
        return len(annotation.slice.elts) if isinstance(annotation.slice, ast.Tuple) else 1
    return 1


def faults(section: Section, names: set[str], results: int) -> Iterator[str]:
    if not section.entries:
        yield f"{section.title}: no entry indented by four"
    if section.title in ("Returns", "Yields"):
        if len(section.entries) > max(results, 1):
            yield f"{section.title}: {len(section.entries)} entries for {results} results; indent further lines of an entry"
        return
    for entry in section.entries:
        name = re.match(r"\*{0,2}([\w.]+):(?: |$)", entry)
        if name is None:
            yield f"{section.title}: expected 'name: text', got {entry[:40]!r}"
        elif section.title == "Raises":
            if not re.fullmatch(r"[\w.]*(Error|Exception|Warning|Interrupt|Iteration|Exit)", name[1]):
                yield f"Raises: {name[1]} is no exception"
        elif name[1] not in names:
            yield f"{section.title}: there is no {name[1]}"
        else:
            joined = [other for other in re.findall(r"[.,;] (\w+):(?= )", entry) if other in names]
            yield from (f"{section.title}: {other} needs a line of its own" for other in joined)


def docstring_faults(trees: dict[str, ast.Module]) -> list[str]:
    classes: dict[str, list[ast.ClassDef]] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)
    result = []
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | Function) and (text := ast.get_docstring(node)):
                is_class = isinstance(node, ast.ClassDef)
                names = fields(node, classes) if is_class else parameters(node)
                results = 1 if is_class else number_of_results(node)
                found = (fault for section in sections(text) for fault in faults(section, names, results))
                result += [f"{file}:{node.lineno} {node.name}: {fault}" for fault in found]
    return result


def test_docstring_sections(library: dict[str, ast.Module]) -> None:
    assert docstring_faults(library) == []


def sphinx_marks(text: str) -> list[str]:
    """Roles and literal blocks of reStructuredText, which the site shows as they are."""
    return re.findall(r":\w+:`[^`]*`|\w::$", text, re.MULTILINE)


def test_docstrings_are_markdown() -> None:
    marks = {file.name: sphinx_marks(file.read_text(encoding="utf-8")) for file in LIBRARY.rglob("*.py")}
    assert {name: found for name, found in marks.items() if found} == {}
    assert sphinx_marks("see :func:`f`, so::\n\n    code[::2]") == [":func:`f`", "o::"]


GOOD = '''
class Base:
    """A base.

    Attributes:
        size: how large.
    """
    size: int

class Derived(Base):
    """Derived.

    Attributes:
        size: from above.
        count: of things, in a text that
            goes on: with a colon.
    """
    count: int = 0

def f(a: int, *rest: int) -> tuple[int, str]:
    """Do.

    Args:
        a: a number.
        *rest: more of them.

    Returns:
        the number,
            on two lines.
        its text.

    Raises:
        ValueError: when it is negative.
    """
'''


def test_good_docstrings_pass() -> None:
    assert docstring_faults({"good.py": ast.parse(GOOD)}) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "a: a number.\n        *rest: more of them.",
            "a: a number. rest: more of them.",
            "rest needs a line of its own",
        ),
        ("a: a number.", "b: a number.", "there is no b"),
        ("a: a number.", "a, rest: numbers.", "expected 'name: text'"),
        ("size: from above.", "width: from above.", "there is no width"),
        ("size: from above.", "size: from above, count: of things.", "count needs a line of its own"),
        ("            on two lines.", "        on two lines.", "3 entries for 2 results"),
        ("ValueError: when", "Negative: when", "Negative is no exception"),
        ("        a: a number.\n        *rest: more of them.\n", "", "no entry indented by four"),
    ],
)
def test_a_bad_docstring_is_noticed(old: str, new: str, fault: str) -> None:
    assert GOOD.count(old) == 1
    found = docstring_faults({"bad.py": ast.parse(GOOD.replace(old, new))})
    assert len(found) == 1 and fault in found[0]


# -- the layout in docs/architecture.md -------------------------------------------------------------------------------

DRAWN_IN_FULL = (".", "model", "memory", "tracking")
"""Folders of the library all of whose modules the layout names."""


def layout_faults(page: str, modules: set[Path]) -> list[str]:
    """Modules that the layout names and the library lacks, and the other way round."""
    tree = re.search(r"```text\nsam2_mem/\n(.*?)^configs/", page, re.DOTALL | re.MULTILINE)
    assert tree, "the page has no layout"
    named = set(re.findall(r"(?<![\w/])\w+\.py\b", tree[1]))
    expected = {module.name for module in modules if str(module.parent) in DRAWN_IN_FULL}
    return sorted(named - {module.name for module in modules}) + sorted(expected - named)


def test_the_layout_is_that_of_the_library() -> None:
    modules = {path.relative_to(LIBRARY) for path in LIBRARY.rglob("[!_]*.py")}
    assert layout_faults((ROOT / "docs" / "architecture.md").read_text(), modules) == []


def test_a_wrong_layout_is_noticed() -> None:
    page = "```text\nsam2_mem/\n  files.py   gone.py\n  cli/\nconfigs/\n```"
    assert layout_faults(page, {Path("files.py"), Path("new.py"), Path("cli/vos.py")}) == ["gone.py", "new.py"]


# -- paths in documents -----------------------------------------------------------------------------------------------

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("checkpoints/*.md")]
PATH = re.compile(r"`((?:[\w.-]+/)+[\w.+-]+\.(?:py|md|yaml|sh|txt))`")


def missing_paths(page: str) -> list[str]:
    """Paths in backticks that begin in this repository, or in the library, and do not exist; code blocks are left out."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    paths = [
        (path, root) for path in PATH.findall(text) for root in (ROOT, LIBRARY) if (root / path.split("/")[0]).is_dir()
    ]
    return sorted({path for path, _ in paths} - {path for path, root in paths if (root / path).exists()})


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_paths_in_documents_exist(page: Path) -> None:
    assert missing_paths(page.read_text()) == []


def test_a_missing_path_is_noticed() -> None:
    page = "`model/sam2.py`, `model/gone.py`, `tests/model/`, `JPEGImages/480p/`\n```\n`model/example.py`\n```\n"
    assert missing_paths(page) == ["model/gone.py"]


# -- scripts ----------------------------------------------------------------------------------------------------------

SCRIPTS = [*ROOT.glob("tools/*"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("checkpoints/*.sh")]


def unrunnable_commands(page: str, root: Path = ROOT) -> list[str]:
    """Commands in code blocks that begin with a script of this repository that is missing or has no run bit."""
    code = re.compile(r"```[^\n]*\n(.*?)```|((?:^    [^\n]*\n)+)", re.DOTALL | re.MULTILINE)
    blocks = "\n".join("".join(found) for found in code.findall(page))
    scripts = re.findall(r"^\s*((?:tools|benchmarks|tests|checkpoints)/[\w/]+\.(?:py|sh))\b", blocks, re.MULTILINE)
    return sorted(script for script in set(scripts) if not os.access(root / script, os.X_OK))


def test_scripts_can_be_run() -> None:
    assert [str(path) for path in SCRIPTS if path.read_bytes().startswith(b"#!") and not os.access(path, os.X_OK)] == []
    assert len(SCRIPTS) > 8
    assert {page.name: found for page in PAGES if (found := unrunnable_commands(page.read_text()))} == {}


def test_a_command_that_cannot_be_run_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "a.py").write_text("#!")
    (tmp_path / "tools" / "b.py").write_text("#!")
    (tmp_path / "tools" / "b.py").chmod(0o755)
    page = "```bash\ntools/a.py x\ntools/b.py\n```\n\n    tools/gone.py y\n\ntools/text.py\n"
    assert unrunnable_commands(page, tmp_path) == ["tools/a.py", "tools/gone.py"]


# -- the pages of the API ---------------------------------------------------------------------------------------------


def modules(root: Path) -> set[str]:
    """Modules with something in them for a reader of the API; commands describe themselves by --help."""
    names = {".".join(file.relative_to(root.parent).with_suffix("").parts) for file in root.rglob("[!_]*.py")}
    return {name for name in names if not name.startswith("sam2_mem.cli.")}


def on_pages(pages: Path) -> list[str]:
    return sorted(re.findall(r"^::: (\S+)$", "\n".join(page.read_text() for page in pages.glob("*.md")), re.MULTILINE))


def test_every_module_has_a_place_on_the_api_pages() -> None:
    pages = on_pages(ROOT / "docs" / "api")
    packages = {name for name in pages if (ROOT / name.replace(".", "/")).is_dir()}
    assert [name for name in pages if name not in packages] == sorted(modules(LIBRARY))


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= set(re.findall(r"[\w/]+\.md", text))


# -- workflows, hooks, pins -------------------------------------------------------------------------------------------


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def make_targets(makefile: str) -> set[str]:
    return set(" ".join(re.findall(r"^([\w -]+):(?!=)", makefile, re.MULTILINE)).split())


def missing_targets(workflow: dict[str, Any], makefile: str) -> set[str]:
    """Targets of ``make`` that a workflow runs and the Makefile does not have."""
    commands = "\n".join(step["run"] for step in steps(workflow) if "run" in step)
    used = re.findall(r"^make ([\w-]+)", commands, re.MULTILINE)
    assert used, "no command of a workflow begins with make"
    return set(used) - make_targets(makefile)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_the_makefile_has(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert missing_targets(workflow, (ROOT / "Makefile").read_text()) == set()
    pins = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert [pin for pin in pins if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+", pin)] == []


def test_a_missing_target_is_noticed() -> None:
    workflow = {"jobs": {"a": {"steps": [{"run": "make test"}, {"run": "make tests"}]}}}
    assert missing_targets(workflow, "test test-all: x\n\ty\nVENV := z\n") == {"tests"}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (re.match(r"([\w.-]+)==([\w.]+)", line) for line in lines)
    return {normalized(pin[1]): pin[2] for pin in pins if pin}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_hooks_have_the_versions_of_the_constraints() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    ruff = next(repository for repository in repositories if "ruff" in repository["repo"])
    assert ruff["rev"] == f"v{constraints()['ruff']}"


def test_every_requirement_is_pinned() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text())
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    required = {
        normalized(match[1]) for text in strings if (match := re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=[\d.]+", text))
    }
    assert "torch" in required
    # Optional and of the user's own choice, so not among the versions that the tests are run with.
    assert required - constraints().keys() <= {"huggingface-hub"}


# -- the changelog ----------------------------------------------------------------------------------------------------


def untold_moves(text: str, moves: dict[str, str]) -> list[str]:
    """Rows that a table of moves lacks."""
    rows = [f"| `{old.replace(':', '.')}` | `{new.replace(':', '.')}` |" for old, new in sorted(moves.items())]
    return [row for row in rows if row not in text.splitlines()]


def test_the_changelog_lists_every_move() -> None:
    assert untold_moves((ROOT / "CHANGELOG.md").read_text(), _moved.MODULES | _moved.NAMES) == []


def test_an_untold_move_is_noticed() -> None:
    moves = {"a.b": "c.d", "a.b:X": "c.d:Y"}
    assert untold_moves("| `a.b` | `c.d` |", moves) == ["| `a.b.X` | `c.d.Y` |"]


# -- sizes and names --------------------------------------------------------------------------------------------------

VAGUE = frozenset(
    re.findall(
        r"\w+",
        """
    one other others mine theirs made found told given several seen which own most least here there now rest
    alone both each known wanted shown beside said asked left gone came went kept held near far whole apart
    lost looked third latest parts piece thing things many more some way place places where when who what how
    much heard news look looks glance moment plain sent taken put drop owned several again already good bad
    fits touched facts
        """,
    )
)
"""Names that say nothing of the value they are bound to."""


class House(NamedTuple):
    lines: int
    longest_function: tuple[int, str]
    p90: int
    largest_class: tuple[int, str]
    vague_percent: float
    classes_twice: list[str]


def length(function: Function) -> int:
    """Lines without the docstring."""
    first = function.body[0]
    is_docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def bindings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.arg) and node.arg not in ("self", "cls"):
        yield node.arg


BINDS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Name, ast.arg)


def measure(sources: dict[str, str], trees: dict[str, ast.Module]) -> House:
    nodes = [(file, node) for file, tree in trees.items() for node in ast.walk(tree) if isinstance(node, BINDS)]
    functions = [(length(node), f"{file} {node.name}") for file, node in nodes if isinstance(node, Function)]
    classes = [(file, node) for file, node in nodes if isinstance(node, ast.ClassDef)]
    methods = [(sum(isinstance(item, Function) for item in node.body), f"{file} {node.name}") for file, node in classes]
    names = [name.strip("_") for _, node in nodes for name in bindings(node)]
    vague = sum(name in VAGUE for name in names)
    repeated = Counter(node.name.strip("_") for _, node in classes)
    return House(
        lines=sum(text.count("\n") for text in sources.values()),
        longest_function=max(functions),
        p90=sorted(lines for lines, _ in functions)[len(functions) * 9 // 10],
        largest_class=max(methods),
        vague_percent=100 * vague / len(names),
        classes_twice=sorted(name for name, count in repeated.items() if count > 1),
    )


EXAMPLE = """
class A:
    def f(self, value):
        '''A docstring
        of two lines.'''
        found = value
        return found

    def g(self): ...

class _A: ...
"""


def test_measures_of_an_example() -> None:
    house = measure({"a.py": EXAMPLE}, {"a.py": ast.parse(EXAMPLE)})
    assert house[:2] == (EXAMPLE.count("\n"), (3, "a.py f"))
    assert house.largest_class == (2, "a.py A")
    assert house.vague_percent == 50
    assert house.classes_twice == ["A"]


def test_sizes_and_names_of_the_library(library: dict[str, ast.Module]) -> None:
    house = measure({file: (ROOT / file).read_text(encoding="utf-8") for file in library}, library)
    assert house.longest_function[0] <= 60, house.longest_function
    assert house.p90 <= 15
    assert house.largest_class[0] <= 20, house.largest_class
    assert house.vague_percent < 1.0
    assert house.classes_twice == []
    assert house.lines <= 48_200
