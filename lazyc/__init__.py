"""lazyc: a deep-learning compiler for PyTorch.

    torch.compile(model, backend="lazyc")

``lazyc.metrics`` counts what happened: ``report()`` as text, ``snapshot()`` as a dict,
``prometheus()`` as Prometheus text, ``reset()``. ``lazyc.explain(fn, *args)`` compiles and runs a function
and tells what became of it. ``with lazyc.lazy():`` records what eager code does;
``lazyc.mark_step()`` runs what was recorded, there or with the option ``lazy``. ``lazyc.mark_dim`` says
what becomes of a size that changes. ``lazyc.profiler`` makes timelines, ``lazyc.sparse`` sparse weights.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lazyc.version import VERSION as __version__

if TYPE_CHECKING:
    from lazyc import profiler, sparse
    from lazyc.backend import lazy, mark_step
    from lazyc.explanation import explain
    from lazyc.frontend.shapes import mark_dim
    from lazyc.report.metrics import Metrics

    metrics: Metrics

__all__ = [
    "__version__",
    "explain",
    "lazy",
    "mark_dim",
    "mark_step",
    "metrics",
    "profiler",
    "sparse",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: ``lazyc env`` must work where torch does not.
    value = globals()[name] = _imported(name)
    return value


def _imported(name: str) -> Any:
    if name == "metrics":
        from lazyc.backend import METRICS

        return METRICS
    if name == "explain":
        from lazyc.explanation import explain

        return explain
    if name in ("lazy", "mark_step"):
        from lazyc import backend

        return getattr(backend, name)
    if name == "mark_dim":
        from lazyc.frontend.shapes import mark_dim

        return mark_dim
    if name in ("profiler", "sparse"):
        return importlib.import_module(f"lazyc.{name}")
    raise AttributeError(f"module 'lazyc' has no attribute {name!r}")
