"""Running the steps of a Program one by one, each in a span, while somebody watches.

What runs is what runs otherwise: the same records of the driver's table in the same order with the same
``env``, but in one foreign call each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lazyc.ir.program import GemmStep, KernelStep, SeedStep, Step
from lazyc.report.spans import Category, Span, Spans
from lazyc.runtime.blocks import Blocks
from lazyc.runtime.driver import END
from lazyc.runtime.plan import NativeStep, Plan, Segment, traffic
from lazyc.runtime.sizes import Sizes

_State = TypeVar("_State")


@dataclass(frozen=True, slots=True)
class _Label:
    """What the span of a step says."""

    category: Category
    name: str
    args: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(step: Step | Blocks, plan: Plan, sizes: Sizes, is_kernel: bool = False) -> _Label:
        if isinstance(step, SeedStep):
            return _Label("library", "random seed")
        args: dict[str, Any] = {"bytes": traffic(step, plan.layouts)}
        if isinstance(step, Blocks):
            args |= {"matrices": step.batch, "rows": step.rows, "rows of a block": step.block}
            comments = dict.fromkeys(part.step.comment for part in step.steps)
            return _Label("kernel", ", ".join(filter(None, comments)) or "blocks of rows", args)
        if isinstance(step, KernelStep):
            return _Label(
                "kernel", step.comment or step.nest[:16], {"kernel": step.nest[:16], **args}
            )
        if isinstance(step, GemmStep):
            args |= {"m": sizes(step.m), "n": sizes(step.n), "k": sizes(step.k)}
            args |= {"batch": list(sizes.all(step.batch))}
            name = step.comment or "matrix product"
            return _Label("kernel" if is_kernel else "library", name, args)
        args |= {"operator": step.target, "reason": step.reason}
        return _Label(
            "fallback" if step.is_fallback else "library", step.comment or step.target, args
        )


def step_tables(
    segment: Segment, plan: Plan
) -> list[tuple[NativeStep, ctypes.Array[ctypes.c_int64]]]:
    """The steps of a segment that have something to do, each with a table of its own for the driver."""
    return [
        (
            native,
            (ctypes.c_int64 * (native.end - native.start + 2))(
                *plan.table[native.start : native.end], END, 1
            ),
        )
        for native in segment.native
        if native.start < native.end
    ]


def step_by_step(
    segment: Segment, plan: Plan, sizes: Sizes, spans: Spans, driver: Callable[[int, int], int]
) -> Callable[[int, int], int]:
    """A function like ``driver``, which runs ``segment`` whatever table it is given: each of its steps
    in a call of ``driver`` and in a span of its own."""
    tables = [
        (_Label.of(native.step, plan, sizes, _by_kernels(native)), words)
        for native, words in step_tables(segment, plan)
    ]

    def run(table: int, env: int) -> int:
        bits = 0
        for label, words in tables:
            with Span(spans, label.category, label.name, label.args):
                bits |= driver(ctypes.addressof(words), env)
        return bits

    return run


def _by_kernels(native: NativeStep) -> bool:
    """Whether generated kernels run in place of the library."""
    return native.sparse is not None or (native.gemm is not None and bool(native.scratch))


def in_span(
    step: Step,
    run: Callable[[_State], None],
    plan: Plan,
    sizes: Sizes,
    spans: Spans,
) -> Callable[[_State], None]:
    """``run``, which runs a Python step, in a span."""
    label = _Label.of(step, plan, sizes)

    def run_in_span(state: _State) -> None:
        with Span(spans, label.category, label.name, label.args):
            run(state)

    return run_in_span
