"""A Dynamo backend "lazyc_interp": import, verify, print and parse each graph, then interpret it.

What it runs is the frontend alone, with torch's own arithmetic, so a difference from eager is a bug
of a lowering or of the importer. With LAZYC_EAGER_LOG set, each eager node adds a line to that file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch._dynamo import register_backend

from lazyc.frontend.autograd import AotBackend, Boxed, GraphKind, Part, run_in_eager
from lazyc.frontend.fx_import import Unsupported
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph
from lazyc.ir.interp import run_graph
from lazyc.ir.printer import print_graph
from lazyc.ir.verify import verify_graph


def eager_reasons(graph: Graph) -> list[tuple[str, str]]:
    """The ops of a graph that were not lowered, with the reasons."""
    return [
        (n.attrs.target, n.attrs.reason) for n in graph.nodes if isinstance(n.attrs, A.EagerAttrs)
    ]


def _log(kind: str, lines: list[str]) -> None:
    path = os.environ.get("LAZYC_EAGER_LOG")
    if path:
        with open(path, "a") as file:
            file.writelines(f"{os.getpid()}\t{kind}\t{line}\n" for line in lines)


def compile_graph(graph: Graph, gm: torch.fx.GraphModule, part: Part) -> Boxed:
    verify_graph(graph)
    print_graph(graph)
    reasons = eager_reasons(graph)
    _log(part.kind, [f"{target}\t{reason}" for target, reason in reasons] or ["-\tlowered"])

    def call(args: list[Any]) -> Sequence[Any]:
        return run_graph(graph, args)

    return call


def import_failed(error: Exception, gm: torch.fx.GraphModule, kind: GraphKind) -> Boxed:
    if isinstance(error, Unsupported):
        _log(kind, [f"unsupported\t{error}"])
        return run_in_eager(gm)
    raise error


lazyc_interp = register_backend(AotBackend(compile_graph, import_failed), name="lazyc_interp")
