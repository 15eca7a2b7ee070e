"""Plain training loops as one writes them by hand, with nothing that a loop does not need.

The decoder has GPT-2's layout without biases and dropout, the CNN is that of
`sample_configs/mnist_cnn.yaml`. Of each loop there are several variants, since none is the fastest
on every machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = (
            nn.Linear(dim, 4 * dim, bias=False),
            nn.Linear(4 * dim, dim, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = (
            y.view(batch, length, self.heads, -1).transpose(1, 2)
            for y in self.qkv(self.norm1(x)).split(dim, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, dim))
        down: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + down


class Decoder(nn.Module):
    def __init__(self, vocab: int, context: int, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, dim), nn.Embedding(context, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.head = nn.Linear(dim, vocab, bias=False)
        self.head.weight = self.tokens.weight
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.tokens(x) + self.places.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return F.cross_entropy(self.head(self.norm(h)).view(-1, self.head.out_features), y.view(-1))


def tokens_of(text: Path) -> tuple[Tensor, int]:
    """The characters of the first nine tenths of a text as numbers, and how many there are."""
    letters = text.read_text(encoding="utf-8")
    numbers = {c: i for i, c in enumerate(sorted(set(letters)))}
    kept = letters[: 9 * len(letters) // 10]
    return torch.tensor([numbers[c] for c in kept]), len(numbers)


def decoder(
    text: Path,
    size: tuple[int, int, int, int, int],
    step: Callable[[], None],
    kind: str,
) -> None:
    """Train for ever; `size`: batch, context, width, layers, heads; `kind` fp32, autocast, bf16.

    `gathered` is fp32 with a batch stacked row by row in Python, unfused AdamW and clipping.
    """
    data, vocab = tokens_of(text)
    batch, context, *shape = size
    model = Decoder(vocab, context, *shape)
    if kind == "bf16":
        model.bfloat16()
    plain = kind == "gathered"
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=not plain
    )
    cast: Any = torch.autocast("cpu", torch.bfloat16) if kind == "autocast" else None
    reach = torch.arange(context + 1)
    array = data.to(torch.int16).numpy()
    while True:
        starts = torch.randint(len(data) - context, (batch,))
        if plain:
            rows = [array[i : i + context + 1].astype(np.int64) for i in starts]
            x = torch.stack([torch.from_numpy(row[:-1]) for row in rows])
            y = torch.stack([torch.from_numpy(row[1:]) for row in rows])
        else:
            window = data[starts[:, None] + reach]
            x, y = window[:, :-1], window[:, 1:].contiguous()
        with cast or contextlib.nullcontext():
            loss = model(x, y)
        loss.backward()
        if plain:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step()


def cnn(images: Tensor, labels: Tensor, batch: int, step: Callable[[], None], kind: str) -> None:
    """Train for ever on (N, 1, H, W) pixels in 0 to 1; `kind` is fp32 or autocast."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    cast: Any = torch.autocast("cpu", torch.bfloat16) if kind == "autocast" else None
    while True:
        for rows in torch.randperm(len(images)).split(batch):
            x = images[rows].contiguous(memory_format=torch.channels_last)
            with cast or contextlib.nullcontext():
                loss = F.cross_entropy(model(x), labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step()
