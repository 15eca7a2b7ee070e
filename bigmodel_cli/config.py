"""Options: strict, frozen, typed; and the numbers that an option may hold.

Every class of options is declared beside the code that it configures. A field's type carries its bounds, so that NaN,
infinity, a negative or an absurd number is refused before anything is built.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator


class Options(BaseModel):
    """Base of all options: unknown keys are refused, nothing is coerced, nothing changes after loading."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _types_left_out(cls, values: Any) -> Any:
        """Where options of several types may stand, a mapping without `type` is of the default's: `optimizer: {lr: 1e-4}`."""
        if not isinstance(values, dict):
            return values
        filled = {
            name: {"type": field.default.type, **values[name]}
            for name, field in cls.model_fields.items()
            if isinstance(values.get(name), dict) and "type" not in values[name] and hasattr(field.default, "type")
        }
        return {**values, **filled}


Count = Annotated[int, Field(gt=0, le=10**9)]
"""A number of things, at least one."""
Steps = Annotated[int, Field(gt=0, le=10**10)]
"""A number of optimizer steps."""
Natural = Annotated[int, Field(ge=0, le=10**10)]
"""A number of things, perhaps none."""
Positive = Annotated[float, Field(gt=0, le=1e6)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Probability = Annotated[float, Field(ge=0, lt=1)]
"""A probability of dropping something: 1 would drop everything."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
PADDING = -1
"""What fills a batch's rows of integers up to its longest: no token, label or unit. Models pass over it, and no loss counts it."""


Finite = Annotated[float, Field(ge=-1e9, le=1e9)]
Side = Annotated[int, Field(gt=0, le=1_000_000)]
MOST_PIXELS = 2**28
"""Numbers in an image: 1 GiB in fp32."""
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Sound:
    """How sound becomes frames: `rate` in samples a second, `window` and `hop` in samples, `mels` filters from `low` to `high` Hz.

    `length` is the number of samples that every recording is brought to; None where each keeps its own.
    """

    __pydantic_config__ = _STRICT
    rate: Annotated[int, Field(gt=0, le=10**7)]
    window: Annotated[int, Field(gt=0, le=10**7)]
    hop: Annotated[int, Field(gt=0, le=10**7)]
    mels: Annotated[int, Field(gt=0, le=1024)]
    low: NonNegative
    high: Positive
    length: Annotated[int, Field(gt=0, le=10**11)] | None = None


@dataclass(frozen=True)
class Facts:
    """What the data tells the model, and a checkpoint keeps: everything needed to use the model without the data.

    `image_shape` is (channels, height, width); `white_level` is the value of white in images of more than 8 bits, None where the
    file's type says it; `mean` and `std` are per channel, of pixels scaled to 0..1; `classes` are
    the labels' names in the order of the logits; `vocab_size` counts tokens, `source_vocab_size` those of what is read where that
    has a tokenizer of its own; `context` is the length of a training window.

    `sound` says how recordings become images, or rows of frames of `frame_width` numbers. `spelling` is "words" or "characters"
    where the classes are units of a transcript rather than labels of an item: the last logit is then the blank, which is no class.

    `class_counts` are the training items of each class, where items have labels; () in checkpoints from before it was kept.
    """

    __pydantic_config__ = _STRICT
    image_shape: tuple[Side, Side, Side] | None = None
    mean: tuple[Finite, ...] = ()
    std: tuple[Positive, ...] = ()
    classes: tuple[str, ...] = ()
    vocab_size: Count | None = None
    source_vocab_size: Count | None = None
    context: Count | None = None
    frame_width: Side | None = None
    sound: Sound | None = None
    spelling: Literal["", "words", "characters"] = ""
    class_counts: tuple[Natural, ...] = ()
    white_level: Annotated[float, Field(gt=0, le=2**32)] | None = None

    def to_json(self) -> dict[str, Any]:
        """The facts as plain JSON values."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}
        return {**values, "sound": vars(self.sound) if self.sound is not None else None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Facts:
        """The inverse of `to_json`. Raises `ValueError` naming the fact that is none, or not of its type or range."""
        try:
            # in JSON a list is what a tuple is here; names of files that are not UTF-8 have half pairs of surrogates
            facts = _facts_adapter().validate_json(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace"))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
        if facts.image_shape is not None and math.prod(facts.image_shape) > MOST_PIXELS:
            raise ValueError(
                f"image_shape: images of {math.prod(facts.image_shape):,} numbers; at most {MOST_PIXELS:,}"
            )
        if len(facts.mean) != len(facts.std):
            raise ValueError(f"mean, std: {len(facts.mean)} and {len(facts.std)} values")
        if facts.class_counts and len(facts.class_counts) != len(facts.classes):
            raise ValueError(f"class_counts: {len(facts.class_counts)} for {len(facts.classes)} classes")
        if len(set(values.get("classes", ()))) != len(facts.classes):
            raise ValueError("classes: a name is given twice")
        return facts if "classes" not in values else replace(facts, classes=tuple(values["classes"]))


@functools.cache
def _facts_adapter() -> TypeAdapter[Facts]:
    return TypeAdapter(Facts)


NO_FACTS = Facts()
"""Of no data, for what needs none."""
