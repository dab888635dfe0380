"""Small tensor programs as data: inputs, statements, outputs; printing them and running them.

A program is kept as Python text, a statement a line, so that one that fails can be pasted into a
file. The same statements are rendered in three ways: as they are (for eager and the compiler), in
float64 (the reference), and in float64 with a rounding error put into every operand of an inexact
statement, which shows how much error float arithmetic alone must cause.
"""

from __future__ import annotations

import functools
import linecache
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

DTYPES: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "f64": torch.float64,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "b8": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Relative rounding error of one operation.
EPSILON = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-9}


@dataclass(frozen=True)
class InputSpec:
    """An input: its shape, dtype name, memory layout and values.

    Layouts: "contiguous"; "transposed" (last two dims); "sliced" (every other element of the last
    dim); "offset" (starts one element into its memory); "expanded" (stride 0 in the first dim).
    ``special`` sprinkles nan, inf, -inf and -0.0 into floats.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = "contiguous"
    seed: int = 0
    special: bool = False

    def source(self) -> str:
        extra = ", special=True" if self.special else ""
        return (
            f'{self.name} = make_input({self.shape}, {self.dtype}, "{self.layout}", '
            f"seed={self.seed}{extra})"
        )

    def make(self) -> torch.Tensor:
        return make_input(self.shape, DTYPES[self.dtype], self.layout, self.seed, self.special)


@dataclass(frozen=True)
class Statement:
    """``target = expression``; with ``in_place``, the text is executed for its effect on ``target``.

    ``text`` has ``{0}``, ``{1}`` ... where the ``operands`` (names) go. For an in-place statement
    operand 0 is the target, and ``pure`` is an expression of its new value. ``inexact``: float
    arithmetic, whose result depends on how it is rounded.
    """

    target: str
    text: str
    operands: tuple[str, ...]
    inexact: bool = False
    in_place: bool = False
    pure: str = ""

    def source(self) -> str:
        expression = self.text.format(*self.operands)
        return expression if self.in_place else f"{self.target} = {expression}"

    def noisy_source(self) -> str:
        if not self.inexact:
            return self.source()
        operands = [f"noisy({name})" for name in self.operands]
        if self.in_place:
            return f"{self.target}.copy_({self.pure.format(*operands)})"
        return f"{self.target} = {self.text.format(*operands)}"


@dataclass(frozen=True)
class Program:
    """Inputs, statements in order, and the names that are returned."""

    inputs: tuple[InputSpec, ...]
    statements: tuple[Statement, ...]
    outputs: tuple[str, ...]
    dynamic: bool = False

    def body(self, noisy: bool = False) -> str:
        """The definition of ``program(...)``."""
        lines = [f"def program({', '.join(i.name for i in self.inputs)}):"]
        lines += ["    " + (s.noisy_source() if noisy else s.source()) for s in self.statements]
        return "\n".join([*lines, f"    return ({', '.join(self.outputs)},)"]) + "\n"

    def source(self) -> str:
        """A script that runs the program in eager and compiled, to paste and start."""
        names = ", ".join(i.name for i in self.inputs)
        copies = ", ".join(f"copy_layout({i.name})" for i in self.inputs)
        return "\n".join(
            [
                "import torch",
                "from tests.conformance.random_program import *",
                f"{', '.join(DTYPES)} = DTYPES.values()",
                'device = "cpu"',
                *(i.source() for i in self.inputs),
                "",
                self.body(),
                f'compiled = torch.compile(program, backend="lazyc", dynamic={self.dynamic})',
                f"print(compiled({copies}))",
                f"print(program({names}))",
            ]
        )

    def __repr__(self) -> str:
        return "\n" + self.source() + "\n"

    def function(self, device: str = "cpu") -> Callable[..., tuple[torch.Tensor, ...]]:
        """The program as a Python function, for tensors on a device."""
        return define(self.body(), DTYPES, device)

    def run(self, function: Callable[..., Any], device: str = "cpu") -> list[torch.Tensor]:
        """Outputs of ``function`` on fresh inputs on a device, then the inputs as it left them; on the CPU."""
        inputs = [_placed(i.make(), device) for i in self.inputs]
        found = [*function(*inputs), *inputs]
        return [t.cpu() if isinstance(t, torch.Tensor) else t for t in found]

    def reference(self) -> list[torch.Tensor]:
        """The float64 results, as ``run`` orders them."""
        return self._run_in_float64(noisy=False, seed=0)

    def noise(self, runs: int = 3) -> list[torch.Tensor]:
        """How far rounding errors alone move each result: the largest difference of some runs."""
        exact = self.reference()
        worst = [torch.zeros_like(t, dtype=torch.float64) for t in exact]
        for seed in range(runs):
            moved = self._run_in_float64(noisy=True, seed=seed)
            for i, (one, other) in enumerate(zip(exact, moved, strict=True)):
                if one.is_floating_point():
                    difference = (one - other).abs().nan_to_num(0.0, posinf=0.0)
                    worst[i] = torch.maximum(worst[i], difference)
        return worst

    def _run_in_float64(self, noisy: bool, seed: int) -> list[torch.Tensor]:
        wide = {n: torch.float64 if d.is_floating_point else d for n, d in DTYPES.items()}
        generator = torch.Generator().manual_seed(seed)
        epsilon = max(EPSILON[DTYPES[i]] for i in self._float_dtypes())

        def shaken(x: torch.Tensor) -> torch.Tensor:
            if not x.is_floating_point():
                return x
            uniform = torch.rand(x.shape, generator=generator, dtype=torch.float64)
            return x * (1 + epsilon * (2 * uniform - 1))

        function = define(self.body(noisy), {**wide, "noisy": shaken})
        inputs = [_widen(i.make()) for i in self.inputs]
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # of int / int, mean of ints cast to float, ...
        try:
            return [*function(*inputs), *inputs]
        finally:
            torch.set_default_dtype(default)

    def _float_dtypes(self) -> set[str]:
        """The float types that occur; integers divide in f32."""
        text = self.body() + " ".join(i.dtype for i in self.inputs)
        return {n for n in ("bf16", "f64") if n in text} | {"f32"}


def define(text: str, names: dict[str, Any], device: str = "cpu") -> Callable[..., Any]:
    """The function ``program`` that ``text`` defines, with ``torch``, ``device`` and ``names`` as globals."""
    scope: dict[str, Any] = {"torch": torch, "device": device, **names}
    exec(_code(text), scope)
    return scope["program"]


@functools.lru_cache(maxsize=4096)
def _code(text: str) -> types.CodeType:
    file = f"<program {hash(text) & 0xFFFFFFFF:08x}>"
    # Lets tracebacks, and provenance in the compiler, show the lines of the program.
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    return compile(text, file, "exec")


def make_input(
    shape: Sequence[int], dtype: torch.dtype, layout: str, seed: int, special: bool = False
) -> torch.Tensor:
    """Deterministic values in the layout of an InputSpec. Even seeds give multiples of 1/4 (with
    ties), odd seeds normal random floats; integers are in [-8, 8]."""
    base_shape = list(shape)
    if layout == "transposed" and len(shape) >= 2:
        base_shape[-2], base_shape[-1] = base_shape[-1], base_shape[-2]
    elif layout == "sliced" and shape:
        base_shape[-1] *= 2
    elif layout == "expanded" and shape:
        base_shape[0] = min(1, base_shape[0])
    base = _values(tuple(base_shape), dtype, seed, special)
    if layout == "transposed" and len(shape) >= 2:
        return base.transpose(-1, -2)
    if layout == "sliced" and shape:
        return base[..., ::2]
    if layout == "expanded" and shape:
        return base.expand(*shape)
    if layout == "offset":
        memory = torch.zeros(base.numel() + 1, dtype=dtype)
        memory[1:] = base.reshape(-1)
        return memory[1:].view(base.shape)
    return base


def _values(shape: tuple[int, ...], dtype: torch.dtype, seed: int, special: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(-8, 9, shape, generator=generator)
    if dtype is torch.bool:
        return steps > 0
    if not dtype.is_floating_point:
        return steps.to(dtype)
    values = steps / 4 if seed % 2 == 0 else torch.randn(shape, generator=generator)
    if special:
        wild = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
        picks = torch.randint(0, 4, shape, generator=generator)
        values = torch.where(torch.rand(shape, generator=generator) < 0.2, wild[picks], values)
    return values.to(dtype)


def copy_layout(x: torch.Tensor) -> torch.Tensor:
    """A copy with memory of its own and the same strides and offset."""
    memory = x.untyped_storage().clone()
    return torch.empty(0, dtype=x.dtype).set_(memory, x.storage_offset(), x.shape, x.stride())


def _placed(x: torch.Tensor, device: str) -> torch.Tensor:
    """On a device with the same strides and offset."""
    if device == "cpu":
        return x
    memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(device)
    return memory.as_strided(x.shape, x.stride(), x.storage_offset())


def _widen(x: torch.Tensor) -> torch.Tensor:
    """In float64 with the same strides, so that reshapes share or copy memory as they did."""
    if not x.is_floating_point():
        return x
    storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    wide = storage.to(torch.float64)
    return wide.as_strided(x.shape, x.stride(), x.storage_offset())
