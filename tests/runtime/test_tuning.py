"""Kernels timed by several tiles or blocks, on a stand-in for a GPU whose clock says what a test wants."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lazyc
from lazyc.compiler import Compiler
from lazyc.errors import LazycWarning
from lazyc.frontend.fx_import import import_graph
from lazyc.report import events as E
from lazyc.runtime import tuning
from lazyc.runtime.program import Executable
from tests.frontend.trace import graph_of, trace
from tests.runtime.stand_in import StandInGenerator, StandInGpu, stand_in_compiler


class Bench:
    """A compiler on a stand-in, and what it tells. A compilation takes a second by its clock, and launches none."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        folder: Path | None = None,
        sparse: bool = False,
        **options: Any,
    ) -> None:
        self.gpu = StandInGpu()
        self.generator = StandInGenerator(self.gpu, sparse, keeps_code=folder is not None)
        self.events: list[E.Event] = []
        stream = E.EventStream()
        stream.subscribe(self.events.append)
        if folder is not None:
            options |= {"disk_cache": True, "cache_dir": str(folder)}
        self.compiler: Compiler = stand_in_compiler(
            self.gpu, events=stream, generator=self.generator, **{"autotune": True, **options}
        )
        monkeypatch.setattr(tuning, "_clock", lambda: float(len(self.generator.compiled)))
        monkeypatch.setattr(tuning, "_ROUNDS", 2)  # more would show nothing more

    def fast(self, number: str) -> None:
        """Makes the alternative of this number the fastest of every kernel."""
        self.gpu.seconds_of = lambda symbol: 1e-3 if symbol.endswith(f"_{number}") else 2e-3

    @property
    def tuned(self) -> list[E.KernelTuned]:
        return [e for e in self.events if isinstance(e, E.KernelTuned)]

    def compile(self, fn: Callable[..., Any], *args: Any, mode: str = "fake") -> Executable:
        return self.compiler.compile(graph_of(fn, *args, mode=mode))

    def symbols(self, program: Executable, *args: Any) -> list[str]:
        """The kernels that a call launches."""
        before = len(self.gpu.launches)
        program(list(args))
        self.gpu.check()
        return [self.gpu.functions[x.function][0].symbol for x in self.gpu.launches[before:]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def rows(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x @ w, -1)


ARGS = (torch.randn(48, 64), torch.randn(64, 80))


def test_the_fastest_is_used_from_the_second_call_on(bench: Bench) -> None:
    bench.fast("2")
    program = bench.compile(rows, *ARGS)
    (first,) = program(list(ARGS))
    assert [e.winner for e in bench.tuned] == [e.times[2][0] for e in bench.tuned]
    assert len(bench.tuned) == 2 and all(e.gain == 2.0 for e in bench.tuned)
    assert all(s.endswith("_2") for s in bench.symbols(program, *ARGS))
    (second,) = program(list(ARGS))
    for result in (first, second):
        torch.testing.assert_close(result, rows(*ARGS), rtol=1e-5, atol=1e-6)
    assert len(bench.tuned) == 2
    alternatives = [k for s in bench.generator.compiled for k in [s.rpartition("_")[0]]]
    assert len(set(alternatives)) == 2 and len(set(bench.generator.compiled)) == len(alternatives)


def test_nothing_is_timed_without_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, autotune=False)
    program = bench.compile(rows, *ARGS)
    assert len(bench.symbols(program, *ARGS)) == 2
    assert not bench.generator.compiled and not bench.tuned


def test_a_gain_that_may_be_noise_changes_nothing(bench: Bench) -> None:
    bench.gpu.seconds_of = lambda symbol: 0.98e-3 if symbol.endswith("_1") else 1e-3
    program = bench.compile(rows, *ARGS)
    program(list(ARGS))
    assert [e.winner for e in bench.tuned] == [e.times[0][0] for e in bench.tuned]
    assert not any("_1" in s[-3:] for s in bench.symbols(program, *ARGS))


