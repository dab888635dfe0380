"""Text of Programs and the rules that their verifier checks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy
import torch

from lazyc.ir.index import Axis, axis_index
from lazyc.ir.loops import BufferParam, Compute, Const, Load, LoopNest, Stage, Store
from lazyc.ir.ops import IRError
from lazyc.ir.program import (
    Buffer,
    BufferRef,
    EagerStep,
    GemmStep,
    KernelStep,
    Operand,
    Program,
    ProgramOutput,
    RowStep,
    RowTiles,
    SeedStep,
)
from lazyc.ir.program_text import print_program
from lazyc.ir.program_verify import verify_program
from lazyc.ir.tiled_product import Tile
from lazyc.ir.types import Dim, DType, SymbolSource, contiguous_strides

S0 = sympy.Symbol("s0", integer=True, positive=True)
N0 = sympy.Symbol("n0", integer=True, positive=True)


def nest(size: Dim, symbols=(), roles=("in", "out")) -> LoopNest:
    """out[i] = in[i] + in[i]"""
    axis = Axis("i", size)
    index = axis_index(axis)
    body = (
        Load(0, DType.F32, 0, index),
        Compute(1, DType.F32, "add", (0, 0)),
        Store(1, index, 1),
    )
    params = tuple(BufferParam(DType.F32, role, size) for role in roles)
    return LoopNest((axis,), (Stage((), body),), params, symbols)


def buffer(number, kind, shape, source=-1, dtype=DType.F32, strides=None) -> Buffer:
    return Buffer(number, kind, dtype, shape, strides or contiguous_strides(shape), source)


def example() -> Program:
    """Every kind of buffer and step."""
    buffers = (
        buffer(0, "input", (S0, 8), 0),
        buffer(1, "input", (4, 8), 1),
        buffer(2, "packed", (4, 8)),
        buffer(3, "temp", (S0, 8)),
        buffer(4, "output", (S0, 4)),
        buffer(5, "eager", (S0, 4)),
        Buffer(6, "opaque", None, (), ()),
        buffer(7, "temp", (), dtype=DType.I64),
        buffer(8, "constant", (2, 3), 0, strides=(1, 2)),
    )
    steps = (
        SeedStep(7),
        KernelStep("k0", (0, 3), (S0 * 8,), "aten.add.Tensor model.py:3"),
        GemmStep(DType.F32, (), S0, 4, 8, Operand(3, 0, 8, 1), Operand(2, 0, 1, 8),
                 Operand(4, 0, 4, 1), pack_b=True, comment="aten.mm.default"),
        EagerStep("aten.sort.default", (BufferRef(4), 0), (("descending", True),), (5, 6), True,
                  True, "no lowering"),
        EagerStep("aten.cat.default", ((BufferRef(8), BufferRef(8, (3,), (1,), 2)), S0), (), (), False,
                  False),
    )  # fmt: skip
    return Program(
        inputs=(0, 1, -1),
        buffers=buffers,
        steps=steps,
        outputs=(
            ProgramOutput(4, (S0, 4), (4, 1)),
            ProgramOutput(5, (4,), (1,), 4),
            ProgramOutput(6),
            ProgramOutput(-1),
            ProgramOutput(-1, value=S0 * 2),
        ),
        nests={"k0": nest(N0, (N0,)), "k1": nest(32)},
        constants=[torch.arange(6).view(3, 2).t().float()],
        symbols=(SymbolSource(S0, 0, 0),),
        packed=(KernelStep("k1", (1, 2), ()),),
        parameters=(1,),
    )


TEXT = """\
symbol s0 = arg 0 dim 0
b0 = input 0 : f32[s0, 8]
b1 = input 1 : f32[4, 8]
b2 = packed : f32[4, 8]
b3 = temp : f32[s0, 8]
b4 = output : f32[s0, 4]
b5 = eager : f32[s0, 4]
b6 = opaque
b7 = temp : i64[]
b8 = constant 0 : f32[2, 3] strides=(1, 2)
packed from arguments (1):
  kernel k1(b1, b2)
