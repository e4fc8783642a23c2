"""Every dataclass that crosses a folder border. Frozen, no behaviour beyond validation, imports torch only.

Letters used in shapes, here and in the whole package:

| letter | stands for |
|---|---|
| Q | image tokens of one frame, H * W of the stride-16 grid |
| C | model width (256 in the official models) |
| Cm | memory width (64 in the official models) |
| L | memory tokens of one entry, or of one row |
| M | candidate masks per read (3 while tracking) |
| P | pathways of one object (1 for every policy but the trees) |
| R | rows: what the network is run on, one per distinct read |
| h, w | mask logits grid at stride 4 (256 x 256 at an image size of 1024) |
| S | ``image_size``, the side of the square network input |

Dataclasses that hold tensors compare by identity (``eq=False``): two entries are the same entry when they are the
same object, which is what lets equal reads be recognised without touching a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar

from torch import Tensor

from sam2_mem._moved import renamed

ABSENT_LOGIT = -1024.0
"""Mask logit of an object that is not in the frame (SAM 2's placeholder score)."""

PROMPT_SLOT = -1
"""Temporal slot of a prompted frame: the last row of the learned temporal code, whatever the frame's age."""

MERGED_SLOT = -2
"""Temporal slot of an entry merged from several frames: the oldest tracked frame's row, changed by what a distiller has
learned for merged entries, if it has."""


class Usage(Enum):
    """Attention statistics a policy can ask for. EXPECTED: that of tokens to queries as this frame's are distributed, see
    ``sam2_mem.model.memory_attention.expected_usage``."""

    NONE = "none"
    TOKENS = "tokens"
    ITEMS_BY_QUERY = "items_by_query"
    EXPECTED = "expected"


@dataclass(frozen=True, eq=False)
class AppearanceMap:
    """Features of one frame from another network than SAM 2: ``feat`` (N, D), row by row of a ``grid`` (H, W) with
    H * W = N that covers the whole picture."""

    feat: Tensor
    grid: tuple[int, int]


class SensoryUpdate(Enum):
    """What updates an object's sensory state on a frame: nothing, the decoder's maps, or the frame's memory map."""

    NONE = "none"
    LIGHT = "light"
    DEEP = "deep"


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """What the image encoder gives for one frame; shared by all objects.

    ``low`` (Q, C) stride-16 features without memory; ``low_pos`` (Q, C) their sine positions; ``high`` two maps
    (C/8, 4H, 4W) and (C/4, 2H, 2W) for the mask decoder, None where it draws without them; ``grid`` (H, W); ``appearance`` what an embedder
    sees, if there is one.
    """

    index: int
    low: Tensor
    low_pos: Tensor
    high: tuple[Tensor, Tensor] | None
    grid: tuple[int, int]
    appearance: AppearanceMap | None = None


@dataclass(frozen=True, eq=False)
class FrameContext:
    """The frame a policy is asked about: its index, the direction of time and the features of the image.

    ``num_frames`` is None on a live stream. ``features`` may be None in tests of policies that do not look at images.
    ``measured`` is what the policy's ``measure_for_read`` gave, on the CPU. ``read_on``: number of the frame for which memory
    was read, None for this one.
    """

    index: int
    features: FrameFeatures | None = None
    reverse: bool = False
    num_frames: int | None = None
    measured: Tensor | None = None
    read_on: int | None = None

    @property
    def as_read(self) -> FrameContext:
        """The frame that memory was read on: this one, but for the first frame of a clip."""
        return self if self.read_on is None else replace(self, index=self.read_on, read_on=None)

    def age(self, frame: int) -> int:
        """Frames between ``frame`` and this one along the direction of tracking; negative for frames ahead."""
        return frame - self.index if self.reverse else self.index - frame


@dataclass(frozen=True, eq=False)
class MemoryTokens:
    """Spatial memory of one frame (or a merged one).

    ``feat`` (L, Cm); ``pos`` (L, Cm) spatial position only, added to keys; ``xy`` (L, 2) rotary coordinates in cells of
    the image grid, rows of NaN for tokens that have no place, None where no token has coordinates (equal to cell (0, 0));
    ``log_count`` (L) logarithm of the number of
    tokens each token stands for, added to its attention logit, None for zero.
    """

    feat: Tensor
    pos: Tensor
    xy: Tensor | None = None
    log_count: Tensor | None = None

    def __len__(self) -> int:
        return self.feat.shape[0]


@dataclass(frozen=True, eq=False)
class PointerEntry:
    """A remembered frame of one object whose spatial memory has been given up: its pointer and scores are left, and there
    is nothing to read but the pointer. Fields as in ``MemoryEntry``."""

    frame: int
    pointer: Tensor
    iou: float = 1.0
    objectness: float = 10.0
    area: float = 0.0
    is_prompt: bool = False
    summary: Tensor | None = None

    tokens: ClassVar[None] = None
    sensory: ClassVar[None] = None

    def without_tokens(self) -> PointerEntry:
        """The entry itself."""
        return self

    def as_tracked(self) -> PointerEntry:
        """The same entry, no longer counted as a prompt."""
        return replace(self, is_prompt=False)


@dataclass(frozen=True, eq=False)
class MemoryEntry:
    """A remembered frame of one object, with its spatial memory.

    Attributes:
        frame: number of the frame.
        tokens: spatial memory.
        pointer: (C) object pointer after the absent-object gate.
        iou: predicted IoU in [0, 1].
        objectness: object-score logit (> 0: present).
        area: mask area as a fraction of the image.
        is_prompt: whether the mask came from a prompt.
        summary: (C) image features pooled over the mask, if the policy asked for it (an embedder's: of another width).
        sensory: (Ch, H, W) the new state of sensory memory, on the entry of the output mask.
        click_mask: (h, w) logits of the mask, on the entry of a prompt that was answered with the best of several candidates,
            as one click is, if the policy asked for it; it takes it off again.
    """

    frame: int
    tokens: MemoryTokens
    pointer: Tensor
    iou: float = 1.0
    objectness: float = 10.0
    area: float = 0.0
    is_prompt: bool = False
    summary: Tensor | None = None
    sensory: Tensor | None = None
    click_mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens is None:
            raise ValueError(
                f"expected the tokens of frame {self.frame}, got None; an entry without them is a PointerEntry"
            )

    def without_tokens(self) -> PointerEntry:
        """What is left of the entry when its spatial memory is given up."""
        return PointerEntry(
            self.frame, self.pointer, self.iou, self.objectness, self.area, self.is_prompt, self.summary
        )

    def as_tracked(self) -> MemoryEntry:
        """The same entry, no longer counted as a prompt."""
        return replace(self, is_prompt=False)


Entry = MemoryEntry | PointerEntry


@dataclass(frozen=True, eq=False)
class ArchivedEntry:
    """A tracked frame that has left memory (``sam2_mem.tracking.archive``).

    Attributes:
        entry: its entry, with the features of the tokens on the host.
        mark: what its policy has to know of it beside the entry; see ``Bank.archivable``.
        device: where the features were.
    """

    entry: MemoryEntry
    mark: str
    device: Any


@dataclass(frozen=True, eq=False)
class ReadItem:
    """Spatial memory to attend to: which tokens, under which temporal slot, with which gain on the keys.

    ``slot`` is a row of the model's temporal code (0 = newest), a fraction for something between two rows,
    ``PROMPT_SLOT``, ``MERGED_SLOT``, or None for no temporal code; a scalar integer tensor where only the device knows it.
    ``order`` is for learned temporal encodings that count positions in the bank.
    """

    tokens: MemoryTokens
    slot: float | Tensor | None
    gain: float = 1.0
    order: int | None = None

    def __post_init__(self) -> None:
        if self.tokens is None:
            raise ValueError("expected tokens to read, got None: the entry gave them up; read entries, not pointers")

    @property
    def slot_key(self) -> float | str | None:
        """Equal for equal slots, as far as the host knows."""
        return f"tensor {id(self.slot)}" if isinstance(self.slot, Tensor) else self.slot


@dataclass(frozen=True, eq=False)
class ReadPointer:
    """An object pointer (C) to attend to; ``offset`` is its signed age over the policy's time span."""

    pointer: Tensor
    offset: float
    gain: float = 1.0


@dataclass(frozen=True, eq=False)
class MemoryRead:
    """What one row (one pathway of one object) attends to. ``sensory`` (Ch, H, W): the state of sensory memory, which the
    model adds to the conditioned features."""

    items: tuple[ReadItem, ...]
    pointers: tuple[ReadPointer, ...] = ()
    sensory: Tensor | None = None

    def key(self) -> tuple[Any, ...]:
        """Equal for reads that are certain to give equal results."""
        items = [(id(i.tokens), i.slot_key, i.gain, i.order) for i in self.items]
        pointers = [(id(p.pointer), p.offset, p.gain) for p in self.pointers]
        return (tuple(items), tuple(pointers), None if self.sensory is None else id(self.sensory))


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Rows that go through the network together, padded to one length.

    ``feat`` (R, L, Cm) values; ``pos`` (R, L, Cm) spatial + temporal part of the keys; ``xy`` (R, L, 2); ``gain`` (R, L)
    factor on the keys or None; ``bias`` (R, L) added to the attention logits (log-counts, -inf for padding) or None;
    ``item`` (R, L) index of the read item each token belongs to, ``num_items`` for pointers and padding; ``lengths`` (R)
    tokens before padding; ``sensory`` (R, Ch, H, W) or None; ``counted``: ``bias`` may hold more than padding; ``item_lengths``
    (R) tokens of every item of a row.
    """

    feat: Tensor
    pos: Tensor
    xy: Tensor
    gain: Tensor | None
    bias: Tensor | None
    item: Tensor
    num_items: int
    lengths: tuple[int, ...]
    sensory: Tensor | None = None
    counted: bool = True
    item_lengths: tuple[tuple[int, ...], ...] = ()

    @property
    def rows(self) -> int:
        return self.feat.shape[0]


@dataclass(frozen=True, eq=False)
class ReadUsage:
    """Attention mass of one read. TOKENS, EXPECTED: ``tokens`` one (L_i) tensor per item, summed over queries. ITEMS_BY_QUERY:
    ``items`` (Q, number of items). Pointers hold the rest of the mass, so neither needs to add up to Q."""

    tokens: tuple[Tensor, ...] | None = None
    items: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Hypotheses:
    """All candidates of one object on one frame, before any absent-object gate.

    ``masks`` (P, M, h, w) logits; ``pointers`` (P, M, C); ``iou`` (P, M) and ``objectness`` (P) as nested tuples of
    Python floats; ``usage`` one per pathway, or None; ``areas`` (P, M) foreground shares of ``masks``, on the CPU like the
    scores, None where nobody measured them; ``measured`` what the policy's ``measure`` gave, on the CPU; ``answers``
    to what it asked (``sam2_mem.memory.questions``).
    """

    masks: Tensor
    pointers: Tensor
    iou: tuple[tuple[float, ...], ...]
    objectness: tuple[float, ...]
    usage: tuple[ReadUsage, ...] | None = None
    areas: tuple[tuple[float, ...], ...] | None = None
    measured: Tensor | None = None
    answers: tuple[Any, ...] = ()


@dataclass(frozen=True)
class CandidateId:
    """One candidate: which pathway, which of its masks. ``binarize`` asks for memory as SAM 2 makes it for frames that a user
    has touched: of the hard mask, where ``model.binarize_prompted_masks`` says so."""

    pathway: int
    candidate: int
    binarize: bool = False


@dataclass(frozen=True)
class MaskSelection:
    """A policy's decision: the candidate shown to the user, and the candidates to encode into memory (may be none).

    ``sensory``: how the shown mask updates sensory memory, where the model has one; the new state comes with its entry.
    """

    output: CandidateId
    remember: tuple[CandidateId, ...]
    sensory: SensoryUpdate = SensoryUpdate.NONE


@dataclass(frozen=True, eq=False)
class MergeRequest:
    """A policy's wish to have entries merged by the network's distiller: ``entries``, oldest first in the direction of
    tracking, become one token for every ``strength`` x ``strength`` tokens of a stored map."""

    entries: tuple[MemoryEntry, ...]
    strength: int = 1


@dataclass(frozen=True, eq=False)
class Revision:
    """A mask that replaces one already shown: ``logits`` (h, w) of ``frame``; ``present``: passed the policy's gate."""

    frame: int
    logits: Tensor
    iou: float
    objectness: float
    obj_id: int | None = None
    present: bool = True


@dataclass(frozen=True)
class ObjectScore:
    """What is known about one object's mask on one frame, beside the mask.

    ``iou`` predicted IoU; ``objectness`` object-score logit; ``present`` whether it passed the policy's gate; ``prompted``
    whether the mask came from a prompt on this frame; ``held`` / ``dropped``: frames in memory after this frame, and
    frames whose spatial memory left it on this frame; ``tokens`` memory tokens held after the frame; ``refined`` whether a
    refiner's mask was accepted.
    """

    obj_id: int
    iou: float
    objectness: float
    present: bool
    prompted: bool
    held: tuple[int, ...]
    dropped: tuple[int, ...]
    tokens: int
    refined: bool = False


@dataclass(frozen=True, eq=False)
class FrameResult:
    """Output of one step. ``masks`` (N, h, w) float32 logits in the order of ``obj_ids``."""

    frame: int
    obj_ids: tuple[int, ...]
    masks: Tensor
    scores: tuple[ObjectScore, ...]
    revisions: tuple[Revision, ...] = ()


__getattr__ = renamed(__name__)
