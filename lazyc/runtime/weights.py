"""Weights kept in a form that suits the machine, and the guard that they are never stale.

A Program of an inference graph may keep work on its parameters between calls: matrices packed for
the BLAS, sparse weights compressed, and the results of ``Program.packed`` steps. Before each call every
parameter is compared with what it was:

* its identity: the same tensor object, and a weak reference tells when that dies, so that another
  one at the same address is not taken for it;
* its memory's address and its version counter, which every in-place operator advances;
* sixteen words of its memory, at positions that change from call to call, because an edit through
  ``param.data`` or a numpy view advances no counter that the parameter sees. Such an edit is
  noticed when it touches a sampled word: at once if it changes the whole weight, as an optimizer
  does.

On a GPU the words are not looked at, which would have to wait for it: there an edit goes unnoticed that
advances no counter. What is kept is made on the stream of the call that needs it first; calls on other streams
wait for it there. While the caller captures a CUDA graph, nothing that is kept is used: what is made of weights
is made again in each replay, since they may have changed by then.

What fails is computed again from the parameters. To compress a weight takes as long as dozens of its
products: after a change these are dense ones until the weights have stayed the same for some calls, and
remain so where a weight is no longer as sparse as declared. Parameters without a version counter (inference
tensors) are not kept at all.
"""

from __future__ import annotations

import ctypes
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch

from lazyc.codegen.base import Kernel
from lazyc.forks import renew_in_child
from lazyc.ir.block_sparse import compress_blocks
from lazyc.ir.program import (
    Buffer,
    EagerStep,
    GemmStep,
    KernelStep,
    Program,
    ProgramOutput,
)
from lazyc.ir.sparse import SparseProduct, Sparsity, compress_24
from lazyc.ir.types import storage_extent
from lazyc.report.events import WeightNotSparse, WeightsPacked
from lazyc.runtime.compressed import compress, compressed_buffers, compressed_key
from lazyc.runtime.device import Shared
from lazyc.runtime.driver import ERROR_STALE, TableWriter
from lazyc.runtime.host import Host
from lazyc.runtime.library import GemmCall, pack, packed_bytes
from lazyc.runtime.plan import Plan, touched
from lazyc.runtime.products import pack_for_tiles

_SAMPLES = 16  # words looked at in each parameter, each call
_TURNS = 4  # sets of positions, used by turns
_SETTLED = 8  # calls without a change after which sparse weights are compressed again
_PATIENCE = 3  # times that all was for nothing before matrices are no longer packed
_WORD = 8

_COMPRESS: Mapping[Sparsity, Callable[[SparseProduct, torch.Tensor], torch.Tensor | None]] = {
    "2:4": compress_24,
    "block 16": compress_blocks,
    "block 32": compress_blocks,
}

_data_ptr = torch.Tensor.data_ptr


def packed_program(program: Program) -> Program | None:
    """The Program that computes the packed buffers from the arguments; None if there are none.

    A packed buffer is a plain output of it. What an eager step returns is kept as it is, but for what
    native steps read: that gets the layout that they count on.
    """
    if not program.packed:
        return None
    by_eager = {b for s in program.packed if isinstance(s, EagerStep) for b in s.outputs}
    native = (s for s in (*program.packed, *program.steps) if not isinstance(s, EagerStep))
    addressed = {b for step in native for b in touched(step)}

    def kind(b: Buffer) -> Literal["output", "eager", "opaque"]:
        if b.id in addressed:
            return "eager" if b.id in by_eager else "output"
        return "opaque"

    buffers = tuple(replace(b, kind=kind(b)) if b.kind == "packed" else b for b in program.buffers)
    kept = _filled_buffers(program)
    outputs = tuple(ProgramOutput(b.id, b.shape, b.strides) for b in kept)
    return replace(
        program, buffers=buffers, steps=program.packed, outputs=outputs, packed=(), tiles=()
    )


def _filled_buffers(program: Program) -> list[Buffer]:
    """The packed buffers that have a value: not those of a tuple of which only elements are read."""
    filled = {b for step in program.packed for b in touched(step)}
    return [b for b in program.buffers if b.kind == "packed" and b.id in filled]


