"""Executables: results, aliasing, eager steps, symbols, seeds, errors, reentrancy."""

from __future__ import annotations

import threading
import weakref

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
    SeedStep,
)
from lazyc.ir.program_verify import verify_program
from lazyc.ir.types import DType, SymbolSource
from lazyc.runtime.program import Executable
from lazyc.runtime.runner import KernelError
from tests.runtime import toy

SHAPE = (6, 5)


def build(inputs, buffers, steps, outputs, kinds=(), size=30, **more) -> Executable:
    """An Executable over toy kernels ``kinds``; verified."""
    program = Program(
        inputs=inputs,
        buffers=tuple(buffers),
        steps=tuple(steps),
        outputs=tuple(outputs),
        nests={k: toy.nest(k, size) for k in kinds},
        **more,
    )
    verify_program(program)
    return Executable(program, {k: toy.kernel(k, size) for k in kinds}, toy.host())


def eager(target: str, args, outputs, is_tuple=False, **kwargs) -> EagerStep:
    return EagerStep(
        target, tuple(args), tuple(kwargs.items()), tuple(outputs), is_tuple, True, "t"
    )


def xy(count: int = 2) -> list[Buffer]:
    return [toy.buffer(i, "input", SHAPE, i) for i in range(count)]


def rand() -> torch.Tensor:
    return torch.randn(SHAPE)


# --- calls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (6, 5), (0,), (3, 0, 2), (40, 50)])
def test_chain(shape):
    kinds = ["add", "mul", "double", "mul"]
    executable = toy.chain(kinds, shape)
    for _ in range(3):
        x, y = torch.randn(shape), torch.randn(shape)
        args = [x, y]
        (out,) = executable(args)
        assert torch.equal(out, toy.reference(kinds, x, y)) and args == []


def test_big_chain_on_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        kinds = ["add", "mul", "double"]
        executable = toy.chain(kinds, (300, 1001), grain=100)
        x, y = torch.randn(300, 1001), torch.randn(300, 1001)
        assert torch.equal(executable([x, y])[0], toy.reference(kinds, x, y))
    finally:
        torch.set_num_threads(before)


def test_misaligned_and_parameter_inputs():
    executable = toy.chain(["add"], SHAPE)
    x = torch.randn(31)[1:].view(SHAPE)
    y = torch.nn.Parameter(rand())
    assert torch.equal(executable([x, y])[0], x + y)


def test_unused_arguments_of_any_type():
    buffers = [toy.buffer(0, "input", SHAPE, 1), toy.buffer(1, "output", SHAPE)]
    executable = build((-1, 0, -1), buffers, [KernelStep("double", (0, 1), ())],
                       [toy.whole(buffers[1])], ["double"])  # fmt: skip
    x = rand()
    assert torch.equal(executable([None, x, 3])[0], 2 * x)


def test_arguments_of_other_strides_are_laid_out_again():
    executable = toy.chain(["add"], SHAPE)
    x, y = torch.randn(5, 6).t(), rand()
    assert torch.equal(executable([x, y])[0], x + y)
    row = torch.randn(1, 5).expand(SHAPE)
    assert torch.equal(executable([row, y])[0], row + y)


def test_arguments_of_another_shape_are_an_error():
    executable = toy.chain(["add"], SHAPE)
    with pytest.raises(RuntimeError, match="argument 1 is"):
        executable([rand(), torch.randn(5)])


def test_a_mutated_argument_of_other_strides_is_an_error():
    b = xy()
    executable = build((0, 1), b, [KernelStep("accumulate", (0, 1), ())], [], ["accumulate"])
    with pytest.raises(RuntimeError, match="argument 0 is"):
        executable([torch.randn(5, 6).t(), rand()])


def test_strides_of_dims_of_size_one_mean_nothing():
    executable = toy.chain(["add"], (1, 5))
    x, y = torch.randn(5).as_strided((1, 5), (77, 1)), torch.randn(1, 5)
    assert torch.equal(executable([x, y])[0], x + y)


