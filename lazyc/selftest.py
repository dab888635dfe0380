"""A check of this installation on a device: programs against eager, and how fast they are.

Each program runs compiled, in eager and in float64. The error of compiled code, as the root of the mean
square, may be twice eager's (three times for half types), as Inductor's own tests judge it; and nothing
may be left to eager.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import lazyc
from lazyc.backend import executables
from lazyc.ir.program import KernelStep
from lazyc.ir.sparse import declared
from lazyc.runtime.cuda_graph import Replayer
from lazyc.runtime.program import Executable

_SLACK = 1e-6  # part of a result's size that rounding may account for where eager is right by luck
_HALVES = (torch.float16, torch.bfloat16)
_WARM_UP, _CALLS = 5, 20


@dataclass(frozen=True, slots=True)
class Case:
    """A program. ``make`` returns a module and its arguments, in f32 on the CPU; ``train``: with gradients
    of the module's parameters; ``prune``: makes weights sparse, which must be read in compressed form on a GPU;
    ``only_on_gpus``: elsewhere it is left to eager; ``calls``: of which the last is judged, with ``options``;
    ``edits``: weights change in place before the last call; ``dynamic``: one program for any number of rows of
    the first argument, of which the call before has one less."""

    name: str
    make: Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]
    dtype: torch.dtype = torch.float32
    train: bool = False
    prune: Callable[[nn.Module], object] | None = None
    only_on_gpus: bool = False
    calls: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    edits: bool = False
    dynamic: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a Case. ``problem``: "" if all is well. Times of a call in seconds; errors as parts of
    what is allowed. ``kernels``: of a call; ``launch_seconds``: what a call takes of the caller's time until its
    kernels are queued, for each of them (0 on the CPU, where a call returns when all is done)."""

    case: Case
    problem: str
    error: float
    eager_seconds: float = 0.0
    seconds: float = 0.0
    kernels: int = 0
    launch_seconds: float = 0.0


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self._function(*args)


class _Block(nn.Module):
    """A transformer block with causal attention; x: (batch, length, width)."""

    def __init__(self, width: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [t.unflatten(-1, (self.heads, -1)) for t in self.qkv(self.norms[0](x)).chunk(3, -1)]
        q, k, v = (t.transpose(1, 2) for t in parts)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        y = scores.masked_fill(~mask, -float("inf")).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class _Attention(nn.Module):
    """torch's attention between two projections; x: (batch, length, width)."""

    def __init__(self, width: int = 128, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, -1)]
        q, k, v = (t.transpose(1, 2) for t in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).flatten(-2))


