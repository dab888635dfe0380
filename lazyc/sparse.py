"""Sparse weights: ``prune_24`` makes the weights of linear layers 2:4, ``to_block_sparse`` block-sparse.

    lazyc.sparse.prune_24(model)                      # in place, before the first call
    compiled = torch.compile(model, backend="lazyc")
    with torch.no_grad():
        compiled(x)

In a 2:4 weight at most two of every four neighbours along ``in_features`` are not zero (A. Mishra et al.,
"Accelerating Sparse Deep Neural Networks", 2021). Products of few rows then read about half the memory.
In a block-sparse weight whole square blocks are zero, and products skip them whatever their size. See ``docs/sparse.md``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.sparse import SparseSemiStructuredTensor

from lazyc.errors import SparsityError
from lazyc.ir import sparse as S

__all__ = ["is_24", "prune_24", "to_block_sparse"]

Method: TypeAlias = Literal["magnitude"]


def is_24(weight: torch.Tensor) -> bool:
    """Whether at most two of every four neighbours along the last dim of a [n, k] weight are not zero.

    False where k is no multiple of four. A nan counts as not zero, -0.0 as zero. The weight may be a
    ``torch.sparse.SparseSemiStructuredTensor``. Reads the whole weight. Raises SparsityError for a
    tensor that has not two dims.
    """
    if weight.dim() != 2:
        raise SparsityError(
            f"is_24 takes a weight [out_features, in_features], not {list(weight.shape)}; "
            "reshape it to two dims, with those that are summed over last"
        )
    return S.is_24(_dense(weight).detach())


def prune_24(
    module_or_weight: nn.Module | torch.Tensor,
    names: Sequence[str] | None = None,
    method: Method = "magnitude",
) -> list[str]:
    """Makes weights of a module's ``nn.Linear`` layers, or one weight, 2:4 in place; the names of these layers,
    ``[""]`` for a weight.

    Of every four neighbours along ``in_features`` (weight: [out_features, in_features], of floats or int8) the
    two with the largest absolute values stay as they are and the others become 0; of equal ones the first
    stay, and a nan counts as largest (``method="magnitude"``; Mishra et al., 2021, section 4). A weight
    that is 2:4 already does not change. A ``SparseSemiStructuredTensor`` is replaced by a plain
    parameter of the same values.

    ``names``: layers as ``module.named_modules()`` names them, or all. The weights are marked as 2:4,
    which ``torch.compile`` reads when it captures the module: prune first, and again what was copied
    with ``copy.deepcopy`` or loaded with ``assign=True``. Nothing keeps the zeros when the weights
    are trained afterwards; a weight that is no longer 2:4 is used as it is, at the speed of any other.

    Raises SparsityError for a name that is no linear layer, a method that is not known, and a weight
    that cannot be 2:4 (in_features no multiple of four, neither floats nor int8, parametrized or not initialized
    yet; a ``SparseSemiStructuredTensor`` that is not in a layer). Nothing has changed then.
    """
    if method not in get_args(Method):
        known = ", ".join(map(repr, get_args(Method)))
        raise SparsityError(f"unknown pruning method {method!r}; known: {known}")
    layers, weights = _find(module_or_weight, names)
    for name, weight in weights.items():
        _check(name, weight, (torch.int8,))
        if weight.dim() != 2:
            raise SparsityError(
                f"a weight is [out_features, in_features], not {list(weight.shape)}"
            )
        if weight.shape[1] % S.GROUP:
            raise SparsityError(
                f"{_where(name)} has in_features={weight.shape[1]}, no multiple of {S.GROUP}; leave "
                "it out with names=[...], or pad its input and weight with zeros"
            )
    with torch.no_grad():
        for weight in _plain(layers, weights).values():
            _prune(weight)
            S.declare(weight, "2:4")
    return list(weights)


def to_block_sparse(
    module_or_weight: nn.Module | torch.Tensor,
    block: tuple[int, int] = (16, 16),
    sparsity: float = 0.9,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Makes weights of a module's ``nn.Linear`` layers, or one weight, block-sparse in place; the names of
    these layers, ``[""]`` for a weight.

    Of the blocks (``block``: 16 or 32 rows and as many columns) of each weight [out_features,
    in_features] a share of ``sparsity`` (0 to 1, rounded to fewer zeros) becomes 0.0: those with the
    least sums of squares, of equal ones the last. The others stay as they are (S. Gray et al., "GPU
    Kernels for Block-Sparse Weights", 2017; blocks chosen by magnitude as in S. Narang et al.,
    "Block-Sparse Recurrent Neural Networks", 2017). ``names`` and the mark are as in ``prune_24``. A
    compiled product skips the zero blocks while two thirds of all are zero, and is a dense one else.

    Raises SparsityError for blocks of other sizes, a ``sparsity`` out of range, a weight that has not
    whole blocks, and what ``prune_24`` refuses. Nothing has changed then.
    """
    marks: dict[tuple[int, ...], S.Sparsity] = {(n, n): mark for mark, n in S.BLOCKS.items()}
    mark = marks.get(tuple(block))
    if mark is None:
        known = " or ".join(f"({n}, {n})" for n in S.BLOCKS.values())
        raise SparsityError(f"blocks are {known}, not {block!r}")
    if not 0 <= sparsity <= 1:
        raise SparsityError(f"sparsity={sparsity!r} is no share of the blocks; pass 0 to 1")
    layers, weights = _find(module_or_weight, names)
    for name, weight in weights.items():
        _check(name, weight)
        if weight.dim() != 2 or any(n % S.BLOCKS[mark] for n in weight.shape):
            raise SparsityError(
                f"the weight of {_where(name)} is {list(weight.shape)}, no whole blocks of "
                f"{list(block)}; leave it out with names=[...], or pad it with zeros"
            )
    with torch.no_grad():
        for weight in _plain(layers, weights).values():
            _prune_blocks(weight, S.BLOCKS[mark], sparsity)
            S.declare(weight, mark)
    return list(weights)


