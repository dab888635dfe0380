"""What the machine code of a model's kernels shows, for GPUs that need not be there.

A model is traced forward and, for training, backward, and its graphs are compiled to kernels as
for a GPU; the model itself runs in eager on the CPU. Kernels with the same text count once. Each is
compiled for each architecture, in processes of their own, and judged: kernels must not spill registers
and must fit in shared memory; products of tiles must use tensor cores where types and sizes allow it,
and must load aligned factors by 128 bits. See docs/gpu.md.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lazyc.codegen.base import Kernel, KernelCode, LaunchRef, Ref
from lazyc.codegen.cuda import nvrtc
from lazyc.codegen.gpu_target import GpuTarget
from lazyc.codegen.product_costs import ProductCosts
from lazyc.codegen.triton.block_sparse import BLOCK_PRODUCTS
from lazyc.codegen.triton.compile import compile_kernel
from lazyc.codegen.triton.cuda import CudaGenerator, generator_key
from lazyc.compiler import Compiler
from lazyc.config import Config
from lazyc.errors import CodeNotLoaded
from lazyc.frontend.autograd import AotBackend, Boxed, Part, run_in_eager
from lazyc.frontend.recompute import IN_TILES
from lazyc.ir.graph import Graph
from lazyc.ir.loops import LoopNest
from lazyc.ir.program import KernelSource
from lazyc.ir.sparse import Sparsity
from lazyc.ir.sparse_contraction import SparseContraction
from lazyc.ir.types import DType
from lazyc.passes.plan import Unschedulable
from lazyc.report import events as E
from lazyc.report.spans import Spans
from lazyc.runtime.cache import DiskCache
from lazyc.runtime.host import create_host
from lazyc.runtime.key import nest_key

_LEAST_ROWS, _LEAST_WARPS = 64, 4  # of a tile, for tensor cores that four warps drive together
_HALVES = (DType.F16, DType.BF16)


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model, and the arguments that it is traced with: a mapping of keywords, or a tuple."""

    name: str
    module: nn.Module
    inputs: Mapping[str, Any] | tuple[Any, ...]


@dataclass(slots=True)
class FoundKernel:
    """A kernel of some models on some ``targets`` (names). ``kind``: that of its products, "loop" (it
    has inner loops) or "pointwise"."""

    code: KernelCode
    kind: str
    comment: str
    models: set[str] = field(default_factory=set)
    targets: set[str] = field(default_factory=set)

    @property
    def label(self) -> str:
        """The kind, and of products the type of their factors."""
        products = self.code.products
        return self.kind if products is None else f"{self.kind} {products.dtype.value}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What machine code shows: registers of a thread and bytes that it spills, shared memory of a block,
    widths in bits of loads to registers and of copies to shared memory, tensor core instructions."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    load_bits: tuple[int, ...]
    copy_bits: tuple[int, ...]
    tensor_cores: tuple[str, ...]

    @property
    def widest(self) -> int:
        """Bits of the widest load from global memory."""
        return max((*self.load_bits, *self.copy_bits), default=0)


@dataclass(frozen=True, slots=True)
class CheckedKernel:
    """A kernel on one architecture, and what is wrong with it."""

    kernel: FoundKernel
    target: GpuTarget
    facts: Facts
    problems: tuple[str, ...]


@dataclass(slots=True)
class Collected:
    """``kernels`` by symbol and choice of tiles or blocks; ``eager``: how often each operator was left to eager, and why."""

    kernels: dict[str, FoundKernel] = field(default_factory=dict)
    eager: dict[tuple[str, str], int] = field(default_factory=dict)


