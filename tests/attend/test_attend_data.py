"""`--data`: exact weights of chosen heads, statistics and labels, as safetensors and JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result
from looks import made
from safetensors import safe_open

from bigmodel_cli.attend.layers import Wanted
from bigmodel_cli.attend.looking import look_at
from bigmodel_cli.attend.picture import PictureOptions, draw, query
from bigmodel_cli.attend.telling import readings
from bigmodel_cli.attend.terminal.reading import _percent
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.parts.kernels import weights


def test_files_hold_the_weights_and_the_statistics(
    decoder_spec: Path, cli: Callable[..., Result]
) -> None:
    assert cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=1").status == 0
    words = ["attend", "run", "attention is", "--heads", "1.0,1.1", "--top", 2, "--key", 3]
    for name in ("a.safetensors", "a.jsonl"):
        done = cli(*words, "--data", name)
        assert (done.status, done.out) == (0, f"{name}\n"), done.err
    loaded = load_checkpoint(Path("run"))
    kept = {}
    part = loaded.model.get_submodule("blocks.1.mixer")
    part.watcher = lambda call: kept.update(call=call)  # type: ignore[assignment]
    look = look_at(loaded, "attention is", Wanted())
    part.watcher = lambda call: kept.update(call=call)  # type: ignore[assignment]
    tokens = torch.tensor([list(look.layers[0].keys.ids or [])])
    with torch.no_grad():
        loaded.model(tokens)
    call = kept["call"]
    want = weights(call.q, call.k, call.spec)[0].detach()
    with safe_open("a.safetensors", "pt") as file:
        found = file.get_tensor("blocks.1.mixer.weights")
        assert file.get_tensor("blocks.1.mixer.heads").tolist() == [0, 1]
        torch.testing.assert_close(found, want, atol=1e-6, rtol=0)
        readers = file.get_tensor("blocks.1.mixer.readers")
        torch.testing.assert_close(readers, want[:, :, 3], atol=1e-6, rtol=0)
        entropy = file.get_tensor("blocks.1.mixer.entropy")
        assert not any(name.startswith("blocks.0.") for name in list(file.keys()))
        facts = json.loads(file.metadata()["attend"])
    assert facts["layers"][0]["keys"]["tokens"] == list("attention is")
    records = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert [(r["name"], r["head"]) for r in records] == [("blocks.1.mixer", h) for h in (0, 1)]
    for record in records:
        own = torch.tensor(record["weights"])
        torch.testing.assert_close(own, want[record["head"]], atol=1e-6, rtol=0)
        assert record["entropy"] == pytest.approx(float(entropy[record["head"]]))
        assert torch.tensor(record["top_keys"]).shape == (12, 2)


def test_several_inputs_files_and_stdin(decoder_spec: Path, cli: Callable[..., Result]) -> None:
    assert cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=1").status == 0
    Path("long.txt").write_text("attention is all you need attention is")
    done = cli("attend", "run", "all", "--file", "long.txt", "--json", "--data", "a.jsonl")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["files"] == ["a-1.jsonl", "a-2.jsonl"]
    first, second = found["inputs"]
    assert first["notes"] == []
    assert "it is read in 3 windows" in second["notes"][0]
    assert "it is read in 3 windows" in done.err
    some = cli("attend", "run", "all", "", "--json")
    assert (some.status, "1 of 2 inputs could not be read" in some.err) == (3, True)
    assert len(json.loads(some.out)["inputs"]) == 1
    missing = cli("attend", "run", "--file", "none.txt")
    assert (missing.status, "none.txt: cannot be read" in missing.err) == (3, True)


def test_long_work_says_how_far_it_is(
    decoder_spec: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of several windows, heads that are cut out in turn, the checkpoints of a run."""
    kept = ["--set", "train.steps=2", "--set", "train.validate_every=null"]
    kept += ["--set", "train.checkpoint_every=1", "--set", "train.keep_last=5"]
    assert cli("pretrain", decoder_spec, "--out", "run", *kept).status == 0
    monkeypatch.setattr("bigmodel_cli.progress.LINE_EVERY", 0.0)
    monkeypatch.setattr("bigmodel_cli.attend.cutting.AT_ONCE", 1)
    for words, said in (
        (["attention is all you need attention is"], "windows of the text: 67 % of 3"),
        (["attention", "--ablate", "auto"], "heads cut out: 75 % of 4"),
        (["attention", "--over"], "checkpoints: 50 % of 2"),
    ):
        done = cli("attend", "run", *words)
        assert done.status == 0, done.err
        assert any(line.startswith(f"{said}, ") for line in done.err.splitlines()), done.err


def test_the_screen_shows_the_heads_that_are_asked_for(
    decoder_spec: Path, cli: Callable[..., Result]
) -> None:
    """Their maps, and what they read on average: by dense weights and a norm computed anew."""
    assert cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=1").status == 0
    done = cli("attend", "run", "attention is", "--heads", "1.1,0.0")
    assert done.status == 0, done.err
    assert "chosen heads, " in done.out
    (maps,) = [line.split() for line in done.out.splitlines() if line.startswith("0.0  ")]
    assert [word for word in maps if word[0].isdigit() and "." in word] == ["0.0", "1.1"]
    assert "reads (mean of 2 chosen heads" in done.out
    look = look_at(load_checkpoint(Path("run")), "attention is", Wanted(heads=((1, 1), (0, 0))))
    assert [layer.chosen for layer in look.layers] == [(0,), (1,)]
    read = [la.moved[h] for la, h in zip(look.layers, (0, 1), strict=True) if la.moved is not None]
    want = sum(row.double() / row.double().sum() for row in read) / 2
    (reading,) = readings(look)
    if not reading.left_out:
        torch.testing.assert_close(reading.weights, want, atol=1e-6, rtol=0)
    done = cli("attend", "run", "attention is", "--heads", "0.0,0.1,1.0,1.1")
    assert "chosen heads, " in done.out
    assert cli("attend", "run", "attention is").out.count("chosen") == 0


def test_a_picture_of_a_query_has_the_heads_that_are_asked_for() -> None:
    """A row of the map for each, of what the query reads."""
    drawn: list[np.ndarray] = []
    look = made(layers=3, heads=4, tokens=9)
    layers = [
        replace(la, chosen=own) for la, own in zip(look.layers, ((2,), (), (0, 3)), strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query, "draw_map", lambda s, x, y, part, *rest: drawn.append(part))
        draw(replace(look, layers=layers), Path("a.png"), PictureOptions(query=True))
    assert [len(part) for part in drawn] == [1, 2]
    np.testing.assert_allclose(drawn[0][0], look.layers[0].read[2], atol=1e-6)
    np.testing.assert_allclose(drawn[1][1], look.layers[2].read[3], atol=1e-6)
    assert _percent(1.0) == "100"
    assert [_percent(x) for x in (0.9996, 0.0996, 0.0123, 1e-4)] == ["100", "10", "1.2", "0.01"]
