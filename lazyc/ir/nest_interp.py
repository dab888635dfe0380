"""Reference evaluator of LoopNests: what a kernel must compute, in plain torch.

The oracle for the scheduler (does this nest compute what its graph does?) and for the generators
(does this kernel compute what its nest says?). It runs an instruction for many points of the
iteration space at once: a value is a tensor [outer points, stage iterations], where either dim may
be 1. Whatever the order of iterations decides is done in loop order.

Beyond computing it checks the promises that generators rely on, and raises IRError for a nest that
breaks one: an index out of range, a store into an input, or an element that two outer points, or two
iterations of a stage without a scatter, both write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import sympy
import torch

from lazyc.ir import attrs as A
from lazyc.ir.index import Axis, FloorDiv, Index, Mod, ValueRef
from lazyc.ir.loops import (
    ERROR_INDEX,
    ERROR_ZERO_DIVISION,
    BufferParam,
    CheckIndex,
    Compute,
    Const,
    Dot,
    IndexValue,
    Instr,
    Load,
    LoopNest,
    Random,
    Reduce,
    Scan,
    Stage,
    Store,
)
from lazyc.ir.nest_values import cone, inside_of_dots
from lazyc.ir.ops import OPS, IRError, concrete
from lazyc.ir.types import DType, numel

_POINTS_AT_ONCE = 1 << 20  # points of the iteration space evaluated in one step
_NOBODY, _SEVERAL = -1, -2  # in Memory.writer and Memory.reader


def run_nest(
    nest: LoopNest,
    buffers: Sequence[torch.Tensor | np.ndarray],
    sizes: Mapping[sympy.Symbol, int] | None = None,
) -> int:
    """Runs a nest on 1-dim ``buffers`` (one for each param that is not scratch, in order), writing
    into those with role out and inout. ``sizes`` are the values of the nest's symbols.

    Returns the error word (ERROR_* bits). Raises IRError for a nest that breaks a promise.
    """
    values = dict(sizes or {})
    given = iter([torch.from_numpy(b) if isinstance(b, np.ndarray) else b for b in buffers])
    memories = [
        Memory(
            param, None if param.role == "scratch" else next(given), concrete(param.numel, values)
        )
        for param in nest.buffers
    ]
    extents = [concrete(a.size, values) for a in nest.axes]
    total = numel(extents)
    assert isinstance(total, int)
    stages = [(s, numel([concrete(a.size, values) for a in s.axes])) for s in nest.stages]
    widest = max((int(n) * _longest_dot(s, values) for s, n in stages), default=1)
    step = max(1, _POINTS_AT_ONCE // max(1, widest))
    error = 0
    for start in range(0, total, step):
        points = torch.arange(start, min(start + step, total))
        for memory in memories:
            memory.begin(len(points))
        state = _State(values, memories, points)
        state.axes |= {a: p[:, None] for a, p in _unravel(nest.axes, extents, points)}
        for stage, count in stages:
            _run_stage(state, stage, int(count))
        error |= state.error
    for memory in memories:
        memory.check_readers()
    return error


def _longest_dot(stage: Stage, values: Mapping[sympy.Symbol, int]) -> int:
    dots = [i for i in stage.body if isinstance(i, Dot)]
    return max((int(numel([concrete(a.size, values) for a in i.axes])) for i in dots), default=1)


def _unravel(
    axes: Sequence[Axis], extents: Sequence[int], flat: torch.Tensor
) -> list[tuple[Axis, torch.Tensor]]:
    """The value of each axis at row-major positions of the iteration space."""
    found = []
    for axis, extent in reversed(list(zip(axes, extents, strict=True))):
        found.append((axis, flat % extent))
        flat = flat // extent
    return found


# --- memory ---------------------------------------------------------------------------------------


class Memory:
    """One buffer param; scratch memory has a row for each outer point."""

    def __init__(self, param: BufferParam, data: torch.Tensor | None, size: int) -> None:
        if data is not None and (data.dim() != 1 or len(data) < size):
            raise IRError(f"buffer of shape {tuple(data.shape)} for {size} elements")
        if data is not None and data.dtype != param.dtype.torch:
            raise IRError(f"buffer of {data.dtype} for a param of {param.dtype}")
        self.param = param
        self.size = size
        self.data = torch.empty(0) if data is None else data
        self.writer = torch.full((0 if data is None else size,), _NOBODY)
        self.reader = self.writer.clone()

    def begin(self, points: int) -> None:
        """Fresh scratch for some outer points, filled with what a kernel must not read."""
        if self.param.role == "scratch":
            filler = float("nan") if self.param.dtype.is_float else 85
            self.data = torch.full((points * self.size,), filler, dtype=self.param.dtype.torch)

    def positions(self, index: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Flat positions of the elements that a [points, iterations] access touches."""
        index = index.expand(mask.shape)
        outside = mask & ((index < 0) | (index >= self.size))
        if bool(outside.any()):
            wrong = int(index[outside][0])
            raise IRError(f"index {wrong} in a buffer of {self.size} elements")
        if self.param.role == "scratch":
            index = index + torch.arange(mask.shape[0])[:, None] * self.size
        return index[mask]

    def load(
        self, index: torch.Tensor, mask: torch.Tensor, other: A.Scalar, points: torch.Tensor
    ) -> torch.Tensor:
        if self.param.role == "out":
            raise IRError("a load from a buffer that is only written")
        result = torch.full(mask.shape, other, dtype=self.param.dtype.torch)
        positions = self.positions(index, mask)
        result[mask] = self.data[positions]
        if self.param.role == "inout":
            owner = points[:, None].expand(mask.shape)[mask]
            known = self.reader[positions]
            self.reader[positions] = torch.where(
                (known == _NOBODY) | (known == owner), owner, _SEVERAL
            )
            # Two points of this very access may share an element.
            self.reader[positions[self.reader[positions] != owner]] = _SEVERAL
        return result

    def store(
        self,
        store: Store,
        index: torch.Tensor,
        mask: torch.Tensor,
        value: torch.Tensor,
        points: torch.Tensor,
    ) -> None:
        """Stores in loop order: the k-th store to an element happens in round k."""
        if self.param.role == "in":
            raise IRError("a store into a buffer that is only read")
        if value.dtype != self.param.dtype.torch:
            raise IRError(f"a store of {value.dtype} into a buffer of {self.param.dtype}")
        positions = self.positions(index, mask)
        values = value.expand(mask.shape)[mask]
        if self.param.role != "scratch":
            self._claim(positions, points[:, None].expand(mask.shape)[mask])
        turns = _occurrence(positions)
        if int(turns.max(initial=0)) > 0 and not store.index.value_refs():
            raise IRError(f"two iterations store to one element, at {store.index}")
        for turn in range(int(turns.max(initial=-1)) + 1):
            now = torch.from_numpy(turns == turn)
            at = positions[now]
            self.data[at] = _COMBINE[store.mode](self.data[at], values[now])

    def _claim(self, positions: torch.Tensor, owners: torch.Tensor) -> None:
        """Notes who writes which element."""
        known = self.writer[positions]
        self.writer[positions] = owners
        if bool(((known != _NOBODY) & (known != owners)).any()) or bool(
            (self.writer[positions] != owners).any()
        ):
            raise IRError("two outer points write one element")

    def check_readers(self) -> None:
        """An element of an inout buffer that is written is read by the same outer point only."""
        written = self.writer != _NOBODY
        strangers = written & (self.reader != _NOBODY) & (self.reader != self.writer)
        if bool(strangers.any()):
            raise IRError("an outer point reads an element that another one writes")


