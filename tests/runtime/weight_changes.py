"""Ways in which a weight changes that its version counter or its address shows."""

from __future__ import annotations

import torch


def sgd(w: torch.nn.Parameter) -> None:
    w.grad = torch.ones_like(w)
    torch.optim.SGD([w], lr=0.5).step()


def adamw(w: torch.nn.Parameter) -> None:
    w.grad = torch.ones_like(w)
    torch.optim.AdamW([w], lr=0.5).step()


def load_state(w: torch.nn.Parameter) -> None:
    module = torch.nn.Module()
    module.w = w
    module.load_state_dict({"w": torch.randn_like(w)})


@torch.no_grad()
def in_place(w: torch.nn.Parameter) -> None:
    w.mul_(2.0)


@torch.no_grad()
def through_a_view(w: torch.nn.Parameter) -> None:
    w[4:5].fill_(1.5)


def new_data(w: torch.nn.Parameter) -> None:
    w.data = torch.randn_like(w)


CHANGES = [in_place, through_a_view, sgd, adamw, load_state, new_data]
