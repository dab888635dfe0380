"""The rules of the house that a program can check, on the source as a syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted((ROOT / "lazyc").rglob("*.py"))
}

# What each part of lazyc may import of the others, besides itself. The first match counts; a name
# stands for the module and everything below it.
BASE = (
    "lazyc.errors",
    "lazyc.config",
    "lazyc.version",
    "lazyc.forks",
    "lazyc.report.events",
    "lazyc.report.spans",
)
WITH_IR = (*BASE, "lazyc.ir")
ALL = ("lazyc",)
ALLOWED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lazyc.errors", ()),
    ("lazyc.config", ("lazyc.errors",)),
    ("lazyc.version", ("lazyc.errors",)),
    ("lazyc.forks", ()),
    ("lazyc.report", BASE),
    ("lazyc.ir", BASE),
    ("lazyc.frontend", WITH_IR),
    ("lazyc.passes", (*WITH_IR, "lazyc.codegen.target", "lazyc.codegen.product_costs")),
    ("lazyc.codegen", WITH_IR),
    ("lazyc.runtime", (*WITH_IR, "lazyc.codegen.base")),
    ("lazyc.kernels", (*WITH_IR, "lazyc.codegen", "lazyc.runtime")),
    ("lazyc.compiler", (*WITH_IR, "lazyc.passes", "lazyc.codegen", "lazyc.runtime",
                        "lazyc.kernels", "lazyc.report")),
    ("lazyc.recording", (*WITH_IR, "lazyc.frontend")),
    ("lazyc.variants", (*WITH_IR, "lazyc.report")),
    ("lazyc.backend", ALL),
    ("lazyc.cli", ALL),
    ("lazyc", ALL),
)  # fmt: skip

# torch.fx and dispatch modes: only where graphs come from.
FX_MODULES = ("torch.fx", "torch._dynamo", "torch._functorch", "torch.utils._python_dispatch")
MAY_USE_FX = ("lazyc.frontend", "lazyc.recording", "lazyc.backend", "lazyc.explanation")

FORBIDDEN_MODULES = {
    "pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib",
    "subprocess", "distutils", "cffi",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "os.system", "os.popen", "parse_expr"}
# Makes the functions that Triton compiles, of text that was written in the same process.
RUNS_GENERATED_TEXT = "lazyc.codegen.triton.source"

LIMIT = 600  # lines of a file
GENERATED = {"lazyc.codegen.llvm.math.coefficients"}


def below(name: str, tops: tuple[str, ...]) -> bool:
    return any(name == top or name.startswith(f"{top}.") for top in tops)


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imports(name: str) -> Iterator[tuple[int, str]]:
    """(line, imported module) of a module, also of imports inside functions."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{name}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in MODULES else node.module


def test_the_package_was_found() -> None:
    assert len(MODULES) > 30 and "lazyc.ir.graph" in MODULES


def test_imports_point_one_way() -> None:
    wrong: list[str] = []
    for name in MODULES:
        top, allowed = next(rule for rule in ALLOWED if below(name, (rule[0],)))
        wrong += [
            f"{name}:{line} imports {imported}"
            for line, imported in imports(name)
            if below(imported, ("lazyc",)) and not below(imported, (top, *allowed))
        ]
    assert not wrong, "\n".join(wrong)


def test_siblings_do_not_reach_back() -> None:
    """What the table above lets through because a part may import itself."""
    for name, (_, imported) in ((n, i) for n in MODULES for i in imports(n)):
        if below(name, ("lazyc.codegen.base", "lazyc.codegen.target")):
            assert not below(imported, ("lazyc.codegen.llvm",)), f"{name} imports {imported}"


def test_torch_fx_stays_at_the_front() -> None:
    wrong = [
        f"{name}:{line} imports {imported}"
        for name in MODULES
        if not below(name, MAY_USE_FX)
        for line, imported in imports(name)
        if below(imported, FX_MODULES)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_environment_is_read_in_config_only() -> None:
    wrong = [
        f"{name}:{node.lineno}"
        for name in MODULES
        if name != "lazyc.config"
        for node in ast.walk(tree(name))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"))
        or (isinstance(node, ast.alias) and node.name in ("environ", "environb", "getenv"))
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_read_is_executed_and_nothing_is_run() -> None:
    """No pickle (also not through torch.load), no eval or exec, no other program."""
    wrong: list[str] = []
    for name in MODULES:
        wrong += [
            f"{name}:{line} imports {imported}"
            for line, imported in imports(name)
            if imported.split(".")[0] in FORBIDDEN_MODULES
        ]
        for node in ast.walk(tree(name)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called == "exec" and name == RUNS_GENERATED_TEXT:
                continue
            if called in FORBIDDEN_CALLS or (
                called.endswith("sympify") and below(name, ("lazyc.runtime",))
            ):
                wrong.append(f"{name}:{node.lineno} calls {called}")  # type: ignore[attr-defined]
    assert not wrong, "\n".join(wrong)


def test_files_say_what_they_are_for_and_are_not_too_long() -> None:
    wrong: list[str] = []
    for name, path in MODULES.items():
        source = path.read_text(encoding="utf-8")
        if source.strip() and not ast.get_docstring(tree(name)):
            wrong.append(f"{name} has no docstring")
        if source.count("\n") > LIMIT and name not in GENERATED:
            wrong.append(f"{name} has {source.count(chr(10))} lines")
    assert not wrong, "\n".join(wrong)


def test_no_leftovers() -> None:
    wrong = [
        f"{name} contains {word}"
        for name, path in MODULES.items()
        for word in ("TODO", "FIXME", "XXX", "breakpoint(")
        if word in path.read_text(encoding="utf-8")
    ]
    assert not wrong, "\n".join(wrong)
