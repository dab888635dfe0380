"""What the lowerings of random numbers share: draws and checks of arguments.

Every call draws from Philox counters of its own under one seed a run, taken from torch's generator:
runs repeat under ``torch.manual_seed``, with other numbers than eager's. Draws are f32 (f64 for
f64); half types round them.
"""

from __future__ import annotations

import torch

from lazyc.frontend.lowering import Builder, NotLowered
from lazyc.frontend.promotion import default_float, lazyc_dtype
from lazyc.ir.graph import Node
from lazyc.ir.types import DType, Shape

_MANTISSA = {DType.F16: 11, DType.BF16: 8}


def uniform_draw(b: Builder, shape: Shape, dtype: DType, device: str) -> Node:
    """U[0, 1) in ``dtype.compute``."""
    return b.random("uniform", shape, dtype.compute, device)


def uniform_on_grid(b: Builder, shape: Shape, dtype: DType, device: str) -> Node:
    """U[0, 1) on the grid of a half type, so that rounding never reaches 1."""
    if not dtype.is_float:
        raise NotLowered(f"uniform numbers of type {dtype}")
    draw = uniform_draw(b, shape, dtype, device)
    bits = _MANTISSA.get(dtype)
    if bits is None:
        return draw
    return b.cast(b.mul(b.emit("floor", b.mul(draw, 2.0**bits)), 2.0**-bits), dtype)


def open_uniform(b: Builder, like: Node) -> Node:
    """U(0, 1] in the compute type: a logarithm of it is finite."""
    draw = uniform_draw(b, like.shape, like.dtype, like.tensor.device)
    return b.sub(b.constant(1, draw.dtype, (), like.tensor.device), draw)


def normal_draw(b: Builder, shape: Shape, dtype: DType, device: str) -> Node:
    """N(0, 1) in ``dtype.compute``."""
    if not dtype.is_float:
        raise NotLowered(f"normal numbers of type {dtype}")
    return b.random("normal", shape, dtype.compute, device)


def own_seed(b: Builder, device: str) -> Node:
    """A seed (i64[]) for numbers that are drawn more than once, or by kernels that are to be equal: 64 of the
    run's random bits."""
    high, low = (b.random("bits", (), DType.I64, device) for _ in range(2))
    return b.pointwise("or", b.pointwise("shl", high, 32), low)


def check_random(layout: torch.layout | None, generator: object = None) -> None:
    if layout not in (None, torch.strided):
        raise NotLowered(f"random numbers of layout {layout}")
    if generator is not None:
        raise NotLowered("a generator of its own")


def float_type(dtype: torch.dtype | None, default: DType | None = None) -> DType:
    return lazyc_dtype(dtype, default_float() if default is None else default)


def device_name(device: torch.device | None, default: str = "cpu") -> str:
    return default if device is None else str(device)
