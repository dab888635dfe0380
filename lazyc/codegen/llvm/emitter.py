"""Writes LLVM IR as text: fresh names, loops, and code placed as far out as it can be.

Every open loop (or branch) has a ``Scope`` of its own. A scope's text joins its parent's only when it
closes, so a line added to an outer scope in the meantime lands before the inner loop: that is how
address arithmetic leaves loops (``Int`` knows the depth of the scope that defined it). Code placed
that way is also shared: equal text in one scope is emitted once.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from lazyc.codegen.target import Target
from lazyc.ir.attrs import Scalar
from lazyc.ir.types import DType

# The LLVM type of a value in a register. Half types are bit patterns: arithmetic never sees them.
LLVM_TYPES: dict[DType, str] = {
    DType.BOOL: "i1",
    DType.U8: "i8",
    DType.I8: "i8",
    DType.I16: "i16",
    DType.I32: "i32",
    DType.I64: "i64",
    DType.F16: "i16",
    DType.BF16: "i16",
    DType.F32: "float",
    DType.F64: "double",
}
# How intrinsics call these types ("v16f32").
_SUFFIX = {"float": "f32", "double": "f64", "half": "f16", "ptr": "p0"}


def vector(element: str, lanes: int) -> str:
    """The type of ``lanes`` elements; a scalar for one lane."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


def type_of(dtype: DType, lanes: int = 1) -> str:
    return vector(LLVM_TYPES[dtype], lanes)


def suffix(element: str, lanes: int) -> str:
    """The part of an overloaded intrinsic's name that stands for a type."""
    name = _SUFFIX.get(element, element)
    return name if lanes == 1 else f"v{lanes}{name}"


def splat(element: str, literal: str, lanes: int) -> str:
    """A constant vector operand of equal lanes (a plain constant for one lane)."""
    return literal if lanes == 1 else f"splat ({element} {literal})"


def literal(dtype: DType, value: Scalar) -> str:
    """A constant of ``dtype``; integers wrap, floats round to the type."""
    if dtype is DType.BOOL:
        return "true" if value else "false"
    if dtype in (DType.F16, DType.BF16):
        return str(torch.tensor(float(value), dtype=dtype.torch).view(torch.int16).item())
    if dtype is DType.F32:
        value = ctypes.c_float(value).value
    if dtype.is_float:
        bits = (
            0x7FF8 << 48 if math.isnan(value) else struct.unpack("<Q", struct.pack("<d", value))[0]
        )
        return f"0x{bits:016X}"
    bits = dtype.itemsize * 8
    wrapped = int(value) & ((1 << bits) - 1)
    return str(wrapped - (1 << bits) if wrapped >> (bits - 1) else wrapped)


def constant(dtype: DType, value: Scalar, lanes: int = 1) -> str:
    return splat(LLVM_TYPES[dtype], literal(dtype, value), lanes)


def iota(element: str, lanes: int, step: int = 1, start: int = 0) -> str:
    """The constant ``start, start + step, ...`` of ``lanes`` integers."""
    if lanes == 1:
        return str(start)
    return "<" + ", ".join(f"{element} {start + step * k}" for k in range(lanes)) + ">"


_EACH_LANE = """define internal {type} @{symbol}({type} %x, {type} %y) noinline nounwind {{
entry:
  %xs = alloca {type}
  %ys = alloca {type}
  store {type} %x, ptr %xs
  store {type} %y, ptr %ys
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %xp = getelementptr {element}, ptr %xs, i64 %i
  %yp = getelementptr {element}, ptr %ys, i64 %i
  %a = load {element}, ptr %xp
  %b = load {element}, ptr %yp
  %r = {opcode} {element} %a, %b
  store {element} %r, ptr %xp
  %next = add nuw i64 %i, 1
  %again = icmp ult i64 %next, {lanes}
  br i1 %again, label %loop, label %done
done:
  %out = load {type}, ptr %xs
  ret {type} %out
}}"""


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the nest's body: an operand, its type, and the depth of the defining scope."""

    text: str
    dtype: DType
    lanes: int
    depth: int

    @property
    def type(self) -> str:
        return type_of(self.dtype, self.lanes)


