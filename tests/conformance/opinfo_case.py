"""One sample of an OpInfo: copies of its inputs, and running a function on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo as dynamo
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from tests.conformance.opinfo_judge import dense

SEED = 1234


def clone(x: Any, dtype: torch.dtype | None = None) -> Any:
    """A tensor with memory of its own and the same strides, floats cast to ``dtype``; else ``x``."""
    if not isinstance(x, torch.Tensor):
        return x
    y = x.detach()
    if _is_part(y):
        y = _with_storage(y, dtype if dtype is not None and y.is_floating_point() else y.dtype)
    elif dtype is not None and y.is_floating_point():
        y = y.to(dtype)
    elif y.layout is torch.strided and not (y.is_conj() or y.is_neg()) and y.numel():
        y = dynamo.utils.clone_input(y).detach()
    else:
        y = y.clone()
    return y.requires_grad_(x.requires_grad)


def _is_part(x: torch.Tensor) -> bool:
    """Whether there is more in the storage than ``x`` shows."""
    if x.layout is not torch.strided or x.is_conj() or x.is_neg() or x.is_quantized:
        return False
    return 0 < x.numel() * x.element_size() < x.untyped_storage().nbytes()


def _with_storage(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` in a copy of its whole storage, which as_strided may look at."""
    memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).clone().to(dtype)
    return memory.as_strided(x.shape, x.stride(), x.storage_offset())


def tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


@dataclass(frozen=True)
class Case:
    """One sample: flattened inputs, and what turns the output into what gradients flow from."""

    flat: list[Any]
    spec: TreeSpec
    differentiable: Callable[[Any], Any]

    @staticmethod
    def of(sample: Any) -> Case:
        flat, spec = tree_flatten(((sample.input, *sample.args), sample.kwargs))
        return Case(flat, spec, sample.output_process_fn_grad or (lambda out: out))

    def neighbour(self, seed: int) -> Case:
        """The same with float inputs that are one rounding error larger or smaller, or equal."""
        generator = torch.Generator().manual_seed(seed)

        def moved(x: Any) -> Any:
            y = clone(x)
            if not isinstance(x, torch.Tensor) or not x.is_floating_point():
                return y
            if x.layout is not torch.strided:
                return y
            step = torch.randint(-1, 2, x.shape, generator=generator) * torch.finfo(x.dtype).eps
            y = y.detach()
            y.copy_(y.double() * (1 + step))
            return y.requires_grad_(x.requires_grad)

        return Case([moved(x) for x in self.flat], self.spec, self.differentiable)

    def inputs(self, dtype: torch.dtype | None = None) -> list[Any]:
        return [clone(x, dtype) for x in self.flat]

    def call(self, function: Callable[..., Any], flat: list[Any], seed: int = SEED) -> Any:
        args, kwargs = tree_unflatten(flat, self.spec)
        torch.manual_seed(seed)
        return function(*args, **kwargs)

    def run(
        self, function: Callable[..., Any], flat: list[Any], backward: bool
    ) -> tuple[Any, Any, list[Any]]:
        """Output, gradients of the inputs (None where there are none), and the inputs afterwards."""
        out = self.call(function, flat)
        sources = [o for o in tensors(self.differentiable(out)) if o.requires_grad]
        wanted = [x for x in flat if isinstance(x, torch.Tensor) and x.requires_grad]
        if not (backward and sources and wanted):
            return out, None, flat
        torch.manual_seed(SEED)
        seeds = [_cotangent(o) for o in sources]
        return out, torch.autograd.grad(sources, wanted, seeds, allow_unused=True), flat

    def is_random(self, function: Callable[..., Any], eager: Any) -> bool:
        """Whether another seed gives other values."""
        again = tensors(self.call(function, self.inputs(), seed=99))
        return any(
            not torch.equal(dense(p).nan_to_num(), dense(q).nan_to_num())
            for p, q in zip(tensors(eager), again, strict=False)
            if p.shape == q.shape
        )


def _cotangent(out: torch.Tensor) -> torch.Tensor:
    exact = torch.complex128 if out.is_complex() else torch.float64
    with _disable_current_modes():  # a front counts what the sample does, not this
        like = out.detach()
        if out.layout is torch.strided:  # as ``out``, without reading it
            like = torch.empty_strided(out.shape, out.stride(), dtype=exact)
        return torch.rand_like(like, dtype=exact).to(out.dtype)
