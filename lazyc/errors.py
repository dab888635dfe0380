"""The exceptions and warnings of lazyc. Each message names what went wrong and says what to do."""

from __future__ import annotations


class LazycError(Exception):
    """Base of every exception that lazyc raises on purpose."""


class ConfigError(LazycError):
    """An option or environment variable has a name or a value that lazyc does not know."""


class SparsityError(LazycError, ValueError):
    """A weight cannot be made sparse as asked."""


class UnsupportedVersion(LazycError):
    """A package or interpreter that lazyc cannot work with.

    ``what`` is the package, ``found`` its version (None: not installed), ``wanted`` the versions
    that work ("2.13 or 2.14").
    """

    def __init__(self, what: str, found: str | None, wanted: str) -> None:
        self.what, self.found, self.wanted = what, found, wanted
        have = f"{what} {found} is installed" if found else f"{what} is not installed"
        super().__init__(
            f"lazyc needs {what} {wanted}, but {have}. Install lazyc's own dependencies with "
            "`pip install -c constraints.txt lazyc`; the model runs in eager meanwhile."
        )


class MissingPackage(LazycError):
    """An optional package is not installed that ``purpose`` needs: ``what``, which the extra ``extra`` of
    lazyc brings."""

    def __init__(self, purpose: str, what: str, extra: str) -> None:
        self.what, self.extra = what, extra
        super().__init__(
            f'{purpose} need {what}, which is not installed. Install it with `pip install "lazyc[{extra}]"`.'
        )


class CompilerBug(LazycError):
    """A bug inside lazyc, with all that a report of it needs.

    ``stage`` is the pass, generator or other part that failed; ``op`` the operator it worked on,
    ``shapes`` its operands as text, ``line`` the user's "file.py:12" (each "" where unknown).
    ``cause`` is the exception underneath; raise with ``from cause``.
    """

    def __init__(
        self, stage: str, cause: BaseException, *, op: str = "", shapes: str = "", line: str = ""
    ) -> None:
        self.stage, self.cause, self.op, self.shapes, self.line = stage, cause, op, shapes, line
        on = f" on {op}" if op else ""
        of = f" ({shapes})" if shapes else ""
        at = f" at {line}" if line else ""
        super().__init__(
            f"lazyc failed in {stage}{on}{of}{at}: {type(cause).__name__}: {cause}\n"
            "This is a bug in lazyc, not in your model. Please report it with this message, the "
            "output of `lazyc env`, and the traceback that LAZYC_STRICT=1 LAZYC_VERIFY=1 gives."
        )


class CacheCorrupt(LazycError):
    """Something read from the disk cache is not what lazyc wrote. The caller compiles instead."""


class CodeNotLoaded(LazycError):
    """Compiled code cannot be loaded: the process has no room for it, or it is for a machine that this one
    is not. The graph runs in eager."""


class NewShape(LazycError):
    """A compiled function was called with another shape, ``what``, and ``on_new_shape`` is "error"."""

    def __init__(self, what: str, line: str = "", fix: str = "") -> None:
        self.what, self.line, self.fix = what, line, fix
        at = f" at {line}" if line else ""
        avoid = f" To avoid it: {fix}." if fix else ""
        super().__init__(
            f"a new shape{at}: {what}; the option on_new_shape is 'error'.{avoid} Other values of"
            " the option: 'compile', 'eager', 'background'."
        )


class NotCacheable(LazycError):
    """A graph or program holds something that has no form on disk; it is compiled, and not kept."""


class LazycWarning(UserWarning):
    """Base of every warning of lazyc."""


class CompilerBugWarning(LazycWarning):
    """A CompilerBug was met outside strict mode: the graph runs in eager."""


class MissingPackageWarning(LazycWarning):
    """An optional package is not installed, and lazyc does without it."""


class CacheWarning(LazycWarning):
    """The disk cache cannot be used (and why); compilation goes on without it."""
