"""The passes over the Graph, in order. Each is a function Graph -> Graph in a file of its own."""

from __future__ import annotations

from lazyc.passes.canonicalize import canonicalize
from lazyc.passes.manager import Pass
from lazyc.passes.split_reduction import split_reductions

PIPELINE: tuple[Pass, ...] = (
    Pass("canonicalize", canonicalize),
    Pass("split_reductions", split_reductions),
)
