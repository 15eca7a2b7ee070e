"""Parts from a user's own file: the sample works as it stands, and what is wrong with one is
said.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT
from zygote import Zygote

from bigmodel_cli import plugins
from bigmodel_cli.config import Options
from bigmodel_cli.errors import SpecError
from bigmodel_cli.parts.contract import AnyMixerOptions

SAMPLE = ROOT / "sample_configs" / "running_mean.py"


def test_the_sample_plugin_trains_and_is_evaluated(
    decoder_spec: Path, plain_zygote: Zygote
) -> None:
    plugin = ("--plugin", str(SAMPLE))
    assert "running_mean" in plain_zygote.run("models", *plugin).out
    assert "running_mean" in plain_zygote.run("schema", *plugin).out
    change = ("--set", "model.blocks.0.mixer={type: running_mean}", "--set", "train.precision=fp32")
    trained = plain_zygote.run("pretrain", str(decoder_spec), *plugin, *change, "--out", "run")
    assert trained.status == 0, trained.err
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    found = plain_zygote.run("eval", "run", "--json", *plugin)
    assert found.status == 0, found.err
    assert json.loads(found.out)["loss"] == pytest.approx(last["val"]["loss"], rel=1e-5)
    prompt = Path("text.txt").read_text()[:2]
    texts = [
        plain_zygote.run("predict", "run", prompt, *plugin, "--max-tokens", "8").out
        for _ in range(2)
    ]
    assert texts[0] == texts[1] != ""
    without = plain_zygote.run("eval", "run")
    assert without.status == 2
    assert "unknown type 'running_mean'" in without.err
    assert "this spec was made with --plugin running_mean.py: give it" in without.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no table PARTS"),
        ("PARTS = {'mixer': int}", "has no table PARTS of lists"),
        ("import nothing_of_this_name", "bad.py:1: ModuleNotFoundError"),
        ("x = 1\ny = (", "bad.py:2: SyntaxError"),
        ("import sys\nsys.exit(3)", "bad.py:2: SystemExit"),
        ("PARTS = {'mixr': []}", "no slot 'mixr'; did you mean mixer?"),
        ("PARTS = {'mixer': [int]}", "is not a subclass of Options"),
        (
            (
                "from bigmodel_cli.parts.attention import AttentionOptions as A\nPARTS = {'mixer':"
                " [A]}"
            ),
            "is there already",
        ),
    ],
)
def test_faulty_plugins_are_reported(text: str, message: str, plain_zygote: Zygote) -> None:
    Path("bad.py").write_text(text)
    result = plain_zygote.run("models", "--plugin", "bad.py")
    assert result.status == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_names_that_types_must_have_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Options):
        type: str = "own"

        def build(self, layer: object) -> None: ...

    with pytest.raises(
        SpecError, match='write its name as type: Literal\\["my_name"\\] = "my_name"'
    ):
        plugins._name("own.py", Own, AnyMixerOptions)


def test_a_plugin_that_is_not_python_is_refused() -> None:
    Path("spec.yaml").write_text("x: 1")
    with pytest.raises(SpecError, match="a plugin is a Python file"):
        plugins.name_plugins([Path("spec.yaml")])


def test_a_missing_plugin_is_refused(plain_zygote: Zygote) -> None:
    result = plain_zygote.run("models", "--plugin", "nothing.py")
    assert result.status == 2
    assert result.err == "--plugin nothing.py: no such file\n"