class _Scores(nn.Module):
    """torch's attention with a bias that is trained, key heads that queries share, or dropout."""

    def __init__(
        self, heads: int = 4, keys: int = 2, bias: bool = False, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.heads, self.keys, self.drop = heads, keys, drop
        self.proj = nn.Linear(128, 64 * (heads + 2 * keys))
        self.bias = nn.Parameter(torch.randn(heads, 64, 64)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sizes = [64 * n for n in (self.heads, self.keys, self.keys)]
        parts = self.proj(x).split(sizes, -1)
        q, k, v = (t.unflatten(-1, (-1, 64)).transpose(1, 2) for t in parts)
        shared = self.heads != self.keys
        if not self.drop:
            return F.scaled_dot_product_attention(
                q, k, v, self.bias, enable_gqa=shared, is_causal=self.bias is None
            )
        # A unit matrix as the values shows the weights. The result is what it is whichever are dropped, and so
        # are gradients, unless the backward pass drops others.
        unit = torch.eye(64, dtype=x.dtype, device=x.device).expand(v.shape)
        left = F.scaled_dot_product_attention(q, k, unit, dropout_p=self.drop)
        weights = (q @ k.transpose(-1, -2) * 0.125).softmax(-1)
        return _whatever_is_dropped(left, weights, self.drop)


class _Dropout(nn.Module):
    """A layer and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(128, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return _whatever_is_dropped(F.dropout(y, 0.25), y, 0.25)


def _whatever_is_dropped(left: torch.Tensor, all: torch.Tensor, p: float) -> torch.Tensor:
    """``all`` of what dropout has ``left`` a part of; nan where that is not the part that it should be."""
    kept = left != 0
    part = kept.float().mean()
    right = (part - (1 - p)).abs() < 0.03
    return torch.where(right, torch.where(kept, left * (1 - p), all), float("nan"))


class _Words(nn.Module):
    """The loss of a classifier of words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(500, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, words: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.out(self.embedding(words).mean(1)), label)


class _Int8Linear(nn.Linear):
    """A linear layer of int8 inputs and weights."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer)
        weight = torch.randint(-128, 128, (outer, inner), dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # torch has no public name for it.
        total = torch._int_mm(input, self.weight.t())  # pyright: ignore[reportPrivateImportUsage]
        return total.to(self.bias.dtype) / 4096 + self.bias


def _of(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Callable[[], Any]:
    return lambda: (_Function(function), tuple(torch.randn(s) for s in shapes))


def _perceptron() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    module = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 128))
    return module, (torch.randn(192, 256),)


def _int8() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return _Int8Linear(256, 512), (torch.randint(-128, 128, (192, 256), dtype=torch.int8),)


def _blocks(module: nn.Module) -> None:
    lazyc.sparse.to_block_sparse(module, (32, 32), 0.75)


def _block() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return _Block(), (torch.randn(2, 128, 256),)


def _attention() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return _Attention(), (torch.randn(2, 128, 128),)


def _scores(**options: Any) -> Callable[[], Any]:
    return lambda: (_Scores(**options), (torch.randn(4, 64, 128),))


def _dropout() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return _Dropout(), (torch.randn(128, 128),)


def _convolutions() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Channels last, with a batch norm."""
    module = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(64, 32, 1),
    )  # fmt: skip
    x = torch.randn(4, 16, 28, 28).to(memory_format=torch.channels_last)
    return module.eval().to(memory_format=torch.channels_last), (x,)  # type: ignore[call-overload]


def _rows(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x @ w, -1) * 2


def _chain(x: torch.Tensor) -> torch.Tensor:
    """Dozens of kernels that do next to nothing, so that a call takes what launches take."""
    for _ in range(20):
        x = torch.cumsum(x, 0).softmax(1)
        x = torch.cumsum(x, 1).softmax(0)
    return x


def _words() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return _Words(), (torch.randint(0, 500, (64, 12)), torch.randint(0, 10, (64,)))


def _gather(x: torch.Tensor) -> torch.Tensor:
    index = torch.arange(x.shape[0] - 1, -1, -1, device=x.device)
    return torch.zeros_like(x).index_add(0, index, x[index] * 2)


CASES: tuple[Case, ...] = (
    Case("pointwise", _of(lambda x, y: torch.sigmoid(x * y + x) * torch.tanh(y), (1000, 513), (1000, 513))),
    Case("softmax", _of(lambda x: torch.softmax(x, -1), (512, 1000))),
    Case("sum of columns", _of(lambda x: x.exp().sum(0), (3000, 200))),
    Case("cumulative sum", _of(lambda x: x.cumsum(-1), (64, 3000))),
    Case("largest, and where", _of(lambda x: x.max(-1).values + x.argmax(-1), (300, 777))),
    Case("layer norm", _of(lambda x: F.layer_norm(x, (768,)), (300, 768))),
    Case("gather and scatter", _of(_gather, (257, 64))),
    Case("batched product", _of(torch.bmm, (6, 65, 33), (6, 33, 129))),
    Case("perceptron", _perceptron),
    Case("perceptron", _perceptron, torch.bfloat16),
    Case("perceptron", _perceptron, torch.float16),
    Case("perceptron trained", _perceptron, train=True),
    Case("transformer block", _block),
    Case("transformer block", _block, torch.bfloat16),
    Case("transformer block trained", _block, train=True),
    Case("torch's attention", _attention),
    Case("torch's attention", _attention, torch.float16),
    Case("torch's attention trained", _attention, train=True),
    Case("torch's attention trained", _attention, torch.bfloat16, train=True),
    Case("classifier of words trained", _words, train=True),
    Case("2:4 perceptron", _perceptron, torch.float16, prune=lazyc.sparse.prune_24),
    Case("2:4 perceptron", _perceptron, torch.bfloat16, prune=lazyc.sparse.prune_24),
    Case("int8 layer", _int8, only_on_gpus=True),
    Case("2:4 int8 layer", _int8, prune=lazyc.sparse.prune_24, only_on_gpus=True),
    Case("convolutions", _convolutions),
    Case("convolutions", _convolutions, torch.bfloat16),
    Case("convolutions trained", _convolutions, train=True, only_on_gpus=True),
    Case("dropout trained", _dropout, train=True),
    Case("shared key heads", _scores(), torch.bfloat16),
    Case("shared key heads trained", _scores(), train=True),
    Case("attention with a mask", _scores(keys=4, bias=True), torch.float16),
    Case("attention with a mask trained", _scores(keys=4, bias=True), train=True),
    Case("attention with dropout trained", _scores(keys=4, drop=0.25), train=True),
    Case("any number of rows", _of(_rows, (40, 128), (128, 64)), dynamic=True),
    Case("any batch", _scores(), torch.bfloat16, dynamic=True, only_on_gpus=True),
    Case("CUDA graph", _block, torch.bfloat16, calls=6, options={"cuda_graphs": True}),
    Case("CUDA graph trained", _block, train=True, calls=6, options={"cuda_graphs": True}),
    Case("tuned", _block, torch.bfloat16, calls=2, options={"autotune": True, "autotune_seconds": 30}),
    Case("kept weights", _convolutions, torch.bfloat16, calls=2, options={"keep_gpu_weights": True}),
    Case("kept weights that change", _convolutions, calls=3, edits=True, options={"keep_gpu_weights": True}),
    Case("chain of small kernels", _of(_chain, (64, 64))),
    Case("block-sparse perceptron", _perceptron, prune=_blocks),
    Case("block-sparse perceptron", _perceptron, torch.bfloat16, prune=_blocks),
)  # fmt: skip


def run_cases(device: str, cases: Sequence[Case] = CASES) -> Iterator[Outcome]:
    """Each Case for a device of torch's. What a Case raises is its problem."""
    for case in cases:
        if case.only_on_gpus and torch.device(device).type != "cuda":
            continue
        torch.manual_seed(0)
        torch._dynamo.reset()
        try:
            yield _run(case, torch.device(device))
        except Exception as error:  # noqa: BLE001 - the others are run all the same
            yield Outcome(case, f"{type(error).__name__}: {error}", 0.0)


def _run(case: Case, device: torch.device) -> Outcome:
    module, args = case.make()
    module = module.to(device)
    lazyc.metrics.reset()
    rounded = copy.deepcopy(module).to(case.dtype)
    if case.prune is not None:
        case.prune(rounded)
    given = _in_dtype(args, device, case.dtype)
    compiled = torch.compile(
        rounded, backend="lazyc", dynamic=case.dynamic or None, options=dict(case.options)
    )

    def call(run: Callable[..., Any], of: nn.Module, inputs: Sequence[torch.Tensor]) -> list[Any]:
        of.zero_grad()
        with torch.set_grad_enabled(case.train):
            out = run(*inputs)
            if not case.train:
                return [out]
            out.float().square().mean().backward()
        return [out.detach(), *(p.grad for p in of.parameters() if p.grad is not None)]

    before = set(map(id, executables()))
    for _ in range(case.calls - 1):
        call(compiled, rounded, given)
    if case.dynamic:
        call(compiled, rounded, [given[0][:-1].clone(), *given[1:]])
    if case.edits:
        with torch.no_grad():
            for weight in rounded.parameters():
                weight.mul_(-0.5)
    got = [t.double() for t in call(compiled, rounded, given)]
    made = [x for x in executables() if id(x) not in before]
    programs = [x.program for x in made]
    seen = lazyc.metrics.snapshot()
    left, kept = seen["fallbacks"], seen["weights_packed"]
    eager = [t.double() for t in call(rounded, rounded, given)]
    wide = copy.deepcopy(rounded).double()
    exact = call(wide, wide, [t.double() if t.is_floating_point() else t for t in given])
    factor = 3 if case.dtype in _HALVES else 2
    error = max(_error(*results, factor) for results in zip(got, eager, exact, strict=True))
    problem = "" if error <= 1 else f"its error is {error:.1f} times what is allowed"
    if left:
        problem = "; ".join(f"{f['op']} ran in eager: {f['reason']}" for f in left)
    marked = sum(declared(p) is not None for p in rounded.parameters())
    if device.type == "cuda" and kept < marked:
        problem = problem or f"{kept} of {marked} sparse weights compressed: LAZYC_DEBUG=1 says why"
    if (
        device.type == "cuda"
        and case.options.get("cuda_graphs")
        and not all(map(is_replayed, made))
    ):
        problem = problem or "not all of its programs are replayed from CUDA graphs"
    if case.dynamic and len(programs) != 1:
        problem = problem or f"{len(programs)} programs for two sizes"
    eager_seconds, _ = _seconds(lambda: call(rounded, rounded, given), device)
    seconds, queued = _seconds(lambda: call(compiled, rounded, given), device)
    kernels = sum(isinstance(step, KernelStep) for p in programs for step in p.steps)
    launch = queued / kernels if kernels and device.type == "cuda" else 0.0
    return Outcome(case, problem, error, eager_seconds, seconds, kernels, launch)


def is_replayed(executable: Executable) -> bool:
    """Whether its last call had a CUDA graph."""
    runner = executable.last_runner
    return runner is not None and isinstance(runner.run, Replayer) and runner.run.is_captured


def _in_dtype(
    args: Sequence[torch.Tensor], device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    return [t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in args]


def _error(got: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, factor: int) -> float:
    """The error of ``got`` as a part of what is allowed."""
    if got.shape != exact.shape:
        return float("inf")
    allowed = factor * _rms(eager - exact) + _SLACK * _rms(exact)
    found = _rms(got - exact)
    if found == 0:
        return 0.0
    return found / allowed if allowed > 0 and found == found else float("inf")


def _rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def _seconds(run: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """The shortest of some calls, with what they queue on the device, and without."""
    times, queued = [], []
    for call in range(_WARM_UP + _CALLS):
        start = time.perf_counter()
        run()
        returned = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if call >= _WARM_UP:
            times.append(time.perf_counter() - start)
            queued.append(returned - start)
    return min(times), min(queued)
