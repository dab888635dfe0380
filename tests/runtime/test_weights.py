"""Packed weights: whatever way a weight changes, no call uses an old one."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch

from lazyc.ir.program import (
    Buffer,
    BufferRef,
    EagerStep,
    GemmStep,
    KernelStep,
    Operand,
    Program,
    ProgramOutput,
)
from lazyc.ir.program_verify import verify_program
from lazyc.ir.types import DType, SymbolSource
from lazyc.runtime import weights as weights_module
from lazyc.runtime.program import Executable
from lazyc.runtime.weights import _Guard
from tests.runtime import toy
from tests.runtime.weight_changes import CHANGES, in_place, new_data, sgd

M, N, K = 8, 48, 64


def linear(rows=M, count: int = 1) -> Executable:
    """``f(x, w1, ..., wn) = x @ w1^T`` (and the same with the others), weights packed."""
    symbols = () if isinstance(rows, int) else (SymbolSource(rows, 0, 0),)
    buffers = [toy.buffer(0, "input", (rows, K), 0)]
    buffers += [toy.buffer(i, "input", (N, K), i) for i in range(1, count + 1)]
    outs = [toy.buffer(count + i, "output", (rows, N)) for i in range(1, count + 1)]
    steps = tuple(
        GemmStep(DType.F32, (), rows, N, K, Operand(0, 0, K, 1), Operand(i, 0, 1, K),
                 Operand(count + i, 0, N, 1), pack_b=True)
        for i in range(1, count + 1)
    )  # fmt: skip
    program = Program(
        tuple(range(count + 1)), (*buffers, *outs), steps, tuple(map(toy.whole, outs)), {},
        symbols=symbols, parameters=tuple(range(1, count + 1)),
    )  # fmt: skip
    verify_program(program)
    return Executable(program, {}, toy.host())


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(N, K))


def check(executable: Executable, *weights: torch.Tensor, rows: int = M) -> None:
    x = torch.randn(rows, K)
    for out, w in zip(executable([x, *weights]), weights, strict=True):
        assert torch.allclose(out, x @ w.t(), atol=1e-4)


def renewals(executable: Executable) -> int:
    assert executable.weights is not None
    return executable.weights.renewals


def test_packed_once_while_nothing_changes():
    executable, w = linear(), weight()
    for _ in range(10):
        check(executable, w)
    assert renewals(executable) == 1
    assert executable.weights is not None and executable.weights.nbytes >= N * K * 4


@torch.no_grad()
def one_element(w: torch.nn.Parameter) -> None:
    w[3, 5] += 100.0


def data_edit(w: torch.nn.Parameter) -> None:
    w.data.add_(1.0)


def numpy_edit(w: torch.nn.Parameter) -> None:
    w.detach().numpy()[:] += 1.0


def new_data_at_the_old_address(w: torch.nn.Parameter) -> None:
    address = w.data_ptr()
    for _ in range(100):
        w.data = torch.empty(0)
        w.data = torch.randn(N, K)
        if w.data_ptr() == address:
            return


@torch.no_grad()
def storage_swap(w: torch.nn.Parameter) -> None:
    w.set_(torch.randn(N, K).untyped_storage(), 0, (N, K), (K, 1))


def storage_emptied_and_refilled(w: torch.nn.Parameter) -> None:
    """What sharded training does between uses of a weight."""
    size = w.untyped_storage().nbytes()
    w.untyped_storage().resize_(0)
    w.untyped_storage().resize_(size)
    w.data.copy_(torch.randn(N, K))


def zero(w: torch.nn.Parameter) -> None:
    torch.nn.init.zeros_(w)


ALL_CHANGES = [*CHANGES, one_element, data_edit, numpy_edit, new_data_at_the_old_address, storage_swap,
               storage_emptied_and_refilled, zero]  # fmt: skip


@pytest.mark.parametrize("change", ALL_CHANGES, ids=lambda f: f.__name__)
def test_a_changed_weight_is_packed_again(change):
    executable, w, other = linear(count=2), weight(), weight()
    check(executable, w, other)
    check(executable, w, other)
    for _ in range(3):
        change(w)
        check(executable, w, other)
        check(executable, w, other)
    assert renewals(executable) == 4


def test_a_weight_replaced_by_another():
    executable = linear()
    for _ in range(6):
        w = weight()
        check(executable, w)
        check(executable, w)
        del w  # the next one may get its address and has its version


def test_weights_exchanged():
    executable, a, b = linear(count=2), weight(), weight()
    check(executable, a, b)
    check(executable, b, a)
    check(executable, a, a)


def test_a_plain_tensor_and_an_inference_tensor():
    executable = linear()
    w = torch.randn(N, K)
    check(executable, w)
    w.mul_(3.0)
    check(executable, w)
    with torch.inference_mode():
        frozen = torch.randn(N, K)
    for _ in range(3):
        check(executable, frozen)
        with torch.inference_mode():
            frozen.add_(1.0)


def test_small_parts_changed_behind_the_counter_are_found_by_and_by():
    """An edit through .data of a part only is seen when a sampled word is in it: with several calls
    looking at different words, a changed half is never missed for long."""
    executable, w = linear(), weight()
    check(executable, w)
    w.data[: N // 2].add_(1.0)
    x = torch.randn(M, K)
    for _ in range(4):
        (out,) = executable([x, w])
    assert torch.allclose(out, x @ w.t(), atol=1e-4)


def test_weights_that_change_every_call_are_not_packed_forever():
    executable, w = linear(), weight()
    for _ in range(10):
        check(executable, w)
        in_place(w)
        w.data.clamp_(-2, 2)
    assert executable.weights is not None and not executable.weights.packs_matrices
    check(executable, w)


def test_a_weight_that_died_frees_what_was_kept():
    executable, w = linear(), weight()
    check(executable, w)
    assert executable.weights is not None
    kept = executable.weights._kept
    assert kept is not None
    packed = weakref.ref(next(iter(kept.matrices.values())))
    del kept, w
    gc.collect()
    assert packed() is None and executable.weights.nbytes == 0


def prepared(count: int = 1) -> tuple[Executable, list[torch.nn.Parameter]]:
    """An executable that has packed its weights before its first call."""
    executable, weights = linear(count=count), [weight() for _ in range(count)]
    executable.prepare([torch.randn(M, K), *weights])
    assert executable._packing is not None
    executable._packing.join()
    assert renewals(executable) == 1
    assert executable.weights is not None and executable.weights.nbytes >= count * N * K * 4
    return executable, weights


def test_packed_before_the_first_call():
    executable, weights = prepared(count=3)
    check(executable, *weights)
    assert renewals(executable) == 1


@pytest.mark.parametrize("change", [sgd, in_place, data_edit, new_data, storage_swap])
def test_changed_between_packing_and_the_first_call(change):
    executable, (w,) = prepared()
    change(w)
    check(executable, w)
    assert renewals(executable) == 2


def test_the_first_call_waits_for_packing(monkeypatch: pytest.MonkeyPatch):
    begun, go = threading.Event(), threading.Event()
    pack = weights_module.pack

    def slow(*args: Any) -> None:
        begun.set()
        assert go.wait(10)
        pack(*args)

    monkeypatch.setattr(weights_module, "pack", slow)
    executable, w = linear(), weight()
    executable.prepare([torch.randn(M, K), w])
    assert begun.wait(10)
    threading.Timer(0.05, go.set).start()
    check(executable, w)
    assert renewals(executable) == 1


def test_what_cannot_be_packed_is_met_by_the_call(monkeypatch: pytest.MonkeyPatch):
    def fail(*args: Any) -> None:
        raise MemoryError("no memory for a packed weight")

    monkeypatch.setattr(weights_module, "pack", fail)
    executable, w = linear(), weight()
    executable.prepare([torch.randn(M, K), w])
    with pytest.raises(MemoryError, match="packed weight"):
        executable([torch.randn(M, K), w])
    monkeypatch.undo()
    check(executable, w)


def test_without_a_thread_the_first_call_packs(monkeypatch: pytest.MonkeyPatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    executable, w = linear(), weight()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        executable.prepare([torch.randn(M, K), w])
    assert executable._packing is None and renewals(executable) == 0
    check(executable, w)
    assert renewals(executable) == 1


def test_arguments_that_are_not_those_of_a_call_are_left_alone():
    executable = linear()
    for arguments in ([], [torch.randn(M, K), torch.empty(N, K, device="meta")]):
        executable.prepare(arguments)
        assert executable._packing is None
    folding = folded()
    folding.prepare([torch.randn(M, K), torch.randn(N, K), torch.randn(N)])
    assert folding._packing is None  # it packs no argument, but a product of two


@pytest.mark.parametrize("change", [None, in_place, new_data])
def test_what_is_computed_of_weights_is_added_by_the_first_call(
    change, monkeypatch: pytest.MonkeyPatch
):
    """Its steps run on OpenMP's threads, and a thread of its own is none of them."""
    packed: list[str] = []
    pack = weights_module.pack

    def noted(*args: Any) -> None:
        packed.append(threading.current_thread().name)
        pack(*args)

    monkeypatch.setattr(weights_module, "pack", noted)
    executable = folded(packs_argument=True)
    x, scale, w = torch.randn(M, M), torch.randn(M, M), torch.randn(M, M)
    executable.prepare([x, scale, w])
    assert executable._packing is not None
    executable._packing.join()
    assert packed == ["lazyc-pack"]
    if change is not None:
        change(w)
    for _ in range(2):
        scaled, product, _, flipped = executable([x, scale, w])
        torch.testing.assert_close(scaled, x * 2 * scale)
        torch.testing.assert_close(product, x @ w)
        torch.testing.assert_close(flipped, (2 * scale).flip(0))
    again = [threading.current_thread().name] if change is not None else []
    assert packed == ["lazyc-pack", *again]
    assert renewals(executable) == 1 + len(again)


