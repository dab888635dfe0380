from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import pytest
import sympy
import torch

from lazyc.config import OPTIONS, Config
from lazyc.errors import NotCacheable
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Output, Provenance
from lazyc.ir.types import DType, OpaqueType, SymbolSource, TensorType
from lazyc.runtime import key as K
from lazyc.runtime.explain import explain_difference, nearest

CONFIG = Config()
F32 = TensorType(DType.F32, (4, 3))


def symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, integer=True, positive=True)


@dataclasses.dataclass
class Made:
    """Everything about the sample graph that a test may change."""

    dtype: DType = DType.F32
    rows: Any = 4
    strides: tuple[Any, ...] = (3, 1)
    alignment: int = 64
    parameter: bool = False
    device: str = "cpu"
    op: str = "add"
    scalar: Any = 2.0
    swap: bool = False
    extra: str = ""
    constant: torch.Tensor = dataclasses.field(default_factory=lambda: torch.ones(3))
    out_strides: tuple[Any, ...] = (3, 1)
    alias_of: int | None = None
    memory: int | None = None
    view_shape: tuple[int, ...] = ()
    view_strides: tuple[int, ...] = ()
    offset: Any = 0
    output: str = "result"
    mutate: str = ""
    names: str = "x"
    line: str = "model.py:1"
    symbols: tuple[SymbolSource, ...] = ()


def make(**changes: Any) -> Graph:
    m = Made(**changes)
    graph, p = Graph(), Provenance("aten.add.Tensor", m.line)
    kind = TensorType(m.dtype, (m.rows, 3), m.device)
    x, y = (
        graph.add("input", (), A.InputAttrs(
            k, f"{m.names}{k}", kind, m.strides, m.parameter, m.alignment
        ), p)
        for k in range(2)
    )  # fmt: skip
    graph.constants.append(m.constant)
    kind = TensorType(m.dtype, (3,), m.device)
    graph.add("tensor_constant", (), A.TensorConstantAttrs(0, kind, m.constant.stride()), p)
    scale = graph.add("constant", (), A.ConstantAttrs(m.scalar, m.dtype, m.device), p)
    ones = graph.add("reshape", [scale], A.ShapeAttrs((1, 1)), p)
    ones = graph.add("expand", [ones], A.ShapeAttrs((m.rows, 3)), p)
    result = graph.add(m.op, [y, x] if m.swap else [x, y], provenance=p)
    if m.extra:
        graph.add(m.extra, [result], provenance=p)
    result = graph.add("mul", [result, ones], provenance=p)
    value = {"result": result, "x": x, "none": None, "size": m.rows}[m.output]
    graph.outputs.append(
        Output(value, m.out_strides, m.alias_of, m.offset, m.memory, m.view_shape, m.view_strides)
    )
    if m.mutate:
        graph.mutations.append(({"x": x, "y": y}[m.mutate], result))
    graph.symbols.extend(m.symbols)
    return graph


def key(config: Config = CONFIG, target: str = "avx2", **changes: Any) -> str:
    return K.graph_key(make(**changes), target, config)


