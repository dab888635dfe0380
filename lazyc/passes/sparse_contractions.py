"""Gives contractions whose weight is declared sparse a kernel that reads it in compressed form.

before   kernel k(b0, b1, b2)        b1: a parameter that the user declared 2:4, say
after    kernel k(b0, b1, b2)        b1 2:4: kernel <key>, or the reason for none

For targets that have matrix products in their nests (``products_as_loops``); on others, products are steps of
their own (``sparse_products``). The kernel of the nest stays what runs whenever the values of the weight are
not that sparse.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import cast

import sympy

from lazyc.ir.graph import Graph
from lazyc.ir.loops import Load, LoopNest
from lazyc.ir.program import KernelStep, Program, SparseFactor
from lazyc.ir.sparse import Sparsity
from lazyc.ir.sparse_contraction import find_factors, is_contraction
from lazyc.ir.sparse_mma import MmaFormat
from lazyc.ir.types import DType
from lazyc.passes.lasting import Lasting


def choose_sparse_contractions(
    program: Program, graph: Graph, kernels: Collection[tuple[Sparsity, DType]]
) -> Program:
    """``program``, made of ``graph``, for a target that has kernels for these kinds of weights."""
    lasting = Lasting(graph)
    declared = {
        n.attrs.index: n.attrs.sparsity
        for n in graph.inputs
        if n.attrs.sparsity and lasting.is_leaf(n)
    }
    steps, parameters = [], dict.fromkeys(program.parameters)
    for step in program.steps:
        if isinstance(step, KernelStep):
            factor = _declared_factor(program, step, declared)
            if factor is not None:
                step = replace(step, sparse=_choice(program, step, *factor, kernels))
                if step.sparse is not None and step.sparse.is_used:
                    # What is kept of it is guarded.
                    parameters[program.buffers[step.buffers[factor[0]]].source] = None
        steps.append(step)
    return replace(program, steps=tuple(steps), parameters=tuple(parameters))


def without_sparse_contractions(program: Program, reason: str) -> Program:
    """``program`` with dense kernels alone."""
    steps = [
        replace(s, sparse=replace(s.sparse, is_used=False, reason=reason))
        if isinstance(s, KernelStep) and s.sparse is not None and s.sparse.is_used
        else s
        for s in program.steps
    ]
    return replace(program, steps=tuple(steps))


def _declared_factor(
    program: Program, step: KernelStep, declared: dict[int, Sparsity]
) -> tuple[int, Sparsity] | None:
    """The param of a contraction that is a declared weight, and what it is declared as."""
    nest = program.nests[step.nest]
    if not is_contraction(nest):
        return None
    for param, number in enumerate(step.buffers):
        buffer = program.buffers[number]
        if buffer.kind == "input" and buffer.source in declared and _multiplies(nest, param):
            return param, declared[buffer.source]
    return None


def _multiplies(nest: LoopNest, param: int) -> bool:
    """Whether it is a param of the product, and not of what follows it."""
    (loop,) = (s for s in nest.stages if s.axes)
    return any(isinstance(i, Load) and i.buffer == param for i in loop.body)


def _choice(
    program: Program,
    step: KernelStep,
    weight: int,
    sparsity: Sparsity,
    kernels: Collection[tuple[Sparsity, DType]],
) -> SparseFactor:
    nest = program.nests[step.nest]
    shape = program.buffers[step.buffers[weight]].shape
    dtype = nest.buffers[weight].dtype
    if (sparsity, dtype) not in kernels:
        reason = f"no kernel for {dtype.value} weights on this target"
        return SparseFactor(sparsity, weight, shape, False, reason)
    factors = find_factors(nest, weight, sparsity)
    if isinstance(factors, str):
        return SparseFactor(sparsity, weight, shape, False, factors)
    columns = factors.column_count
    if not isinstance(columns, int):
        columns = columns.subs(dict(zip(nest.symbols, step.sizes, strict=True)), simultaneous=True)
        columns = cast(sympy.Expr, columns)
    sizes = (columns, factors.row_count, factors.depth)
    if sparsity != "2:4":
        return SparseFactor(sparsity, weight, sizes, True, "skips blocks of zeros")
    form = MmaFormat(dtype, factors.row_count, factors.depth)
    if factors.depth < form.mma.step:
        reason = f"fewer than {form.mma.step} weights in a row, which one instruction takes"
        return SparseFactor(sparsity, weight, sizes, False, reason)
    size = factors.row_count * factors.depth * dtype.itemsize
    reason = f"reads {form.nbytes / 2**20:.1f} of {size / 2**20:.1f} MiB, half of the products"
    return SparseFactor(sparsity, weight, sizes, True, reason)
