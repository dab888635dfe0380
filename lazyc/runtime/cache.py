"""The disk cache: compiled programs and kernels that later processes find again.

One file an entry, ``<cache_dir>/v1/<kind>/<first two digits>/<key>``, in the format of
``runtime/entry.py``. The cache is a convenience: whatever goes wrong here (a full disk, a folder
of someone else, a damaged file, a writer killed half-way) ends in a miss and at most one warning,
never in an exception.

Trust: machine code is loaded from these files, so the folder must belong to the user, must not be
a symbolic link, and nobody else may write to it; each file likewise. Folders are opened one level
at a time without following links, so a check cannot be raced by a rename.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyc.config import Config
from lazyc.errors import CacheCorrupt, CacheWarning
from lazyc.report import events as E
from lazyc.runtime.entry import Entry, Identity, pack, read_header, unpack
from lazyc.runtime.explain import why_missed
from lazyc.version import versions

_KINDS: tuple[E.CacheKind, ...] = ("captures", "programs", "kernels", "choices", "checks")
_LAYOUT = "v1"  # changes with the format, so that versions of lazyc do not fight over files
_TOUCH_SECONDS = 3600  # a hit renews an entry's time of use when that is older than this
_STALE_SECONDS = 3600  # a temporary file older than this was left by a killed writer
_EVICT_EVERY = 16  # writes between looks at the total size
_EVICT_TO = 0.9  # eviction goes down to this share of the limit
_EXPLAIN_AMONG = 32  # newest entries that a miss is compared with
_HEADER_BYTES = 1 << 18  # read of a file to get at its header

_CREATE_TRIES = 5  # somebody else's clear() may remove a folder between its making and its use

# What opening a folder level by level takes; Windows has none of it.
_HAS_NEEDED_CALLS = (
    hasattr(os, "O_NOFOLLOW") and hasattr(os, "geteuid") and os.open in os.supports_dir_fd
)
_FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


class _Unsafe(Exception):
    """A folder that code must not be loaded from; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """``reason`` says why the cache is not used ("" if it is). Sizes in bytes, ``limit`` too."""

    path: Path
    reason: str
    entries: Mapping[str, int]
    bytes: int
    limit: int


@dataclass(frozen=True, slots=True)
class _File:
    folder: Path
    name: str
    size: int
    used: float

    @property
    def is_temporary(self) -> bool:
        return self.name.endswith(".tmp")


