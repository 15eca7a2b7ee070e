"""What `bigmodel bench` times: a spec, a checkpoint, or the built-in set whose figures the README compares."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bigmodel_cli import checkpoints
from bigmodel_cli.catalog import templates
from bigmodel_cli.config import Facts
from bigmodel_cli.console import say
from bigmodel_cli.data import open_data
from bigmodel_cli.disk import refusal
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import build, within, without_download
from bigmodel_cli.overrides import Change, apply_overrides
from bigmodel_cli.spec import Spec, check, load, of_checkpoint
from bigmodel_cli.yaml_source import parse_yaml

Target = tuple[str, Spec, Facts]

FACTS = {
    "cnn": Facts(image_shape=(1, 28, 28), mean=(0.1307,), std=(0.3081,), classes=tuple("0123456789")),
    "decoder": Facts(vocab_size=65, context=64),
}


def builtin(overrides: Sequence[Change]) -> list[Target]:
    """The templates of `bigmodel init`, on the shapes of MNIST and of a small text."""
    targets = []
    for name, facts in FACTS.items():
        root = parse_yaml(templates()[name].encode(), f"{name}.yaml")
        apply_overrides(root, overrides, Spec)
        targets.append((name, check(root), facts))
    return targets


def named(target: str, overrides: Sequence[Change]) -> list[Target]:
    """A spec (its data is opened for the shapes), or a checkpoint (which knows them)."""
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        spec = load(path, overrides)
        data = open_data(spec.data, base=Path(), seed=spec.train.seed, say=say)
        return [(path.stem, spec, data.facts)]
    if not os.path.lexists(path):
        why = refusal(path) or "no such spec or checkpoint; a spec's name ends in .yaml"
        raise SpecError(f"{path}: {why}")
    found = checkpoints.find(path)
    contents = checkpoints.read(found, train_state=False)
    spec = of_checkpoint(contents.spec, found, overrides)
    spec = spec.model_copy(update={"model": without_download(spec.model)})
    facts = Facts.from_json(contents.facts)
    if not overrides:  # refuse a spec that describes another network than the weights are of
        with within(contents.model):
            build(spec.model, facts)
    return [(found.parent.parent.name or found.name, spec, facts)]
