"""--rollout of texts: shares followed through all layers, against products of dense matrices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from safetensors.torch import load_file

Cli = Callable[..., Result]
SPEC = """\
model:
  type: decoder
  dim: 24
  blocks:
    - repeat: 3
      mixer: {type: attention, num_heads: 3, position: {type: rotary}}
      ffn: {type: gelu}
data: {type: text, files: [text.txt], context: 24, tokenizer: {type: characters}}
task: {type: causal_lm, sample_tokens: 0}
train: {steps: 3, batch_size: 4, precision: fp32, optimizer: {lr: 0.05}}
"""


@pytest.fixture
def run(tmp_path: Path, cli: Cli, request: pytest.FixtureRequest) -> str:
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog did not. " * 30)
    (tmp_path / "spec.yaml").write_text(SPEC)
    changes = [w for c in getattr(request, "param", []) for w in ("--set", c)]
    found = cli("pretrain", "spec.yaml", "--out", "run", *changes)
    assert found.status == 0, found.err
    return "run"


@pytest.mark.parametrize("query", [-1, 7])
def test_shares_are_those_of_the_product_of_all_layers(run: str, query: int, cli: Cli) -> None:
    text = "the dog sat on the cat"
    found = cli("attend", run, text, "--data", "w.safetensors", "--json")
    assert found.status == 0, found.err
    weights = load_file("w.safetensors")
    names = sorted(name for name in weights if name.endswith("weights"))
    matrices = [weights[name].double().numpy().mean(0) for name in names]
    assert len(matrices) == 3
    size = len(matrices[0])
    whole = np.eye(size)
    for matrix in matrices:
        whole = (0.5 * matrix + 0.5 * np.eye(size)) @ whole
    found = cli("attend", run, text, "--rollout", "--query", query, "--layers", "1", "--json")
    assert found.status == 0, found.err
    shares = json.loads(found.out)["rollout"]["shares"]
    np.testing.assert_allclose(shares, whole[query], atol=1e-6)
    assert sum(shares) == pytest.approx(1.0, abs=1e-6)


def test_the_screen_and_the_page_have_it(run: str, cli: Cli) -> None:
    found = cli("attend", run, "the cat sat", "--rollout")
    assert found.status == 0, found.err
    assert "attention rollout, a heuristic" in found.out
    assert cli("attend", run, "the cat sat", "--rollout", "--html", "page.html").status == 0
    assert "through all layers; the darkest" in Path("page.html").read_text()
    refused = cli("attend", run, "the cat sat", "--rollout", "--png", "a.png")
    assert refused.status == 2
    assert "--rollout has no effect on all heads as shown with --png" in refused.err


@pytest.mark.parametrize(
    "run", [["model.blocks.0.mixer={type: retention, num_heads: 3}"]], indirect=True
)
def test_other_mixers_are_refused(run: str, cli: Cli) -> None:
    refused = cli("attend", run, "the cat sat", "--rollout")
    assert (refused.status, "mixes positions in other ways" in refused.err) == (2, True)
