"""Constant tensors as a small header and raw bytes."""

from __future__ import annotations

from typing import Any

import torch

from lazyc.errors import CacheCorrupt, NotCacheable
from lazyc.runtime.codec import INT, STR, TORCH_DTYPE, pair, sequence

HEADER = pair(pair(TORCH_DTYPE, STR), pair(sequence(INT), sequence(INT)))


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last that a tensor of these strides touches."""
    if 0 in shape:
        return 0
    return 1 + sum((d - 1) * s for d, s in zip(shape, strides, strict=True))


def dump_tensor(tensor: torch.Tensor) -> tuple[Any, bytes]:
    """(header as JSON, elements): dtype, device, shape, strides, and the memory that those span.

    Raises NotCacheable for what is no plain dense CPU tensor.
    """
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or (
        tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized
    ):
        raise NotCacheable(f"a constant {type(tensor).__name__} on {tensor.device}")
    plain = tensor.detach().resolve_conj().resolve_neg()
    shape, strides = tuple(plain.shape), plain.stride()
    header = HEADER.encode(((plain.dtype, str(plain.device)), (shape, strides)))
    flat = plain.as_strided((_span(shape, strides),), (1,))
    return header, flat.view(torch.uint8).numpy().tobytes()


def load_tensor(header: Any, data: bytes) -> torch.Tensor:
    """The tensor that ``dump_tensor`` wrote, in fresh memory. Raises CacheCorrupt."""
    (dtype, device), (shape, strides) = HEADER.decode(header)
    if device != "cpu" or len(shape) != len(strides) or min((*shape, *strides), default=0) < 0:
        raise CacheCorrupt(f"not a tensor header: {header!r}")
    span = _span(shape, strides)
    if len(data) != span * dtype.itemsize:
        raise CacheCorrupt(f"{len(data)} bytes for {span} elements of {dtype}")
    flat = torch.empty(span, dtype=dtype)
    if span:
        flat.view(torch.uint8).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return flat.as_strided(shape, strides)
