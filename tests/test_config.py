from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from lazyc.config import OPTIONS, Config
from lazyc.errors import ConfigError, LazycWarning

ROOT = Path(__file__).parent.parent


def test_every_option_is_documented_and_named_after_its_field() -> None:
    assert list(OPTIONS) == [f.name for f in dataclasses.fields(Config)]
    for option in OPTIONS.values():
        assert option.env == f"LAZYC_{option.name.upper()}"
        assert option.doc.endswith(".")
        assert option.parse(option.default, "default") == option.default


def test_defaults_come_from_an_empty_environment(tmp_path: Path) -> None:
    assert dataclasses.replace(Config.from_env({}), cache_dir="") == Config()
    assert dataclasses.replace(Config.from_env({"LAZYC_DEBUG": ""}), cache_dir="") == Config()


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("LAZYC_STRICT", "1", "strict", True),
        ("LAZYC_STRICT", "0", "strict", False),
        ("LAZYC_VERIFY", "Yes", "verify", True),
        ("LAZYC_FUSION", "off", "fusion", False),
        ("LAZYC_TARGET", "avx2", "target", "avx2"),
        ("LAZYC_CACHE_SIZE_MB", " 8 ", "cache_size_mb", 8),
        ("LAZYC_OUTPUT_POOL_MB", "0", "output_pool_mb", 0),
        ("LAZYC_DEBUG", "2", "debug", 2),
        ("LAZYC_DEBUG_FILE", "/tmp/x", "debug_file", "/tmp/x"),
    ],
)
def test_environment_sets_options(variable: str, text: str, name: str, value: Any) -> None:
    found = getattr(Config.from_env({variable: text}), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("variable", "text", "allowed"),
    [
        ("LAZYC_STRICT", "maybe", "1 or 0"),
        ("LAZYC_TARGET", "avx1024", "'avx512'"),
        ("LAZYC_DEBUG", "4", "one of 0, 1, 2, 3"),
        ("LAZYC_DEBUG", "1.5", "one of 0, 1, 2, 3"),
        ("LAZYC_CACHE_SIZE_MB", "0", "integer >= 1"),
        ("LAZYC_OUTPUT_POOL_MB", "-1", "integer >= 0"),
        ("LAZYC_CACHE_SIZE_MB", "1G", "integer >= 1"),
    ],
)
def test_bad_variables_name_variable_value_and_choices(
    variable: str, text: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_env({variable: text})
    for part in (variable, repr(text), allowed):
        assert part in str(error.value)


def test_an_unknown_variable_is_warned_of() -> None:
    with pytest.warns(LazycWarning, match=r"LAZYC_STRCT .*did you mean 'LAZYC_STRICT'"):
        Config.from_env({"LAZYC_STRCT": "1"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Config.from_env({"PATH": "/bin", "XLAZYC_STRCT": "1"})


def test_options_lie_on_top_of_the_environment() -> None:
    base = Config.from_env({"LAZYC_DEBUG": "1", "LAZYC_STRICT": "1"})
    config = base.with_options({"debug": 3, "fusion": False, "verify": "1"})
    assert (config.debug, config.fusion, config.verify, config.strict) == (3, False, True, True)
    assert base.debug == 1 and base.with_options({}) == base


def test_unknown_option_suggests_and_lists() -> None:
    with pytest.raises(ConfigError) as error:
        Config().with_options({"cache_size_m": 3})
    text = str(error.value)
    assert "did you mean 'cache_size_mb'?" in text and all(name in text for name in OPTIONS)


@pytest.mark.parametrize(
    "options",
    [{"strict": 2}, {"strict": None}, {"debug": True}, {"debug": "x"}, {"cache_size_mb": 1.0},
     {"target": 512}, {"cache_dir": 1}],
)  # fmt: skip
def test_bad_options_name_option_and_value(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError) as error:
        Config().with_options(options)
    assert f"option {name}={value!r}" in str(error.value)


def test_code_key_has_what_affects_code_only() -> None:
    base = Config().code_key()
    for option in OPTIONS.values():
        assert (f"{option.name}=" in base) == option.affects_code
    assert Config().with_options({"fusion": False}).code_key() != base
    assert Config().with_options({"debug": 3, "strict": True}).code_key() == base


def test_config_is_frozen_and_hashable() -> None:
    assert hash(Config()) == hash(Config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().debug = 1  # type: ignore[misc]


def test_cache_folder_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    home = os.path.expanduser("~")
    for environ, expected in (
        ({}, f"{home}/.cache/lazyc"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/lazyc"),
        ({"XDG_CACHE_HOME": "relative"}, f"{home}/.cache/lazyc"),
        ({"XDG_CACHE_HOME": "/x", "LAZYC_CACHE_DIR": "/y"}, "/y"),
        ({"LAZYC_CACHE_DIR": "~/z"}, f"{home}/z"),
        ({"LAZYC_CACHE_DIR": "here"}, f"{os.getcwd()}/here"),
    ):
        assert str(Config.from_env(environ).cache_path) == expected
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(Config().cache_path) == "/x/lazyc"
    assert str(Config(cache_dir="/y").cache_path) == "/y"


def test_documentation_is_in_step() -> None:
    """``make docs`` writes docs/configuration.md."""
    command = [sys.executable, "-m", "lazyc.cli.main", "config", "--markdown"]
    written = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "configuration.md").read_text() == written
    for option in OPTIONS.values():
        assert f"`{option.name}`" in written and option.env in written
