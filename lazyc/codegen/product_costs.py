"""What matrix products cost on a target, as far as the places of their operands' rows change it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lazyc.ir.types import DType


@dataclass(frozen=True, slots=True)
class ProductCosts:
    """A target's numbers for ``passes.padding`` and ``passes.split_products``.

    ``half_flops``, ``single_flops``: operations a second in products of f16 and bf16 (int8: twice as
    many), and of f32. ``loads_per_second``: loads that all lanes of the target together issue in a
    second, each of up to ``vector_bytes``; infinite where the width of loads makes no difference. ``bytes_per_second``: of
    memory. ``kernel_seconds``: what one more kernel costs, besides its traffic. ``tile``: rows and
    columns of the tiles that a product is computed in; a factor is read again for each tile of the
    other one. ``programs``: tiles that keep the target busy. ``least``: the size below which a dim makes no tile. ``multiple``: what sizes are rounded
    up to where that adds little.
    """

    half_flops: float
    single_flops: float
    bytes_per_second: float
    loads_per_second: float = math.inf
    vector_bytes: int = 16
    kernel_seconds: float = 0.0
    tile: int = 128
    programs: int = 96
    least: int = 16
    multiple: int = 64

    def flops(self, dtype: DType) -> float | None:
        """Operations a second in products of a type; None for one whose products are left alone."""
        if dtype in (DType.F16, DType.BF16):
            return self.half_flops
        if dtype is DType.I8:
            return 2 * self.half_flops
        return self.single_flops if dtype is DType.F32 else None
