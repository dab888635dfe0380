"""The native driver: one function that walks a table of steps without returning to Python.

A table is an array of i64 words, made once when a Program is bound to concrete sizes. Each record
starts with its opcode and its length in words. Memory is named by (slot, byte offset): ``env[slot]``
is an address that changes from call to call (an argument, an output, the arena). The driver is the
same for every Program; its code holds no address, and is compiled in a few milliseconds.

    END     op, 1
    KERNEL  op, len, fn, items, grain, nbuffers, (slot, offset) * nbuffers, sizes...
    GEMM    op, len, fn, products, split, ndims, (slot, offset) * (a, b, c), then ten words that
            Fortran's ?gemm takes by address: transposes, m, n, k, lda, ldb, ldc, alpha, beta; then
            (size, byte strides of a, b, c) * ndims batch dims
    PACKED  op, len, fn, (slot, offset) * (a, packed b, c), transpose a, m, n, k, lda, ldb, ldc, beta
    GUARD   op, len, count, (address, expected word) * count
    LAUNCH  op, len, cuLaunchKernel, function, programs, threads, shared bytes, slot of the stream, count,
            (slot, offset) * count: the 64-bit arguments of a kernel of a GPU; of slot -1, offset itself
    BLOCKS  op, len, matrices, blocks of each, rows of each, rows of a block, in order, most threads,
            (slot, offset) of memory of the threads, bytes for each, outer, groups, inner, blocks of
            a run; then records until END:
      KERNEL  op, len, fn, items of a row, nbuffers, (slot, offset, bytes of a row) * nbuffers, sizes...
      GEMM    op, len, fn, ndims, dim, (slot, offset, bytes to the next row) * (a, b, c), ten words as
              above, beta of later blocks, batch dims as above
      SUM     op, len, fn of the first block, fn of later ones, the rest as in KERNEL
      HALVES  op, len, words of GEMM up to the batch dims, brgemm, release, could_pack, its argument, function
              that packs a, bytes from the thread's memory to the packed a, whether a varies with the block,
              function that copies b or 0, bytes to that copy, batch dims as above

Inside of BLOCKS, slot -1 is the thread's own memory, whose first bytes are room for a kernel's addresses.
A kernel finds the rows of the block where those of the whole buffer would be. "dim" is which of m, n, k
has the rows: it is smaller in the last block of a matrix. "in order": a thread takes whole matrices. HALVES
runs as ``half_tiles`` says, where it can, with Fortran's a and b in each other's place, else as GEMM does.

SUM adds blocks of several matrices to equal rows of one result. The matrices are [outer, groups, inner], and those of
one group, outer * inner members, are added up; groups is 0 where there is no SUM. Blocks that follow each other
make a run, and runs go in waves, one after another: in each, a member has at most one run, and no two members of a
group have runs of the same rows, so that neither what is added up over the rows of a matrix (dim k) nor what is over
matrices is touched by two threads. With the runs of a matrix in a circle, each member goes around it one by one, and
begins where no other one does:

    wave 0: (member 0, run 0) (member 1, run 1) ...    wave 1: (member 0, run 1) (member 1, run 2) ...

Where there are more members than runs, each run goes around the members instead. Which blocks are in a wave does not
depend on the threads that share them out, and so the order of sums does not either.

``env`` starts with: threads, address of the OpenMP entry points, address of a scratch array of
pointers with room for the longest buffer list (twice that for LAUNCH). GUARD returns at once with
ERROR_STALE when a word of a weight is not what it was, LAUNCH with ERROR_LAUNCH and CUDA's status when
that is not 0.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import llvmlite.binding as llvm

from lazyc.runtime.driver_ir import DRIVER_IR
from lazyc.runtime.threads import OpenMP

END, KERNEL, GEMM, PACKED, GUARD, BLOCKS, LAUNCH, SUM, HALVES = range(9)
ENV_THREADS, ENV_OPENMP, ENV_SCRATCH, ENV_SLOTS = range(4)
ERROR_STALE = 1 << 62
ERROR_LAUNCH = 1 << 61  # or-ed with the status of cuLaunchKernel
_MOST_PROGRAMS = (
    1 << 31
) - 1  # of a grid, along x (CUDA C++ Programming Guide, "Compute Capabilities")
LITERAL = -1  # the slot of an argument that is the word itself

Slice = tuple[int, int]  # (slot, byte offset)
BlockSlice = tuple[int, int, int]  # (slot, byte offset, bytes to the next row)
OWN_SLOT = -1


@dataclass(frozen=True, slots=True)
class Driver:
    """The compiled driver. ``run(table, env)`` takes two addresses and returns the error bits; it
    releases the GIL. ``run_short`` keeps it: for work shorter than handing the GIL over."""

    run: Callable[[int, int], int]
    run_short: Callable[[int, int], int]
    openmp_address: int
    _keep: tuple[object, ...]


def build_driver(openmp: OpenMP) -> Driver:
    """Compiles the driver (under 10 ms: inlined, but not optimised further; it is not hot)."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=0, jit=True)
    module = llvm.parse_assembly(DRIVER_IR)
    module.verify()
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    tuning = llvm.create_pipeline_tuning_options(speed_level=1)
    passes.run(module, llvm.create_pass_builder(machine, tuning))
    # use_lmm: code and constants together, as in codegen.llvm.loader.
    engine = llvm.create_mcjit_compiler(module, machine, use_lmm=True)
    engine.finalize_object()
    address = engine.get_function_address("lazyc_run")
    signature = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
    entry_points = (ctypes.c_int64 * 3)(openmp.parallel, openmp.thread_num, openmp.num_threads)
    return Driver(
        ctypes.CFUNCTYPE(*signature)(address),
        ctypes.PYFUNCTYPE(*signature)(address),
        ctypes.addressof(entry_points),
        (engine, machine, entry_points),
    )


