"""Ops of attention that keeps no scores in memory: products that are computed where they are read.

    dot(x, y)                  sum of x * y over the last axis
    attend(s, v[, w])          (softmax(s) * w) @ v, over the last axis of s
    row_statistic(s)           the max, or the sum of exponentials, of each row of s

``s`` is any expression; in a kernel its elements are computed as they are needed, whatever is inside of
it: products (as ``dot``), masks, biases, random numbers. A ``dot`` never has memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lazyc.ir import attrs as A
from lazyc.ir.opspec import IRError, OpSpec, SymbolValues, Trait, register, tensor
from lazyc.ir.types import DType, TensorType, ValueType

_WIDE = (DType.F32, DType.F64)


def _infer_dot(types: Sequence[ValueType], attrs: A.Attrs) -> ValueType:
    x, y = tensor(types[0]), tensor(types[1])
    if x != y or x.rank == 0 or x.dtype not in _WIDE:
        raise IRError(f"dot: {x} with {y} (equal types, f32 or f64, at least one dim)")
    return x.with_shape(x.shape[:-1])


def _eval_dot(inputs: Sequence[Any], attrs: A.Attrs, values: SymbolValues) -> torch.Tensor:
    return torch.einsum("...k,...k->...", *inputs)


register(OpSpec("dot", 2, A.Attrs, Trait.NESTED, _infer_dot, _eval_dot))


def _scores(t: ValueType) -> TensorType:
    scores = tensor(t)
    if scores.rank < 2 or scores.dtype not in _WIDE or scores.shape[-1] == 0:
        raise IRError(f"scores {scores}: f32 or f64, two dims or more, and keys to attend to")
    return scores


def _infer_attend(types: Sequence[ValueType], attrs: A.AttendAttrs) -> ValueType:
    scores, v = _scores(types[0]), tensor(types[1])
    if (
        v.shape[:-1] != (*scores.shape[:-2], scores.shape[-1])
        or v.dtype.compute is not scores.dtype
    ):
        raise IRError(f"attend: {scores} to {v} ([.., M, N] and [.., N, K])")
    if len(types) > 3 or (len(types) == 3 and types[2] != scores):
        raise IRError(f"attend: factors {', '.join(map(str, types[2:]))} for {scores}")
    return scores.with_shape((*scores.shape[:-1], v.shape[-1]))


def _eval_attend(inputs: Sequence[Any], attrs: A.AttendAttrs, values: SymbolValues) -> torch.Tensor:
    scores, v, *factor = inputs
    weights = torch.softmax(scores, -1)
    if attrs.empty == "zero":
        hidden = (scores == -math.inf).all(-1, keepdim=True)
        weights = torch.where(hidden, 0.0, weights)
    for x in factor:
        weights = weights * x
    # Rounded to the type of v, as what is multiplied on tensor cores must be.
    return torch.matmul(weights.to(v.dtype).to(scores.dtype), v.to(scores.dtype))


register(OpSpec("attend", None, A.AttendAttrs, Trait.ATTENTION, _infer_attend, _eval_attend))


def _infer_statistic(types: Sequence[ValueType], attrs: A.RowStatisticAttrs) -> ValueType:
    scores = _scores(types[0])
    return scores.with_shape(scores.shape[:-1])


def _eval_statistic(
    inputs: Sequence[Any], attrs: A.RowStatisticAttrs, values: SymbolValues
) -> torch.Tensor:
    (scores,) = inputs
    top = scores.amax(-1)
    if attrs.kind == "max":
        return top
    if attrs.empty == "zero":
        top = torch.where(top == -math.inf, 0.0, top)
    return torch.exp(scores - top.unsqueeze(-1)).sum(-1)


# Computed along with an ``attend`` of the same scores, by one kernel.
register(
    OpSpec(
        "row_statistic", 1, A.RowStatisticAttrs, Trait.ATTENTION, _infer_statistic, _eval_statistic
    )
)  # fmt: skip
