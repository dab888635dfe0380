"""What all tests share: strict and verifying lazyc, a cache folder of their own, one thread."""

from __future__ import annotations

import faulthandler
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: xdist workers share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from lazyc.codegen.target import Target, available_targets, host_target
from tests import gpu

_KEPT = ("LAZYC_TARGET", "LAZYC_DEBUG", "LAZYC_DEBUG_FILE")
_FOLDER_KEY = pytest.StashKey[str]()
_CRASHES = "crashes"  # a folder, and what an xdist worker is told it as


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        help="Where tests of GPU kernels run: cpu (interpreted), or cuda.",
    )
    parser.addoption(
        "--no-gxx", action="store_true", help="Skip what g++ compiles, where it is not installed."
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    gpu.choose(config.getoption("--device"))
    worker = getattr(config, "workerinput", None)
    if worker is not None:  # an xdist worker has the environment of the process that started it
        # Never closed: written to when the process dies. After pytest's own, which would write to a log.
        path = Path(worker[_CRASHES], worker["workerid"])
        faulthandler.enable(path.open("w", encoding="utf-8"), all_threads=True)
        return
    for name in [n for n in os.environ if n.startswith("LAZYC_") and n not in _KEPT]:
        del os.environ[name]
    config.stash[_FOLDER_KEY] = tempfile.mkdtemp(prefix="lazyc-tests-")
    os.environ["LAZYC_CACHE_DIR"] = config.stash[_FOLDER_KEY]
    Path(config.stash[_FOLDER_KEY], _CRASHES).mkdir()
    os.environ["LAZYC_STRICT"] = "1"
    os.environ["LAZYC_VERIFY"] = "1"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells an xdist worker where to write its stack if it dies."""
    node.workerinput[_CRASHES] = str(Path(node.config.stash[_FOLDER_KEY], _CRASHES))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The stacks of xdist workers that died."""
    if _FOLDER_KEY not in config.stash:
        return
    for path in sorted(Path(config.stash[_FOLDER_KEY], _CRASHES).glob("*")):
        stack = path.read_text(encoding="utf-8", errors="replace")
        if stack:
            terminalreporter.section(f"stack of worker {path.name}")
            terminalreporter.write_line(stack)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _FOLDER_KEY in config.stash:
        shutil.rmtree(config.stash[_FOLDER_KEY], ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that g++ compiles are no less wanted where it is missing: only who says so goes without."""
    if item.get_closest_marker("gxx") and gpu.KERNELS == "triton" and shutil.which("g++") is None:
        if item.config.getoption("--no-gxx"):
            pytest.skip("compiled by g++, which is not installed")
        pytest.fail("needs g++: install it, or skip these tests with --no-gxx", pytrace=False)


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """The same random numbers in each test, and nothing that Dynamo remembers from others."""
    torch.manual_seed(0)
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()


@pytest.fixture(params=available_targets())
def target(request: pytest.FixtureRequest) -> Target:
    """Each target that this machine can run, best first."""
    return host_target(request.param)


_ON_GPU = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []
_GPU_TARGETS = ("triton", *_ON_GPU)


@pytest.fixture(params=_GPU_TARGETS)
def triton_target(request: pytest.FixtureRequest) -> str:
    """Triton's interpreter, and a GPU where there is one."""
    return request.param


@pytest.fixture(params=[*available_targets(), *_GPU_TARGETS])
def any_target(request: pytest.FixtureRequest) -> Target | str:
    """Each target of ``target``, Triton's interpreter for what runs on GPUs, and a GPU where there is one."""
    return request.param if request.param in ("triton", "cuda") else host_target(request.param)
