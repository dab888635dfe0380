"""The source text of a kernel as a Python function, from which Triton compiles or interprets it."""

# pyright: reportMissingImports=false
from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any

import triton.language as tl

from lazyc.codegen.triton.functions import DEVICE_FUNCTIONS


def load(symbol: str, text: str, libdevice: Any) -> Callable[..., Any]:
    """The function ``symbol`` of ``text``, which lazyc has generated in this process.

    ``libdevice``: what its calls of NVIDIA's math library go to.
    """
    file = f"<lazyc {symbol}>"
    # Triton reads the source of the functions that it compiles.
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names = {"tl": tl, "libdevice": libdevice, "__name__": "lazyc.generated", **DEVICE_FUNCTIONS}
    exec(compile(text, file, "exec"), names)
    return names[symbol]
