from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lazyc.cli.main import app
from lazyc.config import OPTIONS, Config
from lazyc.report.events import EventStream
from lazyc.runtime.cache import DiskCache


def run(*args: str) -> str:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAZYC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_env_names_versions_target_and_cache(folder: Path) -> None:
    rows = dict(line.split(maxsplit=1) for line in run("env").splitlines())
    assert rows["torch"].startswith("2.") and "lazyc" in rows and "llvmlite" in rows
    assert rows["target"].split()[0] in ("avx512", "avx2", "baseline")
    assert str(folder) in run("env")


def test_config_shows_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    output = run("config")
    assert all(option.env in output for option in OPTIONS.values())
    assert run("config", "--markdown").startswith("# Configuration\n")


def test_cache_info_and_clear(folder: Path) -> None:
    cache = DiskCache(Config(cache_dir=str(folder)), EventStream())
    for key in ("ab" * 32, "cd" * 32):
        cache.store("kernels", key, {}, {"object": bytes(1 << 20)})
    assert "0 programs, 2 kernels" in run("cache", "info") and "2.0 of 1024 MiB" in run(
        "cache", "info"
    )
    assert run("cache", "clear") == f"removed 2 entries from {folder}\n"
    assert "0 programs, 0 kernels" in run("cache", "info")


def test_cache_info_says_why_the_cache_is_off(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    assert "off:" in run("cache", "info") and "other users" in run("cache", "info")


def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYC_DEBUG", "9")
    command = [sys.executable, "-m", "lazyc.cli.main", "cache", "info"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr == "lazyc: LAZYC_DEBUG='9': must be one of 0, 1, 2, 3.\n"
