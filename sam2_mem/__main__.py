"""``python -m sam2_mem``: the command ``sam2-mem``."""

import sys

from sam2_mem.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
