from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lazyc.config import Config
from lazyc.errors import CacheCorrupt, CacheWarning
from lazyc.report import events as E
from lazyc.runtime import cache as cache_module
from lazyc.runtime.cache import DiskCache
from lazyc.runtime.entry import Identity, pack, unpack

KEY = "ab" * 32
OTHER = "ac" * 32
HEADER = {"symbol": "k_ab", "grain": 4}
PARTS = {"object": bytes(range(256)) * 4, "empty": b"", "text": b"line\nline\n"}


class Log(list[E.Event]):
    def of(self, kind: type[E.Event]) -> list[Any]:
        return [e for e in self if isinstance(e, kind)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def make(folder: Path, log: Log) -> Callable[..., DiskCache]:
    def make(**options: Any) -> DiskCache:
        stream = E.EventStream()
        stream.subscribe(log.append)
        target = options.pop("target", "avx2")
        return DiskCache(Config(cache_dir=str(folder), **options), stream, target)

    return make


@pytest.fixture(autouse=True)
def no_unexpected_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        yield


def only_file(folder: Path) -> Path:
    (found,) = [p for p in folder.rglob("*") if not p.is_dir()]
    return found


def is_stored(cache: DiskCache) -> bool:
    entry = cache.load("kernels", KEY)
    assert entry is None or (entry.header, entry.parts) == (HEADER, PARTS)
    return entry is not None


# --- the plain way --------------------------------------------------------------------------------


def test_store_then_load(make: Callable[..., DiskCache], folder: Path, log: Log) -> None:
    cache = make()
    assert cache.load("kernels", KEY) is None
    assert not folder.exists(), "looking creates nothing"
    cache.store("kernels", KEY, HEADER, PARTS)
    entry = make().load("kernels", KEY)
    assert entry is not None and entry.header == HEADER and entry.parts == PARTS
    assert cache.load("programs", KEY) is None and cache.load("kernels", OTHER) is None
    assert [type(e).__name__ for e in log] == ["CacheMiss", "CacheHit", "CacheMiss", "CacheMiss"]
    path = only_file(folder)
    assert path.relative_to(folder).as_posix() == f"v1/kernels/ab/{KEY}"
    assert path.stat().st_mode & 0o777 == 0o600
    for made in (folder, folder / "v1", path.parent.parent, path.parent):
        assert made.stat().st_mode & 0o777 == 0o700
    first = json.loads(path.read_bytes().split(b"\n")[0])
    assert first["magic"] == "lazyc cache entry" and first["target"] == "avx2"
    assert first["versions"].keys() == {"lazyc", "torch", "llvmlite", "triton"}


def test_last_writer_wins(make: Callable[..., DiskCache], folder: Path) -> None:
    make().store("kernels", KEY, {"old": 1}, {"x": b"old"})
    make().store("kernels", KEY, HEADER, PARTS)
    assert is_stored(make())
    only_file(folder)


def test_off_by_option(make: Callable[..., DiskCache], folder: Path) -> None:
    cache = make(disk_cache=False)
    cache.store("kernels", KEY, HEADER, PARTS)
    assert cache.load("kernels", KEY) is None and not folder.exists()
    assert cache.stats().reason == "the option disk_cache is off"


def test_stats_and_clear(make: Callable[..., DiskCache], folder: Path) -> None:
    cache = make()
    assert cache.stats().bytes == 0 and cache.stats().reason == ""
    cache.store("kernels", KEY, HEADER, PARTS)
    cache.store("kernels", OTHER, HEADER, PARTS)
    cache.store("programs", KEY, HEADER, PARTS)
    (folder / "v1" / "kernels" / "ab" / "notes.txt").write_text("of the user")
    (folder / "README").write_text("of the user")
    stats = cache.stats()
    assert (
        stats.entries == {"captures": 0, "programs": 1, "kernels": 2, "choices": 0, "checks": 0}
        and stats.bytes > 3 * 1024
    )
    assert cache.clear() == 3
    assert not any(cache.stats().entries.values())
    left = {p.name for p in folder.rglob("*") if p.is_file()}
    assert left == {"notes.txt", "README"}, "what the cache did not write stays"


# --- damage ---------------------------------------------------------------------------------------


def test_a_flip_of_any_bit_of_the_header_and_of_each_part_is_found() -> None:
    identity = Identity("kernels", KEY, "avx2", {"torch": "2.13"})
    data = pack(identity, HEADER, PARTS)
    assert unpack(data, identity).parts == PARTS
    for position in range(len(data)):
        for bit in (1, 0x80):
            damaged = bytearray(data)
            damaged[position] ^= bit
            with pytest.raises(CacheCorrupt):
                unpack(bytes(damaged), identity)


def test_every_truncation_and_any_addition_is_found() -> None:
    identity = Identity("kernels", KEY, "avx2", {})
    data = pack(identity, HEADER, PARTS)
    for length in range(len(data)):
        with pytest.raises(CacheCorrupt):
            unpack(data[:length], identity)
    with pytest.raises(CacheCorrupt):
        unpack(data + b"\0", identity)


def test_an_entry_is_refused_for_another_identity() -> None:
    mine = Identity("kernels", KEY, "avx2", {"torch": "2.13"})
    data = pack(mine, HEADER, PARTS)
    for other in (
        Identity("programs", KEY, "avx2", {"torch": "2.13"}),
        Identity("kernels", OTHER, "avx2", {"torch": "2.13"}),
        Identity("kernels", KEY, "avx512", {"torch": "2.13"}),
        Identity("kernels", KEY, "avx2", {"torch": "2.14"}),
        Identity("kernels", KEY, "avx2", {"torch": "2.13", "triton": "3"}),
    ):
        with pytest.raises(CacheCorrupt, match="expected"):
            unpack(data, other)


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-300] ^= 4
    path.write_bytes(data)


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_garbage(path: Path) -> None:
    path.write_bytes(os.urandom(4096))


