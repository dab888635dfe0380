"""Random programs of tensor ops against eager: 60 by default, 2,000 in ``make test-full``.

``RANDOM_GRAPHS=n`` runs another number. A failure prints a script that reproduces it.
"""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.random_env import Env
from tests.conformance.random_judge import verdict
from tests.conformance.random_ops import RULES
from tests.conformance.random_program import DTYPES, InputSpec, Program
from tests.gpu import DEVICE

BACKEND = os.environ.get("RANDOM_GRAPHS_BACKEND", "lazyc")
FEW = int(os.environ.get("RANDOM_GRAPHS", "60"))
MANY = int(os.environ.get("RANDOM_GRAPHS", "2000"))

SIZES = st.sampled_from([2, 3, 1, 4, 0, 8, 17, 33])
LAYOUTS = st.sampled_from(["contiguous", "transposed", "sliced", "offset", "expanded"])
PICK = st.integers(0, 7)
PARAM = st.integers(0, 7)
NAMES = list(RULES)
TRIES = 6

pytestmark = pytest.mark.filterwarnings("ignore")  # variances of one element, and the like


@st.composite
def input_specs(draw: st.DrawFn) -> tuple[InputSpec, ...]:
    """One to three inputs; later ones often take the first one's trailing dims, to broadcast."""
    specs: list[InputSpec] = []
    for i in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(SIZES, max_size=3)))
        if specs and draw(st.booleans()):
            first = specs[0].shape
            shape = first[draw(st.integers(0, len(first))) :]
        specs.append(
            InputSpec(
                f"a{i}",
                shape,
                draw(st.sampled_from(list(DTYPES))),
                draw(LAYOUTS),
                draw(st.integers(0, 3)),
                draw(st.sampled_from([False, False, False, True])),
            )
        )
    return tuple(specs)


STEP = st.tuples(
    st.sampled_from(NAMES), st.tuples(PICK, PICK, PICK), st.tuples(PARAM, PARAM, PARAM)
)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A program. The steps are drawn independently of each other, so that any can be left out."""
    env = Env(draw(input_specs()))
    for name, picks, params in draw(st.lists(STEP, min_size=4, max_size=20)):
        first = NAMES.index(name)
        # A rule that fits nothing here gives way to its successors.
        any(RULES[n](env, picks, params) for n in NAMES[first : first + TRIES])
    chosen = [env.pick(n) for n in draw(st.lists(PICK, min_size=1, max_size=3, unique=True))]
    outputs = tuple(dict.fromkeys(value.name for value in chosen if value is not None))
    dynamic = draw(st.booleans())
    return Program(env.inputs, tuple(env.statements), outputs, dynamic)


def check(program: Program) -> None:
    """Compiles the program and judges its results."""
    hypothesis.assume(program.statements)
    torch._dynamo.reset()
    compiled = torch.compile(program.function(DEVICE), backend=BACKEND, dynamic=program.dynamic)
    why = verdict(program, compiled)
    assert not why, f"{why}\n\n{program.source()}"


COMMON = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.gpu
@pytest.mark.timeout(900)  # a failure takes minutes to shrink
@settings(COMMON, max_examples=FEW, derandomize=True)
@given(programs())
def test_random_graphs(program: Program) -> None:
    check(program)


@pytest.mark.full
@pytest.mark.timeout(4 * 3600)
@settings(COMMON, max_examples=MANY)
@given(programs())
def test_many_random_graphs(program: Program) -> None:
    check(program)
