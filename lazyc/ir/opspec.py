"""What an op of the Graph IR is: the OpSpec, its traits, and the table that all ops are in.

An ``OpSpec`` says how many inputs an op has, which attrs, the shape/dtype rule (``infer``), its
traits, and a reference evaluator in plain torch. The ops themselves are in ``ir/ops.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any

import sympy

from lazyc.ir import attrs as A
from lazyc.ir.types import Dim, DType, Shape, TensorType, ValueType


class Trait(Flag):
    """What passes may ask about an op."""

    NONE = 0
    LEAF = auto()  # no inputs
    POINTWISE = auto()  # out[i] = f(in0[i], in1[i], ...)
    VIEW = auto()  # out[i] = in[g(i)]: an index map, no arithmetic (pad and cat included)
    REDUCTION = auto()
    SCAN = auto()
    GATHER = auto()
    SCATTER = auto()
    CONTRACTION = auto()
    RANDOM = auto()
    BARRIER = auto()  # eager call
    ATTENTION = auto()  # a softmax of its first input's rows, and what is summed with it
    NESTED = auto()  # a sum that is computed, for each element, wherever it is read
    COSTLY = auto()  # a pointwise op worth storing rather than computing twice
    COMMUTATIVE = auto()
    COMPARE = auto()  # result is bool


class IRError(Exception):
    """An op was built with inputs or attrs that its spec does not allow."""


SymbolValues = Mapping[sympy.Symbol, int]
Infer = Callable[[Sequence[ValueType], Any], ValueType]
Evaluate = Callable[[Sequence[Any], Any, SymbolValues], Any]


@dataclass(frozen=True)
class OpSpec:
    name: str
    arity: int | None  # None: any number
    attrs: type[A.Attrs]
    traits: Trait
    infer: Infer
    evaluate: Evaluate
    dtypes: str = "any"  # pointwise inputs: "any", "number", "float", "integral" (ints and bool)

    def has(self, trait: Trait) -> bool:
        return self.traits._value_ & trait._value_ != 0  # Flag.__and__ is slow, and this is hot


OPS: dict[str, OpSpec] = {}


def register(spec: OpSpec) -> None:
    assert spec.name not in OPS, spec.name
    OPS[spec.name] = spec


def concrete(dim: Dim, values: SymbolValues) -> int:
    """A dim as an int, given the values of its symbols."""
    if isinstance(dim, int):
        return dim
    return int(dim.subs(list(values.items())))  # type: ignore[arg-type]  # an Expr of integers


def concrete_shape(shape: Shape, values: SymbolValues) -> tuple[int, ...]:
    return tuple(concrete(d, values) for d in shape)


def tensor(t: ValueType) -> TensorType:
    """The tensor type of a value; raises IRError for an opaque one."""
    if not isinstance(t, TensorType):
        raise IRError(f"expected a tensor, got {t}")
    return t


# The input dtypes that an op takes (OpSpec.dtypes).
ALLOWED: dict[str, Callable[[DType], bool]] = {
    "any": lambda d: True,
    "number": lambda d: d is not DType.BOOL,
    "float": lambda d: d.is_float,
    "integral": lambda d: not d.is_float,
}