def _occurrence(positions: torch.Tensor) -> np.ndarray:
    """For each entry how many equal ones are before it."""
    flat = positions.numpy()
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    fresh = np.ones(len(flat), dtype=bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    run_start = np.maximum.accumulate(np.where(fresh, np.arange(len(flat)), 0))
    turns = np.empty(len(flat), dtype=np.int64)
    turns[order] = np.arange(len(flat)) - run_start
    return turns


_COMBINE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "set": lambda old, new: new,
    "add": torch.add,
    "mul": torch.mul,
    "max": torch.maximum,
    "min": torch.minimum,
}


# --- stages ---------------------------------------------------------------------------------------


@dataclass
class _State:
    """Some outer points on their way through the stages."""

    sizes: dict[sympy.Symbol, int]
    memories: list[Memory]
    points: torch.Tensor
    axes: dict[Axis, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)  # [points or 1, iterations or 1]
    carries: dict[int, torch.Tensor] = field(default_factory=dict)  # of scans, [points, 1]
    error: int = 0

    def index(self, index: Index) -> torch.Tensor:
        """An index expression, as i64 [points or 1, iterations or 1]."""
        total = torch.full((1, 1), concrete(index.const, self.sizes))
        for atom, coef in index.terms:
            if isinstance(atom, Axis):
                value = self.axes[atom]
            elif isinstance(atom, ValueRef):
                value = self.values[atom.value]
            else:
                value = self._divided(atom)
            total = total + value * concrete(coef, self.sizes)
        return total

    def _divided(self, atom: FloorDiv | Mod) -> torch.Tensor:
        base, divisor = self.index(atom.base), concrete(atom.divisor, self.sizes)
        return base // divisor if isinstance(atom, FloorDiv) else base % divisor

    def mask(self, value: int | None, iterations: int) -> torch.Tensor:
        shape = (len(self.points), iterations)
        mask = torch.ones(1, 1, dtype=torch.bool) if value is None else self.values[value]
        return mask.expand(shape)


