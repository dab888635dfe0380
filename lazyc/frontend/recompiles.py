"""Why Dynamo captured a function again: its failed guard, as what changed and what to do about it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.utils import get_metrics_context
from torch._guards import CompileContext

from lazyc.frontend.fx_types import user_line


@dataclass(frozen=True, slots=True)
class Recompile:
    """The ``count``-th compilation again of one function, at the user's ``line``.

    ``changed`` says what differs from the compilation before, ``fix`` what would avoid it ("" where
    nothing general is known). ``started``: when Dynamo began with it (``time.time``).
    ``is_of_shape``: what changed is the shape or the layout of a tensor.
    """

    line: str
    count: int
    changed: str
    fix: str
    started: float
    is_of_shape: bool


def recompile(gm: torch.fx.GraphModule) -> Recompile | None:
    """What the compilation that is going on repeats; None for the first one of a function."""
    identity = CompileContext.current_compile_id()
    count = getattr(identity, "frame_compile_id", None) or 0
    context = get_metrics_context()
    # Dynamo has no public way to ask; without these attributes there is no report.
    reason = getattr(context, "_metrics", {}).get("recompile_reason")
    if not count or not reason:
        return None
    changed, fix = explain(str(reason))
    started = getattr(context, "_start_time_ns", 0) / 1e9 or time.time()
    of_shape = re.search(_OF_SHAPE, str(reason).splitlines()[0]) is not None
    return Recompile(_line(gm, str(reason)), count, changed, fix, started, of_shape)


def _line(gm: torch.fx.GraphModule, reason: str) -> str:
    """Where a guard on a value comes from, else the first line of the graph."""
    at_guard = user_line(reason)
    if at_guard:
        return at_guard
    traces = (node.meta.get("stack_trace") for node in gm.graph.nodes if node.op != "placeholder")
    return next((line for line in map(user_line, traces) if line), "")


def explain(reason: str) -> tuple[str, str]:
    """(what changed, what to do about it) of a reason as Dynamo words it."""
    guard, _, code = re.sub(r"^\d+/\d+(_\d+)?: ", "", reason.splitlines()[0]).partition("  # ")
    guard = guard.strip()
    for pattern, words in _WORDS:
        found = re.search(pattern, guard)
        if found is None:
            continue
        changed, fix = words(found)
        read = re.search(r"\.(item|tolist)\(\)", code)
        if words is _constant and read:
            at = user_line(reason)
            changed = re.sub(r"^___stack\d+", f"what {read[0]} gave", changed)
            fix = (
                f"leave out {read[0]}{at and f' at {at}'}: keep it a tensor, or set"
                " torch._dynamo.config.capture_scalar_outputs = True"
            )
        return changed, fix
    return guard, ""


def _size(m: re.Match[str]) -> tuple[str, str]:
    name, dim, old, new = m.groups()
    fix = (
        f"torch._dynamo.mark_dynamic({name}, {dim}) or lazyc.mark_dim({name}, {dim}, 'bucket') before"
        " the call, or torch.compile(dynamic=True)"
    )
    return f"{name}: size of dim {dim}, {old} -> {new}", fix


def _stride(m: re.Match[str]) -> tuple[str, str]:
    name, dim, old, new = m.groups()
    return f"{name}: stride of dim {dim}, {old} -> {new}", f"pass {name}.contiguous()"


def _rank(m: re.Match[str]) -> tuple[str, str]:
    name, old, new = m.groups()
    return f"{name}: number of dims, {old} -> {new}", f"give {name} the same number of dims"


def _dtype(m: re.Match[str]) -> tuple[str, str]:
    name, old, new = m.groups()
    return f"{name}: dtype, {old} -> {new}", f"cast {name} to one dtype before the call"


def _requires_grad(m: re.Match[str]) -> tuple[str, str]:
    name, old = m.groups()
    before, now = ("with", "without") if old == "1" else ("without", "with")
    return f"{name}: {before} -> {now} requires_grad", "keep training and inference calls apart"


def _state(m: re.Match[str]) -> tuple[str, str]:
    what = m[1].strip()
    return f"global state: {what}", f"always call it under the same {what.replace('_', ' ')}"


def _constant(m: re.Match[str]) -> tuple[str, str]:
    name, value = m.groups()
    fix = f"pass {name} as a tensor, or compile one function for each value"
    if re.fullmatch(r"-?\d+", value):
        fix = f"torch.compile(dynamic=True), or pass {name} as a tensor"
    return f"{name}: no longer {value}", fix


def _type(m: re.Match[str]) -> tuple[str, str]:
    name, was = m.groups()
    return f"{name}: no longer a {was.split('.')[-1]}", f"pass {name} as one type"


_OF_SHAPE = r"(size|stride|rank) mismatch|\.(size|stride)\(\)"
_TENSOR = r"tensor '(.+?)' "
_WORDS: tuple[tuple[str, Callable[[Any], tuple[str, str]]], ...] = (
    (_TENSOR + r"size mismatch at index (\d+)\. expected (\d+), actual (\d+)", _size),
    (_TENSOR + r"stride mismatch at index (\d+)\. expected (\d+), actual (\d+)", _stride),
    (_TENSOR + r"rank mismatch\. expected (\d+), actual (\d+)", _rank),
    (_TENSOR + r"dtype mismatch\. expected (\w+), actual (\w+)", _dtype),
    (_TENSOR + r"requires_grad mismatch\. expected requires_grad=(\d)", _requires_grad),
    (r"GLOBAL_STATE changed: (.+)", _state),
    (r"^___check_type_id\((.+), \d+\), type=<class '(.+)'>", _type),
    (r"^(.+?) == (.+)$", _constant),
)
