"""Imports an ATen FX graph (as AOTAutograd makes it) into the Graph IR.

Each call is written by its lowering; one that has none, or whose lowering refuses, or that touches a
value without code (complex, sparse, ...) becomes an ``eager`` node with the reason. Writes to inputs
(``aten.copy_`` into a placeholder) become ``Graph.mutations``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import sympy
import torch
from torch._higher_order_ops.effects import with_effects
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.node import map_arg
from torch.multiprocessing.reductions import StorageWeakRef

from lazyc.config import AttentionKernel
from lazyc.frontend.builder import Builder, Layout
from lazyc.frontend.eager_calls import EagerCall, make_eager, operator_name
from lazyc.frontend.fx_types import (
    Unsupported,
    dims,
    opaque_reason,
    sym_value,
    user_line,
    value_strides,
    value_type,
)
from lazyc.frontend.lowering import NotLowered, lowering_table
from lazyc.frontend.partition import SEEDS
from lazyc.frontend.results import describe_call, is_symbolic, matched_result, result_types
from lazyc.frontend.storage import reads_storage
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node, Output, Provenance
from lazyc.ir.ops import IRError
from lazyc.ir.sparse import Sparsity
from lazyc.ir.types import (
    Dim,
    OpaqueType,
    SymbolSource,
    TensorType,
    dtype_from_torch,
    free_symbols,
    is_nonneg,
    storage_extent,
)

__all__ = ["Unsupported", "import_graph"]

# Checks that Dynamo's guards and the trace itself have made already.
_IGNORED = frozenset(
    {
        "aten._assert_tensor_metadata.default",
        "aten._assert_scalar.default",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
    }
)


def import_graph(
    gm: torch.fx.GraphModule,
    parameters: frozenset[int] = frozenset(),
    sparsity: Mapping[int, Sparsity] | None = None,
    has_products: bool = False,
    attention: AttentionKernel = "auto",
) -> Graph:
    """The Graph of ``gm``; ``parameters`` are the placeholders that are weights, and ``sparsity`` what
    some placeholders are declared to be (see InputAttrs). ``has_products``: kernels of the target hold
    matrix products, so that no library is wanted for one. ``attention``: how torch's is to be computed.

    Raises Unsupported for what has no Graph (sizes that depend on data, control flow), and IRError
    when a lowering gives another type than the trace did, which is a bug.
    """
    return _Importer(gm, parameters, sparsity or {}, has_products, attention).run()


class _Importer:
    def __init__(
        self,
        gm: torch.fx.GraphModule,
        parameters: frozenset[int],
        sparsity: Mapping[int, Sparsity],
        has_products: bool,
        attention: AttentionKernel,
    ) -> None:
        self.gm = gm
        self.parameters = parameters
        self.sparsity = sparsity
        self.graph = Graph()
        self.builder = Builder(self.graph, has_products, attention)
        self.table = lowering_table()
        self.env: dict[torch.fx.Node, Any] = {}
        self.inputs: list[tuple[torch.fx.Node, Node]] = []
        self.written: dict[torch.fx.Node, torch.fx.Node] = {}  # placeholder -> its copy_
        self.serial = 0

    def run(self) -> Graph:
        for node in self.gm.graph.nodes:
            if node.op == "placeholder":
                self.env[node] = self._placeholder(node)
            elif node.op == "get_attr":
                self.env[node] = self._constant(node)
            elif node.op == "call_function":
                self.env[node] = self._call(node)
            elif node.op == "output":
                self._outputs(node)
            else:
                raise Unsupported(f"FX node {node.op} {node.target}")
        self._check_symbols()
        return self.graph

    # --- leaves -----------------------------------------------------------------------------------

    def _placeholder(self, node: torch.fx.Node) -> Any:
        if "val" not in node.meta:
            raise Unsupported(f"input {node.name} has no example value")
        val, index = node.meta["val"], len(self.inputs)
        if any(user.target is with_effects and user.args[0] is node for user in node.users):
            return self._token(node)
        kind = value_type(val)
        attrs = A.InputAttrs(
            index,
            node.name,
            kind,
            value_strides(val),
            index in self.parameters,
            kind.dtype.itemsize if isinstance(kind, TensorType) else 1,
            self.sparsity.get(index),
        )
        made = self.graph.add("input", (), attrs)
        self.inputs.append((node, made))
        if isinstance(val, torch.Tensor):
            return made
        value = sym_value(val)
        if isinstance(value, sympy.Symbol):
            if not value.is_integer:
                raise Unsupported(f"argument {node.name} is a float that changes")
            self._bind(SymbolSource(value, index))
        if value is None or isinstance(value, bool | int | float | sympy.Expr):
            return value
        return made

    def _token(self, node: torch.fx.Node) -> None:
        """An argument that only orders effects: None when the program runs, and nothing here."""
        attrs = A.InputAttrs(len(self.inputs), node.name, OpaqueType("token"), None)
        self.inputs.append((node, self.graph.add("input", (), attrs)))

    def _bind(self, source: SymbolSource) -> None:
        if all(s.symbol != source.symbol for s in self.graph.symbols):
            self.graph.symbols.append(source)

    def _constant(self, node: torch.fx.Node) -> Any:
        value: Any = self.gm
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, torch.Tensor):
            raise Unsupported(f"attribute {node.target} of type {type(value).__name__}")
        dtype = dtype_from_torch(value.dtype)
        with unset_fake_temporarily():
            value = value.detach()
            if value.dim() == 0 and dtype is not None and opaque_reason(value) is None:
                return self.builder.constant(value.item(), dtype, device=str(value.device))
        self.graph.constants.append(value)
        attrs = A.TensorConstantAttrs(
            len(self.graph.constants) - 1, value_type(value), value_strides(value)
        )
        return self.graph.add("tensor_constant", (), attrs)

    # --- calls ------------------------------------------------------------------------------------

    def _call(self, node: torch.fx.Node) -> Any:
        target = node.target
        if target is operator.getitem:
            return self._getitem(node)
        if not isinstance(target, torch._ops.OperatorBase):
            return self._symbolic(node)
        name = operator_name(target)
        if target is with_effects:
            return self._effectful(node)
        if name in _IGNORED:
            return None
        if name == "aten.copy_.default" and self._is_input_write(node):
            return self._write(node)
        val = node.meta.get("val")
        if isinstance(val, torch.SymInt | torch.SymFloat | int | float | bool):
            return sym_value(val)
        self.builder.provenance = Provenance(name, user_line(node.meta.get("stack_trace")))
        return self._lower(node, name)

    def _symbolic(self, node: torch.fx.Node) -> Any:
        """A Python function of sizes: its value is the one that the trace found."""
        val = node.meta.get("val")
        if isinstance(val, torch.SymInt | torch.SymFloat | int | float | bool):
            return sym_value(val)
        if not node.users:
            return None
        raise Unsupported(f"call of {node.target}")

    def _getitem(self, node: torch.fx.Node) -> Any:
        source, index = self.env[node.args[0]], node.args[1]  # type: ignore[index]
        if isinstance(source, tuple):
            return source[index]  # type: ignore[index]
        assert isinstance(source.attrs, A.EagerAttrs) and isinstance(index, int), node
        made = self._project(source, index)
        val = node.meta.get("val")
        return made if isinstance(val, torch.Tensor) or val is None else sym_value(val)

    def _lower(self, node: torch.fx.Node, name: str) -> Any:
        reason = self._opaque_value(node)
        lowering = self.table.get(name)
        if reason is None and lowering is None:
            reason = "no lowering"
        if reason is None:
            assert lowering is not None
            args, kwargs = self._arguments(node)
            self.builder.layouts = lambda: list(_operand_layouts(node))
            self.builder.results = lambda: result_types(node)
            try:
                result = lowering(self.builder, *args, **kwargs)
            except NotLowered as error:
                reason = str(error)
            except IRError as error:
                if not is_symbolic(node):
                    raise IRError(f"{name}{describe_call(node)}: {error}") from error
                reason = f"sizes that are not known to agree: {error}"
            else:
                reason = _left_out(node, result)
                if reason is None:
                    return matched_result(self.builder, name, node, result)
        if reads_storage(node.target):
            self._own_storage(node)
        return self._eager(
            EagerCall(
                node.target, node.args, node.kwargs, node.meta.get("val"), reason, self._value
            )
        )

    def _own_storage(self, node: torch.fx.Node) -> None:
        """Has torch copy what an eager ``node`` takes, unless it is an argument of the graph: only
        results of torch have a storage that starts where they do."""
        base = node.args[0]
        assert isinstance(base, torch.fx.Node)
        if base.op == "placeholder":
            return
        with self.gm.graph.inserting_before(node):
            copy = self.gm.graph.call_function(torch.ops.aten.clone.default, (base,))
        copy.meta["val"] = torch.empty_like(base.meta["val"])
        reason = "copied for a call that reads its storage"
        self.env[copy] = self._eager(
            EagerCall(copy.target, copy.args, {}, copy.meta["val"], reason, self._value)
        )
        node.replace_input_with(base, copy)

    def _arguments(self, node: torch.fx.Node) -> tuple[list[Any], dict[str, Any]]:
        """Positional arguments by position and keyword-only ones by name, as in the schema."""
        args = [self._value(a) for a in node.args]
        kwargs = {k: self._value(v) for k, v in node.kwargs.items()}
        if kwargs and isinstance(node.target, torch._ops.OpOverload):
            for argument in node.target._schema.arguments[len(args) :]:
                if argument.kwarg_only or argument.name not in kwargs:
                    break
                args.append(kwargs.pop(argument.name))
        return args, kwargs

    def _value(self, arg: Any) -> Any:
        if isinstance(arg, torch.fx.Node):
            return self.env[arg]
        if isinstance(arg, list | tuple):
            return tuple(self._value(a) for a in arg)
        return sym_value(arg)

    def _opaque_value(self, node: torch.fx.Node) -> str | None:
        """Why a call cannot be lowered whatever the op: a value without code goes in or out."""
        for arg in node.all_input_nodes:
            if arg in _seeds(node):
                continue
            val = arg.meta.get("val")
            if isinstance(val, torch.Tensor) and (reason := opaque_reason(val)):
                return reason
        for val in _tensors(_read_results(node)):
            if reason := opaque_reason(val):
                return reason
        return None

    def _effectful(self, node: torch.fx.Node) -> tuple[Any, ...]:
        """``with_effects(token, op, *args) -> (token, *results)``: tokens only order the calls, and
        eager nodes with effects keep their order."""
        _, target, *args = node.args
        _, *results = node.meta["val"]
        is_tuple = len(results) != 1 or isinstance(results[0], list | tuple)
        val = tuple(results) if len(results) != 1 else results[0]
        self.builder.provenance = Provenance(
            operator_name(target), user_line(node.meta.get("stack_trace"))
        )
        made = self._eager(
            EagerCall(target, args, node.kwargs, val, "effect", self._value, effect=True)
        )
        if not is_tuple:
            return (None, made)
        count = len(val)
        parts = tuple(self._project(made, k) for k in range(count))
        return (None, *parts) if len(results) != 1 else (None, parts)

    def _project(self, source: Node, index: int) -> Node:
        attrs: A.EagerAttrs = source.attrs
        origin = self.graph.provenance.get(source)
        kind = attrs.outputs[index]
        return self.graph.add("project", (source,), A.ProjectAttrs(index), origin, kind)

    def _eager(self, call: EagerCall) -> Node:
        attrs, inputs = make_eager(call, self.serial)
        self.serial += attrs.serial >= 0
        return self.graph.add("eager", inputs, attrs, self.builder.provenance)

    # --- writes to inputs, outputs ----------------------------------------------------------------

    def _is_input_write(self, node: torch.fx.Node) -> bool:
        target = node.args[0]
        if not isinstance(target, torch.fx.Node) or target.op != "placeholder":
            raise Unsupported(f"write to {target}, which is no input")
        return isinstance(self.env[target].type, TensorType)

    def _write(self, node: torch.fx.Node) -> Node:
        """``copy_(placeholder, value)``: the placeholder's value when the program has run."""
        target, source = node.args[0], self._value(node.args[1])
        assert isinstance(target, torch.fx.Node)
        place: Node = next(made for fx, made in self.inputs if fx is target)
        b = self.builder
        value = b.expand(b.cast(source, place.dtype), place.shape)
        self.graph.mutations = [m for m in self.graph.mutations if m[0] is not place]
        self.graph.mutations.append((place, value))
        self.written[target] = node
        return value

    def _outputs(self, node: torch.fx.Node) -> None:
        storages: _Storages = {}
        for fx, made in self.inputs:
            val = fx.meta["val"]
            if isinstance(val, torch.Tensor) and _has_storage(val):
                storages.setdefault(StorageWeakRef(val.untyped_storage()), []).append((fx, made))
        given = node.args[0]
        results: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        self.graph.outputs = [self._output(result, storages) for result in results]
        self._share_memory(results)

    def _output(self, result: Any, storages: _Storages) -> Output:
        value = self._value(result)
        if not isinstance(value, Node):
            if value is not None and not isinstance(value, int | sympy.Expr):
                raise Unsupported(f"output of type {type(value).__name__}")
            return Output(value)
        val = result.meta["val"]
        strides = value_strides(val)
        if not isinstance(val, torch.Tensor) or not _has_storage(val):
            return Output(value, strides)
        owner, place = self._owner(result, storages)
        # A write at the end would change what an alias of the old value shows.
        if (
            owner is None
            or self.written.get(owner, result) is not result
            or owner.meta["val"].dtype is not val.dtype
        ):
            return Output(value, strides)
        assert place is not None
        (shift,) = dims((val.storage_offset() - owner.meta["val"].storage_offset(),))
        return Output(value, strides, place.attrs.index, shift)

    def _owner(
        self, result: torch.fx.Node, storages: _Storages
    ) -> tuple[torch.fx.Node | None, Node | None]:
        """The input whose memory a result is in. Of several in one memory it is the one that the result
        was made from: in the next call they may lie elsewhere."""
        storage = StorageWeakRef(result.meta["val"].untyped_storage())
        owners = dict(storages.get(storage, ()))
        if len(owners) < 2:
            return next(iter(owners.items()), (None, None))
        node = result
        while node not in owners:
            sources = [n for n in node.all_input_nodes if _is_in(n, storage)]
            if not sources:
                return None, None
            node = sources[0]
        return node, owners[node]

    def _share_memory(self, results: list[Any]) -> None:
        """Makes results that eager returns as views of one tensor, or expanded, views here too."""
        groups: dict[Any, list[int]] = {}
        for k, output in enumerate(self.graph.outputs):
            if isinstance(output.value, Node) and output.strides is not None:
                val = results[k].meta["val"]
                if output.alias_of is None and _has_storage(val):
                    groups.setdefault(StorageWeakRef(val.untyped_storage()), []).append(k)
        for number, (storage, group) in enumerate(groups.items()):
            vals = [results[k].meta["val"] for k in group]
            # AOTAutograd may take the offset of a result for its place in an argument written to.
            placed = bool(self.written) and dims((vals[0].storage_offset(),)) != (0,)
            if len(group) == 1 and not _is_expanded(vals[0]) and not placed:
                continue
            base = self._maker(storage, vals[0].dtype)
            if base is not None and all(self._is_inside(base.meta["val"], val) for val in vals):
                value, strides = self._value(base), value_strides(base.meta["val"])
                for k, val in zip(group, vals, strict=True):
                    (offset,) = dims((val.storage_offset(),))
                    shape, steps = dims(val.shape), dims(val.stride())
                    view = self._value(results[k])
                    output = Output(value, strides, None, offset, number, shape, steps, view)
                    self.graph.outputs[k] = output
            elif len(group) > 1 or placed:
                raise Unsupported("results share memory in a way that lazyc has no words for")

    def _is_inside(self, base: torch.Tensor, val: torch.Tensor) -> bool:
        """Whether a view stays inside ``base``, as each does that was not made by address."""
        last = (
            storage_extent(dims(val.shape), dims(val.stride())) + dims((val.storage_offset(),))[0]
        )
        left = storage_extent(dims(base.shape), dims(base.stride())) - last
        if isinstance(left, int):
            return left >= 0
        targets = {str(node.target) for node in self.gm.graph.nodes}
        return "aten.as_strided.default" not in targets or is_nonneg(left)

    def _maker(self, storage: Any, dtype: torch.dtype) -> torch.fx.Node | None:
        """The call that made a storage, where its result is that memory from the start."""
        for fx in self.gm.graph.nodes:
            val = fx.meta.get("val")
            if not isinstance(val, torch.Tensor) or not _has_storage(val):
                continue
            if StorageWeakRef(val.untyped_storage()) == storage:
                plain = val.dtype is dtype and not _is_expanded(val) and opaque_reason(val) is None
                known = plain and isinstance(self.env.get(fx), Node)
                return fx if known and dims((val.storage_offset(),)) == (0,) else None
        return None

    def _check_symbols(self) -> None:
        """Finds the argument that each symbol comes from; SymInt arguments were bound before."""
        for _, made in self.inputs:
            if isinstance(made.type, TensorType):
                for axis, dim in enumerate(made.type.shape):
                    if isinstance(dim, sympy.Symbol):
                        self._bind(SymbolSource(dim, made.attrs.index, axis))
        known = {s.symbol for s in self.graph.symbols}
        used: set[sympy.Symbol] = set()
        for node in self.graph.nodes:
            if node.op != "input" and isinstance(node.type, TensorType):
                used |= free_symbols(node.type.shape)
            if isinstance(node.attrs, A.SizeAttrs):
                used |= free_symbols((node.attrs.expr,))
        for output in self.graph.outputs:
            plain: tuple[Dim, ...] = (output.value,) if isinstance(output.value, sympy.Expr) else ()
            used |= free_symbols((*(output.strides or ()), output.offset, *plain))
        if missing := sorted(s.name for s in used - known):
            raise Unsupported(f"no argument gives the size {', '.join(missing)}")


