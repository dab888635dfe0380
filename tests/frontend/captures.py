"""Both captures of a function's graph: the plain run, and AOTAutograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._functorch.aot_autograd import aot_module_simplified
from torch.utils._python_dispatch import _disable_current_modes

from lazyc.frontend.capture_key import capture_key
from lazyc.frontend.decompositions import decomposition_table
from lazyc.frontend.fx_import import Unsupported, import_graph
from lazyc.frontend.inference_capture import capture_inference, lasting_inputs
from lazyc.frontend.storage import read_storage_from_bases
from lazyc.ir.printer import print_graph


@dataclass(frozen=True)
class Captures:
    """Texts of the Graphs; ``plain`` is None where AOTAutograd is needed."""

    plain: str | None
    autograd: str


def captures(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Captures]:
    """Those of each graph of ``fn(*args, **kwargs)`` that has a capture key."""
    found: list[Captures] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        if capture_key(gm, example_inputs) is None:
            return gm.forward
        plain = capture_inference(gm, example_inputs)
        lasting = lasting_inputs(gm)
        made: list[torch.fx.GraphModule] = []

        def compiler(traced: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
            made.append(traced)
            return traced.forward

        run = aot_module_simplified(
            gm, example_inputs,
            fw_compiler=compiler, bw_compiler=compiler, inference_compiler=compiler,
            decompositions=decomposition_table(), keep_inference_input_mutations=True,
        )  # fmt: skip
        with _disable_current_modes():
            text = None if plain is None else _text(plain, lasting)
            found.append(Captures(text, _text(made[0], lasting) if text is not None else ""))
        return run

    torch._dynamo.reset()
    torch.compile(fn, backend=backend, dynamic=False)(*args, **kwargs)
    return found


def _text(gm: torch.fx.GraphModule, lasting: frozenset[int]) -> str:
    try:
        return print_graph(import_graph(read_storage_from_bases(gm), lasting))
    except Unsupported as reason:
        return f"unsupported: {reason}"
