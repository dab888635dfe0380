"""Attention as ``transformers`` writes it by hand, in 65 models: all found by the kernels of a GPU, or said why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import transformers as tf

import lazyc
from tests.gpu import DEVICE, OPTIONS, on_device
from tests.models.test_triton_attention import choices

pytestmark = [pytest.mark.full, pytest.mark.gpu]

LENGTH = 70
Inputs = dict[str, torch.Tensor]


def ids() -> torch.Tensor:
    return torch.randint(3, 60, (2, LENGTH))


def tokens() -> Inputs:
    return {"input_ids": ids()}


def both() -> Inputs:
    return {"input_ids": ids(), "decoder_input_ids": ids()}


def image() -> Inputs:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def large_image() -> Inputs:
    return {"pixel_values": torch.randn(2, 3, 64, 64)}


def sound() -> Inputs:
    return {"input_values": torch.randn(2, 4000)}


def spectrum() -> Inputs:
    return {"input_features": torch.randn(2, 8, 140), "decoder_input_ids": ids()}


def vectors() -> Inputs:
    return {"inputs": torch.randn(2, LENGTH, 32)}


class Case(NamedTuple):
    """``model`` and its config (``XModel``, ``XConfig``); ``found``: attentions in inference. ``stored``: why some keep
    their scores when they are trained (``trained``), or at all. ``steps``: products of scores of one that is trained,
    in both directions."""

    model: str
    sizes: dict[str, Any]
    found: int = 1
    inputs: Callable[[], Inputs] = tokens
    trained: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()
    steps: int = 4


BERT = {
    "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64,
    "max_position_embeddings": 128,
}  # fmt: skip
LLAMA = {**BERT, "num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 1, "vocab_size": 64, "n_positions": 128}
BART = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 64, "max_position_embeddings": 128,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 64}
SWIN = {
    "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4,
}  # fmt: skip
WAVE = {
    **BERT, "conv_dim": (16, 16), "conv_stride": (10, 5), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0,
}  # fmt: skip
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
FALCON = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 64}
MUL, SCATTER = "the scores are read by mul", "the scores are read by scatter"
RESULT = "the weights are a result"

CASES = {
    "albert": Case("Albert", {**BERT, "embedding_size": 16}),
    "bart": Case("Bart", BART, 3, both),
    "beit": Case("Beit", {**BERT, "image_size": 32, "patch_size": 4, "use_relative_position_bias": True}, 1, image),
    "bert": Case("Bert", BERT),
    "bigbird": Case("BigBird", {**BERT, "attention_type": "original_full"}),
    "biogpt": Case("BioGpt", BERT),
    "blenderbot": Case("Blenderbot", BART, 3, both),
    "bloom": Case("Bloom", {"hidden_size": 32, "n_head": 4, "n_layer": 1, "vocab_size": 64}),
    "clip": Case("CLIPText", BERT),
    "codegen": Case("CodeGen", {**GPT, "rotary_dim": 4}),
    "cohere": Case("Cohere", BERT),
    "convbert": Case("ConvBert", {**BERT, "embedding_size": 32}),
    "deberta": Case("Deberta", BERT),
    "deberta-v2": Case(
        "DebertaV2", {**BERT, **RELATIVE, "position_buckets": 16}, trained=("the scores are read by div", MUL)
    ),
    "dinov2": Case(
        "Dinov2",
        {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "image_size": 32, "patch_size": 4},
        1, image,
    ),
    "distilbert": Case("DistilBert", {"dim": 32, "n_heads": 4, "hidden_dim": 48, "n_layers": 1, "vocab_size": 64}),
    "electra": Case("Electra", {**BERT, "embedding_size": 32}),
    "esm": Case("Esm", {**BERT, "pad_token_id": 1, "mask_token_id": 2, "position_embedding_type": "rotary"}),
    "falcon": Case("Falcon", FALCON),
    "falcon-alibi": Case("Falcon", {**FALCON, "alibi": True, "multi_query": False}),
    "funnel": Case(
        "Funnel",
        {"block_sizes": [1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "vocab_size": 64,
         "num_decoder_layers": 1},
        2, trained=(MUL, "the scores are read by pad"),
    ),
    "gemma": Case("Gemma", {**LLAMA, "num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": Case("Gemma2", {**LLAMA, "head_dim": 16}),
    "gpt-bigcode": Case("GPTBigCode", GPT),
    "gpt-neo": Case(
        "GPTNeo",
        {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]],
         "window_size": 16, "vocab_size": 64, "max_position_embeddings": 128},
        2,
    ),
    "gpt-neox": Case("GPTNeoX", BERT),
    "gpt-oss": Case(
        "GptOss", {**LLAMA, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        trained=("the scores are read by reduce_max",), steps=1,
    ),
    "gpt2": Case("GPT2", GPT),
    "gpt2-upcast": Case("GPT2", {**GPT, "reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True}),
    "gptj": Case("GPTJ", {**GPT, "rotary_dim": 4}),
    "imagegpt": Case("ImageGPT", GPT),
    "layoutlm": Case("LayoutLM", BERT),
    "llama": Case("Llama", LLAMA),
    "longt5": Case("LongT5", {**T5, "local_radius": 15}, 3, both, stored=(RESULT,)),
    "m2m100": Case("M2M100", BART, 3, both),
    "marian": Case("Marian", {**BART, **SPECIAL}, 3, both),
    "megatron-bert": Case("MegatronBert", BERT),
    "mistral": Case("Mistral", {**LLAMA, "sliding_window": 16}),
    "mobilebert": Case(
        "MobileBert", {**BERT, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}
    ),
    "modernbert": Case(
        "ModernBert", {**BERT, "pad_token_id": 0, "local_attention": 16, "global_attn_every_n_layers": 1}
    ),
    "mpnet": Case("MPNet", BERT),
    "mpt": Case("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 1, "vocab_size": 64, "max_seq_len": 128}),
    "nystromformer": Case("Nystromformer", {**BERT, "segment_means_seq_len": 64, "num_landmarks": 64}),
    "olmo2": Case("Olmo2", BERT),
    "opt": Case("OPT", {**BERT, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "pegasus": Case("Pegasus", BART, 3, both),
    "perceiver": Case(
        "Perceiver",
        {"d_model": 32, "d_latents": 32, "num_latents": 66, "num_blocks": 1, "num_self_attends_per_block": 1,
         "num_self_attention_heads": 4, "num_cross_attention_heads": 4},
        2, vectors,
    ),
    "persimmon": Case("Persimmon", BERT),
    "phi": Case("Phi", BERT),
    "prophetnet": Case(
        "ProphetNet",
        {"hidden_size": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_encoder_layers": 1,
         "num_decoder_layers": 1, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "vocab_size": 64,
         "max_position_embeddings": 128},
        4, both, trained=(MUL, "the scores are read by reshape"),
    ),
    "qwen2": Case("Qwen2", LLAMA),
    "qwen3": Case("Qwen3", {**LLAMA, "head_dim": 16}),
    "recurrent-gemma": Case(
        "RecurrentGemma",
        {**BERT, "lru_width": 32, "attention_window_size": 16, "block_types": ["attention"], "head_dim": 8,
         "num_key_value_heads": 1},
    ),
    "roberta": Case("Roberta", BERT),
    "roformer": Case("RoFormer", BERT),
    "segformer": Case(
        "Segformer",
        {"hidden_sizes": [16, 32], "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1],
         "num_attention_heads": [2, 4], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2],
         "decoder_hidden_size": 16},
        2, large_image,
    ),
    "squeezebert": Case(
        "SqueezeBert",
        {**BERT, "embedding_size": 32, "q_groups": 1, "k_groups": 1, "v_groups": 1, "post_attention_groups": 1,
         "intermediate_groups": 1, "output_groups": 1},
    ),
    "stablelm": Case("StableLm", {**LLAMA, "num_key_value_heads": 4}),
    "swin": Case("Swin", SWIN, 2, image),
    "swinv2": Case("Swinv2", SWIN, 2, image),
    "t5": Case("T5", T5, 3, both),
    "vit": Case("ViT", {**BERT, "image_size": 32, "patch_size": 4}, 1, image),
    "wav2vec2": Case("Wav2Vec2", WAVE, 1, sound),
    "wavlm": Case("WavLM", WAVE, 1, sound),
    "whisper": Case(
        "Whisper",
        {**BART, **SPECIAL, "num_mel_bins": 8, "max_source_positions": 70, "max_target_positions": 128},
        3, spectrum,
    ),
    "xglm": Case(
        "XGLM",
        {"d_model": 32, "attention_heads": 4, "num_layers": 1, "ffn_dim": 48, "vocab_size": 64,
         "max_position_embeddings": 128},
    ),
    "xlm": Case(
        "XLM", {"emb_dim": 32, "n_heads": 4, "n_layers": 1, "vocab_size": 64, "max_position_embeddings": 128}
    ),
    "xlnet": Case(
        "XLNet", {"d_model": 32, "n_head": 4, "n_layer": 1, "d_inner": 48, "vocab_size": 64}, trained=(MUL, SCATTER)
    ),
}  # fmt: skip


# Gradients of convolutions are library calls, and what has no lowering.
IN_EAGER = {
    "aten.arange.start_step", "aten.as_strided_scatter.default", "aten.convolution_backward.default",
    "aten._weight_norm_interface_backward.default", "aten.histc.default", "aten.sort.default", "aten.topk.default",
    "transformers.grouped_mm_fallback.default", "transformers.grouped_mm_fallback_backward.default",
}  # fmt: skip


def build(case: Case) -> torch.nn.Module:
    config = getattr(tf, f"{case.model}Config")(**case.sizes)
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    config.use_cache = False
    config._attn_implementation = "eager"
    return getattr(tf, f"{case.model}Model")._from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", CASES)
def test_attention_is_found(name: str, train: bool) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    torch._dynamo.reset()
    lazyc.metrics.reset()
    model = on_device(build(case).train(train))
    inputs = {k: on_device(x) for k, x in case.inputs().items()}
    compiled = torch.compile(model, backend="lazyc", options=OPTIONS)
    gradients: list[dict[str, torch.Tensor]] = []
    results: list[torch.Tensor] = []
    with choices() as made, torch.set_grad_enabled(train):
        for function in (compiled, model):
            result = function(**inputs)[0]
            results.append(result.detach())
            if train:
                model.zero_grad()
                (result * torch.arange(result.size(-1), device=DEVICE)).sum().backward()
                named = model.named_parameters()
                gradients.append({n: p.grad for n, p in named if p.grad is not None})
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
    if train:
        mine, eager = gradients
        largest = max(float(x.abs().max()) for x in eager.values())
        # AOTAutograd has zeros for parameters of a second result that nobody uses.
        assert eager.keys() <= mine.keys()
        for n, x in mine.items():
            assert float((x - eager.get(n, 0.0)).abs().max()) <= 1e-5 * largest, n
    stored = {c.reason for c in made if c.kernel != "flash"}
    assert stored == {*case.stored, *(case.trained if train else ())}
    assert len(made) == case.found * (case.steps if train else 1)
    counts = lazyc.metrics.snapshot()
    assert not counts["compiler_bugs"]
    assert {f["op"] for f in counts["fallbacks"]} <= IN_EAGER
