"""lm-evaluation-harness on a checkpoint: its answers equal plain scoring, and a task with local
data runs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result

from bigmodel_cli.evaluation.lm_eval import Answers
from bigmodel_cli.loaded import Loaded, load_checkpoint

Cli = Callable[..., Result]
TASK = """\
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def loaded(cli: Cli, decoder_spec: Path) -> Loaded:
    changes = ["data.tokenizer={type: bytes}", "task.sample_tokens=0"]
    assert (
        cli(
            "pretrain", decoder_spec, "--out", "run", *(w for c in changes for w in ("--set", c))
        ).status
        == 0
    )
    return load_checkpoint(Path("run"), "cpu")


def total(loaded: Loaded, tokens: list[int], count: int) -> tuple[float, bool]:
    """The log-probability of the last tokens, by one forward pass."""
    with torch.inference_mode():
        logs = loaded.model(torch.tensor([tokens[:-1]])).log_softmax(-1)[0, -count:]
    wanted = torch.tensor(tokens[-count:])
    return float(logs.gather(1, wanted[:, None]).sum()), bool((logs.argmax(-1) == wanted).all())


def test_likelihoods_are_those_of_the_tokens(loaded: Loaded) -> None:
    answers = Answers(loaded)
    assert answers.limit == 16
    pairs = [("all you ", "need"), ("", "abc"), ("is", " attention is all"), ("x" * 40, "yz")]
    rows = [(b"all you need", 5), (b"abc", 3), (b"is attention is all", 17), (b"x" * 40 + b"yz", 2)]
    for (value, best), (text, count) in zip(answers.likelihoods(pairs), rows, strict=True):
        tokens = [256, *text] if text == b"abc" else list(text)
        if count > 16:  # more than a window: each token once, the last window reaches back
            first, last = total(loaded, tokens[1:18], 16), total(loaded, tokens[2:], 1)
            want, greedy = first[0] + last[0], first[1] and last[1]
        else:
            want, greedy = total(loaded, tokens[-17:], count)
        assert value == pytest.approx(want, abs=1e-4)
        assert best == greedy
    assert answers.cut == 2


def test_whole_texts_are_scored_in_windows_each_token_once(loaded: Loaded) -> None:
    text = "attention is all you need and more"
    tokens = [256, *text.encode()]
    want = (
        total(loaded, tokens[:17], 16)[0]
        + total(loaded, tokens[16:33], 16)[0]
        + total(loaded, tokens[-17:], 2)[0]
    )
    assert len(tokens) == 35
    assert Answers(loaded).whole([text, "a"])[0] == pytest.approx(want, abs=1e-4)


def test_generation_ends_at_the_stop_strings(loaded: Loaded) -> None:
    answers = Answers(loaded)
    whole = answers.written([("all you", {"max_gen_toks": 12})])[0]
    stop = whole[3]
    stopped = answers.written([("all you", {"until": [stop], "max_gen_toks": 12})])[0]
    assert stopped == whole[: whole.index(stop)]


def test_a_task_with_local_data_runs_and_others_are_refused(
    loaded: Loaded, cli: Cli, cnn_spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    without = functools.partial(tasks.TaskManager, include_defaults=False)
    # the harness's index of its own tasks takes ten seconds
    monkeypatch.setattr(
        tasks, "TaskManager", lambda include_path, **options: without(include_path=include_path)
    )
    rows = [
        {"question": f"all {i}", "choices": ["you", "zzzz"], "answer": i % 2} for i in range(12)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("tasks").mkdir()
    Path("tasks/local.yaml").write_text(TASK.replace("FILE", str(Path("rows.jsonl").resolve())))
    flags: list[Any] = ["--tasks", "local_choice", "--include", "tasks"]
    result = cli("eval", "run", *flags, "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    pairs = [(row["question"], " " + str(choice)) for row in rows for choice in row["choices"]]
    values = torch.tensor([value for value, _ in Answers(loaded).likelihoods(pairs)]).view(12, 2)
    want = (values.argmax(1) == torch.tensor([row["answer"] for row in rows])).float().mean()
    assert report["local_choice.acc"] == pytest.approx(float(want))
    assert report["metrics"]["local_choice.acc"]["count"] == 12
    unknown = cli("eval", "run", "--tasks", "no_such_task")
    assert (unknown.status, unknown.out) == (2, "")
    assert "knows no such task" in unknown.err
    Path("rows.jsonl").unlink()
    gone = cli("eval", "run", *flags)
    assert (gone.status, gone.out) == (3, "")
    assert "the data of a task cannot be had" in gone.err


def test_models_that_do_not_continue_texts_are_refused(cli: Cli, cnn_spec: Path) -> None:
    assert cli("pretrain", cnn_spec, "--out", "cnn", "--set", "train.steps=2").status == 0
    result = cli("eval", "cnn", "--tasks", "hellaswag")
    assert result.status == 2
    assert "--tasks are for models that continue texts" in result.err
