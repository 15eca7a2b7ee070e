"""The script of a card for Whisper's graphs: it hears the language, and writes as predict does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result
from test_whisper import PROMPTS, published, recording, with_tokens

from bigmodel_cli.data import LANGUAGE
from bigmodel_cli.export.snippets import filled
from bigmodel_cli.export.source import open_source
from bigmodel_cli.export.usage import code

pytest.importorskip("transformers")


@pytest.mark.parametrize("name", PROMPTS)
def test_the_script_is_filled(name: str, tmp_path: Path) -> None:
    published(tmp_path)
    with_tokens(tmp_path, **PROMPTS[name][0])
    text = code(open_source(tmp_path, "", {}))
    assert "{{" not in text
    assert ("language = max([258, 259]" in text) == (LANGUAGE in PROMPTS[name][1])
    compile(text, "run.py", "exec")


def test_a_value_is_not_a_place_for_another() -> None:
    assert filled("{{a}} {{b}} {{c}}", {"a": "{{b}}", "b": [1, "{{a}}"]}) == (
        "{{b}} [1, '{{a}}'] {{c}}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heard", "task named"])
def test_the_script_writes_as_predict_does(
    name: str, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    published(tmp_path / "theirs", max_target_positions=12)
    with_tokens(tmp_path / "theirs", **PROMPTS[name][0])
    path = recording(tmp_path / "a.wav", 0.6)
    done = cli("export", tmp_path / "theirs", tmp_path / "out", "--to", "onnx")
    assert done.status == 0, done.err
    card = (tmp_path / "out" / "README.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (tmp_path / "out" / "run.py").write_text(script)
    command = [sys.executable, "run.py", str(path)]
    ran = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    ours = cli("predict", tmp_path / "theirs", path, "--beams", "1", "--device", "cpu")
    assert ran.stdout.removesuffix("\n") == json.loads(ours.out)["text"]
