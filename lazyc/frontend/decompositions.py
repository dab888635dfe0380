"""Which ATen ops AOTAutograd takes apart while it traces, and which reach the lowerings whole.

torch's own table decomposes every op that it can, except those that lazyc lowers itself, and those
whose pieces run worse in eager than the op does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._decomp import global_decomposition_table

from lazyc.frontend.lowering import lowering_table

# Kept whole, so that they run as one eager call.
_EXCLUDED_PACKETS = frozenset(
    {
        # Written with in-place copies, which a functional graph must not have.
        "aten.complex",
        "aten.ormqr",
        "aten.polar",
        # Written with a branch on the data.
        "aten.bucketize",
        # Special functions that torch's decomposition merely renames (to prims that run slower).
        "aten.digamma",
        "aten.erfinv",
        "aten.frexp",
        "aten.i0",
        "aten.igamma",
        "aten.igammac",
        "aten.as_strided_scatter",
        "aten.special_bessel_j0",
        "aten.special_bessel_j1",
        "aten.special_erfcx",
        "aten.special_i0e",
        "aten.special_i1",
        "aten.special_i1e",
        "aten.special_ndtri",
        "aten.special_spherical_bessel_j0",
        "aten.special_zeta",
        # Sequence models and linear algebra: one tuned library call each.
        "aten.lstm",
        "aten.gru",
        "aten.rnn_tanh",
        "aten.rnn_relu",
        "aten.linalg_lu_factor_ex",
    }
)


@cache
def decomposition_table() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """The table for AOTAutograd: operator overload -> function in terms of smaller ops."""
    lowered = lowering_table()
    return {
        op: function
        for op, function in global_decomposition_table["post_autograd"].items()
        if isinstance(op, torch._ops.OpOverload)
        and str(op) not in lowered
        and str(op).rpartition(".")[0] not in _EXCLUDED_PACKETS
    }
