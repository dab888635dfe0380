"""Lowerings that rearrange blocks of an image: im2col, col2im, pixel and channel shuffles."""

from __future__ import annotations

from collections.abc import Sequence

from lazyc.frontend.indexing import identity, on_axis, scatter_add, zeros
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.windows import make_pool, windows
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, divide_exact


@lowers("aten.im2col.default")
def im2col(
    b: Builder,
    x: Node,
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Node:
    """x (N, C, H, W) or (C, H, W) -> (N, C*kH*kW, windows)."""
    p = make_pool(x, 2, kernel, stride, padding, dilation)
    view = windows(b, x, p, 0)  # (..., oH, oW, kH, kW)
    lead = x.tensor.rank - 2
    order = (*range(lead), lead + 2, lead + 3, lead, lead + 1)
    columns = x.shape[lead - 1] * p.kernel[0] * p.kernel[1]
    shape = (*x.shape[: lead - 1], columns, p.counts[0] * p.counts[1])
    return b.reshape(b.permute(view, order), shape)


@lowers("aten.col2im.default")
def col2im(
    b: Builder,
    x: Node,
    output_size: Sequence[Dim],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Node:
    """Columns (N, C*kH*kW, windows) added up where im2col read them: (N, C, H, W)."""
    if not all(isinstance(d, int) for d in (*output_size, *x.shape[-2:])):
        raise NotLowered("col2im of a symbolic size")
    if 0 in x.shape:
        raise NotLowered("col2im of an empty tensor")
    rows, columns = (
        (size + 2 * pad - step * (k - 1) - 1) // jump + 1
        for size, k, step, pad, jump in zip(
            output_size, kernel, dilation, padding, stride, strict=True
        )
    )
    images = x.shape[0] if x.tensor.rank == 3 else 1
    channels = x.shape[-2] // (kernel[0] * kernel[1])
    shape = (images, channels, *kernel, rows, columns)
    padded = tuple(size + 2 * pad for size, pad in zip(output_size, padding, strict=True))
    places = [identity(b, shape, 0), identity(b, shape, 1)]
    for k in range(2):
        taps = b.mul(b.iota(kernel[k]), dilation[k])
        starts = b.mul(b.iota(shape[4 + k]), stride[k])
        places.append(b.add(on_axis(b, taps, 2 + k, 6), on_axis(b, starts, 4 + k, 6)))
    base = zeros(b, (images, channels, *padded), x)
    out = scatter_add(b, base, b.reshape(x, shape), places, checked=False)
    for k in range(2):
        out = b.slice(out, 2 + k, padding[k], output_size[k])
    return out if x.tensor.rank == 3 else b.squeeze(out, 0)


def _exactly(size: Dim, parts: Dim) -> Dim:
    """``size / parts``, known to leave no rest."""
    quotient = divide_exact(size, parts)
    if quotient is None:
        raise NotLowered(f"blocks of {parts} of a symbolic size {size}")
    return quotient


@lowers("aten.pixel_shuffle.default")
def pixel_shuffle(b: Builder, x: Node, upscale_factor: int) -> Node:
    """(..., C*r*r, H, W) -> (..., C, H*r, W*r)."""
    *lead, channels, height, width = x.shape
    r, n = upscale_factor, len(lead)
    kept = _exactly(channels, r * r)
    split = b.reshape(x, (*lead, kept, r, r, height, width))
    order = (*range(n), n, n + 3, n + 1, n + 4, n + 2)
    shape = (*lead, kept, height * r, width * r)
    return b.reshape(b.permute(split, order), shape)


@lowers("aten.pixel_unshuffle.default")
def pixel_unshuffle(b: Builder, x: Node, downscale_factor: int) -> Node:
    """(..., C, H*r, W*r) -> (..., C*r*r, H, W)."""
    *lead, channels, height, width = x.shape
    r, n = downscale_factor, len(lead)
    rows, columns = _exactly(height, r), _exactly(width, r)
    split = b.reshape(x, (*lead, channels, rows, r, columns, r))
    order = (*range(n), n, n + 2, n + 4, n + 1, n + 3)
    shape = (*lead, channels * r * r, rows, columns)
    return b.reshape(b.permute(split, order), shape)


@lowers("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(b: Builder, x: Node, groups: Dim) -> Node:
    """Channels (N, g*c, ...) in the order (c, g)."""
    split = (x.shape[0], groups, _exactly(x.shape[1], groups), *x.shape[2:])
    return b.reshape(b.transpose(b.reshape(x, split), 1, 2), x.shape)
