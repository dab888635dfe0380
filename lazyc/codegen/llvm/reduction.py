"""Accumulators of reductions and scans.

An accumulator lives in a stack slot, which LLVM turns into registers. Along lanes it is a vector:
one running result a lane, combined at the end by halving (the only place where float additions are
reordered). Long float sums are kept in two levels, a run of some elements and a total that carries
its rounding error along (D. Knuth's TwoSum), so that the error does not grow with the length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lazyc.codegen.llvm import floats
from lazyc.codegen.llvm.emitter import LLVM_TYPES, Emitter, Value, constant, type_of, vector
from lazyc.codegen.llvm.region import Frame, Region
from lazyc.ir.loops import Reduce, ReduceKind, Scan, ScanKind, reduction_identity
from lazyc.ir.types import DType

_NO_POSITION = (1 << 63) - 1  # no element seen yet; loses every tie


def combine(b: Emitter, kind: ReduceKind, dtype: DType, x: str, y: str, lanes: int) -> str:
    """``x op y`` for all kinds but argmax and argmin."""
    type_ = type_of(dtype, lanes)
    if kind in ("max", "min"):
        # The accumulator x second: of equal elements the first one stays.
        return floats.extreme(b, dtype, kind == "max", y, x, lanes)
    opcode = "add" if kind == "sum" else "mul"
    return b.emit(f"{'f' if dtype.is_float else ''}{opcode} {type_} {x}, {y}")


@dataclass(frozen=True)
class Slot:
    """The running result of ``lanes`` lanes; ``total`` is the second level of a long sum, ``lost`` what
    rounding took from it, and ``position`` belongs to argmax and argmin."""

    lanes: int
    best: str
    total: str | None
    lost: str | None
    position: str | None


class Accumulator:
    """One ``Reduce`` while its stage is emitted. ``widths``: the lane counts of the stage's bodies,
    main loop first. ``dtype`` is the type of the reduced value."""

    def __init__(
        self, frame: Frame, instr: Reduce, dtype: DType, widths: tuple[int, ...], two_level: bool
    ) -> None:
        self.frame, self.instr, self.dtype = frame, instr, dtype
        self.is_arg = instr.kind in ("argmax", "argmin")
        self.two_level = two_level and dtype.is_float and instr.kind == "sum"
        self.slots = {lanes: self._new_slot(lanes) for lanes in widths}

    def _new_slot(self, lanes: int) -> Slot:
        b = self.frame.b
        type_ = type_of(self.dtype, lanes)
        start = constant(self.dtype, reduction_identity(self.instr.kind, self.dtype), lanes)
        best = b.alloca(type_)
        b.void(f"store {type_} {start}, ptr {best}")
        total = lost = position = None
        if self.two_level:
            total, lost = b.alloca(type_), b.alloca(type_)
            b.void(f"store {type_} {start}, ptr {total}")
            b.void(f"store {type_} {start}, ptr {lost}")
        if self.is_arg:
            position = b.alloca(vector("i64", lanes))
            b.void(
                f"store {vector('i64', lanes)} {constant(DType.I64, _NO_POSITION, lanes)}, "
                f"ptr {position}"
            )
        return Slot(lanes, best, total, lost, position)

    def update(self, region: Region, value: Value, position: Value | None) -> None:
        """Takes in the value of one iteration (of its active lanes)."""
        b, lanes = self.frame.b, region.lanes
        slot, type_ = self.slots[lanes], type_of(self.dtype, lanes)
        x = b.widen(value, lanes)
        old = b.emit(f"load {type_}, ptr {slot.best}")
        if slot.position is not None:
            assert position is not None
            self._update_position(slot, old, x, b.widen(position, lanes), region.active)
            return
        new = combine(b, self.instr.kind, self.dtype, old, x, lanes)
        if region.active is not None and not region.interleaved:
            mask = vector("i1", lanes)
            new = b.emit(f"select {mask} {region.active}, {type_} {new}, {type_} {old}")
        b.void(f"store {type_} {new}, ptr {slot.best}")

    def _update_position(self, slot: Slot, old: str, x: str, at: str, active: str | None) -> None:
        b, lanes = self.frame.b, slot.lanes
        type_, ints, mask = type_of(self.dtype, lanes), vector("i64", lanes), vector("i1", lanes)
        old_at = b.emit(f"load {ints}, ptr {slot.position}")
        better = self._better(x, at, old, old_at, lanes, ordered=True)
        if active is not None:
            better = b.emit(f"and {mask} {better}, {active}")
        best = b.emit(f"select {mask} {better}, {type_} {x}, {type_} {old}")
        best_at = b.emit(f"select {mask} {better}, {ints} {at}, {ints} {old_at}")
        b.void(f"store {type_} {best}, ptr {slot.best}")
        b.void(f"store {ints} {best_at}, ptr {slot.position}")

    def _better(self, x: str, x_at: str, y: str, y_at: str, lanes: int, ordered: bool) -> str:
        """Whether element x beats y: nan first, then the value, then the lower position.

        ``ordered``: x comes after y, so x wins a tie only when there is no y yet.
        """
        b = self.frame.b
        type_, ints, mask = type_of(self.dtype, lanes), vector("i64", lanes), vector("i1", lanes)
        beats = "gt" if self.instr.kind == "argmax" else "lt"
        none = constant(DType.I64, _NO_POSITION, lanes)
        if ordered:
            earlier = b.emit(f"icmp eq {ints} {y_at}, {none}")
        else:
            earlier = b.emit(f"icmp slt {ints} {x_at}, {y_at}")
        if not self.dtype.is_float:
            sign = "s" if self.dtype.is_signed else "u"
            wins = b.emit(f"icmp {sign}{beats} {type_} {x}, {y}")
            tie = b.emit(f"icmp eq {type_} {x}, {y}")
        else:
            x_nan = b.emit(f"fcmp uno {type_} {x}, {x}")
            y_nan = b.emit(f"fcmp uno {type_} {y}, {y}")
            # "u": true also when either is nan; then y must not be one.
            wins = b.emit(f"fcmp u{beats} {type_} {x}, {y}")
            number = b.emit(f"xor {mask} {y_nan}, {constant(DType.BOOL, 1, lanes)}")
            wins = b.emit(f"and {mask} {wins}, {number}")
            both = b.emit(f"and {mask} {x_nan}, {y_nan}")
            tie = b.emit(f"or {mask} {both}, {b.emit(f'fcmp oeq {type_} {x}, {y}')}")
        return b.emit(f"or {mask} {wins}, {b.emit(f'and {mask} {tie}, {earlier}')}")

    def end_run(self) -> None:
        """Adds the run to the total and starts the next run (long sums only)."""
        b = self.frame.b
        for slot in self.slots.values() if self.two_level else ():
            type_ = type_of(self.dtype, slot.lanes)

            def op(opcode: str, x: str, y: str, type_: str = type_) -> str:
                return b.emit(f"{opcode} {type_} {x}, {y}")

            run, total, lost = (
                b.emit(f"load {type_}, ptr {s}") for s in (slot.best, slot.total, slot.lost)
            )
            new = op("fadd", total, run)
            added = op("fsub", new, total)
            error = op("fadd", op("fsub", total, op("fsub", new, added)), op("fsub", run, added))
            # An infinite total would turn its own error into nan.
            size = b.intrinsic("fabs", LLVM_TYPES[self.dtype], slot.lanes, error)
            finite = op("fcmp olt", size, constant(self.dtype, math.inf, slot.lanes))
            zero = constant(self.dtype, 0, slot.lanes)
            error = b.emit(
                f"select {vector('i1', slot.lanes)} {finite}, {type_} {error}, {type_} {zero}"
            )
            b.void(f"store {type_} {new}, ptr {slot.total}")
            b.void(f"store {type_} {op('fadd', lost, error)}, ptr {slot.lost}")
            b.void(f"store {type_} {zero}, ptr {slot.best}")

    def finish(self, across_lanes: bool) -> Value:
        """The result: one a lane, or of all lanes together. Ends every run first (``end_run``)."""
        b = self.frame.b
        states = []
        for slot in self.slots.values():
            type_ = type_of(self.dtype, slot.lanes)
            best = b.emit(f"load {type_}, ptr {slot.total or slot.best}")
            if slot.lost is not None:
                lost = b.emit(f"load {type_}, ptr {slot.lost}")
                best = b.emit(f"fadd {type_} {best}, {lost}")
            at = ""
            if slot.position is not None:
                at = b.emit(f"load {vector('i64', slot.lanes)}, ptr {slot.position}")
            states.append((slot.lanes, best, at))
        lanes, best, at = states[0]
        if across_lanes:
            for width, more, more_at in states[1:]:
                lanes, best, at = self._halve(lanes, best, at, width)
                best, at = self._merge(best, at, more, more_at, lanes)
            lanes, best, at = self._halve(lanes, best, at, 1)
        return b.value(at if self.is_arg else best, self.instr.dtype, lanes)

    def _merge(self, x: str, x_at: str, y: str, y_at: str, lanes: int) -> tuple[str, str]:
        b = self.frame.b
        if not self.is_arg:
            return combine(b, self.instr.kind, self.dtype, x, y, lanes), ""
        type_, ints, mask = type_of(self.dtype, lanes), vector("i64", lanes), vector("i1", lanes)
        better = self._better(x, x_at, y, y_at, lanes, ordered=False)
        return (
            b.emit(f"select {mask} {better}, {type_} {x}, {type_} {y}"),
            b.emit(f"select {mask} {better}, {ints} {x_at}, {ints} {y_at}"),
        )

    def _halve(self, lanes: int, best: str, at: str, to: int) -> tuple[int, str, str]:
        """Combines the two halves of the lanes until ``to`` are left."""
        b = self.frame.b
        while lanes > to:
            half = lanes // 2
            low, high = (_half(b, best, type_of(self.dtype), lanes, k) for k in (0, 1))
            low_at = high_at = ""
            if at:
                low_at, high_at = (_half(b, at, "i64", lanes, k) for k in (0, 1))
            best, at = self._merge(low, low_at, high, high_at, half)
            lanes = half
        return lanes, best, at


def _half(b: Emitter, text: str, element: str, lanes: int, which: int) -> str:
    type_, half = vector(element, lanes), lanes // 2
    if half == 1:
        return b.emit(f"extractelement {type_} {text}, i64 {which}")
    order = ", ".join(f"i32 {which * half + k}" for k in range(half))
    return b.emit(f"shufflevector {type_} {text}, {type_} poison, <{half} x i32> <{order}>")


class ScanState:
    """The running result of a ``Scan``."""

    def __init__(self, frame: Frame, instr: Scan, lanes: int) -> None:
        self.frame, self.instr = frame, instr
        self.type = type_of(instr.dtype, lanes)
        self.slot = frame.b.alloca(self.type)
        kind: ScanKind = instr.kind
        start = constant(instr.dtype, reduction_identity(kind, instr.dtype), lanes)
        frame.b.void(f"store {self.type} {start}, ptr {self.slot}")

    def step(self, region: Region, value: Value) -> Value:
        """The running result with one more element."""
        b = self.frame.b
        old = b.emit(f"load {self.type}, ptr {self.slot}")
        x = b.widen(value, region.lanes)
        new = combine(b, self.instr.kind, self.instr.dtype, old, x, region.lanes)
        b.void(f"store {self.type} {new}, ptr {self.slot}")
        return b.value(new, self.instr.dtype, region.lanes)
