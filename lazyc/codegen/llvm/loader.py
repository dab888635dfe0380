"""Puts object files into this process and finds their functions."""

from __future__ import annotations

import struct
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

# Each load maps a few ranges. Linux refuses to map more than max_map_count; the rest of the process
# needs some too.
_MAPS, _MAX_MAPS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_LOADS_BETWEEN_CHECKS = 256
_SPARE_MAPS = 8 * _LOADS_BETWEEN_CHECKS


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
        self._loads = -1
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)

    def add(self, objects: Sequence[bytes]) -> None:
        """Loads object files of ``compile_text``, together: each call takes whole pages.

        Raises, and loads none of them, where LLVM itself would end the process: CodegenError for a
        function they call that no library of this process has, CodeNotLoaded where the process may
        not map more memory.
        """
        if not objects:
            return
        self._check_maps()
        for symbol in {s for data in objects for s in undefined_symbols(data)}:
            llvm.add_symbol(symbol, resolve(symbol))
        for data in objects:
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(data))
        self._engine.finalize_object()

    def _check_maps(self) -> None:
        self._loads += 1
        if self._loads % _LOADS_BETWEEN_CHECKS:
            return
        try:
            limit = int(_MAX_MAPS.read_text())
            used = _MAPS.read_bytes().count(b"\n")
        except (OSError, ValueError):
            return  # no such files on this system
        if limit - used < _SPARE_MAPS:
            self._loads -= 1  # look again next time
            raise CodeNotLoaded(
                f"this process has {used} of {limit} memory maps, too many to load more code; "
                "the limit is the kernel setting vm.max_map_count"
            )

    def address(self, symbol: str) -> int:
        """The address of an exported function. Raises CodegenError when no object file has it."""
        found = self._engine.get_function_address(symbol)
        if not found:
            raise CodegenError(f"no loaded object file defines {symbol!r}")
        return found
