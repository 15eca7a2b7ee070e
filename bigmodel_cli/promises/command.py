"""`bigmodel check FILE`: all promises of a plugin file's parts, optimizers and schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from bigmodel_cli.config import Options
from bigmodel_cli.console import table
from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.explain import explain
from bigmodel_cli.overrides import apply_overrides
from bigmodel_cli.plugins import plugin_types
from bigmodel_cli.promises import OF_SLOT, Finding, check_other, check_part
from bigmodel_cli.promises.training import TRIES
from bigmodel_cli.tables import TABLES
from bigmodel_cli.yaml_source import Node

UNTRIED = (
    "it has what {} asks for; what it does is tried with a spec: bigmodel pretrain SPEC --plugin {}"
)


@dataclass(frozen=True)
class Checked:
    """One of the classes: its slot, its name, and the findings (of a mixer in an encoder too)."""

    slot: str
    type: str
    findings: list[Finding]
    in_encoder: list[Finding]

    @property
    def broken(self) -> list[str]:
        """The broken promises.

        A mixer for decoders only, or for encoders only, need not be built for the other.
        """
        here = [f.promise for f in self.findings if f.kept is False]
        there = [
            f"{f.promise} in an encoder"
            for f in self.in_encoder
            if f.kept is False and f.promise not in here
        ]
        nowhere = all(found[0].kept is None for found in (self.findings, self.in_encoder) if found)
        return ["builds"] if nowhere else [*here, *there]

    def rows(self) -> list[list[str]]:
        """One per promise; of those in an encoder one for all, or one for each broken one."""
        found = [finding.cells() for finding in self.findings]
        if self.in_encoder:
            broken = [f for f in self.in_encoder if not f.kept]
            others = [
                [f"in an encoder: {f.promise}", *f.cells()[1:]]
                for f in broken
                if f not in self.findings
            ]
            found += others or [["in an encoder", "the same" if broken else "kept", ""]]
        return [[f"{self.slot} {self.type}", *cells] for cells in found]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        plain = {
            name: [vars(f) for f in found]
            for name, found in vars(self).items()
            if isinstance(found, list)
        }
        return {"slot": self.slot, "type": self.type, **plain, "kept": not self.broken}


def checked_text(parts: Sequence[Checked]) -> str:
    """The findings as a table."""
    return table(
        ["part", "promise", "kept", "what there is to say"],
        [row for part in parts for row in part.rows()],
    )


def check_plugin(file: Path, overrides: Sequence[str]) -> list[Checked]:
    """Check the file's parts, each with its defaults and the overrides of its options.

    Raises `SpecError` for an override that fits none, and for options without a value.
    """
    types = [(slot, options) for slot, options, _ in plugin_types()]
    if not types:
        raise SpecError(f"{file}: PARTS is empty: there is nothing to try")
    names = {
        name
        for slot, options in types
        if slot in OF_SLOT or slot in TRIES
        for name in options.model_fields
    }
    for override in overrides:
        name = override.partition("=")[0].partition(".")[0]
        if name not in names:
            raise SpecError(
                f"--set {override}: no part of {file} has this option{did_you_mean(name, names)}"
            )
    found, bases = [], {table.kind: table.base for table in TABLES}
    for slot, options in types:
        if slot not in OF_SLOT and slot not in TRIES:
            text = UNTRIED.format(bases[slot].__name__, file)
            found.append(
                Checked(
                    slot, options.model_fields["type"].default, [Finding("joins", True, text)], []
                )
            )
            continue
        values = _options(file, options, overrides)
        if slot in TRIES:
            found.append(Checked(slot, values.type, check_other(slot, values), []))
            continue
        in_encoder = check_part(slot, values, causal=False) if slot == "mixer" else []
        found.append(Checked(slot, values.type, check_part(slot, values), in_encoder))
    return found


def _options(file: Path, options: type[Options], overrides: Sequence[str]) -> Any:
    own = [
        text
        for text in overrides
        if text.partition("=")[0].partition(".")[0] in options.model_fields
    ]
    root = Node({}, f"{file}: {options.__name__}")
    apply_overrides(root, own, options)
    try:
        return options.model_validate(root.plain())
    except pydantic.ValidationError as error:
        missing = [str(f["loc"][-1]) for f in error.errors() if f["type"] == "missing"]
        hint = (
            f"\ngive a value to try it with: {' '.join(f'--set {name}=...' for name in missing)}"
            if missing
            else ""
        )
        raise SpecError(explain(root, options, error.errors(include_url=False)) + hint) from None
