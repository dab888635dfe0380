"""Calls that look at the storage of a tensor: where a view lies in it, and what lies around it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

Function = Callable[[torch.Tensor], torch.Tensor]
BLOCK = torch.full((2, 2), -1.0)

READS: dict[str, Function] = {
    "argument": lambda x: torch.as_strided(x, (2, 2), (1, 2), 3) * 2,
    "argument, from its start": lambda x: torch.as_strided(x, (2, 2), (1, 2)) * 2,
    "argument, beyond its end": lambda x: torch.as_strided(x, (2, 2), (1, 2), 30) * 2,
    "view of an argument": lambda x: torch.as_strided(x[1:], (2, 2), (1, 2), 8) * 2,
    "view of an argument, from its start": lambda x: torch.as_strided(x[1:], (2, 2), (1, 2)) * 2,
    "row of an argument": lambda x: torch.as_strided(x.view(2, -1)[1:], (2, 2), (1, 2)) * 2,
    "part of an argument": lambda x: torch.as_strided(x[3:].split(5)[1], (2, 2), (1, 2)) * 2,
    "view": lambda x: torch.as_strided(x.exp()[1:], (3,), (1,), 0) * 2,
    "view, returned": lambda x: torch.as_strided(x.sin()[1:], (3,), (1,), 0),
    "view, from its start": lambda x: torch.as_strided(x.sin()[5:], (3, 3), (1, 2)),
    "every second": lambda x: torch.as_strided(x.sin()[::2], (3,), (1,), 0) * 2,
    "view of a view": lambda x: torch.as_strided(x.sin()[::2][1:], (9,), (1,), 5) * 2,
    "expanded": lambda x: torch.as_strided(x.sin().view(-1, 1).expand(-1, 3)[2:], (9,), (1,), 5),
    "part": lambda x: torch.as_strided(x.sin().split(5)[1], (3, 2), (1, 2)) * 2,
    "empty": lambda x: torch.as_strided(x.sin()[3:], (0, 2), (1, 2)) * 2,
    "scatter": lambda x: torch.as_strided_scatter(x, BLOCK, (2, 2), (1, 2), 3) * 2,
    "scatter into a view": lambda x: torch.as_strided_scatter(
        x.sin()[5:], BLOCK, (2, 2), (1, 3), 4
    ),
    "scatter into a part of an argument": lambda x: (
        torch.as_strided_scatter(x[1:], BLOCK, (2, 2), (1, 2)) * 2
    ),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", READS)
def test_storage_is_read_as_in_eager(case: str, dynamic: bool) -> None:
    fn, memory = READS[case], torch.arange(41.0)
    compiled = torch.compile(fn, backend="lazyc", dynamic=dynamic)
    for start in (1, 2, 0):  # Dynamo does not guard where an argument starts in its storage
        x = memory[start : start + 20]
        torch.testing.assert_close(compiled(x), fn(x))
    assert torch.equal(memory, torch.arange(41.0))
