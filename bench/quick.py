"""The main table: every workload under eager, its peers and lazyc, with targets, losers first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bench import first_call, process

# Targets in seconds for the first call of GPT-2, and in microseconds above backend="eager".
COLD_TARGET = 4.5
WARM_TARGET = 3.0
OVERHEAD_TARGET = 8.0
# Relative error that is no more than rounding, also where eager is exact by luck.
ROUNDING = 1e-6
# Where lazyc fails it must say so: eager under its name would be measured otherwise.
STRICT = {"LAZYC_STRICT": "1"}


@dataclass(frozen=True)
class Line:
    """One workload: its target and the rows (``bench.compare.Row`` as dicts) of its backends."""

    name: str
    title: str
    target: float
    rows: tuple[dict[str, Any], ...]

    def row(self, backend: str) -> dict[str, Any] | None:
        """The figures of a backend; None where it was not asked for or failed."""
        found = next((r for r in self.rows if r["backend"] == backend), None)
        return None if found is None or found["failure"] else found

    def ratio(self, backend: str, of: str = "minimum") -> float:
        """How many times faster than eager; 0 where one of the two is missing."""
        one, eager = self.row(backend), self.row("eager")
        return eager[of] / one[of] if one and eager else 0.0

    @property
    def passed(self) -> bool:
        """Whether lazyc reached the target, with results as good as eager's (at most twice its error
        against float64)."""
        ours, eager = self.row("lazyc"), self.row("eager")
        if ours is None or eager is None or self.ratio("lazyc") < self.target:
            return False
        return ours["error"] <= 2 * eager["error"] + ROUNDING


@dataclass(frozen=True)
class Verdict:
    """A figure against its target; ``passed`` is what the exit code of the benchmark says."""

    title: str
    figure: str
    target: str
    passed: bool


def run_workloads(
    workloads: Sequence[tuple[str, str, float]], backends: Sequence[str], rounds: int
) -> list[Line]:
    """Each workload (name, title, target) in a pinned process of its own, with empty caches.

    Says on standard error what each gave, as soon as it is known.
    """
    lines = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")
        for name, title, target in workloads:
            progress.update(task, description=f"{title}: {', '.join(backends)}")
            args = [name, "--backends", ",".join(backends), "--rounds", str(rounds)]
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                environment = process.cache_environment(folder) | STRICT
                rows = process.run_child("bench.compare", args, environment)
            lines.append(Line(name, title, target, tuple(rows)))
            progress.console.print(_summary(lines[-1], backends))
    return lines


def _summary(line: Line, backends: Sequence[str]) -> str:
    found = [(name, *_cells(line, name)) for name in backends]
    return f"{line.title}: " + ", ".join(" ".join(filter(None, cells)) for cells in found)


def run_overhead(backends: Sequence[str], rounds: int) -> dict[str, float]:
    """Microseconds a call of the one-op graph; ``dynamo`` is always among the backends."""
    names = list(dict.fromkeys(["eager", "dynamo", *backends]))
    return process.run_child(
        "bench.overhead", ["--backends", ",".join(names), "--rounds", str(rounds)]
    )


def _order(line: Line) -> float:
    return line.ratio("lazyc") / line.target


def _cells(line: Line, backend: str) -> list[str]:
    asked = next((r for r in line.rows if r["backend"] == backend), None)
    if asked is None or asked["failure"]:
        return ["failed" if asked else "", ""]
    time = f"{1e3 * asked['minimum']:.2f} / {1e3 * asked['median']:.2f}"
    return [time, "" if backend == "eager" else f"{line.ratio(backend):.2f}x"]


def speed_table(lines: Sequence[Line], backends: Sequence[str]) -> Table:
    """Times and speed-ups, those farthest below their target first."""
    table = Table(title="ms, least / median of interleaved rounds; speed-up over eager (least)")
    table.add_column("workload")
    for name in backends:
        table.add_column(name, justify="right")
        if name != "eager":
            table.add_column("speed-up", justify="right")
    if "lazyc" in backends:
        table.add_column("target", justify="right")
        table.add_column("")
    for line in sorted(lines, key=_order):
        cells = [line.title]
        for name in backends:
            cells += _cells(line, name)[: 1 if name == "eager" else 2]
        if "lazyc" in backends:
            cells += [f"{line.target:g}x", _mark(line.passed)]
        table.add_row(*cells)
    return table


def detail_table(lines: Sequence[Line], backends: Sequence[str]) -> Table:
    """Errors against float64, first calls and memory of the same runs."""
    table = Table(title="error: rms relative to a float64 run; memory: peak added to the process")
    for column in ("workload", "backend"):
        table.add_column(column)
    for column in ("error", "error / eager's", "first call, s", "memory, MiB", "eager steps"):
        table.add_column(column, justify="right")
    for line in sorted(lines, key=_order):
        eager = line.row("eager")
        for name in backends:
            row = line.row(name)
            if row is None:
                continue
            ratio = row["error"] / eager["error"] if eager and eager["error"] else 0.0
            table.add_row(
                line.title,
                name,
                f"{row['error']:.1e}",
                f"{ratio:.2f}",
                f"{row['first_call']:.2f}",
                "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}",
                str(row["fallbacks"]) if name == "lazyc" else "",
            )
    return table


def call_table(calls: Sequence[first_call.FirstCall]) -> Table:
    """First calls of GPT-2 in fresh processes."""
    table = Table(title="GPT-2 124M, first call, s")
    for column in ("backend", "cold cache", "warm cache"):
        table.add_column(column, justify="left" if column == "backend" else "right")
    for call in calls:
        table.add_row(call.backend, f"{call.cold:.2f}", f"{call.warm:.2f}")
    return table


def overhead_table(times: dict[str, float]) -> Table:
    """One-op graphs, and what each takes above Dynamo alone (``torch.compile(backend="eager")``)."""
    table = Table(title="us a call of a one-op graph")
    for column in ("backend", "us", "above dynamo"):
        table.add_column(column, justify="left" if column == "backend" else "right")
    for name, time in times.items():
        above = "" if name in ("eager", "dynamo") else f"{time - times['dynamo']:+.1f}"
        table.add_row(name, f"{time:.1f}", above)
    return table


def verdicts(
    lines: Sequence[Line], calls: Sequence[first_call.FirstCall], times: dict[str, float]
) -> list[Verdict]:
    """Every figure of lazyc beside its target, misses first."""
    found = [
        Verdict(
            line.title,
            f"{line.ratio('lazyc'):.2f}x",
            f">= {line.target:g}x",
            line.passed,
        )
        for line in sorted(lines, key=_order)
    ]
    for call in (c for c in calls if c.backend == "lazyc"):
        for what, value, limit in (
            ("cold", call.cold, COLD_TARGET),
            ("warm", call.warm, WARM_TARGET),
        ):
            title = f"GPT-2 first call, {what} cache"
            found.append(Verdict(title, f"{value:.2f} s", f"<= {limit:g} s", value <= limit))
    if "lazyc" in times:
        above = times["lazyc"] - times["dynamo"]
        found.append(
            Verdict(
                'one-op graph, above backend="eager"',
                f"{above:.1f} us",
                f"<= {OVERHEAD_TARGET:g} us",
                above <= OVERHEAD_TARGET,
            )
        )
    return sorted(found, key=lambda v: v.passed)


def verdict_table(found: Sequence[Verdict]) -> Table:
    table = Table(title="lazyc against its targets")
    table.add_column("")
    for column in ("figure", "target", ""):
        table.add_column(column, justify="right")
    for verdict in found:
        table.add_row(verdict.title, verdict.figure, verdict.target, _mark(verdict.passed))
    return table


def failures(lines: Sequence[Line]) -> list[Text]:
    """A line of text for each backend that could not run a workload."""
    return [
        Text(f"{line.title}, {row['backend']}: {row['failure']}", style="red")
        for line in lines
        for row in line.rows
        if row["failure"]
    ]


def _mark(passed: bool) -> str:
    return "[green]pass[/green]" if passed else "[red]MISS[/red]"


def write_json(
    path: Path,
    lines: Sequence[Line],
    calls: Sequence[first_call.FirstCall],
    times: dict[str, float],
) -> None:
    """All figures as one JSON object, seconds and bytes; overhead in microseconds."""
    found = {
        "workloads": [asdict(line) for line in lines],
        "first_call": [asdict(call) for call in calls],
        "overhead_us": times,
    }
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
