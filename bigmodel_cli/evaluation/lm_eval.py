"""`bigmodel eval --tasks`: tasks of lm-evaluation-harness (`bigmodel[harness]`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bigmodel_cli.console import say
from bigmodel_cli.data import Prompts, load_tokenizer
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.evaluation.report import Report
from bigmodel_cli.generation.pieces import added_text
from bigmodel_cli.generation.sampling import Sampling, generate
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.logits import wide
from bigmodel_cli.metrics.intervals import Estimate
from bigmodel_cli.packages import need

BATCH = 32
MOST_NEW = 256
"""Tokens that a task generates where it does not say how many."""
NORMAL = 1.96  # standard errors on each side of a 95 % interval


def evaluate_tasks(
    loaded: Loaded, names: Sequence[str], include: Path | None, limit: int | None
) -> Report:
    """The tasks' metrics.

    `include` is a folder of further task files; `limit` is the most items of each task.

    Raises `SpecError` for a model that does not continue texts, an unknown task or a missing
    package, and `DataError` where a task's data cannot be had.
    """
    model = loaded.model
    if not model.can_generate or model.is_encoder_decoder or loaded.info.vocab_size is None:
        raise SpecError(
            "--tasks are for models that continue texts, and this one was trained for"
            f" {loaded.task.name}"
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    lm_eval = need("lm_eval", "harness", "--tasks")
    LM: Any = need("lm_eval.api.model", "harness", "--tasks").LM

    class Model(LM):  # type: ignore[misc]
        """The harness's model interface, implemented by `Answers`."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return answers.likelihoods([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return answers.whole([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            return answers.written([request.args for request in requests])

    answers = Answers(loaded)
    manager = _task_manager(names, include)
    try:
        found = lm_eval.simple_evaluate(
            model=Model(), tasks=list(names), task_manager=manager, limit=limit, log_samples=False
        )
    except (OSError, RuntimeError, ValueError) as error:  # raised while loading a task's data
        if isinstance(error, ValueError | RuntimeError) and "data" not in str(error).lower():
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"--tasks {','.join(names)}: the data of a task cannot be had: {reason}; offline, name"
            " tasks whose data are local files (--include FOLDER)"
        ) from error
    if answers.cut:
        say(
            f"{answers.cut:,} requests were longer than the model's {answers.limit:,} tokens: of"
            " their contexts the end was read"
        )
    return Report(str(loaded.path), "", "lm-evaluation-harness", "", estimates_of(found))


def _task_manager(names: Sequence[str], include: Path | None) -> Any:
    """The harness's index of tasks. Raises `SpecError` for one that it does not know."""
    TaskManager: Any = need("lm_eval.tasks", "harness", "--tasks").TaskManager
    manager = None
    # the harness's own index reads thousands of files; not needed where the folder has all
    if include is not None:
        manager = TaskManager(include_path=str(include), include_defaults=False)
    if manager is None or not all(manager.match_tasks([name]) for name in names):
        manager = TaskManager(include_path=str(include) if include is not None else None)
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise SpecError(
            f"--tasks {', '.join(unknown)}: lm-evaluation-harness knows no such task; `lm_eval ls"
            " tasks` lists them"
        )
    return manager


def estimates_of(found: dict[str, Any]) -> dict[str, Estimate]:
    """`task.metric` with its interval, from the harness's standard errors where it gives them."""
    result = {}
    for task, values in found["results"].items():
        count = int(found.get("n-samples", {}).get(task, {}).get("effective", 0))
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not isinstance(value, float | int) or metric.endswith("_stderr") or not kind:
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            spread = NORMAL * error if isinstance(error, float | int) else float("nan")
            name = f"{task}.{metric}" + ("" if kind == "none" else f".{kind}")
            result[name] = Estimate(
                float(value), count, value - spread, value + spread, "standard error"
            )
    return result


