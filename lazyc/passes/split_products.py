"""Splits long products that make few tiles, so that more of the target works on each.

    before   reduce_sum(mul(a, b) : [m, n, 32, 4096], axes 2, 3) : [m, n]
    after    reduce_sum(reduce_sum(mul(a, b) : [32, m, n, 4096], axis 3) : [32, m, n], axis 0)

The gradient of a convolution's weight is such a product: few elements, each a sum over all positions of all
images. Parts are whole leading dims of the sum, and a divisor of the next. Their sums are added in order, so that
results do not depend on which is done first (split-k without atomics; Triton's tutorials and CUTLASS have it).

The price is a model of the target (``ProductCosts``): a product of fewer tiles than run at a time takes so much
longer, and the sums of parts are written and read once. Of all ways, the fastest is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lazyc.codegen.product_costs import ProductCosts
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import DType, Shape
from lazyc.passes.contraction import is_loop_product
from lazyc.passes.realize import view_base
from lazyc.passes.rewrite import Rewriter, rewrite

_TILE = 64  # rows and columns of the smallest tiles that large products are cut in
_LEAST_GAIN = 0.1  # of the product's time: the model knows no better
_LEAST_DEPTH = 256  # of a part
_MOST_PARTS = 256
_HALVES = (DType.F16, DType.BF16)


def split_products(graph: Graph, costs: ProductCosts) -> Graph:
    """The Graph with products that are sums over loops in parts, where the model says that it pays."""

    def split(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
        product = _product(node)
        best = choose(product, costs) if product is not None else None
        if product is None or best is None:
            return None
        b.decide(
            f"product {[product.batch, product.rows, product.columns, product.depth]}"
            f" summed in {best.parts} parts",
            f"it makes {product.tiles} tiles, of {costs.programs} that run at a time",
            copied=best.parts * product.results * 4,
            seconds=best.seconds,
        )
        return _split(b, node, best)

    return rewrite(graph, {"reduce_sum": [split]})


@dataclass(frozen=True, slots=True)
class Product:
    """``[batch, rows, depth] @ [batch, depth, columns]`` of a type, summed over dims of these ``sums``."""

    dtype: DType
    batch: int
    rows: int
    columns: int
    sums: tuple[int, ...]

    @property
    def depth(self) -> int:
        return math.prod(self.sums)

    @property
    def results(self) -> int:
        return self.batch * self.rows * self.columns

    @property
    def tiles(self) -> int:
        return self.batch * -(-self.rows // _TILE) * -(-self.columns // _TILE)


@dataclass(frozen=True, slots=True)
class Split:
    """``whole`` leading dims of the sum, and ``part`` parts of the next one. ``seconds``: what that saves."""

    whole: int
    part: int
    parts: int
    seconds: float = 0.0


def choose(product: Product, costs: ProductCosts) -> Split | None:
    """The best way to split a product; None where that is to leave it as it is."""
    before = _seconds(product, 1, costs)
    best: Split | None = None
    for way in _ways(product):
        saved = before - _seconds(product, way.parts, costs)
        if saved >= _LEAST_GAIN * before and (best is None or saved > best.seconds):
            best = Split(way.whole, way.part, way.parts, saved)
    return best


def _seconds(p: Product, parts: int, costs: ProductCosts) -> float:
    flops, size = costs.flops(p.dtype), p.dtype.itemsize
    assert flops is not None
    arithmetic = 2 * p.results * p.depth / flops
    traffic = p.batch * (p.rows + p.columns) * p.depth * size / costs.bytes_per_second
    alone = max(1.0, costs.programs / (p.tiles * parts))
    more = 0.0
    if parts > 1:
        more = 2 * parts * p.results * 4 / costs.bytes_per_second + costs.kernel_seconds
    return max(arithmetic, traffic) * alone + more


def _ways(p: Product) -> Iterator[Split]:
    whole = 1
    for k, size in enumerate(p.sums):
        for part in range(2, min(size, _MOST_PARTS // whole) + 1):
            if size % part == 0 and p.depth // (whole * part) >= _LEAST_DEPTH:
                yield Split(k, part, whole * part)
        whole *= size


def _product(node: Node) -> Product | None:
    """The product that a sum is; None for one with symbols, of another type, or that is none."""
    if not is_loop_product(node) or not all(isinstance(d, int) for d in node.inputs[0].shape):
        return None
    first, second = (_spread(x) for x in node.inputs[0].inputs)
    if first is None or second is None or _is_sparse(first) or _is_sparse(second):
        return None
    shape, axes = tuple(int(d) for d in node.inputs[0].shape), node.attrs.axes
    if axes != tuple(range(len(shape) - len(axes), len(shape))):
        return None
    sizes = {"batch": 1, "rows": 1, "columns": 1}
    for k, size in enumerate(shape[: -len(axes)]):
        same = [x.inputs[0].shape[k] == 1 != size for x in (first, second)]
        sizes["columns" if same[0] else "rows" if same[1] else "batch"] *= size
    dtypes = {x.inputs[0].dtype for x in (first, second)}
    dtype = dtypes.pop() if len(dtypes) == 1 else DType.F32
    if dtype not in (*_HALVES, DType.F32) or 0 in shape:
        return None
    return Product(dtype, **sizes, sums=tuple(shape[a] for a in axes))


def _spread(factor: Node) -> Node | None:
    """The ``expand`` that a factor is, before it was widened."""
    found = factor.inputs[0] if factor.op == "cast" else factor
    return found if found.op == "expand" else None


def _is_sparse(factor: Node) -> bool:
    """Whether it is a weight that is declared sparse: its kernels take whole rows."""
    base = view_base(factor)
    while base.op == "cast":
        base = view_base(base.inputs[0])
    return base.op == "input" and base.attrs.sparsity is not None


def _split(b: Rewriter, node: Node, way: Split) -> Node:
    product = node.inputs[0]
    shape, first = product.shape, len(product.shape) - len(node.attrs.axes)
    cut = first + way.whole  # the dim that is cut in parts
    factors = [_cut(b, x, shape, first, cut, way.part) for x in product.inputs]
    terms = b.emit("mul", *factors)
    count = way.whole + 1
    sums = tuple(range(count + first, len(terms.shape)))
    partial = b.emit("reduce_sum", terms, attrs=A.ReduceAttrs(sums))
    return b.emit("reduce_sum", partial, attrs=A.ReduceAttrs(tuple(range(count))))


def _cut(b: Rewriter, factor: Node, shape: Shape, first: int, cut: int, part: int) -> Node:
    """A factor with the dims of the parts in front."""
    spread = _spread(factor)
    assert spread is not None
    source = b.new[spread.inputs[0]]

    def with_parts(dims: Shape) -> Shape:
        size = int(dims[cut])
        pair = (1, 1) if size == 1 else (part, size // part)
        return (*dims[:cut], *pair, *dims[cut + 1 :])

    dims = (*range(first, cut + 1), *range(first), *range(cut + 1, len(shape) + 1))
    turned = b.reshape(source, with_parts(source.shape))
    turned = b.emit("permute", turned, attrs=A.PermuteAttrs(dims))
    whole = with_parts(shape)
    return b.cast(b.expand(turned, tuple(whole[d] for d in dims)), factor.dtype)
