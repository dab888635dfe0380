"""The native driver: work split over threads, the error word, the weight guard, forked children."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time

import pytest
import torch

from lazyc.ir.loops import ERROR_INDEX
from lazyc.ir.program import KernelStep, Program
from lazyc.runtime.driver import ERROR_STALE, TableWriter, build_driver
from lazyc.runtime.program import Executable
from lazyc.runtime.runner import KernelError
from lazyc.runtime.threads import OpenMP
from tests.runtime import toy


@pytest.fixture
def threads():
    """Sets torch's thread count for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def split_sizes(items: int, grain: int, size: int = 0) -> list[int]:
    """How many items the thread of each item was given, as the toy kernel "split" reports it."""
    out = toy.buffer(0, "output", (items,))
    program = Program((), (out,), (KernelStep("split", (0,), (size,)),), (toy.whole(out),), {})
    program.nests = {"split": toy.nest("split", items, (toy.N0,))}
    executable = Executable(program, {"split": toy.kernel("split", items, grain)}, toy.host())
    return [int(v) - size for v in executable([])[0].tolist()]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_items_are_shared_out_evenly(threads, count):
    threads(count)
    items = 10
    expected = []
    for t in range(count):
        share = items * (t + 1) // count - items * t // count
        expected += [share] * share
    assert split_sizes(items, grain=1) == expected


def test_few_items_stay_on_few_threads(threads):
    threads(4)
    assert split_sizes(7, grain=4) == [7] * 7  # fewer than two grains: serial
    assert split_sizes(8, grain=4) == [4] * 8  # two threads of four
    assert split_sizes(0, grain=1) == []


def test_sizes_reach_the_kernel():
    assert split_sizes(3, grain=1 << 30, size=1000) == [3, 3, 3]


def test_without_openmp_everything_is_serial(threads):
    threads(4)
    driver = build_driver(OpenMP())
    out = torch.zeros(8)
    table = TableWriter()
    table.kernel(toy.addresses()["split"], 8, 1, [(4, 0)], [0])
    table.end()
    words = table.array()
    env = (ctypes.c_int64 * 6)(1, 0, 0, 0, out.data_ptr(), 0)
    env[2] = ctypes.addressof(env) + 5 * 8
    assert driver.run(ctypes.addressof(words), ctypes.addressof(env)) == 0
    assert out.tolist() == [8.0] * 8


@pytest.mark.parametrize("count", [1, 2, 4])
def test_error_word_of_any_thread_is_reported(threads, count):
    threads(count)
    executable = toy.chain(["check"], (64,), grain=1)
    x = torch.ones(64)
    assert torch.equal(executable([x, x])[0], x)
    for position in (0, 31, 63):
        bad = x.clone()
        bad[position] = -1
        with pytest.raises(KernelError) as caught:
            executable([bad, x])
        assert caught.value.bits == ERROR_INDEX
        assert not caught.value.mutated
    assert torch.equal(executable([x, x])[0], x)  # the next call starts clean


def test_guard_record_notices_one_changed_word():
    words = torch.arange(8, dtype=torch.int64)
    table = TableWriter()
    table.guard([(words[i].data_ptr(), i) for i in range(8)])
    table.end()
    array = table.array()
    run = toy.host().driver.run
    assert run(ctypes.addressof(array), 0) == 0
    for i in range(8):
        words[i] += 1
        assert run(ctypes.addressof(array), 0) == ERROR_STALE
        words[i] -= 1


def test_guard_record_reads_unaligned_words():
    memory = torch.arange(64, dtype=torch.uint8)
    address = memory.data_ptr() + 3
    table = TableWriter()
    table.guard([(address, ctypes.c_int64.from_address(address).value)])
    table.end()
    array = table.array()
    run = toy.host().driver.run
    assert run(ctypes.addressof(array), 0) == 0
    memory[10] += 1  # the last of the eight bytes
    assert run(ctypes.addressof(array), 0) == ERROR_STALE


def test_driver_compiles_quickly():
    def seconds() -> float:
        start = time.thread_time()
        build_driver(OpenMP())
        return time.thread_time() - start

    assert min(seconds() for _ in range(5)) < 0.05


_FORK = """
import os, sys, torch
from tests.runtime import toy
torch.set_num_threads(2)
x = torch.rand(150, 150)  # eager stays on one thread below 32768 elements
chain = toy.chain(["add", "mul"], (150, 150), grain=16)
product = toy.product(150)
expected = [chain([x, x])[0], product([x, x])[0]]
torch.rand(1 << 20).add_(1), torch.rand(512, 512) @ torch.rand(512, 512)  # start all threads
child = os.fork()
if child == 0:
    found = [chain([x, x])[0], product([x, x])[0]]
    same = all(torch.allclose(a, b) for a, b in zip(expected, found))
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
again = [chain([x, x])[0], product([x, x])[0]]
assert all(torch.equal(a, b) for a, b in zip(expected, again))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() on this system")
def test_a_forked_child_does_not_hang():
    """GNU OpenMP's threads are not there in a child; eager torch hangs in this program."""
    done = subprocess.run([sys.executable, "-c", _FORK], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scratch_array_holds_the_longest_buffer_list():
    """A step with 70 buffers writes 70 pointers before its kernel runs (it uses three of them)."""
    count = 70
    buffers = [toy.buffer(i, "input", (4,), i) for i in range(count - 1)]
    buffers.append(toy.buffer(count - 1, "output", (4,)))
    used = (3, 5, count - 1, *(i for i in range(count - 1) if i not in (3, 5)))
    program = Program(
        tuple(range(count - 1)),
        tuple(buffers),
        (KernelStep("add", used, ()),),
        (toy.whole(buffers[-1]),),
        {"add": toy.nest("add", 4, extra=count - 3)},
    )
    executable = Executable(program, {"add": toy.kernel("add", 4)}, toy.host())
    for _ in range(3):
        args = [torch.full((4,), float(i)) for i in range(count - 1)]
        assert executable(args)[0].tolist() == [8.0] * 4
