"""Writes LLVM IR for vector functions: typed values with Python operators.

``Value`` is an SSA value or a constant; ``a * b + 1.0`` appends the instructions to its builder.
A builder is for one function of a fixed number of lanes, the native vector width of the target, so
the vector instructions that have no portable spelling in LLVM IR can be called directly.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal, TypeAlias

from lazyc.codegen.target import Target

Kind: TypeAlias = Literal["float", "double", "i32", "i64", "i1"]
Number: TypeAlias = float | int
_SHORT = {"float": "f32", "double": "f64", "i32": "i32", "i64": "i64", "i1": "i1"}
_INTEGER_OF: dict[str, Kind] = {"float": "i32", "double": "i64"}


def single(value: float) -> float:
    """The float32 nearest to a value."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def literal(value: Number, kind: Kind) -> str:
    """A constant as LLVM writes it; a float constant must be representable in its kind."""
    if kind == "float":
        assert value != value or single(value) == value, value
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
    if kind == "double":
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
    assert isinstance(value, int)
    return ("true" if value else "false") if kind == "i1" else str(value)


@dataclass(frozen=True, slots=True)
class Value:
    """A vector of the builder's lanes; ``text`` is an SSA name or a constant."""

    builder: Builder
    text: str
    kind: Kind

    def __add__(self, other: Value | Number) -> Value:
        return self.builder.binary("add", self, other)

    def __sub__(self, other: Value | Number) -> Value:
        return self.builder.binary("sub", self, other)

    def __rsub__(self, other: Number) -> Value:
        return self.builder.binary("sub", self.builder.const(other, self.kind), self)

    def __mul__(self, other: Value | Number) -> Value:
        return self.builder.binary("mul", self, other)

    def __truediv__(self, other: Value | Number) -> Value:
        return self.builder.binary("div", self, other)

    def __rtruediv__(self, other: Number) -> Value:
        return self.builder.binary("div", self.builder.const(other, self.kind), self)

    def __and__(self, other: Value | int) -> Value:
        return self.builder.bitwise("and", self, other)

    def __or__(self, other: Value | int) -> Value:
        return self.builder.bitwise("or", self, other)

    def __xor__(self, other: Value | int) -> Value:
        return self.builder.bitwise("xor", self, other)

    def __lshift__(self, other: int) -> Value:
        return self.builder.bitwise("shl", self, other)

    def __rshift__(self, other: int) -> Value:
        """Arithmetic shift."""
        return self.builder.bitwise("ashr", self, other)

    def __neg__(self) -> Value:
        return self.builder.line(f"fneg {self.builder.type(self.kind)} {self.text}", self.kind)

    def __invert__(self) -> Value:
        return self.builder.bitwise("xor", self, 1 if self.kind == "i1" else -1)

    def __lt__(self, other: Value | Number) -> Value:
        return self.builder.compare("lt", self, other)

    def __le__(self, other: Value | Number) -> Value:
        return self.builder.compare("le", self, other)

    def __gt__(self, other: Value | Number) -> Value:
        return self.builder.compare("gt", self, other)

    def __ge__(self, other: Value | Number) -> Value:
        return self.builder.compare("ge", self, other)

    def equals(self, other: Value | Number) -> Value:
        return self.builder.compare("eq", self, other)


