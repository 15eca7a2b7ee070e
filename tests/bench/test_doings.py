"""The kinds of work that `bench` times: what a step of each is, in which unit, what it holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result

from bigmodel_cli.bench import Request, bench, to_text
from bigmodel_cli.bench.doing import Doing, block
from bigmodel_cli.bench.kinds import KINDS
from bigmodel_cli.bench.result import WHOLE
from bigmodel_cli.bench.targets import opened
from bigmodel_cli.bench.worker import Here, _supported
from bigmodel_cli.errors import MissingData, SpecError, Unfit
from bigmodel_cli.evaluation import evaluator

Cli = Callable[..., Result]
CPU = torch.device("cpu")
PARTS = {
    "training": {"wait", "forward", "backward", "update"},
    "inference": {"wait", "forward"},
    "generation": {"prefill", "decode"},
    "evaluation": {"wait", "score"},
    "data": {"wait"},
}


def begun(doing: str, spec: str, *changes: str) -> Doing:
    return KINDS[doing].begin(opened(spec, ["train.precision=fp32", *changes]), CPU)


@pytest.mark.parametrize("doing", PARTS)
def test_the_parts_of_a_step_are_the_whole(doing: str, decoder_spec: Path) -> None:
    work = begun(doing, "decoder.yaml", "train.batch_size=3")
    seconds = dict(work.step())
    assert set(seconds) == {*PARTS[doing], "rest", WHOLE}
    assert sum(seconds.values()) == pytest.approx(2 * seconds[WHOLE])
    assert set(work.step(False)) == {WHOLE}
    assert work.facts().doing == doing
    assert work.peak_tensors() > 0
    work.close()


def test_sizes_are_those_of_the_batches(decoder_spec: Path) -> None:
    context = opened("decoder.yaml", []).info.context
    assert context is not None
    for doing in ("inference", "data"):
        work = begun(doing, "decoder.yaml", "train.batch_size=5")
        work.step()
        facts = work.facts()
        assert (facts.unit, facts.size, facts.batch_size) == ("tokens", 5 * context, 5)
        assert facts.data == "real"
        work.close()
    work = begun("evaluation", "decoder.yaml", "train.validation_batch=7")
    work.step()
    assert work.facts().size == 7 * context


def test_written_texts_have_a_cache_of_keys_and_values(decoder_spec: Path) -> None:
    work = begun("generation", "decoder.yaml", "train.batch_size=3")
    work.step()
    facts = work.facts()
    spec, info = opened("decoder.yaml", []).spec, opened("decoder.yaml", []).info
    told, values = facts.told, spec.to_dict()["model"]
    assert info.context is not None
    assert told["new_tokens"] == told["prompt_tokens"] == info.context // 2
    assert facts.size == 3 * told["new_tokens"]
    blocks = sum(block.get("repeat", 1) for block in values["blocks"])
    positions = told["prompt_tokens"] + told["new_tokens"]
    # keys and values, of every block, row, position and channel, in fp32
    assert told["cache_bytes"] == 2 * 4 * blocks * 3 * positions * values["dim"]
    work_of = work.work()
    assert work_of is not None
    # seven steps after the first token; of the table of positions three rows of sixteen, and of the
    # cache on average what the prompt and half of the new tokens fill
    read = facts.parameters - (positions - 3) * values["dim"]
    assert positions == info.context == 16
    assert work_of.must_read == 7 * (4 * read + told["cache_bytes"] * 12 / 16)
    # by hand: of each block the products with every position, and each query with the keys up to
    # its own place, twice; of the head the last of the prompt and each later one but the last
    dim, vocab = values["dim"], info.vocab_size
    hidden = values["blocks"][0]["ffn"]["hidden"] or 4 * dim
    layers = 2 * 15 * (4 * dim * dim + 2 * dim * hidden)
    pairs = sum(range(1, 16))
    assert work_of.useful == 3 * (blocks * (layers + 2 * 2 * pairs * dim) + 2 * 8 * dim * vocab)


def test_an_evaluation_scores_as_eval_does(
    decoder_spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigmodel_cli.bench import evaluation

    given: list[Mapping[str, Any]] = []
    score = evaluator.score_batch

    def noted(model: Any, task: Any, batch: Any, *rest: Any) -> Any:
        given.append(batch)
        return score(model, task, batch, *rest)

    monkeypatch.setattr(evaluation, "score_batch", noted)
    work = begun("evaluation", "decoder.yaml", "train.validation_batch=2")
    work.step()
    work.step()
    data = opened("decoder.yaml", []).data
    assert data is not None
    split = data.split("val")
    order = evaluator.similar(split)
    for number, batch in enumerate(given):
        expected = split.batch(order[2 * number : 2 * number + 2], 0, 0, False)
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_few_items_are_taken_over_and_over(decoder_spec: Path) -> None:
    data = opened("decoder.yaml", []).data
    assert data is not None
    count = len(data.split("val"))
    many: Any = begun("inference", "decoder.yaml", f"train.batch_size={2 * count + 1}")
    many.step()
    assert many.samples == 2 * count + 1
    default: Any = begun("evaluation", "decoder.yaml")
    default.step()
    assert default.samples == count  # fewer than pass at once by default


class Marking:
    """Work on something that is not a CPU: marks are noted."""

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind)
        self.marked: list[bool] = []
        self.numbers = itertools.count(1)

    def step(self, marked: bool = True) -> Mapping[str, float]:
        self.marked.append(marked)
        whole = float(next(self.numbers))
        return {"forward": whole / 2, "rest": whole / 2, WHOLE: whole} if marked else {WHOLE: whole}


def test_steps_with_marks_do_not_count_on_a_gpu() -> None:
    work: Any = Marking("meta")
    found = block(work, 0, 7)
    assert [n for n, marked in enumerate(work.marked, 1) if marked] == [1, 6]
    assert found.seconds == (2, 3, 4, 5, 7, 8, 9)
    assert found.parts["forward"] == (0.5, 3)
    work = Marking("cpu")
    found = block(work, 0, 3)
    assert (found.seconds, found.parts["forward"]) == ((1, 2, 3), (0.5, 1, 1.5))


def test_a_network_that_does_not_write_is_told(cnn_spec: Path) -> None:
    with pytest.raises(Unfit, match="--doing generation: cnn: this network writes no text"):
        begun("generation", "cnn.yaml")


def test_loading_needs_the_data(decoder_spec: Path, tmp_path: Path) -> None:
    text = decoder_spec.read_text().replace("text.txt", "gone.txt")
    (tmp_path / "gone.yaml").write_text(text.replace("{type: characters}", "bytes"))
    with pytest.raises(MissingData, match=r"gone\.txt"):
        begun("data", "gone.yaml")
    assert begun("inference", "gone.yaml").facts().data == "random"


def test_a_checkpoint_is_used_as_it_is(decoder_spec: Path, cli: Cli) -> None:
    made = cli("pretrain", "decoder.yaml", "--out", "run", "--set", "train.steps=1")
    assert made.status == 0
    work: Any = begun("inference", "run")
    from bigmodel_cli.loaded import load_checkpoint

    weights = load_checkpoint(Path("run"), "cpu").model.state_dict()
    for name, tensor in work.used.model.state_dict().items():
        assert torch.equal(tensor, weights[name])
    work.step()
    loading = begun("data", "run")  # by the spec and the tokenizer that it has
    loading.step()
    assert loading.facts().data == "real"


def test_generation_is_of_one_text_and_of_several(decoder_spec: Path) -> None:
    given = Request(["decoder.yaml"], ["train.precision=fp32"], "cpu", 0.1, ["generation", "data"])
    result = bench(replace(given, processes=1), Here)
    one, several, data = result.to_json()["benchmarks"]
    assert [m["facts"]["doing"] for m in (one, several, data)] == ["generation"] * 2 + ["data"]
    assert [m["facts"]["batch_size"] for m in (one, several)] == [1, 16]
    assert several["facts"]["told"]["cache_bytes"] == 16 * one["facts"]["told"]["cache_bytes"]
    assert data["work"] is None
    assert data["mfu"] is None
    assert data["ratio_to_first"] == 1
    assert several["ratio_to_first"] != 1
    text = to_text(result)
    assert [title in text for title in ("written texts on cpu", "loaded batches on cpu")] == [
        True
    ] * 2
    (row,) = [
        line for line in text.splitlines() if line.startswith("decoder batch 16  ") and "+" in line
    ]
    told = one["facts"]["told"]
    assert f"{told['prompt_tokens']:.0f} + {told['new_tokens']:.0f}" in row
    assert row.count("tokens/s") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--doing", "trainig"], "--doing trainig: not one of training, inference, generation,"),
        (["--batch", "many"], "--batch many: neither a number of samples nor auto"),
        (["--batch", "0"], "--batch 0: neither"),
        (["--sweep", "train.batch_size"], "--sweep train.batch_size: write KEY=V1,V2"),
        (["--sweep", "train.batch_size=4,4"], "a value is given twice"),
        (["--compile", "maybe"], "--compile maybe: not one of on, off, both"),
        (["--sweep", "train.batch_sizes=4,8"], "train.batch_sizes"),
    ],
)
def test_bad_words_are_answered(words: list[str], said: str, decoder_spec: Path, cli: Cli) -> None:
    result = cli("bench", "decoder.yaml", *words, "--seconds", 0.1)
    assert (result.status, result.out) == (2, "")
    assert said in result.err


def test_the_built_in_set_has_no_data(cli: Cli) -> None:
    result = cli("bench", "--doing", "data")
    assert result.status == 2
    assert "--doing data: name a spec" in result.err


def test_what_pytorch_lacks_is_said_with_the_precision(decoder_spec: Path) -> None:
    found = opened("decoder.yaml", ["train.precision=fp16"])
    said = r"train\.precision: fp16 on cpu: .*for 'Half'"
    with pytest.raises(SpecError, match=said), _supported(found, CPU):
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")
    with pytest.raises(RuntimeError, match="shapes"), _supported(found, CPU):
        raise RuntimeError("shapes cannot be multiplied")
