"""What layers draw in training depends on rows, positions and the number of the draw alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bigmodel_cli import draw
from bigmodel_cli.draw import again, doubled, drawing, kept_by_row
from bigmodel_cli.parts.dropout import drawn_by_row, drop_path, dropout, dropout_module

CPU = torch.device("cpu")
WORD = 1 << 64


def kept(keys: Tensor, *shape: int, dropped: int = 20_000) -> Tensor:
    with drawing(keys):
        found = kept_by_row(shape, dropped, CPU)
    assert found is not None
    return found


def mixed(x: int) -> int:
    """SplitMix64's finaliser, in Python's own integers."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB % WORD
    return x ^ x >> 31


def test_each_item_is_a_function_of_its_row_and_place() -> None:
    keys = torch.tensor([5, -(1 << 62), 77])
    found = kept(keys, 3, 2, 5, 7)
    stream = int(draw.key_of(draw.LAYERS, 1))
    for row, head, t, s in [(0, 0, 0, 0), (1, 1, 4, 6), (2, 1, 3, 2), (2, 0, 4, 5)]:
        own = mixed((int(keys[row]) % WORD) ^ stream)
        number = 1 + (head << 48) + (t << 24) + s // 4
        bits = mixed((own + number * 0x9E3779B97F4A7C15) % WORD)
        assert bool(found[row, head, t, s]) == (bits >> 16 * (s % 4) & 0xFFFF >= 20_000)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 6), (3, 5, 7), (3, 2, 5, 7), (3, 2, 3, 4, 5)])
def test_neighbours_and_other_devices_change_nothing(shape: tuple[int, ...]) -> None:
    keys = torch.tensor([5, -9, 77])
    whole = kept(keys, *shape)
    assert whole.shape == shape
    for i in range(3):
        assert torch.equal(kept(keys[i : i + 1], 1, *shape[1:])[0], whole[i])
    inner = shape[1:] or (1,)
    inner = (inner[0] * inner[1], *inner[2:]) if len(inner) == 4 else inner
    own = draw.Drawing(keys).next_keys(1)
    assert torch.equal(draw._on_device(own, inner, 20_000).reshape(shape), whole)


def test_padding_changes_nothing_before_it() -> None:
    keys = torch.tensor([5, -9])
    assert torch.equal(kept(keys, 2, 9, 12)[:, :4], kept(keys, 2, 4, 12))
    assert torch.equal(kept(keys, 2, 3, 9, 11)[:, :, :4, :6], kept(keys, 2, 3, 4, 6))
    assert torch.equal(kept(keys, 2 * 5, 4).view(2, 5, 4)[:, :3].flatten(0, 1), kept(keys, 6, 4))


def test_draws_are_of_that_probability_and_independent() -> None:
    keys = torch.arange(200)
    found = kept(keys, 200, 64, 100, dropped=6554).double()
    assert float(found.mean()) == pytest.approx(0.9, abs=0.001)
    flat = (found - 0.9).flatten(1)
    for shift in (1, 2, 3, 4, 100):
        assert abs(float((flat[:, shift:] * flat[:, :-shift]).mean())) < 0.0004
    assert abs(float((flat[1:] * flat[:-1]).mean())) < 0.0004
    with drawing(keys):
        first, second = (kept_by_row((200, 64, 100), 6554, CPU) for _ in range(2))
    assert first is not None
    assert second is not None
    both = (first.double() - 0.9) * (second.double() - 0.9)
    assert abs(float(both.mean())) < 0.0004


def test_what_is_computed_again_draws_again() -> None:
    x = torch.ones(2, 8, 4)
    with drawing(torch.tensor([3, 4])):
        dropout(x, 0.5, True)
        repeated = again()
        two = dropout(x, 0.5, True), dropout(x, 0.5, True)
    for _ in range(2):
        with repeated():
            assert torch.equal(dropout(x, 0.5, True), two[0])
            assert torch.equal(dropout(x, 0.5, True), two[1])
    assert not torch.equal(*two)


def test_rows_that_pass_twice_have_other_draws() -> None:
    x = torch.ones(4, 100)
    with drawing(torch.tensor([3, 4])):
        with doubled():
            y = dropout(x, 0.5, True)
        after = dropout(x[:2], 0.5, True)
    assert not torch.equal(y[:2], y[2:])
    assert not torch.equal(y[:2], after)
    with drawing(torch.tensor([4])), doubled():
        assert torch.equal(dropout(x[:2], 0.5, True), y[[1, 3]])


def test_others_rows_draw_from_the_generator() -> None:
    x = torch.ones(5, 8)
    with drawing(torch.tensor([3, 4])):
        torch.manual_seed(1)
        first = dropout(x, 0.5, True)
        torch.manual_seed(1)
        assert torch.equal(dropout(x, 0.5, True), first)
        assert not torch.equal(dropout(x, 0.5, True), first)


def test_modules_of_others_draw_by_row() -> None:
    import torchvision

    own = torch.nn.Dropout(0.5)
    drawn_by_row(own)
    assert type(own) is type(dropout_module(0.1))
    assert own.p == 0.5
    path = torchvision.ops.StochasticDepth(0.5, "row")
    drawn_by_row(path)
    x = torch.ones(64, 3, 2, 2)
    keys = torch.arange(64)
    with drawing(keys):
        y = path(x)
    with drawing(keys):
        assert torch.equal(y, drop_path(x, 0.5))
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(path.eval()(x), x)