@dataclass(slots=True)
class Kept:
    """What is kept for one state of the parameters.

    ``packed`` pairs each packed buffer with its value, and so those of ``runtime.compressed``.
    ``is_current`` tells whether parameters (in the order of ``Program.parameters``) are what they were.
    ``matrices`` holds packed matrices, and
    ``pointers`` what was found for each plan (by its id; the plan beside it keeps that unique).
    ``compressed`` holds sparse weights by the numbers of the steps that read them. ``shared``: what of all
    this was made on a GPU.
    """

    packed: Sequence[tuple[int, Any]]
    is_current: Callable[[Sequence[torch.Tensor]], bool]
    matrices: dict[Any, torch.Tensor] = field(default_factory=dict)
    pointers: dict[int, tuple[Plan, list[int]]] = field(default_factory=dict)
    uses: int = 0
    compressed: Mapping[int, torch.Tensor] | None = None  # None: not looked at yet
    shared: tuple[Shared, ...] = ()

    @property
    def sparse(self) -> frozenset[int]:
        """The steps that read compressed weights."""
        return frozenset(self.compressed or ())


NOTHING_KEPT = Kept([], lambda now: True)


class WeightCache:
    """The weights that one Program keeps. ``kernels`` as of Executable; ``compute`` runs its ``packed_program``, if it has one."""

    def __init__(
        self,
        program: Program,
        kernels: Mapping[str, Kernel],
        host: Host,
        compute: Callable[[list[Any]], list[Any]] | None,
    ) -> None:
        self._program = program
        self._kernels = kernels
        self._host = host
        self._compute = compute
        self._ids = [b.id for b in _filled_buffers(program)]
        self._compressed_ids = compressed_buffers(program)
        self._kept: Kept | None = None
        self._ahead: Kept | None = None  # of matrices alone, until the first call
        self._wasted = 0
        self._lock = threading.RLock()
        renew_in_child(self)
        self.renewals = 0  # times that the weights were packed, for reports
        self.packs_matrices = True  # False once weights turned out to change all the time

    @property
    def nbytes(self) -> int:
        """Memory of packed matrices (address space: MKL leaves a part untouched) and sparse weights."""
        kept = self._kept or self._ahead
        if kept is None:
            return 0
        compressed = {id(t): t for t in (kept.compressed or {}).values()}
        return sum(t.nbytes for t in (*kept.matrices.values(), *compressed.values()))

    def can_pack_ahead(self, args: Sequence[Any]) -> bool:
        """Whether there is something for ``pack_ahead`` to do for the first call with ``args``, on one thread:
        the library's packing does not run on OpenMP's."""
        parameters = [args[i] for i in self._program.parameters if i < len(args)]
        packed = [s for s in self._program.steps if isinstance(s, GemmStep) and s.pack_b]
        return (
            self.packs_matrices
            and self._host.device is None
            and len(parameters) == len(self._program.parameters)
            and all(type(p) in (torch.Tensor, torch.nn.Parameter) for p in parameters)
            and all(p.device.type == "cpu" and not p.is_inference() for p in parameters)
            and any(self._program.buffers[s.b.buffer].kind == "input" for s in packed)
            and not any(s.tile for s in packed)
            and not self._program.sparse_products()
        )

    def pack_ahead(self, plan: Plan, args: Sequence[Any]) -> None:
        """Packs those matrices of ``plan`` that are parameters as they are. The first call adds what is computed
        of parameters, or does all anew if they have changed until then."""
        with self._lock:
            parameters = [args[i] for i in self._program.parameters]
            self.renewals += 1
            ahead = Kept([], self._guard(parameters).holds)
            for request in plan.packs:
                call = request.call
                if self._program.buffers[call.product.b.buffer].kind == "input":
                    key = _matrix_key(call)
                    if key not in ahead.matrices:
                        ahead.matrices[key] = self._pack(call, {}, args)
            self._ahead = ahead
            self._tell([*ahead.matrices.values()])

    def current(self, args: Sequence[Any]) -> Kept:
        """What is kept for the parameters among ``args``, computed anew if they have changed."""
        device = self._host.device
        if device is not None and device.is_capturing():
            # The graph may outlive what is kept, and has to follow weights that change.
            return Kept(self._computed(args), lambda now: True)
        kept = self._current(args)
        for shared in kept.shared:
            shared.use()
        return kept

    def _current(self, args: Sequence[Any]) -> Kept:
        parameters = [args[i] for i in self._program.parameters]
        kept = self._kept
        if kept is not None and kept.is_current(parameters):
            kept.uses += 1
            if kept.compressed is None and kept.uses >= _SETTLED:
                with self._lock:
                    if self._kept is kept:
                        kept = self._kept = self._with_compressed(kept, args)
            return kept
        with self._lock:
            kept = self._kept
            if kept is not None and kept.is_current(parameters):
                return kept
            kept = None  # what takes its place may have its memory
            return self._renew(args, parameters)

    def _renew(self, args: Sequence[Any], parameters: Sequence[torch.Tensor]) -> Kept:
        if self._kept is not None:
            self._wasted = 0 if self._kept.uses else self._wasted + 1
            self._kept = None
        ahead, self._ahead = self._ahead, None
        if ahead is not None and not ahead.is_current(parameters):
            ahead = None
        if ahead is None:
            self.renewals += 1
        if self._wasted >= _PATIENCE:
            self.packs_matrices = False
        if any(p.is_inference() for p in parameters):
            self.packs_matrices = False
            return Kept(self._computed(args), lambda now: False)
        # Made before anything is made of the weights: what is written to them meanwhile is a change.
        holds = ahead.is_current if ahead is not None else self._guard(parameters).holds
        packed = self._computed(args)
        made = [t for _, t in packed if isinstance(t, torch.Tensor)]
        self._tell(made)
        kept = Kept(packed, holds, shared=self._shared(made))
        if ahead is not None:
            kept.matrices = ahead.matrices
        if self.renewals == 1:
            kept = self._with_compressed(kept, args)
        self._kept = kept
        return kept

    def _guard(self, parameters: Sequence[torch.Tensor]) -> _Guard:
        on_cpu = self._host.device is None
        return _Guard(parameters, self._host.driver.run_short, self._forget, on_cpu)

    def _computed(self, args: Sequence[Any]) -> list[tuple[int, Any]]:
        """Each packed buffer with its value."""
        results = self._compute(list(args)) if self._compute is not None else []
        return list(zip(self._ids, results, strict=True))

    def _shared(self, made: Sequence[torch.Tensor]) -> tuple[Shared, ...]:
        device = self._host.device
        return (Shared(device, made),) if device is not None and made else ()

    def _with_compressed(self, kept: Kept, args: Sequence[Any]) -> Kept:
        """``kept`` with the sparse weights in compressed form, of those that are as sparse as declared. (It is
        another one: a thread that has ``kept`` finds in it what it was.)"""
        found = self._compressed(args) if self.packs_matrices else {}
        made = {id(t): t for t in found.values()}
        return replace(
            kept,
            packed=[
                *kept.packed,
                *((b, found[n]) for n, b in self._compressed_ids.items() if n in found),
            ],
            compressed=found,
            shared=(*kept.shared, *self._shared([*made.values()])),
        )

    def _compressed(self, args: Sequence[Any]) -> dict[int, torch.Tensor]:
        made: dict[tuple[Any, ...], torch.Tensor | None] = {}
        found: dict[int, torch.Tensor] = {}
        for request in self._requests():
            weight = args[self._program.buffers[request.weight].source]
            key = id(weight), *request.form
            if key not in made:
                with self._host.spans.span("library", "compress a weight", bytes=weight.nbytes):
                    made[key] = request.compress(weight)
                if made[key] is None:
                    event = WeightNotSparse(request.sparsity, tuple(weight.shape), request.comment)
                    self._host.events.emit(event)
            compressed = made[key]
            if compressed is not None:
                found[request.step] = compressed
        self._tell([t for t in made.values() if t is not None])
        return found

    def _requests(self) -> Iterator[_Request]:
        """The compressed weights that steps of the Program can read."""
        steps = self._program.steps
        for number, product in self._program.sparse_products():
            step = steps[number]
            assert isinstance(step, GemmStep)
            yield _Request(
                number, step.b.buffer, product.sparsity, (product.tile,), step.comment,
                partial(_COMPRESS[product.sparsity], product),
            )  # fmt: skip
        for number, source in self._program.sparse_contractions():
            step = steps[number]
            assert isinstance(step, KernelStep)
            yield _Request(
                number, step.buffers[source.weight], source.sparsity, compressed_key(source),
                step.comment, partial(compress, source),
            )  # fmt: skip

    def _forget(self, dead: object) -> None:
        """A parameter died: what was made of it is of no use."""
        self._kept = self._ahead = None

    def pointers(self, kept: Kept, plan: Plan, args: Sequence[Any]) -> list[int]:
        """Addresses of the packed buffers and matrices that ``plan`` reads, in slot order."""
        known = kept.pointers.get(id(plan))
        if known is None:
            known = kept.pointers[id(plan)] = plan, self._find_pointers(kept, plan, args)
        return known[1]

    def _find_pointers(self, kept: Kept, plan: Plan, args: Sequence[Any]) -> list[int]:
        values = dict(kept.packed)
        found = [values[b].data_ptr() for b in plan.packed]
        new: list[torch.Tensor] = []
        for request in plan.packs:
            call = request.call
            key = _matrix_key(call)
            with self._lock:
                matrix = kept.matrices.get(key)
                if matrix is None:
                    matrix = kept.matrices[key] = self._pack(call, values, args)
                    new.append(matrix)
            found.append(matrix.data_ptr())
        compressed = kept.compressed or {}
        found += [compressed[number].data_ptr() for number in plan.compressed]
        self._tell(new)
        return found

    def _tell(self, new: Sequence[torch.Tensor]) -> None:
        """Reports what was made of weights."""
        if new:
            size = sum(t.nbytes for t in new)
            self._host.events.emit(WeightsPacked(len(new), size, self.renewals > 1))

    def _pack(self, call: GemmCall, values: Mapping[int, Any], args: Sequence[Any]) -> torch.Tensor:
        b = call.product.b
        buffer = self._program.buffers[b.buffer]
        if buffer.kind == "input":
            source = args[buffer.source]
        elif buffer.kind == "constant":
            source = self._program.constants[buffer.source]
        else:
            source = values[buffer.id]
        address = source.data_ptr() + b.offset * call.dtype.itemsize
        blas, tile = self._host.blas, call.tile
        size = (
            tile.packed_b_bytes(call.product.n, call.product.k)
            if tile
            else packed_bytes(blas, call)
        )
        # Fresh memory is touched only where MKL writes to it: not the part that it leaves unused.
        target = torch.empty(size, dtype=torch.uint8, device="cpu")
        with self._host.spans.span("library", "pack a weight", bytes=source.nbytes):
            if tile:
                pack_for_tiles(self._host, self._kernels, call, address, target.data_ptr())
            else:
                pack(blas, call, address, target.data_ptr())
        return target


