"""Which products become attention without scores, and that programs compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lazyc.codegen.gpu_target import gpu_target
from lazyc.config import AttentionKernel
from lazyc.ir.decisions import Decision
from lazyc.ir.graph import Graph, Node
from lazyc.ir.interp import run_graph
from lazyc.ir.loops import Dot
from lazyc.ir.program import Program
from lazyc.ir.types import DType
from lazyc.passes.attention import attention
from lazyc.passes.padding import pad_products
from lazyc.passes.products_as_loops import products_as_loops
from lazyc.passes.realize import live_nodes
from lazyc.passes.schedule import schedule
from tests.passes.build import Make, check, kernels, run_program

Q, K, D = 17, 19, 6  # lengths that nothing else has


def inputs(m: Make, dtype: DType = DType.F32, q: int = Q, k: int = K) -> tuple[Node, Node, Node]:
    return (
        m.input(2, 3, q, D, dtype=dtype), m.input(2, 3, k, D, dtype=dtype),
        m.input(2, 3, k, D, dtype=dtype),
    )  # fmt: skip


def scores(m: Make, q: Node, k: Node) -> Node:
    product = m.emit("matmul", q, m.transpose(k, -1, -2))
    return m.mul(product, 0.5)


def softmax(m: Make, s: Node) -> Node:
    last = len(s.shape) - 1
    e = m.exp(m.sub(s, m.reduce("max", s, last, keepdim=True)))
    return m.div(e, m.reduce("sum", e, last, keepdim=True))


def rewritten(graph: Graph, mode: AttentionKernel = "flash") -> tuple[Graph, list[Decision]]:
    found = attention(graph, mode)
    return found, found.decisions


def ops(graph: Graph) -> list[str]:
    return [n.op for n in live_nodes(graph)]


def flash(graph: Graph, *args: torch.Tensor, count: int = 1) -> Program:
    """The Program of a Graph in which every product is found; it computes what the Graph does."""
    found, told = rewritten(graph)
    assert told and all(d.what == "flash" for d in told), told
    assert all(d.why.endswith("scores are not stored") for d in told)
    want = run_graph(graph, [a.clone() for a in args])
    for got, wanted in zip(run_graph(found, list(args)), want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
    program = check(products_as_loops(found), *args)
    dots = [
        any(isinstance(i, Dot) for s in n.stages for i in s.body) for n in program.nests.values()
    ]
    assert sum(dots) == count
    for buffer in program.buffers:
        if buffer.kind != "input":
            assert not {q * Q for q in (1, 3, 6)} & set(buffer.shape) or K not in buffer.shape
    return program


def test_attention() -> None:
    m = Make()
    q, k, v = inputs(m)
    graph = m.outputs(m.emit("matmul", softmax(m, scores(m, q, k)), v))
    found, _ = rewritten(graph)
    assert ops(found).count("attend") == ops(found).count("dot") == 1
    assert not {"matmul", "reduce_max", "reduce_sum", "exp"} & set(ops(found))
    program = flash(graph, torch.randn(2, 3, Q, D), *(torch.randn(2, 3, K, D) for _ in range(2)))
    assert len(kernels(program)) == 1


def test_the_logsumexp_is_a_statistic() -> None:
    m = Make()
    q, k, v = inputs(m)
    s = scores(m, q, k)
    top = m.reduce("max", s, 3, keepdim=True)
    e = m.exp(m.sub(s, top))
    total = m.reduce("sum", e, 3, keepdim=True)
    out = m.emit("matmul", m.div(e, total), v)
    graph = m.outputs(out, m.squeeze(m.add(top, m.log(total)), 3))
    args = torch.randn(2, 3, Q, D), torch.randn(2, 3, K, D), torch.randn(2, 3, K, D)
    program = flash(graph, *args)
    assert len(kernels(program)) == 2  # attention, and the logarithm of a number for each row


@pytest.mark.parametrize("guard", ["lowering", "torch"])
def test_rows_without_keys(guard: str) -> None:
    """As the lowering of attention writes it, and as torch's ``_safe_softmax``."""
    m = Make()
    q, k, v = inputs(m)
    mask = m.input(Q, K)
    s = m.add(scores(m, q, k), m.expand(m.reshape(mask, (1, 1, Q, K)), (2, 3, Q, K)))
    if guard == "lowering":
        top = m.reduce("max", s, 3, keepdim=True)
        hidden = m.compare("eq", top, -math.inf)
        e = m.exp(m.sub(s, m.where(hidden, 0.0, top)))
        total = m.where(hidden, 1.0, m.reduce("sum", e, 3, keepdim=True))
        weights = m.div(e, total)
    else:
        every = m.reduce("min", m.compare("eq", s, -math.inf), 3, keepdim=True)
        weights = m.where(m.expand(every, s.shape), 0.0, softmax(m, s))
    graph = m.outputs(m.emit("matmul", weights, v))
    hide = torch.zeros(Q, K)
    hide[3], hide[5, 2:] = -math.inf, -math.inf
    args = torch.randn(2, 3, Q, D), torch.randn(2, 3, K, D), torch.randn(2, 3, K, D), hide
    assert not run_graph(graph, list(args))[0][:, :, 3].any()
    flash(graph, *args)


