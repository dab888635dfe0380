"""Runs PyTorch's own OpInfo database (part of the torch wheel) against a torch.compile backend.

  python -m tests.conformance.opinfo_runner --backend lazyc --dtype float32 --max-samples 3 --jobs 2

For each op and sample (or error input, with ``--mode errors``), eager and lazyc must agree on
outputs (type, dtype, shape, value), mutated inputs, requires_grad, and the gradients of every
differentiable input. A line an op:

  STATUS op dtype samples=ok/run bwd=ok/run graphs=N fp64=N code=WHO [lazy=SHARE(N)] t=S [reason]

``code`` says who ran it: compiled (lazyc alone), partly (some steps in eager), eager, unseen (no
graph reached the backend). The summary gives the share of ops that lazyc alone compiled.

``--front lazy`` and ``--front lazy-mode`` take the ways into lazyc that record (``opinfo_front.py``).
``lazy`` says what happened to the operators of an op: recorded, partly, at_once (none waited), nothing
(none computes); N were recorded. The summary counts them; ``--json`` has the names of those that ran at
once. Front lazy runs each sample without gradients, which may wait, and then with them. Front lazy-mode
runs it on plain inputs, and then on inputs that wait, which is what ``lazy`` is about.

Exit code 1 when an op failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# Read by lazyc when it is imported: bugs must raise, and code must be made by this very version.
os.environ.setdefault("LAZYC_STRICT", "1")
os.environ.setdefault("LAZYC_DISK_CACHE", "0")

import torch

# Imported before forking, so that children need not: most of the time of a child.
import torch._dynamo
import torch._functorch.partitioners
import torch._inductor.compile_fx

import lazyc.backend
import lazyc.compiler
import lazyc.recording.mode
import lazyc.recording.regions  # noqa: F401
from tests.conformance.opinfo_child import Options
from tests.conformance.opinfo_front import FRONTS
from tests.conformance.opinfo_parent import Limits, Outcome, select_ops, sweep

DYNAMIC = {"auto": None, "true": True, "false": False}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--backend", default="lazyc")
    add("--front", choices=FRONTS, default="compile", help="the way into lazyc")
    add("--import", dest="imports", action="append", default=[], help="module to import first")
    add("--dtype", default="float32")
    add("--shard", default="0/1", help="i/n, i from 0")
    add("--timeout", type=float, default=120, help="seconds an op")
    add("--mode", choices=["samples", "errors"], default="samples")
    add("--variant", choices=["function", "method", "inplace"], default="function")
    add("--dynamic", choices=list(DYNAMIC), default="auto")
    add("--ops", default="", help="regular expression on the full op name")
    add("--max-samples", type=int, default=0)
    add("--jobs", type=int, default=1)
    add("--threads", type=int, default=1)
    add("--mem-gb", type=float, default=0, help="address space of each child")
    add("--fullgraph", action="store_true")
    add("--no-backward", action="store_true")
    add("--strides", action="store_true", help="output strides must match too")
    add("--json", type=Path, help="append one JSON object an op to this file")
    return parser.parse_args(arguments)


def options_from(args: argparse.Namespace) -> Options:
    return Options(
        backend=args.backend,
        front=args.front,
        dtype=args.dtype,
        mode=args.mode,
        variant=args.variant,
        dynamic=DYNAMIC[args.dynamic],
        max_samples=args.max_samples,
        threads=args.threads,
        fullgraph=args.fullgraph,
        backward=not args.no_backward,
        strides=args.strides,
    )


def line(outcome: Outcome, dtype: str) -> str:
    """The outcome as one line of text."""
    t = outcome.tally
    code = f" code={t.code}" if t.code else ""
    lazy = f" lazy={t.lazy}({t.recorded})" if t.lazy else ""
    reason = f" | {outcome.reason}" if outcome.reason else ""
    return (
        f"{outcome.status:5} {outcome.op} {dtype} samples={t.ok}/{t.run} "
        f"bwd={t.backward_ok}/{t.backward} graphs={t.graphs} fp64={t.float64}{code}{lazy} "
        f"t={outcome.seconds:.1f}{reason}"
    )


@dataclasses.dataclass(frozen=True)
class Summary:
    """Totals of a sweep. ``share`` is of the ops that ran: skipped ones do not count."""

    by_status: Counter[str]
    by_code: Counter[str]
    by_lazy: Counter[str]
    vacuous: int

    @property
    def ran(self) -> int:
        return sum(n for status, n in self.by_status.items() if status != "SKIP")

    @property
    def failed(self) -> int:
        return self.by_status["FAIL"] + self.by_status["ERROR"]

    @property
    def share(self) -> float:
        return self.by_code["compiled"] / self.ran if self.ran else 0.0


def summarize(outcomes: Sequence[Outcome]) -> Summary:
    by_status = Counter(o.status for o in outcomes)
    passed = [o for o in outcomes if o.status == "PASS"]
    by_code = Counter(o.tally.code for o in passed if o.tally.code)
    by_lazy = Counter(o.tally.lazy for o in passed if o.tally.lazy)
    return Summary(by_status, by_code, by_lazy, sum(o.tally.graphs == 0 for o in passed))


def print_summary(summary: Summary, args: argparse.Namespace, seconds: float) -> None:
    counts = " ".join(f"{s}={summary.by_status[s]}" for s in ("PASS", "FAIL", "ERROR", "SKIP"))
    print(
        f"total: backend={args.backend} front={args.front} dtype={args.dtype} mode={args.mode} variant={args.variant} "
        f"torch={torch.__version__} {counts} vacuous={summary.vacuous} t={seconds:.0f}s"
    )
    if summary.by_code:
        rest = ", ".join(f"{summary.by_code[c]} {c}" for c in ("partly", "eager", "unseen"))
        print(
            f"code: lazyc alone compiled {summary.by_code['compiled']} of {summary.ran} ops that "
            f"ran = {100 * summary.share:.1f}% ({rest})"
        )
    if summary.by_lazy:
        rest = ", ".join(f"{summary.by_lazy[w]} {w}" for w in ("partly", "at_once", "nothing"))
        share = 100 * summary.by_lazy["recorded"] / summary.ran
        print(
            f"lazy: recorded {summary.by_lazy['recorded']} of {summary.ran} ops that ran "
            f"= {share:.1f}% ({rest})"
        )
    passed, skipped = summary.by_status["PASS"], summary.by_status["SKIP"]
    print(f"opinfo: {passed} passed, {summary.failed} failed, {skipped} skipped")


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    for module in args.imports:
        importlib.import_module(module)
    from torch.testing._internal.common_methods_invocations import op_db

    shard, shards = map(int, args.shard.split("/"))
    ops = select_ops(op_db, shard, shards, re.compile(args.ops).search)
    limits = Limits(args.timeout, int(args.mem_gb * 2**30))
    start = time.monotonic()
    outcomes = []
    for outcome in sweep(ops, options_from(args), limits, args.jobs):
        outcomes.append(outcome)
        print(line(outcome, args.dtype), flush=True)
        if args.json:
            record = {
                "front": args.front,
                "dtype": args.dtype,
                "mode": args.mode,
                "backend": args.backend,
            }
            with args.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record | dataclasses.asdict(outcome)) + "\n")
    summary = summarize(outcomes)
    print_summary(summary, args, time.monotonic() - start)
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
