"""The file format of the disk cache: one entry as bytes, verified when read.

    {"magic": "lazyc cache entry", "version": 1, "kind": ..., "key": ..., "versions": {...},
     "target": ..., "header": {...}, "parts": [[name, length, sha256], ...]}\\n
    <SHA-256 of the line above, 64 hex digits>\\n
    <the parts, one after the other>

Nothing in an entry is executed or imported while it is read. See ``docs/cache.md`` too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lazyc.errors import CacheCorrupt

MAGIC = "lazyc cache entry"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """What was stored: ``header`` is the caller's JSON object, ``parts`` the raw data by name."""

    header: Mapping[str, Any]
    parts: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Identity:
    """What an entry must say of itself to be the one that was asked for."""

    kind: str
    key: str
    target: str
    versions: Mapping[str, str]

    def fields(self) -> dict[str, Any]:
        return {
            "magic": MAGIC,
            "version": FORMAT,
            "kind": self.kind,
            "key": self.key,
            "target": self.target,
            "versions": dict(self.versions),
        }


def pack(identity: Identity, header: Mapping[str, Any], parts: Mapping[str, bytes]) -> bytes:
    """An entry as the content of its file. ``header`` must be JSON."""
    table = [[name, len(data), _sha256(data)] for name, data in parts.items()]
    tree = {**identity.fields(), "header": dict(header), "parts": table}
    line = json.dumps(tree, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    return b"".join([line, _sha256(line).encode(), b"\n", *parts.values()])


def unpack(data: bytes, identity: Identity) -> Entry:
    """The entry in a file's content. Raises CacheCorrupt unless every byte is as it was written."""
    tree, start = _read_line(data)
    for name, expected in identity.fields().items():
        if tree.get(name) != expected:
            raise CacheCorrupt(f"{name} is {tree.get(name)!r}, expected {expected!r}")
    parts: dict[str, bytes] = {}
    for name, length, digest in tree["parts"]:
        part = data[start : start + length]
        start += length
        if len(part) != length:
            raise CacheCorrupt(f"part {name} is cut short")
        if _sha256(part) != digest:
            raise CacheCorrupt(f"part {name} has a wrong checksum")
        parts[name] = part
    if start != len(data):
        raise CacheCorrupt(f"{len(data) - start} bytes too many")
    return Entry(tree["header"], parts)


def read_header(data: bytes) -> Mapping[str, Any]:
    """The caller's header from the start of a file, without the parts. Raises CacheCorrupt."""
    return _read_line(data)[0]["header"]


def _read_line(data: bytes) -> tuple[dict[str, Any], int]:
    """The verified JSON line, and where the parts begin."""
    end = data.find(b"\n") + 1
    start = end + 65
    if not end or len(data) < start or data[start - 1 : start] != b"\n":
        raise CacheCorrupt("no header")
    if data[end : start - 1] != _sha256(data[:end]).encode():
        raise CacheCorrupt("the header has a wrong checksum")
    tree = json.loads(data[:end])
    if not isinstance(tree, dict):
        raise CacheCorrupt("the header is no JSON object")
    return tree, start


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
