"""What passes chose (layout, padding, kernels of attention), as data: for reports, and for nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lazyc.ir.types import Dim, TensorType


@dataclass(frozen=True, slots=True)
class Decision:
    """One choice: ``what`` was done, at the user's ``line``, and ``why``; ``by`` names the pass.

    ``bytes_copied``: what is written and would not be without it, at each call; ``bytes_kept``: what
    is made once of weights and kept; ``bytes_saved``: what each call no longer reads and writes. None
    where that depends on sizes that change. ``seconds_saved``: of a call, where the pass has a model
    of time, else 0.
    """

    what: str
    why: str
    line: str = ""
    bytes_copied: int | None = 0
    bytes_kept: int | None = 0
    bytes_saved: int | None = 0
    seconds_saved: float = 0.0
    by: str = ""


def signed(decisions: Iterable[Decision], by: str) -> list[Decision]:
    """The decisions with the name of the pass that made them."""
    return [replace(d, by=by) for d in decisions]


def size_of(type: TensorType) -> int | None:
    """Bytes of a dense tensor; None where a size changes."""
    return bytes_of(type.numel, type.dtype.itemsize)


def bytes_of(elements: Dim, itemsize: int) -> int | None:
    return elements * itemsize if isinstance(elements, int) else None