def damage_foreign_json(path: Path) -> None:
    line = b'["a list"]\n'
    path.write_bytes(line + hashlib.sha256(line).hexdigest().encode() + b"\n")


def damage_symlink(path: Path) -> None:
    elsewhere = path.parent.parent.parent.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def damage_permissions(path: Path) -> None:
    path.chmod(0o666)


def damage_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [damage_flip, damage_truncate, damage_empty, damage_garbage, damage_foreign_json,
     damage_symlink, damage_permissions, damage_fifo],
)  # fmt: skip
def test_a_damaged_file_is_a_miss_and_is_rewritten(
    make: Callable[..., DiskCache], folder: Path, log: Log, damage: Callable[[Path], None]
) -> None:
    cache = make()
    cache.store("kernels", KEY, HEADER, PARTS)
    path = only_file(folder)
    damage(path)
    assert cache.load("kernels", KEY) is None
    assert len(log.of(E.CacheRejected)) == 1
    assert not os.path.lexists(path)
    cache.store("kernels", KEY, HEADER, PARTS)
    assert is_stored(cache)


def test_an_entry_of_another_target_is_refused(make: Callable[..., DiskCache], log: Log) -> None:
    make(target="avx512").store("kernels", KEY, HEADER, PARTS)
    assert not is_stored(make(target="avx2"))
    assert "avx512" in log.of(E.CacheRejected)[0].reason