def float_word(value: float, double: bool) -> int:
    """The bits of a float (or double) in the low bytes of a table word."""
    return struct.unpack("<q", struct.pack("<d" if double else "<fxxxx", value))[0]


class TableWriter:
    """Writes the records of a table; ``position`` is the next free word."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self.longest = 1  # most buffers of any kernel: the room that the scratch array needs

    @property
    def position(self) -> int:
        return len(self.words)

    def end(self) -> None:
        self.words += (END, 1)

    def kernel(
        self, function: int, items: int, grain: int, buffers: Sequence[Slice], sizes: Sequence[int]
    ) -> None:
        if items <= 0:
            return
        self.longest = max(self.longest, len(buffers))
        flat = [word for slot_offset in buffers for word in slot_offset]
        length = 6 + len(flat) + len(sizes)
        self.words += (KERNEL, length, function, items, max(grain, 1), len(buffers), *flat, *sizes)

    def gemm(
        self,
        function: int,
        split: int,
        operands: Sequence[Slice],
        transposes: tuple[str, str],
        dims: tuple[int, int, int],
        leading: tuple[int, int, int],
        beta: float,
        double: bool,
        batch: Sequence[tuple[int, int, int, int]],
    ) -> None:
        """Fortran's ?gemm for each point of the batch dims. ``operands``: its a, b and c.

        ``batch``: (size, byte strides in a, b and c) of each dim.
        """
        products = math.prod(dim[0] for dim in batch)
        self.words += (GEMM, 22 + 4 * len(batch), function, products, split, len(batch))
        self.words += (word for operand in operands for word in operand)
        self.words += (ord(transposes[0]), ord(transposes[1]), *dims, *leading)
        self.words += (float_word(1.0, double), float_word(beta, double))
        self.words += (word for dim in batch for word in dim)

    def packed(
        self,
        function: int,
        a: Slice,
        packed: Slice,
        c: Slice,
        transpose_a: bool,
        dims: tuple[int, int, int],
        leading: tuple[int, int, int],
        beta: float,
    ) -> None:
        self.words += (PACKED, 17, function, *a, *packed, *c, 112 if transpose_a else 111)
        self.words += (*dims, *leading, float_word(beta, False))

    def blocks(
        self,
        matrices: int,
        count: int,
        rows: int,
        block: int,
        in_order: bool,
        threads: int,
        memory: Slice,
        thread_bytes: int,
        summed: Sequence[int],
        run: int,
        write: Callable[[], None],
    ) -> None:
        """``write`` writes the records that run for each block (``block_kernel``, ``block_gemm``, ``block_sum``).
        ``summed``: outer, groups and inner if there is a ``block_sum``, else empty; ``run``: blocks of a run then."""
        start = self.position
        self.words += (BLOCKS, 0, matrices, count, rows, block, int(in_order), threads)
        self.words += (*memory, thread_bytes, *(summed or (0, 0, 0)), run)
        write()
        self.end()
        self.words[start + 1] = self.position - start

    def block_kernel(
        self, function: int, per_row: int, buffers: Sequence[BlockSlice], sizes: Sequence[int]
    ) -> None:
        flat = [word for buffer in buffers for word in buffer]
        self.words += (KERNEL, 5 + len(flat) + len(sizes), function, per_row, len(buffers))
        self.words += (*flat, *sizes)

    def block_sum(
        self,
        functions: tuple[int, int],
        per_row: int,
        buffers: Sequence[BlockSlice],
        sizes: Sequence[int],
    ) -> None:
        """``functions``: for the first block that is added to some rows of the result, and for later ones."""
        flat = [word for buffer in buffers for word in buffer]
        self.words += (SUM, 6 + len(flat) + len(sizes), *functions, per_row, len(buffers))
        self.words += (*flat, *sizes)

    def block_gemm(
        self,
        function: int,
        dim: int,
        operands: Sequence[BlockSlice],
        transposes: tuple[str, str],
        dims: tuple[int, int, int],
        leading: tuple[int, int, int],
        betas: tuple[float, float],
        double: bool,
        batch: Sequence[tuple[int, int, int, int]],
        halves: Sequence[int] = (),
    ) -> None:
        """As ``gemm``, for one block. ``betas``: in the first block of a matrix, and in later ones. ``halves``: the
        nine words of HALVES, where that may run."""
        op, length = HALVES if halves else GEMM, 25 + len(halves) + 4 * len(batch)
        self.words += (op, length, function, len(batch), dim)
        self.words += (word for operand in operands for word in operand)
        self.words += (ord(transposes[0]), ord(transposes[1]), *dims, *leading)
        self.words += (float_word(value, double) for value in (1.0, *betas))
        self.words += halves
        self.words += (word for size in batch for word in size)

    def guard(self, words: Sequence[tuple[int, int]]) -> None:
        """``words``: (address, expected 8 bytes as a signed word)."""
        flat = [w for pair in words for w in pair]
        self.words += (GUARD, 3 + len(flat), len(words), *flat)

    def launch(
        self,
        launcher: int,
        function: int,
        programs: int,
        threads: int,
        shared_bytes: int,
        stream: int,
        arguments: Sequence[Slice],
    ) -> None:
        """A kernel of a GPU, on the stream in slot ``stream``; an argument of slot LITERAL is its offset.

        Raises ValueError for a grid that is larger than CUDA's.
        """
        if programs <= 0:
            return
        if programs > _MOST_PROGRAMS:
            raise ValueError(
                f"a kernel of {programs} programs; a GPU runs at most {_MOST_PROGRAMS}"
            )
        self.longest = max(self.longest, 2 * len(arguments))
        flat = [word for slot_offset in arguments for word in slot_offset]
        head = (launcher, function, programs, threads, shared_bytes, stream, len(arguments))
        self.words += (LAUNCH, 9 + len(flat), *head, *flat)

    def array(self) -> ctypes.Array[ctypes.c_int64]:
        return (ctypes.c_int64 * len(self.words))(*self.words)
