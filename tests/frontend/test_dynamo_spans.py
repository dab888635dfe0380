"""What Dynamo generates around a graph of lazyc's makes no spans for profilers; that of other backends does."""

from __future__ import annotations

from types import CodeType

import pytest
import torch
from torch._dynamo import config
from torch._dynamo.callback import callback_handler
from torch._dynamo.convert_frame import register_bytecode_hook

from lazyc.frontend.dynamo_spans import leave_out_spans


def spans(backend: str, **options: object) -> int:
    """How many of the functions that Dynamo makes for a function of two graphs begin such a span."""
    made: list[CodeType] = []
    hook = register_bytecode_hook(lambda _, new: made.append(new))
    try:

        def f(x: torch.Tensor) -> torch.Tensor:
            y = x + 1
            print(end="")
            return y * 2

        compiled = torch.compile(f, backend=backend, options=options or None)
        torch.testing.assert_close(compiled(torch.ones(3)), torch.full((3,), 4.0))
    finally:
        hook.remove()
    assert len(made) == 2
    return sum("record_pregraph_bytecode_enter" in code.co_names for code in made)


@pytest.mark.parametrize("lazy", [False, True])
def test_lazyc_has_none_and_the_flag_is_as_before(lazy: bool) -> None:
    before = list(callback_handler.end_callbacks)
    assert spans("lazyc", lazy=lazy) == 0
    assert config.record_runtime_overhead
    assert callback_handler.end_callbacks == before
    assert spans("eager") == 2


def test_the_flag_is_put_back_after_an_exception() -> None:
    def backend(gm: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        leave_out_spans()
        assert not config.record_runtime_overhead
        raise RuntimeError("of a backend")

    with pytest.raises(RuntimeError, match="of a backend"):
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(3))
    assert config.record_runtime_overhead


def test_outside_of_dynamo_nothing_changes() -> None:
    leave_out_spans()
    assert config.record_runtime_overhead
