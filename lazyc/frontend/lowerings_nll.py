"""Lowerings of the negative log likelihood loss and its gradient.

The gradient is written as a comparison of each class with the target rather than as a scatter: it is
pointwise, so it fuses with the gradient of log_softmax.
"""

from __future__ import annotations

from lazyc.frontend.indexing import identity
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType

_NONE, _MEAN, _SUM = 0, 1, 2  # at::Reduction


def _class_axis(x: Node) -> int:
    """Classes are dim 0 of an unbatched input (C,), else dim 1 of (N, C, ...)."""
    return 1 if x.tensor.rank > 1 else 0


def _targets(b: Builder, x: Node, target: Node) -> Node:
    """Targets as i64 with the class axis as a dim of size 1: (N, 1, ...)."""
    if target.dtype not in (DType.I64, DType.U8):
        raise NotLowered(f"targets of type {target.dtype}")
    if not x.dtype.is_float:
        raise NotLowered(f"loss of type {x.dtype}")
    axis = _class_axis(x)
    shape = tuple(1 if k == axis else d for k, d in enumerate(x.shape))
    return b.reshape(b.cast(target, DType.I64), shape)


@lowers("aten.nll_loss_forward.default", "aten.nll_loss2d_forward.default")
def nll_loss_forward(
    b: Builder, x: Node, target: Node, weight: Node | None, reduction: int, ignore_index: Dim
) -> tuple[Node, Node]:
    """The loss and the sum of the targets' weights. x (N, C, ...), target (N, ...), weight (C,)."""
    axis = _class_axis(x)
    if x.shape[axis] == 0:
        raise NotLowered("loss over no classes")
    device = x.tensor.device
    labels = _targets(b, x, target)
    counts = b.compare("ne", labels, ignore_index)
    safe = b.where(counts, labels, 0)
    places = [
        safe if k == axis else identity(b, labels.shape, k, device) for k in range(x.tensor.rank)
    ]
    picked = b.compute(b.gather(x, places, checked=True))
    loss = b.neg(picked)
    if weight is not None:
        weights = b.compute(b.gather(weight, [safe], checked=True))
        loss = b.mul(loss, weights)
    else:
        weights = b.constant(1, loss.dtype, loss.shape, device)
    loss = b.where(counts, loss, 0)
    total = b.reduce("sum", b.where(counts, weights, 0), None)
    if reduction == _NONE and x.tensor.rank > 1:
        return b.cast(b.squeeze(loss, axis), x.dtype), b.constant(0, x.dtype, (), device)
    result = b.reduce("sum", loss, None)
    if reduction == _MEAN:
        result = b.div(result, total)
    return b.cast(result, x.dtype), b.cast(total, x.dtype)


@lowers("aten.nll_loss_backward.default", "aten.nll_loss2d_backward.default")
def nll_loss_backward(
    b: Builder,
    grad: Node,
    x: Node,
    target: Node,
    weight: Node | None,
    reduction: int,
    ignore_index: Dim,
    total_weight: Node,
) -> Node:
    """``-weight[c] * grad`` where c is the target, 0 elsewhere; divided by the total for a mean."""
    axis = _class_axis(x)
    labels = _targets(b, x, target)
    scale = b.neg(b.compute(grad))
    if reduction == _MEAN:
        scale = b.div(scale, b.compute(total_weight))
    if scale.tensor.rank:  # reduction "none" of a batch: (N, ...) -> (N, 1, ...)
        scale = b.reshape(scale, labels.shape)
    if weight is not None:
        line = tuple(d if k == axis else 1 for k, d in enumerate(x.shape))
        scale = b.mul(scale, b.reshape(b.compute(weight), line))
    classes = identity(b, x.shape, axis, x.tensor.device)
    hit = b.pointwise(
        "and", b.compare("eq", classes, labels), b.compare("ne", labels, ignore_index)
    )
    return b.cast(b.expand(b.where(hit, scale, 0), x.shape), x.dtype)
