"""What reports say of weights that are kept repacked."""

from __future__ import annotations

import threading

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


def test_weights_are_packed_while_torch_goes_on() -> None:
    """Between compiling and the first call, on a thread of its own; also for a program from the cache."""
    lazyc.metrics.reset()
    threads: list[str] = []

    def note(event: E.Event) -> None:
        if isinstance(event, E.WeightsPacked):
            threads.append(threading.current_thread().name)

    stop = EVENTS.subscribe(note)
    for _ in range(2):
        torch._dynamo.reset()
        model = torch.nn.Linear(96, 80).eval()
        x = torch.randn(32, 96)
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(model, backend="lazyc")(x), model(x))
    stop()
    assert threads == ["lazyc-pack"] * 2
    assert lazyc.metrics.snapshot()["cache_hits"].get("memory programs", 0) == 1
