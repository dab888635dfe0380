"""Targets: detection, forced targets, and what they claim."""

from __future__ import annotations

import platform

import pytest

from lazyc.codegen.target import Target, available_targets, host_target
from lazyc.errors import ConfigError


def test_the_host_has_a_target() -> None:
    assert host_target() == host_target(available_targets()[0])
    assert available_targets()[-1] == "baseline"


def test_an_unknown_target_is_an_error() -> None:
    with pytest.raises(ConfigError, match="sse9"):
        host_target("sse9")


def test_features_are_cut_down(target: Target) -> None:
    if platform.machine() != "x86_64":
        return
    assert target.vector_bytes == {"avx512": 64, "avx2": 32, "baseline": 16}[target.name]
    assert target.has("avx512f") == (target.name == "avx512")
    assert target.has_fma == target.has_half == (target.name != "baseline")
    assert target.has_rounding == (target.name != "baseline")


def test_keys_tell_targets_apart() -> None:
    keys = [host_target(name).key() for name in available_targets()]
    assert len(set(keys)) == len(keys)


def test_cache_sizes_are_plausible(target: Target) -> None:
    first, second = target.cache_bytes
    assert 8 << 10 <= first <= second <= 64 << 20
