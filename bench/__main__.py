"""Command line of the benchmark suite: ``python -m bench --help`` lists the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)

Backends = Annotated[
    str, typer.Option("--backends", help="Comma-separated; eager is always measured.")
]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds of timing.")]
Models = Annotated[
    list[str] | None, typer.Option("--model", help="Only this workload (may be repeated).")
]
Json = Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")]
Attempts = Annotated[int, typer.Option("--attempts", min=1, help="Pairs of fresh processes.")]

DEFAULT_BACKENDS = "eager,inductor,lazyc"


def _console() -> Console:
    """Wide enough for the tables where the output is not a terminal."""
    return Console() if Console().is_terminal else Console(width=132)


def _names(backends: str) -> list[str]:
    return list(dict.fromkeys(["eager", *(b.strip() for b in backends.split(",") if b.strip())]))


@app.command()
def quick(
    model: Models = None,
    backends: Backends = DEFAULT_BACKENDS,
    rounds: Rounds = 20,
    json: Json = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Also write the tables to this file.")
    ] = None,
    calls: Annotated[
        bool, typer.Option(help="Also measure first calls and the overhead of a call.")
    ] = True,
) -> None:
    """All workloads beside their targets, losers first. Exit code 1 when a target is missed."""
    from bench import first_call, models
    from bench import markdown as md
    from bench import quick as q

    names = _names(backends)
    try:
        chosen = [models.workload(n) for n in model] if model else list(models.WORKLOADS)
    except KeyError as error:
        raise typer.BadParameter(error.args[0]) from None
    lines = q.run_workloads([(w.name, w.title, w.target) for w in chosen], names, rounds)
    first = first_call.measure_all(names, attempts=5, budget=60) if calls else []
    times = q.run_overhead(names, rounds) if calls else {}
    console = _console()
    console.print(q.speed_table(lines, names), q.detail_table(lines, names))
    if calls:
        console.print(q.call_table(first), q.overhead_table(times))
    console.print(*q.failures(lines), sep="\n")
    if json is not None:
        q.write_json(json, lines, first, times)
    found = q.verdicts(lines, first, times) if "lazyc" in names else []
    if markdown is not None:
        markdown.write_text(md.page(lines, names, found, first, times), encoding="utf-8")
    if found:
        console.print(q.verdict_table(found))
        raise typer.Exit(0 if all(v.passed for v in found) else 1)


@app.command("first-call")
def first_call_command(backends: Backends = "inductor,lazyc", attempts: Attempts = 3) -> None:
    """Seconds to the first result of GPT-2 in fresh processes, cold and warm cache."""
    from bench import first_call
    from bench import quick as q

    found = first_call.measure_all(_names(backends), attempts)
    _console().print(q.call_table(found))


@app.command()
def overhead(backends: Backends = DEFAULT_BACKENDS, rounds: Rounds = 20) -> None:
    """Microseconds a call of a compiled one-op graph costs."""
    from bench import quick as q

    _console().print(q.overhead_table(q.run_overhead(_names(backends), rounds)))


@app.command("record-overhead")
def record_overhead(rounds: Rounds = 50) -> None:
    """Microseconds that recording an operator costs under lazyc.lazy()."""
    from bench import record_overhead as recording

    times = recording.measure(rounds)
    _console().print(recording.table(times))
    raise typer.Exit(0 if max(times.values()) <= recording.TARGET else 1)


@app.command("break-overhead")
def break_overhead(rounds: Rounds = 300) -> None:
    """Microseconds a graph break costs: of Dynamo alone, and under lazyc with the option lazy."""
    from bench import process

    process.ensure_pinned()
    from bench import break_overhead as breaks

    _console().print(breaks.table(breaks.measure(rounds)))


@app.command("new-shape")
def new_shape() -> None:
    """Seconds that a call with a new shape takes, for each value of the option on_new_shape."""
    from bench import process

    process.ensure_pinned()
    from bench import new_shape as shapes

    _console().print(shapes.table([shapes.measure(policy) for policy in shapes.POLICIES]))


@app.command("lazy-training")
def lazy_training(
    steps: Annotated[int, typer.Option("--steps", min=10, help="Training steps.")] = 50,
) -> None:
    """Training of a small GPT in eager code, as it is and under lazyc.lazy(), a step of each in turn."""
    from bench import process

    process.ensure_pinned()
    from bench import lazy_training as training

    console = _console()
    runs = training.measure(steps, console.print)
    console.print(training.table(*runs))
    raise typer.Exit(0 if training.passed(*runs) else 1)


@app.command()
def profiler(rounds: Rounds = 200) -> None:
    """Microseconds a call of a compiled program costs with lazyc.profiler off and on."""
    from bench import profiler as p

    for name, time in p.measure(rounds).items():
        _console().print(f"{name:10} {time:6.2f} us a call")


@app.command()
def sparse(
    case: Annotated[
        list[str] | None, typer.Option("--case", help="Only cases with this in their name.")
    ] = None,
    rounds: Rounds = 100,
    cpu_time: Annotated[
        bool,
        typer.Option("--cpu-time", help="One thread, by its CPU time: beside other programs."),
    ] = False,
    grid: Annotated[
        bool,
        typer.Option(
            "--grid", help="2:4 weights of many sizes, whatever lazyc would choose: minutes."
        ),
    ] = False,
) -> None:
    """2:4 and block-sparse weights beside dense ones. Exit code 1 when a target is missed."""
    from bench import process

    process.ensure_pinned()
    import torch

    from bench import sparse as s

    if cpu_time:
        torch.set_num_threads(1)

    if grid:
        _console().print(s.grid_table(s.grid(min(rounds, 25))))
        return
    chosen = [c for c in s.CASES if not case or any(part in c.name for part in case)]
    lines = [s.measure(c, rounds, cpu_time) for c in chosen]
    _console().print(s.table(lines))
    raise typer.Exit(0 if all(x.passed for x in lines) else 1)


@app.command("biased-attention")
def biased_attention(
    longest: Annotated[int, typer.Option(help="Most positions.")] = 2048,
    dtype: Annotated[str, typer.Option(help="A name of torch's; the device's if none.")] = "",
) -> None:
    """Memory and time of attention with a learned bias, forward and backward."""
    from bench import biased_attention as biased

    console = _console()
    lengths = [n for n in biased.LENGTHS if n <= longest]
    with console.status("") as status:
        found = biased.measure_all(lengths, dtype, status.update)
    console.print(biased.table(found, lengths))


@app.command("nanogpt-ladder")
def nanogpt_ladder(
    length: Annotated[int, typer.Option("--length", min=16, help="Positions of a step.")] = 512,
    layers: Annotated[
        int, typer.Option("--layers", min=0, help="Blocks of the model; 0: attention alone.")
    ] = 4,
    longest: Annotated[
        int, typer.Option("--longest", min=512, help="Most positions of attention alone.")
    ] = 4096,
    dtype: Annotated[
        Literal["", "float32", "float64", "bfloat16", "float16"],
        typer.Option("--dtype", help="Of both; if not given, that of the device."),
    ] = "",
) -> None:
    """Training steps of nanoGPT with one kernel of attention after another, and attention's memory."""
    from bench import nanogpt_ladder as ladder

    console = _console()
    lengths = [n for n in ladder.LENGTHS if n <= longest]
    with console.status("starting") as status:
        steps, attention = ladder.measure_all(length, layers, lengths, dtype, status.update)
    if steps:
        title = f"nanoGPT, {layers} blocks, {length} positions: a training step"
        console.print(ladder.step_table(steps, title))
    console.print(ladder.memory_table(attention, lengths))


@app.command()
def products(rounds: Rounds = 20) -> None:
    """Matrix products by torch's library and by generated kernels."""
    from bench import process

    process.ensure_pinned()
    from bench import products as p

    _console().print(p.table(p.measure(rounds)))


@app.command()
def padding(rounds: Rounds = 20) -> None:
    """What rows at other distances are worth to matrix products of the CPU."""
    from bench import padding as p

    _console().print(p.table(p.measure(rounds)))


if __name__ == "__main__":
    app()
