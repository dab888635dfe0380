"""Arena planning, and arenas taken by overlapping calls."""

from __future__ import annotations

import threading

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyc.runtime.memory import ALIGNMENT, PAGE, Arena, ArenaPool, Interval, plan_arena
from tests.runtime import toy

intervals = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 20), st.integers(0, 6)).map(
        lambda t: Interval(t[0], t[1], t[1] + t[2])
    ),
    max_size=25,
)


@given(intervals)
@settings(max_examples=200, deadline=None)
def test_intervals_that_share_a_step_never_overlap(wanted):
    offsets, total = plan_arena(wanted)
    for i, (a, x) in enumerate(zip(wanted, offsets, strict=True)):
        assert x % ALIGNMENT == 0 and x + a.nbytes <= total
        for b, y in zip(wanted[:i], offsets[:i], strict=True):
            if a.first <= b.last and b.first <= a.last and a.nbytes and b.nbytes:
                assert x + a.nbytes <= y or y + b.nbytes <= x


def test_a_chain_needs_two_buffers():
    """Each step reads one temporary and writes the next: the third takes the place of the first."""
    chain = [Interval(6400, i, i + 1) for i in range(50)]
    offsets, total = plan_arena(chain)
    assert total == 2 * 6400
    assert set(offsets) == {0, 6400}


def test_a_small_one_goes_into_the_smallest_gap():
    wanted = [
        Interval(64 * 10, 0, 0),  # dies before the last one lives: a gap of 10
        Interval(64 * 9, 0, 9),
        Interval(64 * 3, 0, 0),  # a gap of 3
        Interval(64 * 2, 0, 9),
        Interval(64, 5, 6),
    ]
    offsets, total = plan_arena(wanted)
    assert total == 64 * (10 + 9 + 3 + 2)
    assert offsets[4] == offsets[2]


def test_nothing_to_plan():
    assert plan_arena([]) == ([], 0)
    assert plan_arena([Interval(0, 0, 3)]) == ([0], 0)


def test_arena_memory():
    arena = Arena(PAGE + 1)
    assert arena.address % PAGE == 0 and arena.nbytes == 2 * PAGE
    assert arena.contains(arena.address) and not arena.contains(arena.address + arena.nbytes)
    a = arena.view(0, torch.float32, (4, 4), (4, 1))
    b = arena.view(64, torch.int64, (2, 3), (1, 2))
    a.fill_(1.5)
    b.fill_(7)
    assert a.data_ptr() == arena.address and b.data_ptr() == arena.address + 64
    assert a.sum() == 24 and b.stride() == (1, 2)


def test_arenas_in_use_are_distinct():
    pool = ArenaPool()
    first, second = pool.take(100), pool.take(100)
    assert first is not second
    pool.give(first)
    assert pool.take(50) is first
    pool.give(first)
    assert pool.take(1 << 20) is not first  # too small
    assert pool.allocated == 3


def test_pool_keeps_one_arena_of_the_largest_need():
    pool = ArenaPool()
    for size in (100, 1 << 20, 100, 1 << 16, 1 << 20):
        arena = pool.take(size)
        assert arena.nbytes >= size
        pool.give(arena)
    assert pool.allocated == 2 and pool.idle_bytes == 1 << 20
    pool.clear()
    assert pool.idle_bytes == 0


def test_threads_running_one_program_do_not_share_temporaries():
    kinds = ["add", "mul", "double", "add", "mul", "double"] * 3
    executable = toy.chain(kinds, (64, 64))
    failures: list[str] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(60):
            x = torch.rand(64, 64, generator=generator) + seed
            y = torch.rand(64, 64, generator=generator) * 0.5
            if not torch.equal(executable([x, y])[0], toy.reference(kinds, x, y)):
                failures.append(f"thread {seed}")

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
