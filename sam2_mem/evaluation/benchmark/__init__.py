"""What tracking costs: time, memory, operations; beside other policies and beside SAM 2."""

from sam2_mem._moved import renamed

__getattr__ = renamed(__name__)
