"""What a head is worth: how much worse the model does with the head's output cut out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bigmodel_cli.attend.capture import watch, watch_mixing
from bigmodel_cli.attend.judging import Judged, judge_of, judged, nats_of
from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.worth import Ablation, Head, Worth, figures_of
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.metrics.distributions import t_quantile
from bigmodel_cli.parts.contract import Attends
from bigmodel_cli.parts.mixing import MixingCall
from bigmodel_cli.parts.watched import AttentionCall
from bigmodel_cli.progress import progress
from bigmodel_cli.tasks import Batch, Task

AT_ONCE = 8192
"""Positions of all rows of a forward pass ..."""
LOGITS = 1 << 26
"""... and numbers of its logits, where they are over a vocabulary."""


@dataclass(frozen=True)
class AblateOptions:
    """`heads` is "auto", which is every head, or LAYER.HEAD with commas between.

    With `mean` the head's output is replaced by its mean over the positions of the input (later
    ones included) rather than by zeros. Of mixers that are not attention the output is that before
    their norm and gate: where a norm is over all heads (Mamba-2) the others grow a little.
    `layers` are those whose heads "auto" tries; None for all.
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
    base = torch.stack([run.base for run in runs])
    found = [_worth(cut, names, losses[:, n], base, task, look) for n, cut in enumerate(cuts)]
    whole = _worth(tuple(chosen), names, losses[:, -1], base, task, look) if together else None
    return Ablation(
        loaded.name,
        unit_of(task),
        float(base[:, 0].mean()),
        float((-base[:, 0]).exp().mean()) if has_probability(task) else None,
        [item.answer for item in items],
        len(items),
        "its mean over positions" if options.mean else "zeros",
        sorted(found, key=lambda each: -each.worth),
        whole,
        _known_mean(base[:, 1]),
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
        raise SpecError(
            "this model has no attention, and no mixer in its place, whose heads could be cut out"
        )
    if layers is not None and max(layers) >= len(counts):
        raise SpecError(
            f"--layers: {max(layers)}: the layers with attention are 0 to {len(counts) - 1}"
        )
    if given == "auto":
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
        if layers is not None and int(layer) not in layers:
            raise SpecError(
                f"--ablate {word.strip()}: --layers {','.join(map(str, layers))} leaves layer"
                f" {layer} out; give one of the two"
            )
        if Head(int(layer), int(head)) not in found:
            found.append(Head(int(layer), int(head)))
    return found


class _Run:
    """One input: the loss without a cut, and the losses with cuts, all and of what repeats.

    `heads` are the calls in their order, of attention and of mixers in its place, each with its
    title and its heads.
    """

    def __init__(self, loaded: Loaded, task: Task, item: Judged, mean: bool) -> None:
        self.loaded, self.task, self.item, self.mean = loaded, task, item, mean
        seen = _Calls()
        self.base, counts = self._pass(seen, 1)  # (2)
        if not bool(counts):
            raise DataError(f"{item.given[:40]!r}: nothing in it is foretold; give a longer input")
        self.base, self.heads, self.positions = self.base[0], seen.heads, seen.positions

    def losses(self, cuts: Sequence[tuple[Head, ...]]) -> Tensor:
        """(cuts, 2) float64   the losses with each of the cuts, as many rows at once as fit."""
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

    def _pass(self, calls: _Calls, times: int) -> tuple[Tensor, Tensor]:
        """(times, 2) the losses of as many copies of the input, whose mixers' outputs `calls` may
        change, of all and of what repeats (NaN: nothing does); and how many targets are in each.
        """
        rows, task = _copies(self.item.batch, times), self.task
        model, device = self.loaded.model, self.loaded.device
        with (
            watch(model, calls.attention),
            watch_mixing(model, calls.mixing),
            torch.inference_mode(),
            autocast(device, self.loaded.precision),
        ):
            outputs = task.forward(model, rows, training=False)
            losses, counts = nats_of(task, outputs, rows, times)
            again = torch.full_like(losses, math.nan)
            if self.item.repeats is not None:
                some = {**rows, **_copies({"loss_mask": self.item.repeats}, times)}
                again = nats_of(task, outputs, some, times)[0]
            return torch.stack((losses, again), 1), counts


def _copies(batch: Batch, times: int) -> Batch:
    return {name: x.repeat(times, *[1] * (x.dim() - 1)) for name, x in batch.items()}


class _Calls:
    """Notes each call of attention, and of a mixer in its place, and changes none."""

    def __init__(self) -> None:
        self.heads: list[tuple[str, int]] = []
        self.positions = 1

    def attention(self, name: str, part: Attends, call: AttentionCall) -> Tensor | None:
        """A call of attention; differential heads have two maps each."""
        heads = _heads_of(call)
        return self.called(name, call.output, call.keys, heads, 1 if call.minus is None else 2)

    def mixing(self, name: str, call: MixingCall) -> Tensor | None:
        """A call of a mixer in its place."""
        return self.called(name, call.output, call.keys, call.output.shape[1], 1)

    def called(self, name: str, output: Tensor, keys: int, heads: int, maps: int) -> Tensor | None:
        """Output (B, heads x maps, T, E): what is to stand in its place, if anything."""
        times = sum(title.partition(" ")[0] == name for title, _ in self.heads)
        self.heads.append((name if not times else f"{name} ({times + 1})", heads))
        self.positions = max(self.positions, output.shape[2], keys)
        return None


class _Cutting(_Calls):
    """Cuts heads out of the copies of an input, of `rows` each, in one forward pass."""

    def __init__(self, cuts: Sequence[tuple[Head, ...]], rows: int, mean: bool) -> None:
        super().__init__()
        self.cuts, self.rows, self.mean, self.calls = cuts, rows, mean, 0

    def called(self, name: str, output: Tensor, keys: int, heads: int, maps: int) -> Tensor | None:
        layer, self.calls = self.calls, self.calls + 1
        own = [(n, h.head) for n, cut in enumerate(self.cuts) for h in cut if h.layer == layer]
        if not own:
            return None
        y = output.clone()
        for copy, head in own:
            for number in range(head, heads * maps, heads):
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
    """What the inputs' losses (N, 2) with a cut say, beside those without (N, 2)."""
    change, again = (losses - base).unbind(1)
    probability = (-losses[:, 0]).exp() if has_probability(task) else None
    worth = change if probability is None else (-base[:, 0]).exp() - probability
    letter, figures = figures_of(look, names, cut[0]) if len(cut) == 1 else ("", {})
    return Worth(
        cut,
        float(worth.mean()),
        half_interval(worth),
        float(change.mean()),
        None if probability is None else float(probability.mean()),
        letter,
        figures,
        _known_mean(again),
    )


def _known_mean(values: Tensor) -> float | None:
    """The mean of those (N) that are known; None where none is."""
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None


def half_interval(values: Tensor) -> float | None:
    """Half the 95 % interval (Student's t) of the mean of values (N); None for a single one."""
    if len(values) < 2:
        return None
    return float(values.std()) / math.sqrt(len(values)) * t_quantile(len(values) - 1)