def test_a_symlink_in_place_of_an_entry_is_overwritten_not_followed(
    make: Callable[..., DiskCache], folder: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    cache = make()
    cache.store("kernels", KEY, HEADER, PARTS)
    path = only_file(folder)
    path.unlink()
    path.symlink_to(victim)
    cache.store("kernels", KEY, HEADER, PARTS)
    assert victim.read_text() == "precious" and not path.is_symlink()
    assert is_stored(cache)


# --- folders that are not to be trusted -----------------------------------------------------------


def expect_off(cache: DiskCache, log: Log, match: str) -> None:
    """Neither load nor store works or raises; one warning and one event in all."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert cache.load("kernels", KEY) is None
            cache.store("kernels", KEY, HEADER, PARTS)
    (warning,) = [w for w in caught if issubclass(w.category, CacheWarning)]
    assert match in str(warning.message) and "LAZYC_CACHE_DIR" in str(warning.message)
    assert len(log.of(E.CacheDisabled)) == 1
    assert match in cache.stats().reason


@pytest.mark.parametrize("level", ["", "v1", "v1/kernels", "v1/kernels/ab"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_is_refused(
    make: Callable[..., DiskCache], folder: Path, log: Log, level: str, mode: int
) -> None:
    make().store("kernels", KEY, HEADER, PARTS)
    (folder / level).chmod(mode)
    expect_off(make(), log, "can be written by other users")


@pytest.mark.parametrize("level", ["", "v1", "v1/kernels", "v1/kernels/ab"])
def test_a_symlinked_folder_is_refused(
    make: Callable[..., DiskCache], folder: Path, log: Log, tmp_path: Path, level: str
) -> None:
    make().store("kernels", KEY, HEADER, PARTS)
    moved = tmp_path / "moved"
    (folder / level).rename(moved)
    (folder / level).symlink_to(moved)
    before = sorted(p.name for p in moved.rglob("*"))
    expect_off(make(), log, "is a symbolic link")
    assert sorted(p.name for p in moved.rglob("*")) == before


def test_a_folder_of_another_user_is_refused(
    make: Callable[..., DiskCache], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().store("kernels", KEY, HEADER, PARTS)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    expect_off(make(), log, "belongs to another user")


def test_a_file_in_place_of_the_folder(
    make: Callable[..., DiskCache], folder: Path, log: Log
) -> None:
    folder.write_text("a file")
    expect_off(make(), log, "no folder")
    assert folder.read_text() == "a file"


def test_a_folder_open_for_reading_is_fine(make: Callable[..., DiskCache], folder: Path) -> None:
    folder.mkdir(mode=0o755)
    make().store("kernels", KEY, HEADER, PARTS)
    assert is_stored(make())


# --- disks that fail ------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int, when: str = "") -> None:
    """Makes os.<name> fail, for paths that contain ``when``."""
    real = getattr(os, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if when in str(args[0]):
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(
    ("call", "code", "when", "match"),
    [
        ("fsync", errno.ENOSPC, "", "is full"),
        ("open", errno.ENOSPC, ".tmp", "is full"),
        ("open", errno.EROFS, ".tmp", "Read-only"),
        ("open", errno.EACCES, ".tmp", "Permission denied"),
        ("rename", errno.EDQUOT, ".tmp", "is full"),
        ("fsync", errno.EIO, "", "Input/output"),
        ("mkdir", errno.EROFS, "", "Read-only"),
    ],
)
def test_a_failed_write_warns_once_and_reads_go_on(
    make: Callable[..., DiskCache], folder: Path, log: Log, monkeypatch: pytest.MonkeyPatch,
    call: str, code: int, when: str, match: str,
) -> None:  # fmt: skip
    make().store("kernels", KEY, HEADER, PARTS)
    failing(monkeypatch, call, code, when)
    cache = make()
    with pytest.warns(CacheWarning, match=match):
        cache.store("programs", OTHER, HEADER, PARTS)
    cache.store("kernels", OTHER, HEADER, PARTS)
    assert len(log.of(E.CacheDisabled)) == 1
    assert is_stored(cache), "what is there can still be read"
    only_file(folder)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_failed_read_warns_once(
    make: Callable[..., DiskCache], log: Log, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    make().store("kernels", KEY, HEADER, PARTS)
    failing(monkeypatch, "open", code)
    expect_off(make(), log, os.strerror(code))


CHILD = """
import os, resource, sys, warnings
from lazyc.config import Config
from lazyc.report.events import EventStream
from lazyc.runtime.cache import DiskCache
cache = DiskCache(Config(cache_dir=sys.argv[1]), EventStream(), "avx2")
key = "ab" * 32
"""


def child(folder: Path, body: str, *args: str) -> subprocess.Popen[str]:
    code = CHILD + textwrap.dedent(body)
    command = [sys.executable, "-c", code, str(folder), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_kernel_refuses_a_large_file(folder: Path) -> None:
    """A real failed write: the process may not write files of more than 1000 bytes."""
    process = child(
        folder,
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        cache.store("kernels", key, {}, {"object": bytes(100_000)})
        cache.store("kernels", key, {}, {"object": bytes(100_000)})
        print(cache.load("kernels", key))
        """,
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "None\n", err
    assert err.count("CacheWarning") == 1
    assert [p for p in folder.rglob("*") if p.is_file()] == []


def test_a_killed_writer_leaves_no_entry(
    make: Callable[..., DiskCache], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = child(
        folder,
        """
        os.fsync = lambda fd: os._exit(9)
        cache.store("kernels", key, {}, {"object": bytes(100_000)})
        """,
    )
    process.communicate(timeout=60)
    assert process.returncode == 9
    left = only_file(folder)
    assert left.name.endswith(".tmp")
    cache = make()
    assert not is_stored(cache)
    cache.store("kernels", KEY, HEADER, PARTS)
    assert is_stored(cache)
    cache.evict()
    assert left.exists(), "it might belong to a writer at work"
    os.utime(left, (0, time.time() - 2 * 3600))
    cache.evict()
    assert not left.exists() and is_stored(cache)


def test_writers_and_readers_in_many_processes(
    folder: Path, make: Callable[..., DiskCache]
) -> None:
    """Three processes write the same entries, of equal length and different bytes, while each
    reads them: every read gives one writer's whole entry or nothing."""
    body = """
    me = int(sys.argv[2])
    hits = 0
    for step in range(150):
        name = f"{step % 5:064x}"
        cache.store("kernels", name, {"by": me}, {"object": bytes([me]) * 50_000})
        found = cache.load("kernels", name)
        if found is not None:
            hits += 1
            by = found.header["by"]
            assert by in (1, 2, 3) and found.parts == {"object": bytes([by]) * 50_000}
        if step % 40 == me:
            cache.clear()
    print(hits)
    """
    processes = [child(folder, body, str(k)) for k in (1, 2, 3)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and "Warning" not in err, err
        assert int(out) > 50
    assert all(not p.name.endswith(".tmp") for p in folder.rglob("*"))
    assert make().stats().reason == ""


def test_writers_in_many_threads(make: Callable[..., DiskCache], folder: Path, log: Log) -> None:
    cache = make()

    def work(me: int) -> None:
        for step in range(40):
            cache.store("kernels", f"{step % 3:064x}", {"by": me}, {"o": bytes([me]) * 999})
            found = cache.load("kernels", f"{step % 3:064x}")
            assert found is not None and found.parts["o"] == bytes([found.header["by"]]) * 999

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, k) for k in range(4)]:
            done.result()
    assert not log.of(E.CacheRejected)


# --- size -----------------------------------------------------------------------------------------


def test_the_longest_unused_go_first(
    make: Callable[..., DiskCache], folder: Path, log: Log
) -> None:
    cache = make(cache_size_mb=1)
    cache._writes = 0
    keys = [f"{k:02x}" + "0" * 62 for k in range(10)]
    for k, key in enumerate(keys):
        cache.store("kernels", key, {}, {"object": bytes(200_000)})
        os.utime(folder / "v1" / "kernels" / key[:2] / key, (0, 1_000_000 + k))
    assert cache.load("kernels", keys[0]) is not None  # renews the oldest
    cache.evict()
    left = {key for key in keys if cache.load("kernels", key) is not None}
    assert left == {keys[0], keys[7], keys[8], keys[9]}
    assert cache.stats().bytes <= 0.9 * (1 << 20)
    (event,) = log.of(E.CacheEvicted)
    assert event.entries == 6 and event.bytes > 6 * 200_000


def test_writes_evict_by_themselves(make: Callable[..., DiskCache]) -> None:
    cache = make(cache_size_mb=1)
    for k in range(cache_module._EVICT_EVERY * 3):
        cache.store("kernels", f"{k:064x}", {}, {"object": bytes(100_000)})
    assert cache.stats().bytes < (1 << 20) + cache_module._EVICT_EVERY * 101_000


def test_an_entry_beyond_the_limit_is_not_written(
    make: Callable[..., DiskCache], folder: Path
) -> None:
    make(cache_size_mb=1).store("kernels", KEY, {}, {"object": bytes(2 << 20)})
    assert not folder.exists()


def test_time_of_use_is_renewed_at_most_hourly(
    make: Callable[..., DiskCache], folder: Path
) -> None:
    cache = make()
    cache.store("kernels", KEY, HEADER, PARTS)
    path = only_file(folder)
    recent = time.time() - 60
    os.utime(path, (recent, recent))
    assert is_stored(cache) and path.stat().st_mtime == pytest.approx(recent, abs=1)
    os.utime(path, (0, time.time() - 7200))
    assert is_stored(cache) and path.stat().st_mtime > time.time() - 60


# --- explanations ---------------------------------------------------------------------------------


def test_a_miss_names_the_difference_from_the_nearest_entry(
    make: Callable[..., DiskCache], log: Log
) -> None:
    cache = make()
    for k, rows in enumerate((4, 8)):
        parts = {"operators": "sha256:1", "input 0": f"f32[{rows}]", "target": "avx2"}
        cache.store("programs", f"{k:064x}", {"key_parts": parts}, {})
    cache.load("programs", KEY, {"operators": "sha256:1", "input 0": "f32[8]", "target": "avx512"})
    cache.load("programs", KEY, {"operators": "sha256:2", "input 0": "f32[8]", "target": "avx2"})
    reasons = [e.reason for e in log.of(E.CacheMiss)]
    assert reasons == ["target: avx2 -> avx512", "no entry has these operators"]


def test_nobody_looks_for_a_difference_that_is_not_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(DiskCache, "_explain", lambda self, kind, parts: looked.append(kind) or "")
    stream, counted = E.EventStream(), Log()
    stop = stream.subscribe(counted.append, only_counts=True)
    cache = DiskCache(Config(cache_dir=str(folder)), stream, "avx2")
    cache.load("programs", KEY, {"target": "avx2"})
    assert (len(counted), looked) == (1, [])
    stop_showing = stream.subscribe(lambda event: None)
    cache.load("programs", KEY, {"target": "avx2"})
    assert (len(counted), looked) == (2, ["programs"])
    stop_showing()
    assert stream.listening and not stream.reporting
    stop()
    assert not stream.listening
