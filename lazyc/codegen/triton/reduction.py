"""Running results of reductions and scans: a block in which each lane keeps its own part."""

from __future__ import annotations

from lazyc.codegen.triton.pointwise import literal
from lazyc.codegen.triton.writer import Value, Writer
from lazyc.ir.loops import Reduce, Scan, reduction_identity
from lazyc.ir.types import DType

POINTS, ITERATIONS = 1, 2  # what values vary along: outer points, and iterations of the stage

# What combines lanes. The language's own functions are those that its interpreter knows fast ways for.
_SUM = "tl.standard._sum_combine"
_LARGEST = "tl.standard._elementwise_max"
_LEAST = "tl.standard._elementwise_min"
_COMBINE = {"sum": "add", "prod": "multiply", "max": "largest", "min": "least"}
_BOTH = POINTS | ITERATIONS


def _lanes(text: str, function: str) -> str:
    return f"tl.reduce({text}, 1, {function}, keep_dims=True)"


class Accumulator:
    """One ``Reduce`` while its stage is written. ``dtype`` is the type of the reduced value, ``whole``
    whether one block has all iterations. A ``long`` float sum carries its rounding error along (W. Kahan,
    "Further remarks on reducing truncation errors", CACM 8, 1965), so that the error does not grow with
    the length. ``index``: the type that iterations are counted in."""

    def __init__(self, instr: Reduce, dtype: DType, index: DType, whole: bool, long: bool) -> None:
        self.instr = instr
        self.index = index
        self.never = (1 << (index.itemsize * 8 - 1)) - 1  # no element seen yet; loses every tie
        self.whole = whole
        self.compensated = long and dtype.is_float and instr.kind == "sum"
        self.is_arg = instr.kind in ("argmax", "argmin")
        self.largest = instr.kind in ("max", "argmax")
        self.is_bool = dtype is DType.BOOL  # lanes of i1 are not combined
        self.dtype = DType.I32 if self.is_bool else dtype
        self.best = self.lost = self.order = self.position = ""
        self.varies = POINTS

    @property
    def _identity(self) -> str:
        if self.is_bool:
            return "0" if self.largest else "1"
        return literal(reduction_identity(self.instr.kind, self.dtype), self.dtype)

    def start(self, w: Writer) -> None:
        """Before the loop."""
        self.best = w.variable(w.full(self._identity, self.dtype, _BOTH))
        if self.compensated:
            self.lost = w.variable(w.full("0.0", self.dtype, _BOTH))
        if self.is_arg:
            self.order = w.variable(w.full(str(self.never), self.index, _BOTH))
            self.position = w.variable(w.full("0", DType.I64, _BOTH))

    def add(self, w: Writer, value: Value, position: Value | None, order: str) -> None:
        """The elements of a block, of which each lane's is the one numbered ``order``."""
        text = f"{value.text}.to(tl.int32)" if self.is_bool else value.text
        text, end = w.broadcast(text, value.varies, ITERATIONS), w.ends[ITERATIONS]
        if self.is_arg:
            assert position is not None
            self._add_position(w, text, position, order, end)
        elif self.whole:
            self.varies = value.varies & POINTS
            kept = f"tl.where({end}, {text}, {self._identity})" if end else text
            self.best = w.value(kept, self.dtype, value.varies | ITERATIONS).text
        elif self.compensated:
            self._add_compensated(w, f"tl.where({end}, {text}, 0.0)" if end else text)
        else:
            new = f"{_COMBINE[self.instr.kind]}({self.best}, {text})"
            w.line(f"{self.best} = {f'tl.where({end}, {new}, {self.best})' if end else new}")

    def _add_compensated(self, w: Writer, text: str) -> None:
        part = w.variable(f"{text} - {self.lost}")
        total = w.variable(f"{self.best} + {part}")
        lost = f"({total} - {self.best}) - {part}"
        finite = f"tl.abs({total}) < float('inf')"  # of infinity nothing is lost
        w.line(f"{self.lost} = tl.where({finite}, {lost}, 0.0)")
        w.line(f"{self.best} = {total}")

    def _add_position(self, w: Writer, text: str, position: Value, order: str, end: str) -> None:
        if self.whole:
            self.start(w)
        better = f"({text} {'>' if self.largest else '<'} {self.best})"
        if self.dtype.is_float:  # the first nan wins
            better = f"({better} | (({text} != {text}) & ({self.best} == {self.best})))"
        better = f"({better} | ({self.order} == {self.never}))"
        change = w.variable(f"{end} & {better}" if end else better)
        w.line(f"{self.best} = tl.where({change}, {text}, {self.best})")
        w.line(f"{self.order} = tl.where({change}, {order}, {self.order})")
        w.line(f"{self.position} = tl.where({change}, {position.text}, {self.position})")

    def finish(self, w: Writer) -> Value:
        """After the loop: one result for each outer point."""
        kind, dtype = self.instr.kind, self.instr.dtype
        if not self.best:  # no iterations at all
            return w.value(w.full(self._identity_of_none(), dtype), dtype, 0)
        if self.is_arg:
            return self._finish_position(w)
        if kind in ("sum", "prod"):
            text = _lanes(self.best, _SUM if kind == "sum" else "multiply")
            return w.value(text, dtype, self.varies, shared=self.whole)
        text = self._extreme(w)
        return w.value(f"{text} != 0" if self.is_bool else text, dtype, self.varies, self.whole)

    def _identity_of_none(self) -> str:
        return literal(
            0 if self.is_arg else reduction_identity(self.instr.kind, self.instr.dtype),
            self.instr.dtype,
        )

    def _extreme(self, w: Writer) -> str:
        function = _LARGEST if self.largest else _LEAST
        if not self.dtype.is_float:
            return _lanes(self.best, function)
        nan = _lanes(f"({self.best} != {self.best}).to(tl.int32)", _LARGEST)
        worst = literal(
            reduction_identity("max" if self.largest else "min", self.dtype), self.dtype
        )
        number = _lanes(f"tl.where({self.best} != {self.best}, {worst}, {self.best})", function)
        return f'tl.where({nan} != 0, float("nan"), {number})'

    def _finish_position(self, w: Writer) -> Value:
        extreme = w.variable(self._extreme(w))
        equal = f"({self.best} == {extreme})"
        if self.dtype.is_float:
            equal = f"({equal} | (({self.best} != {self.best}) & ({extreme} != {extreme})))"
        candidates = f"tl.where({equal}, {self.order}, {self.never})"
        first = w.variable(_lanes(candidates, _LEAST))
        none = f"({first} == {self.never})"
        chosen = f"tl.where({none} | ({self.order} != {first}), 0, {self.position})"
        return w.value(_lanes(chosen, _SUM), DType.I64, POINTS, shared=False)


