"""An adapter in PEFT's files, which `peft` opens on the model that it was trained on."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.console import say
from bigmodel_cli.convert.peft import adapter_files
from bigmodel_cli.convert.peft_layout import Layout
from bigmodel_cli.errors import SpecError
from bigmodel_cli.export.source import Source
from bigmodel_cli.export.target import Target
from bigmodel_cli.export.writing import write_file
from bigmodel_cli.numbers import last_layer, put_in_units


class Adapter(Target):
    """adapter_config.json and adapter_model.safetensors."""

    opens = "peft: PeftModel.from_pretrained(base, FOLDER)"
    of_adapters = True

    def write(self, source: Source, folder: Path) -> None:
        if source.spec.adapter is None:
            raise SpecError(
                f"--to adapter: {source.path} has no adapter; --to hf writes the whole model"
            )
        options, base = source.spec.adapter.low_rank(), source.spec.init.checkpoint or ""
        _scale_numbers(source)
        if options.base is not None:
            say(
                f"adapter.base: {options.base}: the factors were trained on weights of 4 bits; on"
                " the exact ones outputs differ a little"
            )
        layout = Layout(source.model, source.spec.model, source.info, source.task)
        named = base.removeprefix("hf://").partition("@")[0]
        for name, content in adapter_files(
            layout, source.model, options, source.task, named
        ).items():
            write_file(folder / name, [content])


def _scale_numbers(source: Source) -> None:
    """Scale a last layer that was trained, as the model itself is written; a frozen one is its."""
    names = last_layer(source.model, source.info.outputs)
    if names is None or source.model.get_parameter(names[0]).requires_grad:
        put_in_units(source.model, source.info)