seed b7
kernel k0(b0, b3) sizes=(8*s0)  # aten.add.Tensor model.py:3
gemm b4{4, 1} = b3{8, 1} @ b2{1, 8}: f32 [s0, 4, 8]  packed b  # aten.mm.default
eager b5, b6 = aten.sort.default(b4, 0, descending=True)  # fallback: no lowering
eager aten.cat.default([b8, b8{2; (3); (1)}], s0)
return b4{(s0, 4); (4, 1)}, b5{4; (4); (1)}, b6, None, 2*s0
"""


def test_text():
    assert print_program(example()) == TEXT


def test_example_is_valid():
    verify_program(example())


def edit_buffer(program: Program, number: int, **change) -> None:
    buffers = list(program.buffers)
    buffers[number] = replace(buffers[number], **change)
    program.buffers = tuple(buffers)


def edit_step(program: Program, number: int, **change) -> None:
    steps = list(program.steps)
    steps[number] = replace(steps[number], **change)
    program.steps = tuple(steps)


def put(**change):
    def apply(program: Program) -> None:
        for name, value in change.items():
            setattr(program, name, value)

    return apply


BREAKS = {
    "id": (lambda p: edit_buffer(p, 3, id=4), "buffer b3: has id 4"),
    "rank": (lambda p: edit_buffer(p, 3, strides=(1,)), "differ in rank"),
    "no dtype": (lambda p: edit_buffer(p, 3, dtype=None), "needs a dtype"),
    "negative": (lambda p: edit_buffer(p, 8, strides=(-1, 2)), "negative"),
    "free symbol": (put(symbols=()), "symbols without a source"),
    "constant index": (lambda p: edit_buffer(p, 8, source=1), "no constant 1"),
    "constant layout": (lambda p: edit_buffer(p, 8, strides=(3, 1)), "constant 0 is"),
    "input position": (put(inputs=(1, 0, -1)), "not the buffer of this argument"),
    "input missing": (put(inputs=(0, -1, -1)), "b-1|b1 is no argument|there is no buffer"),
    "tiles of another type": (
        lambda p: edit_step(p, 2, dtype=DType.F64, tile=Tile(14, 32, 512, 18)), "not one of f32 matrices"),
    "unknown nest": (lambda p: edit_step(p, 1, nest="k9"), "no nest k9"),
    "buffer count": (lambda p: edit_step(p, 1, buffers=(0,)), "different number"),
    "size count": (lambda p: edit_step(p, 1, sizes=()), "different number"),
    "unknown buffer": (lambda p: edit_step(p, 1, buffers=(0, 99)), "no buffer b99"),
    "dtype": (lambda p: edit_step(p, 1, buffers=(7, 3)), "b7 is i64, the kernel takes f32"),
    "in place": (lambda p: edit_step(p, 1, buffers=(0, 0)), "written and passed twice"),
    "undefined": (lambda p: edit_step(p, 1, buffers=(4, 3)), "b4 is read before it is written"),
    "writes constant": (lambda p: edit_step(p, 1, buffers=(0, 8)), "b8, which must not change"),
    "writes parameter": (lambda p: edit_step(p, 1, buffers=(0, 1)), "b1, which must not change"),
    "writes packed": (lambda p: edit_step(p, 1, buffers=(0, 2)), "kept between calls"),
    "packed writes": (
        put(packed=(KernelStep("k1", (1, 4), ()),)), "b4, a output, between calls"),
    "packed reads": (
        put(packed=(KernelStep("k1", (0, 2), ()),)), "b0 is no parameter"),
    "packed but not kept": (
        lambda p: edit_buffer(p, 2, kind="temp"), "b2 is read before it is written"),
    "gemm dtype": (lambda p: edit_step(p, 2, dtype=DType.F64), "is f32, not f64"),
    "gemm batch": (lambda p: edit_step(p, 2, batch=(2,)), "no stride for each batch dim"),
    "gemm in place": (
        lambda p: edit_step(p, 2, c=Operand(3, 0, 4, 1)), "b3 is read and written"),
    "gemm reach": (
        lambda p: edit_step(p, 2, b=Operand(2, 1, 1, 8)), "reaches element 32 of b2, which has 32"),
    "seed dtype": (lambda p: edit_step(p, 0, output=3), "the seed b3 is not i64"),
    "eager result": (lambda p: edit_step(p, 3, outputs=(3, 6)), "cannot hold the result"),
    "eager tuple": (lambda p: edit_step(p, 3, is_tuple=False), "returns no tuple"),
    "eager reach": (
        lambda p: edit_step(p, 4, args=(BufferRef(8, (4,), (1,), 3),)), "reaches element 6"),
    "output undefined": (lambda p: put(steps=p.steps[:1])(p), "output 0: b4 is never written"),
    "kernel reach": (
        put(packed=(KernelStep("k1", (1, 2), ()),),
            nests={"k0": nest(N0, (N0,)), "k1": nest(33)}), "reaches element 32 of b1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_broken_rules_are_named(name):
    damage, message = BREAKS[name]
    program = example()
    damage(program)
    with pytest.raises(IRError, match=message):
        verify_program(program)


@pytest.mark.parametrize("stored_first", [True, False])
def test_a_kernel_may_load_what_it_has_stored(stored_first):
    axis = Axis("i", 4)
    index = axis_index(axis)
    load, store = Load(0, DType.F32, 0, index), Store(0, index, 1)
    body = (Const(1, DType.F32, 2.0), *((store, load) if stored_first else (load, store)))
    kernel = LoopNest((axis,), (Stage((), body),), (BufferParam(DType.F32, "inout", 4),))
    steps = (KernelStep("k", (0,), ()),)
    out = ProgramOutput(0, (4,), (1,))
    program = Program((), (buffer(0, "output", (4,)),), steps, (out,), {"k": kernel})
    if stored_first:
        verify_program(program)
    else:
        with pytest.raises(IRError, match="read before it is written"):
            verify_program(program)


# --- blocks of rows -------------------------------------------------------------------------------


def by_rows() -> Program:
    """x @ y.T, a kernel over its rows, and a product with y, for 2 matrices of s0 rows."""
    outer, inner = (Axis("i", 2), Axis("j", N0)), Axis("k", 6)
    index = axis_index(outer[0]) * (N0 * 6) + axis_index(outer[1]) * 6 + axis_index(inner)
    body = (Load(0, DType.F32, 0, index), Store(1, index, 0))
    params = tuple(BufferParam(DType.F32, role, N0 * 12) for role in ("in", "out"))
    rows = LoopNest(outer, (Stage((inner,), body),), params, (N0,))
    shapes = {"input": (2, S0, 8), "temp": (2, S0, 6), "output": (2, S0, 8)}
    buffers = (
        buffer(0, "input", shapes["input"], 0),
        buffer(1, "input", (2, 6, 8), 1),
        buffer(2, "temp", shapes["temp"]),
        buffer(3, "temp", shapes["temp"]),
        buffer(4, "output", shapes["output"]),
    )
    wide = (S0 * 8,)
    narrow = (S0 * 6,)
    steps = (
        GemmStep(DType.F32, (2,), S0, 6, 8, Operand(0, 0, 8, 1, wide), Operand(1, 0, 1, 8, (48,)),
                 Operand(2, 0, 6, 1, narrow)),
        KernelStep("rows", (2, 3), (S0,)),
        GemmStep(DType.F32, (2,), S0, 8, 6, Operand(3, 0, 6, 1, narrow), Operand(1, 0, 8, 1, (48,)),
                 Operand(4, 0, 8, 1, wide)),
    )  # fmt: skip
    how = (RowStep("m"), RowStep(axes=2), RowStep("m"))
    return Program(
        inputs=(0, 1),
        buffers=buffers,
        steps=steps,
        outputs=(ProgramOutput(4, (2, S0, 8), (S0 * 8, 8, 1)),),
        nests={"rows": rows},
        symbols=(SymbolSource(S0, 0, 1),),
        tiles=(RowTiles(0, how, 2, S0, ((2, 6), (3, 6))),),
    )


BY_ROWS = """\
by rows of 2 x [s0], with b2[6], b3[6]:
  gemm b2{6*s0, 6, 1} = b0{8*s0, 8, 1} @ b1{48, 1, 8}: f32 [2, s0, 6, 8]
  kernel rows(b2, b3) sizes=(s0)
  gemm b4{8*s0, 8, 1} = b3{6*s0, 6, 1} @ b1{48, 8, 1}: f32 [2, s0, 8, 6]
