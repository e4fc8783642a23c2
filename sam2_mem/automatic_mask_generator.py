"""``SAM2AutomaticMaskGenerator`` at the import path that it has in SAM 2."""

from sam2_mem.tracking.automatic_masks import SAM2AutomaticMaskGenerator as SAM2AutomaticMaskGenerator
