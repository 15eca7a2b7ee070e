"""The networks that `bigmodel bench` times when it is given none: the ones whose figures the README compares."""

from __future__ import annotations

from bigmodel_cli.catalog import templates
from bigmodel_cli.config import Facts
from bigmodel_cli.spec import Spec, check
from bigmodel_cli.yaml_source import parse_yaml

FACTS = {
    "cnn": Facts(image_shape=(1, 28, 28), mean=(0.1307,), std=(0.3081,), classes=tuple("0123456789")),
    "decoder": Facts(vocab_size=65, context=64),
}


def builtin() -> list[tuple[str, Spec, Facts]]:
    """(name, spec, facts) of each: the templates of `bigmodel init`, on shapes of MNIST and of a small text."""
    known = templates()
    return [(name, check(parse_yaml(known[name].encode(), f"{name}.yaml")), facts) for name, facts in FACTS.items()]