def _matrix_key(call: GemmCall) -> tuple[Any, ...]:
    """With equal ones, packed matrices of the same parameters are equal."""
    rows = call.product.m if call.tile is None else 0  # the library's form depends on the rows of a
    return call.product.b, rows, call.product.n, call.ldb, call.transpose_b


@dataclass(frozen=True, slots=True)
class _Request:
    """A compressed weight that step number ``step`` can read. ``weight``: its buffer; ``form``: with equal
    ones, compressed forms are equal; ``comment`` is that of the step."""

    step: int
    weight: int
    sparsity: Sparsity
    form: tuple[object, ...]
    comment: str
    compress: Callable[[torch.Tensor], torch.Tensor | None]


class _Guard:
    """Compares parameters with what they were when this was made; ``on_cpu``: their words too."""

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        run: Callable[[int, int], int],
        forget: Callable[[object], None],
        on_cpu: bool = True,
    ) -> None:
        self._ids = [*map(id, parameters)]
        self._pointers = [*map(_data_ptr, parameters)]
        self._versions = [p._version for p in parameters]
        self._watch = [weakref.ref(p, forget) for p in parameters]
        looked_at = parameters if on_cpu else ()
        self._small = [
            (i, _bytes(p))
            for i, p in enumerate(looked_at)
            if 0 < p.numel() * p.element_size() < _WORD
        ]
        self._tables = [_sample_table(looked_at, turn) for turn in range(_TURNS)]
        self._addresses = [ctypes.addressof(t) for t in self._tables]
        self._turn = 0
        self._run = run

    def holds(self, parameters: Sequence[torch.Tensor]) -> bool:
        if [*map(id, parameters)] != self._ids:
            return False
        if [*map(_data_ptr, parameters)] != self._pointers:
            return False
        if [p._version for p in parameters] != self._versions:
            return False
        self._turn = turn = (self._turn + 1) % _TURNS
        if self._run(self._addresses[turn], 0) == ERROR_STALE:
            return False
        return all(_bytes(parameters[i]) == before for i, before in self._small)


def _bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor of less than a word (with those between its elements, if strided)."""
    extent = storage_extent(tensor.shape, tensor.stride()) * tensor.element_size()
    return ctypes.string_at(tensor.data_ptr(), extent)


def _sample_table(parameters: Sequence[torch.Tensor], turn: int) -> ctypes.Array[ctypes.c_int64]:
    """A driver table that compares words of every parameter with what they are now."""
    words: list[tuple[int, int]] = []
    for number, parameter in enumerate(parameters):
        # A strided parameter is sampled between its elements too; a change there costs a renewal.
        extent = storage_extent(parameter.shape, parameter.stride()) * parameter.element_size()
        if extent < _WORD:
            continue
        positions = random.Random(number * _TURNS + turn)
        for _ in range(_SAMPLES):
            address = parameter.data_ptr() + positions.randint(0, extent - _WORD)
            words.append((address, ctypes.c_int64.from_address(address).value))
    table = TableWriter()
    table.guard(words)
    table.end()
    return table.array()
