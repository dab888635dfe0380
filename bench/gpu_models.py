"""Twelve models for ``lazyc check-kernels bench.gpu_models``: real widths, two layers, random weights.

Equal layers have equal kernels, so two of them show all that a deep model has. Weights are bf16, as
they are on the GPUs that the kernels are for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import nn

Made = tuple[nn.Module, dict[str, Any]]

BATCH, LENGTH, IMAGE = 2, 128, 224
_LAYERS: dict[str, Any] = {"num_hidden_layers": 2}


def _made(model: nn.Module, **inputs: torch.Tensor) -> Made:
    floats = {k: x.bfloat16() if x.is_floating_point() else x for k, x in inputs.items()}
    return model.bfloat16(), floats


def _ids(vocabulary: int = 1000) -> torch.Tensor:
    return torch.randint(3, vocabulary, (BATCH, LENGTH))


def _causal(model: Any) -> Made:
    ids = _ids()
    model.loss_type = "ForCausalLM"
    return _made(model, input_ids=ids, labels=ids)


def _image(model: nn.Module) -> Made:
    return _made(
        model,
        pixel_values=torch.randn(BATCH, 3, IMAGE, IMAGE),
        labels=torch.arange(BATCH) % 2,
    )


def bert() -> Made:
    """BERT-base with a padding mask."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[-1, -9:] = 0
    model = tf.BertForSequenceClassification(tf.BertConfig(**_LAYERS))
    return _made(model, input_ids=_ids(), attention_mask=mask, labels=torch.arange(BATCH) % 2)


def electra() -> Made:
    """ELECTRA-small: embeddings narrower than the layers."""
    model = tf.ElectraForSequenceClassification(tf.ElectraConfig(**_LAYERS))
    return _made(model, input_ids=_ids(), labels=torch.arange(BATCH) % 2)


def gpt2() -> Made:
    """GPT-2 124M, with its vocabulary of 50257."""
    return _causal(tf.GPT2LMHeadModel(tf.GPT2Config(n_layer=2, use_cache=False)))


def llama() -> Made:
    """A Llama of width 1024 whose four queries share a key."""
    config = tf.LlamaConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_attention_heads=16,
        num_key_value_heads=4, use_cache=False, **_LAYERS,
    )  # fmt: skip
    return _causal(tf.LlamaForCausalLM(config))


def mistral() -> Made:
    """A Mistral of width 1024 with a sliding window and heads of 128."""
    config = tf.MistralConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=3584, num_attention_heads=8,
        num_key_value_heads=2, sliding_window=64, use_cache=False, **_LAYERS,
    )  # fmt: skip
    return _causal(tf.MistralForCausalLM(config))


def opt() -> Made:
    """OPT-125M."""
    return _causal(tf.OPTForCausalLM(tf.OPTConfig(use_cache=False, **_LAYERS)))


def t5() -> Made:
    """T5-small: attention with a learned bias of positions."""
    config = tf.T5Config(num_layers=2, use_cache=False)
    config.decoder_start_token_id = 0
    ids = _ids()
    return _made(tf.T5ForConditionalGeneration(config), input_ids=ids, labels=ids)


def vit() -> Made:
    """ViT-base on images of 224 by 224."""
    return _image(tf.ViTForImageClassification(tf.ViTConfig(**_LAYERS)))


def swin() -> Made:
    """Swin-tiny's first stage: attention within windows that are shifted."""
    config = tf.SwinConfig(depths=[2], num_heads=[3], drop_path_rate=0.0)
    return _image(tf.SwinForImageClassification(config))


def resnet() -> Made:
    """The first two stages of ResNet-50."""
    config = tf.ResNetConfig(hidden_sizes=[256, 512], depths=[1, 2])
    return _image(tf.ResNetForImageClassification(config))


def convnext() -> Made:
    """ConvNeXt-tiny's first two widths: depthwise convolutions, and products over channels."""
    config = tf.ConvNextConfig(num_stages=2, hidden_sizes=[96, 192], depths=[1, 1])
    return _image(tf.ConvNextForImageClassification(config))


def whisper() -> Made:
    """Whisper-tiny: sound to text, attention across."""
    config = tf.WhisperConfig(
        encoder_layers=2, decoder_layers=2, max_source_positions=250, use_cache=False
    )
    features = torch.randn(BATCH, config.num_mel_bins, 500)
    model = tf.WhisperForConditionalGeneration(config)
    return _made(model, input_features=features, labels=_ids())


MODELS: dict[str, Callable[[], Made]] = {
    f.__name__: f
    for f in (
        bert, electra, gpt2, llama, mistral, opt, t5, vit, swin, resnet, convnext, whisper,
    )
}  # fmt: skip
