"""``lazyc selftest``: whether lazyc computes what eager does on a device, and how fast."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lazyc.errors import ConfigError

_CPU_TESTS = ("tests/codegen",)
_GPU_TESTS = ("tests/codegen", "tests/models", "tests/conformance", "tests/cuda_emulator")


def selftest(
    device: Annotated[str, typer.Option(help="cpu, cuda, or cuda:1, ...")] = "cpu",
    tests: Annotated[
        bool,
        typer.Option(help="In a checkout with pytest also the tests of numerics there."),
    ] = True,
) -> None:
    """Run programs on a device, compare them with eager, and print how fast they are.

    Exits with 1 when a result is wrong, or when something was left to eager.
    """
    import torch

    from lazyc.selftest import run_cases

    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r}: {str(error).splitlines()[0]}") from None
    if place.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r}: must be cpu or cuda.")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no GPU: torch.cuda.is_available() is False.")
    console = Console()
    table = Table(
        "program", "type", "error of what is allowed", "eager ms", "lazyc ms", "faster", "kernels",
        "us a launch", "problem",
        show_edge=False,
    )  # fmt: skip
    bad = 0
    for found in run_cases(device):
        bad += bool(found.problem)
        faster = found.eager_seconds / found.seconds if found.seconds else 0.0
        table.add_row(
            found.case.name,
            str(found.case.dtype).removeprefix("torch."),
            f"{found.error:.2f}",
            f"{1e3 * found.eager_seconds:.3f}",
            f"{1e3 * found.seconds:.3f}",
            f"{faster:.2f}x",
            str(found.kernels),
            f"{1e6 * found.launch_seconds:.1f}" if found.launch_seconds else "-",
            Text(found.problem),
        )
    console.print(table)
    console.print(f"{table.row_count} programs on {device}, {bad} with problems")
    failed = _run_tests(device, console) if tests else False
    if bad or failed:
        raise typer.Exit(1)


def _run_tests(device: str, console: Console) -> bool:
    """Runs the tests of this checkout on a device; whether any failed."""
    root = Path(__file__).parents[2]
    on_gpu = device != "cpu"
    folders = [root / name for name in (_GPU_TESTS if on_gpu else _CPU_TESTS)]
    if not all(f.is_dir() for f in folders) or importlib.util.find_spec("pytest") is None:
        console.print("no tests here: they are in lazyc's repository, and need pytest")
        return False
    import pytest

    chosen = ["--device", device, "-m", "gpu"] if on_gpu else ["-k", "not triton and not cuda"]
    args = ["-q", *chosen, "--rootdir", str(root), *map(str, folders)]
    return pytest.main(args) != pytest.ExitCode.OK
