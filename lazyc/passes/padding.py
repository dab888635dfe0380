"""Pads operands of matrix products whose rows begin where the target cannot load whole vectors.

    before   matmul(x : [m, 50257], w : [50257, 768])
    after    matmul(pad(x) : [m, 50304], pad(w) : [50304, 768])          zeros add nothing to a sum

    before   matmul(x : [m, 768], w : [768, 50257])
    after    matmul(x, slice(pad(w) : [768, 50304]))                     rows lie 50304 apart

Sizes of the product and its result stay, so that nobody has to cut the result: a kernel whose tiles
reach over the edge of a padded operand reads padding, and does not store what comes of it. A weight is
padded once and kept (``lasting``); another operand is copied at each call, unless a kernel computes it
just for the product and writes it padded.

The copies are a price in a model of the target (``ProductCosts``): a product takes the longer of its
arithmetic and its memory traffic (S. Williams, A. Waterman and D. Patterson, "Roofline", CACM 52, 2009),
and the time to issue the loads that feed it, which neither hides. Of all ways to pad, the fastest is
taken, and none unless it is faster than the product as it is. Products with weights of attention that are
computed where they are read (``dot``) are left alone: padding would store what has no memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from lazyc.codegen.product_costs import ProductCosts
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.ops import Trait
from lazyc.ir.types import Dim, DType, numel
from lazyc.passes.lasting import Lasting
from lazyc.passes.layout import fixed_strides, order_for_reader
from lazyc.passes.realize import Cost, inline_costs, live_users, view_base
from lazyc.passes.rewrite import Rewriter, rewrite
from lazyc.passes.strided import strided_view

_LEAST_GAIN = 0.02  # of the product's time: the model knows no better
_MOST_ADDED = 1 / 16  # to a dim, for padding it to ``ProductCosts.multiple``


def pad_products(graph: Graph, costs: ProductCosts, keeps: bool = True) -> Graph:
    """The Graph with operands padded where the model of the target says that it pays. Unless what is made of
    weights is kept (``keeps``), they too are copied at each call."""
    if costs.loads_per_second == math.inf or not any(n.op == "matmul" for n in graph.nodes):
        return graph
    find = _Finder(
        costs,
        Lasting(graph, keeps),
        live_users(graph),
        set(graph.roots()),
        inline_costs(graph.nodes, frozenset()),
    )

    def pad(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
        product = find.product(node)
        if product is None:
            return None
        best = choose(product, costs)
        return None if best is None else _padded_product(b, product, best, x)

    return rewrite(graph, {"matmul": [pad]})


# --- what there is --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Factor:
    """An operand in memory. ``by_columns``: its columns are contiguous instead of its rows. ``width``:
    bytes of the widest load that may begin at every row. ``elements``: of all batches.

    Padding it costs nothing at a call when it ``lasts``, and little when it ``is_computed``: written to
    memory by a kernel, for products alone.
    """

    by_columns: bool
    width: int
    elements: int
    lasts: bool
    is_computed: bool


@dataclass(frozen=True, slots=True)
class Product:
    """``[batch, m, k] @ [batch, k, n]``; sizes that change have a likely value here (``varies``)."""

    dtype: DType
    batch: int
    m: int
    n: int
    k: int
    left: Factor
    right: Factor
    varies: bool = False


class _Finder:
    """Finds the products of a Graph."""

    def __init__(
        self,
        costs: ProductCosts,
        lasting: Lasting,
        users: Mapping[Node, list[Node]],
        roots: Set[Node],
        inline: Mapping[Node, Cost],
    ) -> None:
        self._costs = costs
        self._lasting = lasting
        self._users = users
        self._roots = roots
        self._inline = inline

    def product(self, node: Node) -> Product | None:
        """The product of a ``matmul`` that something needs; None for one that is left alone."""
        if any(map(_is_of_dots, node.inputs)):
            return None
        first, second = node.inputs
        *batch, m, k = first.shape
        n = second.shape[-1]
        static = [d for d in (m, n, k) if isinstance(d, int)]
        if self._costs.flops(node.dtype) is None or any(d < self._costs.least for d in static):
            return None
        left, right = map(self._factor, node.inputs)
        varies = not all(isinstance(d, int) for d in (*batch, m, n, k))
        batches, rows, columns, depth = (self._likely(d) for d in (numel(batch), m, n, k))
        found = Product(node.dtype, batches, rows, columns, depth, left, right, varies)
        return found if found.batch else None

    def _likely(self, dim: Dim) -> int:
        # One that changes is a whole tile, which is nothing to pad.
        return dim if isinstance(dim, int) else self._costs.tile

    def _factor(self, node: Node) -> Factor:
        by_columns, steps = self._rows(node)
        base = view_base(node)
        return Factor(
            by_columns,
            _width(steps, node.dtype.itemsize, self._costs),
            math.prod(self._likely(d) for d in node.shape),
            self._lasting(node),
            base.spec.has(Trait.POINTWISE)
            and self._inline[base].is_once_only
            and self._is_for_products(base),
        )

    def _rows(self, node: Node) -> tuple[bool, list[int]]:
        """Whether columns of an operand are contiguous instead of rows, and numbers of elements of which
        the place of every row (column) is a sum of multiples."""
        base = view_base(node)
        layout = fixed_strides(base) or order_for_reader(base, self._users[base])
        view = strided_view(node, {base}, {base: layout})
        unknown = False, [1]
        if view is None:
            return unknown
        *batch, rows, columns = view.strides
        if columns != 1 and rows != 1:
            return unknown
        steps = [s for s, d in zip(batch, view.shape, strict=False) if d != 1]
        steps += [view.offset, rows if columns == 1 else columns]
        numbers = [s for s in steps if isinstance(s, int)]
        return (columns != 1, numbers) if len(numbers) == len(steps) else unknown

    def _is_for_products(self, node: Node) -> bool:
        """Whether nothing but matrix products reads a value, through views."""
        if node in self._roots:
            return False
        for user in self._users[node]:
            if user.op == "matmul":
                continue
            if user.op == "pad" or not user.spec.has(Trait.VIEW) or len(user.inputs) != 1:
                return False
            if not self._is_for_products(user):
                return False
        return bool(self._users[node])


def _is_of_dots(node: Node) -> bool:
    """Whether a factor is computed from products that are made where they are read (``attention``)."""
    seen: set[Node] = set()
    todo = [node]
    while todo:
        here = todo.pop()
        if here.op == "dot":
            return True
        if here not in seen and here.spec.has(Trait.POINTWISE | Trait.VIEW):
            seen.add(here)
            todo += here.inputs
    return False


def _width(steps: Sequence[int], itemsize: int, costs: ProductCosts) -> int:
    """Bytes of the widest load that is aligned at every multiple of these steps, in elements."""
    common = math.gcd(costs.vector_bytes, *(s * itemsize for s in steps))
    return common & -common


# --- what it costs --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Padding:
    """A way to pad a product. ``k`` is its depth then, and ``m`` and ``n`` the distances of columns of the
    left factor and of rows of the right one, where those are padded, else the sizes. ``seconds``: what
    it saves at a call; ``copied``, ``kept``: bytes at a call, and once."""

    m: int
    n: int
    k: int
    left_width: int
    right_width: int
    seconds: float = 0.0
    copied: int = 0
    kept: int = 0


def choose(product: Product, costs: ProductCosts) -> Padding | None:
    """The best way to pad a product; None where that is to leave it as it is."""
    before = _seconds(product, product.k, product.left.width, product.right.width, costs)
    best: Padding | None = None
    for way in _ways(product, costs):
        copies, copied, kept = _copies(product, way, costs)
        if copies is None:
            continue
        after = _seconds(product, way.k, way.left_width, way.right_width, costs) + copies
        saved = before - after
        if saved > 0 and saved >= _LEAST_GAIN * before and (best is None or saved > best.seconds):
            best = replace(way, seconds=saved, copied=copied, kept=kept)
    return best


def _seconds(product: Product, k: int, left: int, right: int, costs: ProductCosts) -> float:
    """A product of depth ``k`` whose factors are loaded ``left`` and ``right`` bytes at a time."""
    p, size = product, product.dtype.itemsize
    flops = costs.flops(p.dtype)
    assert flops is not None
    across, down = -(-p.n // costs.tile), -(-p.m // costs.tile)
    loads = p.batch * k * size * (p.m * across / left + p.n * down / right)
    traffic = p.batch * size * (p.m * k + k * p.n + p.m * p.n)
    arithmetic = 2 * p.batch * p.m * p.n * k / flops
    return max(arithmetic, traffic / costs.bytes_per_second) + loads / costs.loads_per_second


def _ways(product: Product, costs: ProductCosts) -> Iterator[Padding]:
    """Every choice of dims to pad that some factor's rows are narrow for; fewer dims first."""
    p, size = product, product.dtype.itemsize
    left_narrow, right_narrow = (f.width < costs.vector_bytes for f in (p.left, p.right))
    deep = padded_size(p.k, size, costs)
    may_k = (left_narrow and not p.left.by_columns) or (right_narrow and p.right.by_columns)
    may_m, may_n = left_narrow and p.left.by_columns, right_narrow and not p.right.by_columns
    choices = itertools.product(
        *((False, True) if may else (False,) for may in (may_k, may_m, may_n))
    )
    for pads_k, pads_m, pads_n in sorted(choices, key=sum):
        k = deep if pads_k else p.k
        m = padded_size(p.m, size, costs) if pads_m else p.m
        n = padded_size(p.n, size, costs) if pads_n else p.n
        changed = (k != p.k, m != p.m, n != p.n)
        if changed != (pads_k, pads_m, pads_n) or not any(changed):
            continue  # what is not padded is not copied either, and stays where it is
        left, right = p.left.width, p.right.width
        if pads_k or pads_m:
            left = _width([m if p.left.by_columns else k], size, costs)
        if pads_k or pads_n:
            right = _width([k if p.right.by_columns else n], size, costs)
        yield Padding(m, n, k, left, right)


