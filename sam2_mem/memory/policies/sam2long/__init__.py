from sam2_mem._moved import renamed
from sam2_mem.memory.policies.sam2long.policy import SAM2Long, Tree

__all__ = ["SAM2Long", "Tree"]


__getattr__ = renamed(__name__)
