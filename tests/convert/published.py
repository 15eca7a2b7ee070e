"""Tiny published models with every weight drawn anew, and ours read from their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from bigmodel_cli.assemble import build_for
from bigmodel_cli.checkpoints import load_weights
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.exporting import express, folder_files
from bigmodel_cli.models import Model
from bigmodel_cli.spec import of_checkpoint

TIMES = {"transformers_version", "_name_or_path"}


def drawn(model: Any, std: float = 0.1) -> Any:
    """The model with every parameter drawn anew, norms and biases too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(float(p.dim() == 1), std if p.dim() > 1 else 0.3)
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    """The folder that the model's own class wrote."""
    model.save_pretrained(folder)
    return folder


def read(folder: Path) -> tuple[Model, DatasetInfo]:
    """Ours from a folder; of a body, with a new head."""
    contents = opening.read(folder)
    info = DatasetInfo.from_json(contents.info)
    model = build_for(of_checkpoint(contents.spec, folder), info, contents.model)
    fresh = model.output_layers() if contents.headless else ()
    load_weights(model, contents.model, fresh=fresh, spare=contents.model.spare)
    return model.eval(), info


def written(folder: Path, model: nn.Module, out: Path) -> Path:
    """Ours, read from a folder, written into another one."""
    described = opening.describe(folder)
    found = express(described.model, described.info, described.task)
    out.mkdir()
    weights, kept = model.state_dict(), json.loads((folder / "config.json").read_text())
    for name, pieces in folder_files(
        found, described.model, described.info, described.task, weights, kept
    ):
        with open(out / name, "wb") as file:
            for piece in pieces:
                file.write(piece)
    return out


def tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def settings(config: Any) -> dict[str, Any]:
    """What a config of transformers says of the network."""
    values = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in values.items() if name not in TIMES}


def off(got: Tensor, want: Tensor) -> float:
    """The norm of the difference, relative to that of the reference."""
    assert got.shape == want.shape
    return float((got.double() - want.double()).norm() / want.double().norm())


def with_tokenizer(folder: Path, mask: str | None) -> Path:
    """The folder with a tokenizer of words, in which number 7 is the mask."""
    words = [f"w{i}" for i in range(37)]
    marks = {0: "[PAD]", 5: "[CLS]", 6: "[SEP]", 7: "[MASK]"}
    vocab = {marks.get(i, word): i for i, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="w1"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(list(marks.values()))
    ends = [("[CLS]", 5), ("[SEP]", 6)]
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    named |= {} if mask is None else {"mask_token": mask}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder
