"""Pages of what is measured in the place of a look: --ablate, --diff, --over.

Each is a look, whose heads the page shows as always, and a further view of what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bigmodel_cli.attend.apart import Apart, LayerApart
from bigmodel_cli.attend.course import FIGURES, Course
from bigmodel_cli.attend.look import Layer, Look, Side, Statistics
from bigmodel_cli.attend.page import PageOptions, page
from bigmodel_cli.attend.page_facts import DIFFERENCE
from bigmodel_cli.attend.page_sections import column, lines, panel, sentences, table
from bigmodel_cli.attend.page_views import View
from bigmodel_cli.attend.worth import FIGURES as BESIDE
from bigmodel_cli.attend.worth import Ablation, Worth
from bigmodel_cli.console import one_line
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import torch

PANELS = {
    "induction": "Induction score",
    "previous": "Share on the previous token",
    "sink": "Share on the first key",
    "entropy": "Entropy in nats",
}


def page_of_worth(found: Ablation, look: Look) -> str:
    """What heads are worth, and the heads of a look at the first input."""
    view = worth_view(found, look)
    places, best = places_of(look), found.heads[0].heads[0]
    head = None
    if not best.of_expert and best.layer in places:
        head = (places[best.layer], best.number)
    return page(look, options=PageOptions(head, view=view.name), views=[view])


def page_of_course(course: Course) -> str:
    """The statistics at each step, and the heads of the last one."""
    assert course.last is not None
    view = course_view(course, course.last)
    look = course.named(course.last)
    return page(look, options=PageOptions(view=view.name), views=[view])


def page_of_apart(apart: Apart, look: Look) -> str:
    """How far heads are apart, and where their weights are; `look` is one at the first model.

    Raises `SpecError` for models without heads.
    """
    if not apart.layers:
        raise SpecError(
            "--diff --html: these models have no attention, so that there are no heads to show;"
            " leave --html out: what is apart is printed"
        )
    view, first = apart_view(apart), apart.ranked()[0]
    options = PageOptions((first[0], first[1]), view=view.name)
    return page(look_of_apart(apart, look), options=options, views=[view])


def places_of(look: Look) -> dict[int, int]:
    """The places of layers in a look, by the numbers that name their heads."""
    return {
        place if layer.number is None else layer.number: place
        for place, layer in enumerate(look.layers)
    }


def worth_view(found: Ablation, look: Look) -> View:
    """What heads are worth, beside the heads of a look at the first input."""
    places, sure = places_of(look), found.probability is not None
    several = any(each.half is not None for each in found.heads)
    again = any(each.repeats is not None for each in found.heads)
    beside = [name for name in BESIDE if any(name in each.figures for each in found.heads)]
    less = "how much less probable the answer is" if sure else f"rise of the loss, in {found.unit}"
    experts = found.each != "head"
    columns = [
        *([column("Head", "head")] if found.each != "expert" else []),
        *([column("Expert", "text", "LAYER.eEXPERT, layers counted that have experts")] * experts),
        column("Worth", meaning=f"{less}, without the {found.each}"),
        *([column("95 %", meaning="half the interval over the inputs")] if several else []),
        column("Loss", meaning=f"its rise, in {found.unit}"),
        *([column("Repeats", meaning="rise of the loss on what repeats")] if again else []),
        *(
            [column("Probability", meaning=f"of the answer, without the {found.each}")]
            if sure
            else []
        ),
        *(column(name.capitalize()) for name in beside),
    ]

    def row(each: Worth) -> list[object]:
        one = each.heads[0]
        known = one.layer in places and not one.of_expert
        head = [places[one.layer], one.number] if known else None
        named: list[object] = [head] if found.each != "expert" else []
        named += [str(one) if one.of_expert else ""] if experts else []
        middle = [*([each.half] if several else []), each.loss]
        middle += [each.repeats] if again else []
        middle += [each.probability] if sure else []
        return [*named, each.worth, *middle, *(each.figures.get(name) for name in beside)]

    whole = (
        f"probability {found.probability:.4f} of its answer"
        if sure
        else f"loss {found.loss:.4f} {found.unit}"
    )
    mean = f", the mean of {found.inputs:,} inputs" if found.inputs > 1 else ""
    said = [
        f"The whole model: {whole}{mean}. The output of {found.what} is replaced by"
        f" {found.replaced}."
    ]
    if found.together is not None:
        said.append(f"Without {found.together.name} together: worth {found.together.worth:+.4f}.")
    caption = f"What each {found.each} is worth: {less}, without it"
    sections = [sentences(*said), table(caption, columns, [row(each) for each in found.heads])]
    return View("worth", "Worth", sections, of_heads=found.each != "expert")


def course_view(course: Course, look: Look) -> View:
    """The statistics of heads over the checkpoints of a run, beside the heads of the last one."""
    losses = [
        (name, None, values)
        for name, values in (("loss", course.loss), ("loss on repeats", course.repeats))
        if any(map(math.isfinite, values))
    ]
    panels = [panel("Loss", losses)] if losses else []
    places = {layer.name: place for place, layer in enumerate(look.layers)}
    for name in FIGURES:
        series = [
            (
                f"{layer}.{head}",
                [places.get(course.layers[layer], layer), head],
                course.of(name, layer, head),
            )
            for layer, head in course.heads()
        ]
        if any(math.isfinite(value) for *_, values in series for value in values):
            panels.append(panel(PANELS[name], series))
    caption = "Each line is a head; the chosen one is marked"
    said = sentences(course.said(), *course.notes)
    return View(
        "course", "Over steps", [said, lines(caption, "Step", course.steps, panels)], of_heads=True
    )


def apart_view(apart: Apart) -> View:
    """How far the heads of two models are apart, and the parts of their blocks."""
    rows = [
        [[layer, head], bits, change, _now(layer, head, apart.layers[layer].moved)]
        for layer, head, bits, change in apart.ranked()
    ]
    columns = [
        column("Head", "head"),
        column("Bits", meaning="Jensen-Shannon divergence of a query's weights, mean over queries"),
        column("Output", meaning="change of what the head gives, in parts of its length"),
        column("Is now", "text", "the head of the second that looks most like it"),
    ]
    parts = sorted(apart.parts.items(), key=lambda pair: -float(pair[1]))
    sections = [table("Heads, those furthest apart first", columns, rows)]
    if parts:
        named = [[name, float(change)] for name, change in parts]
        of_parts = [column("Part", "text"), column("Output", meaning="change of what it gives")]
        sections.append(table("Parts of blocks, those changed most first", of_parts, named))
    return View("apart", "Apart", sections, of_heads=True)


def _now(layer: int, head: int, moved: Mapping[int, int]) -> str | None:
    """Where the second model has what this head did, unless it is at its place."""
    return f"{layer}.{moved[head]}" if head in moved else None


def look_of_apart(apart: Apart, look: Look) -> Look:
    """The differences of the weights as the heads of a look: the second's less the first's.

    `look` is one at the first model, which names positions and heads' classes.
    """
    by_name = {layer.name: layer for layer in look.layers}
    layers = [_difference(layer, by_name.get(layer.name)) for layer in apart.layers]
    return replace(
        look,
        model=f"{apart.second} less {apart.first}",
        layers=layers,
        answer="",
        extra={},
        heat=None,
        notes=[
            "the maps show the second model's weights less the first's",
            *(one_line(which) for which in apart.which),
            *look.notes,
        ],
        title=apart.title or look.title,
        checkpoint="",
    )


def _difference(apart: LayerApart, before: Layer | None) -> Layer:
    blocks = apart.blocks
    assert blocks is not None, "differences are drawn of blocks"
    heads, rows, columns = blocks.most.shape
    sides: Sequence[Side] = () if before is None else (before.queries, before.keys)
    counts = [size * step for size, step in ((rows, blocks.rows), (columns, blocks.columns))]
    if any(len(s) > n or n - len(s) >= step for s, n, step in zip(
        sides, counts, (blocks.rows, blocks.columns), strict=False
    )) or before is None:  # fmt: skip
        sides = [Side(name, [str(i) for i in range(n)]) for name, n in zip(
            ("queries", "keys"), counts, strict=True
        )]  # fmt: skip
    nothing = Statistics(*(torch.full((heads,), math.nan),) * 9)
    causal = before is not None and before.causal
    unknown = torch.full((heads, len(sides[1])), math.nan)
    return Layer(
        apart.name, DIFFERENCE, sides[0], sides[1], causal, nothing, blocks, len(sides[0]) - 1,
        unknown, unknown, letters="" if before is None else before.letters, signed=True,
    )  # fmt: skip
