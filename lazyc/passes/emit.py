"""Writes the Program of fused units: buffers for what must be in memory, then one step after another."""

from __future__ import annotations

from typing import Any

from lazyc.ir import attrs as A
from lazyc.ir import program as P
from lazyc.ir.decisions import Decision, size_of
from lazyc.ir.graph import Node, Output
from lazyc.ir.loops import LoopNest
from lazyc.ir.nest_text import nest_key
from lazyc.ir.ops import Trait
from lazyc.ir.types import OpaqueType, Shape, TensorType, free_symbols, numel
from lazyc.passes.contraction import MatrixView, as_matrix, is_library_product
from lazyc.passes.fusion import Unit, UnitGraph
from lazyc.passes.lasting import Lasting
from lazyc.passes.lower_kernel import (
    MAX_SCRATCH,
    MAX_SCRATCH_VECTOR,
    LoweredKernel,
    crossing_values,
    lower_kernel,
    scratch_size,
)
from lazyc.passes.plan import Plan
from lazyc.passes.regions import Kernel, Target, kernel_of, make_root
from lazyc.passes.scatter import lower_scatter
from lazyc.passes.strided import StridedView


def emit_program(plan: Plan, units: UnitGraph) -> P.Program:
    """The Program that runs the units in order."""
    return _Emitter(plan, units).program()


