"""Two checkpoints head by head: by dense weights and a plain formula, and planted differences."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from bigmodel_cli.attend.apart import SHOWN, Apart, LayerApart
from bigmodel_cli.attend.diff import DiffOptions, compare, diff
from bigmodel_cli.attend.looking import look_at
from bigmodel_cli.attend.matching import assignment
from bigmodel_cli.attend.picture import draw_apart
from bigmodel_cli.errors import SpecError
from bigmodel_cli.loaded import Loaded, load_checkpoint
from bigmodel_cli.models import build
from bigmodel_cli.models.decoder import DecoderOptions
from bigmodel_cli.parts.contract import attending
from bigmodel_cli.parts.kernels import weights

TEXT = "a rose is a ros"
PLAIN = {"type": "attention", "num_heads": 4, "position": {"type": "rotary"}}
Made = Callable[..., Loaded]


@pytest.fixture
def made(base: Path) -> Made:
    """A decoder of this mixer with random weights, and the base's tokenizer."""
    loaded = load_checkpoint(base, "cpu", tell=lambda text: None)

    def of(mixer: dict[str, Any], seed: int = 0, blocks: int = 2, **ffn: Any) -> Loaded:
        torch.manual_seed(seed)
        block = {"repeat": blocks, "mixer": mixer, "ffn": ffn or {"type": "gelu", "hidden": 16}}
        options = DecoderOptions.model_validate({"type": "decoder", "dim": 16, "blocks": [block]})
        model = build(options, loaded.info)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.4 * torch.randn_like(parameter))
        return replace(loaded, model=model.eval())

    return of


def dense(loaded: Loaded, tokens: Tensor) -> list[Tensor]:
    """All weights (H, T, S) of each layer, and what is beside the keys as a last column."""
    found: list[Tensor] = []

    def keep(call: Any) -> None:
        w = weights(
            call.q, call.k, call.spec, segments=call.segments, bias=call.bias, sinks=call.sinks
        )[0]
        found.append(torch.cat((w, 1 - w.sum(-1, keepdim=True)), -1))

    for part in attending(loaded.model).values():
        part.watcher = keep
    with torch.no_grad():
        loaded.model(tokens)
    for part in attending(loaded.model).values():
        part.watcher = None
    return found


def tokens_of(loaded: Loaded) -> Tensor:
    from bigmodel_cli.data import load_tokenizer

    return torch.tensor([load_tokenizer(loaded.assets).encode(TEXT)])


@pytest.mark.parametrize(
    "mixer",
    [
        PLAIN,
        {"type": "attention", "num_heads": 4, "kv_heads": 2, "window": 4, "sinks": True},
        {"type": "attention", "num_heads": 3, "head_dim": 5, "position": {"type": "alibi"}},
        {"type": "mla", "num_heads": 2, "kv_rank": 6, "rotary_dim": 4},
    ],
    ids=["plain", "grouped, window, sinks", "alibi", "latent"],
)
def test_divergence_equals_scipys_of_dense_weights(mixer: dict[str, Any], made: Made) -> None:
    one, two = made(mixer, 0), made(mixer, 1)
    tokens = tokens_of(one)
    found = diff(one, two, TEXT, DiffOptions(resolution=64))
    pairs = zip(dense(one, tokens), dense(two, tokens), strict=True)
    for layer, (p, q) in zip(found.layers, pairs, strict=True):
        want = jensenshannon(p.double().clamp(min=0), q.double().clamp(min=0), base=2, axis=-1)
        assert layer.bits is not None
        np.testing.assert_allclose(layer.bits, (want**2).mean(-1), atol=2e-6)
        assert layer.blocks is not None
        assert (layer.blocks.rows, layer.blocks.columns) == (1, 1)
        maps, seen = layer.blocks.mean, p[0, :, :-1] > 0
        torch.testing.assert_close(maps[:, seen], (q - p)[:, :, :-1][:, seen], atol=5e-6, rtol=0)
        assert bool(maps[:, ~torch.ones(len(seen), len(seen)).tril().bool()].isnan().all())
    assert {*found.parts} == {f"blocks.{n}.{slot}" for n in (0, 1) for slot in ("mixer", "ffn")}


