"""Distances between patches, by loops over the dense weights."""

from __future__ import annotations

import math

import pytest
import torch
from looks import layer_of

from bigmodel_cli.attend import patches
from bigmodel_cli.attend.look import Side
from bigmodel_cli.attend.patches import in_patches
from bigmodel_cli.attend.tiles import Dense


@pytest.mark.parametrize("rows", [3, 256])
def test_each_query_counts_alike_however_much_it_reads_of_other_positions(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3 x 5 patches after 2 special positions, before a register: some read little of patches,
    and one nothing.
    """
    monkeypatch.setattr(patches, "ROWS", rows)
    count, high, wide, first = 18, 3, 5, 2
    torch.manual_seed(2)
    scores = 3 * torch.randn(2, count, count)
    scores[:, ::2, 0] += 8
    scores[0, 7, first : first + high * wide] = -math.inf
    weights = scores.softmax(-1)
    side = Side("patches", [str(n) for n in range(count)], list(range(count)), first, (high, wide))
    values = torch.randn(2, count, 4)
    layer = layer_of("blocks.0.mixer", weights, side, False)
    found = in_patches(layer, Dense(weights, values, weights @ values, False, False))
    for head in range(2):
        means = []
        for i in range(high * wide):
            own = [float(weights[head, first + i, first + j]) for j in range(high * wide)]
            if not sum(own):
                continue
            far = [math.dist(divmod(i, wide), divmod(j, wide)) for j in range(high * wide)]
            means.append(sum(w * d for w, d in zip(own, far, strict=True)) / sum(own))
        assert len(means) == 15 - (head == 0)
        want = sum(means) / len(means)
        assert float(found.statistics.distance[head]) == pytest.approx(want, rel=1e-5)
