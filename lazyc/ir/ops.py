"""The ops of the Graph IR. Importing this module fills the table ``OPS``.

Passes ask for traits; the interpreter calls ``evaluate``. Pointwise ops are in
``ir/pointwise_ops.py``, what an op is in ``ir/opspec.py``; users import from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from lazyc.ir import (
    attention_ops,  # noqa: F401  # pyright: ignore[reportUnusedImport]  # fills OPS
    pointwise_ops,  # noqa: F401  # pyright: ignore[reportUnusedImport]  # fills OPS
)
from lazyc.ir import attrs as A
from lazyc.ir.opspec import (
    ALLOWED,
    OPS,
    IRError,
    OpSpec,
    SymbolValues,
    Trait,
    concrete,
    concrete_shape,
    register,
    tensor,
)
from lazyc.ir.types import (
    Dim,
    DType,
    OpaqueType,
    Shape,
    TensorType,
    ValueType,
    contiguous_strides,
    dtype_from_torch,
    numel,
)

__all__ = [
    "OPS",
    "IRError",
    "OpSpec",
    "SymbolValues",
    "Trait",
    "concrete",
    "concrete_shape",
    "fill_template",
    "resolve_target",
    "tensor",
]


# --- leaves ---------------------------------------------------------------------------------------


def _no_eval(inputs: Sequence[Any], attrs: Any, values: SymbolValues) -> Any:
    raise IRError("the interpreter supplies this value itself")


register(OpSpec("input", 0, A.InputAttrs, Trait.LEAF, lambda t, a: a.type, _no_eval))
register(
    OpSpec("tensor_constant", 0, A.TensorConstantAttrs, Trait.LEAF, lambda t, a: a.type, _no_eval)
)
register(
    OpSpec(
        "constant", 0, A.ConstantAttrs, Trait.LEAF,
        lambda t, a: TensorType(a.dtype, (), a.device),
        lambda x, a, v: torch.tensor(a.value, dtype=a.dtype.torch, device=a.device),
    )
)  # fmt: skip
register(
    OpSpec(
        "size", 0, A.SizeAttrs, Trait.LEAF,
        lambda t, a: TensorType(a.dtype, (), a.device),
        lambda x, a, v: torch.tensor(concrete(a.expr, v), dtype=a.dtype.torch, device=a.device),
    )
)  # fmt: skip
register(
    OpSpec(
        "iota", 0, A.IotaAttrs, Trait.LEAF,
        lambda t, a: TensorType(a.dtype, (a.size,), a.device),
        lambda x, a, v: torch.arange(concrete(a.size, v), device=a.device).to(a.dtype.torch),
    )
)  # fmt: skip


# --- views: index maps ----------------------------------------------------------------------------


def _check_numel(name: str, old: Shape, new: Shape) -> None:
    """Symbolic sizes must not differ for certain: the trace has checked them under its guards, of
    which (divisibility above all) sympy knows nothing."""
    difference = numel(old) - numel(new)
    if isinstance(difference, sympy.Expr):
        differs = bool(sympy.expand(difference).is_nonzero)
    else:
        differs = difference != 0
    if differs:
        raise IRError(f"{name}: {old} -> {new} changes the number of elements")


def _infer_reshape(types: Sequence[ValueType], attrs: A.ShapeAttrs) -> ValueType:
    t = tensor(types[0])
    _check_numel("reshape", t.shape, attrs.shape)
    return t.with_shape(attrs.shape)


def _infer_permute(types: Sequence[ValueType], attrs: A.PermuteAttrs) -> ValueType:
    t = tensor(types[0])
    if sorted(attrs.dims) != list(range(t.rank)):
        raise IRError(f"permute: {attrs.dims} is no permutation of the dims of {t}")
    return t.with_shape(t.shape[d] for d in attrs.dims)


def _infer_expand(types: Sequence[ValueType], attrs: A.ShapeAttrs) -> ValueType:
    t = tensor(types[0])
    if t.rank != len(attrs.shape) or any(
        d != e and d != 1 for d, e in zip(t.shape, attrs.shape, strict=False)
    ):
        raise IRError(f"expand: {t} -> {attrs.shape} (same rank, only dims of size 1 grow)")
    return t.with_shape(attrs.shape)


def _infer_slice(types: Sequence[ValueType], attrs: A.SliceAttrs) -> ValueType:
    t = tensor(types[0])
    if not len(attrs.starts) == len(attrs.sizes) == len(attrs.steps) == t.rank:
        raise IRError(f"slice: {attrs} does not fit {t}")
    if any(s == 0 for s in attrs.steps):
        raise IRError("slice: step 0")
    for dim, start, size, step in zip(t.shape, attrs.starts, attrs.sizes, attrs.steps, strict=True):
        if isinstance(dim, int) and isinstance(start, int) and isinstance(size, int) and size:
            last = start + (size - 1) * step
            if not (0 <= start < dim and 0 <= last < dim):
                raise IRError(f"slice: {attrs} reads outside {t}")
    return t.with_shape(attrs.sizes)


def _eval_slice(inputs: Sequence[Any], attrs: A.SliceAttrs, values: SymbolValues) -> torch.Tensor:
    x = inputs[0]
    for axis, (start, size, step) in enumerate(
        zip(attrs.starts, attrs.sizes, attrs.steps, strict=True)
    ):
        first, count = concrete(start, values), concrete(size, values)
        positions = first + step * torch.arange(count, device=x.device)
        x = x.index_select(axis, positions)
    return x


def _infer_pad(types: Sequence[ValueType], attrs: A.PadAttrs) -> ValueType:
    t = tensor(types[0])
    if not len(attrs.low) == len(attrs.high) == t.rank:
        raise IRError(f"pad: {attrs} does not fit {t}")
    return t.with_shape(
        d + low + high for d, low, high in zip(t.shape, attrs.low, attrs.high, strict=True)
    )


def _eval_pad(inputs: Sequence[Any], attrs: A.PadAttrs, values: SymbolValues) -> torch.Tensor:
    x = inputs[0]
    low, high = concrete_shape(attrs.low, values), concrete_shape(attrs.high, values)
    out = torch.full(
        [d + lo + hi for d, lo, hi in zip(x.shape, low, high, strict=True)],
        attrs.value, dtype=x.dtype, device=x.device,
    )  # fmt: skip
    region = out
    for axis, start in enumerate(low):
        region = region.narrow(axis, start, x.shape[axis])
    region.copy_(x)
    return out


def _infer_cat(types: Sequence[ValueType], attrs: A.CatAttrs) -> ValueType:
    parts = [tensor(t) for t in types]
    first, axis = parts[0], attrs.axis
    for p in parts:
        rest = p.shape[:axis] + p.shape[axis + 1 :]
        if (p.dtype, p.device) != (first.dtype, first.device) or rest != (
            first.shape[:axis] + first.shape[axis + 1 :]
        ):
            raise IRError(f"cat: parts differ: {', '.join(map(str, types))}")
    total: Dim = 0
    for p in parts:
        total = total + p.shape[axis]
    return first.with_shape((*first.shape[:axis], total, *first.shape[axis + 1 :]))


def _infer_strided(types: Sequence[ValueType], attrs: A.StridedAttrs) -> ValueType:
    t = tensor(types[0])
    if len(attrs.shape) != len(attrs.strides):
        raise IRError(f"strided: {attrs} has ranks that differ")
    everything = (t.numel, *attrs.shape, *attrs.strides, attrs.offset)
    if all(isinstance(d, int) for d in everything) and numel(attrs.shape):
        low = high = attrs.offset
        for d, s in zip(attrs.shape, attrs.strides, strict=True):
            low, high = low + min(0, (d - 1) * s), high + max(0, (d - 1) * s)
        if low < 0 or high >= t.numel:
            raise IRError(f"strided: {attrs} reads outside {t}")
    return t.with_shape(attrs.shape)


def _eval_strided(inputs: Sequence[Any], attrs: A.StridedAttrs, values: SymbolValues) -> Any:
    flat = inputs[0].reshape(-1)
    position = torch.full((), concrete(attrs.offset, values), device=flat.device)
    shape, strides = concrete_shape(attrs.shape, values), concrete_shape(attrs.strides, values)
    for d, s in zip(shape, strides, strict=True):
        position = position.unsqueeze(-1) + torch.arange(d, device=flat.device) * s
    return flat[position]


def _infer_window(types: Sequence[ValueType], attrs: A.WindowAttrs) -> ValueType:
    t = tensor(types[0])
    shape = list(t.shape)
    for axis, size, stride, dilation, count in zip(
        attrs.axes, attrs.sizes, attrs.strides, attrs.dilations, attrs.counts, strict=True
    ):
        dim = shape[axis]
        last = (count - 1) * stride + (size - 1) * dilation
        known = isinstance(dim, int) and isinstance(last, int)
        if known and count and last >= dim and not attrs.padding:
            raise IRError(f"window: {attrs} reads outside {t}")
        shape[axis] = count
    return t.with_shape((*shape, *attrs.sizes))


def _eval_window(inputs: Sequence[Any], attrs: A.WindowAttrs, values: SymbolValues) -> Any:
    x = inputs[0]
    rank = x.dim()
    for k, axis in enumerate(attrs.axes):
        count = concrete(attrs.counts[k], values)
        at = (
            torch.arange(count, device=x.device)[:, None] * attrs.strides[k]
            + torch.arange(attrs.sizes[k], device=x.device) * attrs.dilations[k]
        )
        if attrs.padding:
            at = at - attrs.padding[k]
            inside = (at >= 0) & (at < x.shape[axis])
            found = x.index_select(axis, at.clamp(0, x.shape[axis] - 1).reshape(-1))
            shape = [at.numel() if d == axis else 1 for d in range(x.dim())]
            x = found.masked_fill(~inside.reshape(shape), 0).unflatten(axis, at.shape)
        else:
            x = x.index_select(axis, at.reshape(-1)).unflatten(axis, at.shape)
        x = x.movedim(axis + 1, rank + k)
    return x


for _name, _arity, _cls, _infer, _evaluate in (
    ("reshape", 1, A.ShapeAttrs, _infer_reshape,
     lambda x, a, v: x[0].reshape(concrete_shape(a.shape, v))),
    ("permute", 1, A.PermuteAttrs, _infer_permute, lambda x, a, v: x[0].permute(a.dims)),
    ("expand", 1, A.ShapeAttrs, _infer_expand,
     lambda x, a, v: x[0].expand(concrete_shape(a.shape, v))),
    ("slice", 1, A.SliceAttrs, _infer_slice, _eval_slice),
    ("pad", 1, A.PadAttrs, _infer_pad, _eval_pad),
    ("cat", None, A.CatAttrs, _infer_cat, lambda x, a, v: torch.cat(list(x), a.axis)),
    ("strided", 1, A.StridedAttrs, _infer_strided, _eval_strided),
    ("window", 1, A.WindowAttrs, _infer_window, _eval_window),
):  # fmt: skip
    register(OpSpec(_name, _arity, _cls, Trait.VIEW, _infer, _evaluate))


# --- reductions and scans -------------------------------------------------------------------------


def _reduction(
    name: str, fn: Callable[..., torch.Tensor], dtypes: str, index: bool = False
) -> None:
    def infer(types: Sequence[ValueType], attrs: A.ReduceAttrs) -> ValueType:
        t = tensor(types[0])
        if not ALLOWED[dtypes](t.dtype):
            raise IRError(f"{name}: takes {dtypes} types, got {t}")
        if not attrs.axes or list(attrs.axes) != sorted(set(attrs.axes)) or not (
            attrs.axes[0] >= 0 and attrs.axes[-1] < t.rank
        ):  # fmt: skip
            raise IRError(f"{name}: bad axes {attrs.axes} for {t}")
        if index and len(attrs.axes) != 1:
            raise IRError(f"{name}: takes one axis, got {attrs.axes}")
        kept = t.with_shape(d for k, d in enumerate(t.shape) if k not in attrs.axes)
        return kept.with_dtype(DType.I64) if index else kept

    def evaluate(inputs: Sequence[Any], attrs: A.ReduceAttrs, values: SymbolValues) -> Any:
        return fn(inputs[0], attrs.axes)

    register(OpSpec(name, 1, A.ReduceAttrs, Trait.REDUCTION, infer, evaluate, dtypes))


def _reduce_prod(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, dtype=x.dtype)
    return x


def _reduce_extreme(x: torch.Tensor, axes: tuple[int, ...], largest: bool) -> torch.Tensor:
    if any(x.shape[a] == 0 for a in axes):  # never read: the frontend rejects empty reductions
        return x.new_zeros([d for k, d in enumerate(x.shape) if k not in axes])
    return x.amax(axes) if largest else x.amin(axes)


_reduction("reduce_sum", lambda x, axes: x.sum(axes, dtype=x.dtype), "number")
_reduction("reduce_prod", _reduce_prod, "number")
_reduction("reduce_max", lambda x, axes: _reduce_extreme(x, axes, True), "any")  # nan wins
_reduction("reduce_min", lambda x, axes: _reduce_extreme(x, axes, False), "any")
_reduction("argmax", lambda x, axes: x.argmax(axes[0]), "number", index=True)  # first; nan wins
_reduction("argmin", lambda x, axes: x.argmin(axes[0]), "number", index=True)


def _scan(name: str, fn: Callable[..., torch.Tensor], dtypes: str) -> None:
    def infer(types: Sequence[ValueType], attrs: A.ScanAttrs) -> ValueType:
        t = tensor(types[0])
        if not ALLOWED[dtypes](t.dtype) or not 0 <= attrs.axis < t.rank:
            raise IRError(f"{name}: axis {attrs.axis} of {t}")
        return t

    def evaluate(inputs: Sequence[Any], attrs: A.ScanAttrs, values: SymbolValues) -> Any:
        return fn(inputs[0], attrs.axis)

    register(OpSpec(name, 1, A.ScanAttrs, Trait.SCAN, infer, evaluate, dtypes))


_scan("scan_sum", lambda x, axis: x.cumsum(axis, dtype=x.dtype), "number")
_scan("scan_prod", lambda x, axis: x.cumprod(axis, dtype=x.dtype), "number")
_scan("scan_max", lambda x, axis: x.cummax(axis).values, "any")  # nan wins
_scan("scan_min", lambda x, axis: x.cummin(axis).values, "any")


# --- gather and scatter ---------------------------------------------------------------------------


def _infer_gather(types: Sequence[ValueType], attrs: A.GatherAttrs) -> ValueType:
    source, *indices = [tensor(t) for t in types]
    if len(indices) != source.rank or not indices:
        raise IRError(f"gather: {len(indices)} indices for {source}: one a dim")
    for index in indices:
        if index.dtype is not DType.I64 or index.shape != indices[0].shape:
            raise IRError(f"gather: indices must be i64 of one shape, got {index}")
    return source.with_shape(indices[0].shape)


def _infer_scatter(types: Sequence[ValueType], attrs: A.ScatterAttrs) -> ValueType:
    base, update, *indices = [tensor(t) for t in types]
    if len(indices) != base.rank or not indices:
        raise IRError(f"scatter: {len(indices)} indices for {base}: one a dim")
    for index in indices:
        if index.dtype is not DType.I64 or index.shape != update.shape:
            raise IRError(f"scatter: indices must be i64 shaped as the update, got {index}")
    if update.dtype != base.dtype:
        raise IRError(f"scatter: update {update} into {base}")
    return base


def _check_range(shape: Sequence[int], indices: Sequence[torch.Tensor]) -> None:
    for size, index in zip(shape, indices, strict=True):
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise IndexError(f"index out of range for a dim of size {size}")


def _eval_gather(inputs: Sequence[Any], attrs: A.GatherAttrs, values: SymbolValues) -> Any:
    source, *indices = inputs
    _check_range(source.shape, indices)
    return source[tuple(indices)]


_SCATTER_REDUCE = {"mul": "prod", "max": "amax", "min": "amin"}


def _eval_scatter(inputs: Sequence[Any], attrs: A.ScatterAttrs, values: SymbolValues) -> Any:
    base, update, *indices = inputs
    _check_range(base.shape, indices)
    if attrs.mode in ("set", "add"):
        return base.index_put(tuple(indices), update, accumulate=attrs.mode == "add")
    shape, strides = base.shape, contiguous_strides(tuple(base.shape))
    flat = sum(
        (i * s for i, s in zip(indices, strides, strict=True)), torch.zeros((), dtype=torch.int64)
    )
    out = base.reshape(-1).scatter_reduce(
        0, flat.reshape(-1), update.reshape(-1), _SCATTER_REDUCE[attrs.mode], include_self=True
    )
    return out.reshape(shape)


# gather(x, i0, i1, ...)[p] = x[i0[p], i1[p], ...]: one i64 index a dim of x, all of the result's
# shape (an identity index is an expanded iota). 0 <= index < dim, unless attrs.checked.
register(
    OpSpec(
        "gather", None, A.GatherAttrs, Trait.GATHER, _infer_gather, _eval_gather,
    )
)  # fmt: skip
# scatter(base, update, i0, i1, ...): base with base[i0[p], i1[p], ...] (op)= update[p]. Updates to
# one element meet in row-major order of p.
register(OpSpec("scatter", None, A.ScatterAttrs, Trait.SCATTER, _infer_scatter, _eval_scatter))


# --- contractions ---------------------------------------------------------------------------------


def _infer_matmul(types: Sequence[ValueType], attrs: A.Attrs) -> ValueType:
    a, b = tensor(types[0]), tensor(types[1])
    if (
        a.rank < 2 or a.rank != b.rank or a.dtype != b.dtype or a.device != b.device
        or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]
    ):  # fmt: skip
        raise IRError(f"matmul: {a} @ {b} (equal batch dims, [.., M, K] @ [.., K, N])")
    made = a.with_shape((*a.shape[:-1], b.shape[-1]))
    return made if a.dtype.is_float else made.with_dtype(a.dtype.accumulator)


def _eval_matmul(x: Sequence[torch.Tensor], attrs: A.Attrs, values: SymbolValues) -> torch.Tensor:
    dtype = dtype_from_torch(x[0].dtype)
    assert dtype is not None
    if not dtype.is_float:
        x = [t.to(dtype.accumulator.torch) for t in x]
    return torch.matmul(x[0], x[1])


# matmul(a, b): [.., M, K] @ [.., K, N] -> [.., M, N], equal batch dims, no broadcasting. Floats of the factors'
# type; integers of the type that they are added in, in which they wrap.
register(OpSpec("matmul", 2, A.Attrs, Trait.CONTRACTION, _infer_matmul, _eval_matmul))


def _infer_wide_matmul(types: Sequence[ValueType], attrs: A.Attrs) -> ValueType:
    made = tensor(_infer_matmul(types, attrs))
    if not made.dtype.is_float or not made.dtype.is_widened:
        raise IRError(f"wide_matmul of {made.dtype}: f16 or bf16")
    return made.with_dtype(made.dtype.accumulator)


def _eval_wide_matmul(
    x: Sequence[torch.Tensor], attrs: A.Attrs, values: SymbolValues
) -> torch.Tensor:
    return torch.matmul(x[0].float(), x[1].float())


# wide_matmul(a, b): matmul of half types whose result is not rounded to them: f32.
register(
    OpSpec("wide_matmul", 2, A.Attrs, Trait.CONTRACTION, _infer_wide_matmul, _eval_wide_matmul)
)


def _infer_convolution(types: Sequence[ValueType], attrs: A.ConvolutionAttrs) -> ValueType:
    x, w = tensor(types[0]), tensor(types[1])
    spatial = len(attrs.stride)
    if x.rank != spatial + 2 or w.rank != spatial + 2 or x.dtype != w.dtype:
        raise IRError(f"convolution: {x} with {w}")
    sizes: list[Dim] = []
    for k in range(spatial):
        d, kernel = x.shape[k + 2], w.shape[k + 2]
        reach = attrs.dilation[k] * (kernel - 1)
        if attrs.transposed:
            sizes.append(
                (d - 1) * attrs.stride[k] - 2 * attrs.padding[k] + reach
                + attrs.output_padding[k] + 1
            )  # fmt: skip
        else:
            sizes.append((d + 2 * attrs.padding[k] - reach - 1) // attrs.stride[k] + 1)
    channels = w.shape[1] * attrs.groups if attrs.transposed else w.shape[0]
    return x.with_shape((x.shape[0], channels, *sizes))


def _eval_convolution(inputs: Sequence[Any], a: A.ConvolutionAttrs, values: SymbolValues) -> Any:
    x, w, *bias = inputs
    return torch.ops.aten.convolution(
        x, w, bias[0] if bias else None, a.stride, a.padding, a.dilation, a.transposed,
        a.output_padding, a.groups,
    )  # fmt: skip


# convolution(x, w[, bias]): x [N, C, *spatial], w as torch lays it out.
register(
    OpSpec(
        "convolution", None, A.ConvolutionAttrs, Trait.CONTRACTION, _infer_convolution,
        _eval_convolution,
    )
)  # fmt: skip


# --- random ---------------------------------------------------------------------------------------


def _infer_random(types: Sequence[ValueType], attrs: A.RandomAttrs) -> ValueType:
    seed = tensor(types[0])
    if seed.dtype is not DType.I64 or seed.shape != ():
        raise IRError(f"random: the seed must be i64[], got {seed}")
    return TensorType(attrs.dtype, attrs.shape, attrs.device)


def _philox(seed: int, offset: int, count: int) -> torch.Tensor:
    """Philox-4x32-10 (Salmon et al., SC 2011): 4 words for each of ``count`` counters, as i64."""
    mask = 0xFFFFFFFF
    index = torch.arange(count, dtype=torch.int64) + offset
    c = [index & mask, (index >> 32) & mask, torch.zeros_like(index), torch.zeros_like(index)]
    k0, k1 = seed & mask, (seed >> 32) & mask

    def mulhilo(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # a * b < 2**64 in 16-bit limbs, since torch has no unsigned 64-bit product.
        low, high = (b & 0xFFFF) * a, (b >> 16) * a
        total = high + (low >> 16)
        return total >> 16, ((total & 0xFFFF) << 16) | (low & 0xFFFF)

    for _ in range(10):
        hi0, lo0 = mulhilo(0xD2511F53, c[0])
        hi1, lo1 = mulhilo(0xCD9E8D57, c[2])
        c = [hi1 ^ c[1] ^ k0, lo1, hi0 ^ c[3] ^ k1, lo0]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return torch.stack(c)


def _eval_random(inputs: Sequence[Any], attrs: A.RandomAttrs, values: SymbolValues) -> Any:
    shape = concrete_shape(attrs.shape, values)
    words = _philox(int(inputs[0]), concrete(attrs.offset, values), numel(shape))  # type: ignore[arg-type]
    if attrs.kind == "bits":
        out = words[0]
    elif attrs.kind == "uniform":
        if attrs.dtype is DType.F64:
            out = ((words[0] << 21) | (words[1] >> 11)).double() * 2.0**-53
        else:
            out = (words[0] >> 8).float() * 2.0**-24
    else:  # Box-Muller on two uniforms, the first in (0, 1]
        u = ((words[0] >> 8).float() + 1.0) * 2.0**-24
        angle = (words[1] >> 8).float() * (2.0**-24 * 2 * torch.pi)
        out = torch.sqrt(-2.0 * torch.log(u)) * torch.cos(angle)
    return out.reshape(shape).to(attrs.dtype.torch)


# seed(): 64 bits, drawn from torch's generator once for each run of the Graph.
register(
    OpSpec(
        "seed", 0, A.Attrs, Trait.LEAF,
        lambda t, a: TensorType(DType.I64, ()),
        lambda x, a, v: torch.empty((), dtype=torch.int64).random_(),
    )
)  # fmt: skip
# random(seed): attrs say shape and distribution. Never merged: each has its own offset.
register(OpSpec("random", 1, A.RandomAttrs, Trait.RANDOM, _infer_random, _eval_random))


# --- eager ----------------------------------------------------------------------------------------


def _infer_eager(types: Sequence[ValueType], attrs: A.EagerAttrs) -> ValueType:
    if attrs.is_tuple:
        return OpaqueType(f"tuple{len(attrs.outputs)}")
    return attrs.outputs[0]


def resolve_target(name: str) -> Any:
    """The operator overload of a qualified name such as "aten.sort.default"."""
    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part)
    return found


def fill_template(template: Any, inputs: Sequence[Any], values: SymbolValues) -> Any:
    """An eager call's argument with values in place of ArgRefs and symbolic dims."""
    if isinstance(template, A.ArgRef):
        return inputs[template.index]
    if isinstance(template, tuple):
        return [fill_template(t, inputs, values) for t in template]
    if isinstance(template, sympy.Expr):
        if template.is_integer:
            return concrete(template, values)
        return float(template.subs(list(values.items())))  # type: ignore[arg-type]  # a SymFloat
    return template


def _eval_eager(inputs: Sequence[Any], attrs: A.EagerAttrs, values: SymbolValues) -> Any:
    args = fill_template(attrs.args, inputs, values)
    kwargs = {k: fill_template(t, inputs, values) for k, t in attrs.kwargs}
    return resolve_target(attrs.target)(*args, **kwargs)


register(OpSpec("eager", None, A.EagerAttrs, Trait.BARRIER, _infer_eager, _eval_eager))
register(
    OpSpec(
        "project", 1, A.ProjectAttrs, Trait.NONE, lambda t, a: OpaqueType("project"),
        lambda x, a, v: x[0][a.index],
    )
)  # fmt: skip