class _Emitter:
    def __init__(self, plan: Plan, units: UnitGraph) -> None:
        self.plan = plan
        self.units = units.units
        self.order = units.order()
        self.lasting = Lasting(plan.graph, plan.keeps)
        self.buffers: list[P.Buffer] = []
        self.memory: dict[Node, P.Buffer] = {}
        self.targets: dict[Target, P.Buffer] = {}
        self.nests: dict[str, LoopNest] = {}
        self.handed_out = {
            place if isinstance(place, Target) else place.base for place in plan.results.values()
        }
        # What every call reads; other lasting values are steps on the way there.
        self.kept = {node for unit in self.order if not unit.is_static for node in unit.reads}

    def program(self) -> P.Program:
        graph = self.plan.graph
        inputs = self._inputs()
        for node in self.plan.nodes:
            if node.op == "tensor_constant":
                source = node.attrs.index
                self._add(node, "constant", source=source)
        for unit in self.order:
            self._allocate(unit)
        steps: list[P.Step] = []
        packed: list[P.Step] = []
        for unit in self.order:
            (packed if unit.is_static else steps).extend(self._steps(unit))
        outputs = tuple(self._output(k, o) for k, o in enumerate(graph.outputs))
        return P.Program(
            inputs=inputs,
            buffers=tuple(self.buffers),
            steps=tuple(steps),
            outputs=outputs,
            nests=self.nests,
            constants=list(graph.constants),
            symbols=tuple(graph.symbols),
            packed=tuple(packed),
            parameters=self._parameters(steps),
            decisions=tuple(graph.decisions),
        )

    # --- buffers ----------------------------------------------------------------------------------

    def _add(self, node: Node, kind: Any, source: int = -1) -> P.Buffer:
        if isinstance(node.type, TensorType) and node in self.plan.strides:
            buffer = self._new(kind, node.type, self.plan.strides[node], source)
        else:
            buffer = P.Buffer(len(self.buffers), kind, None, (), (), source)
            self.buffers.append(buffer)
        self.memory[node] = buffer
        return buffer

    def _new(self, kind: Any, type: TensorType, strides: Shape, source: int = -1) -> P.Buffer:
        buffer = P.Buffer(
            len(self.buffers), kind, type.dtype, type.shape, strides, source, type.device
        )
        self.buffers.append(buffer)
        return buffer

    def _unused(self) -> int:
        """A buffer for a result that nothing reads."""
        self.buffers.append(P.Buffer(len(self.buffers), "opaque", None, (), ()))
        return len(self.buffers) - 1

    def _inputs(self) -> tuple[int, ...]:
        found: dict[int, int] = {}
        for node in self.plan.graph.inputs:
            index = node.attrs.index
            found[index] = self._add(node, "input", source=index).id
        return tuple(found.get(k, -1) for k in range(max(found, default=-1) + 1))

    def _allocate(self, unit: Unit) -> None:
        if unit.kernel is None:
            for node in unit.nodes:
                self._add(node, self._library_kind(node, unit.is_static))
            return
        needed = self._needed(unit)
        for root in unit.kernel.roots:
            if root.into is None:
                if root.node in needed:
                    handed_out = root.node in self.handed_out
                    lasting = "packed" if unit.is_static and root.node in self.kept else "temp"
                    self._add(root.node, "output" if handed_out else lasting)
            elif root.into.node is not None:
                self.targets[root.into] = self.memory[root.into.node]
            else:
                kind = "output" if root.into in self.handed_out else self._copy_kind(unit)
                self.targets[root.into] = self._new(kind, root.node.tensor, root.into.strides)
        for node in unit.kernel.statistics:
            lasting = "packed" if unit.is_static and node in self.kept else "temp"
            self._add(node, "output" if node in self.handed_out else lasting)

    def _copy_kind(self, unit: Unit) -> str:
        """Of a copy of an argument in the layout of the call that reads it."""
        is_kept = unit.is_static and any(not self.units[s].is_static for s in unit.succs)
        return "packed" if is_kept else "temp"

    def _library_kind(self, node: Node, is_static: bool) -> str:
        if is_static:
            return "packed"
        if isinstance(node.type, OpaqueType):
            return "opaque"
        if node.op in ("eager", "project", "convolution"):
            return "eager"
        return "output" if node in self.handed_out else "temp"

    def _needed(self, unit: Unit) -> set[Node]:
        """The unit's values that something outside of it reads, or that do not fit scratch."""
        assert unit.kernel is not None
        found = {r.node for r in unit.kernel.roots if r.into is None and r.node in self.handed_out}
        own = {r.node for r in unit.kernel.roots if r.into is None}
        for other in self.order:
            if other is not unit:
                found |= own & other.reads
        total = 0
        for node in sorted(crossing_values(unit.kernel) - found, key=lambda n: n.id):
            size = scratch_size(unit.kernel, node)
            if not isinstance(size, int) or total + size > MAX_SCRATCH:
                found.add(node)
            else:
                total += size
        return found

    # --- steps ------------------------------------------------------------------------------------

    def _steps(self, unit: Unit) -> list[P.Step]:
        if unit.kernel is not None:
            return self._kernel_steps(unit.kernel)
        node = unit.nodes[0]
        if node.op == "seed":
            return [P.SeedStep(self.memory[node].id)]
        if is_library_product(node):
            return [self._gemm(node)]
        if node.spec.has(Trait.SCATTER):
            return self._scatter_steps(node)
        return [self._eager(node, unit.nodes[1:])]

    def _kernel_steps(self, kernel: Kernel) -> list[P.Step]:
        if kernel.numel == 0:
            return []
        comment = self._comment([r.node for r in kernel.roots])
        lowered = lower_kernel(kernel, self.plan.realized, self.memory, self.targets, comment)
        if lowered.nest.vectorize == "outer" and _scratch_elements(lowered) > MAX_SCRATCH_VECTOR:
            for node in crossing_values(kernel):
                if node not in self.memory:
                    self._add(node, "temp")
            lowered = lower_kernel(kernel, self.plan.realized, self.memory, self.targets, comment)
        return [self._step(lowered)]

    def _step(self, lowered: LoweredKernel) -> P.KernelStep:
        key = nest_key(lowered.nest)
        self.nests.setdefault(key, lowered.nest)
        return P.KernelStep(key, lowered.buffers, lowered.sizes, lowered.nest.comment)

    def _scatter_steps(self, node: Node) -> list[P.Step]:
        buffer = self.memory[node]
        target = Target(None, buffer.strides)
        self.targets[target] = buffer
        copy = kernel_of(make_root(node.inputs[0], self.plan.realized, target))
        steps = self._kernel_steps(copy)
        if numel(node.inputs[1].shape) != 0 and numel(node.shape) != 0:
            comment = self._comment([node])
            steps.append(self._step(lower_scatter(node, self.plan.realized, self.memory, comment)))
        return steps

    def _gemm(self, node: Node) -> P.GemmStep:
        *batch, m, k = node.inputs[0].shape
        first, second = self.plan.factors[node]
        out = as_matrix(StridedView(node, node.shape, self.plan.strides[node], 0))
        assert out is not None, node
        a, b, c = (self._operand(x) for x in (first, second, out))
        pack = not batch and self._is_kept(second.base)
        if pack:
            self._note_pack(node)
        return P.GemmStep(
            node.inputs[0].dtype, tuple(batch), m, node.shape[-1], k, a, b, c,
            pack_b=pack, comment=self._comment([node]), is_wide=node.op == "wide_matmul",
        )  # fmt: skip

    def _note_pack(self, product: Node) -> None:
        weight = product.inputs[1]
        origin = self.plan.graph.provenance.get(product)
        self.plan.graph.decisions.append(
            Decision(
                f"weight {weight.type} packed once",
                "BLAS reads it in its own tiles, and it is the same at each call",
                origin.line if origin is not None else "",
                bytes_kept=size_of(weight.tensor),
                by="pack_weights",
            )
        )

    def _is_kept(self, node: Node) -> bool:
        """Whether a value is there from call to call."""
        return self.lasting.is_leaf(node) or self.memory[node].kind == "packed"

    def _operand(self, x: MatrixView) -> P.Operand:
        buffer = self.memory[x.base].id
        return P.Operand(buffer, x.offset, x.row_stride, x.col_stride, x.batch_strides)

    def _eager(self, node: Node, projections: list[Node]) -> P.EagerStep:
        refs = [self._argument(node, k) for k in range(len(node.inputs))]
        comment = self._comment([node])
        if node.op == "convolution":
            a = node.attrs
            bias = refs[2] if len(refs) > 2 else None
            args = (
                refs[0], refs[1], bias, a.stride, a.padding, a.dilation, a.transposed,
                a.output_padding, a.groups,
            )  # fmt: skip
            return P.EagerStep(
                "aten.convolution.default", args, (), (self.memory[node].id,), False, False,
                "library call", comment,
            )  # fmt: skip
        attrs = node.attrs
        assert isinstance(attrs, A.EagerAttrs)
        outputs = (self.memory[node].id,)
        if attrs.is_tuple:
            by_index = {p.attrs.index: self.memory[p].id for p in projections}
            outputs = tuple(
                by_index[k] if k in by_index else self._unused() for k in range(len(attrs.outputs))
            )
        args = _fill(attrs.args, refs)
        kwargs = tuple((k, _fill(v, refs)) for k, v in attrs.kwargs)
        return P.EagerStep(
            attrs.target, args, kwargs, outputs, attrs.is_tuple, not attrs.is_library, attrs.reason,
            comment,
        )  # fmt: skip

    def _argument(self, node: Node, k: int) -> P.BufferRef:
        place = self.plan.arguments.get((node, k))
        if place is None:
            return P.BufferRef(self.memory[node.inputs[k]].id)
        if isinstance(place, Target):
            return P.BufferRef(self.targets[place].id)
        buffer = self.memory[place.base]
        if (place.shape, place.strides, place.offset) == (buffer.shape, buffer.strides, 0):
            return P.BufferRef(buffer.id)
        return P.BufferRef(buffer.id, place.shape, place.strides, place.offset)

    # --- results ----------------------------------------------------------------------------------

    def _output(self, number: int, output: Output) -> P.ProgramOutput:
        value = output.value
        if not isinstance(value, Node):
            return P.ProgramOutput(-1, value=value)
        if output.alias_of is not None:
            source = next(n for n in self.plan.graph.inputs if n.attrs.index == output.alias_of)
            assert output.strides is not None
            return P.ProgramOutput(
                self.memory[source].id, value.shape, output.strides, output.offset
            )
        place = self.plan.results.get(number)
        if place is None:
            return P.ProgramOutput(self.memory[value].id)
        buffer = self.targets[place] if isinstance(place, Target) else self.memory[place.base]
        if output.memory is not None:
            return P.ProgramOutput(buffer.id, output.view_shape, output.view_strides, output.offset)
        if isinstance(place, Target):
            return P.ProgramOutput(buffer.id, buffer.shape, buffer.strides)
        return P.ProgramOutput(buffer.id, place.shape, place.strides)

    def _parameters(self, steps: list[P.Step]) -> tuple[int, ...]:
        """The inputs that kept buffers and packed products are made from."""
        found: dict[int, None] = {}
        for unit in self.order:
            if unit.is_static:
                for node in sorted(unit.reads, key=lambda n: n.id):
                    if node.op == "input":
                        found[node.attrs.index] = None
        for step in steps:
            if isinstance(step, P.GemmStep) and step.pack_b:
                source = self.buffers[step.b.buffer]
                if source.kind == "input":
                    found[source.source] = None
        return tuple(found)

    def _comment(self, nodes: list[Node]) -> str:
        found: dict[str, None] = {}
        for node in nodes:
            origin = self.plan.graph.provenance.get(node)
            if origin is not None:
                found[f"{origin.op} {origin.line}".strip()] = None
        return ", ".join(found)


def _fill(template: Any, refs: list[P.BufferRef]) -> Any:
    if isinstance(template, A.ArgRef):
        return refs[template.index]
    if isinstance(template, tuple):
        return tuple(_fill(t, refs) for t in template)
    return template


def _scratch_elements(lowered: LoweredKernel) -> int:
    sizes = [b.numel for b in lowered.nest.buffers if b.role == "scratch"]
    assert not free_symbols(sizes)
    return sum(s for s in sizes if isinstance(s, int))
