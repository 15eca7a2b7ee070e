"""Parts from a user's own file: the README's works as it stands, and what is wrong with one is
said.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from bigmodel_cli import plugins
from bigmodel_cli.config import Options
from bigmodel_cli.errors import SpecError
from bigmodel_cli.parts.contract import AnyMixerOptions


def readme_part() -> str:
    """The Python block of the README's walk-through."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.split("<!-- a part of one's own -->")[1].split("```python\n")[1].split("```")[0]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, since parts are joined once."""
    return subprocess.run(
        [sys.executable, "-m", "bigmodel_cli", *words], capture_output=True, text=True
    )


def test_the_part_of_the_readme_trains_and_is_evaluated(decoder_spec: Path) -> None:
    Path("mean.py").write_text(readme_part())
    plugin = ("--plugin", "mean.py")
    assert "running_mean" in run("models", *plugin).stdout
    assert "running_mean" in run("schema", *plugin).stdout
    change = ("--set", "model.blocks.0.mixer={type: running_mean}", "--set", "train.precision=fp32")
    trained = run("pretrain", str(decoder_spec), *plugin, *change, "--out", "run")
    assert trained.returncode == 0, trained.stderr
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    found = run("eval", "run", "--json", *plugin)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["loss"] == pytest.approx(last["val"]["loss"], rel=1e-5)
    prompt = Path("text.txt").read_text()[:2]
    texts = [run("predict", "run", prompt, *plugin, "--max-tokens", "8").stdout for _ in range(2)]
    assert texts[0] == texts[1] != ""
    without = run("eval", "run")
    assert without.returncode == 2
    assert "unknown type 'running_mean'" in without.stderr
    assert "this spec was made with --plugin mean.py: give it" in without.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no table PARTS"),
        ("PARTS = {'mixer': int}", "has no table PARTS of lists"),
        ("import nothing_of_this_name", "bad.py:1: ModuleNotFoundError"),
        ("x = 1\ny = (", "bad.py:2: SyntaxError"),
        ("import sys\nsys.exit(3)", "bad.py:2: SystemExit"),
        ("PARTS = {'mixr': []}", "no slot 'mixr'; did you mean mixer?"),
        ("PARTS = {'mixer': [int]}", "is no subclass of Options"),
        (
            (
                "from bigmodel_cli.parts.attention import AttentionOptions as A\nPARTS = {'mixer':"
                " [A]}"
            ),
            "is there already",
        ),
    ],
)
def test_faulty_plugins_are_reported(text: str, message: str) -> None:
    Path("bad.py").write_text(text)
    result = run("models", "--plugin", "bad.py")
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


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


def test_a_missing_plugin_is_refused() -> None:
    result = run("models", "--plugin", "nothing.py")
    assert result.returncode == 2
    assert result.stderr == "--plugin nothing.py: no such file\n"
