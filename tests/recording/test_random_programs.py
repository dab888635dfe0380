"""Random programs against eager, with values read and deleted at random: recorded by ``lazyc.lazy()``, and cut by
graph breaks under the option lazy."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lazyc
from tests.conformance.random_judge import verdict
from tests.conformance.random_program import Program, Statement
from tests.conformance.test_random_graphs import COMMON, programs

FEW = int(os.environ.get("RANDOM_GRAPHS", "60"))
MANY = int(os.environ.get("RANDOM_GRAPHS", "1000"))

pytestmark = pytest.mark.filterwarnings("ignore")


READS = (
    "{0}.tolist()",
    "{0}.numpy() if {0}.dtype is not torch.bfloat16 else 0",  # numpy has no such type
    "{0}.clone()",
    "bool({0}.ne(0).any())",
    "{0}.flatten()[0].item() if {0}.numel() else 0",
)
STEP = Statement("_", "__import__('lazyc').mark_step()", ())
BREAK = Statement("_", "torch._dynamo.graph_break()", ())


@st.composite
def programs_with_reads(draw: st.DrawFn, breaks: bool = False) -> Program:
    """A program in which, on the way, some values are read or deleted, or all that waits is run; with
    ``breaks`` Dynamo's graph is broken there, too."""
    program = draw(programs())
    kinds = ["", "", "", "read", "delete", "step", *(["break"] * 3 if breaks else [])]
    statements: list[Statement] = []
    left = list(program.statements)
    deleted: set[str] = set()
    while left:
        statement = left.pop(0)
        statements.append(statement)
        what = draw(st.sampled_from(kinds))
        if what == "read":
            text = draw(st.sampled_from(READS))
            statements.append(Statement("_", text, (statement.target,)))
        elif what == "delete":
            needed = {*program.outputs, *(name for later in left for name in later.operands)}
            needed |= {later.target for later in left if later.in_place}
            made = {s.target for s in statements if not s.in_place} - {"_"}
            for name in sorted(made - needed - deleted - {i.name for i in program.inputs}):
                statements.append(Statement(name, "del {0}", (name,), in_place=True))
                deleted.add(name)
        elif what == "step":
            statements.append(STEP)
        elif what == "break":
            statements.append(BREAK)
    return dataclasses.replace(program, statements=tuple(statements))


def check(program: Program) -> None:
    """Judges what ``lazyc.lazy()`` makes of it."""
    hypothesis.assume(program.statements)
    function = program.function()

    def recorded(*args: torch.Tensor) -> Any:
        with lazyc.lazy():
            return function(*args)

    why = verdict(program, recorded)
    assert not why, f"{why}\n\n{program.source()}"


def check_regions(program: Program) -> None:
    """Judges what the option lazy makes of it."""
    hypothesis.assume(program.statements)
    torch._dynamo.reset()
    compiled = torch.compile(
        program.function(), backend="lazyc", options={"lazy": True}, dynamic=program.dynamic
    )
    with torch.no_grad():
        why = verdict(program, compiled)
    assert not why, f"{why}\n\n{program.source()}"


@pytest.mark.timeout(900)  # a failure takes minutes to shrink
@settings(COMMON, max_examples=FEW, derandomize=True)
@given(programs_with_reads())
def test_random_programs(program: Program) -> None:
    check(program)


@pytest.mark.timeout(900)
@settings(COMMON, max_examples=FEW // 3, derandomize=True)
@given(programs_with_reads(breaks=True))
def test_random_programs_with_breaks(program: Program) -> None:
    check_regions(program)


@pytest.mark.full
@pytest.mark.timeout(4 * 3600)
@settings(COMMON, max_examples=MANY)
@given(programs_with_reads())
def test_many_random_programs(program: Program) -> None:
    check(program)


@pytest.mark.full
@pytest.mark.timeout(4 * 3600)
@settings(COMMON, max_examples=MANY // 4)
@given(programs_with_reads(breaks=True))
def test_many_random_programs_with_breaks(program: Program) -> None:
    check_regions(program)
