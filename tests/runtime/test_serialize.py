from __future__ import annotations

import copy
import dataclasses
import json
import math
from typing import Any

import pytest
import sympy
import torch
from torch.utils._sympy import functions as dynamo

from lazyc.errors import CacheCorrupt, NotCacheable
from lazyc.ir import program as P
from lazyc.ir.decisions import Decision
from lazyc.ir.index import Axis
from lazyc.ir.loops import BufferParam, LoopNest, Stage
from lazyc.ir.sparse_contraction import sparse_key
from lazyc.ir.tiled_product import Tile, tiled_kernels
from lazyc.ir.types import DType
from lazyc.runtime import serialize as S
from lazyc.runtime.codec import TORCH_DTYPE
from lazyc.runtime.dims import decode_dim, encode_dim
from lazyc.runtime.tensors import dump_tensor, load_tensor

s0 = sympy.Symbol("s0", integer=True, positive=True)
s1 = sympy.Symbol("s1", integer=True, positive=True)
n0 = sympy.Symbol("n0", integer=True, positive=True)
u0 = sympy.Symbol("u0", integer=True)

DIMS = [
    7, -3, 2**70, s0, u0, s0 * 4 + 1, s0 * s1 - 1, (s0 * 3) // 2, s0 % 5, sympy.Max(s0, 3),
    sympy.Min(s0, s1), s0**2, sympy.ceiling(s0 / 3), dynamo.FloorDiv(s0 * s1, 2),
    dynamo.Mod(s0, 4), dynamo.PythonMod(u0, 4), dynamo.ModularIndexing(s0, 2, 4),
    dynamo.Max(s0, s1), dynamo.CleanDiv(s0, 2), dynamo.CeilToInt(dynamo.IntTrueDiv(s0, 2)),
    sympy.Symbol("zf0", real=True) * sympy.Float(0.1), dynamo.FloatTrueDiv(s0, sympy.Float(2.5)),
]  # fmt: skip


@pytest.mark.parametrize("dim", DIMS, ids=str)
def test_dims_round_trip(dim: Any) -> None:
    data = json.loads(json.dumps(encode_dim(dim)))
    assert decode_dim(data) == dim
    if isinstance(dim, sympy.Expr):
        values = {s0: 12, s1: 5, u0: 11}
        assert decode_dim(data).subs(values) == dim.subs(values)  # type: ignore[union-attr]


def test_unknown_operations_are_not_written() -> None:
    with pytest.raises(NotCacheable, match="sin"):
        encode_dim(sympy.sin(s0))


@pytest.mark.parametrize(
    "data",
    [
        None, True, 1.5, "s0", "__import__('os')", [], ["eval", "1"], ["symbol"], ["symbol", 1, ""],
        ["symbol", "s0", "q"], ["add", "s0"], ["rational", 1, 0], {"add": 1}, ["add", [True]],
    ],
    ids=str,
)  # fmt: skip
def test_other_data_is_no_dim(data: Any) -> None:
    with pytest.raises(CacheCorrupt):
        decode_dim(data)


ARGUMENTS: tuple[Any, ...] = (
    None, True, False, 0, 1, -(2**63), 0.0, -0.0, 0.1, math.inf, -math.inf, math.nan, "sum", "",
    1.5j, complex(-0.0, math.inf),
    torch.float32, torch.bfloat16, torch.complex64, torch.device("cpu"), torch.device("cuda", 1),
    torch.strided, torch.sparse_csr, torch.channels_last, torch.preserve_format, s0 * 2,
    (), (1, (2, (s0, "x"))), P.BufferRef(3), (P.BufferRef(1), P.BufferRef(2, (s0, 2), (2, 1), 5)),
)  # fmt: skip


