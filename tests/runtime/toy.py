"""Small hand-written kernels and Programs for the tests of the runtime.

The kernels follow the calling convention of ``codegen.base`` and are written in plain LLVM IR, so
that these tests need no code generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import llvmlite.binding as llvm
import sympy
import torch

from lazyc.codegen.base import LoadedKernel
from lazyc.ir.index import Axis, axis_index
from lazyc.ir.loops import BufferParam, Compute, Load, LoopNest, Stage, Store
from lazyc.ir.program import Buffer, GemmStep, KernelStep, Operand, Program, ProgramOutput
from lazyc.ir.types import Dim, DType, Shape, contiguous_strides, numel
from lazyc.runtime.host import Host, create_host
from lazyc.runtime.library import Blas
from lazyc.runtime.program import Executable

# out[i] = f(x[i], y[i]) for i in [begin, end); "sum" keeps to the items it was given.
_TEMPLATE = """
define void @{name}(ptr %buffers, ptr %sizes, i64 %begin, i64 %end, ptr %error) {{
entry:
  %px = load ptr, ptr %buffers
  %b1 = getelementptr ptr, ptr %buffers, i64 1
  %py = load ptr, ptr %b1
  %b2 = getelementptr ptr, ptr %buffers, i64 {out}
  %po = load ptr, ptr %b2
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %work ]
  %more = icmp ult i64 %i, %end
  br i1 %more, label %work, label %done
work:
  %qx = getelementptr float, ptr %px, i64 %i
  %qy = getelementptr float, ptr %py, i64 %i
  %qo = getelementptr float, ptr %po, i64 %i
  %x = load float, ptr %qx, align 4
  %y = load float, ptr %qy, align 4
  {body}
  store float %r, ptr %qo, align 4
  %next = add i64 %i, 1
  br label %loop
done:
  ret void
}}
"""
# Sets bit 1 of the error word when an element is negative, as a kernel with CheckIndex does.
_CHECK = """
define void @check(ptr %buffers, ptr %sizes, i64 %begin, i64 %end, ptr %error) {
entry:
  %px = load ptr, ptr %buffers
  %b1 = getelementptr ptr, ptr %buffers, i64 1
  %po = load ptr, ptr %b1
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %good ], [ %next, %bad ]
  %more = icmp ult i64 %i, %end
  br i1 %more, label %work, label %done
work:
  %next = add i64 %i, 1
  %qx = getelementptr float, ptr %px, i64 %i
  %qo = getelementptr float, ptr %po, i64 %i
  %x = load float, ptr %qx, align 4
  store float %x, ptr %qo, align 4
  %negative = fcmp olt float %x, 0.0
  br i1 %negative, label %bad, label %good
bad:
  %old = atomicrmw or ptr %error, i64 1 monotonic
  br label %loop
good:
  br label %loop
done:
  ret void
}
"""
# out[i] = sizes[0] + the number of items that this call was given (as float): shows the split.
_SPLIT = """
define void @split(ptr %buffers, ptr %sizes, i64 %begin, i64 %end, ptr %error) {
entry:
  %po = load ptr, ptr %buffers
  %count = sub i64 %end, %begin
  %size = load i64, ptr %sizes
  %total = add i64 %count, %size
  %value = sitofp i64 %total to float
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %work ]
  %more = icmp ult i64 %i, %end
  br i1 %more, label %work, label %done
work:
  %qo = getelementptr float, ptr %po, i64 %i
  store float %value, ptr %qo, align 4
  %next = add i64 %i, 1
  br label %loop
