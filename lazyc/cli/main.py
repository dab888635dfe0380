"""The ``lazyc`` command: what this installation is, its options, and its disk cache."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lazyc.cli.check_kernels import check_kernels
from lazyc.cli.configuration_page import render_page
from lazyc.cli.selftest import selftest
from lazyc.config import OPTIONS, Config
from lazyc.errors import ConfigError, LazycError, UnsupportedVersion

if TYPE_CHECKING:
    from lazyc.runtime.cache import DiskCache

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="lazyc, a deep-learning compiler: torch.compile(model, backend='lazyc').",
)
cache_app = typer.Typer(no_args_is_help=True, help="The disk cache of compiled code.")
app.add_typer(cache_app, name="cache")
app.command("check-kernels")(check_kernels)
app.command("selftest")(selftest)


def main() -> None:
    """Entry point of the command; errors of lazyc are one line, without a traceback."""
    try:
        app()
    except LazycError as error:
        typer.echo(f"lazyc: {error}", err=True)
        raise SystemExit(1) from None


@app.command()
def env() -> None:
    """Versions, target and cache state: what a bug report needs."""
    # Imported here: these load torch, which takes a second that --help need not.
    from lazyc.version import check_versions, versions

    rows = [("python", f"{platform.python_version()} ({platform.system()} {platform.machine()})")]
    rows += list(versions().items())
    problem = ""
    try:
        check_versions()
        config = Config.from_env()
        rows += [*_target_rows(config), *_cache_rows(config)]
    except (UnsupportedVersion, ConfigError) as error:
        problem = str(error)
    _print_rows(rows)
    if problem:
        raise LazycError(problem)


@app.command("config")
def show_config(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page docs/configuration.md.")
    ] = False,
) -> None:
    """Every option: its value here, its environment variable, and what it does."""
    if markdown:
        typer.echo(render_page(), nl=False)
        return
    config = Config.from_env()
    table = Table("option", "value", "variable", "meaning", show_edge=False)
    for option in OPTIONS.values():
        value = str(getattr(config, option.name))
        table.add_row(Text(option.name), Text(value), Text(option.env), Text(option.doc))
    Console().print(table)


@cache_app.command("info")
def cache_info() -> None:
    """Where the disk cache is, how much it holds, and whether it can be used."""
    _print_rows(_cache_rows(Config.from_env()))


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove every entry; other files in the folder stay."""
    config = Config.from_env()
    count = _disk_cache(config).clear()
    typer.echo(f"removed {count} entries from {config.cache_path}")


def _disk_cache(config: Config) -> DiskCache:
    from lazyc.report.events import EventStream
    from lazyc.runtime.cache import DiskCache

    return DiskCache(config, EventStream())


def _cache_rows(config: Config) -> list[tuple[str, str]]:
    stats = _disk_cache(config).stats()
    entries = ", ".join(f"{count} {kind}" for kind, count in stats.entries.items())
    return [
        ("cache folder", str(stats.path)),
        ("cache state", f"off: {stats.reason}" if stats.reason else "on"),
        ("cache entries", entries),
        ("cache size", f"{stats.bytes / 2**20:.1f} of {stats.limit / 2**20:.0f} MiB"),
    ]


def _target_rows(config: Config) -> list[tuple[str, str]]:
    import torch

    from lazyc.codegen.target import available_targets, host_target

    available = ", ".join(available_targets())
    if config.target in ("", *available_targets()):
        target = host_target(config.target or None)
        text = f"{target.name} ({target.cpu}); available: {available}"
    else:
        text = f"{config.target}; of the CPU: {available}"
    return [("target", text), ("threads", str(torch.get_num_threads()))]


def _print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        typer.echo(f"{name:{width}}  {value}")


if __name__ == "__main__":
    main()
