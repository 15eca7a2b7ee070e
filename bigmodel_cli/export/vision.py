"""Networks of images in the layouts of torchvision and timm."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.console import say
from bigmodel_cli.convert import torchvision
from bigmodel_cli.convert.exporting import express, folder_files
from bigmodel_cli.convert.families import TIMM
from bigmodel_cli.errors import SpecError
from bigmodel_cli.export.source import Source
from bigmodel_cli.export.target import Target
from bigmodel_cli.export.writing import write_file


class Torchvision(Target):
    """NAME.pth, which `load_state_dict(strict=True)` takes, and NAME.json with all else."""

    opens = "torchvision: get_model(NAME, **arguments).load_state_dict(torch.load(...))"

    def write(self, source: Source, folder: Path) -> None:
        if source.info.targets or source.info.label_sets:
            raise SpecError(
                f"task.type: {source.task}: NAME.json says one class of an image;"
                " write --to onnx, or of a ViT --to hf"
            )
        torchvision.save(folder, source.spec.model, source.info, source.model.state_dict())


class Timm(Target):
    """config.json of timm's own and safetensors, for ViTs and ResNets that timm has."""

    opens = 'timm: create_model("local-dir:FOLDER", pretrained=True)'

    def write(self, source: Source, folder: Path) -> None:
        found = express(source.spec.model, source.info, source.task, families=TIMM)
        if found.left_out:
            left = ", ".join(f"model.{path}" for path in found.left_out[:5])
            say(f"not written, since timm has no such option here: {left}")
        files = folder_files(
            found, source.spec.model, source.info, source.task, source.model.state_dict()
        )
        for name, pieces in files:
            write_file(folder / name, pieces)
