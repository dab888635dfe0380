"""A GPU that is not there, for tests: launches run in Triton's interpreter on tensors of the CPU.

``cuLaunchKernel`` is a Python function behind a C address: the driver calls it as it calls CUDA's, with a
grid, a stream and addresses of arguments. It notes what it was given, and runs the kernel: one in Triton's
language in its interpreter, one in CUDA C++ in ``tests/cuda_emulator``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lazyc.codegen.base import DeviceKernel, KernelCode, LaunchRef, Ref
from lazyc.codegen.gpu_target import gpu_target
from lazyc.codegen.triton.cuda import CudaGenerator
from lazyc.codegen.triton.interpret import InterpretedGenerator
from lazyc.compiler import Compiler
from lazyc.config import Config
from lazyc.ir.loops import LoopNest
from lazyc.ir.program import KernelSource
from lazyc.ir.sparse import Sparsity
from lazyc.ir.types import DType
from lazyc.report.events import EventStream
from lazyc.report.spans import Spans
from lazyc.runtime.device import DeviceArenas, DeviceOutputs
from lazyc.runtime.host import create_host
from lazyc.runtime.memory import Arena
from tests.cuda_emulator.emulate import Emulated

INT, POINTER = ctypes.c_int, ctypes.c_void_p
# CUresult cuLaunchKernel(f, gridX, gridY, gridZ, blockX, blockY, blockZ, shared, stream, params, extra)
LAUNCH_TYPE = ctypes.CFUNCTYPE(INT, POINTER, *[ctypes.c_uint] * 7, POINTER, POINTER, POINTER)
WARPS, SHARED = 4, 1024


@dataclass
class Launch:
    """What cuLaunchKernel was given."""

    function: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    stream: int
    arguments: list[int]


@dataclass
class StandInGpu:
    """A ``Device`` whose memory is the CPU's. ``status``: what launches return. ``is_late``: launches wait in
    the queue of their stream until ``finish``, or until a stream that is finished waits for them."""

    name: str = "cpu"
    handle: int = 77
    status: int = 0
    launches: list[Launch] = field(default_factory=list)
    entered: int = 0
    inside: int = 0
    captures: int = 0
    captured: list[Callable[[], None]] | None = None
    held: list[object] = field(default_factory=list)
    used: list[torch.Tensor] = field(default_factory=list)
    hardware: str = "stand-in, driver 1"
    # Seconds of a launch of the kernel of a symbol; symbols of kernels that are not taken.
    seconds_of: Callable[[str], float] = lambda symbol: 1e-3
    refused: set[str] = field(default_factory=set)
    is_captured: bool = False
    is_late: bool = False
    queues: dict[int, list[Callable[[], None]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.functions: dict[int, tuple[LaunchRef, tuple[Any, ...], Callable[..., None]]] = {}
        self._launch = LAUNCH_TYPE(self._launched)
        self.launcher = ctypes.cast(self._launch, POINTER).value
        self.failure: BaseException | None = None

    def capture(self, run: Callable[[], list[Any]]) -> tuple[list[Any], Callable[[], None]]:
        """Launches meanwhile are kept, and not run."""
        self.captured = []
        results = run()
        found, self.captured = self.captured, None
        self.captures += 1

        def replay() -> None:
            for launch in found:
                launch()

        return results, replay

    def mark(self) -> Callable[[], None]:
        there = self._queue(self.handle)
        count = len(there)

        def join() -> None:
            # What is done is gone from the front of the queue.
            before = [*there[:count]]
            self._queue(self.handle).append(lambda: self._do(there, before))

        return join

    def finish(self, stream: int) -> None:
        """Runs what waits in the queue of a stream."""
        self._do(self._queue(stream), [*self._queue(stream)])

    def hold(self, memory: object) -> None:
        """Keeps memory that was taken now, where launches that use it come later."""
        if self.captured is not None or self.is_late:
            self.held.append(memory)

    def _queue(self, stream: int) -> list[Callable[[], None]]:
        return self.queues.setdefault(stream, [])

    def _do(self, queue: list[Callable[[], None]], which: Sequence[Callable[[], None]]) -> None:
        while queue and queue[0] in which:
            queue.pop(0)()

    def seconds(self, run: Callable[[], None]) -> float:
        before = len(self.launches)
        run()
        ran = (self.functions[launch.function][0] for launch in self.launches[before:])
        return sum(self.seconds_of(ref.symbol) for ref in ran)

    def copy_of(self, address: int, nbytes: int) -> torch.Tensor:
        memory = (ctypes.c_char * nbytes).from_address(address)
        return torch.frombuffer(memory, dtype=torch.uint8).clone() if nbytes else torch.empty(0)

    def use(self, tensors: Iterable[torch.Tensor]) -> None:
        self.used += tensors

    def is_capturing(self) -> bool:
        return self.is_captured

    def stream(self) -> int:
        return self.handle

    @contextmanager
    def current(self) -> Any:
        self.entered += 1
        self.inside += 1
        yield
        self.inside -= 1

    def _launched(self, function: int, *rest: Any) -> int:
        numbers, (stream, params, extra) = rest[:7], rest[7:]
        try:
            assert not extra and self.inside
            self._run(function, numbers, stream or 0, params)
        except BaseException as error:  # noqa: BLE001 - raised by ``check``: C cannot pass it on
            self.failure = error
        known = self.functions.get(function)
        return 1 if known is not None and known[0].symbol in self.refused else self.status

    def _run(self, function: int, numbers: Sequence[int], stream: int, params: int) -> None:
        ref, types, launch = self.functions[function]
        if ref.symbol in self.refused:
            return
        count = len(types) + len(ref.sizes) + 3
        words = [
            ctypes.cast(p, ctypes.POINTER(ctypes.c_int64))[0] for p in _pointers(params, count)
        ]
        self.launches.append(Launch(function, numbers[:3], numbers[3:6], numbers[6], stream, words))
        if self.status:
            return
        memory = [_memory(address, dtype) for address, dtype in zip(words, types, strict=False)]
        sizes = words[len(types) : -3]
        assert words[-3:] == [0, 0, 0]
        error = torch.zeros(1, dtype=torch.int32)

        def run() -> None:
            launch(numbers[0], memory, sizes, error)
            if int(error):
                raise AssertionError("a kernel reported an error: on a GPU it would have faulted")

        if self.captured is not None:
            self.captured.append(run)
        elif self.is_late:
            self._queue(stream).append(run)
        else:
            run()

    def check(self) -> None:
        """Raises what went wrong in a launch."""
        if self.failure is not None:
            raise self.failure


def _pointers(array: int, count: int) -> list[int]:
    return list((ctypes.c_void_p * count).from_address(array))


def _memory(address: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor that starts at an address: all that Triton's interpreter takes of it."""
    assert address % 16 == 0, "an address that kernels are not made for"
    return torch.frombuffer((ctypes.c_char * 16).from_address(address), dtype=dtype)