def test_two_executables_and_their_packs_go_with_them():
    w = weight()
    first, second = linear(), linear()
    check(first, w)
    check(second, w)
    assert first.weights is not None and first.weights._kept is not None
    packed = weakref.ref(next(iter(first.weights._kept.matrices.values())))
    del first
    gc.collect()
    assert packed() is None
    check(second, w)


def test_symbolic_rows():
    executable, w = linear(toy.N0), weight()
    for rows in (4, 8, 1, 130, 8, 0, 3):
        check(executable, w, rows=rows)
    in_place(w)
    for rows in (8, 4, 130):
        check(executable, w, rows=rows)


def test_weights_updated_while_threads_call():
    """Each result must be that of some state the weight was in around the call."""
    executable, w = linear(), weight()
    x = torch.eye(M, K)
    w.data.fill_(0.0)
    failures: list[str] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            before = float(w.detach()[0, 0])
            (out,) = executable([x, w])
            after = float(w.detach()[0, 0])
            low, high = float(out.min()), float(out.max())
            if not before <= low <= high <= after:
                failures.append(f"{before} {low} {high} {after}")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    with torch.no_grad():
        for _ in range(100):
            w.add_(1.0)
    stop.set()
    for worker in workers:
        worker.join()
    assert failures == []


def test_packed_weights_live_as_long_as_the_call_that_reads_them(
    monkeypatch: pytest.MonkeyPatch,
):
    executable, w = linear(), weight()
    check(executable, w)
    weights, runner = executable.weights, executable.last_runner
    assert weights is not None and weights._kept is not None and runner is not None
    matrix = weakref.ref(next(iter(weights._kept.matrices.values())))
    run, alive = runner.run, []

    def run_late(*args: Any) -> list[Any]:
        weights._forget(None)  # what another thread does when it finds the weight changed
        gc.collect()
        alive.append(matrix() is not None)
        return run(*args)

    monkeypatch.setattr(runner, "run", run_late)
    check(executable, w)
    assert alive == [True]
    gc.collect()
    assert matrix() is None


