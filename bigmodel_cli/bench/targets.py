"""The targets of `bigmodel bench`: specs, checkpoints, or the built-in set of the README."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bigmodel_cli.assemble import build_for
from bigmodel_cli.catalog import templates
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import short_names
from bigmodel_cli.convert import hub, opening
from bigmodel_cli.disk import refusal
from bigmodel_cli.errors import SpecError
from bigmodel_cli.overrides import Change, apply_overrides
from bigmodel_cli.spec import Spec, check, load, of_checkpoint
from bigmodel_cli.train.setup import open_run, open_task
from bigmodel_cli.yaml_source import parse_yaml

Target = tuple[str, Spec, DatasetInfo]

FACTS = {
    "cnn": DatasetInfo(
        image_shape=(1, 28, 28), mean=(0.1307,), std=(0.3081,), classes=tuple("0123456789")
    ),
    "decoder": DatasetInfo(vocab_size=65, context=64),
}


def builtin(overrides: Sequence[Change]) -> list[Target]:
    """The templates of `bigmodel init`, on the shapes of MNIST and of a small text."""
    targets = []
    for name, info in FACTS.items():
        root = parse_yaml(templates()[name].encode(), f"{name}.yaml")
        apply_overrides(root, overrides, Spec)
        targets.append((name, check(root), info))
    return targets


def named(targets: Sequence[str], overrides: Sequence[Change]) -> list[Target]:
    """Specs (whose data, if there, gives the shapes) and checkpoints (which know them), by unique
    names.
    """
    found = [_opened(Path(target), overrides) for target in targets]
    names = short_names([places for places, _, _ in found])
    return [(name, spec, info) for name, (_, spec, info) in zip(names, found, strict=True)]


def _opened(path: Path, overrides: Sequence[Change]) -> tuple[Sequence[Path], Spec, DatasetInfo]:
    """One target, with candidates for its name, ever longer."""
    if path.suffix in (".yaml", ".yml"):
        opened = open_run(load(path, overrides), expect=True)
        open_task(opened.spec, opened.data)
        return (path.with_suffix(""), path), opened.spec, opened.data.info
    if not os.path.lexists(path) and not hub.is_hub(path):
        why = refusal(path) or "no such spec or checkpoint; a spec's name ends in .yaml"
        raise SpecError(f"{path}: {why}")
    found = opening.find(path)
    contents = opening.read(found)
    contents.verify()
    spec = of_checkpoint(contents.spec, found, overrides)
    drawn = spec.init.model_copy(update={"checkpoint": None})  # its initial checkpoint may be gone
    spec = spec.model_copy(update={"model": spec.model.without_download(), "init": drawn})
    info = DatasetInfo.from_json(contents.info)
    if not overrides:  # refuse a spec that describes another network than the weights are of
        build_for(spec, info, contents.model)
    run, title = found.parent.parent, opening.title(found)
    if title != run.name:
        return (Path(title), found), spec, info
    return ((run, run / found.name) if run.name else (found,)), spec, info