def _emulated(code: KernelCode) -> Callable[..., None]:
    """Runs a kernel in CUDA C++. Where its arguments end is not known from their addresses."""
    kernel = Emulated(code)

    def launch(
        blocks: int, memory: Sequence[torch.Tensor], sizes: Sequence[int], error: torch.Tensor
    ) -> None:
        kernel(blocks, [_Unbounded(t) for t in memory], sizes)

    return launch


class _Unbounded:
    """Memory that goes on for long after a tensor's."""

    nbytes = 1 << 40

    def __init__(self, tensor: torch.Tensor) -> None:
        self.data_ptr = tensor.data_ptr


class StandInGenerator:
    """A ``TunableGenerator`` of kernels that a stand-in launches. ``sparse_products``: as of a GPU where asked for.
    ``compiled``: symbols of alternatives in order; those in ``broken`` do not compile, those in ``spilling`` spill."""

    keeps_code = False
    sees_edits = False
    has_products = True
    product_tile = None
    prefers_library = True
    product_costs = gpu_target("sm_80").product_costs
    suffix = "py"
    key = "stand-in"

    def __init__(self, gpu: StandInGpu, sparse: bool = False, keeps_code: bool = False) -> None:
        self._gpu = gpu
        self.keeps_code = keeps_code
        self.compiled: list[str] = []
        self.broken: set[str] = set()
        self.spilling: set[str] = set()
        self._interpreted = InterpretedGenerator()
        self._codes: dict[str, KernelCode] = {}  # that were generated
        self.sparse_products: frozenset[tuple[Sparsity, DType]] = (
            CudaGenerator.sparse_products if sparse else frozenset()
        )

    def generate(self, source: KernelSource, symbol: str) -> KernelCode:
        code = self._codes[symbol] = CudaGenerator(gpu_target("sm_80")).generate(source, symbol)
        return code

    def alternatives(self, nest: LoopNest, symbol: str) -> list[KernelCode]:
        return CudaGenerator(gpu_target("sm_80")).alternatives(nest, symbol)

    def compile_alternative(self, code: KernelCode) -> bytes | None:
        number = code.ref.symbol.rpartition("_")[2]
        self.compiled.append(code.ref.symbol)
        if number in self.broken:
            raise RuntimeError("out of resources")
        return None if number in self.spilling else self.compile(code)

    def compile(self, code: KernelCode) -> bytes:
        """A line of types, one of the shared memory of CUDA C++ (0 for Triton), and the text."""
        types = ",".join(p.value for p in code.params)
        shared = code.shared_bytes if code.is_cuda else 0
        return f"{types}\n{shared}\n{code.text}".encode()

    def load(self, objects: Mapping[Ref, bytes]) -> dict[str, DeviceKernel]:
        found = {}
        for ref, data in objects.items():
            assert isinstance(ref, LaunchRef)
            names, shared, text = data.decode().split("\n", 2)
            params, shared = tuple(DType(n) for n in names.split(",") if n), int(shared)
            function, threads = 1000 + len(self._gpu.functions), 32 * ref.warps
            if shared:
                launch = _emulated(KernelCode(ref, text, params, shared_bytes=shared, is_cuda=True))
            else:
                launch = self._interpreted.load({ref: text.encode()})[ref.symbol].launch
                threads, shared = 32 * WARPS, SHARED
            self._gpu.functions[function] = ref, tuple(p.torch for p in params), launch
            found[ref.symbol] = DeviceKernel(
                self._gpu.launcher, function, threads, shared, ref.programs, ref.points, ref.sizes,
                ref.symbol, ref.alternatives,
            )  # fmt: skip
        return found


