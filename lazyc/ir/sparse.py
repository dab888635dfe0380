"""Products with a sparse weight: what a weight is declared to be, its compressed form, the kernel.

A weight ``w`` [n, k] of a linear layer may be declared "2:4": of every four neighbours along k at most
two are not zero (A. Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021), or
"block 16" or "block 32": most of its square blocks of so many rows and columns are zero. The declaration
is a hint: whether the values keep to it is looked at whenever they may have changed, and the product is
computed as that of any other weight where they do not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, TypeAlias, cast, get_args

import torch

from lazyc.ir.types import DType

Sparsity: TypeAlias = Literal["2:4", "block 16", "block 32"]
BLOCKS: dict[Sparsity, int] = {"block 16": 16, "block 32": 32}  # rows and columns of a block
GROUP = 4  # neighbours along k of which two are kept
LANES = 16  # weights that share a word of metadata: one bit each

_MARK = "_lazyc_sparsity"


def declare(weight: torch.Tensor, sparsity: Sparsity) -> None:
    """Marks a tensor [n, k]. Copies of it (``copy.deepcopy``) carry no mark."""
    setattr(weight, _MARK, sparsity)


def declared(tensor: torch.Tensor) -> Sparsity | None:
    """What a tensor is marked as."""
    mark = getattr(tensor, _MARK, None)
    return cast("Sparsity", mark) if mark in get_args(Sparsity) else None


@dataclass(frozen=True, slots=True)
class SparseProduct:
    """A kernel: ``c = a @ w^T`` with w [n, k] in compressed form, a [m, k] and c [m, n] row-major.

    ``lda`` and ``ldc`` are the distances of rows in elements. ``tile``: rows of w that lie together in
    the compressed form, and make a work item: the rows of a block in a block-sparse weight. Half types
    are summed in f32.
    """

    sparsity: Sparsity
    dtype: DType
    m: int
    n: int
    k: int
    lda: int
    ldc: int
    tile: int
    comment: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        """The canonical text, by which equal kernels are found; the comment is not a part of it."""
        return (
            f"sparse product {self.sparsity} {self.dtype.value} "
            f"m={self.m} n={self.n} k={self.k} lda={self.lda} ldc={self.ldc} tile={self.tile}\n"
        )

    @property
    def key(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def items(self) -> int:
        """Work items: tiles of w."""
        return -(-self.n // self.tile)

    @property
    def words(self) -> int:
        """2:4: words of metadata for a row of w, of 16 weights each; the last may be filled in part."""
        return -(-self.k // LANES)

    @property
    def metadata_offset(self) -> int:
        """2:4: bytes of values before the metadata."""
        return self.items * self.tile * self.words * (LANES // 2) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """2:4: bytes of the compressed form."""
        return self.metadata_offset + self.items * self.tile * self.words * 2


def is_24(weight: torch.Tensor) -> bool:
    """Whether of every four neighbours in a row of a [n, k] tensor at most two are not zero.

    False where k is no multiple of four. A nan is not zero, -0.0 is.
    """
    if weight.shape[1] % GROUP:
        return False
    counts = torch.count_nonzero(weight.reshape(-1, GROUP), dim=1)
    return not bool((counts > GROUP // 2).any())


def compress_24(product: SparseProduct, weight: torch.Tensor) -> torch.Tensor | None:
    """The compressed form of a weight [n, k] as bytes; None where it is not as sparse as declared.

    The weights kept come first, two of each four, then a word of metadata (16 bits) for 16 weights: bit
    i stands for weight i and is set where that is kept, as ``vexpandps`` takes it. Rows and columns
    are filled up with zeros to whole tiles and words. Both parts are ordered by

        [tile of w] [word along k] [row in the tile] [weight]

    so that a kernel that goes through a tile reads each part from start to end.
    """
    if not is_24(weight):
        return None
    p = product
    groups = weight.detach().reshape(-1, GROUP)
    places = kept_places(groups)
    values = groups.gather(1, places)
    masks = (1 << places).sum(1)

    rows, width = p.items * p.tile, p.words * LANES // GROUP  # with what they are filled up by
    fill = (0, width - p.k // GROUP, 0, rows - p.n)
    values = torch.nn.functional.pad(values.reshape(p.n, -1), (0, 2 * fill[1], *fill[2:]))
    masks = torch.nn.functional.pad(masks.reshape(p.n, -1), fill)
    masks = (masks.reshape(rows, p.words, 4) << torch.tensor([0, 4, 8, 12], device="cpu")).sum(-1)
    parts = (
        values.reshape(p.items, p.tile, p.words, LANES // 2).transpose(1, 2),
        # There is no conversion to unsigned words that wraps on all of torch's versions.
        torch.where(masks < 1 << 15, masks, masks - (1 << 16))
        .to(torch.int16)
        .reshape(p.items, p.tile, p.words)
        .transpose(1, 2),
    )
    return torch.cat([x.contiguous().reshape(-1).view(torch.uint8) for x in parts])


def decompress_24(product: SparseProduct, compressed: torch.Tensor) -> torch.Tensor:
    """The weight [n, k] of a compressed form, as a kernel reads it: what ``compress_24`` undoes."""
    p = product
    values = compressed[: p.metadata_offset].view(p.dtype.torch).reshape(-1, LANES // 2)
    masks = compressed[p.metadata_offset :].view(torch.int16).int()
    kept = (masks[:, None] >> torch.arange(LANES)) & 1
    order = (kept.cumsum(1) - 1).clamp(min=0)
    weight = values.gather(1, order).masked_fill(kept == 0, 0.0)
    weight = weight.reshape(p.items, p.words, p.tile, LANES).transpose(1, 2)
    return weight.reshape(p.items * p.tile, -1)[: p.n, : p.k]


def kept_places(groups: torch.Tensor) -> torch.Tensor:
    """The places [n, 2] of the two weights that are kept of each group [n, 4], in ascending order. Where
    fewer are not zero, the first zeros are kept too."""
    bits = (groups != 0).to(torch.uint8)
    weights = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=groups.device)
    codes = (bits * weights).sum(1, dtype=torch.uint8).int()
    return _places().to(groups.device).index_select(0, codes)


@cache
def _places() -> torch.Tensor:
    """For each set of nonzero weights in a group, as four bits, the two places that are kept."""
    places = []
    for code in range(1 << GROUP):
        present = [i for i in range(GROUP) if code >> i & 1]
        absent = [i for i in range(GROUP) if i not in present]
        places.append(sorted((present + absent)[:2]))
    return torch.tensor(places, device="cpu")