class _Collector:
    """A ``Generator`` that notes kernels as for a GPU, and loads none."""

    keeps_code = False
    sees_edits = CudaGenerator.sees_edits
    has_products = True
    product_tile = None
    prefers_library = True
    suffix = "py"
    key = "check-kernels"  # kernels with the same text have one symbol for all targets

    def __init__(self, collected: Collected, model: str, target: GpuTarget) -> None:
        self._collected = collected
        self._model = model
        self._target = target
        self._generator = CudaGenerator(target)

    @property
    def sparse_products(self) -> frozenset[tuple[Sparsity, DType]]:
        """Without NVRTC 2:4 weights have dense kernels alone."""
        return BLOCK_PRODUCTS if nvrtc.version() is None else self._generator.sparse_products

    @property
    def product_costs(self) -> ProductCosts:
        return self._target.product_costs

    def generate(self, source: KernelSource, symbol: str) -> KernelCode:
        assert isinstance(source, LoopNest | SparseContraction)
        code = self._generator.generate(source, symbol)
        nest = source if isinstance(source, LoopNest) else source.nest
        key = f"{symbol} {code.choice}"  # targets may choose other tiles
        found = self._collected.kernels.get(key)
        if found is None:
            found = FoundKernel(code, _kind(nest, code), source.comment)
            self._collected.kernels[key] = found
        found.models.add(self._model)
        found.targets.add(self._target.name)
        return code

    def compile(self, code: KernelCode) -> bytes:
        return b""

    def load(self, objects: Mapping[Ref, bytes]) -> dict[str, Kernel]:
        raise CodeNotLoaded("only looked at")


def _kind(nest: LoopNest, code: KernelCode) -> str:
    if code.products is not None:
        return code.products.kind
    return "loop" if any(stage.axes for stage in nest.stages) else "pointwise"


def collect_kernels(
    model: CheckedModel, targets: Sequence[GpuTarget], train: bool, collected: Collected
) -> None:
    """Adds the kernels of a model for each target: those of inference, or of a training step (``train``).

    The model runs once in eager. Raises what it raises, and CompilerBug for a graph that lazyc fails on.
    """
    events = E.EventStream()
    events.subscribe(lambda event: _note_fallback(event, collected))
    config, host = Config(strict=True, disk_cache=False), create_host()
    # What is left to eager does not depend on the target: only one tells of it.
    streams = [events, *(E.EventStream() for _ in targets[1:])]
    compilers = [
        Compiler(config, _Collector(collected, model.name, target), host, stream, Spans())
        for target, stream in zip(targets, streams, strict=True)
    ]

    def compile_graph(graph: Graph, gm: torch.fx.GraphModule, part: Part) -> Boxed:
        for compiler, stream in zip(compilers, streams, strict=True):
            try:
                compiler.compile(graph)
            except CodeNotLoaded:
                pass
            except Unschedulable as error:
                stream.emit(E.Fallback("graph", str(error)))
        return run_in_eager(gm)

    def left_to_eager(op: str, reason: str, line: str) -> None:
        events.emit(E.Fallback(op, reason, line))

    backend = AotBackend(
        compile_graph,
        left_to_eager=left_to_eager,
        has_products=_Collector.has_products,
        recompute=IN_TILES,
    )
    module = model.module.train(train)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend=backend, dynamic=False)
    with torch.set_grad_enabled(train):
        out = (
            compiled(**model.inputs)
            if isinstance(model.inputs, Mapping)
            else compiled(*model.inputs)
        )
        if train:
            _scalar(out).backward()
            module.zero_grad()


def _note_fallback(event: E.Event, collected: Collected) -> None:
    if isinstance(event, E.Fallback):
        key = (event.op, event.reason)
        collected.eager[key] = collected.eager.get(key, 0) + 1


def _scalar(out: Any) -> torch.Tensor:
    """What a training step minimises: the loss that a model returns, else the sum of its results."""
    loss = getattr(out, "loss", None)
    if isinstance(loss, torch.Tensor):
        return loss
    return torch.stack([t.float().sum() for t in _tensors(out) if t.requires_grad]).sum()


def _tensors(out: Any) -> Iterator[torch.Tensor]:
    if isinstance(out, torch.Tensor):
        yield out
    elif isinstance(out, Mapping):
        for value in out.values():
            yield from _tensors(value)
    elif isinstance(out, list | tuple):
        for value in out:
            yield from _tensors(value)


