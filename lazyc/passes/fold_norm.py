"""Folds what scales and shifts the channels of a convolution into its weight and bias.

    before   y = convolution(x, w)    z = y * scale[c] + shift[c]
    after    z = convolution(x, w * scale[c], shift)

That is an inference batch norm (Ioffe and Szegedy 2015, section 3.1), whichever way it was
decomposed. The weight, scale and shift must last from call to call, so that the product is made
once, and nothing else may read the convolution's result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lazyc.ir import attrs as A
from lazyc.ir.decisions import size_of
from lazyc.ir.graph import Graph, Node
from lazyc.passes.lasting import Lasting
from lazyc.passes.realize import live_nodes
from lazyc.passes.rewrite import Rewriter, Rule, rewrite, scalar_value


def fold_norm(graph: Graph) -> Graph:
    """The Graph with per-channel ``mul``, ``div``, ``add`` and ``sub`` folded into convolutions."""
    if not any(node.op == "convolution" for node in graph.nodes):
        return graph
    uses = Counter(arg for node in live_nodes(graph) for arg in node.inputs)
    uses.update(graph.roots())
    lasting = Lasting(graph)

    def fold(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
        swaps = (0, 1) if node.op in ("mul", "add") else (0,)
        for k in swaps:
            conv, other = x[k], x[1 - k]
            if conv.op != "convolution" or uses[node.inputs[k]] != 1:
                continue
            if not all(lasting(n) for n in (*conv.inputs[1:], other)) or lasting(conv):
                continue
            values = _channel_values(b, other)
            if values is None:
                continue
            folded = (_scaled if node.op in ("mul", "div") else _shifted)(b, node.op, conv, values)
            if folded is not None:
                _note(b, node, conv)
            return folded
        return None

    rules: dict[str, list[Rule]] = {op: [fold] for op in ("mul", "div", "add", "sub")}
    return rewrite(graph, rules)


def _note(b: Rewriter, node: Node, conv: Node) -> None:
    size = size_of(node.tensor)
    scales = node.op in ("mul", "div")
    b.decide(
        f"{node.op} of channels of {node.type} folded into the {'weight' if scales else 'bias'}",
        "both are the same at each call, and nothing else reads the convolution's result",
        kept=size_of(conv.inputs[1].tensor) if scales else 0,
        saved=None if size is None else 2 * size,
    )


def _channel_values(b: Rewriter, node: Node) -> Node | None:
    """The values (C,) that a tensor (N, C, *spatial) repeats in all other dims; None if it does not."""
    channels = node.shape[1]
    number = scalar_value(node)
    source = node.inputs[0] if node.op == "expand" else node
    if number is not None:
        constant = A.ConstantAttrs(number, node.dtype, node.tensor.device)
        return b.expand(b.emit("constant", attrs=constant), (channels,))
    if any(d != 1 for k, d in enumerate(source.shape) if k != 1):
        return None
    return b.expand(b.reshape(source, (source.shape[1],)), (channels,))


def _scaled(b: Rewriter, op: str, conv: Node, scale: Node) -> Node | None:
    x, weight, *bias = conv.inputs
    axis = 1 if conv.attrs.transposed else 0
    if conv.attrs.transposed and conv.attrs.groups != 1:
        return None
    shape = tuple(d if k == axis else 1 for k, d in enumerate(weight.shape))
    spread = b.expand(b.reshape(scale, shape), weight.shape)
    scaled = [b.emit(op, weight, spread), *(b.emit(op, n, scale) for n in bias)]
    return b.emit("convolution", x, *scaled, attrs=conv.attrs)


def _shifted(b: Rewriter, op: str, conv: Node, shift: Node) -> Node:
    x, weight, *bias = conv.inputs
    if bias:
        shift = b.emit(op, bias[0], shift)
    elif op == "sub":
        shift = b.emit("neg", shift)
    return b.emit("convolution", x, weight, shift, attrs=conv.attrs)