def test_a_model_is_not_apart_from_itself(made: Made) -> None:
    one = made({**PLAIN, "sinks": True})
    found = diff(one, copy.deepcopy(one), TEXT, DiffOptions())
    assert all(not bool(layer.bits.any()) for layer in found.layers if layer.bits is not None)
    assert all(not bool(layer.outputs.any()) and not layer.moved for layer in found.layers)
    assert not any(map(float, found.parts.values()))
    assert all(layer.blocks is None for layer in found.layers)


def swapped(loaded: Loaded, layer: int, a: int, b: int, heads: int) -> Loaded:
    """The same function with two heads of a layer in each other's place."""
    found = copy.deepcopy(loaded)
    mixer = found.model.blocks[layer].mixer
    width = mixer.out.weight.shape[1] // heads
    order = torch.arange(heads * width).view(heads, width)
    order[[a, b]] = order[[b, a]]
    flat = order.flatten()
    with torch.no_grad():
        mixer.out.weight.copy_(mixer.out.weight[:, flat])
        for tensor in (mixer.qkv.weight, mixer.qkv.bias):
            tensor.copy_(torch.cat([piece[flat] for piece in tensor.chunk(3)]))
    return found


@pytest.mark.parametrize("seed", range(10))
def test_planted_swaps_of_heads_are_found(seed: int, made: Made) -> None:
    """The two heads stand out, nothing else does, and the permutation is told."""
    one, rng = made(PLAIN, seed, blocks=3), random.Random(seed)
    layer, (a, b) = rng.randrange(3), rng.sample(range(4), 2)
    two = swapped(one, layer, a, b, 4)
    tokens = tokens_of(one)
    with torch.no_grad():
        torch.testing.assert_close(one.model(tokens), two.model(tokens), atol=1e-4, rtol=1e-4)
    found = diff(one, two, TEXT, DiffOptions())
    far = {(n, head) for n, head, bits, _ in found.ranked() if bits is not None and bits > 1e-3}
    assert far == {(layer, a), (layer, b)}
    assert [each.moved for each in found.layers] == [
        {a: b, b: a} if number == layer else {} for number in range(3)
    ]
    first, second = found.ranked()[:2]
    assert {first[:2], second[:2]} == far
    assert found.parts[f"blocks.{layer}.mixer"] < 1e-4
    text = found.to_text()
    assert f"{layer}.{a}" in text
    assert "is now" in text


