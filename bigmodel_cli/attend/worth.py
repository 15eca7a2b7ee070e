"""What `--ablate` found, as a table and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bigmodel_cli.attend.look import Look
from bigmodel_cli.console import counted, listed, narrowed, one_line, sentence, table

SHOWN = 24
"""Rows of the table, of all heads that were tried: those worth most."""
MOST_ANSWER = 40
"""Characters of the answer that are shown."""
OWN_UNIT = "loss "
"""How a unit begins that is the loss's own, which needs no word for it beside "loss"."""
OF_HEADS = ("sink", "previous", "induction", "own", "entropy")
OF_EXPERTS = ("load", "weight")
FIGURES = (*OF_HEADS, *OF_EXPERTS)
"""Statistics that stand beside what a head, or an expert, is worth."""


class Head(NamedTuple):
    """A head by the number of its layer, among those that attend, and its own."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"

    @property
    def number(self) -> int:
        """Its own."""
        return self.head

    @property
    def of_expert(self) -> bool:
        """Whether it is an expert."""
        return False


class Expert(NamedTuple):
    """An expert by the number of its layer, among those that have experts, and its own."""

    layer: int
    expert: int

    def __str__(self) -> str:
        return f"{self.layer}.e{self.expert}"

    @property
    def number(self) -> int:
        """Its own."""
        return self.expert

    @property
    def of_expert(self) -> bool:
        """Whether it is an expert."""
        return True


Cut = Head | Expert


@dataclass(frozen=True)
class Worth:
    """What cutting heads costs: a positive number is what they are worth.

    `worth` is the fall of the answer's probability where there is one answer, else the rise of the
    loss; `half` is half its 95 % interval over several inputs. `loss` is the rise of the loss, and
    `probability` what the answer's is without the heads. `repeats` is the rise of the loss on the
    tokens that a model which copies can foretell (see `Judged`), None where there are none.
    """

    heads: tuple[Cut, ...]
    worth: float
    half: float | None
    loss: float
    probability: float | None = None
    letter: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    repeats: float | None = None

    @property
    def name(self) -> str:
        """The heads as the command line has them."""
        return ",".join(map(str, self.heads))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        values: dict[str, Any] = {"head": self.name, "worth": self.worth, "loss_change": self.loss}
        if self.repeats is not None:
            values["loss_change_on_repeats"] = self.repeats
        if self.half is not None:
            values["low"], values["high"] = self.worth - self.half, self.worth + self.half
        if self.probability is not None:
            values["probability"] = self.probability
        if self.letter:
            values["class"] = self.letter
        return {**values, **self.figures}


@dataclass(frozen=True)
class Ablation:
    """Heads ranked by what they are worth, and what they are worth `together`, if they were named.

    `loss` (in `unit`), that on what `repeats`, and `probability`, where there is one answer, are
    those of the whole model.
    """

    model: str
    unit: str
    loss: float
    probability: float | None
    answers: list[str]
    inputs: int
    replaced: str
    heads: list[Worth]
    together: Worth | None = None
    repeats: float | None = None
    checkpoint: str = ""
    titles: tuple[str, ...] = ()
    """The checkpoint's path, and what the inputs are, in a few words."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        values: dict[str, Any] = {
            "model": self.model,
            "checkpoint": self.checkpoint,
            "titles": list(self.titles),
            "inputs": self.inputs,
            "replaced_by": self.replaced,
            "unit": "probability" if self.probability is not None else self.unit,
            "loss": self.loss,
            "loss_unit": self.unit,
        }
        if self.repeats is not None:
            values["loss_on_repeats"] = self.repeats
        if self.probability is not None:
            values["probability"] = self.probability
        if any(self.answers):
            values["answers"] = self.answers
        values["heads"] = [each.to_json() for each in self.heads]
        if self.together is not None:
            values["together"] = self.together.to_json()
        return values

    def to_text(self) -> str:
        """A table, the heads that are worth most first; on a terminal within its width."""
        sure = self.probability is not None
        whole = (
            f"probability {self.probability:.4f} of its answer"
            if sure
            else f"loss {self.loss:.4f} {self.unit.removeprefix(OWN_UNIT)}"
        )
        answer = one_line(self.answers[0]) if self.inputs == 1 else ""
        brief = answer if len(answer) <= MOST_ANSWER else f"{answer[: MOST_ANSWER - 3]}..."
        said = f" (“{brief}”)" if answer else ""
        first = (
            f"{one_line(self.model)}: {whole}{said}; mean of {counted(self.inputs, 'input')};"
            f" {self.what}'s output replaced by {self.replaced}"
        )
        shown = self.heads[:SHOWN]
        figures = [name for name in FIGURES if any(name in each.figures for each in shown)]
        several = any(each.half is not None for each in shown)
        columns = [self.each, *(["class"] if any(each.letter for each in shown) else []), "worth"]
        columns += ["95 %"] if several else []
        columns += ["loss", "probability"] if sure else []
        columns += ["repeats"] if self.repeats is not None else []
        rows = [
            self._row(each, columns, figures)
            for each in [*shown, *([self.together] if self.together is not None else [])]
        ]
        more = len(self.heads) - len(shown)
        rest = [f"and {counted(more, self.each)} worth less (all with --json)"] if more else []
        names, rows, left = narrowed([*columns, *figures], rows, len(columns))
        rest += [f"no room for {listed(left, len(left))} (all with --json)"] if left else []
        own = table(names, rows)
        return "\n".join([sentence(first), "", own, *map(sentence, [*rest, "", *self._said()])])

    @property
    def each(self) -> str:
        """What was cut out."""
        kinds = {cut.of_expert for one in self.heads for cut in one.heads}
        return "head" if kinds <= {False} else "expert" if kinds == {True} else "part"

    @property
    def what(self) -> str:
        """The same with its article."""
        return f"{'an' if self.each == 'expert' else 'a'} {self.each}"

    def _said(self) -> list[str]:
        """What the columns are."""
        own = self.unit.startswith(OWN_UNIT)
        rises = f"the {self.unit} rises" if own else "the loss rises"
        found = [
            "worth: how much less probable the answer is without it"
            if self.probability is not None
            else f"worth: how much {rises} without it{'' if own else f', in {self.unit}'}"
        ]
        if self.repeats is not None:
            found.append(
                "repeats: the same over the tokens that follow the one before them as they did"
                f" earlier (loss {self.repeats:.4f})"
            )
        return found

    def _row(self, each: Worth, columns: Sequence[str], figures: Sequence[str]) -> list[str]:
        probability = "" if each.probability is None else f"{each.probability:.4f}"
        cells = {
            self.each: "together" if each is self.together else each.name,
            "class": each.letter,
            "worth": f"{each.worth:+z.4f}",
            "95 %": "" if each.half is None else f"±{each.half:.4f}",
            "loss": f"{each.loss:+z.4f}",
            "probability": probability,
            "repeats": "" if each.repeats is None else f"{each.repeats:+.4f}",
        }
        own = [f"{each.figures[name]:.3f}" if name in each.figures else "" for name in figures]
        return [*(cells[name] for name in columns), *own]


def figures_of(look: Look | None, names: Sequence[str], head: Cut) -> tuple[str, dict[str, float]]:
    """The letter and the statistics of a head in a look at the same model, whose layers that attend
    have these `names`, or an expert's shares of the choices and of the weights; nothing without
    one.
    """
    if head.of_expert:
        records = look.extra.get("routing", []) if look else []
        found = records[head.layer : head.layer + 1]
        return "", {name: float(one[name][head.number]) for one in found for name in OF_EXPERTS}
    layer = next((x for x in look.layers if x.name == names[head.layer]), None) if look else None
    if layer is None:
        return "", {}
    values = {n: float(getattr(layer.statistics, n)[head.number]) for n in OF_HEADS}
    letter = layer.letters[head.number] if layer.letters else ""
    return letter, {name: value for name, value in values.items() if value == value}
