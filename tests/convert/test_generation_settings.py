"""generation_config.json: what predict takes of it, what it does not, and that options win."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from folders import llama_folder

from bigmodel_cli.convert.generation import settings
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.generation.decoding import Decoding
from bigmodel_cli.generation.sampling import Seen, keep_likely, sample

Cli = Callable[..., Result]
DRAWN = {"do_sample": True, "temperature": 0.6, "top_k": 5, "max_new_tokens": 3}


def asset(values: Any) -> dict[str, bytes]:
    return {"hf.generation_config.json": json.dumps(values).encode()}


def test_what_is_taken_and_what_gives_way() -> None:
    every, drawn, unread = settings(asset({**DRAWN, "eos_token_id": [1], "suppress_tokens": [2]}))
    assert (every, unread) == ({"max_tokens": 3}, [])
    assert drawn == {"temperature": 0.6, "top_k": 5}
    own = Decoding().with_settings(every, drawn)
    assert (own.max_tokens, own.temperature, own.top_k) == (3, 0.6, 5)
    greedy = Decoding(temperature=0.0, max_tokens=9).with_settings(every, drawn)
    assert (greedy.max_tokens, greedy.temperature, greedy.top_k) == (9, 0.0, 0)
    searched = Decoding(beams=3).with_settings({"repetition_penalty": 1.2}, drawn)
    assert searched == Decoding(beams=3)

    assert settings(asset({"do_sample": False}))[1] == {"temperature": 0.0}
    greedy = {"temperature": 0.0}
    assert settings(asset({"temperature": 0.6, "top_p": 0.9})) == (
        {}, greedy, ["temperature", "top_p"]
    )  # fmt: skip
    assert settings({}) == ({}, {}, [])
    # what its files leave out is what is usual there
    assert settings(asset({"do_sample": True}))[1] == {"temperature": 1.0, "top_k": 50}
    assert settings(asset({"num_beams": 4, "repetition_penalty": 1.2})) == (
        {}, {"beams": 4}, ["repetition_penalty"]
    )  # fmt: skip
    assert settings(asset({"forced_bos_token_id": 3, "pad_token_id": 3}))[2] == [
        "forced_bos_token_id"
    ]
    assert settings(asset({"bad_words_ids": [[3], [4]]}))[2] == []
    assert settings(asset({"bad_words_ids": [[3], [4, 5]]}))[2] == ["bad_words_ids"]


@pytest.mark.parametrize(
    "values", [{"max_new_tokens": 0}, {"max_new_tokens": 1e3}, {"do_sample": True, "top_p": 2},
               {"repetition_penalty": "1"}, {"do_sample": True, "temperature": -1}, [],
               {"do_sample": True, "temperature": 0}, {"num_beams": 0}, {"num_beams": "4"}]
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


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"suppress_tokens": [97, 98, 40]},
        {"bad_words_ids": [[98], [100_000]], "suppress_tokens": [63]},
        {"repetition_penalty": 1.7, "top_k": 3},
    ],
)
def test_greedy_text_is_that_of_transformers(values: dict[str, Any], cli: Cli) -> None:
    transformers = pytest.importorskip("transformers")
    folder = llama_folder(Path("a"))
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 14, **values}))
    if "bad_words_ids" in values:  # which refuses a number that it does not have
        (folder / "generation_config.json").write_text(
            json.dumps({"max_new_tokens": 14, **values, "bad_words_ids": [[98]]})
        )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor([[*b"abba, "]])
    with torch.no_grad():
        written = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), eos_token_id=256)
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 14, **values}))
    found = cli("predict", "a", "abba, ", "--device", "cpu", "--json")
    assert found.status == 0
    text = bytes(t for t in written[0, 6:].tolist() if t < 256).decode(errors="replace")
    assert json.loads(found.out)["text"] == text


@pytest.mark.parametrize("penalty", [1.6, 0.6])
def test_a_stop_token_of_the_prompt_is_penalised_as_in_transformers(
    penalty: float, cli: Cli
) -> None:
    """By generation_config.json and by the option: the same text, that of transformers."""
    transformers = pytest.importorskip("transformers")
    stops = [256, 32, 44]  # the end, and two characters of the prompt
    folder = llama_folder(Path("a"), eos_token_id=stops)
    values = {"max_new_tokens": 14, "eos_token_id": stops}
    penalised = {**values, "repetition_penalty": penalty}
    (folder / "generation_config.json").write_text(json.dumps(penalised))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor([[*b"ab, ba "]])
    with torch.no_grad():
        written = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), pad_token_id=256)
    text = bytes(t for t in written[0, 7:].tolist() if t < 256 and t not in stops).decode(
        errors="replace"
    )
    by_file = cli("predict", "a", "ab, ba ", "--device", "cpu", "--json")
    (folder / "generation_config.json").write_text(json.dumps(values))
    plain = cli("predict", "a", "ab, ba ", "--device", "cpu", "--json")
    words = ("--repetition-penalty", penalty, "--temperature", 0)
    by_option = cli("predict", "a", "ab, ba ", "--device", "cpu", "--json", *words)
    assert by_file.status == by_option.status == plain.status == 0, by_option.err
    assert json.loads(by_file.out)["text"] == text
    assert json.loads(by_option.out)["text"] == text


VALUES: dict[str, list[float]] = {
    "temperature": [0.3, 0.7, 1.3, 2.0],
    "top_k": [0, 1, 5, 40, 90],
    "top_p": [0.1, 0.5, 0.95, 1.0],
    "min_p": [0.0, 0.05, 0.3, 1.0],
    "repetition_penalty": [0.8, 1.1, 1.5],
}


@pytest.mark.parametrize("seed", range(5))
def test_drawn_settings_give_the_tokens_of_transformers_own_processors(seed: int) -> None:
    """The same probabilities to 1e-6, and each of their intervals draws its token."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(vocab_size=97, num_attention_heads=2, **size)
    model = transformers.LlamaForCausalLM(config)
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for _ in range(20):
        given = {n: choose.choice(v) for n, v in VALUES.items() if choose.random() < 0.6}
        values = {"do_sample": True, **given}
        prompt = torch.randint(97, (3, 7), generator=generator)
        logits = choose.choice([0.5, 2, 6]) * torch.randn(3, 97, generator=generator)
        own, _ = model._prepare_generation_config(transformers.GenerationConfig(**values))
        processors = model._get_logits_processor(own, 7, prompt, device="cpu")
        expected = processors(prompt, logits.clone()).double().softmax(-1)

        every, drawn, _ = settings(asset(values))
        sampling = Decoding().with_settings(every, drawn).sampling(0.0)
        penalised = Seen(prompt, None).penalised(logits, sampling.repetition_penalty)
        scaled = penalised.double() / sampling.temperature
        found = keep_likely(scaled, sampling).softmax(-1)
        assert torch.allclose(found, expected, rtol=0, atol=1e-6), values
        middles = expected.cumsum(-1) - expected / 2
        for token in (expected.amin(0) > 1e-4).nonzero().flatten().tolist():
            chosen = sample(penalised, sampling, middles[:, token])
            assert chosen.tolist() == [token] * 3, values