# --- packed buffers: steps over parameters ------------------------------------------------------------


def folded(packs_argument: bool = False) -> Executable:
    """``(x * scale2) @ ...``: kernels, a product and an eager call over parameters are kept.

    b3 = scale + scale (kernel), b5 = w @ w (product), b6 = flip(b3) (eager).
    Returns x * b3, x @ b5 (or, ``packs_argument``, x @ w), b6 + x and b6 itself.
    """
    S = (M, M)
    b = [toy.buffer(0, "input", S, 0), toy.buffer(1, "input", S, 1), toy.buffer(2, "input", S, 2),
         toy.buffer(3, "packed", S), toy.buffer(4, "output", S), toy.buffer(5, "packed", S),
         toy.buffer(6, "packed", S), toy.buffer(7, "output", S), toy.buffer(8, "eager", S)]  # fmt: skip

    def op(i: int) -> Operand:
        return Operand(i, 0, M, 1)

    factor = 2 if packs_argument else 5
    packed = (
        KernelStep("double", (1, 3), ()),
        GemmStep(DType.F32, (), M, M, M, op(2), op(2), op(5)),
        EagerStep("aten.flip.default", (BufferRef(3), (0,)), (), (6,), False, False),
    )
    steps = (
        KernelStep("mul", (0, 3, 4), ()),
        GemmStep(DType.F32, (), M, M, M, op(0), op(factor), op(7), pack_b=True),
        EagerStep("aten.add.Tensor", (BufferRef(6), BufferRef(0)), (), (8,), False, False),
    )
    outputs = tuple(toy.whole(b[i]) for i in (4, 7, 8, 6))
    nests = {k: toy.nest(k, M * M) for k in ("double", "mul")}
    program = Program((0, 1, 2), tuple(b), steps, outputs, nests, packed=packed, parameters=(1, 2))
    verify_program(program)
    return Executable(program, {k: toy.kernel(k, M * M) for k in nests}, toy.host())


