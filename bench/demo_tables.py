"""The tables that the demonstration prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from bench.demo import Outcome


def _table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are figures."""
    table = Table(title=title)
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def neighbour_table(
    sentences: Sequence[str], by_eager: list[int], by_lazyc: list[int], similarity: list[float]
) -> Table:
    """The nearest other sentence of each, by lazyc; the last column says whether eager agrees."""
    table = Table(title="nearest sentences, MiniLM under lazyc")
    for column in ("sentence", "nearest"):
        table.add_column(column)
    table.add_column("cosine", justify="right")
    table.add_column("eager")
    for i, sentence in enumerate(sentences):
        same = "same" if by_eager[i] == by_lazyc[i] else sentences[by_eager[i]]
        table.add_row(sentence, sentences[by_lazyc[i]], f"{similarity[i]:.3f}", same)
    return table


def speed_table(outcomes: Sequence[Outcome]) -> Table:
    table = _table(
        "one call, batch of 12 sentences or 128 tokens (least of interleaved rounds); peak memory added",
        "",
        "eager, ms",
        "lazyc, ms",
        "speed-up",
        "difference",
        "eager, MiB",
        "lazyc, MiB",
    )
    for o in outcomes:
        table.add_row(
            o.title,
            f"{1e3 * o.eager:.1f}",
            f"{1e3 * o.lazyc:.1f}",
            f"{o.eager / o.lazyc:.2f}x",
            f"{o.difference:.1e}",
            _mebibytes(o.eager_bytes),
            _mebibytes(o.lazyc_bytes),
        )
    return table


def compile_table(outcomes: Sequence[Outcome]) -> Table:
    table = _table(
        "the first call: seconds of compiling by stage, and what lazyc made",
        "",
        "first call",
        "Dynamo",
        "AOTAutograd",
        "lazyc passes",
        "codegen",
        "load",
        "kernels made",
        "reused",
        "ops in eager",
    )
    for o in outcomes:
        s = o.split
        seconds = (o.first_call, s.dynamo, s.aot_autograd, s.passes, s.codegen, s.load)
        counts = (s.kernels_made, s.kernels_reused, s.fallbacks)
        table.add_row(o.title, *(f"{x:.2f}" for x in seconds), *map(str, counts))
    return table


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f}"
