"""Dropout whose mask the backward pass draws again, from a seed that is kept.

    seed = dropout_seed(device, k)             i64[], drawn once a run; saved for the backward pass
    mask = dropout_mask(seed, like, p)         bool, of the shape of ``like``; made wherever it is read

A mask is a function of its seed and of positions (Philox, as all random numbers of lazyc), so that forward and
backward pass find the same one, whichever of them is compiled: run in eager, the operators give the same bits.
Each dropout has a seed of its own and counts from 0, so that the kernels of equal layers are equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.utils.checkpoint import CheckpointPolicy

from lazyc.ir.attrs import RandomAttrs
from lazyc.ir.ops import OPS
from lazyc.ir.types import DType


@torch.library.custom_op(
    "lazyc::dropout_seed", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def dropout_seed(device: torch.device, number: int) -> torch.Tensor:
    """A seed from torch's generator, i64[]. ``number`` tells the draws of a graph apart: AOTAutograd merges
    equal calls of operators that it does not know to be random."""
    return torch.empty((), dtype=torch.int64, device=device).random_()


@dropout_seed.register_fake
def _(device: torch.device, number: int) -> torch.Tensor:
    return torch.empty((), dtype=torch.int64, device=device)


@torch.library.custom_op("lazyc::dropout_mask", mutates_args=())
def dropout_mask(seed: torch.Tensor, like: torch.Tensor, p: float) -> torch.Tensor:
    """True for what is kept, an element with a chance of 1 - p; contiguous, bool. Only the shape of ``like`` is
    read."""
    attrs = RandomAttrs("uniform", tuple(like.shape), DType.F32, 0)
    draws: torch.Tensor = OPS["random"].evaluate([seed], attrs, {})
    return (draws >= p).to(like.device)


@dropout_mask.register_fake
def _(seed: torch.Tensor, like: torch.Tensor, p: float) -> torch.Tensor:
    return torch.empty(like.shape, dtype=torch.bool, device=like.device)


SEED = torch.ops.lazyc.dropout_seed.default
MASK = torch.ops.lazyc.dropout_mask.default


def kept_seed(before: Node, like: torch.Tensor) -> Node:
    """Adds a seed before a node of a joint graph, on the device of ``like``, and has it saved."""
    graph = before.graph
    number = len(graph.find_nodes(op="call_function", target=SEED))
    with graph.inserting_before(before):
        seed = graph.call_function(SEED, (like.device, number))
    value = like.new_empty((), dtype=torch.int64)
    seed.meta = {**before.meta, "val": value, "recompute": CheckpointPolicy.MUST_SAVE}
    return seed


def dropped_mask(before: Node, like: Node, p: float) -> Node:
    """Adds the mask of a dropout of ``like`` before a node of a joint graph; both directions will make it."""
    graph, value = before.graph, like.meta["val"]
    target: Any = torch.ops.aten.zeros_like.default
    args: tuple[Any, ...] = (like,)
    options: dict[str, Any] = {"dtype": torch.bool}
    if p < 1:  # else nothing is drawn, as without gradients
        target, args, options = MASK, (kept_seed(before, value), like, p), {}
    with graph.inserting_before(before):
        mask = graph.call_function(target, args, options)
    made = value.new_empty(value.shape, dtype=torch.bool)
    mask.meta = {**before.meta, "val": made, "recompute": CheckpointPolicy.MUST_RECOMPUTE}
    return mask
