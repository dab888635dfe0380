"""Local algebra: one way to write each thing, and nothing that can be known beforehand.

    x * 1 -> x            cast(cast(x))      -> cast(x) where the inner one is exact
    pow(x, 2) -> x * x    reshape(reshape)   -> reshape
    2 + 3 -> 5            permute(permute)   -> permute, or nothing

Rules keep the value bit for bit, or as torch itself computes it (``pow`` with small exponents).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.ops import OPS, Trait
from lazyc.ir.types import DType, numel
from lazyc.passes.rewrite import Rewriter, Rule, rewrite, scalar_value

# (narrow, wide): every narrow value is exact in the wide type.
_EXACT = {
    DType.BOOL: frozenset(DType) - {DType.BOOL},
    DType.U8: frozenset({DType.I16, DType.I32, DType.I64, DType.BF16, DType.F16, DType.F32, DType.F64}),
    DType.I8: frozenset({DType.I16, DType.I32, DType.I64, DType.BF16, DType.F16, DType.F32, DType.F64}),
    DType.I16: frozenset({DType.I32, DType.I64, DType.F32, DType.F64}),
    DType.I32: frozenset({DType.I64, DType.F64}),
    DType.I64: frozenset(),
    DType.F16: frozenset({DType.F32, DType.F64}),
    DType.BF16: frozenset({DType.F32, DType.F64}),
    DType.F32: frozenset({DType.F64}),
    DType.F64: frozenset(),
}  # fmt: skip


def canonicalize(graph: Graph) -> Graph:
    """The Graph with all rules applied once, inputs before users."""
    return rewrite(graph, _RULES)


def _fold(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    """Pointwise ops on constants are computed now, by the reference evaluator."""
    values = [scalar_value(n) for n in x]
    if any(v is None for v in values):
        return None
    args = [torch.tensor(v, dtype=n.dtype.torch) for v, n in zip(values, x, strict=True)]
    try:
        result = node.spec.evaluate(args, node.attrs, {})
    except RuntimeError:  # such as an integer division by zero: eager's error, at run time
        return None
    return b.constant(result.item(), node)


def _cast(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    (arg,), target = x, node.dtype
    if arg.dtype is target:
        return arg
    if arg.op == "cast":
        source = arg.inputs[0]
        if arg.dtype in _EXACT[source.dtype]:
            return b.cast(source, target)
    return None


def _reshape(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    (arg,) = x
    if arg.op == "reshape":
        arg = arg.inputs[0]
    if arg.shape == node.shape:
        return arg
    return b.reshape(arg, node.shape) if arg is not x[0] else None


def _permute(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    (arg,), dims = x, node.attrs.dims
    if arg.op == "permute":
        dims = tuple(arg.attrs.dims[d] for d in dims)
        arg = arg.inputs[0]
    if dims == tuple(range(len(dims))):
        return arg
    return b.emit("permute", arg, attrs=A.PermuteAttrs(dims)) if arg is not x[0] else None


def _expand(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    (arg,) = x
    if arg.op == "expand":
        arg = arg.inputs[0]
    if arg.shape == node.shape:
        return arg
    return b.expand(arg, node.shape) if arg is not x[0] else None


def _slice(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    attrs = node.attrs
    whole = all(s == 0 for s in attrs.starts) and all(s == 1 for s in attrs.steps)
    return x[0] if whole and attrs.sizes == x[0].shape else None


def _pad(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    return x[0] if node.shape == x[0].shape else None


def _cat(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    axis = node.attrs.axis
    parts = [p for p in x if p.shape[axis] != 0]
    if len(parts) == len(x) and len(parts) > 1:
        return None
    if not parts:
        return x[0]
    return parts[0] if len(parts) == 1 else b.emit("cat", *parts, attrs=node.attrs)


def _mul(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    for arg, other in ((x[0], x[1]), (x[1], x[0])):
        if scalar_value(other) == 1:
            return arg
    return None


def _add(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    for arg, other in ((x[0], x[1]), (x[1], x[0])):
        value = scalar_value(other)
        # x + 0.0 would turn -0.0 into 0.0; x + -0.0 is always x.
        if value == 0 and (not node.dtype.is_float or math.copysign(1.0, value) < 0):
            return arg
    return None


def _sub(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    value = scalar_value(x[1])
    if value == 0 and (not node.dtype.is_float or math.copysign(1.0, value) > 0):
        return x[0]
    return None


def _div(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    value = scalar_value(x[1])
    if value == 1:
        return x[0]
    if isinstance(value, float) and value != 0.0 and math.isfinite(value):
        mantissa, exponent = math.frexp(abs(value))
        if mantissa == 0.5 and -100 < exponent < 100:  # a power of two: exact either way
            return b.emit("mul", x[0], b.constant(1.0 / value, x[1]))
    return None


def _pow(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    base, exponent = x[0], scalar_value(x[1])
    if exponent is None:
        return None
    if exponent == 1:
        return base
    if exponent == 2:
        return b.emit("mul", base, base)
    if exponent == 3:
        return b.emit("mul", b.emit("mul", base, base), base)
    if not node.dtype.is_float:
        return None
    if exponent == 0.5:
        return b.emit("sqrt", base)
    if exponent == -0.5:
        return b.emit("rsqrt", base)
    if exponent == -1:
        return b.emit("reciprocal", base)
    if exponent == -2:
        return b.emit("reciprocal", b.emit("mul", base, base))
    return None


def _where(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    condition = scalar_value(x[0])
    if condition is not None:
        return x[1] if condition else x[2]
    return x[1] if x[1] is x[2] else None


def _reduce_one(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    """A reduction over dims of size 1 changes the shape only."""
    axes = [a for a in node.attrs.axes if x[0].shape[a] != 1]
    if len(axes) == len(node.attrs.axes):
        return None
    kept = tuple(d for k, d in enumerate(x[0].shape) if k in axes or k not in node.attrs.axes)
    squeezed = b.reshape(x[0], kept)
    if not axes:
        return squeezed
    gone = [a for a in node.attrs.axes if a not in axes]
    moved = tuple(a - sum(g < a for g in gone) for a in axes)
    return b.emit(node.op, squeezed, attrs=A.ReduceAttrs(moved))


def _empty(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    """A value without elements is no work, whatever it is computed from."""
    return _zero(b, node) if numel(node.shape) == 0 else None


def _reduce_none(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    """A sum or product of no elements."""
    if numel(x[0].shape) != 0 or numel(node.shape) == 0:
        return None
    return _zero(b, node) if node.op == "reduce_sum" else _number(b, node, 1)


def _zero(b: Rewriter, node: Node) -> Node:
    return _number(b, node, 0)


def _number(b: Rewriter, node: Node, value: int) -> Node:
    if node.dtype is DType.BOOL:
        return b.constant(bool(value), node)
    return b.constant(float(value) if node.dtype.is_float else value, node)


def _scan_one(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    return x[0] if x[0].shape[node.attrs.axis] == 1 else None


def _matmul(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    return _zero(b, node) if x[0].shape[-1] == 0 else None


_RULES: dict[str, list[Rule]] = {
    "cast": [_cast],
    "reshape": [_reshape],
    "permute": [_permute],
    "expand": [_expand],
    "slice": [_slice],
    "pad": [_pad],
    "cat": [_cat],
    "mul": [_mul],
    "add": [_add],
    "sub": [_sub],
    "div": [_div],
    "pow": [_pow],
    "where": [_where],
    "matmul": [_matmul],
    "wide_matmul": [_matmul],
    **{op: [_scan_one] for op in ("scan_sum", "scan_prod", "scan_max", "scan_min")},
    **{op: [_reduce_one] for op in ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min")},
}
for _name in ("reduce_sum", "reduce_prod"):
    _RULES[_name].insert(0, _reduce_none)
for _name, _spec in OPS.items():
    if _spec.has(Trait.POINTWISE) and _name != "bitcast":
        _RULES.setdefault(_name, []).insert(0, _fold)
    # A scatter to no elements may have an index to complain of.
    if not _spec.has(Trait.LEAF | Trait.BARRIER | Trait.SCATTER) and _name != "project":
        _RULES.setdefault(_name, []).insert(0, _empty)
