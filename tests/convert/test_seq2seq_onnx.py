"""The script of a card for Marian's and T5's graphs writes what predict writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

pytest.importorskip("transformers")
from test_seq2seq_families import published, words

ENDS = {"marian, swish": "w0", "t5": "w1"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
def test_the_script_writes_as_predict_does(
    name: str, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder, out = tmp_path / "theirs", tmp_path / "out"
    theirs = published(folder, name)
    (folder / "tokenizer.json").write_text(words(theirs.config.vocab_size))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": ENDS[name]}))
    done = cli("export", folder, out, "--to", "onnx")
    assert done.status == 0, done.err
    (script,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    (out / "run.py").write_text(script)
    for text in ("w5 w9 w30 w2 w2", "w7"):
        ran = subprocess.run(
            [sys.executable, "run.py", text], cwd=out, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        ours = cli("predict", folder, text, "--beams", "1", "--max-tokens", "70", "--device", "cpu")
        assert ours.status == 0, ours.err
        found, expected = ran.stdout.split(), json.loads(ours.out)["text"].split()
        assert found
        assert found == expected
