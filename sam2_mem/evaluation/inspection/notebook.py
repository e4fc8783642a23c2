"""What memory did, as the output of a notebook's cell: plain HTML, without a widget and without a script."""

from __future__ import annotations

from dataclasses import dataclass

from sam2_mem.evaluation.inspection.recording import ObjectRecord
from sam2_mem.evaluation.inspection.timeline import Styles, drawings, kinds_of

_BOX = "max-width:100%;max-height:40rem;overflow:auto;background:#fff;margin:0 0 .8rem;font-family:system-ui,sans-serif"


@dataclass(frozen=True, repr=False)
class MemoryView:
    """HTML that Jupyter shows.

    Attributes:
        html: the charts of the inspection page and of the studio, each in a box that scrolls.
        title: what is shown where there is no HTML.
    """

    html: str
    title: str

    def __repr__(self) -> str:
        return f"<{self.title}>"

    def _repr_html_(self) -> str:
        return self.html


def memory_view(record: ObjectRecord) -> MemoryView:
    """The timeline of what is held and read, tokens and bytes, and the tree of pathways where there is one.

    Args:
        record: one object under one policy, as ``record_video`` gives it, or made from a ``Recorder``.

    Raises:
        ValueError: there is no frame in it.
    """
    if not record.frames:
        raise ValueError(f"expected a record with at least one frame of object {record.obj_id}, got none")
    boxes = (
        f'<div style="{_BOX}">{drawing.svg()}</div>' for drawing in drawings(record, Styles.of(kinds_of([record])))
    )
    return MemoryView("".join(boxes), f"memory of object {record.obj_id} under {record.policy}")
