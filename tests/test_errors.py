from __future__ import annotations

import pytest

from lazyc import errors, version
from lazyc.errors import CompilerBug, ConfigError, LazycError, LazycWarning, UnsupportedVersion


def test_one_base_each_for_errors_and_warnings() -> None:
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and issubclass(cls, Exception):
            base = LazycWarning if issubclass(cls, Warning) else LazycError
            assert issubclass(cls, base), name


def test_compiler_bug_says_what_where_and_what_to_do() -> None:
    cause = ValueError("boom")
    bug = CompilerBug("pass fuse", cause, op="matmul", shapes="f32[2, 3]", line="model.py:12")
    text = str(bug)
    assert "pass fuse on matmul (f32[2, 3]) at model.py:12: ValueError: boom" in text
    assert "report" in text and "lazyc env" in text and "LAZYC_STRICT=1" in text
    assert (bug.stage, bug.op, bug.line, bug.cause) == ("pass fuse", "matmul", "model.py:12", cause)
    bare = str(CompilerBug("codegen", cause))
    assert bare.startswith("lazyc failed in codegen: ValueError: boom")


@pytest.mark.parametrize("found", ["2.12.1", None])
def test_unsupported_version_says_what_to_install(found: str | None) -> None:
    text = str(UnsupportedVersion("torch", found, "2.13 or 2.14"))
    assert "lazyc needs torch 2.13 or 2.14" in text and "pip install" in text
    assert (found or "not installed") in text


def test_versions_of_this_environment_are_supported() -> None:
    version.check_versions()


@pytest.mark.parametrize(
    ("package", "found"),
    [("torch", "2.12.1"), ("torch", "2.15.0"), ("torch", None), ("llvmlite", None)],
)
def test_check_versions_names_the_package(
    monkeypatch: pytest.MonkeyPatch, package: str, found: str | None
) -> None:
    real = version.installed
    monkeypatch.setattr(version, "installed", lambda n: found if n == package else real(n))
    with pytest.raises(UnsupportedVersion, match=f"lazyc needs {package}"):
        version.check_versions()


@pytest.mark.parametrize("torch", ["2.13.0", "2.13.0+cpu", "2.14.1+cu130", "2.14.0a0+git1234"])
def test_supported_torch_versions(monkeypatch: pytest.MonkeyPatch, torch: str) -> None:
    monkeypatch.setattr(version, "installed", lambda n: torch)
    version.check_versions()


def test_source_digest_is_stable_and_versions_name_it() -> None:
    assert version.source_digest() == version.source_digest()
    found = version.versions()
    assert found["lazyc"].startswith(version.VERSION)
    assert version.source_digest()[:16] in found["lazyc"]


def test_config_error_is_a_lazyc_error() -> None:
    with pytest.raises(LazycError):
        raise ConfigError("x")
