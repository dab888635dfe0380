"""Random programs recorded by ``lazyc.lazy()``, with values read at random, against eager."""

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


@st.composite
def programs_with_reads(draw: st.DrawFn) -> Program:
    """A program in which some values are read, deleted, or all that waits is run, on the way."""
    program = draw(programs())
    statements: list[Statement] = []
    for statement in program.statements:
        statements.append(statement)
        what = draw(st.sampled_from(["", "", "", "read", "step"]))
        if what == "read":
            statements.append(Statement("_", "{0}.tolist()", (statement.target,)))
        elif what == "step":
            statements.append(Statement("_", "__import__('lazyc').mark_step()", ()))
    return dataclasses.replace(program, statements=tuple(statements))


def check(program: Program) -> None:
    hypothesis.assume(program.statements)
    function = program.function()

    def recorded(*args: torch.Tensor) -> Any:
        with lazyc.lazy():
            return function(*args)

    why = verdict(program, recorded)
    assert not why, f"{why}\n\n{program.source()}"


@pytest.mark.timeout(900)  # a failure takes minutes to shrink
@settings(COMMON, max_examples=FEW, derandomize=True)
@given(programs_with_reads())
def test_random_programs(program: Program) -> None:
    check(program)


@pytest.mark.full
@pytest.mark.timeout(4 * 3600)
@settings(COMMON, max_examples=MANY)
@given(programs_with_reads())
def test_many_random_programs(program: Program) -> None:
    check(program)