class _Arenas(DeviceArenas):
    """Memory of captured calls stays, as torch reserves it for their graph, and that of late ones, as torch hands
    it out again in the order of its stream."""

    def __init__(self, gpu: StandInGpu) -> None:
        super().__init__(gpu)
        self._gpu = gpu

    def take(self, nbytes: int) -> Arena:
        arena = super().take(nbytes)
        self._gpu.hold(arena)
        return arena


class _Outputs(DeviceOutputs):
    """Like ``_Arenas``. What no kernel has written yet is nan."""

    def __init__(self, gpu: StandInGpu) -> None:
        super().__init__(gpu)
        self._gpu = gpu

    def allocator(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
    ) -> Callable[[], torch.Tensor]:
        make = super().allocator(shape, strides, dtype)

        def make_and_hold() -> torch.Tensor:
            tensor = make()
            self._gpu.hold(tensor)
            return tensor.fill_(float("nan")) if dtype.is_floating_point else tensor

        return make_and_hold


def stand_in_compiler(
    gpu: StandInGpu,
    cuda_graphs: bool = False,
    sparse: bool = False,
    events: EventStream | None = None,
    generator: StandInGenerator | None = None,
    **options: Any,
) -> Compiler:
    """A Compiler whose programs run on a stand-in; ``sparse``: with kernels for sparse weights; ``generator``:
    other than that; ``options``: of a Config."""
    events = EventStream() if events is None else events
    host = create_host(device=gpu, cuda_graphs=cuda_graphs, events=events)
    host = replace(host, arenas=_Arenas(gpu), outputs=_Outputs(gpu))
    chosen = {"strict": True, "verify": True, "disk_cache": False, "keep_gpu_weights": True}
    config = Config(**{**chosen, **options})
    generator = StandInGenerator(gpu, sparse) if generator is None else generator
    return Compiler(config, generator, host, events, Spans(), generator)
