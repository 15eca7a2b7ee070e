"""Options: strict, frozen and typed; and tables of them, the choices for a slot in a spec.

Every class of options is declared beside the code that it configures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
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

    def settled(self, dim: int) -> dict[str, Any]:
        """What options that are left out come to in a model of this width, by name.

        An option that says what is so anyway is as if it were left out.
        """
        return {}

    def placed(self, index: int) -> Self:
        """The same options, with what follows from the number of their layer written out."""
        return self

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
        super().__init__()
        self.kind, self.base = kind, base
        _TABLES[base] = self
        self.add(*options)

    def add(self, *options: type[T]) -> None:
        """Add choices under their `type`s."""
        self.update({own.model_fields["type"].default: own for own in options})

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
    if isinstance(value, list):
        items = [{"type": item} if isinstance(item, str) else item for item in value]
        return items if get_origin(field.annotation) is list else value
    if get_origin(field.annotation) is list:
        return value
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