@pytest.mark.parametrize(
    "order", list(itertools.islice(itertools.permutations(range(4)), 1, 24, 7))
)
def test_any_order_of_heads_is_told(order: tuple[int, ...], made: Made) -> None:
    one = made(PLAIN, 5, blocks=1)
    two = copy.deepcopy(one)
    mixer, flat = two.model.blocks[0].mixer, torch.arange(16).view(4, 4)[list(order)].flatten()
    with torch.no_grad():
        for tensor in (mixer.qkv.weight, mixer.qkv.bias):
            tensor.copy_(torch.cat([piece[flat] for piece in tensor.chunk(3)]))
    (layer,) = diff(one, two, TEXT, DiffOptions()).layers
    assert layer.partners == [order.index(head) for head in range(4)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_assignment_costs_what_scipys_does(size: int) -> None:
    for seed in range(20):
        costs = np.random.default_rng(seed).random((size, size)).round(1)  # with ties
        found = assignment(costs.tolist())
        assert sorted(found) == list(range(size))
        rows, columns = linear_sum_assignment(costs)
        assert costs[range(size), found].sum() == pytest.approx(costs[rows, columns].sum())


def test_signed_weights_and_other_mixers_are_told_by_what_they_give(made: Made) -> None:
    mixer = {"type": "differential", "num_heads": 2, "head_dim": 4}
    one = made(mixer, 0)
    two = copy.deepcopy(one)
    with torch.no_grad():
        two.model.blocks[1].mixer.qkv.weight[40:].mul_(2)  # the values of the second head
    found = diff(one, two, TEXT, DiffOptions(resolution=8))
    assert all(layer.bits is None and layer.partners is None for layer in found.layers)
    assert found.layers[1].outputs.tolist() == pytest.approx([0, 1 / 1.5], abs=1e-6)
    assert found.ranked()[0][:2] == (1, 1)
    moe = {"type": "moe", "experts": 2, "top_k": 1, "hidden": 8}
    one = made({"type": "gated_deltanet", "num_heads": 2}, 0, **moe)
    two = copy.deepcopy(one)
    with torch.no_grad():
        two.model.blocks[1].ffn.router.weight.mul_(-1)
    found = diff(one, two, TEXT, DiffOptions())
    assert [layer.bits for layer in found.layers] == [None, None]
    assert not bool(found.layers[0].outputs.any())
    assert float(found.parts["blocks.0.ffn"]) == 0
    assert float(found.parts["blocks.1.ffn"]) > 0.01
    assert "blocks.1.ffn" in found.to_text()


HYBRID = [
    {"mixer": {"type": "convolution", "kernel": 3}},
    {"mixer": {"type": "retention", "num_heads": 2}},
    {"mixer": {"type": "attention", "num_heads": 2}},
]


def test_heads_of_hybrids_have_the_numbers_that_looks_give_them(base: Path) -> None:
    """Other mixers count as layers, with the changes of their outputs and implied matrices."""
    loaded = load_checkpoint(base, "cpu", tell=lambda text: None)
    options = DecoderOptions.model_validate({"type": "decoder", "dim": 16, "blocks": HYBRID})
    torch.manual_seed(3)
    one = replace(loaded, model=build(options, loaded.info).eval())
    two = copy.deepcopy(one)
    with torch.no_grad():
        two.model.blocks[2].mixer.qkv.weight[40:].mul_(3)  # the values of the second head
        two.model.blocks[2].mixer.qkv.bias[40:].mul_(3)
    found = diff(one, two, TEXT, DiffOptions(resolution=64))
    looked = look_at(one, TEXT)
    assert [layer.name for layer in found.layers] == [layer.name for layer in looked.layers]
    assert [layer.number for layer in looked.layers] == [0, 1, 2]
    assert found.ranked()[0][:2] == (2, 1)
    assert found.layers[2].outputs.tolist() == pytest.approx([0, 1], abs=1e-5)
    assert not bool(found.layers[1].outputs.any())
    assert not bool(found.layers[0].outputs.any())
    with torch.no_grad():
        two.model.blocks[0].mixer.conv.weight.mul_(2)
    again = diff(one, two, TEXT, DiffOptions(resolution=64))
    assert again.layers[0].outputs.tolist() == pytest.approx([1 / 1.5], abs=1e-5)
    blocks, own = again.layers[0].blocks, looked.layers[0].blocks
    assert blocks is not None
    torch.testing.assert_close(blocks.mean, own.mean, atol=1e-6, rtol=1e-5, equal_nan=True)


def test_models_of_other_structures_are_refused(made: Made) -> None:
    one = made(PLAIN)
    with pytest.raises(SpecError, match=r"--diff: blocks.2.* is in the second alone"):
        diff(one, made(PLAIN, blocks=3), TEXT, DiffOptions())
    with pytest.raises(SpecError, match=r"qkv.weight is \[48, 16\] in the first and \[32, 16\]"):
        diff(one, made({**PLAIN, "kv_heads": 2}), TEXT, DiffOptions())
    with pytest.raises(SpecError, match="4 heads x 15 queries x 15 keys and 2 heads x"):
        diff(
            one, made({**PLAIN, "num_heads": 2, "position": {"type": "none"}}), TEXT, DiffOptions()
        )


def test_models_that_read_other_tokens_are_refused(
    made: Made, cli: Callable[..., Result], decoder_spec: Path
) -> None:
    result = cli("pretrain", decoder_spec, "--set", "train.steps=1", "--out", "other")
    assert result.status == 0, result.err
    Path("text.txt").write_text("zyx a rose is " * 90)
    result = cli("pretrain", decoder_spec, "--set", "train.steps=1", "--out", "odd")
    assert result.status == 0, result.err
    one, two = (load_checkpoint(Path(n), "cpu", tell=lambda text: None) for n in ("other", "odd"))
    two = replace(two, model=copy.deepcopy(one.model))
    with pytest.raises(SpecError, match="other tokenizers"):
        diff(one, two, "a is a", DiffOptions())


def test_long_tables_are_cut_and_json_is_whole() -> None:
    layers = [
        LayerApart(f"blocks.{n}.mixer", torch.rand(9), torch.rand(9), list(range(9)))
        for n in range(4)
    ]
    parts = {f"blocks.{n}.{slot}": torch.rand(()) for n in range(9) for slot in ("mixer", "ffn")}
    found = Apart("one\x1b", "two", layers, parts)
    text = found.to_text()
    assert "\x1b" not in text
    assert f"and {36 - SHOWN} heads that are less apart" in text
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) <= 40
    values = found.to_json()
    assert len(values["layers"]) == 4
    assert len(values["parts"]) == 18
    assert math.isclose(values["layers"][3]["bits"][8], float(layers[3].bits[8]))  # type: ignore[index]