@dataclass(frozen=True, slots=True)
class Int:
    """A scalar i64 operand of index arithmetic; ``known`` is its value where that is a constant."""

    text: str
    depth: int
    known: int | None = None


def integer(value: int) -> Int:
    return Int(str(value), 0, value)


@dataclass(slots=True)
class Scope:
    """Code at one depth. ``label`` is its current block; ``certain``: it runs whenever the scope
    around it runs."""

    lines: list[str]
    label: str
    certain: bool
    shared: dict[str, str] = field(default_factory=dict)


class Emitter:
    """The body of one LLVM function while it is written, and what its module must contain."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.scopes = [Scope([], "entry", True)]
        self.allocas: list[str] = []
        self.declares: dict[str, str] = {}  # symbol or text -> declaration
        self.definitions: dict[str, str] = {}  # symbol -> text of an internal function
        self._count = 0

    # --- lines ------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        return len(self.scopes) - 1

    def fresh(self, hint: str = "v") -> str:
        self._count += 1
        return f"{hint}.{self._count}"  # the dot keeps p1.2 and p.12 apart

    def void(self, text: str) -> None:
        """An instruction without a result."""
        self.scopes[-1].lines.append(f"  {text}")

    def emit(self, text: str, hint: str = "v") -> str:
        """An instruction in the innermost scope; its result's name."""
        name = f"%{self.fresh(hint)}"
        self.scopes[-1].lines.append(f"  {name} = {text}")
        return name

    def shared(self, text: str, depth: int, hint: str = "x") -> str:
        """A pure instruction in the scope at ``depth``; emitted once for equal text."""
        scope = self.scopes[depth]
        name = scope.shared.get(text)
        if name is None:
            name = f"%{self.fresh(hint)}"
            scope.lines.append(f"  {name} = {text}")
            scope.shared[text] = name
        return name

    def block(self, label: str) -> None:
        """Starts a basic block in the innermost scope."""
        scope = self.scopes[-1]
        scope.lines.append(f"{label}:")
        scope.label = label

    def alloca(self, type_: str, count: int = 1) -> str:
        """Stack memory, allocated once a call (promoted to registers where it can be)."""
        name = f"%{self.fresh('slot')}"
        suffix_ = f", i64 {count}" if count != 1 else ""
        self.allocas.append(f"  {name} = alloca {type_}{suffix_}, align 64")
        return name

    # --- values -----------------------------------------------------------------------------------

    def value(self, text: str, dtype: DType, lanes: int) -> Value:
        return Value(text, dtype, lanes, self.depth)

    def broadcast(self, text: str, element: str, lanes: int, depth: int | None = None) -> str:
        """A scalar operand in all lanes."""
        if lanes == 1:
            return text
        if not text.startswith("%"):
            return splat(element, text, lanes)
        type_ = vector(element, lanes)
        at = self.depth if depth is None else depth
        head = self.shared(f"insertelement {type_} poison, {element} {text}, i64 0", at, "h")
        return self.shared(
            f"shufflevector {type_} {head}, {type_} poison, <{lanes} x i32> zeroinitializer",
            at,
            "s",
        )

    def widen(self, value: Value, lanes: int) -> str:
        """The operand of ``value`` in ``lanes`` lanes."""
        if value.lanes == lanes:
            return value.text
        assert value.lanes == 1, (value, lanes)
        return self.broadcast(value.text, LLVM_TYPES[value.dtype], lanes, value.depth)

    def call(self, result: str, symbol: str, *args: tuple[str, str]) -> str:
        """A call of an intrinsic or external function, declared on first use; ``args``: (type, text).

        A type may carry attributes ("ptr align 4"); the declaration leaves them out.
        """
        plain = ", ".join(t.split(" align")[0] for t, _ in args)
        self.declares[symbol] = f"declare {result} @{symbol}({plain})"
        text = ", ".join(f"{t} {a}" for t, a in args)
        if result == "void":
            self.void(f"call void @{symbol}({text})")
            return ""
        return self.emit(f"call {result} @{symbol}({text})")

    def intrinsic(self, name: str, element: str, lanes: int, *args: str) -> str:
        """``llvm.name`` with all arguments and the result of one type."""
        type_ = vector(element, lanes)
        symbol = f"llvm.{name}.{suffix(element, lanes)}"
        return self.call(type_, symbol, *((type_, a) for a in args))

    def each_lane(self, opcode: str, element: str, lanes: int, x: str, y: str) -> str:
        """A binary instruction that CPUs lack for vectors, by a small out-of-line loop over lanes."""
        type_ = vector(element, lanes)
        if lanes == 1:
            return self.emit(f"{opcode} {element} {x}, {y}")
        symbol = f"lazyc_{opcode}_{suffix(element, lanes)}"
        self.definitions[symbol] = _EACH_LANE.format(
            symbol=symbol, opcode=opcode, element=element, type=type_, lanes=lanes
        )
        return self.emit(f"call {type_} @{symbol}({type_} {x}, {type_} {y})")

    def any_lane(self, mask: str, lanes: int) -> str:
        """i1: whether some lane of a mask is true."""
        if lanes == 1:
            return mask
        bits = self.emit(f"bitcast <{lanes} x i1> {mask} to i{lanes}")
        return self.emit(f"icmp ne i{lanes} {bits}, 0")

    # --- scalar integers --------------------------------------------------------------------------

    def _int(self, op: str, a: Int, b: Int, hint: str = "i") -> Int:
        depth = max(a.depth, b.depth)
        return Int(self.shared(f"{op} i64 {a.text}, {b.text}", depth, hint), depth)

    def add(self, a: Int, b: Int) -> Int:
        if a.known is not None and b.known is not None:
            return integer(a.known + b.known)
        if a.known == 0:
            return b
        return a if b.known == 0 else self._int("add nsw", a, b)

    def sub(self, a: Int, b: Int) -> Int:
        if a.known is not None and b.known is not None:
            return integer(a.known - b.known)
        return a if b.known == 0 else self._int("sub nsw", a, b)

    def mul(self, a: Int, b: Int) -> Int:
        if a.known is not None and b.known is not None:
            return integer(a.known * b.known)
        if a.known == 0 or b.known == 0:
            return integer(0)
        if a.known == 1:
            return b
        return a if b.known == 1 else self._int("mul nsw", a, b)

    def udiv(self, a: Int, b: Int) -> Int:
        """``a // b`` of nonnegative integers, b > 0 (anything when b is 0: code that never runs)."""
        if b.known == 0:
            return integer(0)
        if a.known is not None and b.known is not None:
            return integer(a.known // b.known)
        return a if b.known == 1 else self._int("udiv", a, b)

    def urem(self, a: Int, b: Int) -> Int:
        """``a % b`` of nonnegative integers, b > 0 (anything when b is 0: code that never runs)."""
        if b.known == 0:
            return integer(0)
        if a.known is not None and b.known is not None:
            return integer(a.known % b.known)
        return integer(0) if b.known == 1 else self._int("urem", a, b)

    def floordiv(self, a: Int, b: Int) -> Int:
        """``floor(a / b)`` for any a and b > 0 (anything when b is 0: code that never runs)."""
        if b.known == 0:
            return integer(0)
        if a.known is not None and b.known is not None:
            return integer(a.known // b.known)
        quotient, rest = self._int("sdiv", a, b), self._int("srem", a, b)
        negative = self.shared(f"icmp slt i64 {rest.text}, 0", rest.depth)
        fix = Int(self.shared(f"sext i1 {negative} to i64", rest.depth), rest.depth)
        return self.add(quotient, fix)

    def minimum(self, a: Int, b: Int) -> Int:
        if a.known is not None and b.known is not None:
            return integer(min(a.known, b.known))
        return self._extreme("smin", a, b)

    def maximum(self, a: Int, b: Int) -> Int:
        if a.known is not None and b.known is not None:
            return integer(max(a.known, b.known))
        return self._extreme("smax", a, b)

    def _extreme(self, name: str, a: Int, b: Int) -> Int:
        symbol = f"llvm.{name}.i64"
        self.declares[symbol] = f"declare i64 @{symbol}(i64, i64)"
        depth = max(a.depth, b.depth)
        return Int(self.shared(f"call i64 @{symbol}(i64 {a.text}, i64 {b.text})", depth), depth)

    # --- control flow -----------------------------------------------------------------------------

    def outermost(self, depth: int) -> int:
        """The least depth >= ``depth`` where code may stand instead of here: it is run if and only if
        this place is reached at all."""
        best = self.depth
        while best > depth and self.scopes[best].certain:
            best -= 1
        return best

    @contextmanager
    def at(self, depth: int) -> Iterator[None]:
        """Emits into the scope at ``depth``, before what is open inside of it."""
        inner = self.scopes[depth + 1 :]
        del self.scopes[depth + 1 :]
        yield
        self.scopes.extend(inner)

    @contextmanager
    def loop(self, start: Int, stop: Int, step: int, hint: str = "i") -> Iterator[Int]:
        """``for i in range(start, stop, step)``; skipped when the range is empty.

        Opens two scopes: one that runs once, and only if the loop runs at all, and the body.
        """
        static = start.known is not None and stop.known is not None
        trips = max(0, -((start.known - stop.known) // step)) if static else None  # type: ignore[operator]
        head, body, done = (self.fresh(hint) for hint in ("head", f"{hint}.loop", "done"))
        name = f"%{self.fresh(hint)}"
        self.scopes.append(Scope([], head, certain=bool(trips)))
        if trips == 1:
            yield start
            self._splice(head, done, "")
            return
        self.scopes.append(Scope([], body, certain=True))
        yield Int(name, self.depth)
        inside, before = self.scopes.pop(), self.scopes[-1]
        following, again = f"{name}.next", f"%{self.fresh('again')}"
        before.lines += [
            f"  br label %{body}",
            f"{body}:",
            f"  {name} = phi i64 [ {start.text}, %{before.label} ], [ {following}, %{inside.label} ]",
            *inside.lines,
            f"  {following} = add nuw nsw i64 {name}, {step}",
            f"  {again} = icmp slt i64 {following}, {stop.text}",
            f"  br i1 {again}, label %{body}, label %{done}",
        ]
        before.label = ""  # its last block has branched
        if trips == 0:
            self.scopes.pop()
            return
        guard = "" if trips else self._guard(start, stop)
        self._splice(head, done, guard)

    def _guard(self, start: Int, stop: Int) -> str:
        with self.at(self.depth - 1):
            return self.emit(f"icmp slt i64 {start.text}, {stop.text}")

    @contextmanager
    def branch(self, condition: str) -> Iterator[None]:
        """``if condition:`` for an i1 operand."""
        body, done = self.fresh("then"), self.fresh("done")
        self.scopes.append(Scope([], body, certain=False))
        yield
        self._splice(body, done, condition)

    @contextmanager
    def repeat(self) -> Iterator[list[str]]:
        """``do: ... while condition``; the body appends its i1 condition to the list it is given."""
        body, done = self.fresh("repeat"), self.fresh("done")
        self.scopes.append(Scope([], body, certain=True))
        conditions: list[str] = []
        yield conditions
        inside = self.scopes[-1]
        inside.lines.append(f"  br i1 {conditions[0]}, label %{body}, label %{done}")
        inside.label = ""
        self._splice(body, done, "")

    def _splice(self, label: str, done: str, condition: str) -> None:
        """Closes the innermost scope: its block ``label`` is entered (if ``condition``, unless that is
        empty) from the scope around it, which goes on at ``done``."""
        scope = self.scopes.pop()
        if condition:
            self.void(f"br i1 {condition}, label %{label}, label %{done}")
        else:
            self.void(f"br label %{label}")
        lines = self.scopes[-1].lines
        lines.append(f"{label}:")
        lines.extend(scope.lines)
        if scope.label:
            lines.append(f"  br label %{done}")
        self.block(done)