@dataclass
class Builder:
    """The body of one function under construction."""

    target: Target
    lanes: int
    lines: list[str] = field(default_factory=list)
    declares: dict[str, None] = field(default_factory=dict)  # an ordered set
    helpers: dict[str, str] = field(default_factory=dict)  # symbol -> definition
    block: str = "entry"
    names: Iterator[int] = field(default_factory=count)

    @property
    def has_fma(self) -> bool:
        return self.target.has_fma

    @property
    def has_avx512(self) -> bool:
        return self.target.name == "avx512"

    # --- text -------------------------------------------------------------------------------------

    def type(self, kind: Kind) -> str:
        return f"<{self.lanes} x {kind}>"

    def line(self, text: str, kind: Kind) -> Value:
        name = f"%t{next(self.names)}"
        self.lines.append(f"  {name} = {text}")
        return Value(self, name, kind)

    def const(self, value: Number, kind: Kind) -> Value:
        return Value(self, f"splat ({kind} {literal(value, kind)})", kind)

    def table(self, values: Sequence[Number], kind: Kind) -> Value:
        """A constant with one number a lane."""
        assert len(values) == self.lanes
        inside = ", ".join(f"{kind} {literal(v, kind)}" for v in values)
        return Value(self, f"<{inside}>", kind)

    def as_value(self, x: Value | Number, kind: Kind) -> Value:
        return x if isinstance(x, Value) else self.const(x, kind)

    def call(self, name: str, kind: Kind, *args: Value | str) -> Value:
        """Calls and declares ``name``; a string argument is a scalar immediate ("i32 4")."""
        types = [self.type(a.kind) if isinstance(a, Value) else a.split()[0] for a in args]
        texts = [a.text if isinstance(a, Value) else a.split()[1] for a in args]
        self.declares[f"declare {self.type(kind)} @{name}({', '.join(types)})"] = None
        inside = ", ".join(f"{t} {x}" for t, x in zip(types, texts, strict=True))
        return self.line(f"call {self.type(kind)} @{name}({inside})", kind)

    def intrinsic(self, stem: str, *args: Value) -> Value:
        """An overloaded intrinsic whose result has its first argument's type."""
        kind = args[0].kind
        return self.call(f"llvm.{stem}.v{self.lanes}{_SHORT[kind]}", kind, *args)

    # --- instructions -----------------------------------------------------------------------------

    def binary(self, op: str, a: Value, b: Value | Number) -> Value:
        prefix = "f" if a.kind in ("float", "double") else ""
        other = self.as_value(b, a.kind)
        return self.line(f"{prefix}{op} {self.type(a.kind)} {a.text}, {other.text}", a.kind)

    def bitwise(self, op: str, a: Value, b: Value | int) -> Value:
        other = self.as_value(b, a.kind)
        return self.line(f"{op} {self.type(a.kind)} {a.text}, {other.text}", a.kind)

    def compare(self, relation: str, a: Value, b: Value | Number) -> Value:
        """Floats: ordered (false on nan); integers: signed."""
        other = self.as_value(b, a.kind)
        if a.kind in ("float", "double"):
            op = f"fcmp o{relation}"
        else:
            op = f"icmp {relation}" if relation == "eq" else f"icmp s{relation}"
        return self.line(f"{op} {self.type(a.kind)} {a.text}, {other.text}", "i1")

    def mask_bits(self, mask: Value) -> str:
        """A mask as the integer operand that AVX-512 intrinsics take, for ``call``."""
        name = f"%t{next(self.names)}"
        self.lines.append(f"  {name} = bitcast {self.type('i1')} {mask.text} to i{self.lanes}")
        return f"i{self.lanes} {name}"

    def is_nan(self, x: Value) -> Value:
        return self.line(f"fcmp uno {self.type(x.kind)} {x.text}, {x.text}", "i1")

    def select(self, mask: Value, a: Value | Number, b: Value | Number) -> Value:
        kind = a.kind if isinstance(a, Value) else b.kind if isinstance(b, Value) else "float"
        a, b = self.as_value(a, kind), self.as_value(b, kind)
        t = self.type(kind)
        return self.line(f"select {self.type('i1')} {mask.text}, {t} {a.text}, {t} {b.text}", kind)

    def fma(self, a: Value, b: Value | Number, c: Value | Number) -> Value:
        """``a*b + c``, rounded once where the target has the instruction (else it would be a call
        into libm), twice on the baseline."""
        b, c = self.as_value(b, a.kind), self.as_value(c, a.kind)
        return self.intrinsic("fma", a, b, c) if self.has_fma else a * b + c

    def horner(self, x: Value, coefs: Sequence[Number | Value]) -> Value:
        """``coefs[0] + coefs[1]*x + ...``."""
        result = self.as_value(coefs[-1], x.kind)
        for c in reversed(coefs[:-1]):
            result = self.fma(x, result, c)
        return result

    def estrin(self, x: Value, coefs: Sequence[Number | Value]) -> Value:
        """The same polynomial with fewer instructions that wait for each other (one more in all):
        ``coefs[0] + x*Q(x)``, and Q by Horner's rule in x**2 over pairs of terms (Estrin, 1960).

        With several functions in a loop body the latency of each decides how much of the next
        iteration the CPU can start. The last step alone decides the rounding error, as in Horner's.
        """
        first, *rest = coefs
        pairs = [
            self.fma(x, rest[k + 1], rest[k]) if k + 1 < len(rest) else rest[k]
            for k in range(0, len(rest), 2)
        ]
        return self.fma(x, self.horner(x * x, pairs), first)

    def minimum(self, x: Value, bound: Number) -> Value:
        """nan stays nan: the operand order is the one of x86's min instruction."""
        c = self.const(bound, x.kind)
        return self.select(c < x, c, x)

    def maximum(self, x: Value, bound: Number) -> Value:
        c = self.const(bound, x.kind)
        return self.select(c > x, c, x)

    def sqrt(self, x: Value) -> Value:
        return self.intrinsic("sqrt", x)

    def bits(self, x: Value) -> Value:
        """The bits of a float as an integer of its size."""
        kind = _INTEGER_OF[x.kind]
        return self.line(f"bitcast {self.type(x.kind)} {x.text} to {self.type(kind)}", kind)

    def from_bits(self, x: Value) -> Value:
        kind: Kind = "float" if x.kind == "i32" else "double"
        return self.line(f"bitcast {self.type(x.kind)} {x.text} to {self.type(kind)}", kind)

    def abs(self, x: Value) -> Value:
        return self.intrinsic("fabs", x)

    def copysign(self, magnitude: Value, sign: Value) -> Value:
        return self.intrinsic("copysign", magnitude, sign)

    def convert(self, op: str, x: Value, kind: Kind) -> Value:
        """``op``: fpext, fptrunc, sitofp, fptosi, sext, trunc."""
        return self.line(f"{op} {self.type(x.kind)} {x.text} to {self.type(kind)}", kind)

    def widen(self, x: Value) -> Value:
        return self.convert("fpext", x, "double")

    def narrow(self, x: Value) -> Value:
        return self.convert("fptrunc", x, "float")

    def halves(self, x: Value) -> tuple[Value, Value]:
        """The first and the last lanes of x, as values of a builder of half as many lanes that
        appends to this one."""
        half = self.with_lanes(self.lanes // 2)
        parts = []
        for start in (0, half.lanes):
            positions = ", ".join(f"i32 {start + k}" for k in range(half.lanes))
            text = (
                f"shufflevector {self.type(x.kind)} {x.text}, {self.type(x.kind)} poison,"
                f" <{half.lanes} x i32> <{positions}>"
            )
            parts.append(replace(self.line(text, x.kind), builder=half))
        return parts[0], parts[1]

    def joined(self, parts: Sequence[Value]) -> Value:
        """The inverse of ``halves``."""
        low, high = parts
        vector = low.builder.type(low.kind)
        positions = ", ".join(f"i32 {k}" for k in range(self.lanes))
        return self.line(
            f"shufflevector {vector} {low.text}, {vector} {high.text},"
            f" <{self.lanes} x i32> <{positions}>",
            low.kind,
        )

    def with_lanes(self, lanes: int) -> Builder:
        """A builder of another width that appends to the same function."""
        return replace(self, lanes=lanes)

    # --- control flow and calls -------------------------------------------------------------------

    def unless_any(self, mask: Value, usual: Value, rare: Callable[[], Value]) -> Value:
        """``usual``, or what ``rare`` computes (for all lanes) if the mask holds in any lane."""
        name = f"llvm.vector.reduce.or.v{self.lanes}i1"
        self.declares[f"declare i1 @{name}({self.type('i1')})"] = None
        tag = next(self.names)
        self.lines += [
            f"  %any{tag} = call i1 @{name}({self.type('i1')} {mask.text})",
            f"  br i1 %any{tag}, label %rare{tag}, label %join{tag}",
            f"rare{tag}:",
        ]
        before, self.block = self.block, f"rare{tag}"
        other = rare()
        self.lines += [f"  br label %join{tag}", f"join{tag}:"]
        came_from, self.block = self.block, f"join{tag}"
        return self.line(
            f"phi {self.type(usual.kind)} [ {usual.text}, %{before} ],"
            f" [ {other.text}, %{came_from} ]",
            usual.kind,
        )

    def each_lane(self, function: str, *args: Value, rare: bool = False) -> Value:
        """Calls a scalar C function for each lane, out of line; ``rare``: hardly ever reached."""
        kind = args[0].kind
        symbol = f"lazyc_each_{function}_{_SHORT[kind]}x{self.lanes}"
        self.helpers[symbol] = each_lane_text(symbol, function, kind, self.lanes, len(args))
        self.declares[f"declare {kind} @{function}({', '.join([kind] * len(args))})"] = None
        inside = ", ".join(f"{self.type(kind)} {a.text}" for a in args)
        attribute = " cold" if rare else ""
        return self.line(f"call {self.type(kind)} @{symbol}({inside}){attribute}", kind)


def each_lane_text(symbol: str, function: str, kind: Kind, lanes: int, arity: int) -> str:
    """A function that applies a scalar C function lane by lane."""
    vector = f"<{lanes} x {kind}>"
    params = ", ".join(f"{vector} %x{k}" for k in range(arity))
    lines = [f"define internal {vector} @{symbol}({params}) noinline nounwind {{"]
    result = "poison"
    for lane in range(lanes):
        for k in range(arity):
            lines.append(f"  %a{k}_{lane} = extractelement {vector} %x{k}, i64 {lane}")
        args = ", ".join(f"{kind} %a{k}_{lane}" for k in range(arity))
        lines.append(f"  %y{lane} = call {kind} @{function}({args})")
        lines.append(f"  %v{lane} = insertelement {vector} {result}, {kind} %y{lane}, i64 {lane}")
        result = f"%v{lane}"
    return "\n".join([*lines, f"  ret {vector} {result}", "}"])
