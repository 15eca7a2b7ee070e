"""What of a step can be divided among processes, how sums are joined, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bigmodel_cli.data import Split
from bigmodel_cli.data.order import Ints
from bigmodel_cli.distributed import ALONE, World
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import SpecError
from bigmodel_cli.optim import SGDOptions
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import Role, Weight
from bigmodel_cli.tasks import TASKS
from bigmodel_cli.train.batches import ByTokens, Shares, micro_batches
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import train_step
from bigmodel_cli.train.together import Tree, as_tree, check_division

CPU = torch.device("cpu")


class Numbered(Split):
    """Samples that are their numbers."""

    def __init__(self, lengths: Ints | None = None, count: int = 101) -> None:
        self.lengths, self.count = lengths, count

    def __len__(self) -> int:
        return self.count

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        return {"sample": torch.from_numpy(samples), "epoch": torch.full((len(samples),), epoch)}


def options(**values: Any) -> TrainOptions:
    return TrainOptions.model_validate({"steps": 1, "precision": "fp32", **values})


@pytest.mark.parametrize("sizes", [(12, 3), (12, 12), (13, 13), (2, 1), (1, 1), (60, 5), (7, 7)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_processes_have_each_row_of_a_step_once_in_order(
    sizes: tuple[int, int], count: int
) -> None:
    own = options(batch_size=sizes[0], micro_batch_size=sizes[1])
    micro = micro_batches(Numbered(), own)
    shares = [Shares(micro, own.accumulate, World(rank, count)) for rank in range(count)]
    for step in (0, 1, 40):  # a step of more than 100 samples later is of another epoch
        whole = [micro[step * own.accumulate + i][KEY] for i in range(own.accumulate)]
        parts = [[s[step * s.each + i] for i in range(s.each)] for s in shares]
        found = [batch[KEY] for part in parts for batch in part if batch]
        assert torch.equal(torch.cat(found), torch.cat(whole))
        assert max(map(len, found)) <= sizes[1]
        rows = [sum(len(batch[KEY]) for batch in part if batch) for part in parts]
        assert max(rows) - min(rows) <= 1
        if own.accumulate % count == 0:
            assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))


@pytest.mark.parametrize("accumulate", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_batches_by_tokens_are_divided_too(accumulate: int, count: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 101)
    micro = ByTokens(Numbered(lengths), lengths, 60, 0)
    shares = [Shares(micro, accumulate, World(rank, count)) for rank in range(count)]
    for step in range(12):
        whole = [micro[step * accumulate + i][KEY] for i in range(accumulate)]
        found = [s[step * s.each + i] for s in shares for i in range(s.each)]
        keys = torch.cat([batch[KEY] for batch in found if batch])
        assert torch.equal(keys.sort().values, torch.cat(whole).sort().values)


def test_a_tree_of_sums_has_the_nodes_of_its_parts() -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(50) for _ in range(12)]
    by_hand = [leaves[i] + leaves[i + 1] for i in range(0, 12, 2)]
    by_hand = [by_hand[i] + by_hand[i + 1] for i in range(0, 6, 2)]
    expected = (by_hand[0] + by_hand[1]) + by_hand[2]
    for each in (1, 2, 4):
        nodes = []
        for first in range(0, 12, each):
            tree = Tree()
            for leaf in leaves[first : first + each]:
                tree.add([leaf.clone()])
            nodes.append(tree.total()[0])
        assert torch.equal(as_tree(nodes), expected)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_divisions_with_the_same_bits(count: int) -> None:
    check_division(options(batch_size=24, micro_batch_size=3, deterministic=True), World(0, count))
    check_division(options(batch_size=13, micro_batch_size=13), World(0, count))
    check_division(options(batch_size=18, micro_batch_size=3, deterministic=True), ALONE)


@pytest.mark.parametrize(("micro", "count"), [(3, 3), (4, 2), (4, 4), (24, 2), (24, 3)])
def test_divisions_without_them(micro: int, count: int) -> None:
    own = options(batch_size=24, micro_batch_size=micro, deterministic=True)
    with pytest.raises(SpecError, match=r"train\.deterministic: .* over . processes"):
        check_division(own, World(0, count))


class Unsure(nn.Module):
    """A network that changes a buffer, or draws by itself, in training."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.head = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3) -> (B, 2)"""
        x = self.norm(x)
        if self.training and self.way == "counts":
            self.seen += 1
        if self.training and self.way == "draws":
            x = x * torch.rand(3)
        return self.head(x)


def trained(model: nn.Module, **values: Any) -> TrainState:
    plain = SGDOptions(momentum=0.0, nesterov=False, weight_decay=0.0)
    weights = [Weight(n, p, Role(), 1.0, 0) for n, p in model.named_parameters()]
    state = TrainState(model, plain.build(weights))
    torch.manual_seed(2)
    batches = [
        {"image": torch.randn(5, 3), "label": torch.randint(2, (5,)), KEY: torch.arange(5)}
        for _ in range(3)
    ]
    from bigmodel_cli.config import DatasetInfo

    task = TASKS["classification"].model_validate({"type": "classification"})
    built = task.build(DatasetInfo(image_shape=(3,), classes=("a", "b")))  # type: ignore[arg-type]
    train_step(state, Objective(built), options(**values), batches, CPU, 0.3)
    return state


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("counts", "model: seen is changed by each micro-batch"),
        ("draws", r"train\.deterministic: a layer draws from torch's own generator"),
    ],
)
def test_what_cannot_be_joined_is_refused(way: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        trained(Unsure(way), deterministic=True)


def test_a_momentum_of_all_passes_is_refused() -> None:
    model = Unsure("")
    model.norm.momentum = None
    with pytest.raises(SpecError, match="norm has no momentum"):
        trained(model, deterministic=True)


def test_statistics_and_weights_are_those_of_a_plain_step() -> None:
    plain, fixed = Unsure(""), Unsure("")
    fixed.load_state_dict(plain.state_dict())
    trained(plain)
    trained(fixed, deterministic=True)
    for (name, a), b in zip(plain.state_dict().items(), fixed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)
    assert float(fixed.norm.running_mean.abs().sum()) > 0
    assert int(fixed.norm.num_batches_tracked) == 3
