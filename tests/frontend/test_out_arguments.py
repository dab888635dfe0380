"""Calls with ``out=``: eager's result, or eager's error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import lazyc

X, Y = torch.rand(3, 4), torch.rand(3, 4)


def outcome(call: Callable[..., Any], out: Any) -> tuple[str, Any]:
    try:
        call(X, Y, out)
    except RuntimeError as error:
        return "error", str(error)
    return "result", out


@pytest.mark.parametrize(
    ("call", "out", "fallbacks"),
    [
        (lambda x, y, out: torch.add(x, y, out=out), torch.zeros(3, 4), 0),
        (lambda x, y, out: torch.add(x, y, out=out), torch.zeros(3, 4).double(), 1),
        (lambda x, y, out: torch.add(x, y, out=out), torch.zeros(3, 4).long(), 0),  # by Dynamo
        (lambda x, y, out: torch.complex(x, y, out=out), torch.zeros(3, 4).cfloat(), 1),
        (lambda x, y, out: torch.complex(x, y, out=out), torch.zeros(3, 4).cdouble(), 1),
        (lambda x, y, out: torch.max(x, 0, out=out), (torch.zeros(4), torch.zeros(4).long()), 0),
        (lambda x, y, out: torch.sort(x, 0, out=out), (X * 0, torch.zeros(3, 4).int()), 1),
    ],
)  # fmt: skip
def test_as_in_eager(call: Callable[..., Any], out: Any, fallbacks: int) -> None:
    copy = torch.utils._pytree.tree_map(torch.clone, out)
    kind, expected = outcome(call, copy)
    lazyc.metrics.reset()
    found_kind, found = outcome(torch.compile(call, backend="lazyc"), out)
    assert found_kind == kind
    if kind == "result":
        torch.testing.assert_close(found, expected)
    elif fallbacks:
        assert found == expected
    assert len(lazyc.metrics.snapshot()["fallbacks"]) == fallbacks