def check_folded(executable: Executable, scale: torch.Tensor, w: torch.Tensor) -> None:
    x = torch.randn(M, M)
    scaled, product, added, flipped = executable([x, scale, w])
    assert torch.allclose(scaled, x * (scale + scale))
    assert torch.allclose(product, x @ (w @ w), atol=1e-3)
    assert torch.allclose(added, (2 * scale).flip(0) + x)
    assert torch.allclose(flipped, (2 * scale).flip(0))
    flipped.detach().zero_()  # a copy: what is kept does not change


def test_steps_over_parameters_run_once():
    executable = folded()
    scale, w = (torch.nn.Parameter(torch.randn(M, M)) for _ in range(2))
    for _ in range(4):
        check_folded(executable, scale, w)
    assert renewals(executable) == 1
    in_place(w)
    check_folded(executable, scale, w)
    data_edit(scale)
    check_folded(executable, scale, w)
    check_folded(executable, scale, w)
    assert renewals(executable) == 3


def test_steps_over_inference_tensors_run_each_call():
    executable = folded()
    with torch.inference_mode():
        scale, w = torch.randn(M, M), torch.randn(M, M)
        for _ in range(3):
            check_folded(executable, scale, w)
            scale.add_(1.0)
            w.mul_(0.5)


def test_scalar_parameters_are_guarded():
    """A weight of four bytes has no word to sample; its bytes are compared."""
    b = [toy.buffer(0, "input", (), 0), toy.buffer(1, "packed", ()), toy.buffer(2, "output", ()),
         toy.buffer(3, "input", (), 1)]  # fmt: skip
    nests = {k: toy.nest(k, 1) for k in ("double", "add")}
    program = Program(
        (0, 3), tuple(b), (KernelStep("add", (1, 3, 2), ()),), (toy.whole(b[2]),), nests,
        packed=(KernelStep("double", (0, 1), ()),), parameters=(0,),
    )  # fmt: skip
    verify_program(program)
    executable = Executable(program, {k: toy.kernel(k, 1) for k in nests}, toy.host())
    w, x = torch.nn.Parameter(torch.tensor(3.0)), torch.tensor(1.0)
    assert executable([w, x])[0] == 7
    w.data.fill_(5.0)
    assert executable([w, x])[0] == 11
    assert executable([w, x])[0] == 11
    assert renewals(executable) == 2


