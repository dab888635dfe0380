"""The compressed form of 2:4 weights for the sparse tensor cores of NVIDIA GPUs (PTX's ``mma.sp``).

An ``mma.sp`` multiplies 16 rows of 64 bytes of weights, of which it is given 32 bytes, and 2 bits of metadata for
each weight given: its place among four neighbours. For half types that is m16n8k32, for int8 m16n8k64 (PTX ISA,
"Sparse matrix storage" and "Matrix fragments for sparse mma.m16n8k32 with .f16 and .bf16 types", "... sparse
mma.m16n8k64 with .u8 / .s8 integer type"). The form here holds what each thread of a warp hands to that
instruction, in the order of threads, so that 16 bytes and one word are all that it reads:

    values    [group of 32 rows] [64 bytes along k] [upper, lower 16 rows] [thread] [16 bytes]
    metadata  [group of 32 rows] [64 bytes along k] [words of a thread] [thread] [32 bits]

Thread 4g + t holds of the rows g and g + 8 of 16: four bytes of values at 4t, then those of row g + 8, then four
bytes at 4t + 16 of either row. Of metadata, each thread of a

- half type holds one word for all 32 rows: of 16 weights of row g (low half of the word) and row g + 8, the
  first 16 along k where t is even, the upper 16 rows where t < 2 (the instruction's selector says which rows);
- int8 holds one word for each 16 rows: of 32 weights of row g where t is even, else g + 8, the first 32
  along k where t < 2.

Rows are filled up with zeros to whole groups, k to pairs of steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lazyc.ir.sparse import GROUP, is_24, kept_places
from lazyc.ir.types import DType

ROW_GROUP = 32  # rows of two instructions
STEP_BYTES = 64  # weights along k of an instruction, in bytes
STEPS_TOGETHER = 2  # k is filled up to a multiple of so many instructions
_HALFWORD = 16  # weights of which a halfword has metadata


@dataclass(frozen=True, slots=True)
class Mma:
    """An instruction, for weights of a type.

    ``step``: weights along k. ``words``: of metadata, that a thread holds for the two instructions of a group of rows.
    ``order``: of the halfwords of metadata, as a permutation of
    [group, upper or lower 16 rows, row + 8, row, step, 32 weights, weights + 16].
    """

    step: int
    words: int
    order: tuple[int, ...]


_HALF_MMA = Mma(32, 1, (0, 4, 5, 3, 1, 6, 2))
MMAS = {
    DType.F16: _HALF_MMA,
    DType.BF16: _HALF_MMA,
    DType.I8: Mma(64, 2, (0, 4, 1, 3, 5, 2, 6)),
}


@dataclass(frozen=True, slots=True)
class MmaFormat:
    """The form of a weight [rows, depth] of a type that there is an instruction for."""

    dtype: DType
    rows: int
    depth: int

    @property
    def mma(self) -> Mma:
        return MMAS[self.dtype]

    @property
    def groups(self) -> int:
        return -(-self.rows // ROW_GROUP)

    @property
    def steps(self) -> int:
        """Instructions along k."""
        return -(-self.depth // (STEPS_TOGETHER * self.mma.step)) * STEPS_TOGETHER

    @property
    def metadata_offset(self) -> int:
        """Bytes of values before the metadata."""
        return self.groups * self.steps * ROW_GROUP * (STEP_BYTES // 2)

    @property
    def nbytes(self) -> int:
        return self.metadata_offset + self.groups * self.steps * self.mma.words * 32 * 4

    @property
    def halfwords(self) -> tuple[int, ...]:
        """The sizes of the dims that ``Mma.order`` permutes."""
        weights = self.mma.step // (2 * _HALFWORD)
        return (self.groups, 2, 2, 8, self.steps, weights, 2)


def compress_for_mma(form: MmaFormat, weight: torch.Tensor) -> torch.Tensor | None:
    """The compressed form of a weight [rows, depth] as bytes, on its device; None where it is not 2:4."""
    if not is_24(weight):
        return None
    rows, depth = form.groups * ROW_GROUP, form.steps * form.mma.step
    groups = weight.detach().reshape(-1, GROUP)
    places = kept_places(groups)
    values = groups.gather(1, places).reshape(form.rows, -1)
    codes = (places[:, 0] | places[:, 1] << 2).reshape(form.rows, -1)

    more = (0, depth // GROUP - codes.shape[1], 0, rows - form.rows)
    values = torch.nn.functional.pad(values, (0, 2 * more[1], *more[2:]))
    codes = torch.nn.functional.pad(codes, more, value=0b0100)  # the first two, which are zeros
    # [group, 16 rows, row + 8, row, step, bytes + 16, thread of a row, value]
    parts = values.reshape(form.groups, 2, 2, 8, form.steps, 2, 4, -1)
    ordered = parts.permute(0, 4, 1, 3, 6, 5, 2, 7)
    shifts = GROUP * torch.arange(_HALFWORD // GROUP, device=weight.device)
    halfwords = (codes.reshape(*form.halfwords, -1) << shifts).sum(-1).permute(form.mma.order)
    # There is no conversion to unsigned halves that wraps on all of torch's versions.
    signed = torch.where(halfwords < 1 << 15, halfwords, halfwords - (1 << 16)).to(torch.int16)
    return torch.cat([x.contiguous().reshape(-1).view(torch.uint8) for x in (ordered, signed)])


def decompress_for_mma(form: MmaFormat, compressed: torch.Tensor) -> torch.Tensor:
    """The weight [rows, depth] of a compressed form: what ``compress_for_mma`` undoes."""
    rows, steps, order = form.groups * ROW_GROUP, form.steps, form.mma.order
    values = compressed[: form.metadata_offset].view(form.dtype.torch)
    values = values.reshape(form.groups, steps, 2, 8, 4, 2, 2, -1).permute(0, 2, 6, 3, 1, 5, 4, 7)
    halfwords = compressed[form.metadata_offset :].view(torch.int16).int() & 0xFFFF
    halfwords = halfwords.reshape([form.halfwords[k] for k in order])
    halfwords = halfwords.permute([order.index(k) for k in range(len(order))])
    shifts = GROUP * torch.arange(_HALFWORD // GROUP, device=compressed.device)
    codes = halfwords.reshape(rows, -1, 1) >> shifts
    places = torch.stack([codes & 3, codes >> 2 & 3], -1).reshape(-1, 2).long()
    dense = values.new_zeros(places.shape[0], GROUP)
    dense.scatter_(1, places, values.reshape(-1, 2))
    return dense.reshape(rows, -1)[: form.rows, : form.depth]
