"""What a Plan decided about memory layout, as Decisions: for reports.

Savings are those over a copy: of the bytes that it would read and write.
"""

from __future__ import annotations

from collections.abc import Iterator

from lazyc.ir.decisions import Decision, size_of
from lazyc.ir.graph import Node
from lazyc.ir.types import Shape, TensorType
from lazyc.passes.contraction import is_copy
from lazyc.passes.lasting import Lasting
from lazyc.passes.plan import Plan


def layout_decisions(plan: Plan) -> Iterator[Decision]:
    """Values stored in another order than row-major, permutations that move nothing, operands that got
    memory of their own, copies to other strides, and work on weights that is kept."""
    lasting = Lasting(plan.graph, plan.keeps)
    for node in plan.nodes:
        if not isinstance(node.type, TensorType) or 0 in node.shape:
            continue
        if node in plan.reasons:
            what = f"{node.type} stored with strides {_dims(plan.strides[node])}"
            yield Decision(what, plan.reasons[node], _line(plan, node))
        if node in plan.copied_operands and node not in plan.kept and not is_copy(node):
            made = size_of(node.tensor)
            what = f"operand {node.type} of a product gets memory of its own"
            copied, kept = (0, made) if lasting(node) else (made, 0)
            yield Decision(what, "BLAS cannot read its view", _line(plan, node), copied, kept)
        if node in plan.kept:
            what = f"{node.type} is made of weights once and kept"
            yield Decision(
                what, "it is the same at each call", _line(plan, node), 0, size_of(node.tensor)
            )
        elif node.op == "permute" and node not in plan.realized and moved_dims(node):
            what = f"permute{_dims(node.attrs.dims)} of {node.inputs[0].type} moves nothing"
            saved = None if (size := size_of(node.tensor)) is None else 2 * size
            why = "its readers index through it"
            yield Decision(what, why, _line(plan, node), bytes_saved=0 if lasting(node) else saved)
    for node, strides, claim in plan.copies:
        why = "an eager call takes it so"
        if claim is not None:
            why = "the caller takes it so, in memory that nothing else shares"
        what = f"{node.type} copied to strides {_dims(strides)}"
        yield Decision(what, why, _line(plan, node), size_of(node.tensor))


def moved_dims(permute: Node) -> bool:
    """Whether a permutation moves anything but dims of size 1."""
    shape = permute.inputs[0].shape
    dims = [d for d in permute.attrs.dims if shape[d] != 1]
    return dims != sorted(dims)


def _dims(dims: Shape) -> str:
    return f"({', '.join(map(str, dims))})"


def _line(plan: Plan, node: Node) -> str:
    origin = plan.graph.provenance.get(node)
    return origin.line if origin is not None else ""
