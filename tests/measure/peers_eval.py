"""Tasks of choices and of whole texts by `bigmodel eval --tasks`, and by lm-eval's own model.

    python tests/measure/peers_eval.py --text FILE [--items 200] [--rounds 2]

A decoder of GPT-2's layout (4 layers of width 128, context 256, fp32), drawn, with a byte-level BPE
of 2,000 made from the text, is saved by transformers; both read that folder. The tasks are local
files: choices among four continuations of the text, and the log-likelihood of whole texts, some
longer than the model's context. lm-eval runs `hf` in batches of 32 and one by one, its default;
ours batches of 32. Both answer the same requests, taken from the harness, in turns (A B B A); a
JSON line for each, a table at the end. Every log-likelihood is compared, and every greedy flag; the
harness's whole evaluation by both is compared in its metrics. Needs lm_eval and transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
BATCH, CONTEXT, VOCAB = 32, 256, 2000
CHOICES = """\
task: local_choices
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
TEXTS = """\
task: local_texts
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
"""
Answers = Callable[[], list[Any]]


def model_folder(place: Path, text: str) -> Path:
    """A decoder as transformers saves it, with a tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    tokenizer.train_from_iterator(
        text.splitlines(),
        trainers.BpeTrainer(
            vocab_size=VOCAB, special_tokens=[end], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)
    folder = place / "model"
    fast.save_pretrained(folder)
    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=len(fast), n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=4,
        bos_token_id=0, eos_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def tasks(place: Path, text: str, items: int) -> Path:
    """A folder with both tasks and their rows."""
    draw, words = random.Random(3), text.split()
    folder = place / "tasks"
    folder.mkdir()

    def piece(count: int) -> str:
        start = draw.randrange(len(words) - count)
        return " ".join(words[start : start + count])

    choices = [
        {
            "question": piece(draw.randint(4, 60)),
            "choices": [piece(draw.randint(1, 12)) for _ in range(4)],
            "answer": draw.randrange(4),
        }
        for _ in range(items)
    ]
    texts = [{"text": piece(draw.choice([5, 30, 90, 300, 700]))} for _ in range(items // 4)]
    for name, rows, task in (("choices", choices, CHOICES), ("texts", texts, TEXTS)):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(task.replace("FILE", str(file)))
    return folder


def requests_of(folder: Path) -> tuple[list[Any], list[Any]]:
    """What the harness asks of a model in these tasks: pairs, and whole texts."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = []
    for name in ("local_choices", "local_texts"):
        loaded = manager.load([name])
        task = loaded["tasks"][name] if "tasks" in loaded else loaded[name]
        task.build_all_requests(rank=0, world_size=1)
        found.append(task.instances)
    return found[0], found[1]


def ways(folder: Path) -> dict[str, tuple[Callable[[Any], list[Any]], Callable[[Any], list[Any]]]]:
    """(answers to pairs, answers to whole texts) of each program."""
    from lm_eval.models.huggingface import HFLM

    from bigmodel_cli.evaluation.lm_eval import Answers as Ours
    from bigmodel_cli.loaded import load_checkpoint

    own = Ours(load_checkpoint(folder, "cpu", tell=lambda line: None))
    found: dict[str, Any] = {
        "bigmodel": (
            lambda asked: own.likelihoods([one.args for one in asked]),
            lambda asked: own.whole([one.args[0] for one in asked]),
        )
    }
    for name, size in (("lm-eval", BATCH), ("lm-eval, batch 1 (its default)", 1)):
        hf = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=size)
        found[name] = (
            lambda asked, hf=hf: hf.loglikelihood(asked, disable_tqdm=True),
            lambda asked, hf=hf: hf.loglikelihood_rolling(asked, disable_tqdm=True),
        )
    return found


def differences(one: list[Any], other: list[Any]) -> dict[str, Any]:
    """The greatest difference of log-likelihoods, and how many greedy flags differ."""
    pairs = [
        (a, b) if isinstance(a, tuple) else ((a, True), (b, True))
        for a, b in zip(one, other, strict=True)
    ]
    far = [abs(a[0] - b[0]) / max(1.0, abs(b[0])) for a, b in pairs]
    return {
        "relative": max(far),
        "absolute": max(abs(a[0] - b[0]) for a, b in pairs),
        "where": far.index(max(far)),
        "greedy_differs": sum(bool(a[1]) != bool(b[1]) for a, b in pairs),
    }


def whole_runs(folder: Path, include: Path) -> dict[str, dict[str, float]]:
    """The metrics of whole evaluations: `bigmodel eval --tasks`, and lm-eval's simple_evaluate."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from bigmodel_cli.evaluation.lm_eval import estimates_of, evaluate_tasks
    from bigmodel_cli.loaded import load_checkpoint

    names = ["local_choices", "local_texts"]
    loaded = load_checkpoint(folder, "cpu", tell=lambda line: None)
    own = evaluate_tasks(loaded, names, include, None).metrics
    theirs = lm_eval.simple_evaluate(
        model="hf", model_args=f"pretrained={folder},dtype=float32", device="cpu",
        batch_size=BATCH, tasks=names, log_samples=False,
        task_manager=TaskManager(include_path=str(include), include_defaults=False),
    )  # fmt: skip
    return {
        "bigmodel": {name: value.value for name, value in own.items()},
        "lm-eval": {name: value.value for name, value in estimates_of(theirs).items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    text = asked.text.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        folder, include = model_folder(place, text), tasks(place, text, asked.items)
        every = ways(folder)
        for number, kind in enumerate(("choices", "whole texts")):
            asked_for = requests_of(include)[number]
            rates: dict[str, list[float]] = {name: [] for name in every}
            answers: dict[str, list[Any]] = {}
            for both in every.values():
                both[number](asked_for[:BATCH])  # warm
            for turn in range(2 * asked.rounds):
                for name in list(every)[:: 1 if turn % 2 == 0 else -1]:
                    start = time.perf_counter()
                    answers[name] = every[name][number](asked_for)
                    rates[name].append(len(asked_for) / (time.perf_counter() - start))
                    row = {"kind": kind, "name": name, "requests_per_second": rates[name][-1]}
                    print(json.dumps(row), flush=True)
            for name in every:
                ratios = [a / b for a, b in zip(rates["bigmodel"], rates[name], strict=True)]
                print(
                    f"| {kind} | {name} | {statistics.median(rates[name]):,.1f} requests/s |"
                    f" bigmodel is {statistics.median(ratios):.2f} x as fast |"
                    f" {json.dumps(differences(answers['bigmodel'], answers[name]))} |",
                    flush=True,
                )
        for name, found in whole_runs(folder, include).items():
            print(name, json.dumps({metric: round(value, 6) for metric, value in found.items()}))


if __name__ == "__main__":
    main()
