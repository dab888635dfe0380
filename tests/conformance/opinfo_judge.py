"""Whether what a compiled function returned agrees with eager: the judge of the OpInfo sweep.

Values pass when ``torch.testing.assert_close`` (default tolerances) accepts them, or else when the
judge of Inductor's own accuracy checks does (``torch._dynamo.utils.same``): error against a float64
run of eager at most about twice eager's own error.

Half types have so few bits that eager is exact on some samples by luck, above all where the result
is one number. There the error may also be three times eager's largest on neighbouring inputs, which
differ in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch._dynamo.utils import same
from torch.utils._pytree import tree_flatten

What = Literal["out", "input", "grad"]
# (eager's results, float64 results) on neighbouring inputs
Neighbours = Callable[[], Iterable[tuple[Any, Any]]]
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def dense(x: torch.Tensor) -> torch.Tensor:
    """The values without gradient history, as a strided tensor of a type that can be compared."""
    x = x.detach().to_dense() if x.layout is not torch.strided else x.detach()
    return x.to(torch.complex64) if x.dtype is torch.complex32 else x


@dataclass
class Judge:
    """Compares results for samples of ``dtype``; counts how often the float64 run decided."""

    dtype: torch.dtype
    check_strides: bool = False
    float64_verdicts: int = field(default=0)

    def differ(
        self,
        what: What,
        eager: Any,
        compiled: Any,
        reference: Callable[[], Any] | None,
        neighbours: Neighbours = tuple,
    ) -> str:
        """Why the two results differ; "" when they agree.

        ``reference()`` computes the float64 result of eager; None compares only the metadata (for
        ops whose values are random or uninitialised).
        """
        ours, theirs = tree_flatten(compiled)[0], tree_flatten(eager)[0]
        if len(ours) != len(theirs):
            return f"{what}: {len(ours)} leaves, eager {len(theirs)}"
        for i, (expected, found) in enumerate(zip(theirs, ours, strict=True)):
            why = self._leaf(what, i, expected, found, reference, neighbours)
            if why:
                return f"{what}[{i}]{why}"
        return ""

    def _leaf(
        self,
        what: What,
        place: int,
        expected: Any,
        found: Any,
        reference: Callable[[], Any] | None,
        neighbours: Neighbours,
    ) -> str:
        if isinstance(expected, torch.Tensor) != isinstance(found, torch.Tensor):
            tensor = expected if isinstance(expected, torch.Tensor) else found
            # AOTAutograd may return zeros where eager returns no gradient, and the other way round.
            if what == "grad" and isinstance(tensor, torch.Tensor) and not dense(tensor).any():
                return ""
            return f": {type(found).__name__}, eager {type(expected).__name__}"
        if not isinstance(expected, torch.Tensor):
            both_nan = all(isinstance(v, float) and math.isnan(v) for v in (expected, found))
            return "" if expected == found or both_nan else f": {found!r}, eager {expected!r}"[:160]
        why = self._metadata(what, expected, found)
        if why or reference is None:
            return why
        return self._values(place, expected, found, reference, neighbours)

    def _metadata(self, what: What, expected: torch.Tensor, found: torch.Tensor) -> str:
        names = ["dtype", "shape", "device", "layout"] + (
            ["requires_grad"] if what == "out" else []
        )
        for name in names:
            if getattr(expected, name) != getattr(found, name):
                return f".{name}: {getattr(found, name)}, eager {getattr(expected, name)}"
        strided = what == "out" and self.check_strides and expected.layout is torch.strided
        if strided and not torch._prims_common.check_significant_strides(expected, found)[0]:
            return f".stride: {found.stride()}, eager {expected.stride()}"
        return ""

    def _values(
        self,
        place: int,
        expected: torch.Tensor,
        found: torch.Tensor,
        reference: Callable[[], Any],
        neighbours: Neighbours,
    ) -> str:
        try:
            torch.testing.assert_close(found.detach(), expected.detach(), equal_nan=True)
        except AssertionError as difference:
            if expected.is_floating_point() and (
                self._float64_agrees(place, expected, found, reference)
                or self._is_typical(place, found, reference, neighbours)
            ):
                self.float64_verdicts += 1
                return ""
            return ": " + " ".join(str(difference).split())[:200]
        return ""

    def _float64_agrees(
        self, place: int, expected: torch.Tensor, found: torch.Tensor, reference: Callable[[], Any]
    ) -> bool:
        if self.dtype not in FLOAT_DTYPES:
            return False
        try:
            exact = tree_flatten(reference())[0][place]
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return False  # eager has no float64 form of this sample: assert_close has decided
        return exact.dtype == torch.float64 and same(
            dense(expected),
            dense(found),
            dense(exact),
            tol=1e-2 if self.dtype.itemsize < 4 else 1e-4,
            equal_nan=True,
            log_error=lambda *_, **__: None,
        )

    def _is_typical(
        self, place: int, found: torch.Tensor, reference: Callable[[], Any], neighbours: Neighbours
    ) -> bool:
        if self.dtype.itemsize > 2 or self.dtype not in FLOAT_DTYPES:
            return False

        def error(result: torch.Tensor, exact: torch.Tensor) -> float:
            return float((dense(result).double() - dense(exact)).square().mean().sqrt())

        try:
            ours = error(found, tree_flatten(reference())[0][place])
            theirs = [
                error(tree_flatten(eager)[0][place], tree_flatten(exact)[0][place])
                for eager, exact in neighbours()
            ]
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return False
        return ours <= 3 * max(theirs, default=0.0)
