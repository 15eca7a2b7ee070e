"""What a head is worth: how much worse the model does with the head's output cut out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bigmodel_cli.attend.capture import watch, watch_mixing
from bigmodel_cli.attend.choosing import AUTO, EXPERTS, chosen_cuts
from bigmodel_cli.attend.judging import Judged, in_windows, judge_of, nats_of
from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.routing import watch_experts
from bigmodel_cli.attend.runs import titled
from bigmodel_cli.attend.worth import Ablation, Cut, Worth, figures_of
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.metrics.distributions import t_quantile
from bigmodel_cli.parts.contract import Attends
from bigmodel_cli.parts.mixing import MixingCall
from bigmodel_cli.parts.watched import AttentionCall, RoutingCall
from bigmodel_cli.progress import progress
from bigmodel_cli.tasks import Batch, Task

AT_ONCE = 8192
"""Positions of all rows of a forward pass ..."""
LOGITS = 1 << 26
"""... and numbers of its logits, where they are over a vocabulary."""


@dataclass(frozen=True)
class AblateOptions:
    """`heads` is "auto", which is every head, "experts", which is every expert, or LAYER.HEAD and
    LAYER.eEXPERT with commas between.

    With `mean` the head's output is replaced by its mean over the positions of the input (later
    ones included) rather than by zeros. Of mixers that are not attention the output is that before
    their norm and gate: where a norm is over all heads (Mamba-2) the others grow a little.
    What an expert adds is replaced by zeros; the other experts' weights stay as they were.
    `layers` are those whose heads "auto" tries, or whose experts "experts" does; None for all.
    `target` is what an encoder-decoder is to write.
    """

    heads: str = "auto"
    mean: bool = False
    layers: Sequence[int] | None = None
    target: str | None = None


def ablate(
    loaded: Loaded, inputs: Sequence[str], options: AblateOptions, look: Look | None = None
) -> Ablation:
    """Cut heads, or experts, out, one at a time, and measure the loss of each input; of a text that
    is longer than the context over all its windows.

    Several that were named are also cut together. The statistics beside each are of `look`,
    which is at the same model. Raises `SpecError` for a head that is not there, and `DataError` for
    an input that cannot be read.
    """
    task = judge_of(loaded)
    items = in_windows(loaded, task, inputs, options.target)
    runs = [_Run(loaded, task, own, options.mean) for own in items]
    names, counts = zip(*runs[0].heads, strict=True) if runs[0].heads else ((), ())
    chosen = chosen_cuts(options.heads, counts, runs[0].experts, options.layers)
    if options.mean and any(cut.of_expert for cut in chosen):
        raise SpecError("--ablate-with mean is of heads; what an expert adds is replaced by zeros")
    cuts: list[tuple[Cut, ...]] = [(cut,) for cut in chosen]
    together = options.heads not in (AUTO, EXPERTS) and len(chosen) > 1
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
        [own[0].answer for own in items],
        len(items),
        "its mean over positions" if options.mean else "zeros",
        sorted(found, key=lambda each: -each.worth),
        whole,
        _known_mean(base[:, 1]),
        str(loaded.path),
        tuple(map(titled, inputs)),
    )


def unit_of(task: Task) -> str:
    """What the loss is counted in."""
    return f"{'nats' if task.chooses else 'loss'} per {task.unit.removesuffix('s')}"


def has_probability(task: Task) -> bool:
    """Whether exp(-loss) is the probability of the one answer."""
    return task.labels and task.chooses


class _Run:
    """One input, in its windows: the loss without a cut, and the losses with cuts, all and of what
    repeats, each the mean over the targets of all windows.

    `heads` are the calls in their order, of attention and of mixers in its place, each with its
    title and its heads; `experts` how many each call has that sends tokens to experts.
    """

    def __init__(self, loaded: Loaded, task: Task, items: Sequence[Judged], mean: bool) -> None:
        self.loaded, self.task, self.items, self.mean = loaded, task, items, mean
        passes, self.positions = [], 1
        self.heads: list[tuple[str, int]] = []
        self.experts: list[int] = []
        for item in items:
            seen = _Calls()
            passes.append(self._pass(item, seen, 1))
            self.heads, self.experts = seen.heads, seen.experts
            self.positions = max(self.positions, seen.positions)
        if not any(bool(counts[:, 0].any()) for _, counts in passes):
            given = items[0].given
            if loaded.info.spelling:
                raise DataError(
                    f"{given!r}: the model hears nothing in it, so that there is no answer to"
                    " measure; give another recording"
                )
            raise DataError(f"{given[:40]!r}: nothing in it is foretold; give a longer input")
        self.base = _mean_of(passes)[0]  # (2)

    def losses(self, cuts: Sequence[tuple[Cut, ...]]) -> Tensor:
        """(cuts, 2) float64   the losses with each of the cuts, as many rows at once as fit."""
        rows = self.items[0].rows * self.positions
        logits = rows * (self.loaded.info.vocab_size or 1)
        size = max(1, min(AT_ONCE // rows, LOGITS // logits))
        what = "experts" if cuts and all(cut.of_expert for cut in cuts[0]) else "heads"
        found = []
        with progress(f"{what} cut out", len(cuts), "") as done:
            for first in range(0, len(cuts), size):
                done.to(first)
                some = cuts[first : first + size]
                found.append(
                    _mean_of(
                        [
                            self._pass(item, _Cutting(some, item.rows, self.mean), len(some))
                            for item in self.items
                        ]
                    )
                )
        return torch.cat(found)

    def _pass(self, item: Judged, calls: _Calls, times: int) -> tuple[Tensor, Tensor]:
        """(times, 2) twice: the losses of as many copies of a window, whose mixers' outputs `calls`
        may change, of all and of what repeats (NaN: nothing does); and of how many targets each is.
        """
        rows, task = _copies(item.batch, times), self.task
        model, device = self.loaded.model, self.loaded.device
        with (
            watch(model, calls.attention),
            watch_mixing(model, calls.mixing),
            watch_experts(model, calls.routing),
            torch.inference_mode(),
            autocast(device, self.loaded.precision),
        ):
            outputs = task.forward(model, rows, training=False)
            losses, counts = nats_of(task, outputs, rows, times)
            again, few = torch.full_like(losses, math.nan), torch.zeros_like(counts)
            if item.repeats is not None:
                some = {**rows, **_copies({"loss_mask": item.repeats}, times)}
                again, few = nats_of(task, outputs, some, times)
            return torch.stack((losses, again), 1), torch.stack((counts, few), 1)


def _mean_of(passes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """(times, 2)   the mean losses over the targets of all windows; NaN where there are none."""
    if len(passes) == 1:
        return passes[0][0]
    losses, counts = (torch.stack(each) for each in zip(*passes, strict=True))
    return (losses.nan_to_num() * counts).sum(0) / counts.sum(0)


def _copies(batch: Batch, times: int) -> Batch:
    return {name: x.repeat(times, *[1] * (x.dim() - 1)) for name, x in batch.items()}


class _Calls:
    """Notes each call of attention, and of a mixer in its place, and changes none."""

    def __init__(self) -> None:
        self.heads: list[tuple[str, int]] = []
        self.experts: list[int] = []
        self.positions = 1

    def attention(self, name: str, part: Attends, call: AttentionCall) -> Tensor | None:
        """A call of attention; differential heads have two maps each."""
        heads = _heads_of(call)
        return self.called(name, call.output, call.keys, heads, 1 if call.minus is None else 2)

    def mixing(self, name: str, call: MixingCall) -> Tensor | None:
        """A call of a mixer in its place."""
        return self.called(name, call.output, call.keys, call.output.shape[1], 1)

    def routing(self, name: str, call: RoutingCall) -> Tensor | None:
        """A call of a part that sends tokens to experts: other weights (B, T, k), if any."""
        self.experts.append(call.experts)
        return None

    def called(self, name: str, output: Tensor, keys: int, heads: int, maps: int) -> Tensor | None:
        """Output (B, heads x maps, T, E): what is to stand in its place, if anything."""
        times = sum(title.partition(" ")[0] == name for title, _ in self.heads)
        self.heads.append((name if not times else f"{name} ({times + 1})", heads))
        self.positions = max(self.positions, output.shape[2], keys)
        return None


class _Cutting(_Calls):
    """Cuts heads and experts out of the copies of an input, of `rows` each, in one forward pass."""

    def __init__(self, cuts: Sequence[tuple[Cut, ...]], rows: int, mean: bool) -> None:
        super().__init__()
        self.cuts, self.rows, self.mean, self.calls = cuts, rows, mean, 0

    def called(self, name: str, output: Tensor, keys: int, heads: int, maps: int) -> Tensor | None:
        layer, self.calls = self.calls, self.calls + 1
        own = self._own(layer, of_expert=False)
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

    def routing(self, name: str, call: RoutingCall) -> Tensor | None:
        layer = len(self.experts)
        super().routing(name, call)
        own = self._own(layer, of_expert=True)
        if not own:
            return None
        weights = call.weights.clone()
        for copy, expert in own:
            rows = slice(copy * self.rows, (copy + 1) * self.rows)
            weights[rows].masked_fill_(call.chosen[rows] == expert, 0)
        return weights

    def _own(self, layer: int, *, of_expert: bool) -> list[tuple[int, int]]:
        """(copy, number) of what is cut out of this layer."""
        return [
            (copy, each.number)
            for copy, cut in enumerate(self.cuts)
            for each in cut
            if each.layer == layer and each.of_expert == of_expert
        ]


def _heads_of(call: AttentionCall) -> int:
    """Heads of a call; differential ones have two maps."""
    return call.q.shape[1] // (1 if call.minus is None else 2)


def _worth(
    cut: tuple[Cut, ...],
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
