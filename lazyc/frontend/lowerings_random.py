"""Lowerings of random numbers: transforms of Philox draws (see RandomAttrs).

Every call draws from counters of its own under one seed a run, taken from torch's generator: runs
repeat under ``torch.manual_seed``, with other numbers than eager's. Draws are f32 (f64 for f64);
half types round them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lazyc.frontend.indexing import require
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.promotion import Operand, default_float, lazyc_dtype
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, Shape

_MANTISSA = {DType.F16: 11, DType.BF16: 8}
_MAX_RANGE = 1 << 31  # 32 random bits times the range must fit an i64


def _uniform(b: Builder, shape: Shape, dtype: DType, device: str) -> Node:
    """U[0, 1) in ``dtype.compute``."""
    return b.random("uniform", shape, dtype.compute, device)


def _uniform_in(b: Builder, shape: Shape, dtype: DType, device: str) -> Node:
    """U[0, 1) on the grid of a half type, so that rounding never reaches 1."""
    if not dtype.is_float:
        raise NotLowered(f"uniform numbers of type {dtype}")
    draw = _uniform(b, shape, dtype, device)
    bits = _MANTISSA.get(dtype)
    if bits is None:
        return draw
    return b.cast(b.mul(b.emit("floor", b.mul(draw, 2.0**bits)), 2.0**-bits), dtype)


def _open_uniform(b: Builder, like: Node) -> Node:
    """U(0, 1] in the compute type: a logarithm of it is finite."""
    draw = _uniform(b, like.shape, like.dtype, like.tensor.device)
    return b.sub(b.constant(1, draw.dtype, (), like.tensor.device), draw)


def _normal(b: Builder, shape: Shape, dtype: DType, device: str) -> Node:
    """N(0, 1) in ``dtype.compute``."""
    if not dtype.is_float:
        raise NotLowered(f"normal numbers of type {dtype}")
    return b.random("normal", shape, dtype.compute, device)


def _check(layout: torch.layout | None, generator: object = None) -> None:
    if layout not in (None, torch.strided):
        raise NotLowered(f"random numbers of layout {layout}")
    if generator is not None:
        raise NotLowered("a generator of its own")


def _float_type(dtype: torch.dtype | None, default: DType | None = None) -> DType:
    return lazyc_dtype(dtype, default_float() if default is None else default)


def _device(device: torch.device | None, default: str = "cpu") -> str:
    return default if device is None else str(device)


# --- tensors of a given size ----------------------------------------------------------------------


@lowers("aten.rand.default")
def rand(
    b: Builder,
    size: Sequence[Dim],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Node:
    _check(layout)
    return _uniform_in(b, tuple(size), _float_type(dtype), _device(device))


@lowers("aten.rand_like.default")
def rand_like(
    b: Builder,
    x: Node,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> Node:
    _check(layout)
    return _uniform_in(b, x.shape, _float_type(dtype, x.dtype), _device(device, x.tensor.device))


@lowers("aten.randn.default")
def randn(
    b: Builder,
    size: Sequence[Dim],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Node:
    _check(layout)
    found = _float_type(dtype)
    return b.cast(_normal(b, tuple(size), found, _device(device)), found)


@lowers("aten.randn_like.default")
def randn_like(
    b: Builder,
    x: Node,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> Node:
    _check(layout)
    found = _float_type(dtype, x.dtype)
    return b.cast(_normal(b, x.shape, found, _device(device, x.tensor.device)), found)


# --- integers -------------------------------------------------------------------------------------


def _integers(b: Builder, low: Dim, high: Dim, shape: Shape, dtype: DType, device: str) -> Node:
    """Integers of [low, high): 32 random bits scaled by the range (Lemire, 2019, unrejected)."""
    span = high - low
    if isinstance(span, int) and not 0 < span <= _MAX_RANGE:
        raise NotLowered(f"random integers over a range of {span}")
    bits = b.random("bits", shape, DType.I64, device)
    scaled = b.pointwise("shr", b.mul(bits, span), 32)
    return b.cast(b.add(scaled, low), dtype)


@lowers("aten.randint.low")
def randint_low(
    b: Builder,
    low: Dim,
    high: Dim,
    size: Sequence[Dim],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Node:
    _check(layout)
    return _integers(b, low, high, tuple(size), lazyc_dtype(dtype, DType.I64), _device(device))


@lowers("aten.randint.default")
def randint(
    b: Builder,
    high: Dim,
    size: Sequence[Dim],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Node:
    return randint_low(b, 0, high, size, dtype=dtype, layout=layout, device=device)


@lowers("aten.randint_like.low_dtype")
def randint_like_low(
    b: Builder,
    x: Node,
    low: Dim,
    high: Dim,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> Node:
    _check(layout)
    found = lazyc_dtype(dtype, x.dtype)
    return _integers(b, low, high, x.shape, found, _device(device, x.tensor.device))


@lowers("aten.randint_like.default")
def randint_like(
    b: Builder,
    x: Node,
    high: Dim,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> Node:
    return randint_like_low(b, x, 0, high, dtype=dtype, layout=layout, device=device)


@lowers("aten.random.from")
def random_from(
    b: Builder, x: Node, low: int, high: int | None, *, generator: object = None
) -> Node:
    _check(None, generator)
    if high is None or x.dtype is DType.BOOL:
        raise NotLowered(f"random integers from {low} to {high} in {x.dtype}")
    return _integers(b, low, high, x.shape, x.dtype, x.tensor.device)


@lowers("aten.random.to")
def random_to(b: Builder, x: Node, high: int, *, generator: object = None) -> Node:
    return random_from(b, x, 0, high, generator=generator)


# --- bernoulli and dropout ------------------------------------------------------------------------


def _probability(p: float) -> float:
    if not 0.0 <= p <= 1.0:
        raise NotLowered(f"probability {p}")
    return float(p)


@lowers("aten.bernoulli.p")
def bernoulli_p(b: Builder, x: Node, p: float, *, generator: object = None) -> Node:
    _check(None, generator)
    draw = b.random("uniform", x.shape, DType.F32, x.tensor.device)
    return b.cast(b.compare("lt", draw, _probability(p)), x.dtype)


@lowers("aten.bernoulli.Tensor")
def bernoulli_tensor(b: Builder, x: Node, p: Node, *, generator: object = None) -> Node:
    _check(None, generator)
    if not p.dtype.is_float:
        raise NotLowered(f"probabilities of type {p.dtype}")
    chance = b.compute(p)
    valid = b.pointwise("and", b.compare("ge", chance, 0), b.compare("le", chance, 1))
    chance = b.expand(require(b, valid, chance), x.shape)
    draw = _uniform(b, x.shape, p.dtype, x.tensor.device)
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
    draw = b.random("uniform", x.shape, DType.F32, device)
    mask = b.compare("ge", draw, p)
    kept = b.mul(b.mul(b.compute(x), b.cast(mask, x.dtype.compute)), 1.0 / (1.0 - p))
    return b.cast(kept, x.dtype), mask


@lowers("aten.native_dropout_backward.default")
def native_dropout_backward(b: Builder, grad: Node, mask: Node, scale: float) -> Node:
    kept = b.mul(b.compute(grad), b.cast(mask, grad.dtype.compute))
    return b.cast(b.mul(kept, scale), grad.dtype)


# --- other distributions --------------------------------------------------------------------------


def _affine_normal(
    b: Builder, shape: Shape, dtype: DType, device: str, mean: Operand, std: Operand
) -> Node:
    """``mean + std * N(0, 1)``. A negative deviation is an error, which eager raises."""
    if isinstance(std, Node) and std.dtype is not dtype:
        raise NotLowered(f"deviations of type {std.dtype} for {dtype}")
    if not isinstance(std, Node) and not float(std) >= 0:
        raise NotLowered(f"standard deviation {std}")
    draw = _normal(b, shape, dtype, device)
    spread = b.compute(std) if isinstance(std, Node) else std
    if isinstance(spread, Node):
        spread = require(b, b.compare("ge", spread, 0), spread)
    center = b.compute(mean) if isinstance(mean, Node) else mean
    return b.cast(b.add(b.mul(draw, spread), center), dtype)


@lowers("aten.normal_functional.default")
def normal_functional(
    b: Builder, x: Node, mean: float = 0.0, std: float = 1.0, *, generator: object = None
) -> Node:
    _check(None, generator)
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
    _check(layout, generator)
    return _affine_normal(b, tuple(size), _float_type(dtype), _device(device), mean, std)


@lowers("aten.normal.Tensor_float")
def normal_tensor_float(
    b: Builder, mean: Node, std: float = 1.0, *, generator: object = None
) -> Node:
    _check(None, generator)
    return _affine_normal(b, mean.shape, mean.dtype, mean.tensor.device, mean, std)


@lowers("aten.normal.float_Tensor", "aten.normal.Tensor_Tensor")
def normal_tensor(b: Builder, mean: Operand, std: Node, *, generator: object = None) -> Node:
    _check(None, generator)
    shape, dtype = std.shape, std.dtype
    if isinstance(mean, Node):
        mean, std = b.broadcast(mean, std)
        shape, dtype = mean.shape, mean.dtype
    return _affine_normal(b, shape, dtype, std.tensor.device, mean, std)


@lowers("aten.uniform.default")
def uniform(
    b: Builder, x: Node, low: float = 0.0, high: float = 1.0, *, generator: object = None
) -> Node:
    _check(None, generator)
    if not low <= high:
        raise NotLowered(f"uniform numbers of [{low}, {high})")
    draw = b.compute(_uniform_in(b, x.shape, x.dtype, x.tensor.device))
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
    _check(None, generator)
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
    _check(None, generator)
    if not x.dtype.is_float or not lambd > 0:
        raise NotLowered(f"exponential of rate {lambd} in {x.dtype}")
    draw = _open_uniform(b, x)
    least = torch.finfo(draw.dtype.torch).eps / 2
    return b.cast(b.div(b.maximum(b.neg(b.log(draw)), least), lambd), x.dtype)


@lowers("aten.geometric.default")
def geometric(b: Builder, x: Node, p: float, *, generator: object = None) -> Node:
    """The number of trials to the first success: ``ceil(log(u) / log(1-p))``, at least 1."""
    _check(None, generator)
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
    _check(None, generator)
    if not x.dtype.is_float or not sigma > 0:
        raise NotLowered(f"cauchy of scale {sigma} in {x.dtype}")
    draw = _open_uniform(b, x)
    angle = b.mul(b.sub(draw, 0.5), math.pi)
    return b.cast(b.add(b.mul(b.emit("tan", angle), sigma), median), x.dtype)


@lowers("aten.log_normal.default")
def log_normal(
    b: Builder, x: Node, mean: float = 1.0, std: float = 2.0, *, generator: object = None
) -> Node:
    _check(None, generator)
    return b.cast(
        b.exp(b.compute(_affine_normal(b, x.shape, x.dtype, x.tensor.device, mean, std))), x.dtype
    )