s0, s1 = symbol("s0"), symbol("s1")
SOURCES = (SymbolSource(s0, 0, 0),)
CHANGES: dict[str, dict[str, Any]] = {
    "dtype": {"dtype": DType.F64},
    "shape": {"rows": 5},
    "symbolic": {"rows": s0, "symbols": SOURCES},
    "symbolic, other source": {"rows": s0, "symbols": (SymbolSource(s0, 1, 0),)},
    "symbolic, int argument": {"rows": s0, "symbols": (SymbolSource(s0, 0),)},
    "symbolic, other expression": {"rows": s0 * 2, "symbols": SOURCES},
    "symbol that may be 0": {
        "rows": sympy.Symbol("s0", integer=True, nonnegative=True),
        "symbols": (SymbolSource(sympy.Symbol("s0", integer=True, nonnegative=True), 0, 0),),
    },
    "strides": {"strides": (1, 4)},
    "alignment": {"alignment": 4},
    "parameter": {"parameter": True},
    "device": {"device": "cuda:0"},
    "op": {"op": "sub"},
    "operand order": {"op": "sub", "swap": True},
    "scalar": {"scalar": 3.0},
    "scalar sign of zero": {"scalar": -0.0},
    "scalar zero": {"scalar": 0.0},
    "scalar nan": {"scalar": float("nan")},
    "scalar bool": {"scalar": True},
    "scalar int": {"scalar": 2},
    "extra node": {"extra": "neg"},
    "constant value": {"constant": torch.tensor([1.0, 1.0, 2.0])},
    "constant sign": {"constant": torch.tensor([1.0, 1.0, -0.0])},
    "constant zero": {"constant": torch.tensor([1.0, 1.0, 0.0])},
    "constant dtype": {"constant": torch.ones(3).view(torch.int32)},
    "constant strides": {"constant": torch.ones(5)[::2]},
    "output strides": {"out_strides": (1, 4)},
    "output alias": {"alias_of": 0},
    "output alias of another": {"alias_of": 1},
    "output offset": {"alias_of": 0, "offset": 1},
    "output memory": {"memory": 0},
    "output view": {"memory": 0, "view_shape": (2,), "view_strides": (1,)},
    "output view strides": {"memory": 0, "view_shape": (2,), "view_strides": (2,)},
    "output value": {"output": "x"},
    "output none": {"output": "none"},
    "output size": {"output": "size"},
    "mutation": {"mutate": "x"},
    "mutation of another": {"mutate": "y"},
}


def test_every_change_of_the_graph_changes_the_key() -> None:
    keys = {"base": key(), **{name: key(**change) for name, change in CHANGES.items()}}
    for (a, key_a), (b, key_b) in itertools.combinations(keys.items(), 2):
        assert key_a != key_b, f"{a} and {b} share a key"


def test_target_options_and_versions_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {key(), key(target="avx512")}
    for option in OPTIONS.values():
        if option.type is bool:
            value: Any = not option.default
        elif option.type is int:
            value = option.choices[-1] if option.choices else int(option.default) + 1
        else:
            several = option.choices or option.names
            value = several[-1] if several else "7" if option.pattern else "other"
        changed = key(Config().with_options({option.name: value}))
        assert (changed not in keys) == option.affects_code, option.name
        keys.add(changed)
    current = K.versions()
    for name in current:
        monkeypatch.setattr(K, "versions", lambda n=name: {**current, n: "other"})
        assert key() not in keys, name
        keys.add(key())


def test_names_and_provenance_do_not_matter() -> None:
    assert key(names="arg", line="other.py:99") == key()


def test_symbol_names_do_not_matter() -> None:
    def two(a: str, b: str) -> str:
        """Two inputs of sizes a and b, concatenated: sympy sorts the sum by name."""
        p, q = symbol(a), symbol(b)
        graph = Graph()
        x = graph.add("input", (), A.InputAttrs(0, "x", TensorType(DType.F32, (p,)), (1,)))
        y = graph.add("input", (), A.InputAttrs(1, "y", TensorType(DType.F32, (q,)), (1,)))
        graph.add("input", (), A.InputAttrs(2, "z", OpaqueType(f"complex64[{p}]"), None))
        both = graph.add("cat", [x, y], A.CatAttrs(0))
        graph.add("slice", [both], A.SliceAttrs((0,), (q * 2 + p - q,), (1,)))
        graph.outputs.append(Output(both, (1,)))
        graph.symbols.extend([SymbolSource(p, 0, 0), SymbolSource(q, 1, 0)])
        return K.graph_key(graph, "avx2", CONFIG)

    assert two("s0", "s1") == two("s1", "s0") == two("s77", "s5")
    assert two("s0", "s0") != two("s0", "s1")


