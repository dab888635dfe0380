"""Vector math for the LLVM generator: ``emit`` gives a function as LLVM IR text.

f32 functions are inlined polynomials with a tested error bound (``BOUNDS``); f64 functions call
SLEEF. All are written for the target's native vector; other lane counts (1 for scalar code) go
through it, so that a tail element gets the same bits as one in the body of a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lazyc.codegen.base import CodegenError
from lazyc.codegen.llvm.math import exponential, externals, logarithm, special, trigonometric
from lazyc.codegen.llvm.math.builder import Builder, Kind, Value
from lazyc.codegen.llvm.math.externals import resolve
from lazyc.codegen.target import Target
from lazyc.ir.types import DType

__all__ = ["BOUNDS", "MathFunction", "arity", "emit", "resolve", "supports"]

_F32: dict[str, tuple[Callable[..., Value], int, float]] = {
    # name: (writer, number of arguments, error bound in ULP of f32 over all inputs and targets)
    "exp": (exponential.exp, 1, 1.5),
    "exp2": (exponential.exp2, 1, 1.5),
    "expm1": (exponential.expm1, 1, 2.5),
    "sigmoid": (exponential.sigmoid, 1, 2.0),
    "tanh": (exponential.tanh, 1, 2.0),
    "sinh": (exponential.sinh, 1, 1.5),
    "cosh": (exponential.cosh, 1, 1.0),
    "log": (logarithm.log, 1, 1.5),
    "log2": (logarithm.log2, 1, 2.0),
    "log10": (logarithm.log10, 1, 2.5),
    "log1p": (logarithm.log1p, 1, 2.0),
    "pow": (logarithm.pow, 2, 1.0),
    "asinh": (logarithm.asinh, 1, 1.0),
    "acosh": (logarithm.acosh, 1, 1.0),
    "atanh": (logarithm.atanh, 1, 1.0),
    "sin": (trigonometric.sin, 1, 1.5),
    "cos": (trigonometric.cos, 1, 1.5),
    "tan": (trigonometric.tan, 1, 4.0),
    "asin": (trigonometric.asin, 1, 3.0),
    "acos": (trigonometric.acos, 1, 2.0),
    "atan": (trigonometric.atan, 1, 2.0),
    "atan2": (trigonometric.atan2, 2, 2.0),
    "erf": (special.erf, 1, 2.0),
    "erfc": (special.erfc, 1, 1.0),
    "lgamma": (special.lgamma, 1, 1.0),
    "sqrt": (special.sqrt, 1, 0.5),
    "rsqrt": (special.rsqrt, 1, 2.0),
    "reciprocal": (special.reciprocal, 1, 0.5),
    "hypot": (special.hypot, 2, 1.0),
}
BOUNDS: dict[str, float] = {name: entry[2] for name, entry in _F32.items()}
_F64_INLINE: dict[str, Callable[..., Value]] = {
    "sqrt": special.sqrt,
    "rsqrt": special.rsqrt,
    "reciprocal": special.reciprocal,
    "sigmoid": lambda b, x: 1.0 / (externals.external(b, "exp", -x) + 1.0),
}
_KINDS: dict[DType, Kind] = {DType.F32: "float", DType.F64: "double"}


@dataclass(frozen=True, slots=True)
class MathFunction:
    """A function in LLVM IR. A module needs, each once: ``declares``, ``text``, and the definitions
    of ``helpers``, which functions share (compare them by ``symbol``)."""

    symbol: str
    text: str
    declares: tuple[str, ...]
    helpers: tuple[MathFunction, ...] = ()


def supports(name: str, dtype: DType) -> bool:
    return name in _F32 and dtype in _KINDS


def arity(name: str) -> int:
    return _F32[name][1]


def native_lanes(dtype: DType, target: Target) -> int:
    return target.vector_bytes // dtype.itemsize


def emit(name: str, dtype: DType, lanes: int, target: Target) -> MathFunction:
    """The function ``name`` on ``<lanes x dtype>``, or on the scalar type when lanes is 1.

    The definition is ``internal alwaysinline``. Raises CodegenError for a name or dtype without code.
    """
    if not supports(name, dtype):
        raise CodegenError(f"no vector function {name!r} for {dtype.value}")
    core = _native(name, dtype, target)
    if lanes == native_lanes(dtype, target):
        return core
    return _adapted(core, name, dtype, lanes, target)


def _symbol(name: str, dtype: DType, lanes: int) -> str:
    return f"lazyc_{name}_{dtype.value}x{lanes}"


def _native(name: str, dtype: DType, target: Target) -> MathFunction:
    kind, lanes = _KINDS[dtype], native_lanes(dtype, target)
    b = Builder(target, lanes)
    args = [Value(b, f"%x{k}", kind) for k in range(arity(name))]
    if dtype is DType.F32:
        result = _F32[name][0](b, *args)
    elif name in _F64_INLINE:
        result = _F64_INLINE[name](b, *args)
    else:
        result = externals.external(b, name, *args)
    symbol, vector = _symbol(name, dtype, lanes), b.type(kind)
    params = ", ".join(f"{vector} {a.text}" for a in args)
    text = "\n".join(
        (
            f"define internal {vector} @{symbol}({params}) alwaysinline nounwind {{",
            "entry:",
            *b.lines,
            f"  ret {vector} {result.text}",
            "}",
        )
    )
    helpers = tuple(MathFunction(s, t, ()) for s, t in b.helpers.items())
    return MathFunction(symbol, text, tuple(b.declares), helpers)


def _adapted(
    core: MathFunction, name: str, dtype: DType, lanes: int, target: Target
) -> MathFunction:
    """``core`` for another number of lanes: in native pieces, the last one filled up with zeros."""
    kind, width = _KINDS[dtype], native_lanes(dtype, target)
    native, outer = f"<{width} x {kind}>", kind if lanes == 1 else f"<{lanes} x {kind}>"
    symbol, count = _symbol(name, dtype, lanes), arity(name)
    params = ", ".join(f"{outer} %x{k}" for k in range(count))
    lines = [f"define internal {outer} @{symbol}({params}) alwaysinline nounwind {{"]
    if lanes == 1:
        for k in range(count):
            lines.append(f"  %v{k} = insertelement {native} zeroinitializer, {kind} %x{k}, i64 0")
        args = ", ".join(f"{native} %v{k}" for k in range(count))
        lines.append(f"  %y = call {native} @{core.symbol}({args})")
        lines.append(f"  %r = extractelement {native} %y, i64 0")
    else:
        lines += _pieces(core.symbol, kind, lanes, width, count)
    lines += [f"  ret {outer} %r", "}"]
    inner = MathFunction(core.symbol, core.text, ())
    return MathFunction(symbol, "\n".join(lines), core.declares, (*core.helpers, inner))


def _pieces(core: str, kind: Kind, lanes: int, width: int, count: int) -> list[str]:
    """Cuts ``<lanes>`` into vectors of ``width``, calls ``core`` on each, joins the results in %r."""
    native, outer = f"<{width} x {kind}>", f"<{lanes} x {kind}>"
    lines: list[str] = []
    joined = "poison"
    for start in range(0, lanes, width):
        inside = range(start, min(start + width, lanes))
        for k in range(count):
            # Lane `lanes` is the first one of the second operand: a zero.
            mask = _mask([*inside, *[lanes] * (width - len(inside))])
            lines.append(
                f"  %v{k}_{start} = shufflevector {outer} %x{k}, {outer} zeroinitializer, {mask}"
            )
        args = ", ".join(f"{native} %v{k}_{start}" for k in range(count))
        lines.append(f"  %y{start} = call {native} @{core}({args})")
        spread = _mask([i - start if i in inside else 0 for i in range(lanes)])
        lines.append(f"  %w{start} = shufflevector {native} %y{start}, {native} poison, {spread}")
        blend = _mask([lanes + i if i in inside else i for i in range(lanes)])
        last = start + width >= lanes
        result = "%r" if last else f"%j{start}"
        lines.append(f"  {result} = shufflevector {outer} {joined}, {outer} %w{start}, {blend}")
        joined = result
    return lines


def _mask(positions: list[int]) -> str:
    inside = ", ".join(f"i32 {p}" for p in positions)
    return f"<{len(positions)} x i32> <{inside}>"
