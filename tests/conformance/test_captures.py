"""The plain capture of inference graphs gives AOTAutograd's Graph for each operator of PyTorch's database."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

from tests.frontend.captures import Captures, captures

PARTS = 8
# Most graphs are plain: operators that compute. The rest are views, writes and lookups of data.
LEAST_PLAIN = 0.75


@pytest.mark.full
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=["float32", "int64"])
def test_both_captures_agree(dtype: torch.dtype, part: int) -> None:
    plain, all_of_them = 0, 0
    for op in op_db[part::PARTS]:
        if dtype not in op.supported_dtypes("cpu"):
            continue
        for sample in islice(op.sample_inputs("cpu", dtype, requires_grad=False), 1):
            for found in _captures(op, sample):
                all_of_them += 1
                if found.plain is not None:
                    plain += 1
                    assert found.plain == found.autograd, op.name
    assert plain >= LEAST_PLAIN * all_of_them > 0


def _captures(op: Any, sample: Any) -> list[Captures]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return op.op(*args, **kwargs)

    inputs = (sample.input, *sample.args)
    with torch.no_grad():
        try:
            call(*inputs, **sample.kwargs)
        except Exception:  # needs a GPU, or a library that is not here
            return []
        try:
            return captures(call, *inputs, **sample.kwargs)
        except (RuntimeError, TypeError, AttributeError):
            return []  # nothing that torch.compile takes