class Running:
    """One ``Scan`` while its stage is written; ``whole`` as above."""

    def __init__(self, instr: Scan, whole: bool) -> None:
        self.instr = instr
        self.whole = whole
        self.carry = ""
        self.is_bool = instr.dtype is DType.BOOL
        self.dtype = DType.I32 if self.is_bool else instr.dtype

    @property
    def _identity(self) -> str:
        if self.is_bool:
            return "0" if self.instr.kind == "max" else "1"
        return literal(reduction_identity(self.instr.kind, self.dtype), self.dtype)

    def start(self, w: Writer) -> None:
        """Before the loop."""
        self.carry = w.variable(w.full(self._identity, self.dtype, POINTS))

    def add(self, w: Writer, value: Value) -> Value:
        """The running result at the elements of a block."""
        kind, combine = self.instr.kind, _COMBINE[self.instr.kind]
        text = f"{value.text}.to(tl.int32)" if self.is_bool else value.text
        text, end = w.broadcast(text, value.varies, _BOTH), w.ends[ITERATIONS]
        kept = w.variable(f"tl.where({end}, {text}, {self._identity})" if end else text)
        function = {"sum": _SUM, "prod": "tl.standard._prod_combine"}.get(kind, combine)
        found = f"tl.associative_scan({kept}, 1, {function})"
        if not self.whole:
            found = w.variable(f"{combine}({self.carry}, {found})")
            last = {"sum": _SUM, "prod": "multiply"}.get(kind, combine)
            w.line(f"{self.carry} = {combine}({self.carry}, {_lanes(kept, last)})")
        found = f"{found} != 0" if self.is_bool else found
        return w.value(found, self.instr.dtype, _BOTH, shared=False)
