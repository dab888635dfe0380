"""The Builder: what lowerings write Graph IR with.

It adds what the IR leaves out on purpose: broadcasting, scalars as operands, negative axes, and
type promotion, all as explicit ``expand``, ``constant`` and ``cast`` nodes. Methods never change the
meaning of dtypes silently: nodes given to ``pointwise`` must agree, only scalars adapt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import sympy

from lazyc.config import AttentionKernel
from lazyc.frontend.promotion import NotLowered, Operand, float_result_dtype, result_dtype
from lazyc.frontend.sym_float import float_node
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node, Provenance
from lazyc.ir.types import Dim, DType, Shape, TensorType


def normalize_axis(axis: int, rank: int) -> int:
    """A possibly negative axis as 0 <= axis < rank (a 0-dim tensor counts as rank 1)."""
    rank = max(rank, 1)
    if not -rank <= axis < rank:
        raise NotLowered(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank


def normalize_axes(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Axes sorted and non-negative; None means all of them."""
    if axes is None:
        return tuple(range(rank))
    if isinstance(axes, int):
        axes = (axes,)
    found = sorted({normalize_axis(a, rank) for a in axes})
    return tuple(a for a in found if a < rank)


def broadcast_shapes(shapes: Iterable[Shape]) -> Shape:
    """The shape that shapes broadcast to; symbolic sizes are equal when their expressions are."""
    result: list[Dim] = []
    for shape in shapes:
        if len(shape) > len(result):
            result = [1] * (len(shape) - len(result)) + result
        skip = len(result) - len(shape)
        for k, dim in enumerate(shape):
            if dim == 1:
                continue
            if result[skip + k] == 1:
                result[skip + k] = dim
            elif result[skip + k] != dim:
                raise NotLowered(f"cannot broadcast sizes {result[skip + k]} and {dim}")
    return tuple(result)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where eager keeps a tensor in its storage: sizes, strides and offset in elements. The offset of
    an argument of the graph is None: it may change from call to call."""

    shape: Shape
    strides: Shape
    offset: Dim | None


class Builder:
    """Appends to ``graph``; ``provenance`` is stamped on every new node.

    ``layouts()`` gives the layouts of the current call's tensor arguments in order: for the few ops
    (``as_strided``) whose meaning depends on memory. ``results()`` gives the types that the trace
    found for its results (None for one that is no tensor): for sizes that arguments leave open (-1)
    and for dtypes that depend on the device. ``has_products`` and ``attention`` as in ``import_graph``.
    """

    def __init__(
        self, graph: Graph, has_products: bool = False, attention: AttentionKernel = "auto"
    ) -> None:
        self.graph = graph
        self.has_products = has_products
        self.attention: AttentionKernel = attention
        self.provenance: Provenance | None = None
        self.layouts: Callable[[], list[Layout]] = list
        self.results: Callable[[], list[TensorType | None]] = list
        self._random_offset: Dim = 0

    def emit(self, op: str, *inputs: Node, attrs: A.Attrs = A.NO_ATTRS) -> Node:
        return self.graph.add(op, inputs, attrs, self.provenance)

    # --- leaves -----------------------------------------------------------------------------------

    def constant(
        self, value: A.Scalar, dtype: DType, shape: Shape = (), device: str = "cpu"
    ) -> Node:
        """``value`` converted to ``dtype`` as torch converts a Python number, expanded to shape."""
        if dtype is DType.BOOL:
            value = bool(value)
        elif dtype.is_float:
            value = float(value)
        else:
            if isinstance(value, float) and not math.isfinite(value):
                raise NotLowered(f"{value} as {dtype}")
            value = wrap_int(int(value), dtype)
        node = self.emit("constant", attrs=A.ConstantAttrs(value, dtype, device))
        return self.expand(node, shape)

    def size(self, dim: Dim, dtype: DType = DType.I64, device: str = "cpu") -> Node:
        """A 0-dim value of a (symbolic) size."""
        if isinstance(dim, int):
            return self.constant(dim, dtype, device=device)
        return self.emit("size", attrs=A.SizeAttrs(dim, dtype, device))

    def scalar(self, value: A.Scalar | sympy.Expr, dtype: DType, device: str = "cpu") -> Node:
        """A Python number or symbolic size as a 0-dim value of ``dtype``."""
        if isinstance(value, sympy.Expr):
            if not value.is_integer:
                return self.cast(float_node(self, value, device), dtype)
            if dtype is DType.BOOL:
                return self.compare("ne", self.size(value, DType.I64, device), 0)
            return self.size(value, dtype, device)
        return self.constant(value, dtype, device=device)

    def iota(self, size: Dim, dtype: DType = DType.I64, device: str = "cpu") -> Node:
        """The 1-dim tensor 0, 1, ..., size-1."""
        return self.emit("iota", attrs=A.IotaAttrs(size, dtype, device))

    def iota_along(
        self, shape: Shape, axis: int, dtype: DType = DType.I64, device: str = "cpu"
    ) -> Node:
        """The tensor of ``shape`` whose element is its own position along ``axis``."""
        axis = normalize_axis(axis, len(shape))
        line = self.iota(shape[axis], dtype, device)
        place = tuple(d if k == axis else 1 for k, d in enumerate(shape))
        return self.expand(self.reshape(line, place), shape)

    def random(self, kind: str, shape: Shape, dtype: DType, device: str = "cpu") -> Node:
        """Fresh random numbers (see RandomAttrs): the run's seed at counters of their own."""
        seed = self.emit("seed")
        attrs = A.RandomAttrs(kind, shape, dtype, self._random_offset, device)  # type: ignore[arg-type]
        node = self.emit("random", seed, attrs=attrs)
        self._random_offset = self._random_offset + node.tensor.numel
        return node

    def random_from(
        self, seed: Node, kind: str, shape: Shape, dtype: DType, device: str = "cpu"
    ) -> Node:
        """The random numbers of a seed (i64[]) that nothing else draws from."""
        attrs = A.RandomAttrs(kind, shape, dtype, 0, device)  # type: ignore[arg-type]
        return self.emit("random", seed, attrs=attrs)

    @property
    def result(self) -> TensorType:
        """The type of the current call's (first) result."""
        first = self.results()[0]
        assert first is not None
        return first

    # --- dtypes and shapes ------------------------------------------------------------------------

    def cast(self, x: Node, dtype: DType) -> Node:
        """``x.to(dtype)``; x itself when it has that type."""
        return x if x.dtype is dtype else self.emit("cast", x, attrs=A.CastAttrs(dtype))

    def compute(self, x: Node) -> Node:
        """x in the type that composite ops compute in: half types become f32."""
        return self.cast(x, x.dtype.compute)

    def bitcast(self, x: Node, dtype: DType) -> Node:
        return x if x.dtype is dtype else self.emit("bitcast", x, attrs=A.BitcastAttrs(dtype))

    def reshape(self, x: Node, shape: Sequence[Dim]) -> Node:
        """x with another shape of as many elements (no -1)."""
        shape = tuple(shape)
        return x if x.shape == shape else self.emit("reshape", x, attrs=A.ShapeAttrs(shape))

    def permute(self, x: Node, dims: Sequence[int]) -> Node:
        order = tuple(normalize_axis(d, x.tensor.rank) for d in dims)
        if order == tuple(range(len(order))):
            return x
        return self.emit("permute", x, attrs=A.PermuteAttrs(order))

    def transpose(self, x: Node, a: int, b: int) -> Node:
        if x.tensor.rank == 0:
            return x
        order = list(range(x.tensor.rank))
        a, b = normalize_axis(a, len(order)), normalize_axis(b, len(order))
        order[a], order[b] = order[b], order[a]
        return self.permute(x, order)

    def unsqueeze(self, x: Node, axis: int) -> Node:
        axis = normalize_axis(axis, x.tensor.rank + 1)
        return self.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))

    def squeeze(self, x: Node, axis: int) -> Node:
        """Drops an axis of size 1."""
        axis = normalize_axis(axis, x.tensor.rank)
        return self.reshape(x, (*x.shape[:axis], *x.shape[axis + 1 :]))

    def expand(self, x: Node, shape: Sequence[Dim]) -> Node:
        """x broadcast to ``shape``: leading dims are added, dims of size 1 grow."""
        shape = tuple(shape)
        if x.shape == shape:
            return x
        padded = (1,) * (len(shape) - x.tensor.rank) + x.shape
        x = self.reshape(x, padded)
        return x if x.shape == shape else self.emit("expand", x, attrs=A.ShapeAttrs(shape))

    def broadcast(self, *xs: Node) -> list[Node]:
        """All of xs at their common shape."""
        shape = broadcast_shapes(x.shape for x in xs)
        return [self.expand(x, shape) for x in xs]

    def slice(self, x: Node, axis: int, start: Dim, size: Dim, step: int = 1) -> Node:
        """``size`` elements of one axis from ``start`` on; step may be negative."""
        axis = normalize_axis(axis, x.tensor.rank)
        if start == 0 and step == 1 and size == x.shape[axis]:
            return x
        starts = tuple(start if k == axis else 0 for k in range(x.tensor.rank))
        sizes = tuple(size if k == axis else d for k, d in enumerate(x.shape))
        steps = tuple(step if k == axis else 1 for k in range(x.tensor.rank))
        return self.emit("slice", x, attrs=A.SliceAttrs(starts, sizes, steps))

    def select(self, x: Node, axis: int, index: Dim) -> Node:
        """The slice at ``index`` (0 <= index < size) without its axis."""
        return self.squeeze(self.slice(x, axis, index, 1), axis)

    def flip(self, x: Node, axis: int) -> Node:
        axis = normalize_axis(axis, x.tensor.rank)
        size = x.shape[axis]
        if size in (0, 1):
            return x
        return self.slice(x, axis, size - 1, size, -1)

    def pad(self, x: Node, low: Sequence[Dim], high: Sequence[Dim], value: A.Scalar = 0) -> Node:
        """``low[k]`` elements of ``value`` before and ``high[k]`` after, along each axis k."""
        if all(d == 0 for d in (*low, *high)):
            return x
        fill = bool(value) if x.dtype is DType.BOOL else value
        fill = float(fill) if x.dtype.is_float else fill
        return self.emit("pad", x, attrs=A.PadAttrs(tuple(low), tuple(high), fill))

    def cat(self, xs: Sequence[Node], axis: int) -> Node:
        """Concatenation of nodes of one dtype."""
        if len(xs) == 1:
            return xs[0]
        axis = normalize_axis(axis, xs[0].tensor.rank)
        return self.emit("cat", *xs, attrs=A.CatAttrs(axis))

    # --- arithmetic -------------------------------------------------------------------------------

    def operands(self, dtype: DType, *values: Operand) -> list[Node]:
        """Nodes and scalars cast to ``dtype`` and broadcast to their common shape."""
        devices = {v.tensor.device for v in values if isinstance(v, Node)}
        if len(devices) > 1:
            raise NotLowered(f"tensors on {' and '.join(sorted(devices))}")
        device = next(iter(devices), "cpu")
        nodes = [
            self.cast(v, dtype) if isinstance(v, Node) else self.scalar(v, dtype, device)
            for v in values
        ]
        return self.broadcast(*nodes)

    def promote(self, *values: Operand) -> list[Node]:
        """Operands at torch's result type and their common shape."""
        return self.operands(result_dtype(values), *values)

    def promote_float(self, *values: Operand) -> list[Node]:
        """As promote, with bool and integers turned into the default float type."""
        return self.operands(float_result_dtype(values), *values)

    def pointwise(self, op: str, *values: Operand) -> Node:
        """A pointwise op on nodes of one dtype; scalars take that dtype, shapes broadcast."""
        dtypes = {v.dtype for v in values if isinstance(v, Node)}
        assert len(dtypes) == 1, f"{op}: operands of types {dtypes}"
        return self.emit(op, *self.operands(dtypes.pop(), *values))

    def compare(self, op: str, a: Operand, b: Operand) -> Node:
        """eq, ne, lt, le, gt or ge on operands of one dtype: a bool."""
        return self.pointwise(op, a, b)

    def where(self, cond: Node, a: Operand, b: Operand) -> Node:
        """``cond ? a : b``, cond a bool; at least one of a and b is a node."""
        dtypes = {v.dtype for v in (a, b) if isinstance(v, Node)}
        assert len(dtypes) == 1, f"where: operands of types {dtypes}"
        a, b = self.operands(dtypes.pop(), a, b)
        return self.emit("where", *self.broadcast(cond, a, b))

    def neg(self, x: Node) -> Node:
        return self.emit("neg", x)

    def exp(self, x: Node) -> Node:
        return self.emit("exp", x)

    def log(self, x: Node) -> Node:
        return self.emit("log", x)

    def sqrt(self, x: Node) -> Node:
        return self.emit("sqrt", x)

    def not_(self, x: Node) -> Node:
        return self.emit("not", x)

    def add(self, a: Operand, b: Operand) -> Node:
        return self.pointwise("add", a, b)

    def sub(self, a: Operand, b: Operand) -> Node:
        return self.pointwise("sub", a, b)

    def mul(self, a: Operand, b: Operand) -> Node:
        return self.pointwise("mul", a, b)

    def div(self, a: Operand, b: Operand) -> Node:
        return self.pointwise("div", a, b)

    def maximum(self, a: Operand, b: Operand) -> Node:
        return self.pointwise("maximum", a, b)

    def minimum(self, a: Operand, b: Operand) -> Node:
        return self.pointwise("minimum", a, b)

    def logical(self, x: Node) -> Node:
        """x as a bool: ``x != 0``."""
        return x if x.dtype is DType.BOOL else self.compare("ne", x, 0)

    # --- reductions -------------------------------------------------------------------------------

    def reduce(
        self, kind: str, x: Node, axes: int | Sequence[int] | None, keepdim: bool = False
    ) -> Node:
        """``sum``, ``prod``, ``max`` or ``min`` over axes (None: all) in x's own type."""
        chosen = normalize_axes(axes, x.tensor.rank)
        if not chosen:
            return x
        out = self.emit(f"reduce_{kind}", x, attrs=A.ReduceAttrs(chosen))
        return self.keep_axes(out, x.shape, chosen) if keepdim else out

    def keep_axes(self, out: Node, shape: Shape, axes: Sequence[int]) -> Node:
        """A reduced value with its reduced axes back, of size 1."""
        return self.reshape(out, tuple(1 if k in axes else d for k, d in enumerate(shape)))

    def argreduce(self, kind: str, x: Node, axis: int, keepdim: bool = False) -> Node:
        """``argmax`` or ``argmin`` along one axis, as i64 (the first extreme; nan wins)."""
        axis = normalize_axis(axis, x.tensor.rank)
        out = self.emit(kind, x, attrs=A.ReduceAttrs((axis,)))
        return self.keep_axes(out, x.shape, (axis,)) if keepdim else out

    def scan(self, kind: str, x: Node, axis: int) -> Node:
        """Inclusive running ``sum``, ``prod``, ``max`` or ``min`` along an axis."""
        attrs = A.ScanAttrs(normalize_axis(axis, x.tensor.rank))
        return self.emit(f"scan_{kind}", x, attrs=attrs)

    def count(self, shape: Shape, axes: Iterable[int]) -> Dim:
        """The number of elements that a reduction over ``axes`` meets."""
        return math.prod((shape[a] for a in axes), start=1)

    def mean(self, x: Node, axes: int | Sequence[int] | None, keepdim: bool = False) -> Node:
        """The mean over axes in x's own (float) type; nan over no elements."""
        chosen = normalize_axes(axes, x.tensor.rank)
        total = self.reduce("sum", x, chosen, keepdim)
        return self.div(total, self.count(x.shape, chosen))

    # --- gather and scatter -----------------------------------------------------------------------

    def gather(self, x: Node, indices: Sequence[Node], checked: bool) -> Node:
        """``x[i0[p], i1[p], ...]``: one i64 index a dim of x; they broadcast to the result."""
        return self.emit("gather", x, *self.broadcast(*indices), attrs=A.GatherAttrs(checked))

    def scatter(
        self,
        base: Node,
        update: Node,
        indices: Sequence[Node],
        mode: A.ScatterMode,
        checked: bool,
    ) -> Node:
        """base with ``base[i0[p], ...] (op)= update[p]``; indices broadcast to update's shape."""
        places = [self.expand(i, update.shape) for i in indices]
        return self.emit("scatter", base, update, *places, attrs=A.ScatterAttrs(mode, checked))


def wrap_int(value: int, dtype: DType) -> int:
    """An integer wrapped into the range of an integer type, as torch's casts do."""
    bits = 8 * dtype.itemsize
    value &= (1 << bits) - 1
    if dtype.is_signed and value >> (bits - 1):
        value -= 1 << bits
    return value
