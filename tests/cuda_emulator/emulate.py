"""Runs kernels in CUDA C++ on the CPU: compiled by g++ with ``emulator.h`` in place of their PTX."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from lazyc.codegen.base import KernelCode, LaunchRef
from lazyc.codegen.cuda.expressions import TYPES

needs_compiler = (
    pytest.mark.gxx
)  # without g++ such a test fails, unless it was called off (conftest.py)

_ENTRY = """
extern "C" const char* emulate(int blocks, int threads, long long shared_bytes, int is_reversed,
                               void** b, const long long* bytes, const long long* d) {{
  static std::string message;
  emulator::memory.clear();
  for (int k = 0; k < {count}; ++k) emulator::memory.push_back({{(const unsigned char*)b[k], bytes[k]}});
  message = emulator::run(blocks, threads, shared_bytes, is_reversed, [=] {{ {symbol}({arguments}); }});
  return message.c_str();
}}
"""


class EmulatorError(Exception):
    """A kernel did what it must not do."""


class Emulated:
    """A kernel, compiled."""

    def __init__(self, code: KernelCode) -> None:
        ref = code.ref
        assert isinstance(ref, LaunchRef)
        self._threads, self._shared = 32 * ref.warps, code.shared_bytes
        arguments = [f"({TYPES[t]}*)b[{k}]" for k, t in enumerate(code.params)]
        arguments += [f"d[{k}]" for k in range(len(ref.sizes))]
        entry = _ENTRY.format(
            symbol=ref.symbol, arguments=", ".join([*arguments, "nullptr"]), count=len(code.params)
        )
        self._function = _compiled(code.text + entry).emulate
        self._function.restype = ctypes.c_char_p

    def __call__(
        self,
        blocks: int,
        buffers: Sequence[torch.Tensor],
        sizes: Sequence[int] = (),
        is_reversed: bool = False,
    ) -> None:
        """Runs all blocks; ``is_reversed``: the last thread first. Raises EmulatorError."""
        pointers = (ctypes.c_void_p * len(buffers))(*(t.data_ptr() for t in buffers))
        nbytes = (ctypes.c_longlong * len(buffers))(*(t.nbytes for t in buffers))
        values = (ctypes.c_longlong * max(1, len(sizes)))(*sizes)
        shared = ctypes.c_longlong(self._shared)
        found = self._function(
            blocks, self._threads, shared, int(is_reversed), pointers, nbytes, values
        )
        if found:
            raise EmulatorError(found.decode())


@cache
def _compiled(text: str) -> ctypes.CDLL:
    include = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="lazyc-emulator-") as folder:
        source, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        source.write_text(text, encoding="utf-8")
        # Fortified longjmp refuses to go from one stack to another.
        options = ["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-U_FORTIFY_SOURCE"]
        command = ["g++", *options, f"-I{include}", str(source), "-o", str(library)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        return ctypes.CDLL(str(library))