def padded_size(size: int, itemsize: int, costs: ProductCosts) -> int:
    """A dim rounded up to whole vectors, and to ``costs.multiple`` where that adds little."""
    for multiple in (costs.multiple, costs.vector_bytes // itemsize):
        found = -(-size // multiple) * multiple
        if found - size <= size * _MOST_ADDED:
            return found
    return found


def _copies(product: Product, way: Padding, costs: ProductCosts) -> tuple[float | None, int, int]:
    """Seconds of padding at a call (None where they cannot be told), bytes copied then and kept."""
    p, size, seconds, copied, kept = product, product.dtype.itemsize, 0.0, 0, 0
    for factor, outer, new in ((p.left, p.m, way.m), (p.right, p.n, way.n)):
        if (new, way.k) == (outer, p.k):
            continue
        before = factor.elements * size
        after = factor.elements // (outer * p.k) * new * way.k * size
        if factor.lasts:
            kept += after
        elif p.varies:
            return None, 0, 0
        elif factor.is_computed:
            copied += after - before
            seconds += (after - before) / costs.bytes_per_second
        else:
            copied += after
            seconds += (before + after) / costs.bytes_per_second + costs.kernel_seconds
    return seconds, copied, kept


# --- padding --------------------------------------------------------------------------------------


def _padded_product(b: Rewriter, p: Product, way: Padding, x: Sequence[Node]) -> Node:
    deeper, left, right = way.k - p.k, x[0], x[1]
    if deeper or way.m != p.m:
        left = _padded(b, left, p.left, (way.m - p.m, deeper), 0)
    if deeper or way.n != p.n:
        right = _padded(b, right, p.right, (deeper, way.n - p.n), 1)
    changes = (("k", p.k, way.k), ("m", p.m, way.m), ("n", p.n, way.n))
    dims = ", ".join(f"{name} {old} -> {new}" for name, old, new in changes if old != new)
    loads = [
        f"{old} -> {new} B"
        for old, new in ((p.left.width, way.left_width), (p.right.width, way.right_width))
        if old != new
    ]
    b.decide(
        f"product of {x[0].type} and {x[1].type}: {dims}",
        f"loads are wider: {', '.join(loads)}",
        copied=way.copied,
        kept=way.kept,
        seconds=way.seconds,
    )
    return b.emit("matmul", left, right)


def _padded(b: Rewriter, x: Node, factor: Factor, high: tuple[int, int], free: int) -> Node:
    """A factor with ``high`` zeros after its rows and columns; its dim that is not summed (``free`` of
    the last two) is cut to what it was, in the same memory."""
    shape = list(x.shape)
    shape[-1 if free == 0 else -2] += high[1 - free]
    memory = _turned(b, x) if factor.by_columns else x
    after = (high[1], high[0]) if factor.by_columns else high
    zeros = (0,) * (len(shape) - 2)
    pad = A.PadAttrs((0,) * len(shape), (*zeros, *after), 0.0)
    memory = b.emit("pad", memory, attrs=pad)
    whole = _turned(b, memory) if factor.by_columns else memory
    if whole.shape == tuple(shape):
        return whole
    attrs = A.SliceAttrs((0,) * len(shape), tuple(shape), (1,) * len(shape))
    return b.emit("slice", whole, attrs=attrs)


def _turned(b: Rewriter, x: Node) -> Node:
    """x with its last two dims exchanged."""
    rank = len(x.shape)
    swap = (*range(rank - 2), rank - 1, rank - 2)
    if x.op == "permute" and x.attrs.dims == swap:
        return x.inputs[0]
    return b.emit("permute", x, attrs=A.PermuteAttrs(swap))