def make_program() -> tuple[P.Program, dict[str, S.KernelRef]]:
    operand = P.Operand(0, s0 * 2, 768, 1, (s0 * 768, 4))
    program = P.Program(
        inputs=(0, -1, 1),
        buffers=(
            P.Buffer(0, "input", DType.F32, (s0, 768), (768, 1), source=0),
            P.Buffer(1, "opaque", None, (), (), source=2, device="cuda:0"),
            P.Buffer(2, "temp", DType.BF16, (s0 * 2 + 1,), (1,)),
            P.Buffer(3, "constant", DType.I64, (), (), source=1),
        ),
        steps=(
            P.KernelStep(
                "ab" * 32,
                (0, 2),
                (s0, s0 * 2),
                "add model.py:3",
                P.SparseFactor("2:4", 0, (s0, 8, 64), True, "reads half"),
            ),
            P.GemmStep(
                DType.F32,
                (12, s0),
                s0,
                64,
                768,
                operand,
                operand,
                operand,
                True,
                True,
                tile=Tile(14, 32, 512, 18),
            ),
            P.EagerStep("aten.x.y", ARGUMENTS, (("a", ARGUMENTS), ("b", 1.5)), (2,), True, True),
            P.SeedStep(3),
        ),
        outputs=(
            P.ProgramOutput(2, (s0, 2), (2, 1), 1),
            P.ProgramOutput(-1, value=s0 + 1),
            P.ProgramOutput(-1),
        ),
        nests={
            "ab" * 32: LoopNest(
                (),
                (),
                (BufferParam(DType.F32, "in", n0 * 768), BufferParam(DType.BF16, "out", n0 * 2)),
                (n0,),
                comment="add model.py:3",
            ),
            "cd" * 32: LoopNest((), (), (BufferParam(DType.F32, "inout", 1),)),
        },
        constants=[torch.randn(3, 4).t(), torch.tensor([1, 2, 3])],
        symbols=(P.SymbolSource(s0, 0, 0), P.SymbolSource(s1, 1)),
        packed=(P.KernelStep("cd" * 32, (0,), ()),),
        parameters=(0, 2),
        tiles=(
            P.RowTiles(
                0,
                (P.RowStep(axes=1), P.RowStep("k")),
                12 * s0,
                s0,
                ((2, s0 * 2),),
                True,
                (2, s0, 6),
                True,
            ),
        ),
        decisions=(
            Decision("n 33 -> 40", "wider", "model.py:3", 1, None, 2, 0.1, "padding"),
            Decision("stored", ""),
        ),
    )
    kernels = {
        "ab" * 32: S.KernelRef("k_ab", n0 * 4, 2, 1),
        "cd" * 32: S.KernelRef("k_cd", 1, 1),
        sparse_key("ab" * 32, 0, "2:4"): S.LaunchRef("k_24", 12, 1, (s0,), 4),
    }
    tiled = {k.key: S.KernelRef(k.part, 1, 1) for k in tiled_kernels(Tile(14, 32, 512, 18))}
    return program, kernels | tiled


def same(a: Any, b: Any) -> bool:
    """Equal and of equal types all the way down, with nan equal to itself and -0.0 not to 0.0."""
    if isinstance(a, sympy.Basic) and isinstance(b, sympy.Basic):
        return bool(a == b)
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, float):
        return a.hex() == b.hex()
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return a == b


def test_program_round_trips() -> None:
    program, kernels = make_program()
    parts = S.dump_program(program, kernels | {"unused": S.KernelRef("u", 1, 1)})
    loaded, loaded_kernels = S.load_program(parts)
    assert same(loaded, program)
    assert same(sorted(loaded_kernels.items()), sorted(kernels.items()))
    assert S.dump_program(loaded, loaded_kernels) == parts


def test_of_a_nest_the_interface_is_kept() -> None:
    program, kernels = make_program()
    program.nests["cd" * 32] = dataclasses.replace(
        program.nests["cd" * 32], axes=(Axis("i", 4),), stages=(Stage((), ()),)
    )
    program.nests["unused"] = program.nests["cd" * 32]
    loaded, _ = S.load_program(S.dump_program(program, kernels))
    original, _ = make_program()
    assert same(sorted(loaded.nests.items()), sorted(original.nests.items()))


