"""Random loop nests: the kernel computes what the reference evaluator of nests does."""

from __future__ import annotations

import random

import pytest
import sympy
import torch

from lazyc.ir.index import Axis, Index, axis_index, floordiv, mod, value_index
from lazyc.ir.loops import (
    BufferParam,
    CheckIndex,
    Compute,
    Const,
    IndexValue,
    Load,
    LoopNest,
    Reduce,
    Stage,
)
from lazyc.ir.nest_interp import run_nest
from lazyc.ir.nest_verify import verify_nest
from lazyc.ir.types import Dim, DType
from tests.codegen.harness import AnyTarget, Body, kernel, row_major

F32, I32, I64, BOOL = DType.F32, DType.I32, DType.I64, DType.BOOL
_SYMBOLS = tuple(sympy.Symbol(f"n{k}", integer=True, positive=True) for k in range(4))
_FLOAT_OPS = ("add", "sub", "mul", "maximum", "minimum", "fmin", "abs", "neg", "floor", "sign")
_INT_OPS = ("add", "sub", "mul", "maximum", "and", "xor", "not", "floor_div", "mod", "rem", "shl")
_UNARY = ("abs", "neg", "floor", "sign", "not")
_LARGEST = 200_000  # elements of a buffer


class Nests:
    """Draws nests over small whole numbers, so that float sums are exact in any order."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.body = Body()
        self.buffers: list[BufferParam] = []
        self.data: list[torch.Tensor] = []
        self.symbolic = self.rng.random() < 0.4
        self.sizes: dict[sympy.Symbol, int] = {}
        self.known: dict[Axis, int] = {}
        self.shared: list[tuple[int, DType]] = []  # values of the outer point

    def axis(self, name: str) -> Axis:
        """An axis, symbolic at times."""
        size = self.rng.choice([1, 2, 3, 5, 8, 16, 17, 31, 33, 40, 70, 130])
        dim: Dim = size
        if self.symbolic and len(self.sizes) < len(_SYMBOLS):
            dim = _SYMBOLS[len(self.sizes)]
            self.sizes[dim] = size
        axis = Axis(name, dim)
        self.known[axis] = size
        return axis

    def number(self, dim: Dim) -> int:
        return dim if isinstance(dim, int) else int(dim.subs(self.sizes))

    def extent(self, index: Index) -> tuple[int, int]:
        """Least and greatest value of an index without loaded parts, by its axes' true sizes."""
        low = high = self.number(index.const)
        for atom, coef in index.terms:
            step = self.number(coef)
            if isinstance(atom, Axis):
                reach = [0, step * (self.known[atom] - 1)]
            else:
                ends = self.extent(atom.base)  # type: ignore[union-attr]
                divisor = self.number(atom.divisor)  # type: ignore[union-attr]
                is_mod = type(atom).__name__ == "Mod"
                reach = [
                    step * v for v in ((0, divisor - 1) if is_mod else (e // divisor for e in ends))
                ]
            low, high = low + min(reach), high + max(reach)
        return low, high

    def index(self, axes: tuple[Axis, ...]) -> Index:
        """A read index: any order of the axes, some missing, with strides, // and %."""
        chosen = [a for a in axes if self.rng.random() < 0.8]
        self.rng.shuffle(chosen)
        total = Index(self.rng.choice([0, 0, 3]))
        for axis in chosen:
            factor = self.rng.choice([1, 1, 1, 2, -1, 3])
            total = total * axis.size + axis_index(axis) * factor
        if self.rng.random() < 0.3:
            low, _ = self.extent(total)
            block = self.rng.choice([2, 7, 16, 64])
            moved = total + max(0, -low)
            total = floordiv(moved, block) * (block + 1) + mod(moved, block)
        low, high = self.extent(total)
        total = total + max(0, -low)
        return axis_index(axes[-1]) if high - low > _LARGEST and axes else total

    def load(self, axes: tuple[Axis, ...], dtype: DType) -> int:
        index = self.index(axes)
        if self.rng.random() < 0.25:
            position = self.load_plain(axes, I64, index)
            rows = self.rng.choice([1, 7, 20])
            checked = self.body.add(CheckIndex, position, rows)
            return self.add_load(dtype, value_index(checked, rows) * 3 + 1, rows * 3)
        if self.rng.random() < 0.25:
            mask = self.load_plain(axes, BOOL, self.index(axes))
            shift = self.rng.choice([0, 1000])
            size = self.extent(index)[1] + 1 + shift
            number = self.new_buffer(dtype, size)
            return self.body.add(Load, dtype, number, index + shift, mask, 5)
        return self.load_plain(axes, dtype, index)

    def load_plain(self, axes: tuple[Axis, ...], dtype: DType, index: Index) -> int:
        return self.add_load(dtype, index, self.extent(index)[1] + 1)

    def add_load(self, dtype: DType, index: Index, size: int) -> int:
        return self.body.add(Load, dtype, self.new_buffer(dtype, size), index)

    def new_buffer(self, dtype: DType, size: int, role: str = "in") -> int:
        self.buffers.append(BufferParam(dtype, role, size))  # type: ignore[arg-type]
        if role != "scratch":
            low = -1 if dtype is I64 else -5
            data = torch.randint(0 if dtype is BOOL else low, 2 if dtype is BOOL else 8, (size,))
            self.data.append(data.to(dtype.torch))
        return len(self.buffers) - 1

    def expression(self, axes: tuple[Axis, ...], dtype: DType, depth: int) -> int:
        """A value of ``dtype`` from loads, constants, indices and earlier results."""
        roll = self.rng.random()
        earlier = [v for v, d in self.shared if d is dtype]
        if depth == 0 or roll < 0.15:
            if earlier and self.rng.random() < 0.5:
                return self.rng.choice(earlier)
            if roll < 0.05:
                return self.body.add(Const, dtype, self.rng.choice([0, 1, -2, 3]))
            if roll < 0.1 and axes:
                position = self.body.add(IndexValue, self.index(axes))
                value = self.body.add(Compute, I32, "cast", (position,))
                return value if dtype is I32 else self.body.add(Compute, F32, "cast", (value,))
            return self.load(axes, dtype)
        if roll < 0.3:
            left, right = (self.expression(axes, dtype, depth - 1) for _ in range(2))
            below = self.body.add(Compute, BOOL, self.rng.choice(["lt", "eq", "ge"]), (left, right))
            return self.body.add(Compute, dtype, "where", (below, left, right))
        op = self.rng.choice(_FLOAT_OPS if dtype is F32 else _INT_OPS)
        count = 1 if op in _UNARY else 2
        args = tuple(self.expression(axes, dtype, depth - 1) for _ in range(count))
        return self.body.add(Compute, dtype, op, args)

    def nest(self) -> LoopNest:
        rng = self.rng
        outer = tuple(self.axis(f"p{k}") for k in range(rng.choice([0, 1, 1, 2, 3])))
        stages: list[Stage] = []
        for number in range(rng.choice([1, 1, 2, 3])):
            axes = tuple(self.axis(f"s{number}_{k}") for k in range(rng.choice([0, 1, 1, 2])))
            stages += self.stage(outer, axes)
        return LoopNest(
            outer, tuple(stages), tuple(self.buffers), tuple(self.sizes),
            rng.choice(["outer", "inner", "none"]),  # type: ignore[arg-type]
        )  # fmt: skip

    def stage(self, outer: tuple[Axis, ...], axes: tuple[Axis, ...]) -> list[Stage]:
        """A stage that stores or reduces; reductions are stored by one more."""
        dtype = self.rng.choice([F32, I32])
        everything = (*outer, *axes)
        value = self.expression(everything, dtype, 2)
        if not axes or self.rng.random() < 0.5:
            size = 1
            for axis in everything:
                size *= self.known[axis]
            out = self.new_buffer(dtype, size, "out")
            self.body.store(out, row_major(everything), value)
            if not axes:
                self.shared.append((value, dtype))
            return [self.body.stage(*axes)]
        kind = self.rng.choice(["sum", "max", "min", "argmax"])
        position = self.body.add(IndexValue, row_major(axes)) if kind == "argmax" else None
        result = I64 if kind == "argmax" else dtype
        total = self.body.add(Reduce, result, kind, value, position)
        loop = self.body.stage(*axes)
        if result is not I64:
            self.shared.append((total, result))
        size = 1
        for axis in outer:
            size *= self.known[axis]
        self.body.store(self.new_buffer(result, size, "out"), row_major(outer), total)
        return [loop, self.body.stage()]


def _points(drawn: Nests, nest: LoopNest) -> int:
    total = 1
    for axis in drawn.known:
        total *= drawn.known[axis] if axis in nest.axes else 1
    widest = 1
    for stage in nest.stages:
        here = 1
        for axis in stage.axes:
            here *= drawn.known[axis]
        widest = max(widest, here)
    return total * widest


@pytest.mark.parametrize("seed", range(60))
def test_random_nest(seed: int, any_target: AnyTarget) -> None:
    for attempt in range(20):  # the first draw that is small
        drawn = Nests(seed * 100 + attempt)
        nest = drawn.nest()
        if (
            _points(drawn, nest) < (4_000 if any_target == "triton" else 40_000)
            and max((len(d) for d in drawn.data), default=0) < _LARGEST
        ):
            break
    else:
        raise AssertionError("no small nest")
    verify_nest(nest)
    wanted = [d.clone() for d in drawn.data]
    error = run_nest(nest, wanted, drawn.sizes)
    got = [d.clone() for d in drawn.data]
    pieces = drawn.rng.choice([1, 2, 7])
    assert kernel(nest, any_target)(*got, sizes=tuple(drawn.sizes.values()), pieces=pieces) == error
    for mine, reference in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=0)
