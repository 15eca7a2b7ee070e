"""What a head is worth: how much worse the model does with the head's output cut out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bigmodel_cli.attend.capture import Each, watch
from bigmodel_cli.attend.judging import Judged, judge_of, judged, nats_of
from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.worth import Ablation, Head, Worth, figures_of
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.metrics.distributions import t_quantile
from bigmodel_cli.parts.contract import Attends
from bigmodel_cli.parts.watched import AttentionCall
from bigmodel_cli.progress import progress
from bigmodel_cli.tasks import Task

AT_ONCE = 8192
"""Positions of all rows of a forward pass ..."""
LOGITS = 1 << 26
"""... and numbers of its logits, where they are over a vocabulary."""


@dataclass(frozen=True)
class AblateOptions:
    """`heads` is "auto", which is every head, or LAYER.HEAD with commas between.

    With `mean` the head's output is replaced by its mean over the positions of the input (later
    ones included) rather than by zeros. `layers` are those whose heads "auto" tries; None for all.
    `target` is what an encoder-decoder is to write.
    """

    heads: str = "auto"
    mean: bool = False
    layers: Sequence[int] | None = None
    target: str | None = None


def ablate(
    loaded: Loaded, inputs: Sequence[str], options: AblateOptions, look: Look | None = None
) -> Ablation:
    """Cut heads out, one at a time, and measure the loss of each input.

    Several heads that were named are also cut together. The statistics beside each are of `look`,
    which is at the same model. Raises `SpecError` for a head that is not there, and `DataError` for
    an input that cannot be read.
    """
    task = judge_of(loaded)
    items = judged(loaded, task, inputs, options.target)
    runs = [_Run(loaded, task, item, options.mean) for item in items]
    names, counts = zip(*runs[0].heads, strict=True) if runs[0].heads else ((), ())
    chosen = chosen_heads(options.heads, counts, options.layers)
    cuts: list[tuple[Head, ...]] = [(head,) for head in chosen]
    together = options.heads != "auto" and len(chosen) > 1
    losses = torch.stack(
        [run.losses([*cuts, *([tuple(chosen)] if together else [])]) for run in runs]
    )
    base = torch.tensor([run.base for run in runs], dtype=torch.float64)
    found = [_worth(cut, names, losses[:, n], base, task, look) for n, cut in enumerate(cuts)]
    whole = _worth(tuple(chosen), names, losses[:, -1], base, task, look) if together else None
    return Ablation(
        loaded.name,
        unit_of(task),
        float(base.mean()),
        float((-base).exp().mean()) if has_probability(task) else None,
        [item.answer for item in items],
        len(items),
        "its mean over positions" if options.mean else "zeros",
        sorted(found, key=lambda each: -each.worth),
        whole,
    )


def unit_of(task: Task) -> str:
    """What the loss is counted in."""
    return f"{'nats' if task.chooses else 'loss'} per {task.unit.removesuffix('s')}"


def has_probability(task: Task) -> bool:
    """Whether exp(-loss) is the probability of the one answer."""
    return task.labels and task.chooses


def chosen_heads(
    given: str, counts: Sequence[int], layers: Sequence[int] | None = None
) -> list[Head]:
    """The heads that LAYER.HEAD,... names, or all (of these layers) where it is "auto".

    `counts` are how many heads each layer has. Raises `SpecError`.
    """
    if not counts:
        raise SpecError("this model has no attention whose heads could be cut out")
    if given == "auto":
        if layers is not None and max(layers) >= len(counts):
            raise SpecError(
                f"--layers: {max(layers)}: the layers with attention are 0 to {len(counts) - 1}"
            )
        return [
            Head(layer, head)
            for layer, count in enumerate(counts)
            for head in range(count)
            if layers is None or layer in layers
        ]
    found: list[Head] = []
    for word in given.split(","):
        layer, dot, head = word.strip().partition(".")
        if not (dot and layer.isdecimal() and head.isdecimal()):
            raise SpecError(
                f"--ablate {word!r}: name heads as LAYER.HEAD, such as 0.1,2.3, or give auto"
            )
        if int(layer) >= len(counts):
            raise SpecError(
                f"--ablate {word}: the layers with attention are 0 to {len(counts) - 1}"
            )
        if int(head) >= counts[int(layer)]:
            raise SpecError(
                f"--ablate {word}: the heads of layer {layer} are 0 to {counts[int(layer)] - 1}"
            )
        if Head(int(layer), int(head)) not in found:
            found.append(Head(int(layer), int(head)))
    return found


class _Run:
    """One input: the loss without a cut, and the losses with cuts.

    `heads` are the calls of attention in their order, each with its part's name and its heads.
    """

    def __init__(self, loaded: Loaded, task: Task, item: Judged, mean: bool) -> None:
        self.loaded, self.task, self.item, self.mean = loaded, task, item, mean
        self.heads: list[tuple[str, int]] = []
        self.positions = 1
        base, counts = self._pass(self._note, 1)
        if not bool(counts):
            raise DataError(f"{item.given[:40]!r}: nothing in it is foretold; give a longer input")
        self.base = float(base)

    def losses(self, cuts: Sequence[tuple[Head, ...]]) -> Tensor:
        """(cuts,) float64   the loss with each of the cuts, as many rows at once as fit."""
        rows = self.item.rows * self.positions
        logits = rows * (self.loaded.info.vocab_size or 1)
        size = max(1, min(AT_ONCE // rows, LOGITS // logits))
        found = []
        with progress("heads cut out", len(cuts), "") as done:
            for first in range(0, len(cuts), size):
                done.to(first)
                some = cuts[first : first + size]
                found.append(self._pass(_Cutting(some, self.item.rows, self.mean), len(some))[0])
        return torch.cat(found)

    def _pass(self, each: Each, times: int) -> tuple[Tensor, Tensor]:
        """The losses of as many copies of the input, whose attention `each` may change."""
        rows = {
            name: values.repeat(times, *[1] * (values.dim() - 1))
            for name, values in self.item.batch.items()
        }
        model, device = self.loaded.model, self.loaded.device
        with watch(model, each), torch.inference_mode(), autocast(device, self.loaded.precision):
            outputs = self.task.forward(model, rows, training=False)
            return nats_of(self.task, outputs, rows, times)

    def _note(self, name: str, part: Attends, call: AttentionCall) -> None:
        self.heads.append((name, _heads_of(call)))
        self.positions = max(self.positions, call.q.shape[2], call.k.shape[2])


class _Cutting:
    """Cuts heads out of the copies of an input, of `rows` each, in one forward pass."""

    def __init__(self, cuts: Sequence[tuple[Head, ...]], rows: int, mean: bool) -> None:
        self.cuts, self.rows, self.mean, self.calls = cuts, rows, mean, 0

    def __call__(self, name: str, part: Attends, call: AttentionCall) -> Tensor | None:
        layer, self.calls = self.calls, self.calls + 1
        own = [(n, h.head) for n, cut in enumerate(self.cuts) for h in cut if h.layer == layer]
        if not own:
            return None
        y = call.output.clone()
        for copy, head in own:
            maps = (head,) if call.minus is None else (head, head + _heads_of(call))
            for number in maps:
                own_rows = y[copy * self.rows : (copy + 1) * self.rows, number]  # (rows, T, E)
                own_rows.copy_(
                    own_rows.mean(1, keepdim=True) if self.mean else torch.zeros_like(own_rows)
                )
        return y


def _heads_of(call: AttentionCall) -> int:
    """Heads of a call; differential ones have two maps."""
    return call.q.shape[1] // (1 if call.minus is None else 2)


def _worth(
    cut: tuple[Head, ...],
    names: Sequence[str],
    losses: Tensor,
    base: Tensor,
    task: Task,
    look: Look | None,
) -> Worth:
    """What the inputs' losses (N) with a cut say, beside those without (N)."""
    change = losses - base
    probability = (-losses).exp() if has_probability(task) else None
    worth = change if probability is None else (-base).exp() - probability
    letter, figures = figures_of(look, names, cut[0]) if len(cut) == 1 else ("", {})
    return Worth(
        cut,
        float(worth.mean()),
        half_interval(worth),
        float(change.mean()),
        None if probability is None else float(probability.mean()),
        letter,
        figures,
    )


def half_interval(values: Tensor) -> float | None:
    """Half the 95 % interval (Student's t) of the mean of values (N); None for a single one."""
    if len(values) < 2:
        return None
    return float(values.std()) / math.sqrt(len(values)) * t_quantile(len(values) - 1)
