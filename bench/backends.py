"""The ways of running a model that are compared, by the name used on the command line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

DEFAULT = ("eager", "inductor", "lazyc")


def _plain(model: Any) -> Any:
    return model


def compiler(name: str) -> Callable[[Any], Any]:
    """What turns a model or function into its compiled form.

    ``eager`` is plain torch without Dynamo, ``dynamo`` is ``torch.compile(backend="eager")``,
    ``inductor-freezing`` is Inductor with constant weights (inference only). Any other name is a
    ``torch.compile`` backend.
    """
    if name == "eager":
        return _plain
    if name == "dynamo":
        return functools.partial(torch.compile, backend="eager")
    if name == "inductor-freezing":
        return functools.partial(torch.compile, backend="inductor", options={"freezing": True})
    return functools.partial(torch.compile, backend=name)
