"""The compressed form of 2:4 weights for the sparse tensor cores of NVIDIA GPUs (PTX's ``mma.sp``).

An ``mma.sp.m16n8k32`` multiplies 16 rows of 32 weights, of which it is given 16, and 2 bits of metadata for
each weight given: its place among four neighbours (PTX ISA, "Sparse matrix storage" and "Matrix fragments
for sparse mma.m16n8k32 with .f16 and .bf16 types"). The form here holds what each thread of a warp hands to
that instruction, in the order of threads, so that 16 bytes and one word are all that it reads:

    values    [group of 32 rows] [32 weights along k] [upper, lower 16 rows] [thread] [8 values]
    metadata  [group of 32 rows] [32 weights along k] [thread] [32 bits]

Thread 4g + t holds of the rows g and g + 8 of 16: values 2t, 2t + 1, then those of row g + 8, then values 2t + 8
and 2t + 9 of either row. Of metadata, thread 4g + t holds 16 weights of row g (low half of the word) and
row g + 8: the first 16 along k where t is even, the upper 16 rows where t < 2. Rows are filled up with zeros to
whole groups, k to whole steps of 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lazyc.ir.sparse import GROUP, is_24, kept_places
from lazyc.ir.types import DType

ROW_GROUP = 32  # rows of two instructions, whose metadata lie in one word of each thread
STEP = 32  # weights along k of an instruction
DEPTH = 64  # a multiple of which k is filled up to


@dataclass(frozen=True, slots=True)
class MmaFormat:
    """The form of a weight [rows, depth] of a half type."""

    dtype: DType
    rows: int
    depth: int

    @property
    def groups(self) -> int:
        return -(-self.rows // ROW_GROUP)

    @property
    def steps(self) -> int:
        """Instructions along k."""
        return -(-self.depth // DEPTH) * (DEPTH // STEP)

    @property
    def metadata_offset(self) -> int:
        """Bytes of values before the metadata."""
        return self.groups * self.steps * ROW_GROUP * (STEP // 2) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.metadata_offset + self.groups * self.steps * ROW_GROUP * 4


def compress_for_mma(form: MmaFormat, weight: torch.Tensor) -> torch.Tensor | None:
    """The compressed form of a weight [rows, depth] as bytes, on its device; None where it is not 2:4."""
    if not is_24(weight):
        return None
    rows, depth = form.groups * ROW_GROUP, form.steps * STEP
    groups = weight.detach().reshape(-1, GROUP)
    places = kept_places(groups)
    values = groups.gather(1, places).reshape(form.rows, -1)
    codes = (places[:, 0] | places[:, 1] << 2).reshape(form.rows, -1)

    more = (0, depth // GROUP - codes.shape[1], 0, rows - form.rows)
    values = torch.nn.functional.pad(values, (0, 2 * more[1], *more[2:]))
    codes = torch.nn.functional.pad(codes, more, value=0b0100)  # the first two, which are zeros
    # [group, 16 rows, row + 8, row, step, values + 8, thread of a row, value]
    parts = values.reshape(form.groups, 2, 2, 8, form.steps, 2, 4, 2)
    ordered = parts.permute(0, 4, 1, 3, 6, 5, 2, 7)
    # A word has 8 codes: of 4 groups of four weights of row g, then of row g + 8.
    shifts = 4 * torch.arange(4, device=weight.device)
    halves = (codes.reshape(rows, form.steps, 2, 4) << shifts).sum(-1)
    halves = halves.reshape(form.groups, 2, 2, 8, form.steps, 2)
    # [group, 16 rows, row + 8, row, step, weights + 16] -> [group, step, row, 16 rows, weights + 16, row + 8]
    words = halves.permute(0, 4, 3, 1, 5, 2)
    # There is no conversion to unsigned halves that wraps on all of torch's versions.
    signed = torch.where(words < 1 << 15, words, words - (1 << 16)).to(torch.int16)
    return torch.cat([x.contiguous().reshape(-1).view(torch.uint8) for x in (ordered, signed)])


def decompress_for_mma(form: MmaFormat, compressed: torch.Tensor) -> torch.Tensor:
    """The weight [rows, depth] of a compressed form: what ``compress_for_mma`` undoes."""
    rows, steps = form.groups * ROW_GROUP, form.steps
    values = compressed[: form.metadata_offset].view(form.dtype.torch)
    values = values.reshape(form.groups, steps, 2, 8, 4, 2, 2, 2).permute(0, 2, 6, 3, 1, 5, 4, 7)
    words = compressed[form.metadata_offset :].view(torch.int16).int() & 0xFFFF
    words = words.reshape(form.groups, steps, 8, 2, 2, 2).permute(0, 3, 5, 2, 1, 4)
    codes = words.reshape(rows, -1, 1) >> 4 * torch.arange(4, device=compressed.device)
    places = torch.stack([codes & 3, codes >> 2 & 3], -1).reshape(-1, 2).long()
    dense = values.new_zeros(places.shape[0], GROUP)
    dense.scatter_(1, places, values.reshape(-1, 2))
    return dense.reshape(rows, -1)[: form.rows, : form.depth]
