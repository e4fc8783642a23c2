"""What lies in the folder of an exported network: ``manifest.json`` names and describes its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sam2_mem.files import atomic_path, sha256_of

NAME = "manifest.json"
FORMAT = 1
REST = "rest.safetensors"


@dataclass(frozen=True, kw_only=True)
class PartFile:
    """One file.

    Attributes:
        file: its name.
        sha256: of its content.
        inputs: shapes by name, in order; a size that may change is a name.
        outputs: names, in order.
        largest_difference: from PyTorch on random inputs, relative to the largest value of an output; None where not measured.
    """

    file: str
    sha256: str
    inputs: dict[str, list[int | str]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    largest_difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An exported network.

    Attributes:
        image_size: side S of the square input.
        parts: the ONNX files, by the name of the part.
        rest: weights that no part holds: codes of time, prompts, a distiller. They are run by PyTorch.
        config: the composed config that the network was built from.
        weights: where its weights came from.
        usage_layer: the layer of memory attention whose queries and keys are outputs.
        programs: files of torch.export, by the name of the part; empty unless asked for.
        sam2_mem: version that exported it.
        format: of this file.
    """

    image_size: int
    parts: dict[str, PartFile]
    rest: PartFile
    config: dict[str, Any]
    weights: dict[str, Any] = field(default_factory=dict)
    usage_layer: int = 0
    programs: dict[str, PartFile] = field(default_factory=dict)
    sam2_mem: str = ""
    format: int = FORMAT

    def write(self, folder: Path) -> Path:
        path = folder / NAME
        with atomic_path(path) as part:
            part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a manifest, and check that the files it names are there as they were written.

        Raises:
            FileNotFoundError: there is no manifest, or a file is missing.
            ValueError: it is of another format, or a file is another one.
        """
        path = folder / NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"expected a folder that sam2-mem export has written, got '{folder}' without {NAME}"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"expected '{path}' of format {FORMAT}, got {content['format']}; export again")
            parts, programs = (
                {name: PartFile(**entry) for name, entry in content[key].items()} for key in ("parts", "programs")
            )
            manifest = cls(**{**content, "parts": parts, "programs": programs, "rest": PartFile(**content["rest"])})
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"expected '{path}' as sam2-mem export writes it, got {error!r}; export again") from error
        for entry in (*manifest.parts.values(), manifest.rest):
            entry_path = folder / entry.file
            if not entry_path.is_file():
                raise FileNotFoundError(
                    f"expected '{entry_path}', which '{path}' names, got no such file; export again"
                )
            if (digest := sha256_of(entry_path)) != entry.sha256:
                raise ValueError(
                    f"expected '{entry_path}' with the SHA-256 {entry.sha256[:12]}..., got {digest[:12]}...: it is damaged or "
                    "of another export; export again"
                )
        return manifest
