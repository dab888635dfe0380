"""Small Graphs for pass tests, and a slow runner of Programs that needs no code generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lazyc.frontend.builder import Builder
from lazyc.ir import attrs as A
from lazyc.ir import program as P
from lazyc.ir.graph import Graph, Node, Output
from lazyc.ir.interp import run_graph
from lazyc.ir.nest_interp import run_nest
from lazyc.ir.ops import resolve_target
from lazyc.ir.types import DType, Shape, TensorType, contiguous_strides
from lazyc.ir.verify import verify_graph
from lazyc.passes.schedule import schedule


class Make(Builder):
    """A Builder that also makes inputs and outputs."""

    def __init__(self) -> None:
        super().__init__(Graph())
        self._inputs = 0

    def input(
        self,
        *shape: int,
        dtype: DType = DType.F32,
        strides: Shape | None = None,
        parameter: bool = False,
    ) -> Node:
        attrs = A.InputAttrs(
            self._inputs,
            f"x{self._inputs}",
            TensorType(dtype, shape),
            strides or contiguous_strides(shape),
            parameter,
        )
        self._inputs += 1
        return self.emit("input", attrs=attrs)

    def sum(self, x: Node, *axes: int) -> Node:
        return self.emit("reduce_sum", x, attrs=A.ReduceAttrs(axes))

    def max(self, x: Node, *axes: int) -> Node:
        return self.emit("reduce_max", x, attrs=A.ReduceAttrs(axes))

    def rows(self, x: Node, like: Node) -> Node:
        """A [n] value as [n, m]."""
        return self.expand(self.reshape(x, (x.shape[0], 1)), like.shape)

    def outputs(self, *nodes: Node, strides: Sequence[Shape | None] | None = None) -> Graph:
        given = strides or [None] * len(nodes)
        self.graph.outputs = [
            Output(n, s or contiguous_strides(n.shape)) for n, s in zip(nodes, given, strict=True)
        ]
        verify_graph(self.graph)
        return self.graph


def kernels(program: P.Program) -> list[P.KernelStep]:
    return [s for s in program.steps if isinstance(s, P.KernelStep)]


def run_program(program: P.Program, args: Sequence[torch.Tensor]) -> list[Any]:
    """The outputs of a Program without symbols; inputs that it writes to are changed in place."""
    storage = [_allocate(b, program, args) for b in program.buffers]
    for step in (*program.packed, *program.steps):
        if isinstance(step, P.KernelStep):
            error = run_nest(program.nests[step.nest], [_flat(storage[b]) for b in step.buffers])
            assert error == 0
        elif isinstance(step, P.GemmStep):
            a, b, c = (_matrix(storage, o, step, k) for k, o in enumerate((step.a, step.b, step.c)))
            c.copy_(torch.matmul(a.to(c.dtype), b.to(c.dtype)))
        elif isinstance(step, P.EagerStep):
            args_ = [_fill(t, storage) for t in step.args]
            result = resolve_target(step.target)(
                *args_, **{k: _fill(v, storage) for k, v in step.kwargs}
            )
            for number, value in zip(
                step.outputs, result if step.is_tuple else [result], strict=True
            ):
                if number >= 0:
                    storage[number] = value
        else:
            raise AssertionError(step)
    return [
        storage[o.buffer].as_strided(o.shape, o.strides, o.offset) if o.buffer >= 0 else o.value
        for o in program.outputs
    ]


def _allocate(b: P.Buffer, program: P.Program, args: Sequence[torch.Tensor]) -> Any:
    if b.kind == "input":
        return args[b.source]
    if b.kind == "constant":
        return program.constants[b.source]
    if b.dtype is None:
        return None
    extent = 1 + sum((int(d) - 1) * int(s) for d, s in zip(b.shape, b.strides, strict=True))
    flat = torch.full((max(extent, 0),), 77, dtype=b.dtype.torch)
    return flat.as_strided(b.shape, b.strides)


def _flat(x: torch.Tensor) -> torch.Tensor:
    if x.numel() == 0:
        return x.reshape(-1)
    extent = 1 + sum((d - 1) * s for d, s in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((max(extent, 0),), (1,))


def _matrix(storage: list[Any], o: P.Operand, step: P.GemmStep, which: int) -> torch.Tensor:
    rows, cols = ((step.m, step.k), (step.k, step.n), (step.m, step.n))[which]
    shape = (*step.batch, rows, cols)
    base = storage[o.buffer]
    offset = base.storage_offset() + o.offset
    return base.as_strided(shape, (*o.batch_strides, o.row_stride, o.col_stride), offset)


def _fill(template: Any, storage: list[Any]) -> Any:
    if isinstance(template, P.BufferRef):
        x = storage[template.id]
        if template.shape is None:
            return x
        return x.as_strided(template.shape, template.strides, x.storage_offset() + template.offset)
    if isinstance(template, tuple):
        return [_fill(t, storage) for t in template]
    return template


def check(graph: Graph, *args: torch.Tensor, fusion: bool = True) -> P.Program:
    """Schedules a Graph and compares its Program with the Graph's interpreter, mutations included."""
    expected_args = [a.clone() for a in args]
    expected = run_graph(graph, expected_args)
    program = schedule(graph, fusion)
    actual = run_program(program, args)
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert got.stride() == want.stride()
    for got, want in zip(args, expected_args, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)
    return program
