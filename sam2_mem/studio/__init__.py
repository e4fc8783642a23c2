"""A page on this machine to click, track, see what memory reads, and change the policy: ``sam2-mem studio``."""
