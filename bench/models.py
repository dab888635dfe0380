"""The workloads that are measured: models with random weights, chains of ops, a training step.

A workload is bound to a way of compiling and to a float type; the result is a ``Step``, a function
without arguments that runs it once and returns the tensors that are compared between backends.
All weights and inputs come from fixed seeds, so every binding computes the same thing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import nn

SEQUENCE = 128
IMAGE = 224
# Steps of different backends are compared.
NO_DROPOUT: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

Step: TypeAlias = Callable[[], list[torch.Tensor]]
Compile: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class Workload:
    """One row of the benchmark.

    ``target`` is the speed-up over eager that lazyc must reach. ``bind(compile, dtype)`` prepares
    a Step whose model or function went through ``compile``.
    """

    name: str
    title: str
    target: float
    bind: Callable[[Compile, torch.dtype], Step]


def _inference(build: Callable[[], nn.Module], inputs: Callable[[], torch.Tensor], result: str):
    """A binding that runs the model without gradients and returns its output field ``result``."""

    def bind(compile: Compile, dtype: torch.dtype) -> Step:
        model = _in_dtype(build(), dtype)
        example = inputs()
        if example.is_floating_point():
            example = example.to(dtype)
        compiled = compile(model)

        def step() -> list[torch.Tensor]:
            with torch.no_grad():
                return [getattr(compiled(example), result)]

        return step

    return bind


def _in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model itself for float32 (backends share its weights), else a converted copy."""
    return model if dtype is torch.float32 else copy.deepcopy(model).to(dtype)


def _tokens(vocabulary: int, batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocabulary, (batch, length), generator=generator)


def _image() -> torch.Tensor:
    return torch.randn(1, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))


@cache
def bert_base() -> nn.Module:
    """BERT-base, 110M parameters, random weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig()).eval()


@cache
def gpt2() -> nn.Module:
    """GPT-2, 124M parameters, random weights, with the language-model head; no dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return with_loss(GPT2LMHeadModel(GPT2Config(use_cache=False, **NO_DROPOUT))).eval()


@cache
def resnet50() -> nn.Module:
    """ResNet-50 from transformers, random weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    return ResNetForImageClassification(ResNetConfig()).eval()


@cache
def mobilenet_v2() -> nn.Module:
    """MobileNetV2 from transformers.

    Its own random initialisation lets activations shrink into denormal numbers, which are slow on
    every backend; convolutions are initialised with ``kaiming_normal_`` instead.
    """
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    torch.manual_seed(0)
    model = MobileNetV2ForImageClassification(MobileNetV2Config()).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


def small_gpt() -> nn.Module:
    """A GPT of 6 layers, width 384, for training; no dropout, so that steps can be compared."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=8192,
        n_positions=256,
        n_embd=384,
        n_layer=6,
        n_head=6,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        **NO_DROPOUT,
    )
    torch.manual_seed(0)
    return with_loss(GPT2LMHeadModel(config)).train()


def with_loss(model: Any) -> nn.Module:
    """Names the loss of a GPT-2: transformers would take the same one after a logged warning, which
    breaks the graph."""
    model.loss_type = "ForCausalLM"
    return model


def pointwise_chain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Eleven pointwise ops; any shape."""
    gated = nn.functional.gelu(x * y + x) * torch.sigmoid(y)
    return (gated - 0.5 * torch.tanh(x)) / (1 + torch.abs(y))


def softmax_of_norm(x: torch.Tensor) -> torch.Tensor:
    """``softmax(layer_norm(x) + x)`` over the last dim."""
    return torch.softmax(nn.functional.layer_norm(x, x.shape[-1:]) + x, dim=-1)


def _function(function: Callable[..., torch.Tensor], *shapes: tuple[int, ...]):
    """A binding that calls a function on normal random tensors of these shapes."""

    def bind(compile: Compile, dtype: torch.dtype) -> Step:
        generator = torch.Generator().manual_seed(1)
        args = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        compiled = compile(function)

        def step() -> list[torch.Tensor]:
            with torch.no_grad():
                return [compiled(*args)]

        return step

    return bind


def training_step(
    build: Callable[[], nn.Module], vocabulary: int, batch: int, length: int
) -> Callable[[Compile, torch.dtype], Step]:
    """A binding of forward, backward and an AdamW update; the model is compiled, AdamW is torch's.

    The Step returns the loss and the gradients that it computed, before they are cleared by the
    next one.
    """

    def bind(compile: Compile, dtype: torch.dtype) -> Step:
        model = copy.deepcopy(build()).to(dtype).train()
        tokens = _tokens(vocabulary, batch, length)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
        compiled = compile(model)
        parameters = list(model.parameters())

        def step() -> list[torch.Tensor]:
            optimizer.zero_grad(set_to_none=True)
            loss = compiled(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            return [loss.detach(), *(p.grad for p in parameters if p.grad is not None)]

        return step

    return bind


def _text(build: Callable[[], nn.Module], vocabulary: int, result: str):
    return _inference(build, lambda: _tokens(vocabulary, 1, SEQUENCE), result)


WORKLOADS: tuple[Workload, ...] = (
    Workload("bert-base", "BERT-base", 1.25, _text(bert_base, 30522, "last_hidden_state")),
    Workload("gpt2", "GPT-2 124M", 1.2, _text(gpt2, 50257, "logits")),
    Workload("resnet50", "ResNet-50", 1.5, _inference(resnet50, _image, "logits")),
    Workload("mobilenet-v2", "MobileNetV2", 2.0, _inference(mobilenet_v2, _image, "logits")),
    Workload(
        "pointwise",
        "pointwise chain, 4096x4096",
        20.0,
        _function(pointwise_chain, (4096, 4096), (4096, 4096)),
    ),
    Workload(
        "softmax-norm",
        "softmax(layer_norm(x)+x), 8192x1024",
        10.0,
        _function(softmax_of_norm, (8192, 1024)),
    ),
    Workload(
        "train-gpt",
        "training step, 6-layer GPT, 4x256 tokens",
        1.15,
        training_step(small_gpt, 8192, 4, 256),
    ),
)


def workload(name: str) -> Workload:
    """The workload of that name; KeyError names the known ones."""
    for candidate in WORKLOADS:
        if candidate.name == name:
            return candidate
    raise KeyError(f"no workload {name!r}; known: {', '.join(w.name for w in WORKLOADS)}")
