"""Why recording stops: what cannot wait, and the user's line that brought it about."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import TypeAlias

import torch

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import TensorType

_OWN_FOLDERS = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep
    for file in (torch.__file__, os.path.dirname(__file__))
)


def barrier(graph: Graph) -> str:
    """Why a region cannot wait, in words; "" for one that may be recorded and run later.

    A region that waits must give the same results whenever it runs: it draws no random numbers, has
    no effects, writes to none of its arguments, and shares no memory with them.
    """
    if graph.mutations:
        return "it writes to its arguments"
    for node in graph.nodes:
        if node.op == "seed" or (isinstance(node.attrs, A.EagerAttrs) and node.attrs.serial >= 0):
            return "it draws random numbers or has effects"
    for output in graph.outputs:
        if not isinstance(output.value, Node) or not isinstance(output.value.type, TensorType):
            return "it returns what is no tensor"
        if output.alias_of is not None:
            return "its results share memory with its arguments"
        if output.value.tensor.device != "cpu":
            return f"its results are on {output.value.tensor.device}"
    sizes = {s.input for s in graph.symbols if s.dim is None}
    for node in graph.inputs:
        if not isinstance(node.type, TensorType) and node.attrs.index not in sizes:
            return "it takes what is no tensor"
    return "" if graph.outputs else "it returns nothing"


Place: TypeAlias = tuple[str, int]


def user_place(up: int = 1) -> Place | None:
    """File and line of the innermost frame outside torch and lazyc; None when there is none. ``up``: so many
    frames are known to be lazyc's, this one among them."""
    frame = sys._getframe(up)
    while frame is not None:
        file = frame.f_code.co_filename
        if _is_of_user(file):
            return file, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None


@lru_cache(maxsize=4096)
def _is_of_user(file: str) -> bool:
    return not file.startswith((*_OWN_FOLDERS, "<"))


def as_line(place: Place | None) -> str:
    """As reports print it: "model.py:12"; "" for None."""
    return "" if place is None else f"{_file_name(place[0])}:{place[1]}"


@lru_cache(maxsize=4096)
def _file_name(path: str) -> str:
    return os.path.basename(path)
