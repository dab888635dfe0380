"""The output pool: a tensor that somebody can still see is never overwritten."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch

from lazyc.runtime.outputs import OutputPool
from tests.runtime import toy

SHAPE = (256, 512)  # 512 KiB
STRIDES = (512, 1)


@pytest.fixture
def pool() -> OutputPool:
    pool = OutputPool()
    assert pool.recycles, "holders cannot be told apart in this version of torch"
    return pool


def make(pool: OutputPool, shape=SHAPE, strides=STRIDES, dtype=torch.float32):
    return pool.allocator(shape, strides, dtype)


def test_a_dropped_tensor_is_recycled(pool):
    take = make(pool)
    address = take().data_ptr()
    assert take().data_ptr() == address
    assert pool.recycled_bytes == pool.allocated_bytes == 512 << 10


def test_recycled_tensors_are_ordinary(pool):
    take = make(pool)
    for tensor in (take(), take()):
        assert tensor.shape == SHAPE and tensor.stride() == STRIDES
        assert tensor.storage_offset() == 0 and tensor._version == 0
        assert not tensor._is_view() and tensor.is_leaf and not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == 512 << 10
        tensor.add_(1)
        assert tensor._version == 1
    kept = take()
    kept.resize_(1024, 1024).zero_()  # as any tensor of torch.empty
    assert take().data_ptr() != kept.data_ptr()


def hold_autograd(t: torch.Tensor) -> object:
    w = torch.ones(SHAPE, requires_grad=True)
    return (w * t).sum()


HOLDERS = {
    "tensor": lambda t: t,
    "slice": lambda t: t[3:, ::2],
    "transposed": lambda t: t.t(),
    "detached": lambda t: t.detach(),
    "data": lambda t: t.data,
    "alias": lambda t: torch.as_strided(t, (4,), (1,)),
    "other dtype": lambda t: t.view(torch.int32),
    "numpy": lambda t: t.numpy(),
    "numpy slice": lambda t: t.numpy()[5:],
    "memoryview": lambda t: memoryview(t.numpy()),
    "from_numpy": lambda t: torch.from_numpy(t.numpy()),
    "dlpack": lambda t: torch.to_dlpack(t),
    "dlpack tensor": lambda t: torch.from_dlpack(t),
    "numpy from dlpack": lambda t: np.from_dlpack(t),
    "untyped storage": lambda t: t.untyped_storage(),
    "tensor on the storage": lambda t: torch.empty(0).set_(t.untyped_storage(), 0, (8,), (1,)),
    "autograd": hold_autograd,
    "parameter": lambda t: torch.nn.Parameter(t),
    "module buffer": lambda t: torch.nn.BatchNorm1d(2).register_buffer("kept", t) or t,
    "container": lambda t: {"a": [t]},
    "python attribute": lambda t: setattr(test_a_dropped_tensor_is_recycled, "kept", t),
    "subclass": lambda t: t.as_subclass(type("Sub", (torch.Tensor,), {})),
    "sparse": lambda t: torch.sparse_coo_tensor(torch.arange(256)[None], t, check_invariants=False),
    "closure": lambda t: lambda: t,
}


@pytest.mark.parametrize("name", HOLDERS)
def test_whoever_holds_it_keeps_it(pool, name):
    take = make(pool)
    tensor = take()
    tensor.fill_(1.0)
    address = tensor.data_ptr()
    held = HOLDERS[name](tensor)
    del tensor
    for _ in range(10):
        other = take()
        assert other.data_ptr() != address
        other.fill_(2.0)
    probe = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * 16).from_address(address))
    assert (probe == 1.0).all()
    del other
    if name == "python attribute":
        del test_a_dropped_tensor_is_recycled.kept
    del held
    gc.collect()
    found = {take().data_ptr() for _ in range(8)}
    assert address in found  # and when the last one lets go, it is used again


def test_a_tensor_saved_for_backward_is_kept(pool):
    take = make(pool)
    saved = take()
    saved.fill_(3.0)
    w = torch.ones(SHAPE, requires_grad=True)
    loss = (w * saved).sum()
    del saved
    for _ in range(6):
        take().fill_(-1.0)
    loss.backward()
    assert torch.equal(w.grad, torch.full(SHAPE, 3.0))


def test_resized_storage_is_not_handed_out(pool):
    take = make(pool)
    tensor = take()
    tensor.untyped_storage().resize_(0)
    fresh = take()
    assert fresh.untyped_storage().nbytes() == 512 << 10
    fresh.fill_(1.0)
    del tensor
    other = take()
    assert other.data_ptr() not in (0, fresh.data_ptr())
    other.fill_(2.0)
    assert (fresh == 1.0).all()


def test_grown_storage_is_not_handed_out(pool):
    take = make(pool)
    tensor = take()
    tensor.resize_(2048, 1024).fill_(5.0)
    others = [take() for _ in range(4)]
    for other in others:
        other.zero_()
    assert (tensor == 5.0).all()


def test_shared_memory_is_not_handed_out(pool):
    take = make(pool)
    tensor = take()
    tensor.share_memory_()
    address = tensor.data_ptr()
    del tensor
    for _ in range(4):
        other = take()
        assert not other.is_shared() and other.data_ptr() != address


def test_weak_reference_of_a_user_dies_with_the_tensor(pool):
    """The pool keeps the memory, not the tensor object."""
    take = make(pool)
    reference = weakref.ref(take())
    assert reference() is None


def test_live_tensors_never_overlap(pool):
    """Random takes and drops of several layouts: every live tensor keeps what was written to it."""
    rng = random.Random(0)
    layouts = [
        make(pool),
        make(pool, (512, 256), (256, 1)),
        make(pool, (256, 512), (1, 256)),
        make(pool, (128, 512), (512, 1), torch.float64),
        make(pool, (1 << 18,), (1,)),
    ]
    live: list[tuple[torch.Tensor, float]] = []
    for turn in range(600):
        if live and rng.random() < 0.5:
            live.pop(rng.randrange(len(live)))
        if len(live) < 12:
            tensor = rng.choice(layouts)()
            value = float(turn)
            tensor.fill_(value)
            live.append((tensor[rng.randrange(8) :] if rng.random() < 0.3 else tensor, value))
        tensor, value = rng.choice(live) if live else (torch.zeros(1), 0.0)
        assert (tensor == value).all()
    starts = sorted(t.untyped_storage().data_ptr() for t, _ in live)
    assert all(a + (512 << 10) <= b for a, b in itertools.pairwise(starts))
    assert all((t == v).all() for t, v in live)
    assert pool.recycled_bytes > pool.allocated_bytes


def test_dtype_and_shape_of_a_recycled_block(pool):
    take = make(pool)
    address = take().data_ptr()
    tensor = make(pool, (128, 512), (512, 1), torch.int64)()
    assert tensor.data_ptr() == address
    assert tensor.dtype == torch.int64 and tensor.shape == (128, 512) and tensor._version == 0


def test_inference_mode_does_not_leak(pool):
    """An inference tensor cannot be saved for backward: none may come out of inference mode."""
    take = make(pool)
    with torch.inference_mode():
        inside = take()
        assert inside.is_inference()
        address = inside.data_ptr()
        del inside
    outside = take()
    assert outside.data_ptr() == address and not outside.is_inference()
    w = torch.ones(SHAPE, requires_grad=True)
    outside.fill_(2.0)
    (w * outside).sum().backward()
    del outside
    with torch.inference_mode():
        assert take().is_inference()


def test_small_and_huge_outputs_are_not_pooled():
    pool = OutputPool(min_bytes=4096, max_bytes=1 << 20)
    for shape in ((0,), (3,), (1 << 19,)):
        take = make(pool, shape, (1,))
        tensor = take()
        assert tensor.shape == shape and tensor.stride() == (1,)
    assert pool.held_bytes == 0
    assert make(pool, (4, 0, 3), (3, 3, 1))().shape == (4, 0, 3)
    assert make(pool, (), ())().dim() == 0


def test_limit_of_held_bytes():
    pool = OutputPool(max_bytes=4 * (512 << 10))
    take = make(pool)
    kept = [take() for _ in range(20)]
    assert pool.held_bytes <= 4 * (512 << 10)
    assert len({t.data_ptr() for t in kept}) == 20
    kept.clear()
    assert pool.idle_bytes <= 4 * (512 << 10)


def test_pool_switched_off():
    pool = OutputPool(max_bytes=0)
    take = make(pool)
    take()
    assert pool.held_bytes == 0


def test_blocks_of_a_size_nobody_makes_any_more_are_freed(pool):
    take = make(pool)
    kept = take()
    kept.fill_(1.0)
    take()
    assert pool.held_bytes == 2 * (512 << 10)
    del take
    gc.collect()
    assert pool.held_bytes == 0 and (kept == 1.0).all()


def test_trim_frees_idle_blocks_only():
    pool = OutputPool()
    take = make(pool)
    kept, dropped = take(), take()
    kept.fill_(1.0)
    del dropped
    pool.trim(max_idle_seconds=1000)
    assert pool.held_bytes == 2 * (512 << 10)
    pool.trim(max_idle_seconds=0)
    assert pool.held_bytes == 512 << 10 and pool.idle_bytes == 0
    assert (kept == 1.0).all()


def test_threads_never_get_the_same_block():
    """Threads take, write, keep, hand over and drop outputs; each sees only what it wrote."""
    pool = OutputPool()
    take = make(pool)
    passed: list[tuple[torch.Tensor, float]] = []
    failures: list[str] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        mine: list[tuple[torch.Tensor, float]] = []
        for turn in range(150):
            tensor, value = take(), float(seed * 1000 + turn)
            tensor.fill_(value)
            mine.append((tensor, value))
            if rng.random() < 0.2:
                passed.append(mine.pop(rng.randrange(len(mine))))
            if rng.random() < 0.5 and passed:
                with contextlib.suppress(IndexError):
                    mine.append(passed.pop())
            while len(mine) > 4:
                kept, expected = mine.pop(rng.randrange(len(mine)))
                low, high = torch.aminmax(kept)
                if not (low == high == expected):
                    failures.append(f"{seed}/{turn}: {low} {high} != {expected}")

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert pool.recycled_bytes > 0


def test_program_outputs_kept_by_the_user():
    executable = toy.chain(["add"], SHAPE)
    x, y = torch.randn(SHAPE), torch.randn(SHAPE)
    kept = []
    for i in range(10):
        (out,) = executable([x, y + i])
        kept.append((out, x + (y + i)))
    views = [o.numpy()[7:9] for o, _ in kept]
    for _ in range(5):
        executable([x, x])
    assert all(torch.equal(o, e) for o, e in kept)
    expected = [e.numpy()[7:9].copy() for _, e in kept]
    kept.clear()
    for _ in range(20):
        executable([y, y])
    assert all((v == e).all() for v, e in zip(views, expected, strict=True))


_FORK = """
import os, torch
from lazyc.runtime.outputs import OutputPool
pool = OutputPool()
take = pool.allocator((1 << 18,), (1,), torch.float32)
kept = take(); kept.fill_(1.0)
address = take().data_ptr()
child = os.fork()
if child == 0:
    a = take(); a.fill_(2.0)
    good = a.data_ptr() == address and bool((kept.numpy() == 1.0).all())
    os._exit(0 if good else 1)
_, status = os.waitpid(child, 0)
assert (kept.numpy() == 1.0).all()
raise SystemExit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() on this system")
def test_pool_in_a_forked_child():
    done = subprocess.run([sys.executable, "-c", _FORK], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