def test_symbols_bind_once_for_each_size():
    n = toy.N0
    buffers = [toy.buffer(0, "input", (n, 4), 0), toy.buffer(1, "input", (n, 4), 1),
               toy.buffer(2, "temp", (n, 4)), toy.buffer(3, "output", (n, 4))]  # fmt: skip
    nests = {k: toy.nest(k, n * 4, (n,)) for k in ("add", "double")}
    program = Program(
        (0, 1), tuple(buffers),
        (KernelStep("add", (0, 1, 2), (n,)), KernelStep("double", (2, 3), (n,))),
        (toy.whole(buffers[3]), ProgramOutput(-1, value=n * 4 + 1)),
        nests, symbols=(SymbolSource(n, 0, 0),),
    )  # fmt: skip
    verify_program(program)
    kernels = {k: toy.kernel(k, n * 4) for k in nests}
    executable = Executable(program, kernels, toy.host())
    for rows in (3, 1, 200, 0, 3):
        x, y = torch.randn(rows, 4), torch.randn(rows, 4)
        out, number = executable([x, y])
        assert torch.equal(out, 2 * (x + y)) and number == rows * 4 + 1
    for rows in range(2, 100):  # more sizes than stay bound
        assert executable([torch.ones(rows, 4), torch.ones(rows, 4)])[1] == rows * 4 + 1