_Parts = list[tuple[torch.Tensor, torch.Tensor | None]]  # value and position of a Reduce


def _run_stage(state: _State, stage: Stage, count: int) -> None:
    """All iterations of a stage: at once, or one by one where they depend on each other."""
    extents = [concrete(a.size, state.sizes) for a in stage.axes]
    outer_values = set(state.values)
    reductions = {i: _Parts() for i in stage.body if isinstance(i, Reduce)}
    state.carries = {}
    step = 1 if _is_recurrent(stage) else max(1, count)
    for start in range(0, count, step):
        iterations = torch.arange(start, min(start + step, count))
        state.axes |= {a: p[None, :] for a, p in _unravel(stage.axes, extents, iterations)}
        _run_body(state, stage, len(iterations), reductions)
    state.axes = {a: p for a, p in state.axes.items() if a not in stage.axes}
    if stage.axes:  # what a stage with a loop defines lives in it only, except reductions
        state.values = {k: v for k, v in state.values.items() if k in outer_values}
    for instr, parts in reductions.items():
        state.values[instr.id] = _reduce(instr, parts, len(state.points))


def _run_body(
    state: _State, stage: Stage, iterations: int, reductions: dict[Reduce, _Parts]
) -> None:
    shape = (len(state.points), iterations)
    inside = inside_of_dots(stage.body)
    for instr in stage.body:
        if not isinstance(instr, Store) and instr.id in inside:
            pass  # computed by the dots that read it
        elif isinstance(instr, Dot):
            state.values[instr.id] = _dot(state, stage.body, instr, iterations)
        elif isinstance(instr, Reduce):
            position = None if instr.position is None else state.values[instr.position]
            reductions[instr].append(
                (
                    state.values[instr.value].expand(shape),
                    None if position is None else position.expand(shape),
                )
            )
        elif isinstance(instr, Store):
            state.memories[instr.buffer].store(
                instr,
                state.index(instr.index),
                state.mask(instr.mask, iterations),
                state.values[instr.value],
                state.points,
            )
        else:
            result = _evaluate(state, instr, iterations)
            if result.dtype != instr.dtype.torch:
                raise IRError(f"{instr} gave {result.dtype}")
            state.values[instr.id] = result


