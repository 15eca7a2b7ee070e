"""Options: strict, frozen and typed, and the types of numbers in them.

Every class of options is declared beside the code that it configures. A field's type carries its
bounds, so that NaN, infinity, a negative or an absurd number is refused before anything is built.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema


class Options(BaseModel):
    """Base of all options: unknown keys are refused, nothing is coerced, nothing changes after
    loading.

    Where options with a `type` are expected, the type's name alone stands for a mapping with
    nothing else: `ffn: gelu` is `ffn: {type: gelu}`, also as an item of a list. A mapping without
    `type` is of the default's: `optimizer: {lr: 1e-4}`.
    """

    exclusive: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of options that replace one another."""
    not_promised: ClassVar[tuple[str, ...]] = ()
    """Of a part's options: the promises (bigmodel_cli/promises) that this part does not make."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # until first used: plugins have joined the tables by then
    )

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, values: Any) -> Any:
        """The mappings that words and mappings without `type` stand for."""
        if not isinstance(values, dict):
            return values
        return {
            name: _written_out(cls.model_fields.get(name), value) for name, value in values.items()
        }

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The schema accepts what `_written_out` does."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, field in cls.model_fields.items():
            schema["properties"][name] = _schema_of_words(field, schema["properties"][name])
        return schema


T = TypeVar("T", bound=Options)


class Table(dict[str, type[T]]):
    """Classes of options by their `type`: the choices for one kind of slot in a spec.

    Plugins add to it.

    `Annotated[base, TABLE]` is an option whose value is one of them. The table is read when options
    are typed for the first time, after plugins have joined it.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]  # an annotation has a hash

    def __init__(self, kind: str, base: type[T], *options: type[T]) -> None:
        super().__init__({own.model_fields["type"].default: own for own in options})
        self.kind, self.base = kind, base
        _TABLES[base] = self

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        union: Any = Union[tuple(self.values())]  # noqa: UP007
        return handler.generate_schema(Annotated[union, Field(discriminator="type")])


_TABLES: dict[type[Options], Mapping[str, type[Options]]] = {}
"""Every table, by its base class."""


def classes_in(annotation: Any) -> list[type[Options]]:
    """The classes of options in an annotation such as ``list[Annotated[A | B, ...]] | None``.

    A table's base class stands for those in the table.
    """
    if isinstance(annotation, type) and issubclass(annotation, Options):
        return [*_TABLES.get(annotation, {"": annotation}).values()]
    return [inner for argument in get_args(annotation) for inner in classes_in(argument)]


def typed(annotation: Any) -> dict[str, type[Options]]:
    """What a word may stand for at an option with this annotation, or in its list: classes of
    options by `type`.
    """
    fields = [(options, options.model_fields.get("type")) for options in classes_in(annotation)]
    return {
        str(word): own
        for own, field in fields
        if field is not None
        for word in get_args(field.annotation)
    }


def required(options: type[Options]) -> list[str]:
    """The options without a default."""
    return [name for name, field in options.model_fields.items() if field.is_required()]


def _written_out(field: FieldInfo | None, value: Any) -> Any:
    if field is None or not isinstance(value, str | dict | list) or not typed(field.annotation):
        return value
    listed = get_origin(field.annotation) is list
    if listed or isinstance(value, list):
        whole = listed and isinstance(value, list)
        return (
            [{"type": item} if isinstance(item, str) else item for item in value]
            if whole
            else value
        )
    if isinstance(value, str):
        return {"type": value}
    kind = getattr(field.default, "type", None)
    return value if kind is None or "type" in value else {"type": kind, **value}


def _schema_of_words(field: FieldInfo, schema: dict[str, Any]) -> dict[str, Any]:
    """An option's JSON Schema with the words that stand for mappings, and mappings whose `type` is
    the default's.
    """
    words = [word for word, options in typed(field.annotation).items() if not required(options)]
    if not words and "discriminator" not in schema:
        return schema
    if "items" in schema:
        return {**schema, "items": {"anyOf": [schema["items"], {"enum": words}]}}
    about: dict[str, Any] = {
        key: schema[key] for key in ("default", "description", "title") if key in schema
    }
    rest = {key: value for key, value in schema.items() if key not in about}
    choices = []
    for choice in rest.get("anyOf", [rest]):
        choices.append({**choice, "required": ["type"]} if "discriminator" in choice else choice)
        kind = getattr(field.default, "type", None)
        if "discriminator" in choice and kind is not None:
            choices.append({"$ref": choice["discriminator"]["mapping"][kind]})
    return {"anyOf": [*choices, {"enum": words}] if words else choices, **about}


