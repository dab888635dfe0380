"""Loading machine code through CUDA's driver, with a stand-in for the driver's library."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from lazyc.codegen.base import DeviceKernel, LaunchRef
from lazyc.codegen.gpu_target import gpu_target
from lazyc.codegen.triton.cubin import DeviceCode
from lazyc.codegen.triton.cuda import CudaGenerator
from lazyc.codegen.triton.libcuda import CudaDevice, find_libcuda
from lazyc.errors import CodeNotLoaded

_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)


class StandInLibrary:
    """Notes calls; ``failing`` names a function that returns 209, ``missing`` one that is not there."""

    def __init__(self, failing: str = "", missing: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.failing = failing
        self.missing = missing

    def __getattr__(self, name: str) -> Any:
        if name == self.missing or not name.startswith("cu"):
            raise AttributeError(name)
        if name == "cuLaunchKernel":
            return _LAUNCH

        def call(*args: Any) -> int:
            self.calls.append((name, args))
            if name == "cuGetErrorName":
                args[1]._obj.value = b"CUDA_ERROR_NO_BINARY_FOR_GPU"
            if name == "cuModuleGetFunction":
                args[0]._obj.value = 4242
            return 209 if name == self.failing else 0

        return call

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


REF = LaunchRef("lazyc_k", 12, 2, (), 8)
CODE = DeviceCode(90, 8, 100_000, b"\x7fELF machine code")


def load(library: StandInLibrary, data: bytes = CODE.dump()) -> DeviceKernel:
    generator = CudaGenerator(gpu_target("sm_90"), CudaDevice(library, 1))
    return generator.load({REF: data})["lazyc_k"]


def test_a_kernel_is_loaded_into_the_device_s_primary_context() -> None:
    library = StandInLibrary()
    kernel = load(library)
    assert library.names == [
        "cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2",
        "cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuCtxPopCurrent_v2",
    ]  # fmt: skip
    given = dict(library.calls)
    assert given["cuDeviceGet"][1].value == 1
    assert given["cuModuleLoadData"][1].value == CODE.cubin
    assert given["cuModuleGetFunction"][2].value == b"lazyc_k"
    assert [a.value for a in given["cuFuncSetAttribute"][1:]] == [8, 100_000]
    launcher = ctypes.cast(_LAUNCH, ctypes.c_void_p).value
    assert kernel == DeviceKernel(launcher, 4242, 256, 100_000, 12, 2, (), "lazyc_k")  # type: ignore[arg-type]


def test_little_shared_memory_needs_no_leave() -> None:
    library = StandInLibrary()
    load(library, DeviceCode(90, 4, 48 << 10, b"x").dump())
    assert "cuFuncSetAttribute" not in library.names


@pytest.mark.parametrize(
    "failing", ["cuInit", "cuDeviceGet", "cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute"]
)  # fmt: skip
def test_what_the_driver_refuses_is_named(failing: str) -> None:
    library = StandInLibrary(failing)
    with pytest.raises(CodeNotLoaded, match=f"{failing}: CUDA_ERROR_NO_BINARY_FOR_GPU"):
        load(library)
    assert library.names.count("cuCtxPushCurrent_v2") == library.names.count("cuCtxPopCurrent_v2")


def test_a_driver_without_a_function() -> None:
    with pytest.raises(CodeNotLoaded, match="no function cuModuleLoadData"):
        load(StandInLibrary(missing="cuModuleLoadData"))
    with pytest.raises(CodeNotLoaded, match="cuInit: error 209"):
        load(StandInLibrary("cuInit", missing="cuGetErrorName"))


def test_no_driver() -> None:
    assert find_libcuda(("libcuda_that_is_not_there.so.1",)) is None
    with pytest.raises(CodeNotLoaded, match="not on this machine"):
        CudaDevice(None, 0)


@pytest.mark.parametrize("data", [b"", CODE.dump()[:20], b"X" + CODE.dump()[1:]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CodeNotLoaded):
        load(StandInLibrary(), data)


def test_code_comes_back_as_it_was() -> None:
    assert DeviceCode.load(CODE.dump()) == CODE
