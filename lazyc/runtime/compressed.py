"""Sparse weights that kernels read in compressed form, in place of the weight itself.

The kernel of a SparseContraction takes the arguments of its nest's own kernel, but for the weight: there it
takes the compressed form, which is a packed buffer (kept between calls) that no step fills. Where the values of
a weight are as sparse as declared, a step is bound to the former kernel, else to the latter.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from lazyc.ir.block_sparse import compress_blocks, most_bytes
from lazyc.ir.program import Buffer, KernelStep, Program
from lazyc.ir.sparse import BLOCKS, SparseProduct
from lazyc.ir.sparse_contraction import SparseContraction
from lazyc.ir.sparse_mma import MmaFormat, compress_for_mma
from lazyc.ir.types import DType


def compressed_buffers(program: Program) -> dict[int, int]:
    """The ids that compressed weights have in ``with_compressed``, by the numbers of their steps."""
    first = len(program.buffers)
    return {number: first + k for k, (number, _) in enumerate(program.sparse_contractions())}


def with_compressed(program: Program, numbers: Collection[int]) -> Program:
    """``program`` with a buffer for each compressed weight; the steps ``numbers`` run the kernels that read
    them."""
    ids = compressed_buffers(program)
    if not ids:
        return program
    buffers, steps, nests = list(program.buffers), list(program.steps), dict(program.nests)
    for number, source in program.sparse_contractions():
        step, place = steps[number], source.weight
        assert isinstance(step, KernelStep)
        device = program.buffers[step.buffers[place]].device
        size = _most_bytes(source)
        buffers.append(Buffer(ids[number], "packed", DType.U8, (size,), (1,), device=device))
        if number in numbers:
            given, params = list(step.buffers), list(source.nest.buffers)
            given[place] = ids[number]
            params[place] = replace(params[place], dtype=DType.U8, numel=size)
            nests[source.key] = replace(source.nest, buffers=tuple(params))
            steps[number] = replace(step, nest=source.key, buffers=tuple(given))
    return replace(program, buffers=tuple(buffers), steps=tuple(steps), nests=nests)


def compress(source: SparseContraction, weight: torch.Tensor) -> torch.Tensor | None:
    """The compressed form that the kernel of ``source`` reads of its weight, as bytes on the weight's device;
    None where the values are not as sparse as declared. Waits for the device."""
    # The matrix is what lies in memory, whatever shape the tensor has there.
    matrix = weight.detach().as_strided(source.shape, (source.shape[1], 1))
    if source.sparsity == "2:4":
        return compress_for_mma(MmaFormat(source.dtype, *source.shape), matrix)
    return compress_blocks(_blocks(source), matrix)


def compressed_key(source: SparseContraction) -> tuple[object, ...]:
    """Kernels with the same key read the same compressed form of a weight."""
    return source.sparsity, *source.shape


def _blocks(source: SparseContraction) -> SparseProduct:
    rows, depth = source.shape
    size = BLOCKS[source.sparsity]
    return SparseProduct(source.sparsity, source.dtype, 1, rows, depth, depth, rows, size)


def _most_bytes(source: SparseContraction) -> int:
    if source.sparsity == "2:4":
        return MmaFormat(source.dtype, *source.shape).nbytes
    return most_bytes(_blocks(source))
