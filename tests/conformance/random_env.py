"""Building a random program: the values that exist so far, and what is known of each.

Statements are tried in eager as they are added. One that eager refuses, or whose values would make
the comparison meaningless (overflow), is left out, so that every choice of a generator is valid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from tests.conformance.random_program import DTYPES, InputSpec, Statement, define

LIMIT = 1e6
MOST_ELEMENTS = 4096


@dataclass(frozen=True)
class Value:
    """A value: its name and eager tensor.

    ``exact``: no rounding went into it, so that comparing or truncating it gives the same answer
    however the program is compiled. ``finite``: it holds no nan or infinity.
    """

    name: str
    tensor: torch.Tensor
    exact: bool
    finite: bool

    @property
    def is_float(self) -> bool:
        return self.tensor.is_floating_point()

    @property
    def is_int(self) -> bool:
        return not self.is_float and self.tensor.dtype is not torch.bool

    @property
    def is_bool(self) -> bool:
        return self.tensor.dtype is torch.bool

    @property
    def rank(self) -> int:
        return self.tensor.dim()

    @property
    def memory(self) -> int:
        return self.tensor.untyped_storage()._cdata


Test = Callable[[Value], bool]


@dataclass
class Env:
    """The program so far: values newest last, and the statements that made them."""

    inputs: tuple[InputSpec, ...]
    values: list[Value] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        for spec in self.inputs:
            value = Value(spec.name, spec.make(), True, not spec.special)
            self.values.append(value)
            # Dynamo of torch 2.13 loses writes to 0-dim float64 inputs before any backend sees them
            # (it takes them for Python floats that it may specialize on).
            if value.rank == 0 and value.tensor.dtype is torch.float64:
                self.frozen.add(value.memory)

    def pick(self, choice: int, test: Test = lambda value: True) -> Value | None:
        """Among the values that pass, the newest for choice 0, the one before it for 1, ..."""
        found = [v for v in reversed(self.values) if test(v)]
        return found[choice % len(found)] if found else None

    def add(
        self,
        text: str,
        operands: tuple[Value, ...],
        inexact: bool = False,
        finite: bool | None = None,
    ) -> bool:
        """Appends ``new = text``; False when eager refuses it or the result is out of bounds.

        ``finite`` says that the result is (not) finite; by default it is when all operands are.
        """
        target = f"v{len(self.statements)}"
        names = tuple(v.name for v in operands)
        inexact = inexact and any(v.is_float for v in operands)
        statement = Statement(target, text, names, inexact)
        made = self._try(statement)
        if made is None:
            return False
        if inexact and not made.is_floating_point():
            return False  # a decision taken on rounded values
        if finite is None:
            finite = all(v.finite for v in operands)
        exact = not inexact and all(v.exact for v in operands)
        self.statements.append(statement)
        self.values.append(Value(target, made, exact, finite))
        return True

    def update(
        self,
        text: str,
        pure: str,
        operands: tuple[Value, ...],
        inexact: bool = False,
    ) -> bool:
        """Appends an in-place statement on operand 0; False when eager refuses it.

        A source may not share memory with the target (unless it is the target): torch leaves the
        order of reads and writes undefined then.
        """
        target = operands[0]
        if torch._debug_has_internal_overlap(target.tensor) == 1:
            return False  # several elements in one place
        if target.memory in self.frozen:
            return False
        if any(v.memory == target.memory for v in operands[1:] if v.name != target.name):
            return False
        names = tuple(v.name for v in operands)
        inexact = inexact and target.is_float
        statement = Statement(target.name, text, names, inexact, in_place=True, pure=pure)
        before = target.tensor.clone()
        if self._try(statement) is None:
            target.tensor.copy_(before)
            return False
        self.statements.append(statement)
        exact = not inexact and all(v.exact for v in operands)
        finite = all(v.finite for v in operands)
        for i, value in enumerate(self.values):
            if value.memory == target.memory:
                self.values[i] = replace(
                    value, exact=value.exact and exact, finite=value.finite and finite
                )
        return True

    def _try(self, statement: Statement) -> torch.Tensor | None:
        scope = ", ".join(v.name for v in self.values)
        text = f"def program({scope}):\n    {statement.source()}\n    return {statement.target}\n"
        try:
            made = define(text, DTYPES)(*(v.tensor for v in self.values))
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
            return None
        if not isinstance(made, torch.Tensor) or made.numel() > MOST_ELEMENTS:
            return None
        if made.numel() and made.dtype is not torch.bool:
            size = made.detach().double().abs().nan_to_num(0.0, posinf=0.0).max()
            if float(size) > LIMIT:
                return None
        return made if made.dtype in DTYPES.values() else None
