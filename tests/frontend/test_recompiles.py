"""What changed when a function is compiled again, as Dynamo says it and through the whole backend."""

from __future__ import annotations

import pytest
import torch

import lazyc
from lazyc.backend import EVENTS
from lazyc.frontend.recompiles import explain
from lazyc.report import events as E
from lazyc.report.text import format_event

BUCKET = "lazyc.mark_dim(x, 0, 'bucket')"
DYNAMIC = "torch.compile(dynamic=True)"


@pytest.mark.parametrize(
    ("reason", "changed", "fix"),
    [
        (
            "0/0: tensor 'x' size mismatch at index 0. expected 2, actual 3",
            "x: size of dim 0, 2 -> 3",
            f"torch._dynamo.mark_dynamic(x, 0) or {BUCKET} before the call, or {DYNAMIC}",
        ),
        (
            "0/0: tensor 'x' stride mismatch at index 1. expected 1, actual 4",
            "x: stride of dim 1, 1 -> 4",
            "pass x.contiguous()",
        ),
        (
            "1/0: tensor 's.a[0]' rank mismatch. expected 2, actual 3",
            "s.a[0]: number of dims, 2 -> 3",
            "give s.a[0] the same number of dims",
        ),
        (
            "0/5: tensor 'x' dtype mismatch. expected Float, actual Double",
            "x: dtype, Float -> Double",
            "cast x to one dtype before the call",
        ),
        (
            "0/4: GLOBAL_STATE changed: grad_mode ",
            "global state: grad_mode",
            "always call it under the same grad mode",
        ),
        (
            "0/2: k == 1      # y=s.l(x)*k  # rec.py:7 in forward\nUser stack trace:\n",
            "k: no longer 1",
            f"{DYNAMIC}, or pass k as a tensor",
        ),
        (
            "0/3: s.flag == True    # return y+1 if s.flag else y",
            "s.flag: no longer True",
            "pass s.flag as a tensor, or compile one function for each value",
        ),
        (
            '1/0: ___stack1 == 3     # n = int(m.sum().item())  # code/it.py:3 in resume_in_fn\nUser stack trace:\n  File "/code/it.py", line 3, in resume_in_fn\n',
            "what .item() gave: no longer 3",
            "leave out .item() at it.py:3: keep it a tensor, or set torch._dynamo.config.capture_scalar_outputs = True",
        ),
        (
            "1/0: ___check_type_id(y, 94530741954608), type=<class 'lazyc.recording.tensor.LazyTensor'>  # a",
            "y: no longer a LazyTensor",
            "pass y as one type",
        ),
        ("0/3: something new of Dynamo's", "something new of Dynamo's", ""),
    ],
)
def test_words(reason: str, changed: str, fix: str) -> None:
    assert explain(reason) == (changed, fix)


def test_every_recompilation_is_told() -> None:
    found: list[E.Recompiled] = []
    unsubscribe = EVENTS.subscribe(
        lambda e: found.append(e) if isinstance(e, E.Recompiled) else None
    )
    lazyc.metrics.reset()

    def function(x: torch.Tensor, k: int = 1) -> torch.Tensor:
        return torch.exp(x) * k

    run = torch.compile(function, backend="lazyc", dynamic=False)
    try:
        run(torch.ones(2, 3))
        assert not found
        run(torch.ones(4, 3))
        run(torch.ones(4, 3, dtype=torch.float64))
        run(torch.ones(4, 3), k=2)
    finally:
        unsubscribe()
    assert [e.changed for e in found] == [
        "x: size of dim 0, 2 -> 4", "x: dtype, Float -> Double", "k: no longer 1",
    ]  # fmt: skip
    assert [e.count for e in found] == [1, 2, 3]
    assert all(e.line.startswith("test_recompiles.py:") and e.seconds > 0 for e in found)
    assert sum(r["count"] for r in lazyc.metrics.snapshot()["recompiles"]) == 3


def test_text() -> None:
    event = E.Recompiled("model.py:12", "x: size of dim 0, 2 -> 4", "do this", 3, 0.25)
    assert format_event(event, 1) == (
        "recompile 3 model.py:12: x: size of dim 0, 2 -> 4 (250 ms)\n  to avoid it: do this"
    )
