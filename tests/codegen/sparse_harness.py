"""Runs a kernel of a product with a sparse weight."""

from __future__ import annotations

import ctypes
import itertools

import torch

from lazyc.codegen.base import KernelRef
from lazyc.codegen.llvm import LlvmGenerator, Loader, compile_text
from lazyc.codegen.target import Target
from lazyc.ir.sparse import SparseProduct
from tests.codegen.harness import _FUNCTION

_LOADERS: dict[Target, Loader] = {}
_NUMBERS = itertools.count()


def run(
    p: SparseProduct,
    target: Target,
    a: torch.Tensor,
    compressed: torch.Tensor | None,
    pieces: int = 1,
) -> torch.Tensor:
    """c with its padding, which holds 7 where nothing wrote to it; in ``pieces`` calls."""
    symbol = f"sparse_{next(_NUMBERS)}"
    code = LlvmGenerator(target).generate(p, symbol)
    loader = _LOADERS.setdefault(target, Loader(target))
    loader.add([compile_text(code.text, target)])
    assert compressed is not None and isinstance(code.ref, KernelRef)
    c = torch.full((p.m, p.ldc), 7.0, dtype=p.dtype.torch)
    pointers = (ctypes.c_void_p * 3)(a.data_ptr(), compressed.data_ptr(), c.data_ptr())
    error, items = ctypes.c_int64(0), p.items
    assert code.ref.items == items
    for k in range(pieces):
        begin, end = items * k // pieces, items * (k + 1) // pieces
        _FUNCTION(loader.address(symbol))(pointers, None, begin, end, ctypes.byref(error))
    assert error.value == 0
    return c
