"""A kernel for a GPU as bytes: its machine code, and what launching it takes besides."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lazyc.errors import CodeNotLoaded

_HEADER = struct.Struct("<8sIII")
_MAGIC = b"lazycgpu"


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """``arch``: compute capability times ten that ``cubin`` is for; ``warps`` (of 32 threads) and bytes of
    dynamic shared memory of a block."""

    arch: int
    warps: int
    shared_bytes: int
    cubin: bytes

    def dump(self) -> bytes:
        return _HEADER.pack(_MAGIC, self.arch, self.warps, self.shared_bytes) + self.cubin

    @staticmethod
    def load(data: bytes) -> DeviceCode:
        """What ``dump`` wrote. Raises CodeNotLoaded."""
        if len(data) <= _HEADER.size:
            raise CodeNotLoaded("the code of a kernel for a GPU is too short")
        magic, arch, warps, shared = _HEADER.unpack_from(data)
        if magic != _MAGIC or not 1 <= warps <= 32:
            raise CodeNotLoaded("the code of a kernel is not for a GPU")
        return DeviceCode(arch, warps, shared, data[_HEADER.size :])
