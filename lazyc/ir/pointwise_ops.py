"""The pointwise ops of the Graph IR: ``out[i] = f(in0[i], in1[i], ...)``.

Inputs already have equal shapes and dtypes: promotion and broadcasting are explicit ``cast`` and
``expand`` nodes, put there by the frontend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lazyc.ir import attrs as A
from lazyc.ir.opspec import ALLOWED, IRError, OpSpec, SymbolValues, Trait, register, tensor
from lazyc.ir.types import DType, TensorType, ValueType


def _same(name: str, types: Sequence[ValueType], dtypes: str) -> TensorType:
    first = tensor(types[0])
    for t in types:
        t = tensor(t)
        if t.shape != first.shape or t.dtype != first.dtype or t.device != first.device:
            raise IRError(f"{name}: inputs differ: {', '.join(map(str, types))}")
    if not ALLOWED[dtypes](first.dtype):
        raise IRError(f"{name}: takes {dtypes} types, got {first}")
    return first


def _pointwise(
    name: str, arity: int, fn: Callable[..., torch.Tensor], dtypes: str, traits: Trait = Trait.NONE
) -> None:
    compare = bool(traits & Trait.COMPARE)

    def infer(types: Sequence[ValueType], attrs: Any) -> ValueType:
        t = _same(name, types, dtypes)
        return t.with_dtype(DType.BOOL) if compare else t

    def evaluate(inputs: Sequence[Any], attrs: Any, values: SymbolValues) -> torch.Tensor:
        return fn(*inputs)

    register(OpSpec(name, arity, A.Attrs, traits | Trait.POINTWISE, infer, evaluate, dtypes))


def _half(fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Evaluates in f32 what torch has no half kernel for."""

    def call(*xs: torch.Tensor) -> torch.Tensor:
        if xs[0].dtype in (torch.float16, torch.bfloat16):
            return fn(*(x.float() for x in xs)).to(xs[0].dtype)
        return fn(*xs)

    return call


def _floor_div(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.div(a, b, rounding_mode="floor")


def _trunc_div(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.div(a, b, rounding_mode="trunc")


_N = Trait.NONE
_C = Trait.COSTLY
for _name, _fn, _dtypes, _traits in (
    # name, reference, input dtypes, traits. Float functions follow torch on nan, inf and -0.0.
    ("neg", torch.neg, "number", _N),  # integers wrap
    ("abs", torch.abs, "number", _N),
    ("sign", torch.sign, "number", _N),
    ("floor", torch.floor, "float", _N),
    ("ceil", torch.ceil, "float", _N),
    ("round", torch.round, "float", _N),  # half to even
    ("trunc", torch.trunc, "float", _N),
    ("exp", torch.exp, "float", _C),
    ("exp2", torch.exp2, "float", _C),
    ("expm1", torch.expm1, "float", _C),
    ("log", torch.log, "float", _C),
    ("log2", torch.log2, "float", _C),
    ("log10", torch.log10, "float", _C),
    ("log1p", torch.log1p, "float", _C),
    ("sqrt", torch.sqrt, "float", _N),
    ("rsqrt", torch.rsqrt, "float", _N),
    ("reciprocal", torch.reciprocal, "float", _N),
    ("sin", torch.sin, "float", _C),
    ("cos", torch.cos, "float", _C),
    ("tan", torch.tan, "float", _C),
    ("asin", torch.asin, "float", _C),
    ("acos", torch.acos, "float", _C),
    ("atan", torch.atan, "float", _C),
    ("sinh", torch.sinh, "float", _C),
    ("cosh", torch.cosh, "float", _C),
    ("tanh", torch.tanh, "float", _C),
    ("asinh", torch.asinh, "float", _C),
    ("acosh", torch.acosh, "float", _C),
    ("atanh", torch.atanh, "float", _C),
    ("sigmoid", torch.sigmoid, "float", _C),
    ("erf", torch.erf, "float", _C),
    ("erfc", torch.erfc, "float", _C),
    ("lgamma", torch.lgamma, "float", _C),
    ("not", torch.bitwise_not, "integral", _N),  # logical on bool, bitwise on integers
):
    _pointwise(_name, 1, _half(_fn), _dtypes, _traits)

_pointwise("isnan", 1, torch.isnan, "float", Trait.COMPARE)

_M = Trait.COMMUTATIVE
for _name, _fn, _dtypes, _traits in (
    ("add", torch.add, "number", _M),
    ("sub", torch.sub, "number", _N),
    ("mul", torch.mul, "number", _M),
    ("div", torch.div, "float", _N),
    # Integer division: a zero divisor raises eager's error; INT_MIN / -1 wraps.
    ("floor_div", _floor_div, "number", _N),
    ("trunc_div", _trunc_div, "number", _N),
    ("rem", torch.fmod, "number", _N),  # sign of the dividend (C's fmod and %)
    ("mod", torch.remainder, "number", _N),  # sign of the divisor (Python's %)
    ("pow", torch.pow, "number", _C),
    ("atan2", torch.atan2, "float", _C),
    ("hypot", torch.hypot, "float", _C),
    ("copysign", torch.copysign, "float", _N),
    ("nextafter", torch.nextafter, "float", _N),
    ("maximum", torch.maximum, "any", _M),  # nan if either is nan
    ("minimum", torch.minimum, "any", _M),
    ("fmax", torch.fmax, "float", _M),  # the other one if one is nan
    ("fmin", torch.fmin, "float", _M),
    ("and", torch.bitwise_and, "integral", _M),
    ("or", torch.bitwise_or, "integral", _M),
    ("xor", torch.bitwise_xor, "integral", _M),
    ("shl", torch.bitwise_left_shift, "integral", _N),
    ("shr", torch.bitwise_right_shift, "integral", _N),  # arithmetic for signed types
):
    _pointwise(_name, 2, _fn, _dtypes, _traits)

for _name, _fn in (
    ("eq", torch.eq),
    ("ne", torch.ne),
    ("lt", torch.lt),
    ("le", torch.le),
    ("gt", torch.gt),
    ("ge", torch.ge),
):
    _pointwise(_name, 2, _fn, "any", Trait.COMPARE)


def _infer_where(types: Sequence[ValueType], attrs: Any) -> ValueType:
    cond = tensor(types[0])
    value = _same("where", types[1:], "any")
    if cond.dtype is not DType.BOOL or cond.shape != value.shape:
        raise IRError(f"where: condition {cond} does not fit {value}")
    return value


register(
    OpSpec(
        "where", 3, A.Attrs, Trait.POINTWISE, _infer_where,
        lambda x, a, v: torch.where(x[0], x[1], x[2]),
    )
)  # fmt: skip


def _infer_cast(types: Sequence[ValueType], attrs: A.CastAttrs) -> ValueType:
    return tensor(types[0]).with_dtype(attrs.dtype)


register(
    OpSpec(
        "cast", 1, A.CastAttrs, Trait.POINTWISE, _infer_cast,
        lambda x, a, v: x[0].to(a.dtype.torch),
    )
)  # fmt: skip


def _infer_bitcast(types: Sequence[ValueType], attrs: A.BitcastAttrs) -> ValueType:
    t = tensor(types[0])
    if t.dtype.itemsize != attrs.dtype.itemsize:
        raise IRError(f"bitcast: {t.dtype} and {attrs.dtype} differ in size")
    return t.with_dtype(attrs.dtype)


register(
    OpSpec(
        "bitcast", 1, A.BitcastAttrs, Trait.POINTWISE, _infer_bitcast,
        lambda x, a, v: x[0].contiguous().view(a.dtype.torch),
    )
)  # fmt: skip
