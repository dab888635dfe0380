"""Text of a Program, for people: the buffers, then the steps in order.

    symbol s0 = arg 0 dim 0
    b0 = input 0 : f32[s0, 8]
    b1 = temp : f32[s0, 8]
    b2 = output : f32[s0, 4] strides=(1, s0)
    kernel k0(b0, b1) sizes=(s0*8)  # aten.exp.default model.py:12
    by rows of 4 x [s0], with b1[8]:
      gemm b1{8, 1} = ...
    gemm b2{4, 1} = b1{8, 1} @ b0{1, 8}: f32 [s0, 4, 8]  packed b
    eager b3 = aten.sort.default(b2, -1)  # fallback: no lowering
    return b2{(s0, 4); (4, 1)}

A matrix is shown with its strides (batch dims, rows, columns; before them its offset, if any), a
buffer only where they are not contiguous ones. Steps that may run a block of rows at a time
(``RowTiles``) stand indented, under the number of matrices, their rows and the private buffers with
the elements of a row; under one that adds up matrices are the kernels that it is in blocks. The text is deterministic.
"""

from __future__ import annotations

from typing import Any

import sympy

from lazyc.ir.printer import dim_text, value_text
from lazyc.ir.program import (
    Buffer,
    BufferRef,
    EagerStep,
    GemmStep,
    KernelStep,
    Operand,
    Program,
    ProgramOutput,
    SeedStep,
    Step,
)
from lazyc.ir.sparse_contraction import sparse_key
from lazyc.ir.types import Shape, contiguous_strides


def print_program(program: Program) -> str:
    """The whole Program as text. Nests are named by their keys; ``print_nest`` prints them."""
    lines = [
        f"symbol {s.symbol} = arg {s.input}" + ("" if s.dim is None else f" dim {s.dim}")
        for s in program.symbols
    ]
    lines += map(_buffer, program.buffers)
    if program.packed:
        lines.append(f"packed from arguments {_dims(program.parameters)}:")
        lines += ("  " + _step(s) for s in program.packed)
    lines += _steps(program)
    lines.append("return " + ", ".join(map(_output, program.outputs)))
    return "\n".join(lines) + "\n"


def _dims(dims: Shape) -> str:
    return f"({', '.join(map(dim_text, dims))})"


def _buffer(buffer: Buffer) -> str:
    source = f" {buffer.source}" if buffer.kind in ("input", "constant") else ""
    if buffer.dtype is None:
        return f"b{buffer.id} = {buffer.kind}{source}"
    device = "" if buffer.device == "cpu" else f"@{buffer.device}"
    shape = ", ".join(map(dim_text, buffer.shape))
    text = f"b{buffer.id} = {buffer.kind}{source} : {buffer.dtype.value}[{shape}]{device}"
    if buffer.strides != contiguous_strides(buffer.shape):
        text += f" strides={_dims(buffer.strides)}"
    return text


def _steps(program: Program) -> list[str]:
    lines: list[str] = []
    inside = {position: tiles for tiles in program.tiles for position in tiles.span}
    for position, step in enumerate(program.steps):
        tiles = inside.get(position)
        if tiles is not None and position == tiles.first:
            private = ", ".join(f"b{b}[{dim_text(width)}]" for b, width in tiles.private)
            rows = f"{dim_text(tiles.batch)} x [{dim_text(tiles.rows)}]"
            sums = f", sums of {' x '.join(map(dim_text, tiles.summed))}" if tiles.summed else ""
            always = "always " if tiles.always else ""
            lines.append(f"{always}by rows of {rows}{sums}, with {private}:")
        lines.append(("" if tiles is None else "  ") + _step(step))
        sums = None if tiles is None else tiles.steps[position - tiles.first].sums
        if sums is not None:
            first, later = (s.nest for s in sums)
            lines.append(f"    in blocks: kernel {first}, later {later}")
    return lines


def _step(step: Step) -> str:
    if isinstance(step, KernelStep):
        text = f"kernel {step.nest}({', '.join(f'b{b}' for b in step.buffers)})"
        text += f" sizes={_dims(step.sizes)}" if step.sizes else ""
        text += _sparse_factor(step)
    elif isinstance(step, GemmStep):
        text = _gemm(step)
    elif isinstance(step, SeedStep):
        return f"seed b{step.output}"
    else:
        return _eager(step)
    return text + (f"  # {step.comment}" if step.comment else "")


def _sparse_factor(step: KernelStep) -> str:
    factor = step.sparse
    if factor is None:
        return ""
    kernel = "dense"
    if factor.is_used:
        kernel = f"kernel {sparse_key(step.nest, factor.weight, factor.sparsity)}"
    return f"  b{step.buffers[factor.weight]} {factor.sparsity}: {kernel}"


def _gemm(step: GemmStep) -> str:
    sign = "+=" if step.accumulate else "="
    shape = ", ".join(map(dim_text, (*step.batch, step.m, step.n, step.k)))
    text = f"gemm {_operand(step.c)} {sign} {_operand(step.a)} @ {_operand(step.b)}"
    dtype = f"{step.dtype} -> {step.result_dtype}" if step.is_wide else f"{step.dtype}"
    text = f"{text}: {dtype} [{shape}]" + ("  packed b" if step.pack_b else "")
    if step.tile is not None:
        text += f"  tiles of {step.tile.rows} x {step.tile.columns}"
    if step.sparse is None:
        return text
    kernel = "dense" if step.sparse.kernel is None else f"kernel {step.sparse.kernel.key}"
    return f"{text}  b {step.sparse.sparsity}: {kernel}"


def _operand(operand: Operand) -> str:
    strides = ", ".join(map(dim_text, (operand.row_stride, operand.col_stride)))
    batch = "".join(f"{dim_text(s)}, " for s in operand.batch_strides)
    offset = "" if operand.offset == 0 else f"{dim_text(operand.offset)}; "
    return f"b{operand.buffer}{{{offset}{batch}{strides}}}"


def _eager(step: EagerStep) -> str:
    args = [_template(a) for a in step.args]
    args += [f"{k}={_template(v)}" for k, v in step.kwargs]
    results = ", ".join(f"b{b}" for b in step.outputs)
    text = f"eager {results + ' = ' if results else ''}{step.target}({', '.join(args)})"
    notes = [step.comment] if step.comment else []
    if step.is_fallback:
        notes.append("fallback" + (f": {step.reason}" if step.reason else ""))
    return text + (f"  # {'; '.join(notes)}" if notes else "")


def _template(value: Any) -> str:
    if isinstance(value, BufferRef):
        if value.shape is None:
            return f"b{value.id}"
        offset = "" if value.offset == 0 else f"{dim_text(value.offset)}; "
        return f"b{value.id}{{{offset}{_dims(value.shape)}; {_dims(value.strides)}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_template, value))}]"
    if isinstance(value, sympy.Expr):
        return dim_text(value)
    try:
        return value_text(value)
    except TypeError:  # a generator, an enum of torch, ...
        return str(value)


def _output(output: ProgramOutput) -> str:
    if output.buffer < 0:
        return "None" if output.value is None else dim_text(output.value)
    text = f"b{output.buffer}"
    if not output.shape and output.offset == 0:
        return text
    offset = "" if output.offset == 0 else f"{dim_text(output.offset)}; "
    return f"{text}{{{offset}{_dims(output.shape)}; {_dims(output.strides)}}}"
