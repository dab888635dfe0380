"""The passes over the Graph, in order. Each is a function Graph -> Graph in a file of its own."""

from __future__ import annotations

from collections.abc import Container
from functools import partial

from lazyc.codegen.product_costs import ProductCosts
from lazyc.config import AttentionKernel
from lazyc.ir.types import DType
from lazyc.passes.attention import attention
from lazyc.passes.attention_sinks import attention_sinks
from lazyc.passes.canonicalize import canonicalize
from lazyc.passes.convolution import lower_convolutions
from lazyc.passes.convolutions_as_loops import convolutions_as_loops
from lazyc.passes.fold_norm import fold_norm
from lazyc.passes.half_products import half_products
from lazyc.passes.manager import Pass
from lazyc.passes.matrix_operands import copy_matrix_operands
from lazyc.passes.padding import pad_products
from lazyc.passes.products_as_loops import products_as_loops
from lazyc.passes.score_sums import score_sums
from lazyc.passes.split_batches import split_batches
from lazyc.passes.split_products import split_products
from lazyc.passes.split_reduction import split_reductions


def pipeline(
    keeps: bool = True,
    has_products: bool = False,
    costs: ProductCosts | None = None,
    disabled: Container[str] = (),
    attend: AttentionKernel = "auto",
    packed: Container[DType] = (),
) -> tuple[Pass, ...]:
    """The passes, without those ``disabled`` (of ``config.OPTIONAL_PASSES``).

    ``keeps``: what is made of weights alone is kept between calls. ``has_products``:
    matrix products are kernels of the target, and no calls of a library. ``attend``: how attention is to be
    computed. ``costs`` are those of its products; without them none is padded. ``packed`` as in
    ``half_products``.
    """
    attending = partial(attention, mode=attend)
    operands = partial(copy_matrix_operands, keeps=keeps)
    passes = (
        Pass("canonicalize", canonicalize),
        *((Pass("fold_norm", fold_norm),) if keeps else ()),
        *_convolutions(keeps, has_products),
        Pass("attention_sinks", attention_sinks),
        Pass("split_batches", split_batches),
        *(
            (
                Pass("score_sums", partial(score_sums, has_products=True)),
                Pass("attention", attending),
            )
            if has_products
            else ()
        ),
        *(
            ()
            if costs is None
            else (Pass("padding", partial(pad_products, costs=costs, keeps=keeps)),)
        ),
        *((Pass("products_as_loops", products_as_loops),) if has_products else ()),
        *_splits(has_products, costs),
        *(() if has_products else (Pass("score_sums", score_sums),)),
        Pass("split_reductions", split_reductions),
        *(
            ()
            if has_products
            else (
                Pass("half_products", partial(half_products, attend=attend, packed=packed)),
                Pass("copy_matrix_operands", operands),
            )
        ),
    )
    return tuple(p for p in passes if p.name not in disabled)


def _splits(has_products: bool, costs: ProductCosts | None) -> tuple[Pass, ...]:
    if not has_products or costs is None:
        return ()
    return (Pass("split_products", partial(split_products, costs=costs)),)


def _convolutions(keeps: bool, has_products: bool) -> tuple[Pass, ...]:
    if has_products:
        return (Pass("lower_convolutions", partial(convolutions_as_loops, keeps=keeps)),)
    return (Pass("lower_convolutions", lower_convolutions),) if keeps else ()
