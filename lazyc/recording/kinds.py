"""What is known of a tensor without its value: its layout, and how it is a view of other memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lazyc.recording.join import Spec


@dataclass(frozen=True, slots=True)
class View:
    """A call of a view operator, and which of its results (None where it has one)."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    result: int | None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        made = self.func(tensor, *self.args, **dict(self.kwargs))
        return made if self.result is None else made[self.result]


class Kind:
    """A tensor that is ``views``, one after another, of memory laid out as ``base``; its own layout is
    ``spec``, from element ``offset`` on. There is one Kind for all tensors alike: compare with ``is``. Make them with ``kind_of``
    and ``view_kinds``."""

    __slots__ = ("_made", "base", "has_dims", "made_token", "offset", "spec", "views")

    def __init__(self, base: Spec, views: tuple[View, ...], spec: Spec, offset: int) -> None:
        self.base = base
        self.views = views
        self.spec = spec
        self.has_dims = len(spec.shape) > 0
        self.offset = offset
        self._made: dict[Any, Kind | list[Kind]] = {}
        self.made_token: torch.Tensor | None = None

    @property
    def token(self) -> torch.Tensor:
        """A tensor with this layout. One for all values: nobody looks at its memory, which it has none of."""
        if self.made_token is None:
            spec = self.spec
            token = torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device="cpu")
            token.untyped_storage().resize_(0)
            self.made_token = token
        return self.made_token

    def of(self, memory: torch.Tensor) -> torch.Tensor:
        """This view of a tensor laid out as ``base``."""
        for view in self.views:
            memory = view.of(memory)
        return memory


_WHOLE: dict[Spec, Kind] = {}


def kind_of(spec: Spec) -> Kind:
    """A tensor with memory of its own."""
    found = _WHOLE.get(spec)
    if found is None:
        found = _WHOLE[spec] = Kind(spec, (), spec, 0)
    return found


def view_kinds(
    kind: Kind, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Kind | list[Kind]:
    """What ``func(tensor, *args, **kwargs)`` gives, a view or several, for a tensor of ``kind``."""
    # True is no 1: types are part of the key.
    key = func, _typed(args), _typed(tuple(kwargs.items()))
    found = kind._made.get(key)
    if found is None:
        found = kind._made[key] = _derive(kind, func, args, kwargs)
    return found


def _typed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_typed, value))
    return value if isinstance(value, str) else (type(value), value)


def _derive(
    kind: Kind, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Kind | list[Kind]:
    base = kind.base
    token = torch.empty_strided(base.shape, base.strides, dtype=base.dtype, device="meta")
    made = func(kind.of(token), *args, **kwargs)
    given = _frozen(args), tuple((k, _frozen(v)) for k, v in kwargs.items())

    def derived(tensor: torch.Tensor, result: int | None) -> Kind:
        spec = Spec(tuple(tensor.shape), tensor.stride(), tensor.dtype)
        views = (*kind.views, View(func, *given, result))
        return Kind(base, views, spec, int(tensor.storage_offset()))

    if isinstance(made, torch.Tensor):
        return derived(made, None)
    return [derived(tensor, k) for k, tensor in enumerate(made)]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
