"""The rules that a random program is made of: each tries to append one statement to an Env.

A rule takes ``picks`` (which existing values to use, 0 the newest) and ``params`` (small integers
for dims, sizes, constants) and returns whether it added something. The first rules are the plainest,
so that a failing program shrinks to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tests.conformance.random_env import Env, Test, Value
from tests.conformance.random_program import DTYPES

Picks: TypeAlias = tuple[int, int, int]
Params: TypeAlias = tuple[int, int, int]
Rule: TypeAlias = Callable[[Env, Picks, Params], bool]

RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


def is_float(v: Value) -> bool:
    return v.is_float


def is_exact(v: Value) -> bool:
    return v.exact


def is_number(v: Value) -> bool:
    return not v.is_bool


def has_dims(v: Value) -> bool:
    return v.rank > 0


def _broadcastable(a: Value) -> Test:
    def test(b: Value) -> bool:
        pairs = zip(reversed(a.tensor.shape), reversed(b.tensor.shape), strict=False)
        return all(m == n or 1 in (m, n) for m, n in pairs)

    return test


def _dim(v: Value, param: int) -> int:
    """A dim of v, from the end for odd params (as negative dims); v has dims."""
    dim = param % v.rank
    return dim - v.rank if param % 2 else dim


@rule
def nothing(env: Env, picks: Picks, params: Params) -> bool:
    """What a step shrinks to."""
    return True


# Pointwise -------------------------------------------------------------------------------------

UNARY_INEXACT = (
    "torch.sigmoid({0})",
    "torch.tanh({0})",
    "torch.exp(torch.clamp({0}, max=8))",
    "torch.erf({0})",
    "torch.sin({0})",
    "torch.cos({0})",
    "torch.sqrt(torch.abs({0}))",
    "torch.rsqrt(torch.abs({0}) + 1)",
    "torch.reciprocal(torch.abs({0}) + 1)",
    "torch.log1p(torch.abs({0}))",
    "torch.log(torch.abs({0}) + 1)",
    "torch.expm1(torch.clamp({0}, max=4))",
    "torch.square({0})",
    "torch.pow({0}, 3)",
    "torch.nn.functional.gelu({0})",
    "torch.nn.functional.silu({0})",
    "torch.nn.functional.softplus({0})",
    "torch.nn.functional.elu({0})",
    "torch.log2(torch.abs({0}) + 1)",
    "torch.atan({0})",
)
UNARY_EXACT = (
    "torch.neg({0})",
    "torch.abs({0})",
    "torch.relu({0})",
    "torch.clamp({0}, -1, 2)",
    "torch.clamp({0}, min=0)",
    "{0}.clone()",
    "{0}.contiguous()",
    "torch.nn.functional.hardtanh({0})",
)
UNARY_ROUNDING = (
    "torch.floor({0})",
    "torch.ceil({0})",
    "torch.round({0})",
    "torch.trunc({0})",
    "torch.sign({0})",
    "torch.isnan({0})",
    "torch.isfinite({0})",
    "torch.logical_not({0})",
    "{0} > 0.5",
    "{0} == 0",
)
BINARY_INEXACT = (
    "{0} + {1}",
    "{0} * {1}",
    "{0} - {1}",
    "{0} / ({1} * {1} + 1)",
    "torch.addcmul({0}, {1}, {1}, value=0.5)",
    "torch.lerp({0}, {1}, 0.25)",
    "torch.add({0}, {1}, alpha=2)",
    "torch.atan2({0}, torch.abs({1}) + 1)",
)
BINARY_INT = (
    "{0} + {1}",
    "{0} * {1}",
    "{0} - {1}",
    "{0} & {1}",
    "{0} | {1}",
    "{0} ^ {1}",
    "{0} // (torch.abs({1}) + 1)",
    "torch.remainder({0}, torch.abs({1}) + 1)",
    "torch.fmod({0}, torch.abs({1}) + 1)",
    "torch.div({0}, torch.abs({1}) + 1, rounding_mode='trunc')",
    "{0} << ({1} & 3)",
    "{0} >> ({1} & 3)",
)
COMPARE = ("{0} < {1}", "{0} <= {1}", "{0} > {1}", "{0} >= {1}", "{0} == {1}", "{0} != {1}")
SCALARS = ("{0} + 1", "{0} * 2", "1.5 - {0}", "{0} * 0.5", "{0} / 3", "{0} + 0.125")


def _unary(texts: tuple[str, ...], test: Test, inexact: bool) -> Rule:
    def apply(env: Env, picks: Picks, params: Params) -> bool:
        a = env.pick(picks[0], test)
        text = texts[(params[0] * 8 + params[1]) % len(texts)]
        return a is not None and env.add(text, (a,), inexact)

    return apply


def _binary(texts: tuple[str, ...], test: Test, inexact: bool, same_dtype: bool = False) -> Rule:
    def apply(env: Env, picks: Picks, params: Params) -> bool:
        a = env.pick(picks[0], test)
        if a is None:
            return False
        fits = _broadcastable(a)
        b = env.pick(
            picks[1],
            lambda v: test(v) and fits(v) and (not same_dtype or v.tensor.dtype == a.tensor.dtype),
        )
        text = texts[(params[0] * 8 + params[1]) % len(texts)]
        return b is not None and env.add(text, (a, b), inexact)

    return apply


RULES["binary"] = _binary(BINARY_INEXACT, is_float, inexact=True)
RULES["scalar"] = _unary(SCALARS, is_float, inexact=True)
RULES["unary"] = _unary(UNARY_INEXACT, is_float, inexact=True)
RULES["unary_exact"] = _unary(UNARY_EXACT, is_number, inexact=False)
RULES["unary_rounding"] = _unary(UNARY_ROUNDING, is_exact, inexact=False)
RULES["binary_int"] = _binary(BINARY_INT, lambda v: v.is_int, inexact=False)
RULES["binary_mixed"] = _binary(("{0} + {1}", "{0} * {1}"), lambda v: True, inexact=True)
RULES["compare"] = _binary(COMPARE, is_exact, inexact=False, same_dtype=True)
RULES["logic"] = _binary(("{0} & {1}", "{0} | {1}", "{0} ^ {1}"), lambda v: v.is_bool, False)
RULES["extremes"] = _binary(
    ("torch.maximum({0}, {1})", "torch.minimum({0}, {1})"), lambda v: True, inexact=False
)


@rule
def where(env: Env, picks: Picks, params: Params) -> bool:
    condition = env.pick(picks[0], lambda v: v.is_bool)
    if condition is None:
        return False
    a = env.pick(picks[1], _broadcastable(condition))
    if a is None:
        return False
    if params[0] % 2:
        return env.add("torch.where({0}, {1}, 0.5)", (condition, a), inexact=not a.is_float)
    b = env.pick(picks[2], lambda v: _broadcastable(condition)(v) and _broadcastable(a)(v))
    return b is not None and env.add("torch.where({0}, {1}, {2})", (condition, a, b))


@rule
def masked_fill(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], is_float)
    if a is None:
        return False
    mask = env.pick(picks[1], lambda v: v.is_bool and _broadcastable(a)(v))
    fill, finite = [("0.0", None), ("float('-inf')", False)][params[0] % 2]
    text = f"{{0}}.masked_fill({{1}}, {fill})"
    return mask is not None and env.add(text, (a, mask), finite=finite)


@rule
def cast(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0])
    assert a is not None
    name = ("f32", "bf16", "f64", "i64", "i32", "b8")[params[0] % 6]
    if a.is_float and name in ("i64", "i32") and not (a.exact and a.finite):
        return False  # undefined for nan; depends on rounding
    if a.is_float and name == "b8" and not a.exact:
        return False
    # Integers may be too large, and wider floats too fine, for the new type.
    inexact = name in ("f32", "bf16", "f64")
    # The float64 reference must copy where this does: its dtypes may be the same.
    copies = a.tensor.dtype is not DTYPES[name]
    text = f"{{0}}.to({name}, copy=True)" if copies else f"{{0}}.to({name})"
    if inexact and not a.is_float:
        # The cast itself rounds, but an integer operand takes no noise: a float one does.
        return env.add(text + " * 1.0", (a,)) if _small(a) else False
    return env.add(text, (a,), inexact)


def _small(v: Value) -> bool:
    """Whether every integer is exact in bf16 (8 bits)."""
    return v.tensor.numel() == 0 or int(v.tensor.to(int).abs().max()) <= 256


# Views and copies of parts -----------------------------------------------------------------------


@rule
def transpose(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], lambda v: v.rank >= 2)
    if a is None:
        return False
    return env.add(f"{{0}}.transpose({_dim(a, params[0])}, {_dim(a, params[1])})", (a,))


@rule
def slice_(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], has_dims)
    if a is None:
        return False
    dim = params[0] % a.rank
    texts = ("1:", ":-1", "::2", "1::3", ":2", "-2:", "0:0", "1:2")
    index = ":, " * dim + texts[params[1] % len(texts)]
    return env.add(f"{{0}}[{index}]", (a,))


@rule
def select(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], has_dims)
    if a is None:
        return False
    return env.add(f"{{0}}.select({_dim(a, params[0])}, {(0, -1, 1)[params[1] % 3]})", (a,))


@rule
def reshape(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0])
    assert a is not None
    shape = list(a.tensor.shape)
    if params[0] % 3 == 0:
        text = "{0}.reshape(-1)"
    elif params[0] % 3 == 1:
        text = "{0}.unsqueeze(" + str(params[1] % (a.rank + 1)) + ")"
    else:
        fold = [n for n in (2, 3) if shape and shape[-1] and shape[-1] % n == 0]
        if not fold:
            return False
        new = (*shape[:-1], fold[0], shape[-1] // fold[0])
        text = f"{{0}}.reshape({tuple(new)})"
    return env.add(text, (a,))


@rule
def expand(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], lambda v: 1 in v.tensor.shape or v.rank < 3)
    if a is None:
        return False
    sizes = [(params[0] % 3 + 2) if n == 1 else n for n in a.tensor.shape]
    if params[1] % 2:
        sizes = [2, *sizes]
    return env.add(f"{{0}}.expand({tuple(sizes)})", (a,))


REARRANGE = (
    "{{0}}.flip({0})",
    "torch.roll({{0}}, 1, {0})",
    "torch.cat([{{0}}, {{0}}], {0})",
    "{{0}}.repeat_interleave(2, dim={0})",
    "torch.chunk({{0}}, 2, {0})[-1]",
    "{{0}}.unbind({0})[0]",
    "{{0}}.narrow({0}, 0, 1)",
    "{{0}}.squeeze({0})",
    "{{0}}.movedim({0}, 0)",
    "{{0}}.unfold({0}, 2, 1)",
)


@rule
def rearrange(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], has_dims)
    if a is None:
        return False
    text = REARRANGE[(params[0] * 8 + params[1]) % len(REARRANGE)]
    return env.add(text.format(_dim(a, params[2])), (a,))


@rule
def triangle(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], lambda v: v.rank >= 2)
    texts = ("torch.tril({0})", "torch.triu({0}, 1)", "torch.diagonal({0})", "{0}.mT.contiguous()")
    return a is not None and env.add(texts[params[0] % len(texts)], (a,))


@rule
def cat(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], has_dims)
    if a is None:
        return False
    dim = params[0] % a.rank

    def fits(v: Value) -> bool:
        if v.rank != a.rank:
            return False
        shapes = zip(v.tensor.shape, a.tensor.shape, strict=True)
        return all(m == n or i == dim for i, (m, n) in enumerate(shapes))

    b = env.pick(picks[1], fits)
    assert b is not None  # a itself fits
    if params[1] % 2 and a.tensor.shape == b.tensor.shape:
        return env.add(f"torch.stack([{{0}}, {{1}}], {dim})", (a, b), _rounds(a, b))
    return env.add(f"torch.cat([{{0}}, {{1}}], {dim})", (a, b), _rounds(a, b))


def _rounds(a: Value, b: Value) -> bool:
    """Whether joining the two may round: their types differ."""
    return a.tensor.dtype != b.tensor.dtype


@rule
def pad(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], has_dims)
    widths = ((1, 0), (0, 2), (1, 1), (-1, 1))[params[0] % 4]
    value = (0, 1)[params[1] % 2]
    text = f"torch.nn.functional.pad({{0}}, {widths}, value={value})"
    return a is not None and env.add(text, (a,))


# Reductions and rows -------------------------------------------------------------------------------

REDUCE_INEXACT = (
    "torch.sum({{0}}, {0}, keepdim={1})",
    "torch.mean({{0}}, {0}, keepdim={1})",
    "torch.var({{0}}, {0}, keepdim={1})",
    "torch.std({{0}}, {0}, correction=0, keepdim={1})",
    "torch.prod(torch.clamp({{0}}, -2, 2), {0}, keepdim={1})",
    "torch.logsumexp({{0}}, {0}, keepdim={1})",
    "torch.linalg.vector_norm({{0}}, dim={0}, keepdim={1})",
    "torch.cumsum({{0}}, {0})",
    "torch.softmax({{0}}, {0})",
    "torch.log_softmax({{0}}, {0})",
)
REDUCE_EXACT = (
    "torch.amax({{0}}, {0}, keepdim={1})",
    "torch.amin({{0}}, {0}, keepdim={1})",
)
REDUCE_DECIDING = (
    "torch.argmax({{0}}, {0}, keepdim={1})",
    "torch.argmin({{0}}, {0}, keepdim={1})",
    "torch.any({{0}}, {0}, keepdim={1})",
    "torch.all({{0}}, {0}, keepdim={1})",
    "torch.max({{0}}, {0}, keepdim={1})[1]",
    "torch.cummax({{0}}, {0})[0]",
    "torch.sort({{0}}, dim={0}, stable=True)[0]",
    "torch.count_nonzero({{0}}, {0})",
)
REDUCE_INT = ("torch.sum({{0}}, {0}, keepdim={1})", "torch.cumsum({{0}}, {0})")


def _reduce(texts: tuple[str, ...], test: Test, inexact: bool) -> Rule:
    def apply(env: Env, picks: Picks, params: Params) -> bool:
        a = env.pick(picks[0], lambda v: has_dims(v) and test(v))
        if a is None:
            return False
        text = texts[(params[0] * 8 + params[1]) % len(texts)]
        # A variance of one element and a maximum of minus infinities are nan.
        finite = None if not inexact else False
        return env.add(text.format(_dim(a, params[2]), params[2] >= 4), (a,), inexact, finite)

    return apply


RULES["reduce"] = _reduce(REDUCE_INEXACT, is_float, inexact=True)
RULES["reduce_exact"] = _reduce(REDUCE_EXACT, lambda v: True, inexact=False)
RULES["reduce_deciding"] = _reduce(REDUCE_DECIDING, is_exact, inexact=False)
RULES["reduce_int"] = _reduce(REDUCE_INT, lambda v: not v.is_float, inexact=False)


@rule
def reduce_all(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], is_float)
    texts = ("{0}.sum()", "{0}.mean()", "torch.var({0}, correction=0)", "{0}.abs().amax()")
    return a is not None and env.add(texts[params[0] % len(texts)], (a,), True, finite=False)


@rule
def normalize(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], lambda v: v.is_float and v.rank >= 1)
    if a is None:
        return False
    size = a.tensor.shape[-1]
    texts = (
        f"torch.nn.functional.layer_norm({{0}}, ({size},))",
        f"torch.nn.functional.rms_norm({{0}}, ({size},), eps=1e-5)",
        "torch.nn.functional.normalize({0}, dim=-1, eps=0.1)",
        "torch.softmax({0}, -1) * {0}",
    )
    return env.add(texts[params[0] % len(texts)], (a,), inexact=True, finite=False)


@rule
def matmul(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], lambda v: v.is_float and v.rank >= 2)
    if a is None:
        return False

    def fits(v: Value) -> bool:
        same = v.tensor.dtype == a.tensor.dtype
        return same and v.rank >= 2 and v.tensor.shape[-2] == a.tensor.shape[-1]

    b = env.pick(picks[1], fits)
    if b is None or params[0] % 2:
        return env.add("{0} @ {0}.mT", (a,), inexact=True)
    return env.add("{0} @ {1}", (a, b), inexact=True)


# Indexing ----------------------------------------------------------------------------------------


@rule
def take(env: Env, picks: Picks, params: Params) -> bool:
    """Indexing by an integer value brought into range."""
    a = env.pick(picks[0], has_dims)
    if a is None:
        return False
    dim = params[0] % a.rank
    size = a.tensor.shape[dim]
    if size == 0:
        return False
    kind = params[1] % 3
    flat = kind == 0
    i = env.pick(
        picks[1],
        lambda v: v.is_int and (v.rank == 1 if flat else v.rank == a.rank if kind == 1 else True),
    )
    if i is None:
        return False
    index = f"torch.remainder({{1}}, {size}).to(i64)"
    if flat:
        return env.add(f"torch.index_select({{0}}, {dim}, {index})", (a, i))
    if kind == 1:
        return env.add(f"torch.gather({{0}}, {dim}, {index})", (a, i))
    return env.add(f"{{0}}[{':, ' * dim}{index}]", (a, i))


@rule
def scatter(env: Env, picks: Picks, params: Params) -> bool:
    """Adds rows at integer positions, repeated positions included."""
    a = env.pick(picks[0], lambda v: v.rank >= 1 and not v.is_bool and v.tensor.shape[0] > 0)
    if a is None:
        return False
    i = env.pick(picks[1], lambda v: v.is_int and v.rank == 1)
    if i is None:
        return False
    size = a.tensor.shape[0]
    index = f"torch.remainder({{1}}, {size}).to(i64)"
    rows = (i.tensor.shape[0], *a.tensor.shape[1:])
    value = f"torch.ones({tuple(rows)}, dtype={{0}}.dtype, device=device)"
    if params[0] % 2:
        return env.add(f"torch.index_add({{0}}, 0, {index}, {value})", (a, i), inexact=True)
    return env.add(f"torch.index_fill({{0}}, 0, {index}, 2)", (a, i))


# Writing in place --------------------------------------------------------------------------------


@rule
def update_scalar(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], is_number)
    if a is None:
        return False
    forms = (
        ("{0}.add_(1)", "{0} + 1", True),
        ("{0}.mul_(2)", "{0} * 2", True),
        ("{0}.neg_()", "", False),
        ("{0}.clamp_(-1, 1)", "", False),
        ("{0}.zero_()", "", False),
        ("{0}.fill_(3)", "", False),
        ("torch.relu_({0})", "", False),
    )
    text, pure, inexact = forms[params[0] % len(forms)]
    return env.update(text, pure, (a,), inexact)


@rule
def update(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0], is_number)
    if a is None:
        return False

    def fits(v: Value) -> bool:
        shapes = zip(reversed(v.tensor.shape), reversed(a.tensor.shape), strict=False)
        return (
            v.rank <= a.rank
            and v.tensor.dtype == a.tensor.dtype
            and all(m in (n, 1) for m, n in shapes)
        )

    b = env.pick(picks[1], fits)
    forms = (
        ("{0}.add_({1})", "{0} + {1}", True),
        ("{0}.copy_({1})", "", False),
        ("{0}.mul_({1})", "{0} * {1}", True),
        ("{0}.sub_({1})", "{0} - {1}", True),
    )
    text, pure, inexact = forms[params[0] % len(forms)]
    return b is not None and env.update(text, pure, (a, b), inexact)


@rule
def assign(env: Env, picks: Picks, params: Params) -> bool:
    """``a[part] = constant``, and a masked fill in place."""
    a = env.pick(picks[0], lambda v: v.rank >= 1)
    if a is None:
        return False
    parts = ("0", "..., 0", "..., ::2", "-1:", "..., 1:", ":0")
    if params[0] % 8 == 7:
        mask = env.pick(picks[1], lambda v: v.is_bool and v.tensor.shape == a.tensor.shape)
        return mask is not None and env.update("{0}.masked_fill_({1}, 1)", "", (a, mask))
    return env.update(f"{{0}}[{parts[params[0] % len(parts)]}] = {params[1]}", "", (a,))


# New tensors -------------------------------------------------------------------------------------


@rule
def create(env: Env, picks: Picks, params: Params) -> bool:
    a = env.pick(picks[0])
    assert a is not None
    n = params[1]
    texts = (
        f"torch.arange({n}, device=device)",
        f"torch.full(({n}, 2), 1.5, device=device)",
        "torch.zeros_like({0})",
        "torch.ones_like({0}, dtype=f32)",
        f"torch.arange({n}, dtype=f32, device=device)",
        f"torch.eye({n}, device=device)",
        "{0}.new_full((2, 3), 2)",
    )
    text = texts[params[0] % len(texts)]
    return env.add(text, (a,) if "{0}" in text else (), finite=True)
