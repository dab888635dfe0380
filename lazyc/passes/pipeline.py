"""The passes over the Graph, in order. Each is a function Graph -> Graph in a file of its own."""

from __future__ import annotations

from lazyc.passes.attention import Mode, Report, attention
from lazyc.passes.canonicalize import canonicalize
from lazyc.passes.convolution import lower_convolutions
from lazyc.passes.fold_norm import fold_norm
from lazyc.passes.manager import Pass
from lazyc.passes.matrix_operands import copy_matrix_operands
from lazyc.passes.products_as_loops import products_as_loops
from lazyc.passes.split_reduction import split_reductions


def pipeline(
    pack_weights: bool = True,
    has_products: bool = False,
    attend: Mode = "auto",
    report: Report | None = None,
) -> tuple[Pass, ...]:
    """The passes; without ``pack_weights`` nothing made of weights is kept between calls. ``has_products``:
    matrix products are kernels of the target, and no calls of a library; ``attend`` and ``report`` are
    then those of ``attention``."""
    return (
        Pass("canonicalize", canonicalize),
        *(_WEIGHT_PASSES if pack_weights else ()),
        *(_product_passes(attend, report) if has_products else ()),
        Pass("split_reductions", split_reductions),
        *(() if has_products else (Pass("copy_matrix_operands", copy_matrix_operands),)),
    )


def _product_passes(attend: Mode, report: Report | None) -> tuple[Pass, ...]:
    return (
        Pass("attention", lambda graph: attention(graph, attend, report)),
        Pass("products_as_loops", products_as_loops),
    )


_WEIGHT_PASSES = (
    Pass("fold_norm", fold_norm),
    Pass("lower_convolutions", lower_convolutions),
)
