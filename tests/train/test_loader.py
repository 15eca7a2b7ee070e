"""Micro-batches that reach from one epoch into the next: rows of both are padded to the longest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigmodel_cli.data import Split
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.batches import BySamples


class Growing(Split):
    """Five samples; in epoch e, sample i is a row of i + 1 + e numbers."""

    resident = False
    lengths = None

    def __len__(self) -> int:
        return 5

    def to(self, device: torch.device) -> None:
        """Nothing to move."""

    def batch(self, samples: Any, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """Tokens padded with -1, frames padded with 0, and the lengths."""
        lengths = torch.from_numpy(samples) + 1 + epoch
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        tokens = torch.where(real, lengths[:, None], -1)
        return {
            "tokens": tokens,
            "frames": real[..., None].expand(-1, -1, 3).float(),
            "lengths": lengths,
        }


def test_rows_of_two_epochs_in_one_micro_batch() -> None:
    micro = BySamples(Growing(), 4, seed=0)
    for k in range(10):
        batch = micro[k]
        lengths, longest = batch["lengths"], int(batch["lengths"].max())
        assert batch["tokens"].shape == (4, longest)
        assert batch["frames"].shape == (4, longest, 3)
        for row, n in enumerate(lengths.tolist()):
            assert batch["tokens"][row].tolist() == [n] * n + [-1] * (longest - n)
            assert batch["frames"][row, :, 0].tolist() == [1.0] * n + [0.0] * (longest - n)
    seen = np.concatenate([micro[k]["lengths"].numpy() for k in range(5)])
    epochs = np.arange(20) // 5
    assert [sorted(seen[epochs == e] - 1 - e) for e in range(4)] == [list(range(5))] * 4


def test_a_validation_holds_no_more_tokens_than_it_must() -> None:
    def rows(length: int | None, **options: int) -> int:
        return TrainOptions(steps=1, **options).validation_rows(length)  # type: ignore[arg-type]

    assert rows(None) == 256
    assert rows(48) == 256
    assert rows(1024, batch_size=4) == 16
    assert rows(1024, batch_size=64) == 64
    assert rows(1 << 20, batch_size=1) == 1
    assert rows(128, batch_tokens=32_768) == 256
    assert rows(1024, batch_size=64, validation_batch=3) == 3