def test_factors_and_half_types() -> None:
    """Dropout after the softmax, in bf16 and another shape."""
    m = Make()
    q, k, v = inputs(m, DType.BF16)
    wide = [m.cast(x, DType.F32) for x in (q, k, v)]
    factor = m.input(2, 3, Q, K)
    weights = m.mul(m.cast(softmax(m, scores(m, wide[0], wide[1])), DType.F32), factor)
    weights = m.cast(m.cast(m.reshape(weights, (6, Q, K)), DType.BF16), DType.F32)
    out = m.emit("matmul", weights, m.reshape(wide[2], (6, K, D)))
    graph = m.outputs(out)
    found, _ = rewritten(graph)
    (attend,) = (n for n in found.nodes if n.op == "attend")
    assert attend.inputs[1].dtype is DType.BF16 and len(attend.inputs) == 3
    halves = (torch.randn(2, 3, n, D).bfloat16() for n in (Q, K, K))
    args = [*halves, torch.rand(2, 3, Q, K).round()]
    want, got = run_graph(graph, list(args)), run_graph(found, list(args))
    torch.testing.assert_close(got, want)
    # Weights are rounded before the division, not after it.
    program = products_as_loops(found)
    torch.testing.assert_close(run_program(schedule(program), args), want, rtol=1e-2, atol=1e-2)


def gradients(m: Make, q: Node, k: Node, v: Node, grad: Node, lse: Node, delta: Node) -> list[Node]:
    p = m.exp(m.sub(scores(m, q, k), m.unsqueeze(lse, 3)))
    grad_p = m.emit("matmul", grad, m.transpose(v, -1, -2))
    grad_s = m.mul(p, m.sub(grad_p, m.unsqueeze(delta, 3)))
    return [
        m.emit("matmul", grad_s, k), m.emit("matmul", m.transpose(grad_s, -1, -2), q),
        m.emit("matmul", m.transpose(p, -1, -2), grad),
    ]  # fmt: skip


def test_gradients() -> None:
    """One kernel for those of the queries, one for those of keys and values."""
    m = Make()
    q, k, v = inputs(m)
    grad, lse, delta = m.input(2, 3, Q, D), m.input(2, 3, Q), m.input(2, 3, Q)
    graph = m.outputs(*gradients(m, q, k, v, grad, lse, delta))
    args = [0.5 * torch.randn(2, 3, n, D) for n in (Q, K, K, Q)] + [torch.randn(2, 3, Q)] * 2
    program = flash(graph, *args, count=2)
    assert len(kernels(program)) == 2


def test_nothing_is_stored_to_be_padded() -> None:
    m = Make()
    q, k, v = inputs(m)
    grad, lse, delta = m.input(2, 3, Q, D), m.input(2, 3, Q), m.input(2, 3, Q)
    graph = m.outputs(*gradients(m, q, k, v, grad, lse, delta))
    slow = replace(gpu_target("sm_90").product_costs, loads_per_second=1e6, least=2)
    assert "pad" in ops(pad_products(graph, slow))
    assert "pad" not in ops(pad_products(rewritten(graph)[0], slow))


