"""The logit lens: what the model would answer from its residual stream after each block.

nostalgebraist 2020. The stream after a block goes through all that follows the last block (norm,
head, scale, softcap, pooling), as the model itself computes it, while the blocks are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bigmodel_cli.attend.runs import name_tokens
from bigmodel_cli.console import one_line
from bigmodel_cli.data import load_tokenizer
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.loaded import Loaded

CLOSE = 1e-5
"""Largest difference of the last layer's logits from the model's own, in parts of the largest."""
BEFORE = 7
"""Positions before the query that are looked at too."""
AT_ONCE = 256
"""Positions whose probabilities are in memory at once."""


def lens(
    layers: Sequence[Module],
    run: Callable[[], Tensor],
    name: Callable[[int], str],
    *,
    top: int = 5,
    positions: Sequence[int] | None = None,
) -> dict[str, Any]:
    """What each layer's stream says, as plain values: see `_figures`.

    `layers` are the blocks along the stream that `run` ends in, and `run` gives the logits
    (1, T, V), or (1, classes), whose choices `name` names. `positions` are those looked at; all
    when None. Raises `SpecError` where there is no stream.
    """
    if not layers:
        raise SpecError("--lens: this network has no residual stream of blocks to read from")
    with torch.no_grad():
        with _kept(layers) as streams:
            own = run()
        found = [read_from(layers, stream, run) for stream in streams]
    difference = float((found[-1] - own).abs().max() / own.abs().max().clamp(min=1e-30))
    if not difference <= CLOSE:
        raise RuntimeError(f"the lens differs by {difference:.1e} from the model at its last layer")
    chosen = list(range(own.shape[1])) if own.dim() == 3 else [0]
    if positions is not None and own.dim() == 3:
        chosen = [place % own.shape[1] for place in positions]
    last = _rows(found[-1], chosen)
    rows = [_figures(_rows(logits, chosen), last, top, name) for logits in found]
    names = ["embedding", *(f"block {number}" for number in range(len(layers)))]
    return {
        "of": "positions" if own.dim() == 3 else "labels",
        "positions": chosen,
        "difference": difference,
        "layers": [{"name": name, **row} for name, row in zip(names, rows, strict=True)],
    }


def lens_of(
    loaded: Loaded, run: Callable[[], Any], labels: Sequence[str], query: int, top: int = 5
) -> dict[str, Any]:
    """The lens of a loaded model that `run` runs, at the position `query` and some before it.

    `labels` are those of the positions. Raises `SpecError` for a task whose outputs are not
    choices, and for a model without a stream.
    """
    if not loaded.task.chooses:
        raise SpecError(
            f"--lens: task.type: {loaded.task.name} has outputs that are no choices of which one is"
            " right; it shows probabilities of tokens or classes"
        )

    def logits() -> Tensor:
        given = run()
        found: Tensor = given if torch.is_tensor(given) else given[0]  # with lengths, of sounds
        return found

    place = query % len(labels)
    positions, name = list(range(max(0, place - BEFORE), place + 1)), choices_of(loaded)
    found = lens(loaded.model.answer_layers(), logits, name, top=top, positions=positions)
    several = found["of"] == "positions"
    found["label"] = f"at {one_line(labels[place])!r}" if several else "the label"
    found["tokens"] = [labels[position] for position in found["positions"]] if several else []
    remark = loaded.model.answer_remark()
    return {**found, "remark": remark} if remark else found


def choices_of(loaded: Loaded) -> Callable[[int], str]:
    """What the choices of the outputs are called: classes, units of a transcript, tokens."""
    classes = loaded.info.classes
    if classes:
        return lambda index: classes[index] if index < len(classes) else "<blank>"
    tokenizer = load_tokenizer(loaded.assets)
    return lambda index: name_tokens(tokenizer, [index])[0]


def read_from(layers: Sequence[Module], stream: Tensor, run: Callable[[], Tensor]) -> Tensor:
    """The logits that the model gives with `stream` in the place of what its blocks give."""
    with _passed_over(layers, stream):
        return run()


@contextmanager
def _kept(layers: Sequence[Module]) -> Iterator[list[Tensor]]:
    """Inside, the first block's input and each block's output are kept."""
    streams: list[Tensor] = []

    def first(module: Module, given: tuple[Tensor, ...]) -> None:
        streams.append(given[0].detach())

    def after(module: Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        streams.append(output.detach())

    handles = [layers[0].register_forward_pre_hook(first)]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield streams
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _passed_over(layers: Sequence[Module], stream: Tensor) -> Iterator[None]:
    """Inside, the blocks compute nothing, and the last one gives `stream`."""
    before = [layer.__dict__.get("forward") for layer in layers]  # None: that of its class

    def same(x: Tensor, *others: Any) -> Tensor:
        return x

    def end(x: Tensor, *others: Any) -> Tensor:
        return stream

    try:
        for layer in layers:
            layer.forward = end if layer is layers[-1] else same
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _rows(logits: Tensor, positions: Sequence[int]) -> Tensor:
    """(N, V)   of the positions, or the one row of a label."""
    rows = logits[0] if logits.dim() == 3 else logits
    return rows[torch.tensor(list(positions), device=rows.device)].float()


def _figures(logits: Tensor, last: Tensor, top: int, name: Callable[[int], str]) -> dict[str, Any]:
    """By position (N): `choices`, `names` and `probabilities` of the likeliest, `answer` the
    probability of the last layer's likeliest, `rank` its place here (1: the likeliest), and `kl`,
    how far the last layer's distribution is from this one, in nats.
    """
    found: dict[str, list[Any]] = {
        key: [] for key in ("choices", "names", "probabilities", "answer", "rank", "kl")
    }
    for start in range(0, len(logits), AT_ONCE):
        own = logits[start : start + AT_ONCE].log_softmax(-1)
        end = last[start : start + AT_ONCE].log_softmax(-1)
        best = own.topk(min(top, own.shape[-1]), -1)
        answer = end.argmax(-1, keepdim=True)
        there = own.gather(-1, answer)
        terms = torch.where(end.exp() > 0, end.exp() * (end - own), 0.0)
        found["choices"] += best.indices.tolist()
        found["names"] += [[name(index) for index in row] for row in best.indices.tolist()]
        found["probabilities"] += best.values.exp().tolist()
        found["answer"] += there[:, 0].exp().tolist()
        found["rank"] += ((own > there).sum(-1) + 1).tolist()
        found["kl"] += terms.sum(-1).clamp(min=0).tolist()
    return found