def test_opaque_layouts_are_kept_as_they_are():
    """An oneDNN weight has no strides that lazyc could name."""
    S = (16, 32)
    b = [toy.buffer(0, "input", (4, 32), 0), toy.buffer(1, "input", S, 1),
         Buffer(2, "packed", None, (), ()), toy.buffer(3, "eager", (4, 16))]  # fmt: skip
    program = Program(
        (0, 1), tuple(b),
        (EagerStep("mkldnn._linear_pointwise.default",
                   (BufferRef(0), BufferRef(2), None, "none", (), ""), (), (3,), False, False),),
        (toy.whole(b[3]),), {}, parameters=(1,),
        packed=(EagerStep("mkldnn._reorder_linear_weight.default",
                          (BufferRef(1), 4), (), (2,), False, False),),
    )  # fmt: skip
    verify_program(program)
    executable = Executable(program, {}, toy.host())
    w = torch.nn.Parameter(torch.randn(S))
    for _ in range(2):
        for _ in range(2):
            x = torch.randn(4, 32)
            assert torch.allclose(executable([x, w])[0], x @ w.t(), atol=1e-4)
        in_place(w)
    assert renewals(executable) == 2


def test_an_eager_result_that_kernels_read_has_the_layout_that_they_count_on():
    """``aten.t`` returns a view with other strides than the Program says."""
    S = (M, M)
    b = [toy.buffer(0, "input", S, 0), toy.buffer(1, "input", S, 1), toy.buffer(2, "packed", S),
         toy.buffer(3, "packed", S), toy.buffer(4, "packed", S), toy.buffer(5, "output", S),
         toy.buffer(6, "output", S)]  # fmt: skip
    packed = (
        EagerStep("aten.t.default", (BufferRef(1),), (), (2,), False, False),
        KernelStep("double", (2, 3), ()),
        EagerStep("aten.t.default", (BufferRef(3),), (), (4,), False, False),
    )
    steps = (KernelStep("add", (0, 2, 5), ()), KernelStep("mul", (0, 4, 6), ()))
    nests = {k: toy.nest(k, M * M) for k in ("double", "add", "mul")}
    program = Program(
        (0, 1), tuple(b), steps, (toy.whole(b[5]), toy.whole(b[6])), nests, packed=packed,
        parameters=(1,),
    )  # fmt: skip
    verify_program(program)
    executable = Executable(program, {k: toy.kernel(k, M * M) for k in nests}, toy.host())
    w = torch.nn.Parameter(torch.randn(S))
    for _ in range(2):
        for _ in range(2):
            x = torch.randn(S)
            added, scaled = executable([x, w])
            assert torch.equal(added, x + w.t()) and torch.equal(scaled, x * (2 * w))
        in_place(w)
    assert renewals(executable) == 2


def test_an_output_may_be_a_parameter():
    executable = linear()
    w = weight()
    program = executable.program
    program.outputs = (*program.outputs, ProgramOutput(1, (N, K), (K, 1)))
    executable = Executable(program, {}, toy.host())
    x = torch.randn(M, K)
    out, same = executable([x, w])
    assert same is w and torch.allclose(out, x @ w.t(), atol=1e-4)


def test_words_of_a_gpu_are_not_read():
    """Its memory is not the CPU's: identity, address and version tell of changes there."""
    parameters = [torch.empty(3, 40, device="meta"), torch.empty((), device="meta")]

    guard = _Guard(parameters, toy.host().driver.run_short, lambda dead: None, on_cpu=False)
    assert guard.holds(parameters)
    parameters[0].add_(1)
    assert not guard.holds(parameters)
