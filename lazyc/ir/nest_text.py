"""The text of a loop nest: readable, deterministic, and the key by which equal kernels are found.

nest inner [p0: 8192]
  b0: in f32[8388608]
  b1: out f32[8192]
  loop [r0: 1024]
    %0 = load b0[p0*1024 + r0] : f32
    %1 = reduce_sum %0 : f32
  once
    store b1[p0] = %1
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from lazyc.ir import loops as L
from lazyc.ir.index import Axis, FloorDiv, Index, Mod, ValueRef


def print_nest(nest: L.LoopNest) -> str:
    """The canonical text of a nest; comments are not a part of it."""
    return "\n".join(_lines(nest)) + "\n"


def nest_key(nest: L.LoopNest) -> str:
    """The key of a nest in a Program."""
    return hashlib.sha256(print_nest(nest).encode()).hexdigest()


def _lines(nest: L.LoopNest) -> Iterator[str]:
    symbols = f" symbols({', '.join(map(str, nest.symbols))})" if nest.symbols else ""
    yield f"nest {nest.vectorize} [{_axes(nest.axes)}]{symbols}"
    for number, buffer in enumerate(nest.buffers):
        yield f"  b{number}: {buffer.role} {buffer.dtype.value}[{buffer.numel}]"
    for stage in nest.stages:
        yield f"  loop [{_axes(stage.axes)}]" if stage.axes else "  once"
        for instr in stage.body:
            yield f"    {print_instr(instr)}{_ranges(instr)}"


def _axes(axes: Iterable[Axis]) -> str:
    return ", ".join(f"{a.name}: {a.size}" for a in axes)


def print_instr(instr: L.Instr) -> str:
    """One instruction as a line."""
    if isinstance(instr, L.Store):
        mode = "" if instr.mode == "set" else f" {instr.mode}"
        return f"store{mode} b{instr.buffer}[{instr.index}] = %{instr.value}{_mask(instr.mask)}"
    return f"%{instr.id} = {_right_side(instr)} : {instr.dtype.value}"


def _right_side(instr: L.Instr) -> str:
    match instr:
        case L.Const():
            return f"const {instr.value!r}"
        case L.IndexValue():
            return f"index [{instr.index}]"
        case L.Load():
            other = "" if instr.mask is None else f" else {instr.other!r}"
            return f"load b{instr.buffer}[{instr.index}]{_mask(instr.mask)}{other}"
        case L.Compute():
            return f"{instr.op} {', '.join(f'%{a}' for a in instr.args)}"
        case L.CheckIndex():
            return f"check %{instr.value} < {instr.size}{_mask(instr.mask)}"
        case L.Random():
            return f"random {instr.kind} seed %{instr.seed} counter [{instr.counter}]"
        case L.Reduce():
            at = "" if instr.position is None else f" at %{instr.position}"
            return f"reduce_{instr.kind} %{instr.value}{at}"
        case L.Scan():
            return f"scan_{instr.kind} %{instr.value}"
        case L.Dot():
            return f"dot [{_axes(instr.axes)}] %{instr.left}, %{instr.right}"
        case _:
            raise AssertionError(instr)


def _ranges(instr: L.Instr) -> str:
    """The ranges of loaded indices. Generators rely on them, so they are a part of the key."""
    if isinstance(instr, L.Load | L.Store | L.IndexValue):
        found = dict.fromkeys(_value_refs(instr.index))
    elif isinstance(instr, L.Random):
        found = dict.fromkeys(_value_refs(instr.counter))
    else:
        return ""
    return "".join(f" where %{r.value} < {r.size}" for r in found)


def _value_refs(index: Index) -> Iterator[ValueRef]:
    for atom, _ in index.terms:
        if isinstance(atom, ValueRef):
            yield atom
        elif isinstance(atom, FloorDiv | Mod):
            yield from _value_refs(atom.base)


def _mask(mask: int | None) -> str:
    return "" if mask is None else f" if %{mask}"