def test_maps_of_differences_are_as_fine_as_asked_for(made: Made, tmp_path: Path) -> None:
    one, two = made(PLAIN, 0), made(PLAIN, 1)
    found = diff(one, two, TEXT, DiffOptions(resolution=5))
    for layer in found.layers:
        assert layer.blocks is not None
        assert (layer.blocks.rows, layer.blocks.columns) == (3, 3)
    with pytest.raises(SpecError, match="no heads to draw"):
        draw_apart(replace(found, layers=[]), tmp_path / "a.png")


def test_compare_takes_a_batch(made: Made) -> None:
    one, two = made(PLAIN, 0), made(PLAIN, 1)
    found = compare(one, two, {"tokens": tokens_of(one)}, DiffOptions())
    whole = diff(one, two, TEXT, DiffOptions())
    assert torch.equal(found.layers[1].outputs, whole.layers[1].outputs)


def in_bf16(loaded: Loaded) -> Loaded:
    train = loaded.spec.train.model_copy(update={"precision": "bf16"})
    return replace(loaded, spec=loaded.spec.model_copy(update={"train": train}))


def test_differences_are_exact_where_the_model_runs_in_bf16(made: Made) -> None:
    one, two = (in_bf16(made(PLAIN, seed)) for seed in (3, 4))
    found = compare(one, two, {"tokens": tokens_of(one)}, DiffOptions(64))
    for layer in found.layers:
        assert layer.blocks is not None
        rows = layer.blocks.most.nan_to_num().double().sum(-1)
        torch.testing.assert_close(rows, torch.zeros_like(rows), atol=1e-5, rtol=0)


def test_a_picture_names_both_checkpoints_whole(tmp_path: Path) -> None:
    names = "a-run-of-a-long-name-by-the-first-recipe", "another-run-by-the-second-recipe"
    layers = [
        LayerApart(f"{stack}.0.{slot}", torch.rand(2), torch.rand(2), None)
        for stack, slot in (("encoder", "mixer"), ("decoder", "mixer"), ("decoder", "cross"))
    ]
    paths = tuple(f"runs/{name}/checkpoints/step-00000240" for name in names)
    draw_apart(Apart(*names, layers, {}, paths, title="ein Hund"), tmp_path / "a.svg")  # type: ignore[arg-type]
    drawn = (tmp_path / "a.svg").read_text()
    for text in (names[1], f"less {names[0]}", f"{names[0]}: step-00000240", "decoder.cross 2"):
        assert text in drawn