def test_equal_lengths_keep_queries_and_keys_apart() -> None:
    m = Make()
    q, k, v = inputs(m, q=Q, k=Q)
    grad, lse, delta = m.input(2, 3, Q, D), m.input(2, 3, Q), m.input(2, 3, Q)
    graph = m.outputs(*gradients(m, q, k, v, grad, lse, delta))
    args = [0.5 * torch.randn(2, 3, Q, D) for _ in range(4)] + [torch.randn(2, 3, Q)] * 2
    flash(graph, *args, count=2)


def stored(
    build: Callable[[Make, Node, Node, Node], tuple[Node, ...]], reason: str, mode: AttentionKernel
) -> None:
    m = Make()
    q, k, v = inputs(m)
    graph = m.outputs(*build(m, q, k, v))
    found, told = rewritten(graph, mode)
    assert [d.what for d in told] == ["math"] and reason in told[0].why, told
    assert not {"dot", "attend"} & set(ops(found))


def test_what_is_stored() -> None:
    def plain(m: Make, q: Node, k: Node, v: Node) -> tuple[Node, ...]:
        return (m.emit("matmul", softmax(m, scores(m, q, k)), v),)

    def with_weights(m: Make, q: Node, k: Node, v: Node) -> tuple[Node, ...]:
        weights = softmax(m, scores(m, q, k))
        return m.emit("matmul", weights, v), weights

    def with_scores(m: Make, q: Node, k: Node, v: Node) -> tuple[Node, ...]:
        s = scores(m, q, k)
        return m.emit("matmul", softmax(m, s), v), m.sum(s, 2)

    def of_the_rows(m: Make, q: Node, k: Node, v: Node) -> tuple[Node, ...]:
        s = scores(m, q, k)
        top = m.reduce("max", s, 3, keepdim=True)
        e = m.exp(m.sub(s, top))
        weights = m.div(e, m.reduce("sum", e, 3, keepdim=True))
        other = m.expand(m.reshape(m.sum(top, 2), (2, 3, 1, 1)), (2, 3, K, D))
        return (m.emit("matmul", weights, m.add(v, other)),)

    stored(plain, "the option attention is math", "math")
    stored(with_weights, "the weights are a result", "flash")
    stored(with_scores, "the scores are read by reduce_sum", "flash")
    stored(of_the_rows, "depends on the scores", "flash")


@pytest.mark.parametrize(
    ("q", "width", "dtype", "reason"),
    [
        (8, 16, DType.F32, "8 x 19 scores do not fill a tile"),
        (32, 300, DType.F32, "a head of 300 does not fit a tile"),
        (32, 16, DType.F64, "double precision"),
    ],
)
def test_what_auto_stores(q: int, width: int, dtype: DType, reason: str) -> None:
    m = Make()
    x, k, v = (m.input(2, n, width, dtype=dtype) for n in (q, K, K))
    s = m.emit("matmul", x, m.transpose(k, -1, -2))
    _, told = rewritten(m.outputs(m.emit("matmul", softmax(m, s), v)), "auto")
    assert [d.what for d in told] == ["math"] and reason in told[0].why


def test_a_gated_unit_is_no_attention() -> None:
    """silu has an exponential of a product, too; its width is that of a head here."""
    m = Make()
    x, gate, up, down = m.input(Q, D), m.input(D, K), m.input(D, K), m.input(K, D)
    s = m.emit("matmul", x, gate)
    silu = m.div(s, m.add(m.exp(m.mul(s, -1.0)), 1.0))
    out = m.emit("matmul", m.mul(silu, m.emit("matmul", x, up)), down)
    found, told = rewritten(m.outputs(out))
    assert not told and ops(found).count("matmul") == 3


def test_a_chain_of_products_is_no_attention() -> None:
    m = Make()
    x, up, down = m.input(32, 16), m.input(16, 64), m.input(64, 16)
    graph = m.outputs(m.emit("matmul", m.emit("tanh", m.emit("matmul", x, up)), down))
    found, told = rewritten(graph)
    assert told == [] and found is graph
