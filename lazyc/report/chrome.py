"""Recorded spans as a file in Chrome's trace event format, which Perfetto (https://ui.perfetto.dev) and
chrome://tracing show.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from pathlib import Path
from typing import Any

from lazyc.report.spans import Recording

_numbers = itertools.count()


def trace_events(recording: Recording) -> list[dict[str, Any]]:
    """Names of the process and its threads, then a complete event for each span, outer ones first.

    Times are microseconds since the recording began.
    """
    process = recording.process
    named = [("process_name", 0, f"lazyc, process {process}")]
    named += [("thread_name", thread, name) for thread, name in recording.threads.items()]
    names = [
        {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}
        for what, thread, name in named
    ]
    ordered = sorted(recording.spans, key=lambda s: (s.start, -s.end))
    return names + [
        {
            "ph": "X",
            "name": span.name,
            "cat": span.category,
            "ts": (span.start - recording.start) / 1e3,
            "dur": (span.end - span.start) / 1e3,
            "pid": process,
            "tid": span.thread,
            "args": span.args,
        }
        for span in ordered
    ]


class TraceFile:
    """A file that is there as a whole or not at all. Raises OSError where it cannot be written.

    What will be written goes to a temporary file beside it, which exists from the beginning: a full
    or read-only folder shows before there is anything to write.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(os.path.realpath(path))  # now: the working folder may change
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if self._path.exists() and not self._path.is_file():
            # A rename would put a plain file where a device or a pipe is.
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        if self._path.exists() and not os.access(self._path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        name = f".{self._path.name}.{os.getpid()}-{next(_numbers)}.tmp"
        self._temporary = self._path.with_name(name)
        try:
            with open(self._temporary, "x", encoding="utf-8"):
                pass
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from None

    def write(self, recording: Recording) -> None:
        """Writes the file. What cannot be JSON among arguments is written as its ``str``."""
        trace = {"displayTimeUnit": "ms", "traceEvents": trace_events(recording)}
        try:
            with open(self._temporary, "w", encoding="utf-8") as file:
                json.dump(trace, file, default=str)
            self._temporary.replace(self._path)
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise
