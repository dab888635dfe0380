"""From Dynamo's graph to compiled forward, backward and inference functions, through AOTAutograd.

AOTAutograd functionalizes the graph, traces its backward, decomposes ops and splits the joint graph
with torch's min-cut partitioner. Each part is imported into the Graph IR and handed to the caller's
compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, cast

import torch
from torch._dynamo.exc import TorchDynamoException, exceptions_allowed_to_be_fallback
from torch._dynamo.utils import flatten_graph_inputs
from torch._functorch._aot_autograd.schemas import OutputType
from torch._functorch.aot_autograd import aot_module_simplified
from torch._guards import TracingContext
from torch.utils._python_dispatch import _disable_current_modes

from lazyc.config import AttentionKernel
from lazyc.frontend.capture_key import capture_key, is_plain
from lazyc.frontend.cut import cut, data_calls, depends_on_data, join
from lazyc.frontend.decompositions import decomposition_table
from lazyc.frontend.float_symbols import tensors_stay_tensors
from lazyc.frontend.fx_import import Unsupported, import_graph
from lazyc.frontend.inference_capture import capture_inference, lasting_inputs
from lazyc.frontend.out_arguments import converting_call
from lazyc.frontend.partition import partition
from lazyc.frontend.recompute import Recompute
from lazyc.frontend.storage import read_storage_from_bases
from lazyc.ir.graph import Graph
from lazyc.ir.sparse import Sparsity, declared

GraphKind: TypeAlias = Literal["forward", "backward", "inference"]
# Boxed: takes the list of arguments, may empty it, returns the list of results.
Boxed: TypeAlias = Callable[[list[Any]], Sequence[Any]]
CompileGraph: TypeAlias = Callable[[Graph, torch.fx.GraphModule, "Part"], Boxed]
Restore: TypeAlias = Callable[[str, torch.fx.GraphModule, Sequence[Any]], "Boxed | None"]
LeftToEager: TypeAlias = Callable[[str, str, str], None]
Marks: TypeAlias = Mapping[int, Sparsity]
ImportFailed: TypeAlias = Callable[[Exception, torch.fx.GraphModule, GraphKind], Boxed]


@dataclass(frozen=True, slots=True)
class Part:
    """What one graph of AOTAutograd's is.

    ``is_plain``: AOTAutograd adds nothing around it, the compiled function takes and returns what the
    captured one does. ``capture``: the key under which ``Restore`` is to find it again, or None.
    ``arguments``: those of the first call, where they are known.
    """

    kind: GraphKind
    is_plain: bool = False
    capture: str | None = None
    arguments: Sequence[Any] = ()


def run_in_eager(gm: torch.fx.GraphModule) -> Boxed:
    """The graph itself as a boxed function."""

    def call(args: list[Any]) -> Sequence[Any]:
        values = tuple(args)
        args.clear()
        return gm(*values)

    return call


def eager_when_unsupported(error: Exception, gm: torch.fx.GraphModule, kind: GraphKind) -> Boxed:
    """The default for graphs that cannot be imported: eager for Unsupported, else the error."""
    if isinstance(error, Unsupported):
        return run_in_eager(gm)
    raise error


def _say_nothing(op: str, reason: str, line: str) -> None:
    pass


def _find_nothing(key: str, gm: torch.fx.GraphModule, arguments: Sequence[Any]) -> None:
    return None


@dataclass(frozen=True)
class AotBackend:
    """A Dynamo backend that compiles each graph of AOTAutograd with ``compile_graph``.

    ``import_failed`` decides what runs in place of a graph that has no Graph IR: its exception is
    Unsupported for what lazyc does not do, and anything else is a bug. ``restore`` may know a graph
    of Dynamo's from before (``capture_key``), and is given the arguments of its first call; AOTAutograd
    is then left out. ``left_to_eager`` is told
    the calls that a graph is cut at (``cut``): operator, reason, line of the user. ``has_products`` and
    ``attention`` as in ``import_graph``; ``recompute``: which hand-written attention is computed again in the backward pass.
    """

    compile_graph: CompileGraph
    import_failed: ImportFailed = eager_when_unsupported
    restore: Restore = _find_nothing
    left_to_eager: LeftToEager = _say_nothing
    has_products: bool = False
    recompute: Recompute | None = None
    attention: AttentionKernel = "auto"

    def __call__(
        self, gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **options: Any
    ) -> Callable[..., Any]:
        """What runs Dynamo's graph; ``options`` are for other backends. Raises what the hooks raise, and
        Dynamo's own exceptions."""
        if any(isinstance(x, list | tuple | dict) for x in example_inputs):
            return flatten_graph_inputs(gm, example_inputs, self)
        converting = converting_call(gm)
        if converting is not None:
            op, line = converting
            self.left_to_eager(op, "out= of another dtype than the result", line)
            return gm.forward
        capture = capture_key(gm, example_inputs)
        known = self.restore(capture, gm, example_inputs) if capture is not None else None
        if known is not None:
            return torch._dynamo.disable(_unboxed(known), reason="compiled by lazyc")
        inference = capture_inference(gm, example_inputs) if capture is not None else None
        if inference is not None:
            part = Part("inference", True, capture, example_inputs)
            compiled = self._compile(inference, part, lasting_inputs(gm), _marks(example_inputs))
            return torch._dynamo.disable(_unboxed(compiled), reason="compiled by lazyc")
        try:
            compiled = self._through_autograd(gm, example_inputs, capture)
        except _Ours as error:
            raise error.cause from error.cause.__cause__
        except TorchDynamoException:
            raise  # Dynamo traces again
        except exceptions_allowed_to_be_fallback as error:
            self.left_to_eager("graph", f"AOTAutograd: {error}", "")
            raise  # Dynamo warns, and runs the function in eager, or up to where it breaks the graph
        except Exception as error:  # noqa: BLE001 - eager runs it, or says what is wrong with it
            self.left_to_eager("graph", f"AOTAutograd: {error}", "")
            return gm.forward
        return torch._dynamo.disable(compiled, reason="compiled by lazyc")

    def _through_autograd(
        self, gm: torch.fx.GraphModule, example_inputs: Sequence[Any], capture: str | None
    ) -> Callable[..., Any]:
        count = len(example_inputs)

        def training(kind: GraphKind, gm: torch.fx.GraphModule) -> Boxed:
            return self._compile(gm, Part(kind), frozenset(), {})

        def inference(gm: torch.fx.GraphModule, same_arguments: bool) -> Boxed:
            context = TracingContext.try_get()
            metadata = None if context is None else context.fw_metadata
            part, lasting = Part("inference"), frozenset[int]()
            if metadata is not None:
                lasting = frozenset(metadata.static_input_indices)
                if is_plain(metadata, gm):
                    part = Part("inference", True, capture, example_inputs)
            # AOTAutograd's arguments are Dynamo's, unless it put some together.
            return self._compile(
                gm, part, lasting, _marks(example_inputs) if same_arguments else {}
            )

        with tensors_stay_tensors(gm):
            return aot_module_simplified(
                gm,
                example_inputs,
                fw_compiler=_checked(count, lambda gm, same_arguments: training("forward", gm)),
                bw_compiler=_outside_dynamo(lambda gm, example_inputs: training("backward", gm)),
                inference_compiler=_checked(count, inference),
                partition_fn=partial(
                    partition, recompute=self.recompute, has_products=self.has_products
                ),
                decompositions=decomposition_table(),
                keep_inference_input_mutations=True,
            )

    def _compile(
        self,
        gm: torch.fx.GraphModule,
        part: Part,
        lasting: frozenset[int],
        sparsity: Marks,
    ) -> Boxed:
        """One graph of ATen operators. ``lasting``: which of its arguments are weights, ``sparsity``: what
        some of them are declared to be."""
        try:
            gm = read_storage_from_bases(gm)
            if depends_on_data(gm):
                return _boxed(self._compile_pieces(part.kind, gm, lasting, sparsity))
            graph = import_graph(gm, lasting, sparsity, self.has_products, self.attention)
        except Exception as error:  # noqa: BLE001 - the hook's policy covers every failure
            return _boxed(self.import_failed(error, gm, part.kind))
        with _disable_current_modes():  # AOTAutograd compiles under its fake tensor mode
            return _boxed(self.compile_graph(graph, gm, part))

    def _compile_pieces(
        self,
        kind: GraphKind,
        gm: torch.fx.GraphModule,
        lasting: frozenset[int],
        sparsity: Marks,
    ) -> Boxed:
        """A graph with calls whose results' sizes depend on data: what is between them."""
        try:
            pieces = cut(gm)
        except Exception as error:  # noqa: BLE001
            return self.import_failed(error, gm, kind)
        for op, line in data_calls(gm):
            self.left_to_eager(op, "sizes that depend on data", line)
        placeholders = gm.graph.find_nodes(op="placeholder")
        weights = {n for k, n in enumerate(placeholders) if k in lasting}
        marks: dict[torch.fx.Node, Sparsity] = {placeholders[k]: m for k, m in sparsity.items()}
        functions = []
        for piece in pieces:
            module = piece.module(gm)
            kept = frozenset(k for k, n in enumerate(piece.inputs) if n in weights)
            marked: dict[int, Sparsity] = {
                k: marks[n] for k, n in enumerate(piece.inputs) if n in marks
            }
            try:
                graph = import_graph(module, kept, marked, self.has_products, self.attention)
            except Exception as error:  # noqa: BLE001
                functions.append(self.import_failed(error, module, kind))
                continue
            with _disable_current_modes():
                functions.append(self.compile_graph(graph, module, Part(kind)))
        return join(gm, pieces, functions)


