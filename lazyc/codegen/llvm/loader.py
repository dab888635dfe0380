"""Puts object files into this process and finds their functions."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import llvmlite.binding as llvm

from lazyc.codegen.base import CodegenError
from lazyc.codegen.llvm.compile import new_machine
from lazyc.codegen.llvm.math import resolve
from lazyc.codegen.target import Target
from lazyc.errors import CodeNotLoaded

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_ELF_SECTION = struct.Struct("<IIQQQQIIQQ")
_ELF_SYMBOL = struct.Struct("<IBBHQQ")
_SYMBOL_TABLE = 2  # section type SHT_SYMTAB

_MAPS, _MAX_MAPS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_MAPS_PER_OBJECT = 4  # code, constants, writable data, and what was one map before
_LEAST_LOOKED_FOR = 256  # objects, without another look; it takes as long as there are maps
_SPARE_MAPS = 2048  # for the rest of the process


class _MemoryMaps:
    """Keeps this process from the number of memory maps at which Linux refuses another one, and LLVM then
    ends the process. One for all Loaders: the limit is that of the process."""

    def __init__(self) -> None:
        self._left = 0  # objects that may be loaded before the next look
        self._lock = threading.Lock()

    def take(self, objects: int) -> None:
        """Before so many objects are loaded. Raises CodeNotLoaded where there may be no room for them."""
        with self._lock:
            if self._left < objects:
                self._left = self._look(objects)
            self._left -= objects

    def _look(self, objects: int) -> int:
        wanted = max(objects, _LEAST_LOOKED_FOR)
        try:
            limit = int(_MAX_MAPS.read_text())
            used = _MAPS.read_bytes().count(b"\n")
        except (OSError, ValueError):
            return wanted  # no such files on this system
        room = (limit - used - _SPARE_MAPS) // _MAPS_PER_OBJECT
        if room < objects:
            raise CodeNotLoaded(
                f"this process has {used} of {limit} memory maps, too many to load more code; "
                "the limit is the kernel setting vm.max_map_count"
            )
        return min(room, wanted)


_memory_maps = _MemoryMaps()


def undefined_symbols(data: bytes) -> Iterator[str]:
    """The functions that an ELF object file expects from elsewhere.

    Raises CodegenError for a file that is no 64-bit ELF file.
    """
    if data[:5] != b"\x7fELF\x02":
        raise CodegenError("object code is not a 64-bit ELF file")
    header = _ELF_HEADER.unpack_from(data)
    table, size, count = header[6], header[11], header[12]
    sections = [_ELF_SECTION.unpack_from(data, table + k * size) for k in range(count)]
    for section in sections:
        if section[1] != _SYMBOL_TABLE:
            continue
        strings = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], _ELF_SYMBOL.size):
            name, _, _, home, _, _ = _ELF_SYMBOL.unpack_from(data, at)
            if name and home == 0:
                end = data.index(b"\0", strings + name)
                yield data[strings + name : end].decode()


class Loader:
    """Loaded code. Functions stay valid as long as the Loader lives."""

    def __init__(self, target: Target) -> None:
        machine = new_machine(target)  # the engine takes it over
        # llvmlite's memory manager keeps the sections of an object together. LLVM's own puts each where the system
        # likes; the distance from code to its constants has 32 bits, and LLVM ends the process where it has more.
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine, use_lmm=True)

    def add(self, objects: Sequence[bytes]) -> None:
        """Loads object files of ``compile_text``, together: those of a call share pages.

        Raises, and loads none of them, where LLVM itself would end the process: CodegenError for a
        function they call that no library of this process has, CodeNotLoaded where the process may
        not map more memory.
        """
        if not objects:
            return
        _memory_maps.take(len(objects))
        for symbol in {s for data in objects for s in undefined_symbols(data)}:
            llvm.add_symbol(symbol, resolve(symbol))
        for data in objects:
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(data))
        self._engine.finalize_object()

    def address(self, symbol: str) -> int:
        """The address of an exported function. Raises CodegenError when no object file has it."""
        found = self._engine.get_function_address(symbol)
        if not found:
            raise CodegenError(f"no loaded object file defines {symbol!r}")
        return found