def test_every_program_field_is_written() -> None:
    assert {f.name for f in dataclasses.fields(P.Program)} == {
        *S.PROGRAM_FIELDS, "nests", "constants",
    }  # fmt: skip


def repr_type(value: Any) -> str:
    return type(value).__name__  # no address: xdist compares ids between its workers


@pytest.mark.parametrize("value", [object(), [1], {1: 2}, torch.ones(1), lambda: 0], ids=repr_type)
def test_arguments_without_a_form_are_refused(value: Any) -> None:
    with pytest.raises(NotCacheable):
        S.TEMPLATE.encode((value,))


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every node of a JSON tree."""
    found = [path]
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            found += _paths(value, (*path, key))
    return found


def test_every_node_of_the_json_is_checked() -> None:
    """Each node in turn replaced by something that no codec writes."""
    program, kernels = make_program()
    parts = S.dump_program(program, kernels)
    tree = json.loads(parts["program"])
    for path in _paths(tree):
        for foreign in ({"x": 1}, [[]], 1.5):
            changed = copy.deepcopy(tree)
            if path:
                at = changed
                for key in path[:-1]:
                    at = at[key]
                at[path[-1]] = foreign
            else:
                changed = foreign
            with pytest.raises(CacheCorrupt):
                S.load_program({**parts, "program": json.dumps(changed).encode()})


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_garbage_is_corrupt(data: bytes) -> None:
    with pytest.raises(CacheCorrupt):
        S.load_program({"program": data})


def test_missing_parts_are_corrupt() -> None:
    program, kernels = make_program()
    parts = S.dump_program(program, kernels)
    for name in parts:
        with pytest.raises(CacheCorrupt):
            S.load_program({k: v for k, v in parts.items() if k != name})
    with pytest.raises(CacheCorrupt):
        S.load_program({**parts, "constant.0": parts["constant.0"] + b"\0"})


TENSORS = {
    "transposed": torch.randn(3, 4).t(),
    "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
    "expanded": torch.randn(5).expand(3, 5),
    "strided": torch.randn(10)[3:9:2],
    "bool": torch.tensor([True, False]),
    "float8": torch.randn(4).to(torch.float8_e4m3fn),
    "special": torch.tensor([math.nan, -0.0, math.inf]),
    "parameter": torch.nn.Parameter(torch.randn(2)),
    "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_round_trip(name: str) -> None:
    tensor = TENSORS[name]
    header, data = dump_tensor(tensor)
    loaded = load_tensor(json.loads(json.dumps(header)), data)
    assert type(loaded) is torch.Tensor and not loaded.requires_grad
    assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
    assert loaded.stride() == tensor.stride()
    want = tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)
    assert torch.equal(loaded.contiguous().reshape(-1).view(torch.uint8), want)


def test_tensors_without_a_form_are_refused() -> None:
    for tensor in (torch.ones(2, 2).to_sparse(), torch.empty(2, device="meta")):
        with pytest.raises(NotCacheable):
            dump_tensor(tensor)


def test_bad_tensor_headers_are_corrupt() -> None:
    header, data = dump_tensor(torch.ones(2, 3))
    name = TORCH_DTYPE.encode(torch.float32)
    for bad in ([], [[name, "cpu"], [[2], [3, 1]]], [[name, "cuda"], [[2, 3], [3, 1]]],
                [["torch.nn", "cpu"], [[2, 3], [3, 1]]],
                [[name, "cpu"], [[-2, 3], [3, 1]]]):  # fmt: skip
        with pytest.raises(CacheCorrupt):
            load_tensor(bad, data)
    with pytest.raises(CacheCorrupt):
        load_tensor(header, data[:-1])
