#!/usr/bin/env python
"""Segment objects through videos from masks, boxes or clicks. ``--help`` has examples; the code is in sam2_mem/cli."""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import sam2_mem  # noqa: F401
except ModuleNotFoundError:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam2_mem.cli.vos import main

if __name__ == "__main__":
    sys.exit(main())