class DiskCache:
    """Loads and stores entries. All methods may be called from any thread and never raise OSError.

    ``target_key`` is written into every entry and must agree on the way back, as must the versions
    of lazyc, torch, llvmlite and triton: a second fence behind the key, which holds them too.
    """

    def __init__(self, config: Config, events: E.EventStream, target_key: str = "") -> None:
        self._root = config.cache_path
        self._limit = config.cache_size_mb << 20
        self._events = events
        self._target = target_key
        self._versions = versions()
        self._lock = threading.Lock()
        self._readable = self._writable = config.disk_cache
        self._reason = "" if config.disk_cache else "the option disk_cache is off"
        # Starts anywhere, so that many processes of few writes evict as often as one of many.
        self._writes = os.urandom(1)[0] % _EVICT_EVERY
        if config.disk_cache and not _HAS_NEEDED_CALLS:
            self._disable(f"{sys.platform} has no race-free way to open folders", reads=True)

    @property
    def is_readable(self) -> bool:
        """Whether ``load`` looks for anything."""
        return self._readable

    def load(
        self, kind: E.CacheKind, key: str, key_parts: Mapping[str, str] | None = None
    ) -> Entry | None:
        """The entry under ``key``, None on a miss. What does not verify is a miss and is deleted.

        With ``key_parts`` (``runtime.key``), a miss is reported with what differs from the nearest
        entry whose header has "key_parts".
        """
        if not self._readable:
            return None
        try:
            entry = self._read(kind, key)
        except _Unsafe as error:
            self._disable(str(error), reads=True)
            return None
        except OSError as error:
            self._disable(f"cannot read {self._root}: {error.strerror or error}", reads=True)
            return None
        if self._events.listening:
            if entry is not None:
                self._events.emit(E.CacheHit("disk", kind, key))
            else:
                reason = ""
                if key_parts and self._events.reporting:
                    reason = self._explain(kind, key_parts)
                self._events.emit(E.CacheMiss("disk", kind, key, reason, kind == "programs"))
        return entry

    def store(
        self, kind: E.CacheKind, key: str, header: Mapping[str, Any], parts: Mapping[str, bytes]
    ) -> None:
        """Writes an entry, atomically: a reader sees all of it or none. ``header`` must be JSON."""
        if not self._writable:
            return
        data = pack(self._identity(kind, key), header, parts)
        if len(data) > self._limit:
            return
        try:
            self._write_retrying(kind, key, data)
        except _Unsafe as error:
            self._disable(str(error), reads=True)
            return
        except OSError as error:
            what = (
                "the disk is full"
                if error.errno in (errno.ENOSPC, errno.EDQUOT)
                else error.strerror
            )
            self._disable(f"cannot write to {self._root}: {what or error}", reads=False)
            return
        with self._lock:
            self._writes += 1
            due = self._writes % _EVICT_EVERY == 0
        if due:
            self.evict()

    def evict(self) -> None:
        """Removes the entries unused for longest until the cache is within its size limit, and
        temporary files that killed writers left."""
        now = time.time()
        files: list[_File] = []
        for file in self._files():
            if not file.is_temporary:
                files.append(file)
            elif now - file.used > _STALE_SECONDS:
                _unlink(file)
        total = sum(f.size for f in files)
        if total <= self._limit:
            return
        removed = freed = 0
        for file in sorted(files, key=lambda f: f.used):
            if total - freed <= self._limit * _EVICT_TO:
                break
            _unlink(file)
            removed, freed = removed + 1, freed + file.size
        self._events.emit(E.CacheEvicted(removed, freed))

    def clear(self) -> int:
        """Removes every entry and the folders left empty; returns the number of entries."""
        count = 0
        for file in self._files():
            _unlink(file)
            count += not file.is_temporary
        top = self._root / _LAYOUT
        for folder in sorted(top.glob("*/*"), reverse=True):
            _remove_empty(folder)
        for folder in (*(top / kind for kind in _KINDS), top):
            _remove_empty(folder)
        return count

    def stats(self) -> CacheStats:
        """What is on disk now, and whether the folder can be used."""
        counts: dict[str, int] = dict.fromkeys(_KINDS, 0)
        total = 0
        for file in self._files():
            total += file.size
            if not file.is_temporary:
                counts[file.folder.parent.name] += 1
        reason = self._reason
        if not reason:
            try:
                with suppress(FileNotFoundError), self._folder(create=False):
                    pass
            except (_Unsafe, OSError) as error:
                reason = str(error)
        return CacheStats(self._root, reason, counts, total, self._limit)

    # --- files ------------------------------------------------------------------------------------

    def _identity(self, kind: str, key: str) -> Identity:
        return Identity(kind, key, self._target, self._versions)

    def _read(self, kind: E.CacheKind, key: str) -> Entry | None:
        """The entry; None where there is none or it is not valid. Raises _Unsafe or OSError."""
        try:
            with self._folder(kind, key[:2], create=False) as folder:
                try:
                    return unpack(_read_file(folder, key), self._identity(kind, key))
                except (CacheCorrupt, ValueError, KeyError, TypeError, RecursionError) as error:
                    # Beyond CacheCorrupt: JSON of another shape, from another program.
                    self._events.emit(E.CacheRejected(kind, key, str(error)))
                    with suppress(OSError):
                        os.unlink(key, dir_fd=folder)
                    return None
        except FileNotFoundError:
            return None

    def _write_retrying(self, kind: E.CacheKind, key: str, data: bytes) -> None:
        for left in reversed(range(_CREATE_TRIES)):
            try:
                self._write(kind, key, data)
                return
            except FileNotFoundError:
                if not left:
                    raise

    def _write(self, kind: E.CacheKind, key: str, data: bytes) -> None:
        temporary = f"{key}.{os.urandom(8).hex()}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._folder(kind, key[:2], create=True) as folder:
            fd = os.open(temporary, flags, 0o600, dir_fd=folder)
            try:
                with open(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(fd)
                os.rename(temporary, key, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise

    @contextmanager
    def _folder(self, *below: str, create: bool) -> Iterator[int]:
        """A descriptor of the folder ``v1/<below>``, every level of it checked.

        Raises _Unsafe, or OSError (FileNotFoundError where it does not exist and is not created).
        """
        if create:
            self._root.parent.mkdir(parents=True, exist_ok=True)
        fd = _open_folder(str(self._root), None, self._root, create)
        try:
            path = self._root
            for name in (_LAYOUT, *below):
                path = path / name
                inner = _open_folder(name, fd, path, create)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def _files(self) -> list[_File]:
        """Every file that the cache wrote; what cannot be listed is left out."""
        found: list[_File] = []
        for kind in _KINDS:
            for shard in _scan(self._root / _LAYOUT / kind):
                if not shard.is_dir(follow_symlinks=False) or len(shard.name) != 2:
                    continue
                for entry in _scan(shard.path):
                    with suppress(OSError):
                        if _is_ours(entry):
                            info = entry.stat(follow_symlinks=False)
                            folder = Path(shard.path)
                            found.append(_File(folder, entry.name, info.st_size, info.st_mtime))
        return found

    def _explain(self, kind: E.CacheKind, key_parts: Mapping[str, str]) -> str:
        files = [f for f in self._files() if f.folder.parent.name == kind and not f.is_temporary]
        files.sort(key=lambda f: f.used, reverse=True)
        known: list[Mapping[str, str]] = []
        for file in files[:_EXPLAIN_AMONG]:
            with (
                suppress(OSError, CacheCorrupt, ValueError, KeyError, TypeError),
                open(file.folder / file.name, "rb") as stream,
            ):
                known.append(read_header(stream.read(_HEADER_BYTES))["key_parts"])
        return why_missed(key_parts, known)

    def _disable(self, reason: str, *, reads: bool) -> None:
        """Turns off writes, or all use, for this process; warns and reports it the first time."""
        with self._lock:
            first = self._writable
            self._writable = False
            self._readable = self._readable and not reads
            self._reason = self._reason or reason
        if first:
            self._events.emit(E.CacheDisabled(reason))
            warnings.warn(
                f"lazyc's disk cache is off: {reason}. Code is compiled anew in each process. "
                "LAZYC_CACHE_DIR moves the cache, LAZYC_DISK_CACHE=0 turns it off silently.",
                CacheWarning,
                stacklevel=3,
            )


def _open_folder(name: str, parent: int | None, path: Path, create: bool) -> int:
    """Opens (or makes, mode 0700) one folder inside ``parent``; it must be the user's alone."""
    if create:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
    try:
        fd = os.open(name, _FOLDER_FLAGS | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _Unsafe(
                f"{path} is a symbolic link or no folder; name the folder itself"
            ) from None
        raise
    try:
        problem = _not_private(os.fstat(fd))
        if problem:
            raise _Unsafe(f"{path} {problem}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _not_private(info: os.stat_result) -> str:
    """Why someone else could have put code here; "" when nobody could."""
    if info.st_uid != os.geteuid():
        return f"belongs to another user (uid {info.st_uid})"
    if info.st_mode & 0o022:
        return "can be written by other users (`chmod go-w` it if what it holds is yours)"
    return ""


def _read_file(folder: int, name: str) -> bytes:
    """The content of a private regular file, whose time of use is renewed.

    Raises CacheCorrupt or OSError.
    """
    try:
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
        )
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CacheCorrupt("is a symbolic link") from None
        raise
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        problem = _not_private(info) if stat.S_ISREG(info.st_mode) else "is no regular file"
        if problem:
            raise CacheCorrupt(problem)
        data = file.read()
        if time.time() - info.st_mtime > _TOUCH_SECONDS:
            with suppress(OSError):
                os.utime(fd)
    return data


def _is_ours(entry: os.DirEntry[str]) -> bool:
    name = entry.name.removesuffix(".tmp").split(".")[0]
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _unlink(file: _File) -> None:
    with suppress(OSError):
        os.unlink(file.folder / file.name)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
