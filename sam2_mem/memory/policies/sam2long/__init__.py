from sam2_mem._moved import renamed
from sam2_mem.memory.policies.sam2long.policy import SAM2Long
from sam2_mem.memory.policies.sam2long.tree import Tree

__all__ = ["SAM2Long", "Tree"]


__getattr__ = renamed(__name__)
