"""Attributes of Graph IR ops: one frozen dataclass an op that needs any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lazyc.ir.sparse import Sparsity
from lazyc.ir.types import Dim, DType, Shape, ValueType

Scalar: TypeAlias = bool | int | float


@dataclass(frozen=True, slots=True)
class Attrs:
    """Base of all attribute classes; itself the attrs of ops that have none."""


NO_ATTRS = Attrs()


@dataclass(frozen=True, slots=True)
class InputAttrs(Attrs):
    """Argument ``index`` of the program. ``strides`` in elements, None for an opaque input.

    ``is_parameter``: a weight of an inference graph, the same tensor from call to call, so that
    work on it alone may be kept between calls under a version guard.
    ``alignment``: the address is a multiple of this many bytes (64 or the item size).
    ``sparsity``: what the user declared the weight to be; its values need not keep to it.
    """

    index: int
    name: str
    type: ValueType
    strides: Shape | None
    is_parameter: bool = False
    alignment: int = 1
    sparsity: Sparsity | None = None


@dataclass(frozen=True, slots=True)
class ConstantAttrs(Attrs):
    """A 0-dim constant."""

    value: Scalar
    dtype: DType
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class TensorConstantAttrs(Attrs):
    """Tensor ``index`` of ``Graph.constants``; strides are None for an opaque one."""

    index: int
    type: ValueType
    strides: Shape | None


@dataclass(frozen=True, slots=True)
class SizeAttrs(Attrs):
    """A 0-dim value that is a (symbolic) size expression."""

    expr: Dim
    dtype: DType
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class IotaAttrs(Attrs):
    """The 1-dim tensor 0, 1, ..., size-1."""

    size: Dim
    dtype: DType
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class CastAttrs(Attrs):
    dtype: DType


@dataclass(frozen=True, slots=True)
class BitcastAttrs(Attrs):
    """Reinterpretation as a dtype of the same item size."""

    dtype: DType


@dataclass(frozen=True, slots=True)
class ShapeAttrs(Attrs):
    """Target shape of ``reshape`` (same number of elements) and ``expand`` (dims 1 -> n)."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class PermuteAttrs(Attrs):
    """``out.shape[i] = in.shape[dims[i]]``."""

    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SliceAttrs(Attrs):
    """Per dim: ``out[i] = in[start + step*i]``, ``size`` elements; step may be negative."""

    starts: Shape
    sizes: Shape
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PadAttrs(Attrs):
    """Per dim ``low`` elements of ``value`` before and ``high`` after (both >= 0)."""

    low: Shape
    high: Shape
    value: Scalar


@dataclass(frozen=True, slots=True)
class CatAttrs(Attrs):
    axis: int


@dataclass(frozen=True, slots=True)
class StridedAttrs(Attrs):
    """``out[i] = flat(in)[offset + sum(i*stride)]`` over the row-major elements of the input."""

    shape: Shape
    strides: Shape
    offset: Dim


@dataclass(frozen=True, slots=True)
class WindowAttrs(Attrs):
    """Sliding windows: appends one dim of ``sizes[k]`` for each of ``axes``.

    ``out[..., o_k, ..., w_k] = in[..., o_k*strides[k] + w_k*dilations[k] - padding[k], ...]``;
    ``counts[k]`` windows along ``axes[k]``. Without ``padding`` every read is in range; with it what lies
    outside is 0.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    counts: Shape
    padding: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ReduceAttrs(Attrs):
    """Axes reduced away (sorted, never empty). argmax/argmin have exactly one.

    ``is_alone``: it is a kernel that does nothing else, and reads what is in memory; so that it may run by blocks
    of rows (``passes/row_tiles.py``).
    """

    axes: tuple[int, ...]
    is_alone: bool = False


EmptyRow: TypeAlias = Literal["nan", "zero"]


@dataclass(frozen=True, slots=True)
class AttendAttrs(Attrs):
    """``empty``: the weights of a row whose scores are all -inf: nan, as exp(-inf - -inf) gives, or 0."""

    empty: EmptyRow


@dataclass(frozen=True, slots=True)
class RowStatisticAttrs(Attrs):
    """Of each row of scores: the ``max``, or the ``sum`` of exp(score - max), where the max of a row
    whose scores are all -inf counts as 0 if ``empty`` is "zero"."""

    kind: Literal["max", "sum"]
    empty: EmptyRow


@dataclass(frozen=True, slots=True)
class ScanAttrs(Attrs):
    """Inclusive running reduction along one axis."""

    axis: int


@dataclass(frozen=True, slots=True)
class GatherAttrs(Attrs):
    """``checked``: indices come from the user and may be out of range (eager raises then)."""

    checked: bool


ScatterMode: TypeAlias = Literal["set", "add", "mul", "max", "min"]


@dataclass(frozen=True, slots=True)
class ScatterAttrs(Attrs):
    """How a scattered element meets what is there; ``checked`` as in GatherAttrs."""

    mode: ScatterMode
    checked: bool


@dataclass(frozen=True, slots=True)
class ConvolutionAttrs(Attrs):
    """As ``aten.convolution``; one entry a spatial dim."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


@dataclass(frozen=True, slots=True)
class RandomAttrs(Attrs):
    """Element k of the result is drawn from Philox-4x32-10 at counter ``offset + k``.

    ``uniform`` is U[0, 1) in f32 (or f64), ``normal`` is N(0, 1), ``bits`` are 32 random bits as i64.
    """

    kind: Literal["uniform", "normal", "bits"]
    shape: Shape
    dtype: DType
    offset: Dim
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class ArgRef:
    """In an argument template: input ``index`` of the eager node."""

    index: int


@dataclass(frozen=True, slots=True)
class EagerAttrs(Attrs):
    """A call of an operator in eager torch.

    ``target`` is the qualified overload name ("aten.sort.default"). ``args`` and ``kwargs`` are the
    call's arguments as nested tuples with ArgRef in place of values; dims stand for SymInts.
    ``outputs`` are the types of the results; an op with several results (``is_tuple``) is read
    through ``project``. ``strides`` are the strides that eager gives each result (None: opaque).
    ``input_strides`` are those that each tensor input must have, so that the op sees eager's layout.
    ``reason`` says why the op was not lowered; reports print it. ``mutates`` and ``aliases`` list
    the inputs that the call writes to, and those that its results may share memory with.
    """

    target: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    outputs: tuple[ValueType, ...]
    strides: tuple[Shape | None, ...]
    input_strides: tuple[Shape | None, ...]
    is_tuple: bool
    reason: str
    mutates: tuple[int, ...] = ()
    aliases: tuple[int, ...] = ()
    serial: int = -1  # >= 0 makes the node distinct: calls with effects or randomness never merge
    has_effect: bool = False  # does more than return results: runs though nothing reads it
    is_library: bool = False  # called by choice, not for lack of a lowering


@dataclass(frozen=True, slots=True)
class ProjectAttrs(Attrs):
    """Result ``index`` of an eager node with several results."""

    index: int
