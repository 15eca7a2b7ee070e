"""A page keeps to its size, whatever the weights look like, and says what it did for it."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace

import pytest
import torch
from looks import layer_of, made

from bigmodel_cli.attend import page_blocks, page_facts
from bigmodel_cli.attend.details import Details
from bigmodel_cli.attend.look import Kept, Look, Side
from bigmodel_cli.attend.page import page
from bigmodel_cli.attend.page_facts import PageOptions

HEADS, TOKENS = 6, 230


def noisy(signed: bool) -> tuple[Look, Details]:
    """Heads of random numbers, which nothing packs well."""
    look = made(layers=2, heads=HEADS, tokens=TOKENS, causal=False)
    generator = torch.Generator().manual_seed(3)
    details = Details()
    for layer in look.layers:
        for head in range(HEADS):
            noise = torch.rand(TOKENS, TOKENS, generator=generator)
            details.add_matrix(layer.name, head, noise - 0.5 if signed else noise, causal=False)
    layers = [replace(layer, signed=signed) for layer in look.layers]
    return replace(look, layers=layers), details


def facts(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found is not None
    values: dict[str, object] = json.loads(found[1])
    return values


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("limit", "steps", "all_of_them"),
    [(2_000_000, None, True), (880_000, "127", True), (520_000, "31", False)],
)
def test_a_page_is_not_larger_than_it_may_be(
    monkeypatch: pytest.MonkeyPatch, signed: bool, limit: int, steps: str | None, all_of_them: bool
) -> None:
    monkeypatch.setattr(page_facts, "SHORT", limit)
    monkeypatch.setattr(page_blocks, "MOST_BLOCKS", 20_000)
    look, details = noisy(signed)
    text = page(look, details, PageOptions())
    assert len(text.encode()) <= limit
    written = facts(text)
    said = [note for note in written["notes"] if "steps" in note]  # type: ignore[attr-defined]
    heads = sum(len(layer["details"]) for layer in written["layers"])  # type: ignore[attr-defined]
    assert (heads == 2 * HEADS) == all_of_them
    assert bool(said) == (steps is not None)
    if steps is not None:
        assert f"{steps} steps" in said[0]
        assert ("as blocks" in said[0]) != all_of_them


def test_the_heads_that_tell_most_are_kept_and_the_others_are_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page_facts, "SHORT", 480_000)
    monkeypatch.setattr(page_blocks, "MOST_BLOCKS", 20_000)
    look, details = noisy(False)
    written = facts(page(look, details))
    first, second = written["layers"]  # type: ignore[misc]
    kept = [(0, h) for h in first["details"]] + [(1, h) for h in second["details"]]
    assert 0 < len(kept) < 2 * HEADS
    start = written["start"]
    assert (start["layer"], str(start["head"])) in kept  # type: ignore[index]
    assert first["blocks"] is not None
    assert first["read"] is not None


def test_fewer_steps_are_those_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from bigmodel_cli.attend.page_room import _fewer

    for signed in (False, True):
        _, details = noisy(signed)
        before = details.found["blocks.0.mixer"][2]
        after = _fewer(before, 63)
        old, new = (
            torch.tensor(list(zlib.decompress(d.arrays["codes"], -15)), dtype=torch.float64)
            for d in (before, after)
        )
        steps = after.facts["steps"]
        roots = (old - 128) / 127 if signed else old / 255
        others = (new - 128) / steps if signed else new / steps
        assert (roots - others).abs().max() <= 0.5 / steps + 1e-9
        assert after.size < before.size


def test_scores_become_maps_where_these_are_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_facts, "SHORT", 420_000)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(4, 600, 32, generator=generator) * 1.3 for _ in range(2))
    side = Side("text", ["a"] * 600, [0] * 600)
    weights = (q @ k.mT / 5).softmax(-1)
    kept = Kept([0, 1, 2, 3], q, k, torch.zeros(4, 600), 0.2, causal=False)
    layer = replace(layer_of("blocks.0.mixer", weights, side, causal=False), kept=kept)
    text = page(Look("many", [layer]))
    assert len(text) <= 420_000
    assert facts(text)["layers"][0]["details"]  # type: ignore[index]