def test_equal_kernels_are_timed_once(bench: Bench) -> None:
    def layers(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        for w in weights:
            x = torch.relu(x @ w)
        return x

    args = (torch.randn(32, 64), *(torch.randn(64, 64) for _ in range(5)))
    program = bench.compile(layers, *args)
    assert len(program.program.steps) == 5
    bench.fast("1")
    program(list(args))
    assert len(bench.tuned) == 3  # the first, all between, and the last
    # Nor in another program of the process.
    other = bench.compile(layers, *args[:-1])
    symbols = bench.symbols(other, *args[:-1])
    assert len(symbols) == 4 and all(s.endswith("_1") for s in symbols)
    assert len(bench.tuned) == 3


def test_what_is_read_and_written_stays_as_it_is(bench: Bench) -> None:
    """Inputs are read where they are; what is written to, or changed, is somewhere else, and the same for each."""

    def f(x: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        x.index_add_(0, index, source)
        return x[index] * 2

    x, index, source = torch.zeros(50, 64), torch.randint(0, 50, (200,)), torch.ones(200, 64)
    wanted = torch.zeros(50, 64).index_add_(0, index, source)
    program = bench.compile(torch.func.functionalize(f), x.clone(), index, source)
    roles = {p.role for nest in program.program.nests.values() for p in nest.buffers}
    assert "inout" in roles
    run, seen = bench.gpu.seconds, []

    def seconds(queue: Callable[[], None]) -> float:
        before = [t.clone() for t in (x, index, source)]
        spent = run(queue)
        assert all(a.equal(b) for a, b in zip(before, (x, index, source), strict=True))
        seen.append(bench.gpu.launches[-1].arguments)
        return spent

    bench.gpu.seconds = seconds  # type: ignore[method-assign]
    bench.fast("1")
    (result,) = program([x, index, source])
    bench.gpu.check()
    torch.testing.assert_close(x, wanted)
    torch.testing.assert_close(result, wanted[index] * 2)
    assert bench.tuned and any(index.data_ptr() in words for words in seen)


def test_what_a_kernel_changes_is_the_same_at_each_reading(bench: Bench) -> None:
    """It may hold what becomes an index, which must not grow."""
    x, source = torch.zeros(50, 64), torch.ones(50, 64)

    def f(x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        x.add_(source)
        return source

    program = bench.compile(torch.func.functionalize(f), x.clone(), source)
    (nest,) = program.program.nests.values()
    (changed,) = (k for k, b in enumerate(nest.buffers) if b.role == "inout")
    run, seen = bench.gpu.seconds, []

    def seconds(queue: Callable[[], None]) -> float:
        spent = run(queue)
        address = bench.gpu.launches[-1].arguments[changed]
        assert address != x.data_ptr()
        memory = (ctypes.c_char * x.nbytes).from_address(address)
        seen.append(torch.frombuffer(memory, dtype=torch.float32).clone())
        return spent

    bench.gpu.seconds = seconds  # type: ignore[method-assign]
    program([x, source])
    bench.gpu.check()
    assert len(seen) > 10 and all(t.eq(1).all() for t in seen) and x.eq(1).all()


def test_the_budget_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compilation takes a second here, and there are two kernels: one alternative of each."""
    bench = Bench(monkeypatch, autotune_seconds=2)
    bench.fast("1")
    program = bench.compile(rows, *ARGS)
    program(list(ARGS))
    assert len(bench.generator.compiled) == 2 and len(bench.tuned) == 2
    assert all(len(e.times) == 2 and e.late > 0 for e in bench.tuned)
    assert all(s.endswith("_1") for s in bench.symbols(program, *ARGS))

    # What is left is shared out: two seconds for the first, which uses one, three for the second.
    bench = Bench(monkeypatch, autotune_seconds=4)
    bench.compile(rows, *ARGS)(list(ARGS))
    assert [len(e.times) for e in bench.tuned] == [2, 3]

    bench = Bench(monkeypatch, autotune_seconds=1)
    bench.fast("1")
    program = bench.compile(rows, *ARGS)
    for _ in range(3):
        program(list(ARGS))
    assert len(bench.generator.compiled) == len(bench.tuned) == 1
    first, second = bench.symbols(program, *ARGS)
    assert first.endswith("_1") and not second.endswith("_1")  # no time was left for the second


def test_candidates_that_fail_drop_out(bench: Bench) -> None:
    bench.generator.broken, bench.generator.spilling = {"1"}, {"2"}
    bench.gpu.seconds_of = lambda symbol: {"1": 1e-4, "2": 1e-4, "3": 2e-4}.get(symbol[-1], 1e-3) if symbol[-2] == "_" else 1e-3  # fmt: skip
    program = bench.compile(rows, *ARGS)
    names = [s.ref.symbol for s in bench.generator._codes.values()]
    bench.gpu.refused = {f"{name}_3" for name in names}
    program(list(ARGS))
    assert [len(e.dropped) for e in bench.tuned] == [3, 3]
    bench.gpu.check()
    (result,) = program(list(ARGS))
    torch.testing.assert_close(result, rows(*ARGS), rtol=1e-5, atol=1e-6)


def test_nothing_is_timed_in_a_capture(bench: Bench) -> None:
    bench.fast("1")
    program = bench.compile(rows, *ARGS)
    bench.gpu.is_captured = True
    assert not any(s.endswith("_1") for s in bench.symbols(program, *ARGS))
    assert not bench.tuned
    bench.gpu.is_captured = False
    program(list(ARGS))
    assert len(bench.tuned) == 2
    assert all(s.endswith("_1") for s in bench.symbols(program, *ARGS))


def test_programs_with_eager_steps_and_symbols(bench: Bench) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.linalg.qr(x * 2)[1]) + 1

    bench.fast("1")
    x = torch.randn(32, 32)
    program = bench.compile(f, x)
    for _ in range(2):
        (got,) = program([x])
        torch.testing.assert_close(got, f(x), rtol=1e-4, atol=1e-4)
    assert len(bench.tuned) == 2

    soft = bench.compile(lambda x: torch.softmax(x * 2, -1), torch.randn(6, 40), mode="symbolic")
    for size in ((6, 40), (17, 9), (17, 9)):
        x = torch.randn(size)
        (got,) = soft([x, *(x.shape[s.dim] for s in soft.program.symbols if s.dim is None)])
        bench.gpu.check()
        torch.testing.assert_close(got, torch.softmax(x * 2, -1))
    assert len(bench.tuned) == 3  # once for all sizes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    path.mkdir(mode=0o700)
    return path


def entries(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "v1" / "choices").rglob("*") if p.is_file())


def test_another_process_finds_the_winners(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    bench = Bench(monkeypatch, folder)
    bench.fast("2")
    bench.compile(rows, *ARGS)(list(ARGS))
    assert len(entries(folder)) == 2

    again = Bench(monkeypatch, folder)
    program = again.compile(rows, *ARGS)
    symbols = again.symbols(program, *ARGS)
    assert all(s.endswith("_2") for s in symbols) and len(symbols) == 2
    assert not again.generator.compiled and not again.tuned
    assert not again.generator._codes, "the program was loaded, and nothing was generated"
    (result,) = program(list(ARGS))
    torch.testing.assert_close(result, rows(*ARGS), rtol=1e-5, atol=1e-6)

    # On another GPU, or with another driver, nothing is known.
    monkeypatch.setattr(StandInGpu, "hardware", "another")
    other = Bench(monkeypatch, folder)
    other.gpu.hardware = "another"
    other.compile(rows, *ARGS)(list(ARGS))
    assert len(other.tuned) == 2


def test_that_the_rules_won_is_kept_too(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    Bench(monkeypatch, folder).compile(rows, *ARGS)(list(ARGS))
    again = Bench(monkeypatch, folder)
    again.compile(rows, *ARGS)(list(ARGS))
    assert len(entries(folder)) == 2 and not again.tuned and not again.generator._codes


def test_a_program_compiled_without_the_option_is_tuned_later(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    Bench(monkeypatch, folder, autotune=False).compile(rows, *ARGS)(list(ARGS))
    bench = Bench(monkeypatch, folder)
    bench.fast("1")
    program = bench.compile(rows, *ARGS)
    program(list(ARGS))
    assert len(bench.tuned) == 2
    assert all(s.endswith("_1") for s in bench.symbols(program, *ARGS))


@pytest.mark.parametrize("damage", ["a bit", "cut", "empty"])
def test_a_damaged_entry_is_a_miss(
    monkeypatch: pytest.MonkeyPatch, folder: Path, damage: str
) -> None:
    bench = Bench(monkeypatch, folder)
    bench.fast("1")
    bench.compile(rows, *ARGS)(list(ARGS))
    path = entries(folder)[0]
    data = path.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    path.write_bytes({"a bit": flipped, "cut": data[: len(data) // 2], "empty": b""}[damage])
    again = Bench(monkeypatch, folder)
    again.fast("1")
    program = again.compile(rows, *ARGS)
    (result,) = program(list(ARGS))
    torch.testing.assert_close(result, rows(*ARGS), rtol=1e-5, atol=1e-6)
    assert len(again.tuned) == 1
    assert any(isinstance(e, E.CacheRejected) and e.kind == "choices" for e in again.events)
    assert len(entries(folder)) == 2 and path.read_bytes() != flipped


def test_an_entry_of_another_shape_is_a_miss(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """What verifies, and is not what this version writes: no record of a kernel, no code."""
    bench = Bench(monkeypatch, folder)
    bench.fast("1")
    bench.compile(rows, *ARGS)(list(ARGS))
    disk = bench.compiler._disk
    for path, header in zip(entries(folder), ({"ref": {"cpu": 3}}, {}), strict=True):
        disk.store("choices", path.name, header, {"object": b"f32\ndef f(): pass"})
    again = Bench(monkeypatch, folder)
    program = again.compile(rows, *ARGS)
    (result,) = program(list(ARGS))
    torch.testing.assert_close(result, rows(*ARGS), rtol=1e-5, atol=1e-6)
    assert len(again.tuned) == 2


def test_a_slow_kernel_is_not_timed_for_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Readings of four seconds each: the rules' choice twice, then one round of what has run."""
    bench = Bench(monkeypatch, autotune_seconds=8)
    bench.gpu.seconds_of = lambda symbol: 4.0
    readings: list[float] = []
    run = bench.gpu.seconds

    def seconds(queue: Callable[[], None]) -> float:
        readings.append(run(queue))
        return readings[-1]

    bench.gpu.seconds = seconds  # type: ignore[method-assign]
    monkeypatch.setattr(tuning, "_clock", lambda: sum(readings))
    program = bench.compile(lambda x: torch.softmax(x, -1), ARGS[0])
    program([ARGS[0]])
    (event,) = bench.tuned
    assert len(event.times) == 2 and event.late > 0 and not event.dropped
    assert len(readings) == 2 + 1 + 2


def test_sizes_without_elements_cost_nothing(bench: Bench) -> None:
    """There is nothing to time for them, which is found out once."""
    soft = bench.compile(lambda x: torch.softmax(x * 2, -1), torch.randn(6, 40), mode="symbolic")
    empty = torch.randn(0, 40)
    numbers = [empty.shape[s.dim] for s in soft.program.symbols if s.dim is None]
    soft([empty, *numbers])
    first = soft.last_runner
    soft([empty, *numbers])
    assert soft.last_runner is first and not isinstance(first.run, tuning.TunedCall)  # type: ignore[union-attr]
    assert not bench.tuned
    x = torch.randn(6, 40)
    soft([x, *(x.shape[s.dim] for s in soft.program.symbols if s.dim is None)])
    assert len(bench.tuned) == 1


def test_the_dense_kernel_of_a_sparse_weight_has_no_turn_while_it_does_not_run(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """And a program is found on disk without it."""
    x, w = torch.randn(24, 64), torch.randn(96, 64)
    lazyc.sparse.to_block_sparse(w, (16, 16), 0.75)

    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ w.t(), -1)

    graph = import_graph(trace(f, x, w), frozenset({1}), {1: "block 16"}, True)
    bench = Bench(monkeypatch, folder, sparse=True)
    bench.fast("1")
    program = bench.compiler.compile(graph)
    (result,) = program([x, w])
    bench.gpu.check()
    torch.testing.assert_close(result, f(x, w), rtol=1e-5, atol=1e-6)
    assert len(bench.tuned) == 1 and len(entries(folder)) == 1
    product, softmax = bench.symbols(program, x, w)
    assert softmax.endswith("_1") and not product.endswith("_1")

    again = Bench(monkeypatch, folder, sparse=True)
    again.compiler.compile(graph)
    assert not again.generator._codes


def test_a_device_that_cannot_be_timed_costs_a_warning(bench: Bench) -> None:
    def seconds(queue: Callable[[], None]) -> float:
        raise RuntimeError("no events")

    bench.gpu.seconds = seconds  # type: ignore[method-assign]
    program = bench.compile(lambda x: torch.softmax(x, -1), ARGS[0])
    with pytest.warns(LazycWarning, match="softmax.* could not be timed: no events"):
        (result,) = program([ARGS[0]])
    torch.testing.assert_close(result, torch.softmax(ARGS[0], -1))
    program([ARGS[0]])  # not tried again