_Storages: TypeAlias = dict[Any, list[tuple[torch.fx.Node, Node]]]


def _is_in(node: torch.fx.Node, storage: Any) -> bool:
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor) or not _has_storage(val):
        return False
    return StorageWeakRef(val.untyped_storage()) == storage


def _seeds(node: torch.fx.Node) -> tuple[torch.fx.Node, ...]:
    """The seeds among the arguments of attention's backward pass, which lowerings do not read."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.args:
        return ()
    names = [a.name for a in node.target._schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return tuple(x for k, x in given.items() if k in SEEDS and isinstance(x, torch.fx.Node))


def _read_results(node: torch.fx.Node) -> Any:
    """The results of a call that something reads."""
    val = node.meta.get("val")
    if not isinstance(val, tuple | list) or any(
        u.target is not operator.getitem for u in node.users
    ):
        return val
    return [val[k] for k in sorted({u.args[1] for u in node.users if u.users})]  # type: ignore[index, type-var]


def _left_out(node: torch.fx.Node, result: Any) -> str | None:
    """Why a lowering's results will not do: it leaves one out that something reads."""
    if not isinstance(result, tuple | list):
        return None
    for user in node.users:
        if user.target is operator.getitem and user.users:
            k = user.args[1]
            if result[k] is None and isinstance(user.meta.get("val"), torch.Tensor):  # type: ignore[index]
                return f"its result {k} is read"
    return None


def _tensors(val: Any) -> Iterator[torch.Tensor]:
    """The tensors of a result: one, or those of a tuple."""
    if isinstance(val, torch.Tensor):
        yield val
    elif isinstance(val, list | tuple):
        for item in val:
            yield from _tensors(item)


def _has_storage(val: torch.Tensor) -> bool:
    return val.layout is torch.strided


def _is_expanded(val: torch.Tensor) -> bool:
    """Whether elements share memory."""
    sizes = zip(dims(val.shape), dims(val.stride()), strict=True)
    return any(stride == 0 and size != 1 for size, stride in sizes) and 0 not in val.shape


def _operand_layouts(node: torch.fx.Node) -> Iterator[Layout]:
    """The layout that eager gives each tensor argument, in order."""
    flat: list[Any] = []
    map_arg((node.args, node.kwargs), flat.append)
    for arg in flat:
        val = arg.meta.get("val")
        if isinstance(val, torch.Tensor):
            offset = None if arg.op == "placeholder" else dims((val.storage_offset(),))[0]
            yield Layout(dims(val.shape), dims(val.stride()), offset)
