"""Tiny models of different families from transformers configs, with inputs; no dropout anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import nn

VOCABULARY = 99
Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Family:
    """A model class, the arguments of its config, and example inputs.

    ``output`` names the field of the model's result that is compared. Where the inputs hold labels
    the training test uses the model's own loss, else the mean square of the output.
    """

    name: str
    model: Callable[[Any], nn.Module]
    config: Callable[[], Any]
    inputs: Callable[[], Inputs]
    output: str = "logits"

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self.model(self.config())


def _ids(batch: int = 2, length: int = 13) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _padding(batch: int = 2, length: int = 13) -> torch.Tensor:
    """An attention mask whose last row ends four tokens early."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, -4:] = 0
    return mask


def _encoder_inputs() -> Inputs:
    return {"input_ids": _ids(), "attention_mask": _padding(), "labels": torch.tensor([0, 1])}


def _decoder_inputs() -> Inputs:
    return {"input_ids": _ids(), "labels": _ids()}


def _padded_decoder_inputs() -> Inputs:
    return {**_decoder_inputs(), "attention_mask": _padding()}


def _image_inputs(batch: int = 2) -> Inputs:
    return {"pixel_values": _noise(batch, 3, 32, 32), "labels": torch.arange(batch) % 2}


def _bert() -> Any:
    return tf.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _electra() -> Any:
    return tf.ElectraConfig(
        vocab_size=VOCABULARY,
        embedding_size=24,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _gpt2() -> Any:
    return tf.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def _llama() -> Any:
    return tf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        use_cache=False,
    )


def _mistral() -> Any:
    return tf.MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=5,
        max_position_embeddings=32,
        use_cache=False,
    )


def _opt() -> Any:
    return tf.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=24,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        dropout=0.0,
        use_cache=False,
    )


def _t5() -> Any:
    return tf.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        use_cache=False,
    )


def _vit() -> Any:
    return tf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _swin() -> Any:
    return tf.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        drop_path_rate=0.0,
    )


def _clip() -> Any:
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
    widths = {"hidden_size": 32, "intermediate_size": 48}
    return tf.CLIPConfig(
        text_config={
            **layers,
            **widths,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 32,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={**layers, **widths, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )


def _mobilenet() -> Any:
    return tf.MobileNetV2Config(
        image_size=32,
        depth_multiplier=0.35,
        output_stride=8,
        classifier_dropout_prob=0.0,
        num_labels=3,
    )


def _whisper() -> Any:
    return tf.WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=20,
        max_target_positions=20,
        dropout=0.0,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )


def _gpt2_model(config: Any) -> nn.Module:
    """With the loss that transformers would use after a warning, which breaks the graph."""
    model = tf.GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    return model


def _mobilenet_model(config: Any) -> nn.Module:
    """Its own initialisation shrinks activations to nothing; see bench.models.mobilenet_v2."""
    model = tf.MobileNetV2ForImageClassification(config)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


def _clip_inputs() -> Inputs:
    ids = _ids(length=9)
    ids[:, -1] = 2  # the end token, whose state is the text's feature
    return {"input_ids": ids, "pixel_values": _noise(2, 3, 32, 32)}


FAMILIES: tuple[Family, ...] = (
    Family("bert", tf.BertForSequenceClassification, _bert, _encoder_inputs),
    Family("electra", tf.ElectraForSequenceClassification, _electra, _encoder_inputs),
    Family("gpt2", _gpt2_model, _gpt2, _decoder_inputs),
    Family("llama", tf.LlamaForCausalLM, _llama, _padded_decoder_inputs),
    Family("mistral", tf.MistralForCausalLM, _mistral, _decoder_inputs),
    Family("opt", tf.OPTForCausalLM, _opt, _padded_decoder_inputs),
    Family("t5", tf.T5ForConditionalGeneration, _t5, _padded_decoder_inputs),
    Family("vit", tf.ViTForImageClassification, _vit, _image_inputs),
    Family("swin", tf.SwinForImageClassification, _swin, _image_inputs),
    Family("clip", tf.CLIPModel, _clip, _clip_inputs, "logits_per_image"),
    # Batch norms over few values are poorly conditioned: a larger batch.
    Family("mobilenet_v2", _mobilenet_model, _mobilenet, lambda: _image_inputs(8)),
    Family(
        "whisper",
        tf.WhisperForConditionalGeneration,
        _whisper,
        lambda: {"input_features": _noise(2, 8, 40), "labels": _ids(length=9)},
    ),
)