class Answers:
    """Log-likelihoods and continuations by a decoder."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.model = loaded, loaded.model
        self.tokenizer = load_tokenizer(loaded.assets)
        self.limit = min(loaded.model.limit, loaded.info.context or 1024)
        end = self.tokenizer.end_of_text
        self.start = [] if end is None else [end]
        # The first token of every training text.
        self.begin = Prompts(self.tokenizer, self.limit, loaded.spec.data).begin
        self.cut = 0  # contexts whose beginning was cut

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether it is greedy) of each (context, continuation)."""
        texts = []
        for context, continuation in pairs:
            # Tokenizers join a space to the next word.
            stripped = context.rstrip()
            context, continuation = stripped, context[len(stripped) :] + continuation
            before = self.tokenizer.encode(context) if context else []
            after = self.tokenizer.encode(context + continuation)[len(before) :] if context else []
            after = after or self.tokenizer.encode(continuation)
            row = ([*self.begin, *before] or self.start) + after
            if len(row) == len(after):
                after = after[1:]  # the first token has no context
            self.cut += len(row) > self.limit + 1
            texts.append(self.windows(row, len(row) - len(after)))
        return self.scored(texts)

    def windows(self, tokens: list[int], first: int) -> list[tuple[list[int], int]]:
        """(window, number scored) of windows over the tokens from `first` on, each scored once."""
        pairs = [
            (start, min(start + self.limit, len(tokens)))
            for start in range(first, len(tokens), self.limit)
        ]
        return [(tokens[max(0, end - self.limit - 1) : end], end - start) for start, end in pairs]

    def whole(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each text, in windows of the model's length; the last overlaps."""
        rows = [self.start + self.tokenizer.encode(text) for text in texts]
        return [self.scored([self.windows(row, 1)])[0][0] for row in rows]

    def scored(self, texts: list[list[tuple[list[int], int]]]) -> list[tuple[float, bool]]:
        """(log-probability, whether all is greedy) of each text, by the windows that it has.

        They are computed in batches of similar length.
        """
        rows = [tokens for windows in texts for tokens, _ in windows]
        counts = [count for windows in texts for _, count in windows]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        for first in range(0, len(order), BATCH):
            chosen = [i for i in order[first : first + BATCH] if counts[i]]
            if not chosen:
                continue
            longest = max(len(rows[i]) for i in chosen)
            tokens = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in chosen]).to(
                self.loaded.device
            )
            device, precision = self.loaded.device, self.loaded.precision
            with torch.inference_mode(), autocast(device, precision), wide():
                logits: Tensor = self.model(tokens[:, :-1])
            logs = logits.float().log_softmax(-1)
            picked = logs.gather(2, tokens[:, 1:, None])[..., 0]
            best = logits.argmax(-1) == tokens[:, 1:]
            for place, i in enumerate(chosen):
                own = slice(len(rows[i]) - 1 - counts[i], len(rows[i]) - 1)
                found[i] = (float(picked[place, own].sum()), bool(best[place, own].all()))
        scores = iter(found)
        whole = [list(islice(scores, len(windows))) for windows in texts]
        return [(sum(value for value, _ in own), all(best for _, best in own)) for own in whole]

    def written(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """The model's text after each context, up to the first of the request's stop strings."""
        texts = []
        for context, how in requests:
            until = how.get("until") or []
            stops = [until] if isinstance(until, str) else list(until)
            most = int(how.get("max_gen_toks", MOST_NEW))
            temperature = float(how.get("temperature", 0.0)) if how.get("do_sample") else 0.0
            prompt = [*self.begin, *self.tokenizer.encode(context)] or self.start
            if not prompt:
                raise DataError(
                    "a request's context is empty, and the tokenizer has no mark for the end of a"
                    " text to begin with"
                )
            self.cut += len(prompt) > self.limit
            tokens = torch.tensor([prompt[-self.limit :]]).to(self.loaded.device)
            draws = torch.rand(1, most, generator=torch.Generator().manual_seed(0)).to(
                self.loaded.device
            )
            produced: list[int] = []
            text = ""
            sampling = Sampling(temperature, top_p=float(how.get("top_p", 1.0)))
            with autocast(self.loaded.device, self.loaded.precision):
                for step in generate(
                    self.model.generator(),
                    tokens,
                    sampling,
                    max_new_tokens=most,
                    draws=draws,
                    stop=self.tokenizer.stops,
                ):
                    produced.append(int(step[0]))
                    text = added_text(self.tokenizer, prompt[-self.limit :], produced)
                    if any(stop in text for stop in stops):
                        break
            texts.append(
                text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
            )
        return texts
