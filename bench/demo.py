"""The demonstration, ``make demo``: two models in eager and under lazyc, side by side.

A pretrained sentence encoder must find the same nearest sentences; GPT-2 (124M parameters, random
weights) runs inference and training steps. Ends with exit code 1 when results differ, or when lazyc
left a graph to eager because it failed on it.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.process import ensure_pinned

# Rounding differs between any two ways of computing; an error of a method is far above this.
MOST_DIFFERENCE = 1e-4
ROUNDS = 10
SECONDS = 15.0  # of timing a job


@dataclass(frozen=True)
class CompileSplit:
    """Seconds of compilation by who spent them, and what lazyc made; see ``watch_compile``."""

    dynamo: float
    aot_autograd: float
    passes: float
    codegen: float
    load: float
    kernels_made: int
    kernels_reused: int
    fallbacks: int
    bugs: int


@dataclass(frozen=True)
class Outcome:
    """One job in eager and under lazyc: seconds of a call, bytes added, difference of results."""

    title: str
    eager: float
    lazyc: float
    first_call: float
    difference: float
    eager_bytes: int | None
    lazyc_bytes: int | None
    split: CompileSplit

    @property
    def agrees(self) -> bool:
        return self.difference <= MOST_DIFFERENCE and not self.split.bugs


def main() -> int:
    ensure_pinned()
    # After ensure_pinned: OpenMP reads its environment when torch is imported.
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(width=None if sys.stdout.isatty() else 132)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("importing torch and transformers")
        tell = partial(progress.update, task)
        found = run(lambda text: tell(description=text))
    report(console, *found)
    outcomes, same_neighbours = found[0], found[1] == found[2]
    if not all(o.agrees for o in outcomes) or not same_neighbours:
        console.print("[red]Results differ between eager and lazyc.[/red]")
        return 1
    console.print("Results agree.")
    return 0


def run(tell: Callable[[str], None]) -> tuple[list[Outcome], list[int], list[int], list[float]]:
    """All jobs; the outcomes, and the nearest sentences by eager and by lazyc with similarities."""
    import torch

    from bench import models, sentences
    from bench.models import Compile, Step

    tell("loading the sentence encoder")
    encoder, tokens = sentences.load()
    vectors: dict[bool, torch.Tensor] = {}

    def encode(compile: Compile, dtype: torch.dtype) -> Step:
        compiled = compile(encoder)

        def step() -> list[torch.Tensor]:
            with torch.no_grad():
                vectors[compiled is not encoder] = out = compiled(**tokens)
            return [out]

        return step

    outcomes = [compare("MiniLM encoder", encode, tell)]
    tell("building GPT-2")
    models.gpt2()
    outcomes.append(compare("GPT-2 inference", models.workload("gpt2").bind, tell))
    training = models.training_step(models.gpt2, 50257, 1, 128)
    outcomes.append(compare("GPT-2 training step", training, tell))
    by_eager, _ = sentences.nearest(vectors[False])
    by_lazyc, similarity = sentences.nearest(vectors[True])
    return outcomes, by_eager, by_lazyc, similarity


def compare(title: str, bind: Callable, tell: Callable[[str], None]) -> Outcome:
    """Runs a job both ways and times it, interleaved. ``bind`` is as in bench.models.Workload."""
    import torch

    from bench.backends import compiler
    from bench.measure import MemoryMeter, interleave, relative_error

    tell(f"{title}: eager")
    meter = MemoryMeter()
    eager = bind(compiler("eager"), torch.float32)
    expected = [t.clone() for t in eager()]
    eager_bytes = meter.peak_of(eager)
    tell(f"{title}: compiling with lazyc")
    meter = MemoryMeter()
    compiled = bind(compiler("lazyc"), torch.float32)
    found, seconds, split = watch_compile(compiled)
    difference = relative_error(found, expected)
    del found, expected
    lazyc_bytes = meter.peak_of(compiled)
    tell(f"{title}: timing")
    times = interleave({"eager": eager, "lazyc": compiled}, ROUNDS, warmup=1, budget=SECONDS)
    gc.collect()
    return Outcome(
        title,
        times["eager"].minimum,
        times["lazyc"].minimum,
        seconds,
        difference,
        eager_bytes,
        lazyc_bytes,
        split,
    )


def watch_compile(step: Callable[[], list]) -> tuple[list, float, CompileSplit]:
    """The first call of a step: its results, its seconds, and how compilation shared them.

    Dynamo and AOTAutograd are told apart by torch's own timers: what a backend call takes, less what
    lazyc's stages took, is AOTAutograd's, or that of the plain capture in its place.
    """
    from torch._dynamo.utils import calculate_time_spent

    from bench import counters

    lazyc_before, torch_before = counters.read(), dict(calculate_time_spent())
    start = time.perf_counter()
    result = step()
    seconds = time.perf_counter() - start
    done = counters.read().since(lazyc_before)
    spent = {k: v - torch_before.get(k, 0.0) for k, v in calculate_time_spent().items()}
    backend = spent.get("backend_compile", 0.0)
    stage = done.seconds.get
    passes = sum(stage(name, 0.0) for name in ("key", "passes", "schedule"))
    codegen = sum(stage(name, 0.0) for name in ("generate", "llvm"))
    load = sum(stage(name, 0.0) for name in ("load", "store", "bind"))
    ours = passes + codegen + load
    split = CompileSplit(
        dynamo=spent.get("entire_frame_compile", 0.0) - backend,
        aot_autograd=backend + spent.get("entire_backward_compile", 0.0) - ours,
        passes=passes,
        codegen=codegen,
        load=load,
        kernels_made=done.kernels_made,
        kernels_reused=done.kernels_reused,
        fallbacks=done.fallbacks,
        bugs=done.bugs,
    )
    return result, seconds, split


def report(
    console, outcomes: list[Outcome], by_eager: list[int], by_lazyc: list[int], near: list[float]
) -> None:
    """Prints the sentences and two tables."""
    from bench.demo_tables import compile_table, neighbour_table, speed_table
    from bench.sentences import SENTENCES

    console.print(neighbour_table(SENTENCES, by_eager, by_lazyc, near))
    console.print(speed_table(outcomes), compile_table(outcomes))


if __name__ == "__main__":
    sys.exit(main())
