"""Attention through the kernels of a GPU: types, widths, dims, masks, and models of transformers in eager mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as tf

import lazyc
from lazyc.backend import executables
from tests.gpu import DEVICE, OPTIONS, on_device
from tests.models.test_triton_attention import K, Q, check, choices, nanogpt, tensors

pytestmark = pytest.mark.gpu
Tensor = torch.Tensor


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_half_precision_is_trained() -> None:
    args = tensors(dtype=torch.float16)
    check(causal, *args, train=True, kernels=(1, 2))
    check(nanogpt, *args, train=True, kernels=(1, 3))


@pytest.mark.parametrize(
    ("width", "dtype"), [(96, torch.float16), (128, torch.bfloat16), (256, torch.float32)]
)
def test_wide_heads(width: int, dtype: torch.dtype) -> None:
    check(causal, *tensors(heads=1, width=width, dtype=dtype), train=True, kernels=(1, 2))


def test_five_dims() -> None:
    def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.softmax(q @ k.transpose(-1, -2) * 0.25, -1) @ v

    args = [x.unflatten(1, (2, 2)) for x in tensors(heads=4)]
    check(by_hand, *args, train=True, kernels=(1, 3))
    check(causal, *args)


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (3,), (0, 1), (0, 1, 2)])
def test_bool_masks_are_broadcast(dims: tuple[int, ...]) -> None:
    """Also one query that sees nothing, where queries have masks of their own."""
    torch.manual_seed(2)
    mask = torch.rand([1 if d in dims else n for d, n in enumerate((2, 2, Q, K))]) < 0.7
    if 2 not in dims:
        mask[..., 5, :] = False
    mask = on_device(mask)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    train = dims == (0, 1, 2)
    check(model, *tensors(), train=train, kernels=(1, 2) if train else (1,))


# --- models ---------------------------------------------------------------------------------------

COMMON: dict[str, Any] = {"vocab_size": 64, "attn_implementation": "eager"}
SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
}


def llama() -> Any:
    config = tf.LlamaConfig(**COMMON, **SMALL, num_key_value_heads=2, use_cache=False)
    return tf.LlamaModel(config)


def gpt2() -> Any:
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = tf.GPT2Config(**COMMON, **rates, n_embd=32, n_head=4, n_layer=2, use_cache=False)
    return tf.GPT2Model(config)


def bert() -> Any:
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return tf.BertModel(tf.BertConfig(**COMMON, **SMALL, **rates), add_pooling_layer=False)


def t5() -> Any:
    config = tf.T5Config(
        **COMMON, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return tf.T5EncoderModel(config)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("make", [llama, gpt2, bert, t5])
def test_every_attention_of_a_model_is_found(make: Any, train: bool) -> None:
    """Both layers', whose second products are told, and nothing has a number for each query and key of each
    head but the gradient of T5's bias, which has none for each sequence."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    lazyc.metrics.reset()
    model = on_device(make().train(train))
    ids = torch.randint(0, 64, (2, Q), device=DEVICE)
    hidden = torch.ones(2, Q, dtype=torch.long, device=DEVICE)
    hidden[1, Q - 9 :] = 0
    before = set(map(id, executables()))
    compiled = torch.compile(model, backend="lazyc", options=OPTIONS)
    results = []
    with choices() as made, torch.set_grad_enabled(train):
        for function in (compiled, model):
            out = function(input_ids=ids, attention_mask=hidden).last_hidden_state
            out = out * hidden[..., None]
            grads = []
            if train:
                model.zero_grad()
                out.square().sum().backward()
                grads = [p.grad for p in model.parameters() if p.grad is not None]
            results.append([out.detach(), *grads])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    assert not lazyc.metrics.snapshot()["fallbacks"]
    assert len([c for c in made if c.kernel == "flash"]) == (2 + 2 * 3 if train else 2)
    assert all(c.kernel == "flash" for c in made)
    programs = [x.program for x in executables() if id(x) not in before]
    stored = [
        b.shape
        for program in programs
        for b in program.buffers
        if b.kind != "input" and b.shape.count(Q) >= 2 and b.shape[0] != Q and 4 in b.shape
    ]
    assert set(stored) == ({(4, Q, Q)} if make is t5 and train else set())
