"""Artifacts and events as files (``LAZYC_TRACE=folder``), for reading and for bug reports.

<folder>/<process id>/events.jsonl             every event, one line of JSON each
<folder>/<process id>/graph-3/00-captured.txt  the Graph as it came in
<folder>/<process id>/graph-3/01-canonicalize.txt, ...  after each pass
<folder>/<process id>/graph-3/program.txt      what runs: steps and buffers
<folder>/<process id>/graph-3/<kernel>.nest, .ll        its kernels: loops, LLVM IR
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from lazyc.forks import renew_in_child
from lazyc.report import events as E


class TraceWriter:
    """A listener that writes what it hears below ``folder``.

    A folder that cannot be written to is reported once on stderr; the trace then ends.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        renew_in_child(self)
        self._failed = False

    def __call__(self, event: E.Event) -> None:
        with self._lock:
            if self._failed:
                return
            try:
                self._write(event)
            except OSError as error:
                self._failed = True
                why = error.strerror or error
                print(f"[lazyc] cannot write {self._folder} ({why}); no trace", file=sys.stderr)

    def _write(self, event: E.Event) -> None:
        folder = self._folder / str(os.getpid())  # asked each time: a fork has its own
        if isinstance(event, E.Artifact):
            path = folder / f"graph-{event.graph}" / event.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(event.text, encoding="utf-8")
            return
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(E.as_json(event) + "\n")
