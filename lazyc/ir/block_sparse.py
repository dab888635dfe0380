"""The compressed form of block-sparse weights: the blocks that are not zero, and where they are.

Weights by blocks of rows, as in S. Gray, A. Radford and D. P. Kingma, "GPU Kernels for Block-Sparse
Weights", 2017.
"""

from __future__ import annotations

import torch

from lazyc.ir.sparse import SparseProduct

ALIGNMENT = 64  # bytes; of the values in the compressed form
_MOST_DENSE = 1 / 3  # share of blocks from which a dense product is about as fast


def nonzero_blocks(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Which blocks [n / size, k / size] of a weight [n, k] are not all zero. A nan is not zero."""
    n, k = weight.shape
    blocks = weight.reshape(n // size, size, k // size, size)
    return (blocks != 0).any(3).any(1)


def compress_blocks(product: SparseProduct, weight: torch.Tensor) -> torch.Tensor | None:
    """The compressed form of a weight [n, k] as bytes, on its device; None where too few of its blocks are
    zero.

    Words of 64 bits come first: the byte offset of the values; for each row of blocks the number of its
    first block, and the number of all; for each block its first column. The values follow, of each
    block by columns: [block] [k in the block] [n in the block].
    """
    p, size = product, product.tile
    weight = weight.detach()
    kept = nonzero_blocks(weight, size)
    rows, columns = kept.nonzero(as_tuple=True)
    if len(rows) > _MOST_DENSE * kept.numel():
        return None
    offset = _header_bytes(p, len(rows))
    starts = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    header = torch.cat([starts.new_full((1,), offset), starts, columns * size])
    header = torch.nn.functional.pad(header, (0, offset // 8 - len(header)))
    blocks = weight.reshape(p.n // size, size, p.k // size, size).permute(0, 2, 3, 1)
    values = blocks[rows, columns].contiguous()
    return torch.cat([x.reshape(-1).view(torch.uint8) for x in (header, values)])


def most_bytes(product: SparseProduct) -> int:
    """Bytes of the largest compressed form that there is of a weight."""
    p = product
    blocks = int(_MOST_DENSE * p.items * (p.k // p.tile))
    return _header_bytes(p, blocks) + blocks * p.tile**2 * p.dtype.itemsize


def _header_bytes(product: SparseProduct, blocks: int) -> int:
    """Bytes of the words before the values, to a multiple of the alignment."""
    words = 1 + product.items + 1 + blocks
    return -(-words * 8 // ALIGNMENT) * ALIGNMENT


def decompress_blocks(product: SparseProduct, compressed: torch.Tensor) -> torch.Tensor:
    """The weight [n, k] of a compressed form, as a kernel reads it."""
    p, size = product, product.tile
    offset = int(compressed[:8].view(torch.int64))
    header = compressed[:offset].view(torch.int64)
    starts = header[1 : 2 + p.items]
    columns = header[2 + p.items :][: int(starts[-1])] // size
    values = compressed[offset:].view(p.dtype.torch).reshape(-1, size, size)
    weight = torch.zeros(p.n // size, p.k // size, size, size, dtype=p.dtype.torch)
    rows = torch.repeat_interleave(torch.arange(p.items), starts.diff())
    weight[rows, columns] = values.transpose(1, 2)
    return weight.transpose(1, 2).reshape(p.n, p.k)