Count = Annotated[int, Field(gt=0, le=10**9)]
"""A number of things, at least one."""
Steps = Annotated[int, Field(gt=0, le=10**10)]
"""A number of optimizer steps."""
Natural = Annotated[int, Field(ge=0, le=10**10)]
"""A number of things, zero included."""
Positive = Annotated[float, Field(gt=0, le=1e6)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Probability = Annotated[float, Field(ge=0, lt=1)]
"""A dropout probability, below 1."""
Fraction = Annotated[float, Field(ge=0, le=1)]
MOST_BEAMS = 1000
Beams = Annotated[int, Field(gt=0, le=MOST_BEAMS)]
"""Beam width."""
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
PADDING = -1
"""Fills a batch's rows of integers up to the longest: not a token, label or unit.

Models ignore it, and no loss counts it.
"""


Finite = Annotated[float, Field(ge=-1e9, le=1e9)]
Side = Annotated[int, Field(gt=0, le=1_000_000)]
MOST_PIXELS = 2**28
"""Most numbers in an image, or in a recording of one length: 1 GiB in fp32."""
MOST_FILTERS = 2**24
"""Bands times samples of a window, at most: the number of filter coefficients."""
MOST_RATE = 768_000
"""Most samples per second."""
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class MelConfig:
    """How sound becomes frames: `rate` in samples per second, `window` and `hop` in samples, `mels`
    filters from `low` to `high` Hz.

    `length` is the number of samples that every recording is brought to; None where each keeps its
    own.
    """

    __pydantic_config__ = _STRICT
    rate: Annotated[int, Field(gt=0, le=MOST_RATE)]
    window: Annotated[int, Field(gt=0, le=MOST_RATE)]
    hop: Annotated[int, Field(gt=0, le=MOST_RATE)]
    mels: Annotated[int, Field(gt=0, le=1024)]
    low: NonNegative
    high: Positive
    length: Annotated[int, Field(gt=0, le=MOST_PIXELS)] | None = None

    def check(self) -> None:
        """Raise `ValueError` where the filters would take more memory than any sound needs."""
        if self.mels * self.window > MOST_FILTERS:
            raise ValueError(
                f"{self.mels:,} mels of a window of {self.window:,} samples; their product is at"
                f" most {MOST_FILTERS:,}"
            )


@dataclass(frozen=True)
class DatasetInfo:
    """What the data tells the model, and a checkpoint keeps: everything needed to use the model
    without the data.

    `image_shape` is (channels, height, width). `white_level` is the value of white in images of
    more than 8 bits, None where the file's type says it. `mean` and `std` are per channel, of
    pixels scaled to 0..1.

    `classes` are the labels' names in the order of the logits. `vocab_size` counts tokens,
    `source_vocab_size` those of the source where it has its own tokenizer. `context` is the length
    of a training window.

    `sound` says how recordings become images, or rows of frames of `frame_width` numbers.
    `spelling` is "words" or "characters" where the classes are units of a transcript rather than
    labels of an item: the last logit is then the blank, which is not a class. Where `tagged`, each
    word of an item has a class, and the item has none.

    `class_counts` are the training items per class, where items have labels; () in checkpoints from
    before it was kept. With `label_sets` an item has any number of the classes; `items` is then the
    number of training items.

    `targets` are the names of an item's numbers, in the order of the outputs, where it has numbers
    rather than labels. `target_mean` and `target_std` are those of the training split, in the
    data's units.
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
    sound: MelConfig | None = None
    spelling: Literal["", "words", "characters"] = ""
    class_counts: tuple[Natural, ...] = ()
    white_level: Annotated[float, Field(gt=0, le=2**32)] | None = None
    tagged: bool = False
    label_sets: bool = False
    items: Natural = 0
    targets: tuple[str, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[Annotated[float, Field(gt=0)], ...] = ()

    @property
    def outputs(self) -> int:
        """The number of model outputs for a whole item: one for each class or target."""
        return len(self.classes) or len(self.targets)

    def to_json(self) -> dict[str, Any]:
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}
        return {**values, "sound": vars(self.sound) if self.sound is not None else None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DatasetInfo:
        """The inverse of `to_json`.

        Raises `ValueError` naming the key that is unknown, or whose value is not of its type or in
        its range.
        """
        try:
            # a tuple is a list in JSON; file names that are not UTF-8 hold lone surrogates
            info = _info_adapter().validate_json(
                json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")
            )
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
        if info.image_shape is not None and math.prod(info.image_shape) > MOST_PIXELS:
            raise ValueError(
                f"image_shape: images of {math.prod(info.image_shape):,} numbers; at most"
                f" {MOST_PIXELS:,}"
            )
        if info.sound is not None:
            _check_sound(info, info.sound)
        if len(info.mean) != len(info.std):
            raise ValueError(f"mean, std: {len(info.mean)} and {len(info.std)} values")
        if info.class_counts and len(info.class_counts) != len(info.classes):
            raise ValueError(
                f"class_counts: {len(info.class_counts)} for {len(info.classes)} classes"
            )
        for name, names in (("classes", info.classes), ("targets", info.targets)):
            if len(set(values.get(name, ()))) != len(names):
                raise ValueError(f"{name}: a name is given twice")
        if not len(info.targets) == len(info.target_mean) == len(info.target_std):
            raise ValueError("targets, target_mean, target_std: not equally many")
        if info.classes and info.targets:
            raise ValueError("classes, targets: an item has one or the other")
        return info if "classes" not in values else replace(info, classes=tuple(values["classes"]))


def _check_sound(info: DatasetInfo, sound: MelConfig) -> None:
    """Raise `ValueError` where frames are too large, or not of the shape that the model reads."""
    try:
        sound.check()
    except ValueError as error:
        raise ValueError(f"sound: {error}") from None
    if sound.length is None:
        fits = info.frame_width == sound.mels
    else:
        fits = info.image_shape == (1, sound.mels, -(-sound.length // sound.hop))
    if not fits:
        raise ValueError("sound: its frames are not those of frame_width or image_shape")


@functools.cache
def _info_adapter() -> TypeAdapter[DatasetInfo]:
    return TypeAdapter(DatasetInfo)


NO_DATASET = DatasetInfo()
"""For what needs no data."""
