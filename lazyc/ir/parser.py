"""Reads the text of ``print_graph`` back into a Graph. For tests of passes, never for cached data.

Types are inferred again from inputs and attrs and must agree with the printed ones. Symbols become
positive integer sympy symbols, as Dynamo's are.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch.utils._sympy import functions as torch_sympy

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node, Output, Provenance
from lazyc.ir.ops import OPS, IRError, resolve_target
from lazyc.ir.types import Dim, DType, OpaqueType, SymbolSource, TensorType, ValueType

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<number>\d+\.\d+(?:e[+-]?\d+)?j?|\d+e[+-]?\d+j?|\d+j?)
  | (?P<ref>%\d+)
  | (?P<arg>\$\d+)
  | (?P<name>[A-Za-z_][\w.]*)
  | (?P<sign>\*\*|[-+*/()\[\]{}<>,:=@])
    )""",
    re.VERBOSE,
)
_DTYPES = {d.value: d for d in DType}
_NAMED: dict[str, Any] = {
    "None": None, "True": True, "False": False, "nan": float("nan"), "inf": float("inf"),
}  # fmt: skip


class _Line:
    """The tokens of one line and the place in them."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        self.place = 0
        at = 0
        text = text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise IRError(f"cannot read {text[at:]!r} in line {text!r}")
            kind = match.lastgroup
            assert kind is not None
            self.tokens.append((kind, match[kind]))
            at = match.end()

    @property
    def kind(self) -> str:
        return self.tokens[self.place][0] if self.place < len(self.tokens) else "end"

    def peek(self) -> str:
        return self.tokens[self.place][1] if self.place < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise IRError(f"expected {expected or 'more'}, found {token!r} in line {self.text!r}")
        self.place += 1
        return token

    def skip(self, token: str) -> bool:
        if self.peek() != token:
            return False
        self.place += 1
        return True


def _symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, integer=True, positive=True)


def _value(line: _Line) -> Any:
    """An attribute value: sums of products of powers of atoms."""
    left = _product(line)
    while line.peek() in ("+", "-"):
        left = left + _product(line) if line.take() == "+" else left - _product(line)
    return left


def _product(line: _Line) -> Any:
    left = _power(line)
    while line.peek() in ("*", "/"):
        if line.take() == "*":
            left = left * _power(line)
        else:
            left = sympy.Rational(left, _power(line))
    return left


def _power(line: _Line) -> Any:
    if line.skip("-"):
        return -_power(line)
    base = _atom(line)
    return base ** _power(line) if line.skip("**") else base


def _atom(line: _Line) -> Any:
    kind, token = line.kind, line.take()
    if kind == "string":
        return json.loads(token)
    if kind == "number":
        if token.endswith("j"):
            return complex(token)
        return int(token) if token.isdigit() else float(token)
    if kind == "arg":
        return A.ArgRef(int(token[1:]))
    if token == "(":
        return _bracket(line)
    if kind != "name":
        raise IRError(f"unexpected {token!r} in line {line.text!r}")
    return _named(token, line)


def _bracket(line: _Line) -> Any:
    """A tuple, or an expression in brackets."""
    items: list[Any] = []
    is_tuple = line.peek() == ")"
    while not line.skip(")"):
        items.append(_value(line))
        if line.skip(","):
            is_tuple = True
        elif line.peek() != ")":
            raise IRError(f"expected , or ) in line {line.text!r}")
    return tuple(items) if is_tuple else items[0]


def _arguments(line: _Line) -> tuple[Any, ...]:
    line.take("(")
    found = _bracket(line)
    return found if isinstance(found, tuple) else (found,)


def _named(token: str, line: _Line) -> Any:
    if token in _NAMED:
        return _NAMED[token]
    if token in _DTYPES:
        return _type_after(token, line) if line.peek() == "[" else _DTYPES[token]
    if token == "opaque" and line.peek() == "<":
        return _type_after(token, line)
    if token.startswith("torch."):
        found = getattr(torch, token.removeprefix("torch."))
        assert isinstance(found, torch.dtype | torch.layout | torch.memory_format)
        return found
    if line.peek() == "(":
        arguments = _arguments(line)
        if token == "device":
            return torch.device(*arguments)
        if token == "operator":
            return resolve_target(*arguments)
        return _function(token)(*arguments)
    return _symbol(token)


def _function(name: str) -> Any:
    found = getattr(torch_sympy, name, None)
    if not (isinstance(found, type) and issubclass(found, sympy.Basic)):
        raise IRError(f"unknown function {name}")
    return found


def _type(line: _Line) -> ValueType:
    return _type_after(line.take(), line)


def _type_after(token: str, line: _Line) -> ValueType:
    if token == "opaque":
        line.take("<")
        what = json.loads(line.take())
        line.take(">")
        return OpaqueType(what)
    line.take("[")
    shape: list[Dim] = []
    while not line.skip("]"):
        shape.append(_value(line))
        line.skip(",")
    device = "cpu"
    if line.skip("@"):
        device = line.take()
        if line.skip(":"):
            device += f":{line.take()}"
    return TensorType(_DTYPES[token], tuple(shape), device)


def _split_comment(text: str) -> tuple[str, Provenance | None]:
    body, mark, comment = text.partition("  # ")
    if not mark:
        return body, None
    op, _, where = comment.partition(" ")
    return body, Provenance(op, where)


def _make_attrs(cls: type[A.Attrs], fields: dict[str, Any]) -> A.Attrs:
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in fields and f.default is dataclasses.MISSING
    ]
    if missing:
        raise IRError(f"{cls.__name__}: no value for {', '.join(missing)}")
    return cls(**fields)


def _parse_node(graph: Graph, nodes: dict[str, Node], text: str) -> None:
    body, provenance = _split_comment(text)
    line = _Line(body)
    name = line.take()
    line.take("=")
    op = line.take()
    if op not in OPS:
        raise IRError(f"unknown op {op} in line {text!r}")
    inputs: list[Node] = []
    fields: dict[str, Any] = {}
    line.take("(")
    while not line.skip(")"):
        if line.kind == "ref":
            inputs.append(nodes[line.take()])
        else:
            key = line.take()
            line.take("=")
            fields[key] = _value(line)
        line.skip(",")
    line.take(":")
    result = _type(line)
    cls = OPS[op].attrs
    if cls in (A.InputAttrs, A.TensorConstantAttrs):
        fields["type"] = result
    attrs = A.NO_ATTRS if cls is A.Attrs else _make_attrs(cls, fields)
    node = graph.add(op, inputs, attrs, provenance, result if op == "project" else None)
    if node.type != result:
        raise IRError(f"{op}: inferred {node.type}, the text says {result}")
    nodes[name] = node


def _parse_output(nodes: dict[str, Node], text: str) -> Output:
    line = _Line(text)
    line.take("return")
    if not line.peek().startswith("%"):
        return Output(_value(line))
    fields: dict[str, Any] = {"value": nodes[line.take()]}
    while line.kind == "name":
        key = line.take()
        line.take("=")
        fields[key] = _value(line)
    return Output(**fields)


_SYMBOL = re.compile(r"symbol (\w+) = arg (\d+)(?: dim (\d+))?$")


def parse_graph(text: str, constants: Sequence[torch.Tensor] = ()) -> Graph:
    """The Graph of a text. ``constants`` are the tensors that ``tensor_constant`` nodes index.

    Raises IRError for text that does not parse or whose types are wrong.
    """
    graph = Graph(constants=list(constants))
    nodes: dict[str, Node] = {}
    for raw in text.splitlines():
        line = raw.strip()
        if not line:
            continue
        if line.startswith("%"):
            _parse_node(graph, nodes, line)
        elif line.startswith("return"):
            graph.outputs.append(_parse_output(nodes, line))
        elif line.startswith("mutate"):
            _, target, _, value = line.split()
            graph.mutations.append((nodes[target], nodes[value]))
        elif match := _SYMBOL.match(line):
            dim = None if match[3] is None else int(match[3])
            graph.symbols.append(SymbolSource(_symbol(match[1]), int(match[2]), dim))
        else:
            raise IRError(f"cannot read line {line!r}")
    return graph
