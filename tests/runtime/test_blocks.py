"""Steps that run a block of rows at a time: what they compute, on how many threads, and when they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from lazyc.ir.index import Axis
from lazyc.ir.loops import LoopNest
from lazyc.ir.program import (
    GemmStep,
    KernelStep,
    Operand,
    Program,
    RowStep,
    RowTiles,
)
from lazyc.ir.program_verify import verify_program
from lazyc.ir.types import DType
from lazyc.report.events import Event, RowTilesChosen
from lazyc.runtime import blocks
from lazyc.runtime.host import Host
from lazyc.runtime.program import Executable
from lazyc.runtime.runner import KernelError
from tests.runtime import toy

WIDTH, INNER, OUT = 24, 8, 4


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 rows wherever there are rows."""
    monkeypatch.setattr(blocks, "LEAST_BYTES", 0)
    monkeypatch.setattr(blocks, "CACHE_SHARE", 0.0)
    monkeypatch.setattr(blocks, "LEAST_ROWS", 16)


def matrices(buffer: int, batch: int, rows: int, cols: int, by_columns: bool = False) -> Operand:
    steps = (1, rows) if by_columns else (cols, 1)
    return Operand(buffer, 0, *steps, (rows * cols,) if batch != 1 else ())


def program(batch: int, rows: int, dim: str = "m", kind: str = "double") -> Program:
    """Of x [rows, INNER], y [INNER, WIDTH] and z, batch of each: ``s = kind(x @ y)``, and then ``s @ z``, or
    for dim "k" ``s.T @ z``, or for dim "n" ``z @ s.T``."""
    lead = (batch,) if batch != 1 else ()
    z = {"m": (WIDTH, OUT), "k": (rows, OUT), "n": (OUT, WIDTH)}[dim]
    out = {"m": (rows, OUT), "k": (WIDTH, OUT), "n": (OUT, rows)}[dim]
    shapes = ((rows, INNER), (INNER, WIDTH), z, (rows, WIDTH), (rows, WIDTH), out)
    kinds = ("input", "input", "input", "temp", "temp", "output")
    buffers = tuple(
        toy.buffer(n, kind, (*lead, *shape), n if n < 3 else -1)
        for n, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))
    )
    mats = [matrices(n, batch, *shape) for n, shape in enumerate(shapes)]
    turned = matrices(4, batch, WIDTH, rows, by_columns=True)
    first, second = (mats[4], mats[2]) if dim == "m" else (turned, mats[2])
    if dim == "n":
        first, second = mats[2], turned
    sizes = {"m": (rows, OUT, WIDTH), "k": (WIDTH, OUT, rows), "n": (OUT, rows, WIDTH)}[dim]
    flat = toy.nest(kind, batch * rows * WIDTH)
    nest = LoopNest((Axis("b", batch), Axis("r", rows)), flat.stages, flat.buffers)
    made = Program(
        inputs=(0, 1, 2),
        buffers=buffers,
        steps=(
            GemmStep(DType.F32, lead, rows, WIDTH, INNER, *mats[:2], mats[3], comment="aten.mm model.py:3"),
            KernelStep(kind, (3, 4), ()),
            GemmStep(DType.F32, lead, *sizes, first, second, mats[5]),
        ),
        outputs=(toy.whole(buffers[5]),),
        nests={kind: nest},
        tiles=(
            RowTiles(
                0,
                (RowStep("m"), RowStep(axes=2), RowStep(dim)),  # type: ignore[arg-type]
                batch,
                rows,
                ((3, WIDTH), (4, WIDTH)),
            ),
        ),
    )  # fmt: skip
    verify_program(made)
    return made


def executable(program: Program, ordered: int = 2, host: Host | None = None) -> Executable:
    (kind, nest), = program.nests.items()  # fmt: skip
    items = nest.buffers[0].numel
    loaded = toy.kernel(kind, items, grain=1)
    kernels = {kind: type(loaded)(loaded.address, items, 1, ordered)}
    return Executable(program, kernels, host or toy.host())


def check(program: Program, dim: str = "m", host: Host | None = None) -> Executable:
    run = executable(program, host=host)
    shapes = [tuple(map(int, b.shape)) for b in program.buffers[:3]]
    x, y, z = (torch.randn(s) for s in shapes)
    s = 2 * (x.double() @ y.double())
    want = {"m": lambda: s @ z, "k": lambda: s.mT @ z, "n": lambda: z @ s.mT}
    z = z.double()
    (got,) = run([x, y, z.float()])
    torch.testing.assert_close(got, want[dim]().float(), rtol=1e-5, atol=1e-4)
    return run


