"""Canonical form of a loop nest: equal kernels get equal text, whatever graph they came from.

SSA ids count up in order, buffers are numbered by first use, axes are named by place, symbols become
n0, n1, ... Values that nothing reads are dropped.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Literal, TypeVar, cast

import sympy

from lazyc.ir import loops as L
from lazyc.ir.index import Axis, FloorDiv, Index, Mod, ValueRef
from lazyc.ir.nest_values import operands, own_axes
from lazyc.ir.types import Dim, DType

_Key = TypeVar("_Key", bound=Hashable)


def finish_nest(
    axes: tuple[Axis, ...],
    stages: tuple[L.Stage, ...],
    params: Mapping[_Key, tuple[int, DType, Dim]],
    vectorize: Literal["outer", "inner", "none"],
    comment: str,
) -> tuple[L.LoopNest, list[_Key], tuple[Dim, ...]]:
    """The canonical nest, the keys of its buffer params in order, and the values of its symbols.

    ``params`` maps the caller's key of a buffer to (number in ``stages``, dtype, numel).
    """
    stages = _drop_dead(stages)
    rename = _Renamer(axes, stages)
    new_stages = tuple(rename.stage(s) for s in stages)
    by_number = {number: (key, dtype, extent) for key, (number, dtype, extent) in params.items()}
    keys: list[_Key] = []
    buffers: list[L.BufferParam] = []
    for number in rename.buffers:
        key, dtype, extent = by_number[number]
        keys.append(key)
        role = "scratch" if not isinstance(key, int) else _role(rename.buffers[number], new_stages)
        buffers.append(L.BufferParam(dtype, role, rename.dim(extent)))
    nest = L.LoopNest(
        tuple(rename.axis(a) for a in axes),
        new_stages,
        tuple(buffers),
        tuple(rename.symbols.values()),
        vectorize,
        comment,
    )
    return nest, keys, tuple(rename.symbols)


def _role(number: int, stages: tuple[L.Stage, ...]) -> Literal["in", "out", "inout"]:
    loaded = stored = False
    for stage in stages:
        for instr in stage.body:
            if isinstance(instr, L.Load) and instr.buffer == number:
                loaded = True
            if isinstance(instr, L.Store) and instr.buffer == number:
                stored = True
                loaded = loaded or instr.mode != "set"
    return "inout" if loaded and stored else "out" if stored else "in"


def _drop_dead(stages: tuple[L.Stage, ...]) -> tuple[L.Stage, ...]:
    needed: set[int] = set()
    kept: list[L.Stage] = []
    for stage in reversed(stages):
        body: list[L.Instr] = []
        for instr in reversed(stage.body):
            # A checked index stays: it may have to report an error.
            if isinstance(instr, L.Store | L.CheckIndex) or instr.id in needed:
                body.append(instr)
                needed |= set(operands(instr))
        if body:
            kept.append(L.Stage(stage.axes, tuple(reversed(body))))
    return tuple(reversed(kept))


class _Renamer:
    def __init__(self, axes: tuple[Axis, ...], stages: tuple[L.Stage, ...]) -> None:
        self.ids: dict[int, int] = {}
        self.buffers: dict[int, int] = {}
        self.symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        self._names: dict[str, str] = {}
        self._axes: dict[Axis, Axis] = {}
        for k, axis in enumerate(axes):
            self._names[axis.name] = f"p{k}"
        count = 0
        for stage in stages:
            for axis in stage.axes:  # which stages may share
                if axis.name not in self._names:
                    self._names[axis.name] = f"r{count}"
                    count += 1
        dots = dict.fromkeys(a.name for stage in stages for a in own_axes(stage.body))
        self._names |= {name: f"e{k}" for k, name in enumerate(dots)}

    def dim(self, dim: Dim) -> Dim:
        if isinstance(dim, int):
            return dim
        for symbol in cast("list[sympy.Symbol]", sorted(dim.free_symbols, key=str)):
            if symbol not in self.symbols:
                name = f"n{len(self.symbols)}"
                self.symbols[symbol] = sympy.Symbol(name, integer=True, positive=True)
        return cast(sympy.Expr, dim.xreplace(self.symbols))

    def axis(self, axis: Axis) -> Axis:
        if axis not in self._axes:
            self._axes[axis] = Axis(self._names[axis.name], self.dim(axis.size))
        return self._axes[axis]

    def index(self, index: Index) -> Index:
        result = Index(self.dim(index.const))
        for atom, coef in index.terms:
            new: Axis | ValueRef | FloorDiv | Mod
            if isinstance(atom, Axis):
                new = self.axis(atom)
            elif isinstance(atom, ValueRef):
                new = ValueRef(self.ids[atom.value], self.dim(atom.size))
            else:
                new = type(atom)(self.index(atom.base), self.dim(atom.divisor))
            result = result + Index(0, ((new, self.dim(coef)),))
        return result

    def _id(self, old: int | None) -> int | None:
        return None if old is None else self.ids[old]

    def _define(self, old: int) -> int:
        return self.ids.setdefault(old, len(self.ids))

    def _buffer(self, number: int) -> int:
        return self.buffers.setdefault(number, len(self.buffers))

    def stage(self, stage: L.Stage) -> L.Stage:
        axes = tuple(self.axis(a) for a in stage.axes)
        return L.Stage(axes, tuple(self._instr(i) for i in stage.body))

    def _instr(self, i: L.Instr) -> L.Instr:
        if isinstance(i, L.Store):
            index, value, mask = self.index(i.index), self.ids[i.value], self._id(i.mask)
            return replace(i, buffer=self._buffer(i.buffer), index=index, value=value, mask=mask)
        if isinstance(i, L.Const):
            return replace(i, id=self._define(i.id))
        if isinstance(i, L.IndexValue):
            return replace(i, id=self._define(i.id), index=self.index(i.index))
        if isinstance(i, L.Load):
            index, mask = self.index(i.index), self._id(i.mask)
            buffer = self._buffer(i.buffer)
            return replace(i, id=self._define(i.id), buffer=buffer, index=index, mask=mask)
        if isinstance(i, L.Compute):
            args = tuple(self.ids[a] for a in i.args)
            return replace(i, id=self._define(i.id), args=args)
        if isinstance(i, L.CheckIndex):
            value, mask, size = self.ids[i.value], self._id(i.mask), self.dim(i.size)
            return replace(i, id=self._define(i.id), value=value, mask=mask, size=size)
        if isinstance(i, L.Random):
            seed, counter = self.ids[i.seed], self.index(i.counter)
            return replace(i, id=self._define(i.id), seed=seed, counter=counter)
        if isinstance(i, L.Reduce):
            value, position = self.ids[i.value], self._id(i.position)
            return replace(i, id=self._define(i.id), value=value, position=position)
        if isinstance(i, L.Dot):
            left, right = self.ids[i.left], self.ids[i.right]
            axes = tuple(self.axis(a) for a in i.axes)
            return replace(i, id=self._define(i.id), axes=axes, left=left, right=right)
        return replace(i, id=self._define(i.id), value=self.ids[i.value])