def _is_recurrent(stage: Stage) -> bool:
    """Whether an iteration may load what one before it stored."""
    loads = [(k, i) for k, i in enumerate(stage.body) if isinstance(i, Load)]
    stores = [(k, i) for k, i in enumerate(stage.body) if isinstance(i, Store)]
    return any(
        load.buffer == store.buffer
        and (at_load > at_store or load.index != store.index or bool(store.index.value_refs()))
        for at_store, store in stores
        for at_load, load in loads
    )


# --- instructions ---------------------------------------------------------------------------------


def _evaluate(state: _State, instr: Instr, iterations: int) -> torch.Tensor:
    match instr:
        case Const():
            return torch.full((1, 1), instr.value, dtype=instr.dtype.torch)
        case IndexValue():
            return state.index(instr.index).to(instr.dtype.torch)
        case Load():
            mask = state.mask(instr.mask, iterations)
            memory = state.memories[instr.buffer]
            return memory.load(state.index(instr.index), mask, instr.other, state.points)
        case Compute():
            return _compute(state, instr)
        case CheckIndex():
            return _check_index(state, instr, iterations)
        case Random():
            return _random(state, instr)
        case Scan():
            return _scan(state, instr, iterations)
        case Reduce() | Store() | Dot():
            raise IRError(f"{instr} has no value in an iteration")


def _compute(state: _State, instr: Compute) -> torch.Tensor:
    args = [state.values[a] for a in instr.args]
    attrs: A.Attrs = A.NO_ATTRS
    if instr.op == "cast":
        attrs = A.CastAttrs(instr.dtype)
    elif instr.op == "bitcast":
        attrs = A.BitcastAttrs(instr.dtype)
    if instr.op in _INTEGER_DIVISIONS and not args[0].is_floating_point():
        return _integer_division(state, instr.op, *torch.broadcast_tensors(*args))
    return OPS[instr.op].evaluate(args, attrs, state.sizes)


_INTEGER_DIVISIONS = ("floor_div", "trunc_div", "rem", "mod")


