"""Why a cache lookup missed: the parts of a key that differ from those of the nearest entry.

Loads nothing but the standard library, as does the disk cache that uses it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

STRUCTURE = "operators"  # the part that says which operators read which; shapes are in others


def digest(text: str) -> str:
    """What stands for a part too long to be kept."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _is_digest(text: str) -> bool:
    return text.startswith("sha256:")


def explain_difference(new: Mapping[str, str], old: Mapping[str, str]) -> str:
    """Which parts of two keys differ, on one line: ``input 0: f32[8] ... -> f32[9] ...``.

    "" when they are equal.
    """
    changes: list[str] = []
    for name in sorted(new.keys() | old.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if before is None or after is None:
            changes.append(f"{name} {'added' if before is None else 'removed'}")
        elif _is_digest(before) or _is_digest(after) or len(before) + len(after) > 200:
            changes.append(f"{name} differ")
        else:
            changes.append(f"{name}: {before} -> {after}")
    return "; ".join(changes)


def why_missed(new: Mapping[str, str], entries: Sequence[Mapping[str, str]]) -> str:
    """What differs from the nearest of ``entries``, on one line; "" where there are none."""
    if not entries:
        return ""
    near = nearest(new, entries)
    if near is None:
        return "no entry has these operators"
    return explain_difference(new, near)


def nearest(
    new: Mapping[str, str], entries: Sequence[Mapping[str, str]]
) -> Mapping[str, str] | None:
    """The entry with the same operators and the fewest other differences; None if none has them."""
    alike = [e for e in entries if e.get(STRUCTURE) == new.get(STRUCTURE)]
    names = set(new)
    return min(
        alike,
        key=lambda e: sum(new.get(n) != e.get(n) for n in names | set(e)),
        default=None,
    )
