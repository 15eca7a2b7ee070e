"""generation_config.json: what predict takes of it, what it does not, and that options win."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from folders import llama_folder

from bigmodel_cli.convert.generation import settings
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.generation.decoding import Decoding

Cli = Callable[..., Result]
DRAWN = {"do_sample": True, "temperature": 0.6, "top_k": 5, "max_new_tokens": 3}


def asset(values: Any) -> dict[str, bytes]:
    return {"hf.generation_config.json": json.dumps(values).encode()}


def test_what_is_taken_and_what_gives_way() -> None:
    every, drawn, unread = settings(asset({**DRAWN, "eos_token_id": [1], "suppress_tokens": [2]}))
    assert (every, unread) == ({"max_tokens": 3}, ["suppress_tokens"])
    assert drawn == {"temperature": 0.6, "top_k": 5}
    own = Decoding().with_settings(every, drawn)
    assert (own.max_tokens, own.temperature, own.top_k) == (3, 0.6, 5)
    greedy = Decoding(temperature=0.0, max_tokens=9).with_settings(every, drawn)
    assert (greedy.max_tokens, greedy.temperature, greedy.top_k) == (9, 0.0, 0)
    searched = Decoding(beams=3).with_settings({"repetition_penalty": 1.2}, drawn)
    assert searched == Decoding(beams=3)

    assert settings(asset({"do_sample": False}))[1] == {"temperature": 0.0}
    assert settings(asset({"temperature": 0.6, "top_p": 0.9})) == ({}, {}, ["temperature", "top_p"])
    assert settings({}) == ({}, {}, [])


@pytest.mark.parametrize(
    "values", [{"max_new_tokens": 0}, {"max_new_tokens": 1e3}, {"do_sample": True, "top_p": 2},
               {"repetition_penalty": "1"}, {"do_sample": True, "temperature": -1}, []]
)  # fmt: skip
def test_a_value_that_is_none_is_refused(values: Any) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        settings(asset(values))


def test_predict_uses_them_and_says_so(cli: Cli) -> None:
    folder = llama_folder(Path("a"))
    (folder / "generation_config.json").write_text(json.dumps({**DRAWN, "num_beams": 4}))
    found = cli("predict", "a", "ab", "--device", "cpu")
    assert found.status == 0
    assert "generation_config.json: --max-tokens 3, --temperature 0.6, --top-k 5" in found.err
    assert "not used: num_beams" in found.err
    by_hand = cli(
        "predict", "a", "ab", "--device", "cpu", "--max-tokens", "3", "--temperature", "0.6",
        "--top-k", "5",
    )  # fmt: skip
    assert by_hand.out == found.out