class _Ours(Exception):
    """Carries an exception of lazyc's own through AOTAutograd."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _checked(
    arguments: int, compile: Callable[[torch.fx.GraphModule, bool], Boxed]
) -> Callable[..., Boxed]:
    """A compiler for AOTAutograd, of a function of so many arguments: ``compile``, which is told whether
    the graph has the same ones, with its exceptions marked as ours."""

    def checked(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Boxed:
        if _views_merged_arguments(arguments):
            raise RuntimeError(
                "results are views of arguments that share memory and are written to"
            )
        try:
            return compile(gm, len(example_inputs) == arguments)
        except Exception as error:
            raise _Ours(error) from error

    return checked


def _unboxed(function: Boxed) -> Callable[..., Sequence[Any]]:
    def call(*args: Any) -> Sequence[Any]:
        return function(list(args))

    return call


def _boxed(function: Boxed) -> Boxed:
    """Marks a function so that AOTAutograd passes it one list of arguments."""

    def call(args: list[Any]) -> Sequence[Any]:
        return function(args)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _outside_dynamo(compiler: Callable[..., Boxed]) -> Callable[..., Boxed]:
    """Keeps Dynamo from tracing the backward's compiler, and the backward that it makes."""

    def disabled(function: Callable[..., Any]) -> Callable[..., Any]:
        return cast(
            "Callable[..., Any]", torch._dynamo.disable(function, reason="compiled by lazyc")
        )

    def compile_backward(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Boxed:
        return disabled(disabled(compiler)(gm, example_inputs))

    return compile_backward


def _views_merged_arguments(arguments: int) -> bool:
    """Whether AOTAutograd put one tensor in place of several of ``arguments`` (it does so for those that
    share memory and are written to) and is to make results from it: it fails to, where their shapes
    differ (torch 2.13)."""
    context = TracingContext.try_get()
    metadata = None if context is None else context.fw_metadata
    if metadata is None or len(metadata.input_info) >= arguments:
        return False
    return any(o.output_type is OutputType.alias_of_input for o in metadata.output_info)


def _marks(example_inputs: Sequence[Any]) -> Marks:
    """What arguments are declared to be."""
    return {k: m for k, x in enumerate(example_inputs) if (m := declared(x)) is not None}
