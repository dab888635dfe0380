"""How a nest is cut into programs: outer points and inner iterations of one block."""

from __future__ import annotations

from dataclasses import dataclass

from lazyc.ir.attrs import ScatterMode
from lazyc.ir.loops import Load, LoopNest, Stage, Store
from lazyc.ir.types import Dim, DType, numel

_BLOCK = 1024  # elements of a block of a nest without inner loops
_TILE = 2048  # elements of a block with an inner axis
_LONGEST = 8192  # iterations of a stage that one block takes whole
_UNKNOWN = 1024  # iterations of a loop whose length is a symbol, for a guess


@dataclass(frozen=True, slots=True)
class Blocks:
    """``points``: outer points of a program. ``iterations``: for each stage those of a step of its
    loop; 1 for a stage that must keep its order. ``warps``: of 32 threads, that run a program."""

    points: int
    iterations: tuple[int, ...]
    warps: int

    def __str__(self) -> str:
        steps = "x".join(str(n) for n in dict.fromkeys(self.iterations))
        return f"{self.points}x{steps}, {self.warps} warps"


def choose_blocks(nest: LoopNest) -> Blocks:
    """By the shape of the nest alone: wide along the axis whose neighbours lie together in memory."""
    lengths = [_known(numel(a.size for a in s.axes), _UNKNOWN) for s in nest.stages]
    longest = max((n for n, s in zip(lengths, nest.stages, strict=True) if s.axes), default=0)
    outer = _known(numel(a.size for a in nest.axes), 1 << 30)
    if longest == 0:
        points = min(_BLOCK, power_of_two(outer))
        return Blocks(points, (1,) * len(lengths), _warps(points))
    if nest.vectorize == "outer" and nest.axes:
        points = min(128, power_of_two(outer))
        steps = [min(power_of_two(n), max(1, _TILE // points)) for n in lengths]
    else:
        whole = power_of_two(longest)
        step = whole if whole <= _LONGEST else _TILE
        points = min(max(1, _TILE // step), power_of_two(outer))
        steps = [min(power_of_two(n), step) for n in lengths]
    iterations = tuple(
        1 if not s.axes or keeps_order(nest, s) else n
        for n, s in zip(steps, nest.stages, strict=True)
    )
    return Blocks(points, iterations, _warps(points * max(iterations)))


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def keeps_order(nest: LoopNest, stage: Stage) -> bool:
    """Whether iterations of a stage must run one after another: one reads what another stored, or
    several store to one element and are not combined by the hardware."""
    loads = [(k, i) for k, i in enumerate(stage.body) if isinstance(i, Load)]
    for at_store, store in enumerate(stage.body):
        if not isinstance(store, Store):
            continue
        scatters = bool(store.index.value_refs())
        if scatters and not is_atomic(store.mode, nest.buffers[store.buffer].dtype):
            return True
        for at_load, load in loads:
            if load.buffer == store.buffer and (
                at_load > at_store or load.index != store.index or scatters
            ):
                return True
    return False


def is_atomic(mode: ScatterMode, dtype: DType) -> bool:
    """Whether the hardware combines values that are stored to one element."""
    return mode == "add" and dtype in (DType.I32, DType.I64, DType.F32, DType.F64)


def _warps(elements: int) -> int:
    return min(16, max(1, elements // 256))


def _known(size: Dim, otherwise: int) -> int:
    return size if isinstance(size, int) else otherwise
