"""Pages of the site that lie elsewhere in the repository; links between them and ``docs/`` are rewritten."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "checkpoints/nano_v2_model_card.md": "nano_v2_model_card.md",
}
"""File of the repository -> page of the site."""


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages, and the notebooks as files to download."""
    notebooks = {f"notebooks/{path.name}": f"notebooks/{path.name}" for path in ROOT.glob("notebooks/*.ipynb")}
    for source, target in (PAGES | notebooks).items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links as they must be in the repository become links as they must be on the site."""
    return re.sub(r"\]\(([\w./-]+)(#[\w-]*)?\)", lambda link: f"]({_on_site(link[1])}{link[2] or ''})", markdown)


def _on_site(path: str) -> str:
    from_root = path.removeprefix("../")
    if from_root in PAGES:
        return PAGES[from_root]
    return from_root.removeprefix("docs/") if from_root.startswith(("docs/", "notebooks/")) else path
