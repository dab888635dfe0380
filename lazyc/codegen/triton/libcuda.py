"""NVIDIA's CUDA driver, called through ctypes: loading machine code into a GPU.

The library comes with the display driver and is looked for when it is needed. Signatures and constants
are those of the CUDA Driver API reference manual, "Module Management" and "Execution Control". torch owns
the context: it is the device's primary one, which torch's own calls use too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lazyc.errors import CodeNotLoaded

_NAMES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_ALWAYS_ALLOWED = 48 << 10  # bytes of shared memory that need no attribute


def find_libcuda(names: Sequence[str] = _NAMES) -> ctypes.CDLL | None:
    """The driver's library; None where there is none."""
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


class CudaDevice:
    """One GPU: loads machine code into its primary context, where it stays.

    ``library`` is what ``find_libcuda`` finds, ``index`` the number of the device. Raises CodeNotLoaded
    when there is no driver, or when it refuses.
    """

    def __init__(self, library: Any, index: int) -> None:
        if library is None:
            raise CodeNotLoaded("NVIDIA's driver (libcuda) is not on this machine")
        self._library = library
        self._modules: list[ctypes.c_void_p] = []
        launch = self._function("cuLaunchKernel")
        address = ctypes.cast(launch, ctypes.c_void_p).value
        assert address is not None
        self.launcher = address
        self._call("cuInit", ctypes.c_uint(0))
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def load(self, cubin: bytes, symbol: str, shared_bytes: int) -> int:
        """The ``CUfunction`` of a kernel, allowed so many bytes of dynamic shared memory."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            return self._load(cubin, symbol, shared_bytes)
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _load(self, cubin: bytes, symbol: str, shared_bytes: int) -> int:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(cubin))
        self._modules.append(module)
        name = ctypes.c_char_p(symbol.encode())
        self._call("cuModuleGetFunction", ctypes.byref(function), module, name)
        if shared_bytes > _ALWAYS_ALLOWED:
            kind, size = ctypes.c_int(_MAX_DYNAMIC_SHARED), ctypes.c_int(shared_bytes)
            self._call("cuFuncSetAttribute", function, kind, size)
        assert function.value is not None
        return function.value

    def _function(self, name: str) -> Any:
        try:
            return getattr(self._library, name)
        except AttributeError:
            raise CodeNotLoaded(f"NVIDIA's driver has no function {name}") from None

    def _call(self, name: str, *args: Any) -> None:
        status = self._function(name)(*args)
        if status:
            raise CodeNotLoaded(f"{name}: {self._text(status)}")

    def _text(self, status: int) -> str:
        text = ctypes.c_char_p()
        with suppress(AttributeError):
            self._library.cuGetErrorName(ctypes.c_int(status), ctypes.byref(text))
        return (text.value or b"").decode() or f"error {status}"
