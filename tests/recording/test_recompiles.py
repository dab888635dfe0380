"""What reports say of a program that was made where there was one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import lazyc
from lazyc.backend import EVENTS
from lazyc.report import events as E


@pytest.fixture
def recompiles() -> Iterator[list[E.Recompiled]]:
    heard: list[E.Recompiled] = []
    stop = EVENTS.subscribe(lambda e: heard.append(e) if isinstance(e, E.Recompiled) else None)
    yield heard
    stop()


X = torch.ones(4, 3)
X64 = X.double()
COLUMNS = X.t().contiguous().t()
STEPS: dict[str, tuple[Callable[[int], torch.Tensor], str, str]] = {
    "size": (
        lambda k: torch.cat([X[: k + 1], X]) + 1,
        "aten.cat.default: tensor 0: size of dim 0, 1 -> 2",
        "keep it at one size",
    ),
    "dtype": (
        lambda k: (X, X64)[k].exp(),
        "aten.exp.default: tensor 0: dtype, torch.float32 -> torch.float64",
        "cast it to one dtype",
    ),
    "strides": (
        lambda k: (X, COLUMNS)[k].exp(),
        "aten.exp.default: tensor 0: strides, [3, 1] -> [1, 4]",
        "make it contiguous",
    ),
    "dims": (
        lambda k: (X if k == 0 else X[0]).exp(),
        "aten.exp.default: tensor 0: number of dims, 2 -> 1",
        "",
    ),
    "number": (
        lambda k: X.clamp(0, k + 0.5),
        "aten.clamp.default: 0, 0.5 -> 0, 1.5",
        "pass the number as a 0-dim tensor (without .item(), where it was one)",
    ),
    "operator": (
        lambda k: (X + 1).exp() if k == 0 else (X + 1).sin(),
        "aten.sin.default in place of aten.exp.default",
        "",
    ),
    "more": (
        lambda k: X.exp() if k == 0 else X.exp().sin().cos(),
        "2 operators more, first aten.sin.default",
        "",
    ),
    "less": (
        lambda k: X.exp().sin() if k == 0 else X.exp(),
        "1 operators less, first aten.sin.default",
        "",
    ),
    "operands": (
        lambda k: X.exp() - X.sin() if k == 0 else X.exp().neg() + 0 * X.sin() + 1,
        "aten.neg.default in place of aten.sin.default",
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_the_first_difference_is_named(name: str, recompiles: list[E.Recompiled]) -> None:
    make, changed, fix = STEPS[name]
    # Options of its own, so a Recorder of its own, which knows of no other test.
    with lazyc.lazy(lazy_max_operators=5000 + list(STEPS).index(name)):
        for k in (0, 1, 0, 1):
            kept = make(k)
            lazyc.mark_step()
            del kept
    (found,) = recompiles
    assert found.changed == changed
    assert found.fix.startswith(fix) and bool(found.fix) == bool(fix)
    assert found.line.startswith("test_recompiles.py:")
    assert found.count == 1 and found.seconds > 0


def test_counts_are_by_line(recompiles: list[E.Recompiled]) -> None:
    losses = torch.zeros(1)
    with lazyc.lazy():
        for _ in range(4):
            losses = torch.cat([losses, X.sum()[None]])  # this line is named
            lazyc.mark_step()
        assert (X * 3).sum().item() == 36  # another line: its first program
    assert [r.count for r in recompiles] == [1, 2, 3]
    assert len({r.line for r in recompiles}) == 1
    with open(__file__, encoding="utf-8") as file:
        lines = file.read().splitlines()
    assert lines[int(recompiles[0].line.split(":")[1]) - 1].endswith("# this line is named")
    assert losses.tolist() == [0, 12, 12, 12, 12]


def test_regions_of_dynamos_say_it_too(recompiles: list[E.Recompiled]) -> None:
    torch._dynamo.reset()
    first = torch.compile(lambda x: x + 1, backend="lazyc", options={"lazy": True})
    second = torch.compile(lambda x: x * 2, backend="lazyc", options={"lazy": True})
    with torch.no_grad():
        for k in (0, 1):
            y = first(X)
            y = second(y) if k else y
            y.tolist()
    (found,) = recompiles
    assert found.changed.startswith("1 operators more, first the region at test_recompiles.py:")