def check_kernels(
    kernels: Mapping[str, FoundKernel],
    targets: Sequence[GpuTarget],
    config: Config,
    jobs: int = 0,
    progress: Callable[[int, int], None] = lambda done, all: None,
) -> list[CheckedKernel]:
    """Compiles and judges each kernel for each target that it was found for. What was found before is in the disk cache.

    ``jobs``: processes, 0 for one a core. ``progress`` is told how many are done, of how many.
    """
    disk = DiskCache(config, E.EventStream())
    wanted = [(k, t, _key(k, t)) for k in kernels.values() for t in targets if t.name in k.targets]
    # Nests that differ may have kernels with the same text.
    distinct = {key: (kernel, target) for kernel, target, key in wanted}
    facts: dict[str, Facts] = {}
    todo: dict[str, tuple[FoundKernel, GpuTarget]] = {}
    for key, pair in distinct.items():
        entry = disk.load("checks", key)
        if entry is None:
            todo[key] = pair
        else:
            facts[key] = _facts_of_header(entry.header)
    progress(len(facts), len(distinct))
    for key, found in _compiled(todo, jobs):
        disk.store("checks", key, _header(found), {})
        facts[key] = found
        progress(len(facts), len(distinct))
    return [
        CheckedKernel(kernel, target, facts[key], problems(kernel.code, facts[key], target))
        for kernel, target, key in wanted
    ]


def _compiled(
    todo: Mapping[str, tuple[FoundKernel, GpuTarget]], jobs: int
) -> Iterator[tuple[str, Facts]]:
    jobs = min(jobs or os.cpu_count() or 1, len(todo))
    if jobs <= 1:
        for key, (kernel, target) in todo.items():
            yield key, machine_facts(kernel.code, target)
        return
    # Not forked: torch's threads do not live on in a fork.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(machine_facts, k.code, t): key for key, (k, t) in todo.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()


def machine_facts(code: KernelCode, target: GpuTarget) -> Facts:
    """Compiles a kernel."""
    if code.is_cuda:
        made = nvrtc.compile_cuda(code, target)
        shared = code.shared_bytes
    else:
        made = compile_kernel(code, target)
        shared = made.shared_bytes
    return Facts(
        made.registers,
        made.spilled_bytes,
        shared,
        tuple(sorted(made.load_bits)),
        tuple(sorted(made.copy_bits)),
        tuple(sorted(made.tensor_cores)),
    )


def problems(code: KernelCode, facts: Facts, target: GpuTarget) -> tuple[str, ...]:
    """What is wrong with machine code: for any kernel too much shared memory and spilled registers, and for products
    of tiles also no tensor cores, and narrow loads."""
    found = []
    if facts.shared_bytes > target.shared_bytes:
        found.append(f"{facts.shared_bytes} bytes of shared memory, of {target.shared_bytes}")
    if facts.spilled_bytes:
        found.append(f"{facts.spilled_bytes} bytes of registers are spilled")
    products, ref = code.products, code.ref
    assert isinstance(ref, LaunchRef)
    if products is None:
        return tuple(found)
    if products.kind == "2:4 contraction":
        if "mma.sp" not in facts.tensor_cores:
            found.append("no mma.sp instruction")
    elif products.dtype in _HALVES:
        large = products.rows >= _LEAST_ROWS and ref.warps >= _LEAST_WARPS
        wanted = target.tensor_cores if large else "mma"
        if wanted not in facts.tensor_cores and target.tensor_cores not in facts.tensor_cores:
            found.append(f"no {wanted} instruction")
    elif products.dtype is DType.I8 and not facts.tensor_cores:
        found.append("no tensor core instruction")  # tcgen05 has int8, but Triton does not use it
    elif products.dtype is DType.F32 and facts.tensor_cores:
        found.append("single precision is cut to that of tensor cores")
    # What surrounds a product may load less at a time; where nothing is copied ahead, that cannot be told
    # apart from the factors.
    widths = facts.copy_bits or facts.load_bits[-1:]
    least = max(widths, default=0) if products.others else min(widths, default=0)
    if products.aligned and least < products.load_bits:
        narrow = ", ".join(map(str, widths))
        found.append(f"aligned factors are loaded by {narrow} bits")
    return tuple(found)


def _key(kernel: FoundKernel, target: GpuTarget) -> str:
    ref = kernel.code.ref
    assert isinstance(ref, LaunchRef)
    text = kernel.code.text.replace(ref.symbol, "kernel")
    params = " ".join(d.value for d in kernel.code.params)
    options = f"warps {ref.warps} stages {ref.stages}"
    return nest_key(f"{text}\n{params}\n{options}", generator_key(target))


def _header(facts: Facts) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in Facts.__slots__}


def _facts_of_header(header: Mapping[str, Any]) -> Facts:
    return Facts(
        header["registers"],
        header["spilled_bytes"],
        header["shared_bytes"],
        tuple(header["load_bits"]),
        tuple(header["copy_bits"]),
        tuple(header["tensor_cores"]),
    )
