"""Why recorded work needed a new program: what differs from the work that ran at the same place before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lazyc.recording.barriers import Place
from lazyc.recording.join import Fragment, Spec

_ONE_SIZE = (
    "keep it at one size (a list of tensors, a tensor of the final size that is written to, padding), or"
    " leave it out of what is recorded"
)
_SAME_NUMBER = "pass the number as a 0-dim tensor (without .item(), where it was one)"


@dataclass(frozen=True, slots=True)
class Difference:
    """``changed`` at ``place``, and what would avoid it ("" where nothing general is known). ``is_of_shape``: the
    same operators, on tensors of other shapes or layouts, or on more or fewer of them."""

    place: Place | None
    changed: str
    fix: str = ""
    is_of_shape: bool = False


# What was recorded, in order: each with the user's line.
Recorded = Sequence[tuple[Fragment, "Place | None"]]


def difference(before: Recorded, now: Recorded) -> Difference:
    """The first difference of two recordings that made two programs."""
    for (old, _), (new, place) in zip(before, now, strict=False):
        if old.number == new.number:
            continue
        if old.name != new.name:
            return Difference(place, f"{new.name} in place of {old.name}")
        return _of_operator(old, new, place)
    if len(before) < len(now):
        new, place = now[len(before)]
        return Difference(place, f"{len(now) - len(before)} operators more, first {new.name}")
    if len(now) < len(before):
        old, place = before[len(now)]
        return Difference(place, f"{len(before) - len(now)} operators less, first {old.name}")
    last = now[-1][1] if now else None
    return Difference(last, "the same operators, on other values or with other results wanted")


def _of_operator(old: Fragment, new: Fragment, place: Place | None) -> Difference:
    if len(old.taken) != len(new.taken):
        counts = f"{len(old.taken)} -> {len(new.taken)}"
        return Difference(place, f"{new.name}: number of tensors, {counts}", _ONE_SIZE, True)
    for number, (a, b) in enumerate(zip(old.taken, new.taken, strict=True)):
        if a != b:
            changed, fix = _of_tensor(a, b)
            changed = f"{new.name}: tensor {number}: {changed}"
            return Difference(place, changed, fix, is_of_shape=a.dtype == b.dtype)
    return Difference(place, f"{new.name}: {old.options} -> {new.options}", _SAME_NUMBER)


def _of_tensor(a: Spec, b: Spec) -> tuple[str, str]:
    if a.dtype != b.dtype:
        return f"dtype, {a.dtype} -> {b.dtype}", "cast it to one dtype"
    if len(a.shape) != len(b.shape):
        return f"number of dims, {len(a.shape)} -> {len(b.shape)}", ""
    for dim, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)):
        if m != n:
            return f"size of dim {dim}, {m} -> {n}", _ONE_SIZE
    return f"strides, {list(a.strides)} -> {list(b.strides)}", "make it contiguous"
