"""Which heads and experts `--ablate` names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bigmodel_cli.attend.worth import Cut, Expert, Head
from bigmodel_cli.errors import SpecError

AUTO, EXPERTS = "auto", "experts"
"""All heads, and all experts."""


def chosen_cuts(
    given: str,
    heads: Sequence[int],
    experts: Sequence[int],
    layers: Sequence[int] | None = None,
) -> list[Cut]:
    """What LAYER.HEAD and LAYER.eEXPERT with commas between name; all heads where it is "auto", all
    experts where it is "experts", of these `layers`.

    `heads` are how many each layer has that attends, `experts` how many each that has experts;
    each kind has its own numbers. Raises `SpecError`.
    """
    if given == EXPERTS:
        return [*chosen_experts(given, experts, layers)]
    words = given.split(",")
    of_experts = [re.fullmatch(r"\s*\d+\.e\d+\s*", word) is not None for word in words]
    found: dict[str, Cut] = {}  # by its name: a head and an expert may have the same numbers
    for word, of_expert in zip(words, of_experts, strict=True):
        own = (chosen_experts if of_expert else chosen_heads)(
            word, experts if of_expert else heads, layers
        )
        found |= {str(cut): cut for cut in own if str(cut) not in found}
    return list(found.values())


def chosen_experts(
    given: str, counts: Sequence[int], layers: Sequence[int] | None = None
) -> list[Expert]:
    """The expert that LAYER.eEXPERT names, or all (of these layers) where it is "experts".

    `counts` are how many experts each layer has, of those that have some. Raises `SpecError`.
    """
    if not counts:
        raise SpecError(f"--ablate {given.strip()}: this model has no experts")
    _check_layers(layers, len(counts), "experts")
    if given == EXPERTS:
        return [
            Expert(layer, expert)
            for layer, count in enumerate(counts)
            for expert in range(count)
            if layers is None or layer in layers
        ]
    layer, _, expert = given.strip().partition(".e")
    _check_one(given, int(layer), int(expert), counts, layers, "experts")
    return [Expert(int(layer), int(expert))]


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
    _check_layers(layers, len(counts), "attention")
    if given == AUTO:
        return [
            Head(layer, head)
            for layer, count in enumerate(counts)
            for head in range(count)
            if layers is None or layer in layers
        ]
    found: list[Head] = []
    for word in given.split(","):
        layer, dot, head = word.strip().partition(".")
        if not (dot and re.fullmatch(r"[0-9]+", layer) and re.fullmatch(r"[0-9]+", head)):
            raise SpecError(
                f"--ablate {word!r}: name heads as LAYER.HEAD, such as 0.1,2.3, and experts as"
                " LAYER.eEXPERT, such as 0.e3, or give auto (all heads) or experts (all of them)"
            )
        _check_one(word, int(layer), int(head), counts, layers, "heads")
        if Head(int(layer), int(head)) not in found:
            found.append(Head(int(layer), int(head)))
    return found


def _check_layers(layers: Sequence[int] | None, count: int, what: str) -> None:
    if layers is not None and max(layers) >= count:
        raise SpecError(f"--layers: {max(layers)}: the layers with {what} are 0 to {count - 1}")


def _check_one(
    word: str,
    layer: int,
    number: int,
    counts: Sequence[int],
    layers: Sequence[int] | None,
    what: str,
) -> None:
    word = word.strip()
    if layer >= len(counts):
        kind = "attention" if what == "heads" else what
        raise SpecError(f"--ablate {word}: the layers with {kind} are 0 to {len(counts) - 1}")
    if number >= counts[layer]:
        raise SpecError(
            f"--ablate {word}: the {what} of layer {layer} are 0 to {counts[layer] - 1}"
        )
    if layers is not None and layer not in layers:
        raise SpecError(
            f"--ablate {word}: --layers {','.join(map(str, layers))} leaves layer {layer} out; give"
            " one of the two"
        )
