"""``eager`` nodes: calls left to torch, with the layouts that they would see in eager."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch

from lazyc.frontend.fx_types import Unsupported, value_strides, value_type
from lazyc.ir import attrs as A
from lazyc.ir.graph import Node
from lazyc.ir.types import Shape

_PLAIN = (
    bool, int, float, complex, str, sympy.Expr, torch.dtype, torch.layout, torch.memory_format,
    torch.device, torch._ops.OpOverload,
)  # fmt: skip


def operator_name(target: Any) -> str:
    """The name under ``torch.ops`` of an operator overload or higher-order operator."""
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}"
    return str(target)


@dataclass
class EagerCall:
    """A call to be made eager: ``value`` maps an FX argument to its Node, Dim or Python value.

    ``result`` is the example value of the results, ``effect`` whether the call does more than return
    them by what encloses it.
    """

    target: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    result: Any
    reason: str
    value: Callable[[Any], Any]
    effect: bool = False
    inputs: list[Node] = field(default_factory=list)
    strides: list[Shape | None] = field(default_factory=list)

    @property
    def name(self) -> str:
        return operator_name(self.target)

    def input(self, made: Node, strides: Shape | None) -> int:
        """The input slot of a value seen with these strides."""
        for k, known in enumerate(zip(self.inputs, self.strides, strict=True)):
            if known == (made, strides):
                return k
        self.inputs.append(made)
        self.strides.append(strides)
        return len(self.inputs) - 1

    def template(self, arg: Any) -> Any:
        """An argument with ArgRefs in place of values."""
        if isinstance(arg, torch.fx.Node):
            made = self.value(arg)
            if isinstance(made, Node):
                return A.ArgRef(self.input(made, value_strides(arg.meta.get("val"))))
            if isinstance(made, tuple):
                raise Unsupported(f"{self.name} takes the whole tuple {arg}")
            arg = made
        if isinstance(arg, list | tuple):
            return tuple(self.template(a) for a in arg)
        value = self.value(arg)
        if value is None or isinstance(value, _PLAIN):
            return value
        raise Unsupported(f"{self.name} takes a {type(value).__name__}")

    def slots(self, arg: Any) -> list[int]:
        """The inputs that an argument template refers to."""
        if isinstance(arg, A.ArgRef):
            return [arg.index]
        return [k for a in arg for k in self.slots(a)] if isinstance(arg, tuple) else []


def make_eager(call: EagerCall, serial: int) -> tuple[A.EagerAttrs, list[Node]]:
    """The attrs and inputs of the eager node; ``serial`` is used where the call must stay distinct.

    Raises Unsupported for arguments that have no representation (graphs, generators).
    """
    args = tuple(call.template(a) for a in call.args)
    kwargs = tuple((k, call.template(v)) for k, v in call.kwargs.items())
    val = call.result
    is_tuple = isinstance(val, list | tuple)
    results = tuple(val) if is_tuple else (val,)
    mutates, aliases = _alias_info(call, args, dict(kwargs))
    effect = call.effect or bool(mutates) or val is None or val == ()
    distinct = effect or _is_random(call.target)
    attrs = A.EagerAttrs(
        call.name,
        args,
        kwargs,
        tuple(value_type(r) for r in results),
        tuple(value_strides(r) for r in results),
        tuple(call.strides),
        is_tuple,
        call.reason,
        mutates,
        aliases,
        serial if distinct else -1,
        effect,
    )
    return attrs, call.inputs


def _alias_info(
    call: EagerCall, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Inputs that the call writes to, and those that a result may share memory with."""
    target = call.target
    if not isinstance(target, torch._ops.OpOverload):
        return (), tuple(range(len(call.inputs)))
    returned = {
        name
        for result in target._schema.returns
        if result.alias_info is not None
        for name in result.alias_info.before_set
    }
    mutates: set[int] = set()
    aliases: set[int] = set()
    for k, argument in enumerate(target._schema.arguments):
        info = argument.alias_info
        if info is None:
            continue
        slots = call.slots(args[k] if k < len(args) else kwargs.get(argument.name))
        if info.is_write:
            mutates.update(slots)
        if returned & info.before_set or info.after_set & returned:
            aliases.update(slots)
    return tuple(sorted(mutates)), tuple(sorted(aliases))


def _is_random(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded in target.tags
    return True
