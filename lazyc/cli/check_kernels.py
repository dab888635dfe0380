"""``lazyc check-kernels``: the machine code of a model's kernels, for GPUs that need not be there."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from lazyc.config import Config
from lazyc.errors import ConfigError

if TYPE_CHECKING:
    from lazyc.kernel_check import CheckedKernel

_ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]


def check_kernels(
    models: Annotated[
        list[str],
        typer.Argument(
            help="module:function or file.py:function, which returns a model and its inputs (a dict of"
            " keywords or a tuple); without a function: each one of the module's MODELS."
        ),
    ],
    arch: Annotated[
        list[str] | None, typer.Option(help="A GPU architecture; may be given several times.")
    ] = None,
    training: Annotated[bool, typer.Option(help="Also the kernels of a training step.")] = True,
    jobs: Annotated[int, typer.Option(help="Processes that compile; 0: one a core.")] = 0,
    every: Annotated[
        bool, typer.Option("--all", help="A row for each kernel, not one for each kind.")
    ] = False,
) -> None:
    """Compile a model's kernels for GPUs, without one, and check their machine code.

    Exits with 1 when products of tiles use no tensor cores though their types have them, or load
    aligned factors by less than 128 bits, or when any kernel spills registers or needs more shared
    memory than there is.
    """
    # Imported here: these load torch and triton.
    from lazyc.codegen.gpu_target import gpu_target
    from lazyc.kernel_check import CheckedModel, Collected, check_kernels, collect_kernels

    console = Console()
    targets = [gpu_target(name) for name in arch or _ARCHITECTURES]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        made = _models(models)
        bar = progress.add_task("models", total=len(made))
        collected = Collected()
        for name, make in made.items():
            module, inputs = _call(name, make)
            for train in (False, True) if training else (False,):
                collect_kernels(CheckedModel(name, module, inputs), targets, train, collected)
            progress.advance(bar)
        bar = progress.add_task("kernels", total=None)
        checked = check_kernels(
            collected.kernels, targets, Config.from_env(), jobs,
            lambda done, count: progress.update(bar, completed=done, total=count),
        )  # fmt: skip
    console.print(_each(checked) if every else _by_kind(checked))
    for (op, reason), count in sorted(collected.eager.items()):
        console.print(Text(f"left to eager: {op} ({count} times): {reason}"))
    bad = [c for c in checked if c.problems]
    for row in bad:
        console.print(Text(f"{row.target.name} {_name(row)}: {'; '.join(row.problems)}"))
    console.print(
        f"{len(collected.kernels)} kernels, {len(checked)} compiled, {len(bad)} with problems"
    )
    if bad:
        raise typer.Exit(1)


def _models(names: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """The functions that ``names`` name. Raises ConfigError."""
    found: dict[str, Callable[[], Any]] = {}
    for name in names:
        place, _, function = name.partition(":")
        module = _module(place)
        if function:
            make = getattr(module, function, None)
            if not callable(make):
                raise ConfigError(f"{place} has no function {function!r}.")
            found[function] = make
        else:
            table = getattr(module, "MODELS", None)
            if not isinstance(table, Mapping):
                raise ConfigError(f"{place} has no dict MODELS; name a function: {place}:function.")
            found |= table
    return found


def _module(place: str) -> ModuleType:
    sys.path.insert(0, "")  # as `python` has it; the command does not
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except (ImportError, OSError) as error:
        raise ConfigError(f"cannot import {place}: {error}") from error
    finally:
        sys.path.remove("")


def _call(name: str, make: Callable[[], Any]) -> tuple[Any, Any]:
    import torch

    torch.manual_seed(0)
    made = make()
    if (
        not isinstance(made, tuple)
        or len(made) != 2
        or not isinstance(made[0], torch.nn.Module)
        or not isinstance(made[1], Mapping | tuple)
    ):
        raise ConfigError(f"{name}() must return a model and its inputs, a dict or a tuple.")
    return made


def _name(row: CheckedKernel) -> str:
    return f"{row.kernel.code.ref.symbol} ({row.kernel.comment})"


def _by_kind(rows: Sequence[CheckedKernel]) -> Table:
    """A row for each kind of kernel on each architecture."""
    table = Table(
        "kernel", "GPU", "kernels", "most registers", "spilling", "most shared KiB", "128-bit loads",
        "tensor cores", "problems", show_edge=False,
    )  # fmt: skip
    groups: dict[tuple[str, str], list[CheckedKernel]] = {}
    for row in rows:
        groups.setdefault((row.kernel.label, row.target.name), []).append(row)
    for (kind, name), group in sorted(groups.items()):
        cores = Counter(c for row in group for c in row.facts.tensor_cores)
        table.add_row(
            kind,
            name,
            str(len(group)),
            str(max(row.facts.registers for row in group)),
            str(sum(row.facts.spilled_bytes > 0 for row in group)),
            _shared(max(group, key=lambda row: row.facts.shared_bytes)),
            str(sum(row.facts.widest >= 128 for row in group)),
            ", ".join(f"{count} {name}" for name, count in sorted(cores.items())) or "-",
            str(sum(bool(row.problems) for row in group)),
        )
    return table


def _each(rows: Sequence[CheckedKernel]) -> Table:
    table = Table(
        "kernel", "GPU", "registers", "spilled bytes", "shared KiB", "widest load", "tensor cores",
        "models", "what", show_edge=False,
    )  # fmt: skip
    for row in sorted(rows, key=lambda r: (r.kernel.label, r.kernel.comment, r.target.arch)):
        facts = row.facts
        table.add_row(
            row.kernel.label,
            row.target.name,
            str(facts.registers),
            str(facts.spilled_bytes),
            _shared(row),
            str(facts.widest),
            ", ".join(facts.tensor_cores) or "-",
            " ".join(sorted(row.kernel.models)),
            Text(row.kernel.comment),
        )
    return table


def _shared(row: CheckedKernel) -> str:
    return f"{row.facts.shared_bytes / 1024:.1f} of {row.target.shared_bytes >> 10}"
