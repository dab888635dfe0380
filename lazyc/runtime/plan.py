"""The plan of a Program at concrete sizes: what ``binding.bind`` makes, and a call needs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lazyc.ir.program import GemmStep, KernelStep, SeedStep, Step
from lazyc.runtime.blocks import Blocks, TileChoice
from lazyc.runtime.driver import ENV_SLOTS
from lazyc.runtime.eager import step_buffers
from lazyc.runtime.library import GemmCall

ARENA_SLOT = ENV_SLOTS


@dataclass(frozen=True, slots=True)
class Layout:
    """A buffer at concrete sizes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    nbytes: int


@dataclass(slots=True)
class NativeStep:
    """A step that the driver runs, or several by blocks of rows; ``gemm`` is the BLAS call of a
    GemmStep, or ``sparse`` the number of the step whose sparse kernel runs in its place. Its record is
    the words from ``start`` to ``end`` of the table: none where there is nothing to compute.
    ``scratch``: offsets in the arena of the scratch params of a kernel of a GPU, or of packed
    factors."""

    step: KernelStep | GemmStep | Blocks
    gemm: GemmCall | None = None
    sparse: int | None = None
    scratch: tuple[int, ...] = ()
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class PackRequest:
    """A product whose b is read in packed form from ``slot``."""

    call: GemmCall
    slot: int


@dataclass(slots=True)
class Segment:
    """Python steps, then native steps that run in one foreign call (``start``: word in the table;
    -1 for none). ``fresh`` are the tensors first needed here, ``dead`` the values last used here."""

    python: list[Step] = field(default_factory=list)
    native: list[NativeStep] = field(default_factory=list)
    start: int = -1
    short: bool = False
    fresh: list[int] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)

    def used(self) -> set[int]:
        steps: list[Step | Blocks] = [*self.python, *(n.step for n in self.native)]
        return {b for step in steps for b in touched(step)}


@dataclass(slots=True)
class Plan:
    """All that a call needs, at concrete sizes.

    ``slots``: env slot of a buffer that is no temporary. ``inputs`` (argument positions), ``fresh``
    and ``packed`` (buffer ids), ``packs`` and ``compressed`` (numbers of steps) are in the order of their
    slots, which follow the arena's; ``late`` (constants and eager results) come after them.
    ``offsets``: byte offset of a temporary in the arena.
    """

    layouts: list[Layout | None]
    segments: list[Segment]
    table: ctypes.Array[ctypes.c_int64]
    slots: dict[int, int]
    offsets: dict[int, int]
    arena_bytes: int
    inputs: list[int]
    fresh: list[int]
    packed: list[int]
    packs: list[PackRequest]
    compressed: list[int]
    late: list[int]
    env_words: int
    scratch: int  # index of the env word where the scratch array starts
    mutated: list[int]  # arguments that native steps write to
    choices: list[TileChoice]  # one for each of the Program's tiles
    stream_slot: int = -1  # where kernels of a GPU find their stream

    @property
    def leading_words(self) -> int:
        """Words of env up to the last packed slot: what changes with every call."""
        moving = (self.inputs, self.fresh, self.packed, self.packs, self.compressed)
        return ARENA_SLOT + 1 + sum(map(len, moving))

    @property
    def first_pack_slot(self) -> int:
        return self.leading_words - sum(map(len, (self.packed, self.packs, self.compressed)))

    @property
    def is_native(self) -> bool:
        """Whether a call is a single foreign call."""
        return len(self.segments) == 1 and not self.segments[0].python

    def address(self, segment: Segment) -> int:
        """Where the segment's records start; 0 if it has none."""
        return ctypes.addressof(self.table) + 8 * segment.start if segment.start >= 0 else 0


def touched(step: Step | Blocks) -> set[int]:
    """The buffers that a step reads or writes; of blocks, those that exist as a whole."""
    if isinstance(step, Blocks):
        return {b for part in step.steps for b in touched(part.step)} - step.private.keys()
    if isinstance(step, KernelStep):
        return set(step.buffers)
    if isinstance(step, GemmStep):
        return {step.a.buffer, step.b.buffer, step.c.buffer}
    if isinstance(step, SeedStep):
        return {step.output}
    return step_buffers(step) | set(step.outputs)


def traffic(step: Step | Blocks, layouts: Sequence[Layout | None]) -> int:
    """Bytes of the buffers that a step reads or writes."""
    found = (layouts[b] for b in touched(step))
    return sum(layout.nbytes for layout in found if layout is not None)
