"""The figures of ``python -m bench quick`` as Markdown tables, for docs/numbers.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.first_call import FirstCall
from bench.quick import Line, Verdict


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cells(
    line: Line, backends: Sequence[str], cell: Callable[[Line, dict[str, Any]], str]
) -> list[str]:
    """The title, and a cell for each backend; "-" where it failed."""
    rows = [line.row(name) for name in backends]
    return [line.title, *("-" if row is None else cell(line, row) for row in rows)]


def speed(lines: Sequence[Line], backends: Sequence[str], found: Sequence[Verdict]) -> str:
    """Milliseconds (least / median) and speed-ups over eager, with lazyc's targets."""
    targets = {v.title: f"{v.target}, {'met' if v.passed else 'missed'}" for v in found}

    def cell(line: Line, row: dict[str, Any]) -> str:
        name = row["backend"]
        ratio = "" if name == "eager" else f" ({line.ratio(name):.2f}x)"
        return f"{1e3 * row['minimum']:.1f} / {1e3 * row['median']:.1f}{ratio}"

    rows = [[*_cells(x, backends, cell), targets.get(x.title, "")] for x in lines]
    return _table(["ms, least / median", *backends, "target"], rows)


def accuracy(lines: Sequence[Line], backends: Sequence[str]) -> str:
    """Errors against float64 and peak memory of the same runs."""

    def cell(line: Line, row: dict[str, Any]) -> str:
        peak = row["peak_bytes"]
        memory = "" if peak is None else f", {peak / 2**20:.0f} MiB"
        return f"{row['error']:.1e}{memory}"

    rows = [_cells(line, backends, cell) for line in lines]
    return _table(["error, memory added", *backends], rows)


def first_calls(calls: Sequence[FirstCall]) -> str:
    rows = [[c.backend, f"{c.cold:.2f}", f"{c.warm:.2f}"] for c in calls]
    return _table(["GPT-2 first call, s", "cold cache", "warm cache"], rows)


def overhead(times: dict[str, float]) -> str:
    rows = [[name, f"{t:.1f}", f"{t - times['dynamo']:+.1f}"] for name, t in times.items()]
    return _table(["one-op graph, us a call", "", 'above `backend="eager"`'], rows)


def page(
    lines: Sequence[Line],
    backends: Sequence[str],
    found: Sequence[Verdict],
    calls: Sequence[FirstCall],
    times: dict[str, float],
) -> str:
    """All tables that have figures, one after the other."""
    parts = [speed(lines, backends, found), accuracy(lines, backends)]
    if calls:
        parts.append(first_calls(calls))
    if times:
        parts.append(overhead(times))
    return "\n\n".join(parts) + "\n"
