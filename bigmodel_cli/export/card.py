"""The model card: README.md with what the model is and where it comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli import __version__
from bigmodel_cli.checkpoints.files import parse_json, read_file
from bigmodel_cli.convert.assets import CARD
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.export.source import Source
from bigmodel_cli.runs.record import read_run
from bigmodel_cli.yaml_scalars import dump_yaml

PIPELINES = {
    "causal_lm": "text-generation",
    "masked_lm": "fill-mask",
    "tagging": "token-classification",
    "seq2seq": "translation",
}
"""A task -> the word for it in a card's header."""
MOST_RESULTS = 10_000_000
_LICENCE = re.compile(r"^(license(?:_name|_link)?):[ \t]*(\S.*)$", re.MULTILINE)


def read_results(path: Path) -> dict[str, Any]:
    """What `bigmodel eval --json` printed, from a file. Raises `SpecError`."""
    try:
        values = parse_json(read_file(path, MOST_RESULTS))
        metrics = values["metrics"].values()
        if not metrics or not all({"value", "low", "high", "count"} <= m.keys() for m in metrics):
            raise ValueError("no metrics")
    except (CheckpointError, ValueError, LookupError, TypeError, AttributeError):
        raise SpecError(
            f"--results {path}: not the JSON of an evaluation; write it by bigmodel eval CKPT"
            f" --json > {path}"
        ) from None
    return dict(values)


def card(
    source: Source,
    kind: str,
    library: str = "transformers",
    more: Iterable[str] = (),
    pipelines: Mapping[str, str] = PIPELINES,
) -> str:
    """The text of the card of a model of this kind, with `more` lines on how it is used.

    `pipelines` has the header's word for a task.
    """
    header = _header(source, library, pipelines.get(source.task))
    return "\n".join([*header, "", *_body(source, kind, more)]) + "\n"


def _header(source: Source, library: str, pipeline: str | None) -> Iterator[str]:
    """What the hub reads: the licence is the source's, and none is invented."""
    yield "---"
    yield f"library_name: {library}"
    if pipeline is not None:
        yield f"pipeline_tag: {pipeline}"
    for name, value in _licence(source):
        yield f"{name}: {value}"
    yield "tags:"
    yield "- bigmodel"
    yield "---"


def _licence(source: Source) -> list[tuple[str, str]]:
    """The lines about the licence in the header of the card that the model came with."""
    text = (source.kept(CARD) or b"").decode("utf-8", errors="replace")
    header = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    return _LICENCE.findall(header)


def _body(source: Source, kind: str, more: Iterable[str]) -> Iterator[str]:
    spec = source.spec.to_dict()
    numbers = sum(p.numel() for p in source.model.parameters())
    yield f"# {_name(source)}"
    yield ""
    yield (
        f"A {kind} of {numbers:,} parameters, written by bigmodel {__version__}"
        f" from step {source.step:,} of a run."
    )
    licence = dict(_licence(source)).get("license")
    yield ""
    yield (
        f"Licence: {licence}, that of the model it began with."
        if licence
        else "Licence: none is recorded; whoever publishes this chooses one that its sources allow."
    )
    if (remark := source.spec.task.beyond_the_model()) and not source.headless:
        yield from ("", remark)
    yield from more
    yield from ("", "## Lineage", "")
    yield f"Began with: {source.spec.init.checkpoint or 'weights drawn at random'}"
    if source.command:
        yield f"\nExported by: `{source.command}`"
    yield from ("", "## Data", "")
    yield from _yaml(spec["data"])
    if source.fingerprint:
        yield f"\nFingerprint of its content: `{source.fingerprint}`"
    yield from ("", "## Results", "")
    yield from _results(source)
    yield from ("", "## Spec", "")
    yield from _yaml(spec)


def _results(source: Source) -> Iterator[str]:
    """The evaluation that was given, or else the validation that the run recorded of this step."""
    if source.results:
        yield f"On the {source.results.get('split', '')} split of the data:"
        yield from ("", "| metric | value | 95 % from | to | count |", "|---|---|---|---|---|")
        for name, m in source.results["metrics"].items():
            shown = [str(m[key]) for key in ("value", "low", "high", "count")]
            yield f"| {name} | {' | '.join(shown)} |"
        return
    run = source.path.parent.parent
    record = read_run(run) if os.path.isdir(run / "checkpoints") else None
    found = [v for v in (record.validations if record else []) if v.step == source.step]
    if record is None or not found:
        yield "No validation of this checkpoint is recorded beside it."
        return
    yield f"Validation at step {source.step:,}:"
    yield from ("", "| metric | value |", "|---|---|")
    for name, value in found[-1].values.items():
        yield f"| {name} | {record.metric.shown(name, value)} |"
    yield "\nIntervals: `bigmodel eval` of the checkpoint prints them (`export --results`)."


def _yaml(values: Any) -> list[str]:
    return ["```yaml", dump_yaml(values).rstrip("\n"), "```"]


def _name(source: Source) -> str:
    from bigmodel_cli.convert.opening import title

    return title(Path(source.path))
