"""The version of lazyc, and the versions of what it stands on."""

from __future__ import annotations

import hashlib
import importlib
from functools import cache
from importlib import metadata
from pathlib import Path

from lazyc.errors import UnsupportedVersion

VERSION = "0.1.0"

_TORCH = ((2, 13), (2, 15))  # at least, below
_LLVMLITE = "0.44 or later"


@cache
def installed(package: str) -> str | None:
    """The installed version of a package, None when there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def source_digest() -> str:
    """SHA-256 over lazyc's own source, so that changed compiler code never meets old cache entries.

    Reading the package takes a few milliseconds, once a process.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What decides whether code from the cache still fits: package -> version (or "none")."""
    found = {name: installed(name) or "none" for name in ("torch", "llvmlite", "triton")}
    return {"lazyc": f"{VERSION}+{source_digest()[:16]}", **found}


def check_versions() -> None:
    """Raises UnsupportedVersion when torch or llvmlite is missing or one that lazyc cannot use.

    (Python: pip refuses to install lazyc on one that is too old.)
    """
    torch = installed("torch")
    low, below = _TORCH
    if torch is None or not low <= _major_minor(torch) < below:
        raise UnsupportedVersion("torch", torch, f"{low[0]}.{low[1]} or {below[0]}.{below[1] - 1}")
    found = installed("llvmlite")
    if found is None:
        raise UnsupportedVersion("llvmlite", None, _LLVMLITE)
    try:
        importlib.import_module("llvmlite.binding")
    except ImportError as error:
        raise UnsupportedVersion(
            "llvmlite", f"{found} (import fails: {error})", _LLVMLITE
        ) from error


def _major_minor(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)
