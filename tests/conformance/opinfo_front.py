"""The ways into lazyc that a sample may take, and what was recorded on the way.

compile     torch.compile
lazy        torch.compile with the option lazy: without gradients, where regions wait, and with them
lazy-mode   eager code inside ``with lazyc.lazy()``: on plain inputs, and on inputs that wait
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo as dynamo
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FRONTS = ("compile", "lazy", "lazy-mode")


@dataclass(frozen=True)
class Series:
    """How samples are run. ``waiting``: on inputs that recorded code computes. ``counts``: whether what is
    recorded in it tells how lazy an op is."""

    gradients: bool
    waiting: bool = False
    counts: bool = True


def series(front: str, gradients: bool) -> tuple[Series, ...]:
    """What a front runs, for samples with or without ``gradients``."""
    if front == "lazy":
        with_gradients = (Series(True, counts=False),) if gradients else ()
        return (Series(False), *with_gradients)
    if front == "lazy-mode":
        return (Series(gradients, counts=False), Series(gradients, waiting=True))
    return (Series(gradients),)


@dataclass
class CountingBackend:
    """A torch.compile backend that counts the graphs that reach the real one."""

    name: str
    graphs: int = 0
    real: Any = field(init=False)

    def __post_init__(self) -> None:
        self.real = dynamo.lookup_backend(self.name)
        self.__name__ = self.name

    def __call__(self, graph: Any, examples: Any, **options: Any) -> Any:
        self.graphs += 1
        return self.real(graph, examples, **options)


@dataclass
class Recorded:
    """What was recorded: the number of operators, and what ran ``at_once`` instead: names of operators
    (front lazy-mode), reasons of regions (front lazy)."""

    operators: int = 0
    at_once: set[str] = field(default_factory=set)

    @property
    def share(self) -> str:
        """ "recorded" (all that computes), "partly", "at_once", or "nothing" (no operator computed)."""
        if self.operators:
            return "partly" if self.at_once else "recorded"
        return "at_once" if self.at_once else "nothing"


@dataclass
class Front:
    """Runs functions by the way ``name``. ``settings`` are those of torch.compile."""

    name: str
    backend: CountingBackend
    settings: dict[str, Any]
    series: Series
    recorded: Recorded = field(default_factory=Recorded)
    _inputs_recorded: int = 0  # operators that are none of the sample's

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What to call in place of ``function``."""
        if self.name == "lazy-mode":
            return function
        return torch.compile(
            lambda *args, **kwargs: function(*args, **kwargs),
            backend=self.backend,
            options={"lazy": True} if self.name == "lazy" else None,
            **self.settings,
        )

    def given(self, flat: list[Any]) -> list[Any]:
        """What a sample's inputs are in this series; to be called in ``run``."""
        return [self._waiting(x) for x in flat] if self.series.waiting else flat

    def _waiting(self, x: Any) -> Any:
        """``x``, computed by recorded code where that gives it the same strides."""
        if not isinstance(x, torch.Tensor) or x.layout is not torch.strided:
            return x
        y = x.detach()
        y = y.clone() if y.dim() else y.reshape(1).clone().reshape(())  # a number would be computed
        if type(y) is torch.Tensor or y.stride() != x.stride():
            return x
        self._inputs_recorded += 1
        return y.requires_grad_(x.requires_grad)

    @contextmanager
    def run(self) -> Iterator[None]:
        """Around the calls of one sample: when it ends, nothing waits any more."""
        if self.name == "compile":
            yield
            return
        import lazyc

        before, self._inputs_recorded = lazyc.metrics.snapshot(), 0
        if self.name == "lazy":
            yield
        else:
            with _RunAtOnce(self.recorded.at_once), lazyc.lazy():
                yield
        lazyc.mark_step()
        after = lazyc.metrics.snapshot()
        for count in ("operators_flushed", "operators_never_computed"):
            self.recorded.operators += after[count] - before[count]
        self.recorded.operators -= self._inputs_recorded
        if self.name == "lazy":
            self.recorded.at_once |= _reasons(after) - _reasons(before)


def _reasons(snapshot: dict[str, Any]) -> set[str]:
    return {row["reason"] for row in snapshot["regions_not_lazy"]}


class _RunAtOnce(TorchDispatchMode):
    """Outside ``lazyc.lazy()``: sees what that does not record. Views and tensors made from nothing are
    not listed: there is no value to wait for."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self._names = names

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        takes = any(isinstance(x, torch.Tensor) for x in tree_leaves((args, kwargs)))
        keeps_argument = func is torch.ops.aten._lazy_clone.default  # done by the Recorder
        if takes and not func.is_view and not keeps_argument:
            self._names.add(str(func))
        return func(*args, **(kwargs or {}))
