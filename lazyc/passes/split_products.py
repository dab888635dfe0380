"""Cuts the sum of matrix products with few tiles, so that all of a GPU has work ("split-K").

    before   matmul(a : [m, k], b : [k, n])
    after    reduce_sum(matmul(a' : [parts, m, k / parts], b' : [parts, k / parts, n]), axis 0)

The parts are added in f32, in the order of k and in the kernel that reads the sum, not by atomic additions:
results do not depend on what ran first. Whether that pays is a model of the target: a product takes the longer
of its arithmetic and its traffic, each at the share of the GPU's rate that its programs can keep busy; more
parts cost the traffic of their results, and a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lazyc.codegen.product_costs import ProductCosts
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import DType, numel
from lazyc.passes.products_as_loops import sum_of_products
from lazyc.passes.realize import view_base
from lazyc.passes.rewrite import Rewriter, rewrite

_TILE = 64  # rows and columns of the tiles of a product that has few
_LEAST_DEPTH = 256  # of a part
_MOST_PARTS = 32
_LEAST_GAIN = 0.1  # of the product's time: the model knows no better
_LOADS_OF_ONE = 2  # times its share of the bandwidth that a multiprocessor can use alone


@dataclass(frozen=True, slots=True)
class Product:
    """A product's sizes; ``batch``: how many there are."""

    batch: int
    m: int
    n: int
    k: int
    dtype: DType


def split_products(graph: Graph, costs: ProductCosts) -> Graph:
    """The Graph with products cut where the model of the target says that it pays."""
    if costs.multiprocessors == 1:
        return graph
    return rewrite(graph, {"matmul": [partial(_split, costs=costs)]})


def _split(b: Rewriter, node: Node, x: Sequence[Node], costs: ProductCosts) -> Node | None:
    *batch, m, n = node.shape
    sizes = (numel(batch), m, n, node.inputs[0].shape[-1])
    if not all(isinstance(s, int) for s in sizes) or any(map(_is_sparse, node.inputs)):
        return None
    product = Product(*sizes, node.inputs[0].dtype)  # type: ignore[arg-type]
    parts = choose_parts(product, costs)
    if parts == 1:
        return None
    was, now = seconds(product, 1, costs), seconds(product, parts, costs)
    copied = 4 * parts * product.batch * product.m * product.n
    tiles = _programs(product, 1)
    b.decide(
        f"product of [{m}, {product.k}] and [{product.k}, {n}] in {parts} parts",
        f"{tiles} tiles for {costs.multiprocessors} multiprocessors",
        copied,
        seconds=was - now,
    )
    return b.cast(sum_of_products(b, x[0], x[1], parts), node.dtype)


def _is_sparse(x: Node) -> bool:
    """Whether it is a weight that is declared sparse: its kernel takes whole rows."""
    base = view_base(x)
    return base.op == "input" and base.attrs.sparsity is not None


def choose_parts(product: Product, costs: ProductCosts) -> int:
    """The number of parts that the model likes best; 1 unless it gains enough."""
    choices = (1 << p for p in range(1, _MOST_PARTS.bit_length()))
    fitting = [p for p in choices if product.k % p == 0 and product.k // p >= _LEAST_DEPTH]
    if not fitting or min(product.batch, product.m, product.n) == 0:
        return 1
    if min(product.m, product.n) < costs.least or costs.flops(product.dtype) is None:
        return 1  # it has no tiles
    best = min(fitting, key=lambda p: seconds(product, p, costs))
    gains = seconds(product, best, costs) < (1 - _LEAST_GAIN) * seconds(product, 1, costs)
    return best if gains else 1


def seconds(product: Product, parts: int, costs: ProductCosts) -> float:
    """About how long a product takes in so many parts."""
    p = product
    rate = costs.flops(p.dtype)
    assert rate is not None
    busy = _programs(p, parts) / costs.multiprocessors
    work = 2 * p.batch * p.m * p.n * p.k / (rate * min(1, busy))
    results = p.batch * p.m * p.n
    read = p.batch * (p.m + p.n) * p.k * p.dtype.itemsize + results * p.dtype.itemsize
    time = max(work, read / (costs.bytes_per_second * min(1, _LOADS_OF_ONE * busy)))
    if parts == 1:
        return time
    return time + costs.kernel_seconds + 2 * 4 * parts * results / costs.bytes_per_second


def _programs(product: Product, parts: int) -> int:
    across, down = -(-product.n // _TILE), -(-product.m // _TILE)
    return product.batch * across * down * parts