def test_swapped_integer_arguments_differ() -> None:
    def sizes(first: sympy.Symbol, second: sympy.Symbol) -> str:
        graph = Graph()
        for k in range(2):
            graph.add("input", (), A.InputAttrs(k, f"n{k}", OpaqueType("SymInt"), None))
        graph.symbols.extend([SymbolSource(first, 0), SymbolSource(second, 1)])
        graph.outputs.append(Output(s0 - s1 * 2))
        return K.graph_key(graph, "avx2", CONFIG)

    assert sizes(s0, s1) != sizes(s1, s0)


ATTRS: list[A.Attrs] = [
    A.ConstantAttrs(1.0, DType.F32),
    A.TensorConstantAttrs(0, F32, (3, 1)),
    A.SizeAttrs(s0 + 1, DType.I64),
    A.IotaAttrs(4, DType.I64),
    A.CastAttrs(DType.F32),
    A.BitcastAttrs(DType.F32),
    A.ShapeAttrs((4, s0)),
    A.PermuteAttrs((1, 0)),
    A.SliceAttrs((0, 1), (2, s0), (1, -1)),
    A.PadAttrs((0, 1), (1, 0), 0.0),
    A.CatAttrs(1),
    A.AttendAttrs("nan"),
    A.RowStatisticAttrs("max", "nan"),
    A.StridedAttrs((2, 2), (1, 2), 0),
    A.WindowAttrs((0,), (2,), (1,), (1,), (3,)),
    A.ReduceAttrs((0, 1)),
    A.ScanAttrs(0),
    A.GatherAttrs(True),
    A.ScatterAttrs("set", True),
    A.ConvolutionAttrs((1, 1), (0, 0), (1, 1), False, (0, 0), 1),
    A.RandomAttrs("uniform", (4,), DType.F32, 0),
    A.ProjectAttrs(0),
    A.EagerAttrs(
        "aten.sort.default", (A.ArgRef(0), 1.0, torch.float32), (("a", None),), (F32,), ((3, 1),),
        ((3, 1),), False, "no lowering",
    ),
]  # fmt: skip

OTHER: dict[type, list[Any]] = {
    int: [7, -1],
    bool: [],
    float: [0.5, -0.0, float("nan"), float("inf")],
    str: ["other"],
    tuple: [(), (9,), (9, 9), ((9, 9),), (None,)],
    torch.dtype: [torch.float64, "torch.float32"],
    type(None): [0, "None"],
    A.ArgRef: [A.ArgRef(1), 0],
}


def _alternatives(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, DType):
        return [DType.F64, DType.U8]
    if isinstance(value, sympy.Expr):
        return [value + 1, 3]
    if isinstance(value, TensorType):
        return [value.with_dtype(DType.F64), value.with_shape((3, 4))]
    found = OTHER[type(value)]
    if isinstance(value, tuple):
        last = _alternatives(value[-1]) if value else []
        found = [*found, *((*value[:-1], other) for other in last)]
    return found


def test_attrs_samples_are_complete() -> None:
    # By name: a dataclass with slots leaves the class that it replaced among the subclasses.
    names = {c.__name__ for c in A.Attrs.__subclasses__()} - {"InputAttrs"}
    assert {type(a).__name__ for a in ATTRS} == names


@pytest.mark.parametrize("attrs", ATTRS, ids=lambda a: type(a).__name__)
def test_every_field_of_attrs_is_written(attrs: A.Attrs) -> None:
    variants = {repr(attrs): attrs}
    for field in dataclasses.fields(attrs):
        for other in _alternatives(getattr(attrs, field.name)):
            variant = dataclasses.replace(attrs, **{field.name: other})
            variants[repr(variant)] = variant
    writer = K._Writer(Graph())
    assert len({writer.text(v) for v in variants.values()}) == len(variants)
    assert len(variants) > len(dataclasses.fields(attrs))


def test_eager_reason_does_not_matter() -> None:
    def eager(**change: Any) -> str:
        graph = Graph()
        x = graph.add("input", (), A.InputAttrs(0, "x", F32, (3, 1)))
        base = next(a for a in ATTRS if isinstance(a, A.EagerAttrs))
        graph.add("eager", [x], dataclasses.replace(base, **change))
        return K.graph_key(graph, "avx2", CONFIG)

    assert eager(reason="other") == eager()
    assert eager(serial=3) != eager()


