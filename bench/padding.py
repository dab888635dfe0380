"""What padding is worth to matrix products of the CPU: ``python -m bench padding``.

Each product is timed as it is and with an operand whose rows begin at other places, in turn. ``b`` and
``a`` are the operands with sizes k x n and m x k. "packed" is MKL's product by a packed ``b``, as
lazyc calls it for weights of inference graphs; there the padded one computes all of the padded columns.

Times are those that one thread spends, so that other work of the machine shows little.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich.table import Table

from bench.measure import Timing, interleave
from lazyc.runtime.threads import symbol_address, torch_library

VOCABULARY, PADDED, WIDTH = 50257, 50304, 768
_ROW_MAJOR, _NO_TRANS, _PACKED, _B = 101, 111, 151, 162
_SECONDS = 2.0  # for one case


@dataclass(frozen=True)
class Case:
    """A product and its two ways."""

    title: str
    plain: Callable[[], object]
    padded: Callable[[], object]


def _rows(rows: int, columns: int, lead: int, dtype: torch.dtype) -> torch.Tensor:
    """Random numbers, rows x columns, with rows ``lead`` elements apart."""
    return torch.randn(rows, lead).to(dtype)[:, :columns]


def _product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], object]:
    out = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype)
    return lambda: torch.mm(a, b, out=out)


def _packed(m: int, n: int, k: int) -> Callable[[], object]:
    library = torch_library()
    assert library is not None and symbol_address(library, "cblas_sgemm_pack")
    ints, pointer = ctypes.c_int, ctypes.c_void_p
    size = library.cblas_sgemm_pack_get_size
    size.restype, size.argtypes = ctypes.c_size_t, [ints] * 4
    a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    weight = torch.empty(size(_B, m, n, k), dtype=torch.uint8)
    pack, compute = library.cblas_sgemm_pack, library.cblas_sgemm_compute
    pack.restype, compute.restype = None, None
    pack.argtypes = [*[ints] * 6, ctypes.c_float, pointer, ints, pointer]
    compute.argtypes = [*[ints] * 6, pointer, ints, pointer, ints, ctypes.c_float, pointer, ints]
    pack(_ROW_MAJOR, _B, _NO_TRANS, m, n, k, 1.0, b.data_ptr(), n, weight.data_ptr())

    def run() -> torch.Tensor:
        compute(
            _ROW_MAJOR, _NO_TRANS, _PACKED, m, n, k, a.data_ptr(), k, weight.data_ptr(), n, 0.0,
            out.data_ptr(), n,
        )  # fmt: skip
        return out

    return run


def cases() -> Iterator[Case]:
    for dtype, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        for m in (1, 16, 256, 1024) if dtype is torch.float32 else (1, 16, 256):
            a = torch.randn(m, WIDTH).to(dtype)
            by = [
                _product(a, _rows(WIDTH, VOCABULARY, lead, dtype)) for lead in (VOCABULARY, PADDED)
            ]
            yield Case(f"{name}, n = 50257, m = {m}: rows of b 50257 or 50304 apart", *by)
        weight = torch.randn(VOCABULARY, WIDTH).to(dtype)
        for m in (16, 256):
            by = [
                _product(_rows(m, VOCABULARY, lead, dtype), weight) for lead in (VOCABULARY, PADDED)
            ]
            yield Case(f"{name}, k = 50257, m = {m}: rows of a 50257 or 50304 apart", *by)
        square = torch.randn(256, 1024).to(dtype)
        by = [_product(square, _rows(1024, 1024, lead, dtype)) for lead in (1024, 1040)]
        yield Case(f"{name}, 256 x 1024 x 1024: rows of b 1024 or 1040 apart", *by)
    for m in (4, 16, 64, 256, 1024):
        by = [_packed(m, n, WIDTH) for n in (VOCABULARY, PADDED)]
        yield Case(f"f32 packed, m = {m}: n = 50257 or 50304", *by)


def measure(rounds: int) -> Iterator[tuple[str, Timing, Timing]]:
    """(title, as it is, padded) of each case."""
    torch.set_num_threads(1)
    for case in cases():
        times = interleave(
            {"plain": case.plain, "padded": case.padded},
            rounds,
            warmup=1,
            budget=_SECONDS,
            clock=time.thread_time,
        )
        yield case.title, times["plain"], times["padded"]


def table(found: Iterator[tuple[str, Timing, Timing]]) -> Table:
    made = Table("ms, least / median", "as it is", "padded", "gain (of the least)", show_edge=False)
    for title, plain, padded in found:
        gain = f"{plain.minimum / padded.minimum:.2f}x"
        made.add_row(title, _text(plain), _text(padded), gain)
    return made


def _text(timing: Timing) -> str:
    return f"{1e3 * timing.minimum:.2f} / {1e3 * timing.median:.2f}"
