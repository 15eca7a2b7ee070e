"""The targets of `bigmodel bench`: specs, checkpoints, or the built-in set of the README."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from bigmodel_cli.assemble import build_for
from bigmodel_cli.bench.doing import Opened
from bigmodel_cli.catalog import samples, templates
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import hub, opening
from bigmodel_cli.data import FACTS as FACTS_FILE
from bigmodel_cli.disk import refusal
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import torch
from bigmodel_cli.loaded import Loaded, load_checkpoint
from bigmodel_cli.overrides import Change, apply_overrides, key_of
from bigmodel_cli.spec import Spec, check, load, of_checkpoint
from bigmodel_cli.train.setup import open_run, open_task
from bigmodel_cli.yaml_source import parse_yaml

FACTS = {
    "cnn": DatasetInfo(
        image_shape=(1, 28, 28), mean=(0.1307,), std=(0.3081,), classes=tuple("0123456789")
    ),
    "decoder": DatasetInfo(vocab_size=65, context=64),
}


def built_in(name: str, overrides: Sequence[Change]) -> Opened:
    """A template of `bigmodel init`, on the shapes of MNIST or of a small text."""
    root = parse_yaml(templates()[name].encode(), f"{name}.yaml")
    apply_overrides(root, overrides, Spec)
    return Opened((name,), check(root), FACTS[name], None)


def opened(target: str, overrides: Sequence[Change]) -> Opened:
    """A spec (whose data, if there, gives the shapes), a checkpoint (which knows them), or the name
    of a sample spec.

    Raises any fault of errors.py that reading them has.
    """
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return _spec(path, overrides)
    if not os.path.lexists(path) and not hub.is_hub(path):
        if (text := samples().get(target)) is not None:
            root = parse_yaml(text.encode(), f"{target}.yaml")
            apply_overrides(root, overrides, Spec)
            return _with_data((target,), check(root))
        why = refusal(path) or "no such spec or checkpoint; a spec's name ends in .yaml"
        raise SpecError(f"{path}: {why}")
    return _checkpoint(path, overrides)


def _spec(path: Path, overrides: Sequence[Change]) -> Opened:
    return _with_data((str(path.with_suffix("")), str(path)), load(path, overrides))


def _with_data(places: Sequence[str], spec: Spec) -> Opened:
    run = open_run(spec, expect=True)
    open_task(run.spec, run.data)
    return Opened(places, run.spec, run.data.info, None if run.data.missing else run.data)


def _checkpoint(path: Path, overrides: Sequence[Change]) -> Opened:
    found = opening.find(path)
    contents = opening.read(found)
    contents.verify()
    spec = of_checkpoint(contents.spec, found, overrides)
    drawn = spec.init.model_copy(update={"checkpoint": None})  # its initial checkpoint may be gone
    spec = spec.model_copy(update={"model": spec.model.without_download(), "init": drawn})
    info = DatasetInfo.from_json(contents.info)
    # refuse a spec that describes another network than the weights are of
    if all(key_of(change).startswith("train.") for change in overrides):
        build_for(spec, info, contents.model)
    run, title = found.parent.parent, opening.title(found)
    places = (
        (title, str(found))
        if title != run.name
        else (str(run), str(run / found.name))
        if run.name
        else (str(found),)
    )
    assets = {**contents.assets, FACTS_FILE: json.dumps(contents.info).encode()}

    def load(device: torch.device) -> Loaded:
        return load_checkpoint(found, str(device), overrides, tell=lambda text: None)

    return Opened(places, spec, info, None, load, assets)