def test_every_graph_field_is_known_to_the_key() -> None:
    """A new field of Graph or Output must be put into the key, or be named here as left out."""
    written = {"nodes", "outputs", "mutations", "constants", "symbols"}
    assert {f.name for f in dataclasses.fields(Graph)} == written | {
        "provenance", "decisions", "_interned",
    }  # fmt: skip
    assert {f.name for f in dataclasses.fields(Output)} == {
        "value", "strides", "alias_of", "offset", "memory", "view_shape", "view_strides",
    } | {"view"}  # fmt: skip
    assert {f.name for f in dataclasses.fields(A.InputAttrs)} == {
        "index", "name", "type", "strides", "is_parameter", "alignment", "sparsity",
    }  # fmt: skip
    assert {f.name for f in dataclasses.fields(TensorType)} == {"dtype", "shape", "device"}


def test_objects_without_canonical_text_are_refused() -> None:
    graph = Graph()
    graph.add("eager", [], A.EagerAttrs("a.b", (torch.Generator(),), (), (), (), (), True, ""))
    with pytest.raises(NotCacheable, match="Generator"):
        K.graph_key(graph, "avx2", CONFIG)


def test_parts_cannot_run_over() -> None:
    assert K.combine({"a": "xb:1\ny"}) != K.combine({"a": "x", "b": "y"})
    assert K.combine({"a": "x", "b": ""}) != K.combine({"a": "x"})


def test_explanations() -> None:
    base = K.key_parts(make(), "avx2", CONFIG)
    assert explain_difference(base, base) == ""
    wider = K.key_parts(make(rows=5), "avx2", CONFIG)
    text = explain_difference(wider, base)
    assert "input 0: f32[4,3] strides (3,1) align 64 -> f32[5,3] strides (3,1) align 64" in text
    assert explain_difference(K.key_parts(make(), "avx512", CONFIG), base) == (
        "target: avx2 -> avx512"
    )
    assert "constant 0 differ" in explain_difference(
        K.key_parts(make(constant=torch.zeros(3)), "avx2", CONFIG), base
    )
    other_op = K.key_parts(make(op="sub"), "avx512", CONFIG)
    both = K.key_parts(make(rows=5), "avx512", CONFIG)
    assert nearest(wider, [other_op, both, base]) is base or nearest(
        wider, [other_op, both, base]
    ) is both  # fmt: skip
    assert nearest(both, [other_op, base, wider]) is wider
    assert nearest(other_op, [base, wider]) is None


def test_nest_key() -> None:
    keys = [K.nest_key(t, target) for t in ("a", "b") for target in ("avx2", "avx512")]
    assert len(set(keys)) == 4 and all(len(k) == 64 for k in keys)


def test_a_large_graph_is_fast() -> None:
    """1500 nodes take about 10 ms; the bound leaves room for a busy machine."""
    graph = Graph()
    kind = TensorType(DType.F32, (s0, 768))
    node = graph.add("input", (), A.InputAttrs(0, "x", kind, (768, 1)))
    for k in range(500):
        one = graph.add("constant", (), A.ConstantAttrs(float(k), DType.F32))
        one = graph.add("reshape", [one], A.ShapeAttrs((1, 1)))
        one = graph.add("expand", [one], A.ShapeAttrs((s0, 768)))
        node = graph.add("add", [node, one])
    graph.outputs.append(Output(node, (768, 1)))
    graph.symbols.append(SymbolSource(s0, 0, 0))
    K.graph_key(graph, "avx2", CONFIG)
    times: list[float] = []
    for _ in range(5):
        start = time.thread_time()
        K.graph_key(graph, "avx2", CONFIG)
        times.append(time.thread_time() - start)
    print(f"{len(graph.nodes)} nodes: {1e3 * min(times):.1f} ms")
    assert min(times) < 0.1
