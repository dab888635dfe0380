"""The cache key of a Graph: a SHA-256 over canonical text.

Nodes are numbered by position and symbols renamed in order of appearance; names, provenance,
addresses, ``id()`` and set order never enter. The text is made in named parts, so that a miss can
be explained by the parts that differ from the nearest entry.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import sympy
import torch

from lazyc.config import Config
from lazyc.errors import NotCacheable
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import DType, OpaqueType, SymbolSource, TensorType
from lazyc.runtime.dims import encode_dim, symbol_flags
from lazyc.runtime.explain import STRUCTURE, digest
from lazyc.runtime.tensors import dump_tensor
from lazyc.version import versions


def graph_key(graph: Graph, target_key: str, config: Config) -> str:
    """The key of the Program that compiling ``graph`` gives, 64 hex digits.

    ``target_key`` names the instruction set and all else of the machine that code depends on.
    Raises NotCacheable for a graph that holds what has no canonical text (a generator object, a
    sparse constant).
    """
    return combine(key_parts(graph, target_key, config))


def nest_key(text: str, target_key: str) -> str:
    """The key of a kernel: of its canonical text (``print_nest``), the target and the versions."""
    return combine({**_version_parts(), "target": target_key, "nest": text})


def choice_key(symbol: str, target_key: str, hardware: str) -> str:
    """The key of what was fastest on a GPU (``Device.hardware``) for the kernel of a symbol, which is
    made of its ``nest_key``."""
    parts = {"target": target_key, "hardware": hardware, "kernel": symbol}
    return combine({**_version_parts(), **parts})


def combine(parts: Mapping[str, str]) -> str:
    """SHA-256 over named parts; their names and lengths are hashed too, so none can run over."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        data = parts[name].encode()
        digest.update(f"{name}:{len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def key_parts(graph: Graph, target_key: str, config: Config) -> dict[str, str]:
    """The parts of a graph's key by name; "input 0" and so on are readable, long ones digests."""
    writer = _Writer(graph)
    parts = {**_version_parts(), "target": target_key, "options": config.code_key()}
    for node in graph.inputs:
        parts[f"input {node.attrs.index}"] = writer.input(node.attrs)
    for k, tensor in enumerate(graph.constants):
        parts[f"constant {k}"] = _constant(tensor)
    nodes = [writer.node(n) for n in graph.nodes]
    parts[STRUCTURE] = digest("\n".join(head for head, _ in nodes))
    parts["attributes and shapes"] = digest("\n".join(body for _, body in nodes))
    parts["outputs"] = writer.outputs(graph)
    parts["symbols"] = writer.symbols()
    return parts


def capture_parts(capture: str, target_key: str, config: Config) -> dict[str, str]:
    """The parts of the key of a graph as it was captured (``frontend.capture_key``)."""
    options = config.code_key()
    return {**_version_parts(), "target": target_key, "options": options, "capture": capture}


def _version_parts() -> dict[str, str]:
    return {f"version of {name}": version for name, version in versions().items()}


def _constant(tensor: torch.Tensor) -> str:
    header, data = dump_tensor(tensor)
    return digest(json.dumps(header) + hashlib.sha256(data).hexdigest())


class _Writer:
    """Canonical text of one graph's parts: knows the numbers of its nodes and symbols."""

    def __init__(self, graph: Graph) -> None:
        self._numbers = {node: k for k, node in enumerate(graph.nodes)}
        self._names: dict[sympy.Symbol, str] = {}
        self._sources = sorted(graph.symbols, key=_source_order)
        self._exprs: dict[sympy.Expr, str] = {}
        self._types: dict[TensorType | OpaqueType, str] = {}
        # In the order of the arguments that they come from, which depends on no name; sympy orders
        # the operands of a sum by name.
        for source in self._sources:
            self._rename(source.symbol)

    def node(self, node: Node) -> tuple[str, str]:
        """(operator and the numbers of its inputs, attributes and type)."""
        head = f"{node.op} {','.join([str(self._numbers[n]) for n in node.inputs])}"
        attrs = node.attrs
        if isinstance(attrs, A.InputAttrs):
            return head, str(attrs.index)
        if isinstance(attrs, A.EagerAttrs):
            attrs = dataclasses.replace(attrs, reason="")  # for reports only
        return head, f"{self.text(attrs)}:{self._type(node.type)}"

    def input(self, a: A.InputAttrs) -> str:
        """One input, without its name."""
        parameter = " parameter" if a.is_parameter else ""
        sparsity = "" if a.sparsity is None else f" sparsity {a.sparsity}"
        layout = f"strides {self.text(a.strides)} align {a.alignment}"
        return f"{self._type(a.type)} {layout}{parameter}{sparsity}"

    def outputs(self, graph: Graph) -> str:
        rows = [
            (
                f"%{self._numbers[o.value]}" if isinstance(o.value, Node) else self.text(o.value),
                self.text(o.strides),
                self.text(o.alias_of),
                self.text(o.offset),
                *(map(self.text, (o.memory, o.view_shape, o.view_strides))),
            )
            for o in graph.outputs
        ]
        writes = [(self._numbers[to], self._numbers[value]) for to, value in graph.mutations]
        return f"{rows} {writes}"

    def symbols(self) -> str:
        """Where symbols come from, and what is assumed about them; call after all other parts."""
        rows = [(self._rename(s.symbol), s.input, s.dim) for s in self._sources]
        known = [(name, symbol_flags(symbol)) for symbol, name in self._names.items()]
        return f"{rows} {known}" if rows or known else ""

    def text(self, value: Any) -> str:
        """Text that is equal for equal values only; the type of a number shows in it."""
        write = _WRITERS.get(type(value))
        if write is not None:
            return write(value)
        if isinstance(value, tuple):
            return f"({','.join([self.text(x) for x in value])})"
        if isinstance(value, TensorType | OpaqueType):
            return self._type(value)
        if isinstance(value, sympy.Expr):
            return self._expr(value)
        if dataclasses.is_dataclass(value):
            cls = type(value)
            fields = [self.text(getattr(value, n)) for n in _field_names(cls)]
            return f"{cls.__name__}({','.join(fields)})"
        raise NotCacheable(f"a {type(value).__name__} in a graph has no canonical text")

    def _type(self, t: TensorType | OpaqueType) -> str:
        found = self._types.get(t)
        if found is None:
            if isinstance(t, TensorType):
                dims = ",".join([self.text(d) for d in t.shape])
                found = f"{t.dtype.value}[{dims}]" + ("" if t.device == "cpu" else f"@{t.device}")
            else:
                found = f"opaque {self._opaque(t.what)!r}"
            self._types[t] = found
        return found

    def _opaque(self, what: str) -> str:
        """The description of an opaque value, with symbols renamed where it mentions them."""
        known = {s.name: name for s, name in self._names.items()}
        return re.sub(r"\w+", lambda m: known.get(m[0], m[0]), what)

    def _expr(self, expr: sympy.Expr) -> str:
        found = self._exprs.get(expr)
        if found is None:
            found = str(encode_dim(expr, self._rename))
            self._exprs[expr] = found
        return found

    def _rename(self, symbol: sympy.Symbol) -> str:
        return self._names.setdefault(symbol, f"${len(self._names)}")


def _source_order(source: SymbolSource) -> tuple[int, int]:
    return source.input, -1 if source.dim is None else source.dim


_WRITERS: dict[type, Callable[[Any], str]] = {
    int: repr,
    bool: repr,
    float: float.hex,
    complex: lambda c: f"{c.real.hex()}+{c.imag.hex()}j",
    str: repr,
    type(None): repr,
    DType: lambda d: d.value,
    torch.dtype: str,
    torch.device: repr,
    torch.layout: str,
    torch.memory_format: str,
}


@cache
def _field_names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))