def _find(
    module_or_weight: nn.Module | torch.Tensor, names: Sequence[str] | None
) -> tuple[dict[str, nn.Linear], dict[str, torch.Tensor]]:
    """The layers that are meant, none for a weight, and their weights."""
    if isinstance(module_or_weight, nn.Module):
        layers = _linear_layers(module_or_weight, names)
        for name, layer in layers.items():
            _check_layer(name, layer)
        return layers, {name: layer.weight for name, layer in layers.items()}
    if names is not None:
        raise SparsityError("names are those of a module's layers; leave them out for a weight")
    if isinstance(module_or_weight, SparseSemiStructuredTensor):
        raise SparsityError(
            f"a {type(module_or_weight).__name__} is not changed in place; pass its to_dense()"
        )
    return {}, {"": module_or_weight}


def _plain(
    layers: dict[str, nn.Linear], weights: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The weights, those of layers as plain parameters, which are put there."""
    for layer in layers.values():
        if isinstance(layer.weight, SparseSemiStructuredTensor):
            layer.weight = nn.Parameter(_dense(layer.weight), layer.weight.requires_grad)
    return {name: layers[name].weight if layers else weight for name, weight in weights.items()}


def _linear_layers(module: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Linear]:
    found = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    if names is None:
        return found
    if isinstance(names, str):
        raise SparsityError(f"names is a list of names; pass [{names!r}]")
    for name in names:
        if name not in found:
            near = difflib.get_close_matches(name, found, n=3, cutoff=0.0)
            hint = f"near it: {', '.join(map(repr, near))}" if near else "the module has none"
            raise SparsityError(f"{name!r} is no nn.Linear of this module; {hint}")
    return {name: found[name] for name in names}


def _check(name: str, weight: torch.Tensor, integers: tuple[torch.dtype, ...] = ()) -> None:
    if not weight.is_floating_point() and weight.dtype not in integers:
        allowed = " or ".join(["floats", *(str(d).removeprefix("torch.") for d in integers)])
        raise SparsityError(
            f"the weight of {_where(name)} is {weight.dtype}; prune it as {allowed}"
        )


def _check_layer(name: str, layer: nn.Linear) -> None:
    where = _where(name)
    if parametrize.is_parametrized(layer, "weight"):
        raise SparsityError(
            f"the weight of {where} is computed by a parametrization; call "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )
    if isinstance(layer.weight, nn.UninitializedParameter):
        raise SparsityError(f"the weight of {where} has no shape yet; run the module once first")


def _where(name: str) -> str:
    return f"layer {name!r}" if name else "this layer"


def _dense(weight: torch.Tensor) -> torch.Tensor:
    return weight.to_dense() if isinstance(weight, SparseSemiStructuredTensor) else weight


def _prune(weight: torch.Tensor) -> None:
    # int8 has no 128.
    wide = weight.detach() if weight.is_floating_point() else weight.detach().to(torch.int16)
    groups = wide.abs().reshape(-1, S.GROUP)
    order = groups.sort(dim=1, descending=True, stable=True).indices
    dropped = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, 2:], True)
    weight.masked_fill_(dropped.reshape(weight.shape), 0)


def _prune_blocks(weight: torch.Tensor, size: int, sparsity: float) -> None:
    n, k = weight.shape
    blocks = weight.detach().float().reshape(n // size, size, k // size, size)
    norms = blocks.square().sum((1, 3)).reshape(-1)
    order = norms.sort(descending=True, stable=True).indices
    count = int(sparsity * len(norms))
    dropped = torch.zeros_like(norms, dtype=torch.bool)
    dropped[order[len(norms) - count :]] = True
    mask = dropped.reshape(n // size, 1, k // size, 1).expand(-1, size, -1, size)
    weight.masked_fill_(mask.reshape(n, k), 0.0)
