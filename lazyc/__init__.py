"""lazyc: a deep-learning compiler for PyTorch.

    torch.compile(model, backend="lazyc")

``lazyc.metrics`` counts what happened: ``report()`` as text, ``snapshot()`` as a dict,
``prometheus()`` as Prometheus text, ``reset()``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lazyc.version import VERSION as __version__

if TYPE_CHECKING:
    from lazyc.report.metrics import Metrics

    metrics: Metrics

__all__ = ["__version__", "metrics"]


def __getattr__(name: str) -> Any:
    # Imported on first use: ``lazyc env`` must work where torch does not.
    if name == "metrics":
        from lazyc.backend import METRICS

        return METRICS
    raise AttributeError(f"module 'lazyc' has no attribute {name!r}")