def _integer_division(state: _State, op: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """As the op, but 0 and an error for a zero divisor, and INT_MIN / -1 wraps (both are traps of
    the CPU)."""
    if bool((b == 0).any()):
        state.error |= ERROR_ZERO_DIVISION
    minus_one = (b == -1) if a.dtype.is_signed else torch.zeros_like(b, dtype=torch.bool)
    result = OPS[op].evaluate([a, torch.where((b == 0) | minus_one, 1, b)], A.NO_ATTRS, {})
    by_minus_one = -a if op in ("floor_div", "trunc_div") else torch.zeros_like(a)
    return torch.where(b == 0, 0, torch.where(minus_one, by_minus_one, result))


def _check_index(state: _State, instr: CheckIndex, iterations: int) -> torch.Tensor:
    value = state.values[instr.value]
    wanted = state.mask(instr.mask, iterations)
    good = (value >= 0) & (value < concrete(instr.size, state.sizes))
    if bool((wanted & ~good).any()):
        state.error |= ERROR_INDEX
    return torch.where(wanted & good, value, 0)


def _random(state: _State, instr: Random) -> torch.Tensor:
    """The values from the least to the greatest counter, then those that are wanted."""
    counters, seeds = torch.broadcast_tensors(state.index(instr.counter), state.values[instr.seed])
    result = torch.empty(counters.shape, dtype=instr.dtype.torch)
    for seed in seeds.unique():
        here = seeds == seed
        low, high = int(counters[here].min()), int(counters[here].max())
        attrs = A.RandomAttrs(instr.kind, (high - low + 1,), instr.dtype, low)
        result[here] = OPS["random"].evaluate([seed], attrs, {})[counters[here] - low]
    return result


def _scan(state: _State, instr: Scan, iterations: int) -> torch.Tensor:
    """Along the iterations, on from the carry of those before."""
    value = state.values[instr.value].expand(len(state.points), iterations)
    carry = state.carries.get(instr.id)
    joined = value if carry is None else torch.cat([carry, value], dim=1)
    result = OPS[f"scan_{instr.kind}"].evaluate([joined], A.ScanAttrs(1), {})
    state.carries[instr.id] = result[:, -1:]
    return result[:, -iterations:]


# --- dots -----------------------------------------------------------------------------------------


def _dot(state: _State, body: Sequence[Instr], dot: Dot, iterations: int) -> torch.Tensor:
    """[points, iterations]: what varies along the dot's axes is computed for iterations that are
    [iterations, length of the dot], row-major. Adds in f64."""
    extents = [concrete(a.size, state.sizes) for a in dot.axes]
    length = int(numel(extents))

    def longer(x: torch.Tensor) -> torch.Tensor:
        return x if x.shape[1] == 1 else x.repeat_interleave(length, 1)

    inner = _State(state.sizes, state.memories, state.points)
    inner.axes = {a: longer(x) for a, x in state.axes.items()}
    along = torch.arange(length).repeat(iterations)
    inner.axes |= {a: x[None, :] for a, x in _unravel(dot.axes, extents, along)}
    needed = cone(body, (dot.left, dot.right), into_dots=False) & inside_of_dots(body)
    inner.values = {k: longer(v) for k, v in state.values.items()}
    for instr in body:
        if isinstance(instr, Store) or instr.id not in needed:
            continue
        if isinstance(instr, Dot):
            inner.values[instr.id] = _dot(inner, body, instr, iterations * length)
        else:
            inner.values[instr.id] = _evaluate(inner, instr, iterations * length)
    state.error |= inner.error
    shape = (len(state.points), iterations * length)
    left, right = (inner.values[k].expand(shape).double() for k in (dot.left, dot.right))
    summed = (left * right).reshape(len(state.points), iterations, length).sum(2)
    return summed.to(dot.dtype.torch)


# --- reductions -----------------------------------------------------------------------------------


def _reduce(
    instr: Reduce, parts: list[tuple[torch.Tensor, torch.Tensor | None]], points: int
) -> torch.Tensor:
    """[points, 1]; floating sums and products accumulate in f64."""
    if not parts:
        return torch.full((points, 1), _identity(instr), dtype=instr.dtype.torch)
    values = torch.cat([v for v, _ in parts], dim=1)
    if instr.kind in ("argmax", "argmin"):
        where = torch.cat([p for _, p in parts if p is not None], dim=1)
        return where.gather(1, _first_extreme(values, instr.kind == "argmax"))
    if instr.kind in ("max", "min"):
        return values.amax(1, True) if instr.kind == "max" else values.amin(1, True)
    wide = torch.float64 if values.is_floating_point() else values.dtype
    reduced = (
        values.sum(1, True, dtype=wide) if instr.kind == "sum" else values.prod(1, True, dtype=wide)
    )
    return reduced.to(instr.dtype.torch)


def _first_extreme(values: torch.Tensor, largest: bool) -> torch.Tensor:
    """Position of the first nan, else of the first extreme element: [points, 1]."""
    extreme = values.amax(1, True) if largest else values.amin(1, True)
    is_extreme = torch.where(extreme.isnan(), values.isnan(), values == extreme)
    return torch.from_numpy(is_extreme.numpy().argmax(1))[:, None]


def _identity(instr: Reduce) -> A.Scalar:
    if instr.kind in ("sum", "prod"):
        return int(instr.kind == "prod")
    if instr.kind in ("argmax", "argmin"):
        return 0
    largest = instr.kind == "min"
    if instr.dtype is DType.BOOL:
        return largest
    if instr.dtype.is_float:
        return float("inf") if largest else float("-inf")
    info = torch.iinfo(instr.dtype.torch)
    return info.max if largest else info.min
