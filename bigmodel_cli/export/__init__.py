"""`bigmodel export`: a checkpoint as files that others open.

One file for each form, one name in the table.
"""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.console import say
from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.export.adapter import Adapter
from bigmodel_cli.export.card import read_results
from bigmodel_cli.export.gguf import GGUF
from bigmodel_cli.export.hf import HuggingFace
from bigmodel_cli.export.onnx import ONNX
from bigmodel_cli.export.source import open_source
from bigmodel_cli.export.target import Target
from bigmodel_cli.export.vision import Timm, Torchvision
from bigmodel_cli.export.writing import check_free, write_folder

TARGETS: dict[str, Target] = {
    "hf": HuggingFace(),
    "adapter": Adapter(),
    "gguf": GGUF(),
    "onnx": ONNX(),
    "timm": Timm(),
    "torchvision": Torchvision(),
}
"""What `--to` may be."""


def export(
    checkpoint: Path, to: str, out: Path, command: str = "", results: Path | None = None
) -> Path:
    """Write a checkpoint into the new folder `out`, whole or not at all.

    `command` is the command line, and `results` a file with what `bigmodel eval --json` printed,
    both for the model card. Raises `SpecError` for a folder that is there already, and for a model
    that the target cannot express.
    """
    target = TARGETS.get(to)
    if target is None:
        known = did_you_mean(to, list(TARGETS)) or f"; there are {', '.join(TARGETS)}"
        raise SpecError(f"--to {to}: nothing is written in that form{known}")
    check_free(out)
    source = open_source(checkpoint, command, read_results(results) if results else {})
    if source.spec.adapter is not None and not target.of_adapters:
        raise SpecError(
            f"--to {to}: {source.path} holds an adapter; write it with --to adapter, or merge it"
            f" first: bigmodel merge {checkpoint} --out FOLDER"
        )
    if (remark := source.spec.task.beyond_the_model()) and not source.headless:
        say(remark)
    write_folder(out, lambda draft: target.write(source, draft))
    return out


__all__ = ["TARGETS", "Target", "export"]