done:
  ret void
}
"""


@cache
def addresses() -> dict[str, int]:
    """Address of each toy kernel: add, mul (x, y -> out), double (x -> out), check, split, and
    accumulate (inout x += y)."""
    text = "".join(
        (
            _TEMPLATE.format(name="add", out=2, body="%r = fadd float %x, %y"),
            _TEMPLATE.format(name="mul", out=2, body="%r = fmul float %x, %y"),
            _TEMPLATE.format(name="accumulate", out=0, body="%r = fadd float %x, %y"),
            # "py" is the output here: what is loaded from it is not used.
            _TEMPLATE.format(name="double", out=1, body="%r = fadd float %x, %x"),
            _CHECK,
            _SPLIT,
        )
    )
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=1, jit=True)
    module = llvm.parse_assembly(text)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _engines.append(engine)
    names = ("add", "mul", "accumulate", "double", "check", "split")
    return {name: engine.get_function_address(name) for name in names}


_engines: list[object] = []
_ROLES = {
    "add": ("in", "in", "out"),
    "mul": ("in", "in", "out"),
    "accumulate": ("inout", "in"),
    "double": ("in", "out"),
    "check": ("in", "out"),
    "split": ("out",),
}


@cache
def host() -> Host:
    return create_host()


@cache
def host_without_blas() -> Host:
    """A host as on a machine whose torch exports no BLAS routine."""
    return replace(create_host(), blas=Blas())


N0 = sympy.Symbol("n0", integer=True, positive=True)


def nest(kind: str, size: Dim, symbols: tuple[sympy.Symbol, ...] = (), extra: int = 0) -> LoopNest:
    """A LoopNest with the buffers of a toy kernel (its body is that of add, whatever the kind), and
    ``extra`` more that it only reads."""
    axis = Axis("i", size)
    roles = _ROLES[kind]
    index = axis_index(axis)
    loads = tuple(
        Load(k, DType.F32, k, index) for k, role in enumerate(roles) if role in ("in", "inout")
    )
    value = Compute(9, DType.F32, "add", (0, 0)) if loads else None
    target = next(k for k, role in enumerate(roles) if role != "in")
    body = (*loads, value, Store(target, index, 9)) if value is not None else ()
    params = tuple(BufferParam(DType.F32, role, size) for role in (*roles, *["in"] * extra))
    return LoopNest((axis,), (Stage((), body),), params, symbols)


def kernel(kind: str, items: Dim, grain: int = 1 << 30) -> LoadedKernel:
    return LoadedKernel(addresses()[kind], items, grain)


def buffer(
    number: int,
    kind: str,
    shape: Shape,
    source: int = -1,
    dtype: DType | None = DType.F32,
    strides: Shape | None = None,
) -> Buffer:
    steps = contiguous_strides(shape) if strides is None else strides
    return Buffer(number, kind, dtype, shape, steps, source)  # type: ignore[arg-type]


def whole(b: Buffer) -> ProgramOutput:
    """A result that is the buffer as it is."""
    return ProgramOutput(b.id, b.shape, b.strides)


def chain(kinds: Sequence[str], shape: Shape, grain: int = 1 << 30) -> Executable:
    """``f(x, y)``: each step applies a kernel to the value so far (and y, if it takes two)."""
    buffers = [buffer(0, "input", shape, 0), buffer(1, "input", shape, 1)]
    steps = []
    size = numel(shape)
    for position, kind in enumerate(kinds):
        last = position == len(kinds) - 1
        buffers.append(buffer(len(buffers), "output" if last else "temp", shape))
        value = 0 if position == 0 else len(buffers) - 2
        used = (value, 1, buffers[-1].id) if kind in ("add", "mul") else (value, buffers[-1].id)
        steps.append(KernelStep(kind, used, ()))
    program = Program(
        inputs=(0, 1),
        buffers=tuple(buffers),
        steps=tuple(steps),
        outputs=(whole(buffers[-1]),),
        nests={kind: nest(kind, size) for kind in kinds},
    )
    return Executable(program, {kind: kernel(kind, size, grain) for kind in kinds}, host())


def reference(kinds: Sequence[str], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What ``chain(kinds, ...)`` computes, in torch."""
    value = x
    for kind in kinds:
        if kind == "add":
            value = value + y
        elif kind == "mul":
            value = value * y
        elif kind == "double":
            value = value + value
    return value


def product(size: int) -> Executable:
    """``f(x, y) = x @ y`` for square matrices."""
    x, y, out = (buffer(i, k, (size, size), i) for i, k in enumerate(("input", "input", "output")))
    a, b, c = (Operand(i, 0, size, 1) for i in range(3))
    step = GemmStep(DType.F32, (), size, size, size, a, b, c)
    return Executable(Program((0, 1), (x, y, out), (step,), (whole(out),), {}), {}, host())
