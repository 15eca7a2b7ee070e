"""How a text is generated: the options of sampling and search, and what of them fits together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from typing import Any

from bigmodel_cli.errors import SpecError
from bigmodel_cli.generation.beam import Beam
from bigmodel_cli.generation.sampling import Sampling
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.tasks import Search

DRAWN = 0.8
"""The default temperature of sampled text."""


@dataclass(frozen=True)
class Decoding:
    """How a text is generated.

    None means the model's default: a decoder samples, an encoder-decoder searches as its task says.

    `beams` 1 is greedy, unless a temperature above 0, `top_k`, `top_p` or `min_p` is given, which
    sample; `n_best` of the search's hypotheses are shown.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    beams: int | None = None
    length_penalty: float | None = None
    n_best: int = 1
    seed: int = 0

    @property
    def filtered(self) -> bool:
        """Whether unlikely tokens are excluded."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def given(self) -> list[str]:
        """The options that differ from the defaults, as the command line calls them."""
        return [_option(f) for f in fields(self) if getattr(self, f.name) != f.default]

    def with_settings(self, every: Mapping[str, Any], drawn: Mapping[str, Any]) -> Decoding:
        """The same with the settings of a checkpoint where nothing else is asked for.

        `every` are those of any text, `drawn` those of drawn, greedy or searched text, which give
        way as a whole to any option of how the next token is chosen.
        """
        chosen = {"temperature", "top_k", "top_p", "min_p", "beams", "length_penalty", "n_best"}
        given = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        taken = {name: value for name, value in every.items() if name not in given}
        if max(self.beams or 1, self.n_best) > 1:
            taken.pop("repetition_penalty", None)
        return replace(self, **taken, **({} if given & chosen else drawn))

    def check(self) -> None:
        """Raise `SpecError` for options that exclude one another, or that are not finite."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise SpecError(f"{_option(field)} {value}: give a finite number")
        beams = self.beams or self.n_best
        searching, draw = max(beams, self.n_best) > 1, "--top-k, --top-p and --min-p draw"
        faults = (
            (searching and self.temperature, "--beams and --n-best search, --temperature draws"),
            (searching and self.filtered, f"--beams and --n-best search, {draw}"),
            (self.temperature == 0 and self.filtered, f"--temperature 0 is greedy, {draw}"),
        )
        for wrong, fault in faults:
            if wrong:
                raise SpecError(f"{fault}; give one or the other")
        if searching and self.repetition_penalty != 1:
            raise SpecError(
                "--repetition-penalty is for drawn and greedy text; leave out --beams and --n-best"
            )
        if self.n_best > beams:
            raise SpecError(
                f"--n-best {self.n_best} is more than the {beams} hypotheses that --beams keeps"
            )

    def search(self, own: Search) -> Beam | None:
        """The beam search, `own` by default; None where text is sampled or greedy.

        Raises `SpecError` for a length penalty without a search.
        """
        plain = self.temperature is not None or self.filtered or self.repetition_penalty != 1
        width = max(self.n_best, self.beams or (1 if plain else own.beams))
        if width == 1 and self.length_penalty is not None:
            raise SpecError(
                "--length-penalty is for a search, and this text is drawn or greedy; give --beams"
            )
        penalty = own.length_penalty if self.length_penalty is None else self.length_penalty
        return Beam(width, penalty) if width > 1 else None

    def sampling(self, default: float) -> Sampling:
        """How the next token is chosen without a search."""
        default = DRAWN if self.filtered else default
        temperature = default if self.temperature is None else self.temperature
        return Sampling(temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)

    def draws(self, items: Sequence[int], count: int, device: torch.device) -> Tensor:
        """(B, count) uniform numbers for these items, by the seed and the item's index."""
        seeds = [(self.seed * 1_000_003 + i) % (1 << 63) for i in items]
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.rand(count, generator=draw) for draw in draws]).to(device)


def _option(field: Field[Any]) -> str:
    return f"--{field.name.replace('_', '-')}"
