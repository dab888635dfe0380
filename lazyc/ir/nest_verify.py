"""Verifier of the Loop IR: what every code generator may rely on, checked from scratch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lazyc.ir import loops as L
from lazyc.ir.index import Axis, FloorDiv, Index, Mod, ValueRef, bounds
from lazyc.ir.nest_text import print_instr
from lazyc.ir.nest_values import indices_of, inside_of_dots, operands, own_axes
from lazyc.ir.ops import OPS, IRError, Trait
from lazyc.ir.types import Dim, DType, free_symbols

_HALVES = (DType.F16, DType.BF16)
_ALLOWED = {
    "any": lambda d: True,
    "number": lambda d: d is not DType.BOOL,
    "float": lambda d: d.is_float,
    "integral": lambda d: not d.is_float,
}


@dataclass
class _State:
    """What is known at one instruction: visible values, and every id and axis used so far."""

    nest: L.LoopNest
    visible: dict[int, DType] = field(default_factory=dict)
    ids: set[int] = field(default_factory=set)
    axes: dict[str, Axis] = field(default_factory=dict)  # by name, of the whole nest
    open: frozenset[Axis] = frozenset()  # of the outer space and the current stage


def verify_nest(nest: L.LoopNest) -> None:
    """Raises IRError, naming the instruction, when the nest breaks a rule of its IR."""
    state = _State(nest)
    if nest.vectorize not in ("outer", "inner", "none"):
        raise IRError(f"vectorize is {nest.vectorize!r}")
    if len(set(nest.symbols)) != len(nest.symbols):
        raise IRError(f"a symbol occurs twice in {nest.symbols}")
    for number, buffer in enumerate(nest.buffers):
        _check_dims(state, (buffer.numel,), f"buffer b{number}")
        if buffer.role not in ("in", "out", "inout", "scratch"):
            raise IRError(f"buffer b{number} has role {buffer.role!r}")
        if buffer.role == "scratch" and not isinstance(buffer.numel, int):
            raise IRError(f"scratch buffer b{number} has {buffer.numel} elements: no fixed number")
    outer = _open_axes(state, nest.axes, frozenset())
    for stage in nest.stages:
        state.open = _open_axes(state, stage.axes, outer)
        state.open = _open_axes(state, own_axes(stage.body), state.open)
        _check_stage(state, stage)


def _open_axes(state: _State, axes: Iterable[Axis], around: frozenset[Axis]) -> frozenset[Axis]:
    """Checks some axes and adds them to those ``around`` them."""
    found = set(around)
    for axis in axes:
        _check_dims(state, (axis.size,), f"axis {axis}")
        if isinstance(axis.size, int) and axis.size < 0:
            raise IRError(f"axis {axis} has size {axis.size}")
        # Stages may share an axis, but one name is one axis.
        if axis in found or state.axes.setdefault(axis.name, axis) != axis:
            raise IRError(f"axis {axis} is defined twice")
        found.add(axis)
    return frozenset(found)


def _check_dims(state: _State, dims: Iterable[Dim], what: str) -> None:
    unknown = free_symbols(dims) - set(state.nest.symbols)
    if unknown:
        names = ", ".join(sorted(map(str, unknown)))
        raise IRError(f"{what} uses {names}, not among the symbols of the nest")


def _check_stage(state: _State, stage: L.Stage) -> None:
    before = dict(state.visible)
    reductions: dict[int, DType] = {}
    inside = inside_of_dots(stage.body)
    for instr in stage.body:
        try:
            if not isinstance(instr, L.Store):
                if instr.id in state.ids:
                    raise IRError(f"%{instr.id} is defined twice")
                state.ids.add(instr.id)
            _check_instr(state, instr)
            _check_inside(stage, instr, inside)
        except IRError as error:
            raise IRError(f"{error}\n  in {print_instr(instr)}") from None
        if isinstance(instr, L.Reduce):
            reductions[instr.id] = instr.dtype  # readable in later stages only
        elif not isinstance(instr, L.Store):
            state.visible[instr.id] = instr.dtype
    if stage.axes:
        state.visible = before
    state.visible = {k: v for k, v in state.visible.items() if k not in inside} | reductions


def _check_inside(stage: L.Stage, instr: L.Instr, inside: set[int]) -> None:
    """What varies along the axes of a dot ends in one."""
    if isinstance(instr, L.Store | L.Reduce | L.Scan):
        mine = set(operands(instr)) & inside
        own = set(own_axes(stage.body))
        if mine or any(index.axes() & own for index in indices_of(instr)):
            raise IRError("varies along the axes of a dot")


def _check_instr(state: _State, instr: L.Instr) -> None:
    match instr:
        case L.Const():
            pass
        case L.IndexValue():
            _expect(instr.dtype, DType.I64, "an index")
            _check_index(state, instr.index)
        case L.Load():
            _check_load(state, instr)
        case L.Store():
            _check_store(state, instr)
        case L.Compute():
            _check_compute(state, instr)
        case L.CheckIndex():
            _expect(_value(state, instr.value), DType.I64, "the checked index")
            _expect(instr.dtype, DType.I64, "a checked index")
            _check_dims(state, (instr.size,), "the size")
            _check_mask(state, instr.mask)
        case L.Random():
            _expect(_value(state, instr.seed), DType.I64, "the seed")
            _check_index(state, instr.counter)
        case L.Reduce():
            _check_reduce(state, instr)
        case L.Dot():
            _check_dot(state, instr)
        case L.Scan():
            value = _value(state, instr.value)
            _expect(instr.dtype, value, "the running result")
            _check_accumulates(instr.kind, value)


def _value(state: _State, number: int) -> DType:
    if number not in state.visible:
        raise IRError(f"%{number} is not visible here")
    return state.visible[number]


def _expect(found: DType, wanted: DType, what: str) -> None:
    if found is not wanted:
        raise IRError(f"{what} is {found}, must be {wanted}")


def _check_mask(state: _State, mask: int | None) -> None:
    if mask is not None:
        _expect(_value(state, mask), DType.BOOL, "the mask")


# --- memory ---------------------------------------------------------------------------------------


def _check_index(state: _State, index: Index) -> None:
    _check_dims(state, (index.const, *(coef for _, coef in index.terms)), "the index")
    for atom, _ in index.terms:
        match atom:
            case Axis():
                if atom not in state.open:
                    raise IRError(f"axis {atom} is not open here")
            case ValueRef():
                if not _value(state, atom.value).is_int:
                    raise IRError(f"%{atom.value} is no integer")
                _check_dims(state, (atom.size,), "the range of the index")
            case FloorDiv() | Mod():
                _check_dims(state, (atom.divisor,), "the divisor")
                if isinstance(atom.divisor, int) and atom.divisor <= 0:
                    raise IRError(f"division by {atom.divisor}")
                _check_index(state, atom.base)


def _check_access(state: _State, number: int, index: Index, mask: int | None) -> L.BufferParam:
    """Checks an access and returns its buffer."""
    if not 0 <= number < len(state.nest.buffers):
        raise IRError(f"there is no buffer b{number}")
    buffer = state.nest.buffers[number]
    _check_index(state, index)
    _check_mask(state, mask)
    reached = all(not isinstance(a.size, int) or a.size > 0 for a in state.open)
    if mask is None and reached:
        low, high = bounds(index)
        if isinstance(low, int) and low < 0:
            raise IRError(f"b{number} is accessed at {low}")
        if isinstance(high, int) and isinstance(buffer.numel, int) and high >= buffer.numel:
            raise IRError(f"b{number} has {buffer.numel} elements and is accessed at {high}")
    return buffer


def _check_load(state: _State, instr: L.Load) -> None:
    buffer = _check_access(state, instr.buffer, instr.index, instr.mask)
    if buffer.role == "out":
        raise IRError(f"b{instr.buffer} is only written")
    _expect(instr.dtype, buffer.dtype, "the loaded value")


def _check_store(state: _State, instr: L.Store) -> None:
    buffer = _check_access(state, instr.buffer, instr.index, instr.mask)
    if buffer.role == "in":
        raise IRError(f"b{instr.buffer} is only read")
    if instr.mode != "set" and buffer.role == "out":
        raise IRError(f"b{instr.buffer} is only written, but mode {instr.mode!r} reads it")
    _expect(_value(state, instr.value), buffer.dtype, "the stored value")
    if buffer.role == "scratch" or instr.mask is not None or instr.index.value_refs():
        return
    used = instr.index.axes()
    for axis in state.nest.axes:
        if axis not in used and not (isinstance(axis.size, int) and axis.size <= 1):
            raise IRError(f"all outer points along {axis} store to one element")


# --- arithmetic -----------------------------------------------------------------------------------


def _check_compute(state: _State, instr: L.Compute) -> None:
    spec = OPS.get(instr.op)
    if spec is None or not spec.has(Trait.POINTWISE):
        raise IRError(f"{instr.op} is no pointwise op")
    if spec.arity is not None and len(instr.args) != spec.arity:
        raise IRError(f"{instr.op} takes {spec.arity} operands, got {len(instr.args)}")
    args = [_value(state, a) for a in instr.args]
    if instr.op == "cast":
        return
    if instr.op == "bitcast":
        if args[0].itemsize != instr.dtype.itemsize:
            raise IRError(f"{args[0]} and {instr.dtype} differ in size")
        return
    if instr.op == "where":
        _expect(args[0], DType.BOOL, "the condition")
        args = args[1:]
    if len(set(args)) != 1:
        raise IRError(f"operands differ in type: {', '.join(map(str, args))}")
    if args[0] in _HALVES and instr.op != "where":
        raise IRError(f"{instr.op} on {args[0]}: half types compute in f32")
    if not _ALLOWED[spec.dtypes](args[0]):
        raise IRError(f"{instr.op} takes {spec.dtypes} types, got {args[0]}")
    wanted = DType.BOOL if spec.has(Trait.COMPARE) else args[0]
    _expect(instr.dtype, wanted, "the result")


def _check_accumulates(kind: str, value: DType) -> None:
    if value in _HALVES:
        raise IRError(f"{kind} of {value}: half types compute in f32")
    if value is DType.BOOL and kind not in ("max", "min"):
        raise IRError(f"{kind} of {value}")


def _check_reduce(state: _State, instr: L.Reduce) -> None:
    value = _value(state, instr.value)
    _check_accumulates(instr.kind, value)
    if instr.kind not in ("argmax", "argmin"):
        _expect(instr.dtype, value, "the result")
        return
    if instr.position is None:
        raise IRError(f"{instr.kind} without a position")
    _expect(_value(state, instr.position), DType.I64, "the position")
    _expect(instr.dtype, DType.I64, "the result")


def _check_dot(state: _State, instr: L.Dot) -> None:
    if not instr.axes:
        raise IRError("a dot without axes")
    left, right = _value(state, instr.left), _value(state, instr.right)
    _expect(right, left, "the right factor")
    _expect(instr.dtype, left, "the result")
    if left not in (DType.F32, DType.F64):
        raise IRError(f"a dot of {left}")
