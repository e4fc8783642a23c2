from sam2_mem._moved import renamed
from sam2_mem.memory.policies.samurai.policy import Samurai, SamuraiBank

__all__ = ["Samurai", "SamuraiBank"]


__getattr__ = renamed(__name__)