"""


def test_text_of_blocks_of_rows():
    verify_program(by_rows())
    assert BY_ROWS in print_program(by_rows())


def edit_tiles(program: Program, **change) -> None:
    program.tiles = (replace(program.tiles[0], **change),)


def as_output(program: Program) -> None:
    program.outputs += (ProgramOutput(3, (6,), (1,)),)


def read_later(program: Program) -> None:
    edit_buffer(program, 1, shape=(2, S0, 6), strides=(S0 * 6, 6, 1))
    program.steps += (KernelStep("rows", (3, 2), (S0,)),)


ROW_BREAKS = {
    "twice": (lambda p: put(tiles=p.tiles * 2)(p), "overlap others"),
    "too many": (lambda p: edit_tiles(p, first=1), "do not exist"),
    "free symbol": (lambda p: edit_tiles(p, rows=N0), "symbols without a source"),
    "no temporary": (lambda p: edit_tiles(p, private=((0, 8), (2, 6), (3, 6))), "b0 is private and no"),
    "not private": (lambda p: edit_tiles(p, private=((2, 6),)), "b3 is written, touched by another"),
    "result": (as_output, "b3 is private and used elsewhere"),
    "other reader": (read_later, "b2 is private and used elsewhere|b3 is private and used"),
    "axes": (
        lambda p: edit_tiles(p, steps=(RowStep("m"), RowStep(axes=1), RowStep("m"))),
        "2 points are not the rows"),
    "no axes": (
        lambda p: edit_tiles(p, steps=(RowStep("m"), RowStep(axes=3), RowStep("m"))), "no 3 axes"),
    "dim": (
        lambda p: edit_tiles(p, steps=(RowStep("n"), RowStep(axes=2), RowStep("m"))),
        "n is not the rows"),
    "no dim": (
        lambda p: edit_tiles(p, steps=(RowStep(), RowStep(axes=2), RowStep("m"))),
        "does not run by rows"),
    "accumulates": (lambda p: edit_step(p, 0, accumulate=True), "does not run by rows|read before"),
    "packed b": (lambda p: edit_step(p, 2, pack_b=True), "does not run by rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROW_BREAKS)
def test_rules_of_blocks_of_rows(name):
    apply, message = ROW_BREAKS[name]
    program = by_rows()
    apply(program)
    with pytest.raises(IRError, match=message):
        verify_program(program)
