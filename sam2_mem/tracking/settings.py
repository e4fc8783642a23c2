"""What a tracker does around a policy: the keys of the ``tracker`` section of a config."""

from __future__ import annotations

from dataclasses import dataclass

from sam2_mem.tracking.batching import bucket

ARBITER_NAMES = ("none", "recent", "variance")
MEMORY_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class TrackerSettings:
    """What the tracker does around a policy.

    Attributes:
        fill_hole_area: holes of at most this many mask-logit pixels are filled in the output; 0 for never.
        remove_region_area: specks of at most this many mask-logit pixels are removed from the output; 0 for never.
        non_overlap_masks_for_mem_enc: objects may not overlap in what is written to memory.
        clear_non_cond_mem_around_input: forget tracked memory within ``forget_radius`` frames of a prompt, when one object
            is tracked.
        clear_non_cond_mem_for_multi_obj: do so with any number of objects.
        forget_radius: in frames, see above.
        memory_dtype: what spatial memory is rounded to, as in SAM 2; "float32" to keep it exact.
        storage_device: where spatial memory waits, e.g. "cpu"; None for the device of the model.
        arbiter: which of two objects whose masks nearly coincide gives way, see ``sam2_mem.tracking.arbiter``: "none",
            "recent" (SAM 3) or "variance" (SAM2MOT).
        clip_length: frames of offline video that read memory once and go through the network together, see
            ``sam2_mem.tracking.clip``; 1: each for itself, as in SAM 2.
        history: outputs kept per object, for corrections; unbounded where the policy is.
        archive_bytes: the budget for memory and masks of frames that an object has left behind, kept on the host for sessions
            on a video that can be read anywhere, so that they equal SAM 2's, which keeps everything; 0 for none. A frame of
            an object takes 0.75 MiB at an image size of 1024 and a sixteenth of it at 256.
        max_padding: see ``sam2_mem.tracking.batching.batch_reads``.
        max_rows: the limit of rows that go through the network together, 0 for no limit, None for what is best: on a CPU
            as many as have ``sam2_mem.tracking.batching.CPU_BATCH`` image tokens, on a CUDA device as many as fit into half
            of its free memory, on another device no limit.
    """

    fill_hole_area: int = 0
    remove_region_area: int = 0
    non_overlap_masks_for_mem_enc: bool = False
    clear_non_cond_mem_around_input: bool = False
    clear_non_cond_mem_for_multi_obj: bool = False
    forget_radius: int = 7
    memory_dtype: str = "bfloat16"
    storage_device: str | None = None
    arbiter: str = "none"
    clip_length: int = 1
    history: int = 16
    archive_bytes: int = 2**32
    max_padding: float = 0.0
    max_rows: int | None = None

    def __post_init__(self) -> None:
        if self.memory_dtype not in MEMORY_DTYPES:
            raise ValueError(f"expected memory_dtype in {MEMORY_DTYPES}, got {self.memory_dtype!r}")
        if self.arbiter not in ARBITER_NAMES:
            raise ValueError(f"expected arbiter out of {', '.join(ARBITER_NAMES)}, got {self.arbiter!r}")
        for name in ("fill_hole_area", "remove_region_area", "forget_radius", "max_rows", "archive_bytes"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"expected {name} >= 0, got {getattr(self, name)}")
        for name in ("history", "clip_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        bucket([], max_padding=self.max_padding)
