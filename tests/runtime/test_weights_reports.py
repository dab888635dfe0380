"""What reports say of weights that are kept repacked."""

from __future__ import annotations

import torch

import lazyc
from lazyc.backend import EVENTS
from lazyc.report import events as E


def test_packed_weights_are_counted() -> None:
    torch._dynamo.reset()
    lazyc.metrics.reset()
    heard: list[E.Event] = []
    stop = EVENTS.subscribe(heard.append)
    model = torch.nn.Linear(64, 48).eval()
    compiled = torch.compile(model, backend="lazyc")
    x = torch.randn(32, 64)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(compiled(x), model(x))
        model.weight.mul_(2)
        torch.testing.assert_close(compiled(x), model(x))
    stop()
    packed = [e for e in heard if isinstance(e, E.WeightsPacked)]
    assert [(e.count, e.changed) for e in packed] == [(1, False), (1, True)]
    assert all(e.bytes >= model.weight.nbytes for e in packed)
    found = lazyc.metrics.snapshot()
    assert found["weights_packed"] == 2
    assert found["weights_packed_bytes"] == sum(e.bytes for e in packed)
