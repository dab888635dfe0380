"""Lowerings of losses. The rarer ones come here in pieces, through torch's decompositions."""

from __future__ import annotations

from lazyc.frontend.lowering import Builder, lowers
from lazyc.frontend.promotion import result_dtype
from lazyc.ir.graph import Node

# torch's at::Reduction
NONE, MEAN, SUM = 0, 1, 2


def reduce_loss(b: Builder, loss: Node, reduction: int) -> Node:
    """The loss of each element reduced as asked."""
    if reduction == MEAN:
        return b.mean(loss, None)
    return b.reduce("sum", loss, None) if reduction == SUM else loss


@lowers("aten.mse_loss.default")
def _mse_loss(b: Builder, x: Node, target: Node, reduction: int = MEAN) -> Node:
    dtype = result_dtype((x, target))
    x, target = b.operands(dtype.compute, x, target)
    apart = b.sub(x, target)
    return b.cast(reduce_loss(b, b.mul(apart, apart), reduction), dtype)


@lowers("aten.mse_loss_backward.default")
def _mse_loss_backward(b: Builder, grad: Node, x: Node, target: Node, reduction: int) -> Node:
    dtype = result_dtype((x, target))
    grad, x, target = b.operands(dtype.compute, grad, x, target)
    scaled = b.mul(b.mul(b.sub(x, target), 2.0), grad)
    if reduction == MEAN:
        scaled = b.div(scaled, x.tensor.numel)
    return b.cast(scaled, dtype)
