"""Runs each op in a forked child with a process group of its own, and tells what became of it.

A segfault, abort, hang or lack of memory costs one op. The parent never compiles and never runs a
tensor op, so that forking it is safe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import resource
import select
import signal
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from tests.conformance.opinfo_child import Options, Tally, run_op


@dataclass(frozen=True)
class Outcome:
    """The verdict on one op.

    ``status``: PASS, every sample agreed; FAIL, a silent difference; ERROR, compiling or running
    raised, crashed or timed out; SKIP, no sample, or eager itself fails.
    """

    op: str
    status: str
    tally: Tally
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Limits:
    """Bounds of one child: seconds of wall clock, and bytes of address space (0: none)."""

    seconds: float = 120.0
    memory: int = 0


def name_of(op: Any) -> str:
    """The full name of an OpInfo, with its variant."""
    return op.name + ("." + op.variant_test_name if op.variant_test_name else "")


@dataclass
class _Child:
    op: Any
    pid: int
    log: IO[bytes]
    started: float = field(default_factory=time.monotonic)
    received: bytes = b""


def sweep(ops: Iterable[Any], options: Options, limits: Limits, jobs: int) -> Iterator[Outcome]:
    """Yields the outcome of each op as it ends, ``jobs`` at a time."""
    queue = list(reversed(list(ops)))
    live: dict[int, _Child] = {}
    while queue or live:
        while queue and len(live) < jobs:
            op = queue.pop()
            why = _not_runnable(op, options)
            if why:
                yield Outcome(name_of(op), "SKIP", Tally(), reason=why)
            else:
                reader, child = _start(op, options, limits)
                live[reader] = child
        ready = select.select(list(live), [], [], 0.5)[0] if live else []
        for reader in ready:
            data = os.read(reader, 1 << 16)
            live[reader].received += data
            if not data:
                yield _finish(reader, live.pop(reader), limits, timed_out=False)
        for reader, child in list(live.items()):
            if time.monotonic() - child.started > limits.seconds:
                yield _finish(reader, live.pop(reader), limits, timed_out=True)


def _not_runnable(op: Any, options: Options) -> str:
    if options.mode == "errors":
        return "no error inputs" if op.error_inputs_func is None else ""
    return "" if op.supports_dtype(options.torch_dtype, "cpu") else "dtype unsupported"


def _start(op: Any, options: Options, limits: Limits) -> tuple[int, _Child]:
    reader, writer = os.pipe()
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in _finish
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(op, options, limits, writer, log)
    os.close(writer)
    return reader, _Child(op, pid, log)


def _child(op: Any, options: Options, limits: Limits, writer: int, log: IO[bytes]) -> None:
    """The life of the child; never returns."""
    code = 0

    def send(message: dict[str, Any]) -> None:
        os.write(writer, (json.dumps(message) + "\n").encode())

    def emit(tally: Tally) -> None:
        send(dataclasses.asdict(tally))

    try:
        os.setsid()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        faulthandler.enable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if limits.memory:
            resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
        emit(run_op(op, options, emit))
        send({"done": True})
    except BaseException as error:  # nothing may escape into the parent's code
        send({"harness": f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]})
        code = 3
    finally:
        os._exit(code)


def _kill_group(pid: int) -> None:
    """Ends the child's process group: itself, and compile workers that it left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _finish(reader: int, child: _Child, limits: Limits, timed_out: bool) -> Outcome:
    os.close(reader)
    if timed_out:
        _kill_group(child.pid)
    code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    _kill_group(child.pid)
    seconds = time.monotonic() - child.started
    child.log.seek(0)
    tail = " ".join(child.log.read()[-400:].decode(errors="replace").split())[-120:]
    child.log.close()
    message: dict[str, Any] = {}
    for line in child.received.decode(errors="replace").splitlines():
        try:
            message.update(json.loads(line))
        except ValueError:
            break  # cut off in the middle of a line
    known = {f.name for f in dataclasses.fields(Tally)}
    tally = Tally(**{k: v for k, v in message.items() if k in known})
    status, reason = _judge(tally, message, code, timed_out, limits, tail)
    return Outcome(name_of(child.op), status, tally, seconds, reason)


def _judge(
    tally: Tally,
    message: dict[str, Any],
    code: int,
    timed_out: bool,
    limits: Limits,
    tail: str,
) -> tuple[str, str]:
    """Status and reason, from what the child sent and how it ended."""
    at = f"at sample #{tally.run - 1}"
    if timed_out:
        return "ERROR", f"timeout {limits.seconds:g}s {at}"
    if code < 0:
        return "ERROR", f"crash {signal.Signals(-code).name} {at} {tail}"
    if "harness" in message:
        return ("ERROR" if tally.run else "SKIP"), "harness " + message["harness"]
    if not message.get("done"):
        return "ERROR", f"child exited {code} {at}"
    if tally.skip or not tally.run:
        return "SKIP", tally.skip or "eager: " + (tally.eager_reason or "no samples")
    if tally.wrong or tally.raised:
        counts = f"{tally.wrong} wrong, {tally.raised} raised: {tally.reason}"
        return ("FAIL" if tally.wrong else "ERROR"), counts
    return "PASS", ""


def select_ops(
    ops: Iterable[Any], shard: int, shards: int, wanted: Callable[[str], Any]
) -> list[Any]:
    """Every ``shards``-th op from number ``shard``, in an order that does not cluster families."""
    ordered = sorted(ops, key=lambda o: (zlib.crc32(name_of(o).encode()), name_of(o)))
    return [o for o in ordered[shard::shards] if wanted(name_of(o))]
