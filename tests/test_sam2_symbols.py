"""docs/sam2.md: the table is that of the two packages, and nothing is missing without a word."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import pytest
import sam2_symbols
from helpers import needs_reference

from sam2_mem import SAM2ImagePredictor
from sam2_mem.utils import amg

pytestmark = needs_reference


@lru_cache
def rows() -> tuple[sam2_symbols.Row, ...]:
    return (*sam2_symbols.rows(), *sam2_symbols.state_rows(), *sam2_symbols.flag_rows())


def test_the_page_is_that_of_the_packages() -> None:
    assert sam2_symbols.page() == sam2_symbols.PAGE.read_text(), "write it anew: python tests/sam2_symbols.py"


def test_every_symbol_that_is_not_the_same_has_a_note() -> None:
    assert [row.symbol for row in rows() if row.status != "same" and not row.note] == []
    assert sam2_symbols.NOTES.keys() - {row.symbol for row in rows()} == set()
    paths = set(re.findall(r"`(sam2_mem\.[\w.]+)`", " ".join(sam2_symbols.NOTES.values())))
    assert len(paths) > 20 and [path for path in paths if sam2_symbols.here(path) is None] == []


def test_a_missing_symbol_and_a_changed_argument_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(self: Any, point_labels: Any, point_coords: Any = None, box: Any = 3) -> None: ...

    monkeypatch.setattr(SAM2ImagePredictor, "predict", predict)
    monkeypatch.delattr(amg, "rle_to_mask")
    changed = {row.symbol: row for row in sam2_symbols.rows()}
    assert (
        changed["sam2.utils.amg.rle_to_mask"].status == "elsewhere" and not changed["sam2.utils.amg.rle_to_mask"].note
    )
    row = changed["sam2.sam2_image_predictor.SAM2ImagePredictor.predict"]
    assert row.status == "differs"
    assert row.note.startswith("`point_coords` is argument 2, `point_labels=`, `box=3`, no `mask_input`")