def choice(run: Executable) -> blocks.TileChoice:
    runner = run.last_runner
    assert runner is not None
    (made,) = runner.plan.choices
    return made


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dim", ["m", "k", "n"])
@pytest.mark.parametrize(("batch", "rows"), [(3, 16), (3, 17), (3, 50), (7, 15), (1, 64)])
def test_blocks_compute_what_whole_steps_do(threads, count, dim, batch, rows) -> None:
    threads(count)
    made = choice(check(program(batch, rows, dim), dim))
    enough = batch if dim == "k" else batch * -(-rows // 16)
    assert (made.blocks is not None) == (enough >= count)
    if made.blocks is not None:
        assert made.blocks.block == min(rows, 16) and made.blocks.in_order == (dim == "k")


@pytest.mark.usefixtures("small")
def test_more_and_fewer_threads_than_there_is_memory_for(threads) -> None:
    threads(2)
    made = program(5, 40)
    run = executable(made)
    x, y, z = (torch.randn(tuple(map(int, b.shape))) for b in made.buffers[:3])
    results = []
    for count in (2, 1, 4):
        threads(count)
        results += run([x, y, z])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    blocks_ = choice(run).blocks
    assert blocks_ is not None and blocks_.threads == 2


@pytest.mark.usefixtures("small")
def test_private_buffers_have_room_for_a_block_of_each_thread(threads) -> None:
    threads(2)
    arenas = []
    for rows in (64, 128, 256):
        runner = check(program(4, rows)).last_runner
        assert runner is not None
        arenas.append(runner.plan.arena_bytes)
    assert arenas[0] == arenas[1] == arenas[2] <= 2 * (2 * 16 * WIDTH * 4 + 64)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [1, 2])
def test_an_error_in_any_block_is_reported(threads, count) -> None:
    threads(count)
    made = program(2, 40, kind="check")
    run = executable(made)
    x, y, z = (torch.ones(tuple(map(int, b.shape))) for b in made.buffers[:3])
    run([x, y, z])
    x[1, 39] = -1
    with pytest.raises(KernelError):
        run([x, y, z])


def test_what_the_caches_hold_is_stored() -> None:
    made = choice(check(program(2, 40)))
    assert made.blocks is None
    assert made.reason == "0.0 MiB stored: the caches hold them"
    rows = blocks.LEAST_BYTES // (2 * WIDTH * 4) // 2
    made = choice(check(program(2, rows + 1)))
    assert made.blocks is not None
    assert made.blocks.block * 2 * WIDTH * 4 <= toy.host().cache_bytes // 2


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20, 3 << 20])
def test_a_block_takes_half_of_the_cache(cache_bytes: int) -> None:
    """Whatever that is, results are the same up to rounding."""
    row = 2 * WIDTH * 4
    made = program(2, blocks.LEAST_BYTES // row // 2 + 1)
    host = replace(toy.host(), cache_bytes=cache_bytes)
    block = choice(check(made, host=host)).blocks
    assert block is not None and block.block % blocks.LEAST_ROWS == 0
    assert block.block == max(cache_bytes // 2 // row // blocks.LEAST_ROWS, 1) * blocks.LEAST_ROWS


@pytest.mark.usefixtures("small")
def test_what_cannot_run_by_blocks_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "in order" in choice(executable(program(2, 40), ordered=1)).reason
    without = choice(executable(program(2, 40), host=toy.host_without_blas()))
    assert "no BLAS routine for a product of f32" in without.reason
    assert choice(executable(program(0, 40))).blocks is None
    assert choice(executable(program(2, 0))).blocks is None
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)  # 2 * 24 elements in a row, and 4 * 24 of z
    monkeypatch.setattr(blocks, "_MOST_READ", 4)
    assert choice(check(program(2, 40))).blocks is not None
    monkeypatch.setattr(blocks, "_MOST_READ", 3)
    assert "each block would read" in choice(check(program(2, 40))).reason


@pytest.mark.usefixtures("small")
def test_the_choice_is_told() -> None:
    heard: list[Event] = []
    stop = toy.host().events.subscribe(heard.append)
    try:
        executable(program(2, 40))
    finally:
        stop()
    (event,) = heard
    assert isinstance(event, RowTilesChosen) and event.is_tiled
    assert event.comment == "aten.mm model.py:3"
    assert event.reason.startswith("16 of 40 rows at a time, 0.0 MiB for each thread")
