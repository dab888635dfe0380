"""Compares the plain capture of inference graphs with AOTAutograd's, for each operator of PyTorch's database.

``python -m tests.conformance.captures_runner float32``. A process of its own: importing the database makes
torch refuse changes of its global flags. Prints what differs, and the numbers of graphs at the end.
"""

from __future__ import annotations

import argparse
import warnings
from itertools import islice
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db

from tests.frontend.captures import Captures, captures


def compare(dtype: torch.dtype) -> tuple[int, int, list[str]]:
    """Graphs that were captured plainly, all graphs, and the operators whose captures differ."""
    plain, count, wrong = 0, 0, []
    for op in op_db:
        if dtype not in op.supported_dtypes("cpu"):
            continue
        for sample in islice(op.sample_inputs("cpu", dtype, requires_grad=False), 1):
            for found in _captures(op, sample):
                count += 1
                plain += found.plain is not None
                if found.plain not in (None, found.autograd):
                    wrong.append(op.formatted_name)
                    print(f"{op.formatted_name}:\n{found.plain}\nAOTAutograd:\n{found.autograd}\n")
    return plain, count, wrong


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dtype")
    warnings.simplefilter("ignore")
    plain, count, wrong = compare(getattr(torch, parser.parse_args().dtype))
    print(f"captures: {plain} of {count} graphs plainly, {len(wrong)} differ")


if __name__ == "__main__":
    main()