def test_symbol_given_as_an_integer_argument():
    n = toy.N0
    out = toy.buffer(0, "output", (n,))
    program = Program((-1,), (out,), (KernelStep("split", (0,), (n * 2,)),), (toy.whole(out),),
                      {"split": toy.nest("split", n, (n,))}, symbols=(SymbolSource(n, 0),))  # fmt: skip
    # The kernel's own symbol is n0 too: its value is the step's size, n * 2.
    executable = Executable(program, {"split": toy.kernel("split", n // 2)}, toy.host())
    assert executable([4])[0].tolist() == [4 + 8.0] * 4


# --- results ------------------------------------------------------------------------------------------


def test_plain_values_and_duplicates():
    b = [*xy(), toy.buffer(2, "output", SHAPE)]
    executable = build((0, 1), b, [KernelStep("add", (0, 1, 2), ())],
                       [toy.whole(b[2]), ProgramOutput(-1), ProgramOutput(-1, value=7),
                        toy.whole(b[2])], ["add"])  # fmt: skip
    out, nothing, seven, again = executable([rand(), rand()])
    assert nothing is None and seven == 7 and out is again


def test_outputs_out_of_order():
    b = [*xy(), toy.buffer(2, "output", SHAPE), toy.buffer(3, "output", SHAPE)]
    steps = [KernelStep("add", (0, 1, 2), ()), KernelStep("mul", (0, 1, 3), ())]
    executable = build((0, 1), b, steps, [toy.whole(b[3]), toy.whole(b[2])], ["add", "mul"])
    x, y = rand(), rand()
    product, total = executable([x, y])
    assert torch.equal(product, x * y) and torch.equal(total, x + y)


def test_input_returned_as_it_is_and_as_a_view():
    b = xy(1)
    view = ProgramOutput(0, (2, 5), (5, 1), 10)
    executable = build((0,), b, [], [toy.whole(b[0]), view])
    base = torch.randn(40)
    x = base[10:].view(SHAPE)
    same, part = executable([x])
    assert same is x and torch.equal(part, x[2:4])
    part.zero_()
    assert (x[2:4] == 0).all()


def test_a_slice_as_the_only_result_is_no_view():
    b = [*xy(), toy.buffer(2, "output", SHAPE)]
    view = ProgramOutput(2, (6, 3), (5, 1), 1)
    executable = build((0, 1), b, [KernelStep("add", (0, 1, 2), ())], [view], ["add"])
    x, y = rand(), rand()
    (out,) = executable([x, y])
    assert torch.equal(out, (x + y)[:, 1:4]) and out.storage_offset() == 1 and not out._is_view()


def test_two_views_of_one_buffer_share_memory():
    b = [*xy(), toy.buffer(2, "output", SHAPE)]
    views = [toy.whole(b[2]), ProgramOutput(2, (5, 6), (1, 5))]
    executable = build((0, 1), b, [KernelStep("add", (0, 1, 2), ())], views, ["add"])
    whole, transposed = executable([rand(), rand()])
    whole.add_(1)
    assert torch.equal(whole.t(), transposed) and transposed._version == 1


def test_strides_of_results():
    b = [*xy(), toy.buffer(2, "output", SHAPE, strides=(1, 6))]
    executable = build((0, 1), b, [KernelStep("add", (0, 1, 2), ())], [toy.whole(b[2])], ["add"])
    assert executable([rand(), rand()])[0].stride() == (1, 6)


def test_constant_results_are_copies():
    constant = torch.arange(30.0).view(SHAPE)
    b = [*xy(1), toy.buffer(1, "constant", SHAPE, 0), toy.buffer(2, "output", SHAPE)]
    executable = build((0,), b, [KernelStep("add", (0, 1, 2), ())],
                       [toy.whole(b[1]), toy.whole(b[2])], ["add"], constants=[constant])  # fmt: skip
    for _ in range(2):
        x = rand()
        copy, total = executable([x])
        assert torch.equal(total, x + torch.arange(30.0).view(SHAPE))
        copy.zero_()  # the user's own
    assert constant[0, 1] == 1


def test_temporary_as_result_is_not_overwritten():
    b = [*xy(), toy.buffer(2, "temp", SHAPE)]
    executable = build((0, 1), b, [KernelStep("add", (0, 1, 2), ())], [toy.whole(b[2])], ["add"])
    x, y = rand(), rand()
    (first,) = executable([x, y])
    executable([y, y])
    assert torch.equal(first, x + y)


def test_dead_temporaries_share_memory_live_ones_do_not():
    kinds = ["add", "mul", "double", "add", "mul"]
    executable = toy.chain(kinds, (100, 100))
    assert executable._only is not None
    assert executable._only.plan.arena_bytes <= 2 * (40000 + 64)


def test_mutated_input():
    b = xy()
    executable = build((0, 1), b, [KernelStep("accumulate", (0, 1), ())], [toy.whole(b[0])],
                       ["accumulate"])  # fmt: skip
    x, y = rand(), rand()
    expected = x + y
    version = x._version
    (out,) = executable([x, y])
    assert out is x and torch.equal(x, expected) and x._version > version


def test_mutation_is_seen_by_autograd():
    b = xy()
    executable = build((0, 1), b, [KernelStep("accumulate", (0, 1), ())], [], ["accumulate"])
    w, x = torch.ones(SHAPE, requires_grad=True), rand()
    loss = (w * x).sum()  # saves x
    executable([x, rand()])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_kernel_error_tells_about_mutation():
    b = [*xy(), toy.buffer(2, "output", SHAPE)]
    steps = [KernelStep("check", (0, 2), ()), KernelStep("accumulate", (0, 1), ())]
    executable = build((0, 1), b, steps, [toy.whole(b[2])], ["check", "accumulate"])
    with pytest.raises(KernelError) as caught:
        executable([-torch.ones(SHAPE), torch.ones(SHAPE)])
    assert caught.value.mutated


# --- eager steps --------------------------------------------------------------------------------------


def test_eager_call_between_kernels():
    b = [*xy(), toy.buffer(2, "temp", SHAPE), toy.buffer(3, "eager", SHAPE),
         toy.buffer(4, "output", SHAPE)]  # fmt: skip
    steps = [KernelStep("add", (0, 1, 2), ()),
             eager("aten.flip.default", [BufferRef(2), (1,)], [3]),
             KernelStep("mul", (3, 1, 4), ())]  # fmt: skip
    executable = build((0, 1), b, steps, [toy.whole(b[4]), toy.whole(b[3])], ["add", "mul"])
    for _ in range(3):
        x, y = rand(), rand()
        out, flipped = executable([x, y])
        assert torch.equal(flipped, (x + y).flip(1)) and torch.equal(out, (x + y).flip(1) * y)
    stats = executable.eager_log.stats["aten.flip.default", "t"]
    assert stats.calls == 3 and stats.is_fallback and stats.seconds == 0
    executable.eager_log.timed = True
    executable([rand(), rand()])
    assert stats.calls == 4 and stats.seconds > 0


def test_eager_tuple_with_opaque_result_and_symbolic_argument():
    n = toy.N0
    b = [toy.buffer(0, "input", (n, 4), 0), toy.buffer(1, "eager", (n, 4)),
         toy.buffer(2, "eager", (n, 4), dtype=DType.I64),
         Buffer(3, "opaque", None, (), ())]  # fmt: skip
    steps = [
        eager("aten.sort.default", [BufferRef(0), 0], [1, 2], is_tuple=True),
        eager("aten.split.Tensor", [BufferRef(1), n], [3]),
    ]
    program = Program((0,), tuple(b), tuple(steps),
                      (toy.whole(b[1]), toy.whole(b[2]), ProgramOutput(3)), {},
                      symbols=(SymbolSource(n, 0, 0),))  # fmt: skip
    verify_program(program)
    executable = Executable(program, {}, toy.host())
    for rows in (3, 5):
        x = torch.randn(rows, 4)
        values, positions, parts = executable([x])
        assert torch.equal(values, x.sort(0)[0]) and torch.equal(positions, x.sort(0)[1])
        assert len(parts) == 1 and torch.equal(parts[0], values)


def test_eager_result_of_other_strides_is_copied():
    b = [*xy(1), toy.buffer(1, "eager", (5, 6)), toy.buffer(2, "output", (5, 6))]
    steps = [eager("aten.t.default", [BufferRef(0)], [1]), KernelStep("double", (1, 2), ())]
    executable = build((0,), b, steps, [toy.whole(b[2]), toy.whole(b[1])], ["double"])
    x = rand()
    doubled, turned = executable([x])
    assert turned.is_contiguous() and torch.equal(turned, x.t()) and torch.equal(doubled, 2 * x.t())


def test_eager_result_of_another_shape_is_passed_on():
    b = [*xy(1), toy.buffer(1, "eager", (5, 7))]
    executable = build((0,), b, [eager("aten.t.default", [BufferRef(0)], [1])], [toy.whole(b[1])])
    x = rand()
    (found,) = executable([x])
    assert torch.equal(found, x.t())


def test_eager_result_of_another_shape_is_no_argument_of_a_kernel():
    b = [*xy(1), toy.buffer(1, "eager", SHAPE), toy.buffer(2, "output", SHAPE)]
    steps = [eager("aten.t.default", [BufferRef(0)], [1]), KernelStep("add", (0, 1, 2), ())]
    executable = build((0,), b, steps, [toy.whole(b[2])], ["add"])
    with pytest.raises(RuntimeError, match="compiled for"):
        executable([rand()])


def test_eager_view_of_a_temporary_outlives_the_arena():
    """Each of these results is a view of memory that the next call overwrites."""
    b = [*xy(), toy.buffer(2, "temp", SHAPE), toy.buffer(3, "eager", (5, 6), strides=(1, 5)),
         Buffer(4, "opaque", None, (), ())]  # fmt: skip
    steps = [KernelStep("add", (0, 1, 2), ()),
             eager("aten.t.default", [BufferRef(2)], [3]),
             eager("aten.split.Tensor", [BufferRef(2), 3], [4])]  # fmt: skip
    executable = build((0, 1), b, steps, [toy.whole(b[3]), ProgramOutput(4)], ["add"])
    x, y = rand(), rand()
    turned, parts = executable([x, y])
    executable([y, y])
    assert torch.equal(turned, (x + y).t()) and torch.equal(torch.cat(list(parts)), x + y)


def test_eager_view_of_an_input_that_is_mutated_later():
    b = [*xy(), toy.buffer(2, "eager", (5, 6), strides=(1, 5))]
    steps = [eager("aten.t.default", [BufferRef(0)], [2]), KernelStep("accumulate", (0, 1), ())]
    executable = build((0, 1), b, steps, [toy.whole(b[2])], ["accumulate"])
    x, y = rand(), rand()
    before = x.clone()
    (turned,) = executable([x, y])
    assert torch.equal(turned, before.t()) and torch.equal(x, before + y)


def test_opaque_result_over_an_input_that_is_mutated_later():
    b = [*xy(), Buffer(2, "opaque", None, (), ())]
    steps = [eager("aten.split.Tensor", [BufferRef(0), 3], [2]),
             KernelStep("accumulate", (0, 1), ())]  # fmt: skip
    executable = build((0, 1), b, steps, [ProgramOutput(2), toy.whole(b[0])], ["accumulate"])
    x, y = rand(), rand()
    before = x.clone()
    parts, same = executable([x, y])
    assert torch.equal(torch.cat(list(parts)), before)
    assert same is x and torch.equal(x, before + y)


def test_eager_view_of_an_input_that_is_itself_written_later():
    b = [*xy(), toy.buffer(2, "eager", SHAPE)]
    steps = [eager("aten.view.default", [BufferRef(0), SHAPE], [2]),
             KernelStep("accumulate", (2, 1), ())]  # fmt: skip
    executable = build((0, 1), b, steps, [toy.whole(b[2])], ["accumulate"])
    x, y = rand(), rand()
    before = x.clone()
    assert torch.equal(executable([x, y])[0], before + y) and torch.equal(x, before)


def test_eager_argument_views_and_out():
    b = [*xy(), toy.buffer(2, "temp", SHAPE), toy.buffer(3, "output", SHAPE)]
    column = BufferRef(2, (6,), (5,), 2)
    steps = [
        KernelStep("add", (0, 1, 2), ()),
        eager("aten.mul.out", [BufferRef(2), BufferRef(1)], [], out=BufferRef(3)),
        eager("aten.exp.out", [column], [], out=BufferRef(3, (6,), (5,), 0)),
    ]
    executable = build((0, 1), b, steps, [toy.whole(b[3])], ["add"])
    for _ in range(2):
        x, y = rand(), rand()
        expected = (x + y) * y
        expected[:, 0] = (x + y)[:, 2].exp()
        assert torch.equal(executable([x, y])[0], expected)


def test_empty_result_that_no_step_writes():
    b = [*xy(1), toy.buffer(1, "eager", SHAPE), toy.buffer(2, "output", (0, 3))]
    program = Program((0,), tuple(b), (eager("aten.exp.default", [BufferRef(0)], [1]),),
                      (toy.whole(b[1]), toy.whole(b[2])), {})  # fmt: skip
    executable = Executable(program, {}, toy.host())
    assert executable([rand()])[1].shape == (0, 3)


def test_eager_lists_of_tensors():
    b = [*xy(), toy.buffer(2, "temp", SHAPE), toy.buffer(3, "eager", (12, 5))]
    steps = [KernelStep("add", (0, 1, 2), ()),
             eager("aten.cat.default", [(BufferRef(2), BufferRef(1)), 0], [3])]  # fmt: skip
    executable = build((0, 1), b, steps, [toy.whole(b[3])], ["add"])
    x, y = rand(), rand()
    assert torch.equal(executable([x, y])[0], torch.cat([x + y, y]))


kept_by_the_operator: list[torch.Tensor] = []


@torch.library.custom_op("lazyc_test::keeps", mutates_args=())
def keeps(x: torch.Tensor) -> torch.Tensor:
    kept_by_the_operator.append(x)
    return x * 2


def test_a_custom_operator_may_keep_its_arguments():
    b = [*xy(), toy.buffer(2, "temp", SHAPE), toy.buffer(3, "eager", SHAPE),
         toy.buffer(4, "temp", SHAPE), toy.buffer(5, "output", SHAPE)]  # fmt: skip
    steps = [KernelStep("add", (0, 1, 2), ()),
             eager("lazyc_test.keeps.default", [BufferRef(2)], [3]),
             KernelStep("double", (3, 4), ()), KernelStep("mul", (4, 1, 5), ())]  # fmt: skip
    executable = build((0, 1), b, steps, [toy.whole(b[5])], ["add", "double", "mul"])
    kept_by_the_operator.clear()
    pairs = [(rand(), rand()) for _ in range(4)]
    for x, y in pairs:
        assert torch.equal(executable([x, y])[0], (x + y) * 2 * 2 * y)
    for (x, y), kept in zip(pairs, kept_by_the_operator, strict=True):
        assert torch.equal(kept, x + y)


def test_eager_error_leaves_the_executable_usable():
    b = [*xy(), toy.buffer(2, "temp", SHAPE), toy.buffer(3, "eager", (1,), dtype=DType.F32)]
    steps = [KernelStep("add", (0, 1, 2), ()),
             eager("aten.as_strided.default", [BufferRef(2), (1,), (1,), 10**6], [3])]  # fmt: skip
    bad = build((0, 1), b, steps, [toy.whole(b[3])], ["add"])
    with pytest.raises(RuntimeError):
        bad([rand(), rand()])
    good = toy.chain(["add", "double"], SHAPE)
    x, y = rand(), rand()
    assert torch.equal(good([x, y])[0], 2 * (x + y))


def test_eager_steps_run_without_gradients():
    b = [*xy(1), toy.buffer(1, "eager", SHAPE)]
    executable = build((0,), b, [eager("aten.exp.default", [BufferRef(0)], [1])], [toy.whole(b[1])])
    x = rand().requires_grad_()
    assert torch.is_grad_enabled()
    assert not executable([x])[0].requires_grad
    assert torch.is_grad_enabled()


def test_dead_arguments_are_freed_before_later_eager_steps():
    """The boxed convention: an activation goes once its last step has run."""
    seen: list[bool] = []
    references: list[weakref.ref] = []

    @torch.library.custom_op("lazyc_test::looks", mutates_args=())
    def looks(x: torch.Tensor) -> torch.Tensor:
        seen.append(references[0]() is None)
        return x.clone()

    b = [*xy(), toy.buffer(2, "eager", SHAPE), toy.buffer(3, "eager", SHAPE)]
    steps = [eager("aten.exp.default", [BufferRef(0)], [2]),
             KernelStep("accumulate", (2, 1), ()),
             eager("lazyc_test.looks.default", [BufferRef(2)], [3])]  # fmt: skip
    executable = build((0, 1), b, steps, [toy.whole(b[3])], ["accumulate"])
    x = rand()
    references.append(weakref.ref(x))
    args = [x, rand()]
    del x
    executable(args)
    assert seen == [True]


def test_reentrant_calls():
    """An eager step that calls another Program, and the same one."""
    inner = toy.chain(["add", "mul", "double"], SHAPE)
    depth: list[int] = []
    outer: list[Executable] = []

    @torch.library.custom_op("lazyc_test::calls", mutates_args=())
    def calls(x: torch.Tensor) -> torch.Tensor:
        depth.append(1)
        if len(depth) < 4:
            outer[0]([x, x])
        return inner([x, x])[0]

    b = [*xy(), toy.buffer(2, "temp", SHAPE), toy.buffer(3, "temp", SHAPE),
         toy.buffer(4, "eager", SHAPE), toy.buffer(5, "output", SHAPE)]  # fmt: skip
    steps = [KernelStep("add", (0, 1, 2), ()), KernelStep("double", (2, 3), ()),
             eager("lazyc_test.calls.default", [BufferRef(3)], [4]),
             KernelStep("add", (2, 4, 5), ())]  # fmt: skip
    outer.append(build((0, 1), b, steps, [toy.whole(b[5])], ["add", "double"]))
    x, y = rand(), rand()
    z = 2 * (x + y)
    assert torch.equal(outer[0]([x, y])[0], (x + y) + 2 * (2 * z * z))
    assert len(depth) == 4


def test_mixed_program_in_threads():
    b = [*xy(), toy.buffer(2, "temp", SHAPE), toy.buffer(3, "eager", SHAPE),
         toy.buffer(4, "temp", SHAPE), toy.buffer(5, "output", SHAPE)]  # fmt: skip
    steps = [KernelStep("add", (0, 1, 2), ()),
             eager("aten.exp.default", [BufferRef(2)], [3]),
             KernelStep("mul", (2, 3, 4), ()), KernelStep("add", (4, 2, 5), ())]  # fmt: skip
    executable = build((0, 1), b, steps, [toy.whole(b[5])], ["add", "mul"])
    failures: list[int] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(40):
            x, y = (torch.randn(SHAPE, generator=generator) for _ in range(2))
            z = x + y
            if not torch.equal(executable([x, y])[0], z * z.exp() + z):
                failures.append(seed)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


def test_inference_mode():
    b = [*xy(), toy.buffer(2, "temp", SHAPE), toy.buffer(3, "eager", SHAPE)]
    steps = [KernelStep("add", (0, 1, 2), ()),
             eager("aten.exp.default", [BufferRef(2)], [3])]  # fmt: skip
    executable = build((0, 1), b, steps, [toy.whole(b[3])], ["add"])
    x, y = rand(), rand()
    with torch.inference_mode():
        inside = executable([x, y])[0]
    outside = executable([x, y])[0]
    assert torch.equal(inside, outside) and not outside.is_inference()


# --- seeds --------------------------------------------------------------------------------------------


def seeds(kind: str = "output") -> Executable:
    b = [
        *xy(),
        toy.buffer(2, kind, (), dtype=DType.I64),
        toy.buffer(3, "output", SHAPE),
        toy.buffer(4, "output", (), dtype=DType.I64),
        toy.buffer(5, "eager", (), dtype=DType.I64),
    ]
    steps = [KernelStep("add", (0, 1, 3), ()), SeedStep(2), SeedStep(4),
             eager("aten.clone.default", [BufferRef(2)], [5])]  # fmt: skip
    return build((0, 1), b, steps, [toy.whole(b[5]), toy.whole(b[4])], ["add"])


@pytest.mark.parametrize("kind", ["temp", "output"])
def test_seeds_follow_torch(kind):
    executable = seeds(kind)

    def draw() -> list[int]:
        return [int(t) for t in executable([rand(), rand()])]

    torch.manual_seed(5)
    rand(), rand()
    torch.manual_seed(6)
    state = torch.get_rng_state()
    x, y = torch.ones(SHAPE), torch.ones(SHAPE)
    first = [int(t) for t in executable([x, y])]
    second = [int(t) for t in executable([x, y])]
    assert len({*first, *second}) == 4
    torch.set_rng_state(state)
    assert [int(t) for t in executable([x, y])] == first
    assert len(draw()) == 2


# --- products through ATen ----------------------------------------------------------------------------


def test_half_product_between_kernels():
    b = [toy.buffer(0, "input", (4, 8), 0, DType.BF16), toy.buffer(1, "input", (8, 8), 1, DType.BF16),
         toy.buffer(2, "temp", (4, 8), dtype=DType.BF16),
         toy.buffer(3, "output", (4, 8), dtype=DType.BF16)]  # fmt: skip
    w = Operand(1, 0, 8, 1)
    steps = [GemmStep(DType.BF16, (), 4, 8, 8, Operand(0, 0, 8, 1), w, Operand(2, 0, 8, 1)),
             GemmStep(DType.BF16, (), 4, 8, 8, Operand(2, 0, 8, 1), w, Operand(3, 0, 8, 1))]  # fmt: skip
    executable = build((0, 1), b, steps, [toy.whole(b[3])])
    for _ in range(2):
        x, y = torch.randn(4, 8).bfloat16(), torch.randn(8, 8).bfloat16()
        assert torch.equal(executable([x, y])[0], (x @ y) @ y)
