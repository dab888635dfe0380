"""A few examples of the grids of ``test_triton_attention.py``, the same in each run; `make test-full` has many."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.models import test_triton_attention as grids


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("grid", "examples"), [(grids.test_any_attention, 20), (grids.test_any_gradient, 10)]
)
def test_some_of_the_grid(grid: Any, examples: int) -> None:
    """Not shrunk: that takes minutes, and an example says its sizes."""
    few = settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        phases=(Phase.explicit, Phase.generate), suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    few(given(**grid.hypothesis._given_kwargs)(grid.hypothesis.inner_test))()
