"""One op of the OpInfo sweep: every sample in eager and by lazyc. Runs in a process of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo as dynamo

from tests.conformance.opinfo_case import SEED, Case
from tests.conformance.opinfo_front import CountingBackend, Front, Series, series
from tests.conformance.opinfo_judge import FLOAT_DTYPES, Judge, Neighbours

# Ops whose values nobody defines.
NEIGHBOURS = 6  # inputs beside a sample that eager's error is measured on
UNINITIALISED = re.compile(
    r"^(empty|new_empty|empty_like|empty_strided|empty_permuted|new_empty_strided)"
)


@dataclass(frozen=True)
class Options:
    """What the sweep runs, the same for every op. ``max_samples`` 0 means all samples."""

    backend: str
    front: str = "compile"
    dtype: str = "float32"
    mode: str = "samples"
    variant: str = "function"
    dynamic: bool | None = None
    max_samples: int = 0
    threads: int = 1
    fullgraph: bool = False
    backward: bool = True
    strides: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass
class Tally:
    """What happened to one op so far; sent to the parent before each sample, so that a crash is
    charged to the sample that caused it. ``code`` says who ran it, see ``code_share``; ``lazy`` whether
    it was recorded, see ``opinfo_front.Recorded``."""

    run: int = 0
    ok: int = 0
    backward: int = 0
    backward_ok: int = 0
    float64: int = 0
    graphs: int = 0
    eager_failed: int = 0
    wrong: int = 0
    raised: int = 0
    reason: str = ""
    eager_reason: str = ""
    skip: str = ""
    code: str = ""
    lazy: str = ""
    recorded: int = 0
    at_once: list[str] = field(default_factory=list)

    def bad(self, kind: str, why: str) -> None:
        """Counts a failed sample ("wrong" or "raised") and keeps the first reason."""
        setattr(self, kind, getattr(self, kind) + 1)
        if not self.reason:
            self.reason = f"#{self.run - 1} {why}"


def code_share(backend: str, graphs: int) -> str:
    """Who ran the op: "compiled" (lazyc alone), "partly" (with steps left to eager), "eager" (no
    code of lazyc at all), "unseen" (no graph reached the backend); "" for another backend."""
    if backend != "lazyc":
        return ""
    import lazyc

    counted = lazyc.metrics.snapshot()
    if graphs == 0:
        return "unseen"
    if counted["compiler_bugs"]:
        return "eager"
    if not counted["fallbacks"]:
        return "compiled"
    return "partly" if counted["kernels_made"] + counted["kernels_reused"] else "eager"


def run_op(op: Any, options: Options, emit: Callable[[Tally], None]) -> Tally:
    """Runs all samples (or error inputs) of an OpInfo; ``emit`` gets the tally before each."""
    torch.set_num_threads(options.threads)
    dynamo.config.suppress_errors = False  # Dynamo must not hide a crash of the backend
    _keep_random_ops_compiled()
    tally = Tally()
    getter = {"function": op.get_op, "method": op.get_method, "inplace": op.get_inplace}
    function = getter[options.variant]()
    if function is None:
        tally.skip = f"no {options.variant} variant"
        return tally
    backend = CountingBackend(options.backend)
    settings = {"fullgraph": options.fullgraph, "dynamic": options.dynamic}
    step = _error_sample if options.mode == "errors" else _sample
    for way in series(options.front, _wants_backward(op, options)):
        front = Front(options.front, backend, settings, way)
        before = tally.run
        for sample in _samples(op, options, way):
            if options.max_samples and tally.run - before >= options.max_samples:
                break
            if options.variant == "inplace" and getattr(sample, "broadcasts_input", False):
                continue
            dynamo.reset()
            step(op, options, sample, function, front, tally, emit)
            tally.graphs = _graphs(front)
        if options.front != "compile" and way.counts:
            tally.lazy, tally.recorded = front.recorded.share, front.recorded.operators
            tally.at_once = sorted(front.recorded.at_once)
    tally.code = code_share(options.backend, tally.graphs)
    return tally


def _graphs(front: Front) -> int:
    """Graphs that lazyc was given; of eager code, those that it joined."""
    if front.name != "lazy-mode":
        return front.backend.graphs
    import lazyc

    return lazyc.metrics.snapshot()["graphs_compiled"]


def _keep_random_ops_compiled() -> None:
    # OpInfo wraps random ops so that they reset the seed; the wrapper breaks the graph, and the op
    # itself would never be compiled. Case.call seeds instead.
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        if "wrapper_set_seed" in names:
            names["wrapper_set_seed"] = lambda f, *args, **kwargs: f(*args, **kwargs)


def _wants_backward(op: Any, options: Options) -> bool:
    supported = op.supports_autograd and options.torch_dtype in op.supported_backward_dtypes("cpu")
    return options.backward and options.variant != "inplace" and supported


def _samples(op: Any, options: Options, way: Series) -> Iterator[Any]:
    torch.manual_seed(SEED)
    if options.mode == "errors":
        return iter(op.error_inputs("cpu"))
    return iter(op.sample_inputs("cpu", options.torch_dtype, requires_grad=way.gradients))


def _error_sample(
    op: Any,
    options: Options,
    sample: Any,
    function: Callable[..., Any],
    front: Front,
    tally: Tally,
    emit: Callable[[Tally], None],
) -> None:
    """Where eager raises, lazyc must raise too, and not because of a bug."""
    case = Case.of(sample.sample_input)
    try:
        case.call(function, case.inputs())
        tally.eager_failed += 1  # eager accepts it: nothing to compare
        return
    except Exception as error:  # any error of eager is the expectation
        wanted = type(error).__name__
    tally.run += 1
    emit(tally)
    try:
        flat = case.inputs()
        with front.run():
            _kept = case.call(front.function(function), front.given(flat))  # or it never runs
    except Exception as error:  # judged below
        if any(type(e).__name__ == "CompilerBug" for e in _chain(error)):
            tally.bad("raised", _describe(error))
        else:
            tally.ok += 1
    else:
        tally.bad("wrong", f"eager raises {wanted}, lazyc returned")


def _sample(
    op: Any,
    options: Options,
    sample: Any,
    function: Callable[..., Any],
    front: Front,
    tally: Tally,
    emit: Callable[[Tally], None],
) -> None:
    """Outputs, mutated inputs and gradients must agree with eager."""
    case = Case.of(sample)
    backward = _wants_backward(op, options)
    try:
        out, grads, inputs = case.run(function, case.inputs(), backward)
    except Exception as error:  # a sample that eager refuses says nothing
        tally.eager_failed += 1
        tally.eager_reason = f"{type(error).__name__}: {error}"[:120]
        return
    tally.run += 1
    tally.backward += grads is not None
    emit(tally)
    undefined = bool(UNINITIALISED.match(op.name)) or case.is_random(function, out)
    exact = _Float64(case, function, backward) if options.torch_dtype in FLOAT_DTYPES else None
    try:
        flat, ours = case.inputs(), front.function(function)
        with front.run():
            found, found_grads, found_inputs = case.run(ours, front.given(flat), backward)
    except Exception as error:  # a result of the sweep
        tally.bad("raised", _describe(error))
        return
    judge = Judge(options.torch_dtype, options.strides)

    def reference(part: int) -> Callable[[], Any] | None:
        return None if undefined else lambda: exact.part(part) if exact else None

    def neighbours(part: int) -> Neighbours:
        return lambda: exact.neighbours(part) if exact else ()

    why = judge.differ("out", out, found, reference(0), neighbours(0))
    why = why or judge.differ("input", inputs, found_inputs, reference(2), neighbours(2))
    why_grad = ""
    if grads is not None:
        why_grad = judge.differ("grad", grads, found_grads, reference(1), neighbours(1))
        tally.backward_ok += not why_grad
    tally.float64 += judge.float64_verdicts
    if why or why_grad:
        tally.bad("wrong", why or why_grad)
    else:
        tally.ok += 1


@dataclass
class _Float64:
    """The float64 run of a sample, computed when first asked for."""

    case: Case
    function: Callable[..., Any]
    backward: bool
    _done: tuple[Any, Any, list[Any]] | None = None

    def part(self, index: int) -> Any:
        if self._done is None:
            inputs = self.case.inputs(torch.float64)
            self._done = self.case.run(self.function, inputs, self.backward)
        return self._done[index]

    def neighbours(self, index: int) -> Iterator[tuple[Any, Any]]:
        """(eager, float64) on inputs that differ in the last bit."""
        for seed in range(NEIGHBOURS):
            case = self.case.neighbour(seed)
            eager = case.run(self.function, case.inputs(), self.backward)[index]
            yield eager, case.run(self.function, case.inputs(torch.float64), self.backward)[index]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, innermost last."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = getattr(link, "inner_exception", None) or link.__cause__


def _describe(error: BaseException) -> str:
    root = list(_chain(error))[-1]
    text = " ".join(str(root).split())[:160]
    return f"{type(error).__name__}: {type(root).__name__}: {text}"
