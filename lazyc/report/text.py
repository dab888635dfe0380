"""Debug output: events as lines of text on stderr or in a file (``LAZYC_DEBUG=1|2|3``)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from lazyc.config import Config
from lazyc.report import events as E

_LEVELS: dict[type[E.Event], int] = {
    E.CompileFinished: 1,
    E.Fallback: 1,
    E.Recompiled: 1,
    E.Flushed: 1,
    E.NotLazy: 1,
    E.NeverComputed: 2,
    E.Padded: 1,
    E.AttentionChosen: 1,
    E.RowTilesChosen: 1,
    E.CompilerBugFound: 1,
    E.CacheRejected: 1,
    E.CacheDisabled: 1,
    E.CompileStarted: 2,
    E.PassFinished: 2,
    E.Decided: 2,
    E.CacheHit: 2,
    E.CacheMiss: 2,
    E.CacheEvicted: 2,
    E.KernelCompiled: 2,
    E.KernelTuned: 1,
    E.WeightsPacked: 2,
    E.SparseProduct: 1,
    E.WeightNotSparse: 1,
    E.Artifact: 3,
}


def _level(event: E.Event) -> int:
    """From which debug level on an event is shown."""
    if isinstance(event, E.CacheMiss) and event.compiles:
        return 1
    return _LEVELS[type(event)]


def format_event(event: E.Event, level: int) -> str:
    """The event as text without a final newline; "" when it is not shown at this debug level."""
    if level < _level(event):
        return ""
    match event:
        case E.CompileStarted():
            return f"graph {event.graph}: {event.nodes} nodes, {event.inputs} inputs"
        case E.CompileFinished():
            stages = ", ".join(f"{stage} {1e3 * s:.1f}" for stage, s in event.seconds)
            return (
                f"graph {event.graph}: compiled in {1e3 * event.total:.1f} ms ({stages}); kernels "
                f"made {event.kernels_made}, reused {event.kernels_reused}; "
                f"fallbacks {event.fallbacks}"
            )
        case E.PassFinished():
            return (
                f"pass {event.name}: {1e3 * event.seconds:.1f} ms, "
                f"{event.before} -> {event.after} nodes"
            )
        case E.Artifact():
            return f"graph {event.graph}, {event.name}:\n{event.text.rstrip()}"
        case E.Decided():
            at = f" at {event.line}" if event.line else ""
            effects = ", ".join(_effects(event))
            return f"{event.by}{at}: {event.what}: {event.why}" + (
                f" ({effects})" if effects else ""
            )
        case E.CacheHit():
            return f"cache hit ({event.level}): {event.kind} {event.key[:16]}"
        case E.CacheMiss():
            because = f": {event.reason}" if event.reason else ""
            return f"cache miss ({event.level}): {event.kind} {event.key[:16]}{because}"
        case E.CacheRejected():
            return f"cache file rejected: {event.kind} {event.key[:16]}: {event.reason}"
        case E.CacheEvicted():
            return f"cache over its size limit: removed {event.entries} files, {event.bytes} bytes"
        case E.CacheDisabled():
            return f"disk cache off: {event.reason}"
        case E.KernelCompiled():
            return (
                f"kernel {event.key[:16]}: {1e3 * event.seconds:.1f} ms  {event.comment}".rstrip()
            )
        case E.KernelTuned():
            return _tuned(event, level)
        case E.Fallback():
            at = f" at {event.line}" if event.line else ""
            return f"eager: {event.op}{at}: {event.reason}"
        case E.Recompiled():
            cost, at = f"{1e3 * event.seconds:.0f} ms", f" {event.line}" if event.line else ""
            line = f"recompile {event.count}{at}: {event.changed} ({cost})"
            return f"{line}\n  to avoid it: {event.fix}" if event.fix else line
        case E.Flushed():
            at = f" at {event.line}" if event.line else ""
            what = f" ({event.what})" if event.what else ""
            new = ", compiled" if event.compiled else ""
            return (
                f"flush{at}: {event.cause}{what}: {event.regions} regions, {event.operators} "
                f"operators, {event.results} results{new} ({1e3 * event.seconds:.1f} ms)"
            )
        case E.NeverComputed():
            at = f" at {event.line}" if event.line else ""
            return f"never computed: {event.operators} operators recorded{at}"
        case E.NotLazy():
            at = f" at {event.line}" if event.line else ""
            return f"not lazy: the region{at} runs at once: {event.reason}"
        case E.Padded():
            return f"bucket: {event.sizes}"
        case E.AttentionChosen():
            at = f" at {event.line}" if event.line else ""
            return f"attention{at}: {event.kernel}: {event.reason}"
        case E.RowTilesChosen():
            at = f" from {event.comment}" if event.comment else ""
            return f"rows{at}: {'by blocks' if event.is_tiled else 'all at once'}: {event.reason}"
        case E.CompilerBugFound():
            return f"compiler bug in {event.stage}: {event.message}"
        case E.WeightsPacked():
            why = "a weight changed" if event.changed else "first use"
            return f"packed {event.count} weights, {event.bytes / 2**20:.1f} MiB ({why})"
        case E.SparseProduct():
            at = f" of {event.comment}" if event.comment else ""
            how = "compressed weight" if event.is_used else "dense product"
            sizes = ", ".join(event.sizes)
            return f"{event.sparsity} product [{sizes}]{at}: {how}: {event.reason}"
        case E.WeightNotSparse():
            at = f" of {event.comment}" if event.comment else ""
            return (
                f"weight {list(event.shape)}{at} is declared {event.sparsity} and is not: dense "
                "product"
            )
        case _:
            raise TypeError(f"no text for {type(event).__name__}")


def _tuned(event: E.KernelTuned, level: int) -> str:
    of = f" {event.comment}" if event.comment else ""
    notes = [f"{1e3 * event.seconds:.0f} ms", f"{len(event.times)} timed"]
    notes += [f"{len(event.dropped)} dropped"] if event.dropped else []
    notes += [f"{event.late} without time"] if event.late else []
    line = f"tuned{of}: {event.winner}: {event.gain:.2f} times as fast ({', '.join(notes)})"
    if level < 2:
        return line
    times = [f"  {choice}: {1e6 * seconds:.1f} us" for choice, seconds in event.times]
    return "\n".join([line, *times, *(f"  {choice}: dropped" for choice in event.dropped)])


def _effects(event: E.Decided) -> Iterator[str]:
    for verb, count, when in (
        ("copies", event.bytes_copied, "a call"),
        ("keeps", event.bytes_kept, ""),
        ("saves", event.bytes_saved, "of traffic a call"),
    ):
        if count != 0:
            size = "bytes that depend on sizes" if count is None else _size(count)
            yield f"{verb} {size} {when}".rstrip()
    if event.seconds_saved:
        yield f"estimated to save {1e6 * event.seconds_saved:.3g} us a call"


def _size(count: int) -> str:
    if count < 1 << 10:
        return f"{count} B"
    return f"{count / 2**10:.1f} KiB" if count < 1 << 20 else f"{count / 2**20:.1f} MiB"


def printer(config: Config) -> E.Listener:
    """A listener that prints what ``config.debug`` asks for to ``config.debug_file`` or stderr.

    A file that cannot be written is reported once on stderr, and the lines go there instead.
    """
    write = writer(config)

    def listen(event: E.Event) -> None:
        text = format_event(event, config.debug)
        if text:
            write(text)

    return listen


def writer(config: Config) -> Callable[[str], None]:
    """Writes lines, each marked as lazyc's, to ``config.debug_file`` or stderr."""
    write = _file_writer(config.debug_file) if config.debug_file else _to_stderr
    return lambda text: write("".join(f"[lazyc] {line}\n" for line in text.splitlines()))


def _to_stderr(text: str) -> None:
    print(text, end="", file=sys.stderr)


def _file_writer(path: str) -> Callable[[str], None]:
    failed = False

    def write(text: str) -> None:
        nonlocal failed
        if not failed:
            try:
                # Opened each time: several processes append to one file, and none keeps it open.
                with open(path, "a", encoding="utf-8") as file:
                    file.write(text)
                return
            except OSError as error:
                failed = True
                _to_stderr(f"[lazyc] cannot write {path} ({error.strerror}); using stderr\n")
        _to_stderr(text)

    return write
