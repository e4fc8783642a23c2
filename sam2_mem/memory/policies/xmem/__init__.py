from sam2_mem._moved import renamed
from sam2_mem.memory.policies.xmem.policy import XMem
from sam2_mem.memory.policies.xmem.state import XMemBank

__all__ = ["XMem", "XMemBank"]


__getattr__ = renamed(__name__)
