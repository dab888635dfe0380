"""Writes the scalar code of a loop nest: element of a Graph node -> SSA instructions.

``Body.value(node, position)`` returns the SSA id of one element. Views turn into index arithmetic,
pointwise ops into ``Compute``, values with memory into ``Load``. Equal instructions merge. An
instruction that does not depend on the axes of the stage being written moves in front of it, into a
stage without axes: loop-invariant code is hoisted as it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lazyc.ir import loops as L
from lazyc.ir.attrs import Scalar
from lazyc.ir.graph import Node
from lazyc.ir.index import (
    Axis,
    Index,
    ValueRef,
    axis_index,
    bounds,
    linearize,
    value_index,
)
from lazyc.ir.ops import Trait
from lazyc.ir.types import Dim, DType, contiguous_strides, is_nonneg
from lazyc.passes.index_maps import InRange, Position, Read, is_plain_view, reads

Location = tuple[int, Index, DType]  # buffer param, element, its type in memory
Locate = Callable[[Node, Position], Location | None]
Known = Callable[[Node, Position], int | None]


@dataclass(slots=True)
class OpenStage:
    axes: tuple[Axis, ...]
    body: list[L.Instr] = field(default_factory=list)
    memo: dict[tuple[Any, ...], int] = field(default_factory=dict)
    varying: set[int] = field(default_factory=set)  # ids that depend on the stage's axes


class Body:
    """The instructions of a nest, stage by stage.

    ``locate(node, position)`` tells where a realized node lives (None: compute it inline);
    ``known(node, position)`` gives the SSA id of a value that this nest has just computed.
    """

    def __init__(self, locate: Locate, known: Known) -> None:
        self.locate = locate
        self.known = known
        self.dtypes: dict[int, DType] = {}
        self.stages: list[OpenStage] = []
        self._outer_memo: dict[tuple[Any, ...], int] = {}
        self._values: dict[tuple[Node, Position, int | None], int] = {}
        self._dot_axes: set[Axis] = set()
        self._prelude: OpenStage | None = None
        self._stage = OpenStage(())

    # --- stages -----------------------------------------------------------------------------------

    def open_stage(self, axes: tuple[Axis, ...]) -> None:
        """Starts a stage; one without axes first collects what the stage can hoist."""
        self._values.clear()
        self._prelude = OpenStage(())
        self._stage = OpenStage(axes) if axes else self._prelude
        self.stages.append(self._prelude)
        if axes:
            self.stages.append(self._stage)

    def finish(self) -> tuple[L.Stage, ...]:
        """The stages that hold instructions; adjacent ones without axes are joined."""
        found: list[L.Stage] = []
        for stage in self.stages:
            if not stage.body:
                continue
            if found and not stage.axes and not found[-1].axes:
                found[-1] = L.Stage((), (*found[-1].body, *stage.body))
            else:
                found.append(L.Stage(stage.axes, tuple(stage.body)))
        return tuple(found)

    # --- instructions -----------------------------------------------------------------------------

    def _emit(self, make: Callable[[int], L.Instr], key: tuple[Any, ...], dtype: DType,
              args: tuple[int | None, ...], index: Index | None = None) -> int:  # fmt: skip
        stage = self._stage
        varies = any(a in stage.varying for a in args if a is not None)
        if index is not None and not varies:
            inner = self._dot_axes.union(stage.axes)
            varies = bool(index.axes() & inner) or bool(index.value_refs() & stage.varying)
        memo = stage.memo if varies else self._outer_memo
        if key in memo:
            return memo[key]
        assert self._prelude is not None
        id = len(self.dtypes)
        self.dtypes[id] = dtype
        (stage if varies else self._prelude).body.append(make(id))
        if varies:
            stage.varying.add(id)
        memo[key] = id
        return id

    def const(self, value: Scalar, dtype: DType) -> int:
        key = ("const", dtype, repr(value), type(value))
        return self._emit(lambda id: L.Const(id, dtype, value), key, dtype, ())

    def index_value(self, index: Index) -> int:
        if index.is_const and isinstance(index.const, int):
            return self.const(index.const, DType.I64)
        if not index.is_const and index.const == 0 and len(index.terms) == 1:
            atom, coef = index.terms[0]
            if isinstance(atom, ValueRef) and coef == 1:
                return atom.value
        return self._emit(
            lambda id: L.IndexValue(id, index), ("index", index), DType.I64, (), index
        )

    def compute(self, op: str, dtype: DType, *args: int) -> int:
        return self._emit(
            lambda id: L.Compute(id, dtype, op, args), ("compute", op, dtype, args), dtype, args
        )

    def cast(self, value: int, dtype: DType) -> int:
        return value if self.dtypes[value] is dtype else self.compute("cast", dtype, value)

    def load(self, at: Location, mask: int | None) -> int:
        """An element in the type that arithmetic uses."""
        buffer, index, dtype = at
        key = ("load", buffer, index, mask)
        value = self._emit(
            lambda id: L.Load(id, dtype, buffer, index, mask), key, dtype, (mask,), index
        )
        return self.cast(value, dtype.compute)

    def store(self, at: Location, value: int, mode: Any = "set", mask: int | None = None) -> None:
        """Writes in the stage itself, never hoisted; a stored element is loaded afresh after."""
        buffer, index, dtype = at
        self._stage.body.append(L.Store(buffer, index, self.cast(value, dtype), mode, mask))

    def reduce(self, kind: L.ReduceKind, value: int, position: Index | None) -> int:
        where = None if position is None else self.index_value(position)
        dtype = DType.I64 if where is not None else self.dtypes[value]
        id = len(self.dtypes)
        self.dtypes[id] = dtype
        self._stage.body.append(L.Reduce(id, dtype, kind, value, where))
        return id

    def scan(self, kind: L.ScanKind, value: int) -> int:
        dtype = self.dtypes[value]
        id = len(self.dtypes)
        self.dtypes[id] = dtype
        self._stage.body.append(L.Scan(id, dtype, kind, value))
        self._stage.varying.add(id)
        return id

    # --- expressions ------------------------------------------------------------------------------

    def value(self, node: Node, position: Position, mask: int | None = None) -> int:
        """The element of ``node`` at ``position``, in its compute type. Nothing is read, and the
        value is unspecified, where ``mask`` is false."""
        key = (node, position, mask)
        found = self._values.get(key)
        if found is None:
            found = self.known(node, position)
            if found is None:
                at = self.locate(node, position)
                found = (
                    self.load(at, mask) if at is not None else self.expression(node, position, mask)
                )
            self._values[key] = found
        return found

    def expression(self, node: Node, position: Position, mask: int | None = None) -> int:
        """As ``value``, computed from the inputs even where the node has memory."""
        spec = node.spec
        if spec.has(Trait.POINTWISE):
            args = [self.value(r.node, r.position, mask) for r in reads(node, position)]
            return self._pointwise(node, args)
        if spec.has(Trait.VIEW):
            return self._view(node, position, mask)
        if spec.has(Trait.GATHER):
            return self._gather(node, position, mask)
        if spec.has(Trait.RANDOM):
            return self._random(node, position, mask)
        if spec.has(Trait.NESTED):
            return self._dot(node, position, mask)
        compute = node.dtype.compute
        if node.op == "constant":
            return self.const(node.attrs.value, compute)
        if node.op == "size":
            return self.cast(self.index_value(Index(node.attrs.expr)), compute)
        assert node.op == "iota", f"no loop code for {node}"
        return self.cast(self.index_value(position[0]), compute)

    def _pointwise(self, node: Node, args: list[int]) -> int:
        result = node.dtype
        if node.op == "cast":
            value = args[0]
            if result in (DType.F16, DType.BF16):  # a cast rounds, though arithmetic stays in f32
                source = self.dtypes[value]
                if not source.is_float:
                    value = self.cast(value, DType.F32)
                return self.cast(self.compute("cast", result, value), DType.F32)
            return self.cast(value, result)
        if node.op == "bitcast":
            stored = self.cast(args[0], node.inputs[0].dtype)
            return self.cast(self.compute("bitcast", result, stored), result.compute)
        return self.compute(node.op, result.compute, *args)

    def _dot(self, node: Node, position: Position, mask: int | None) -> int:
        axis = Axis(f"dot{node.id}_", node.inputs[0].shape[-1])
        self._dot_axes.add(axis)
        along = (*position, axis_index(axis))
        left, right = (self.value(x, along, mask) for x in node.inputs)
        if axis.size == 1:
            return self.compute("mul", node.dtype, left, right)
        key = ("dot", axis, left, right)
        return self._emit(
            lambda id: L.Dot(id, node.dtype, (axis,), left, right), key, node.dtype, (left, right)
        )

    def _view(self, node: Node, position: Position, mask: int | None) -> int:
        found = reads(node, position)
        if not any(r.conditions for r in found):
            (read,) = found
            return self.value(read.node, read.position, mask)
        first = found[0]
        if node.op == "window" and self._is_loaded(first):
            return self.value(first.node, first.position, self.mask(first.conditions, mask))
        if node.op in ("pad", "window"):
            fill = node.attrs.value if node.op == "pad" else 0.0 if node.dtype.is_float else 0
            result = self.const(fill, node.dtype.compute)
        else:  # cat: the last part needs no test of its own
            last = found.pop()
            test = self.mask(last.conditions, mask)
            result = self.value(last.node, last.position, test)
        for read in reversed(found):
            test = self.mask(read.conditions, None)
            if test is None:
                result = self.value(read.node, read.position, mask)
                continue
            inside = test if mask is None else self.compute("and", DType.BOOL, test, mask)
            value = self.value(read.node, read.position, inside)
            result = self.compute("where", node.dtype.compute, test, value, result)
        return result

    def _is_loaded(self, read: Read) -> bool:
        """Whether a read is a load, which gives 0 where its mask is false."""
        while self.known(read.node, read.position) is None:
            if self.locate(read.node, read.position) is not None:
                return True
            if not is_plain_view(read.node):
                return False
            (read,) = reads(read.node, read.position)
        return False

    def mask(self, conditions: tuple[InRange, ...], mask: int | None) -> int | None:
        """``mask`` and all conditions that are not certain; None when nothing is left to test."""
        result = mask
        for condition in conditions:
            low, high = bounds(condition.index)
            tests: list[int] = []
            if not is_nonneg(low - condition.low):
                limit = self.index_value(Index(condition.low))
                tests.append(
                    self.compute("ge", DType.BOOL, self.index_value(condition.index), limit)
                )
            if not is_nonneg(condition.high - 1 - high):
                limit = self.index_value(Index(condition.high))
                tests.append(
                    self.compute("lt", DType.BOOL, self.index_value(condition.index), limit)
                )
            for test in tests:
                result = test if result is None else self.compute("and", DType.BOOL, result, test)
        return result

    def _gather(self, node: Node, position: Position, mask: int | None) -> int:
        source, *indices = node.inputs
        moved = tuple(
            self.index_of(i, position, d, node.attrs.checked, mask)
            for i, d in zip(indices, source.shape, strict=True)
        )
        return self.value(source, moved, mask)

    def index_of(
        self, node: Node, position: Position, size: Dim, checked: bool, mask: int | None
    ) -> Index:
        """An i64 node's element as an index into a dim of ``size``; affine where that is known."""
        affine = self.affine(node, position)
        if affine is not None:
            low, high = bounds(affine)
            if is_nonneg(low) and is_nonneg(size - 1 - high):
                return affine
        value = self.value(node, position, mask)
        if checked:
            raw = value
            value = self._emit(
                lambda id: L.CheckIndex(id, raw, size, mask),
                ("check", raw, size, mask), DType.I64, (raw, mask),
            )  # fmt: skip
        return value_index(value, size)

    def affine(self, node: Node, position: Position) -> Index | None:
        """An integer node's element as index arithmetic over axes, where it is just that."""
        if self.known(node, position) is not None or self.locate(node, position) is not None:
            return None
        if node.op == "iota":
            return position[0]
        if node.op == "constant" and not node.dtype.is_float:
            return Index(int(node.attrs.value))
        if node.op == "size":
            return Index(node.attrs.expr)
        if is_plain_view(node):
            (read,) = reads(node, position)
            return self.affine(read.node, read.position)
        if node.dtype is DType.I64 and node.op in ("add", "sub", "mul", "cast"):
            if node.op == "cast" and node.inputs[0].dtype.is_float:
                return None
            parts = [self.affine(r.node, r.position) for r in reads(node, position)]
            if any(p is None for p in parts):
                return None
            first = parts[0]
            if node.op == "cast" or first is None:
                return first if node.op == "cast" and node.inputs[0].dtype is DType.I64 else None
            second = parts[1]
            assert second is not None
            if node.op == "mul":
                if second.is_const:
                    return first * second.const
                return second * first.const if first.is_const else None
            return first + second if node.op == "add" else first - second
        return None

    def _random(self, node: Node, position: Position, mask: int | None) -> int:
        attrs = node.attrs
        seed = self.value(node.inputs[0], (), mask)
        counter = linearize(position, contiguous_strides(attrs.shape), attrs.offset)
        draw = DType.F64 if attrs.dtype is DType.F64 else DType.F32
        dtype = DType.I64 if attrs.kind == "bits" else draw
        value = self._emit(
            lambda id: L.Random(id, dtype, attrs.kind, seed, counter),
            ("random", attrs.kind, dtype, seed, counter), dtype, (seed,), counter,
        )  # fmt: skip
        return self.cast(value, attrs.dtype.compute)
