"""Lowerings of bernoulli, dropout and other distributions, from uniform and normal draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lazyc.frontend.draws import (
    check_random,
    device_name,
    float_type,
    normal_draw,
    open_uniform,
    own_seed,
    uniform_draw,
    uniform_on_grid,
)
from lazyc.frontend.indexing import require
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.promotion import Operand
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, Shape


def _probability(p: float) -> float:
    if not 0.0 <= p <= 1.0:
        raise NotLowered(f"probability {p}")
    return float(p)


@lowers("aten.bernoulli.p")
def bernoulli_p(b: Builder, x: Node, p: float, *, generator: object = None) -> Node:
    check_random(None, generator)
    draw = b.random("uniform", x.shape, DType.F32, x.tensor.device)
    return b.cast(b.compare("lt", draw, _probability(p)), x.dtype)


@lowers("aten.bernoulli.Tensor")
def bernoulli_tensor(b: Builder, x: Node, p: Node, *, generator: object = None) -> Node:
    check_random(None, generator)
    if not p.dtype.is_float:
        raise NotLowered(f"probabilities of type {p.dtype}")
    chance = b.compute(p)
    valid = b.pointwise("and", b.compare("ge", chance, 0), b.compare("le", chance, 1))
    chance = b.expand(require(b, valid, chance), x.shape)
    draw = uniform_draw(b, x.shape, p.dtype, x.tensor.device)
    return b.cast(b.compare("lt", draw, chance), x.dtype)


@lowers("aten.bernoulli.default")
def bernoulli(b: Builder, x: Node, *, generator: object = None) -> Node:
    return bernoulli_tensor(b, x, x, generator=generator)


@lowers("aten.native_dropout.default")
def native_dropout(b: Builder, x: Node, p: float, train: bool | None) -> tuple[Node, Node]:
    """The kept elements over 1-p and the mask of what is kept; everything outside training."""
    if not x.dtype.is_float:
        raise NotLowered(f"dropout of {x.dtype}")
    device = x.tensor.device
    if train is False or p == 0:
        return x, b.constant(True, DType.BOOL, x.shape, device)
    if _probability(p) == 1:
        return b.mul(x, 0), b.constant(False, DType.BOOL, x.shape, device)
    # As where a seed is kept in place of its mask, so that a run with gradients and one without agree.
    mask = dropout_mask(b, own_seed(b, device), x, p)
    kept = b.mul(b.mul(b.compute(x), b.cast(mask, x.dtype.compute)), 1.0 / (1.0 - p))
    return b.cast(kept, x.dtype), mask


@lowers("aten.native_dropout_backward.default")
def native_dropout_backward(b: Builder, grad: Node, mask: Node, scale: float) -> Node:
    if not grad.dtype.is_float:  # the result has the default type then
        raise NotLowered(f"dropout of {grad.dtype}")
    kept = b.mul(b.compute(grad), b.cast(mask, grad.dtype.compute))
    return b.cast(b.mul(kept, scale), grad.dtype)


@lowers("lazyc.dropout_seed.default")
def dropout_seed(b: Builder, device: torch.device, number: int) -> Node:
    return own_seed(b, device_name(device))


@lowers("lazyc.dropout_mask.default")
def dropout_mask(b: Builder, seed: Node, like: Node, p: float) -> Node:
    draw = b.random_from(seed, "uniform", like.shape, DType.F32, like.tensor.device)
    return b.compare("ge", draw, _probability(p))


# --- other distributions --------------------------------------------------------------------------


def _affine_normal(
    b: Builder, shape: Shape, dtype: DType, device: str, mean: Operand, std: Operand
) -> Node:
    """``mean + std * N(0, 1)``. A negative deviation is an error, which eager raises."""
    if isinstance(std, Node) and std.dtype is not dtype:
        raise NotLowered(f"deviations of type {std.dtype} for {dtype}")
    if not isinstance(std, Node) and not float(std) >= 0:
        raise NotLowered(f"standard deviation {std}")
    draw = normal_draw(b, shape, dtype, device)
    spread = b.compute(std) if isinstance(std, Node) else std
    if isinstance(spread, Node):
        spread = require(b, b.compare("ge", spread, 0), spread)
    center = b.compute(mean) if isinstance(mean, Node) else mean
    return b.cast(b.add(b.mul(draw, spread), center), dtype)


@lowers("aten.normal_functional.default")
def normal_functional(
    b: Builder, x: Node, mean: float = 0.0, std: float = 1.0, *, generator: object = None
) -> Node:
    check_random(None, generator)
    return _affine_normal(b, x.shape, x.dtype, x.tensor.device, mean, std)


@lowers("aten.normal.float_float")
def normal_float_float(
    b: Builder,
    mean: float,
    std: float,
    size: Sequence[Dim],
    *,
    generator: object = None,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Node:
    check_random(layout, generator)
    return _affine_normal(b, tuple(size), float_type(dtype), device_name(device), mean, std)


@lowers("aten.normal.Tensor_float")
def normal_tensor_float(
    b: Builder, mean: Node, std: float = 1.0, *, generator: object = None
) -> Node:
    check_random(None, generator)
    return _affine_normal(b, mean.shape, mean.dtype, mean.tensor.device, mean, std)


@lowers("aten.normal.float_Tensor", "aten.normal.Tensor_Tensor")
def normal_tensor(b: Builder, mean: Operand, std: Node, *, generator: object = None) -> Node:
    check_random(None, generator)
    shape, dtype = std.shape, std.dtype
    if isinstance(mean, Node):
        mean, std = b.broadcast(mean, std)
        shape, dtype = mean.shape, mean.dtype
    return _affine_normal(b, shape, dtype, std.tensor.device, mean, std)


@lowers("aten.uniform.default")
def uniform(
    b: Builder, x: Node, low: float = 0.0, high: float = 1.0, *, generator: object = None
) -> Node:
    check_random(None, generator)
    if not low <= high:
        raise NotLowered(f"uniform numbers of [{low}, {high})")
    draw = b.compute(uniform_on_grid(b, x.shape, x.dtype, x.tensor.device))
    return b.cast(b.add(b.mul(draw, high - low), low), x.dtype)


@lowers("aten.rrelu_with_noise_functional.default")
def rrelu_with_noise(
    b: Builder,
    x: Node,
    noise: Node,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: object = None,
) -> tuple[Node, Node]:
    """Leaky relu with slopes drawn from [lower, upper) in training; the noise is the slopes."""
    check_random(None, generator)
    values = b.compute(x)
    negative = b.compare("le", values, 0)
    if not training:
        leaky = b.mul(values, (lower + upper) / 2)
        return b.cast(b.where(negative, leaky, values), x.dtype), noise
    slopes = b.where(negative, b.compute(uniform(b, x, lower, upper)), 1)
    return b.cast(b.mul(values, slopes), x.dtype), b.cast(slopes, noise.dtype)


@lowers("aten.exponential.default")
def exponential(b: Builder, x: Node, lambd: float = 1.0, *, generator: object = None) -> Node:
    """``-log(u) / lambd``, never 0."""
    check_random(None, generator)
    if not x.dtype.is_float or not lambd > 0:
        raise NotLowered(f"exponential of rate {lambd} in {x.dtype}")
    draw = open_uniform(b, x)
    least = torch.finfo(draw.dtype.torch).eps / 2
    return b.cast(b.div(b.maximum(b.neg(b.log(draw)), least), lambd), x.dtype)


@lowers("aten.geometric.default")
def geometric(b: Builder, x: Node, p: float, *, generator: object = None) -> Node:
    """The number of trials to the first success: ``ceil(log(u) / log(1-p))``, at least 1."""
    check_random(None, generator)
    if not 0 < p < 1 or x.dtype is DType.BOOL:
        raise NotLowered(f"geometric of p={p} in {x.dtype}")
    draw = b.random("uniform", x.shape, DType.F32, x.tensor.device)
    inverse = b.sub(b.constant(1, DType.F32, (), x.tensor.device), draw)
    trials = b.emit("ceil", b.div(b.log(inverse), math.log1p(-p)))
    return b.cast(b.maximum(trials, 1), x.dtype)


@lowers("aten.cauchy.default")
def cauchy(
    b: Builder, x: Node, median: float = 0.0, sigma: float = 1.0, *, generator: object = None
) -> Node:
    check_random(None, generator)
    if not x.dtype.is_float or not sigma > 0:
        raise NotLowered(f"cauchy of scale {sigma} in {x.dtype}")
    draw = open_uniform(b, x)
    angle = b.mul(b.sub(draw, 0.5), math.pi)
    return b.cast(b.add(b.mul(b.emit("tan", angle), sigma), median), x.dtype)


@lowers("aten.log_normal.default")
def log_normal(
    b: Builder, x: Node, mean: float = 1.0, std: float = 2.0, *, generator: object = None
) -> Node:
    check_random(None, generator)
    return b.cast(
        b.exp(b.compute(_affine_normal(b, x.shape, x.dtype, x.tensor.device, mean, std))), x.dtype
    )
