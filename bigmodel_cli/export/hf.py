"""A folder that transformers' `from_pretrained` opens, with the same outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bigmodel_cli.console import say
from bigmodel_cli.convert.assets import CARD
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.exporting import HEADS, express, folder_files
from bigmodel_cli.convert.family import written_out
from bigmodel_cli.convert.folder import CONFIG, json_of
from bigmodel_cli.convert.label_heads import of_pairs
from bigmodel_cli.convert.opening import family_of
from bigmodel_cli.data import SOURCE_TOKENIZER, TOKENIZER
from bigmodel_cli.errors import SpecError
from bigmodel_cli.export.card import PIPELINES, card
from bigmodel_cli.export.source import Source
from bigmodel_cli.export.target import Target
from bigmodel_cli.export.texts import Values, dump, token_ids, tokenizer_files
from bigmodel_cli.export.writing import write_file
from bigmodel_cli.lazy import torch
from bigmodel_cli.numbers import put_in_units

NARROW = ("bfloat16", "float16")


class HuggingFace(Target):
    """config.json, safetensors, tokenizer, generation settings and a model card."""

    opens = "transformers: AutoModel*.from_pretrained"

    def write(self, source: Source, folder: Path) -> None:
        if SOURCE_TOKENIZER in source.assets:
            raise SpecError(
                "data.source_tokenizer: no class of transformers takes a tokenizer.json for each"
                " side; train with one tokenizer for both"
            )
        kept = _json(source, CONFIG)
        origin = family_of(Config(kept, CONFIG))
        found = express(source.spec.model, source.info, source.task, origin)
        if found.family.padding is not None and TOKENIZER in source.assets and not kept:
            raise SpecError(
                f"model.position: {found.family.called()} leaves token {found.family.padding} out"
                " when it counts positions, and in a tokenizer that was trained here it is any"
                " token; train with first: 0, as BERT has it"
            )
        if found.left_out:
            left = ", ".join(f"model.{path}" for path in found.left_out[:5])
            say(f"not written, since the class has no such option in training: {left}")
        dtype = _dtype(kept)
        if put_in_units(source.model, source.info):
            say("the last layer is scaled: it gives the numbers in the data's units")
            dtype = None  # a mean of 2,000 would be rounded to 8 in bf16
        weights = source.model.state_dict()
        narrowed = dtype and any(weights[n].dtype == torch.float32 for n in weights)
        if dtype and narrowed and source.step:
            say(f"weights are rounded from fp32 to {kept_dtype(kept)}, in which the model came")
        tokenizer = dict(tokenizer_files(source))
        if not source.step and kept:
            found = replace(found, config=as_it_came(found.config, kept))
        elif source.info.outputs and source.spec.data.text_columns() == 2:
            found = replace(found, config=found.config | of_pairs())
        files = folder_files(
            found, source.spec.model, source.info, source.task, weights,
            {**kept, **token_ids(source)}, dtype if source.step else None,
        )  # fmt: skip
        more = found.family.more_files(written_out(source.spec.model, source.info), source.info)
        for name, pieces in files:
            write_file(folder / name, pieces)
        for name, values in more.items():
            if source.step or source.kept(name) is None:
                tokenizer[name] = dump(values)
        for name, content in tokenizer.items():
            write_file(folder / name, [content])
        words = {**PIPELINES, **found.family.pipelines}
        text = card(source, found.config["architectures"][0], pipelines=words)
        write_file(folder / CARD, [text.encode()])


def as_it_came(config: Values, kept: Values) -> Values:
    """config.json of a model that is written as it was read: what of labels it did not say, it
    does not say now.
    """
    own = {name: kept[name] for name in HEADS & kept.keys()}
    return {name: value for name, value in config.items() if name not in HEADS} | own


def kept_dtype(kept: Values) -> str:
    """The dtype that the model came in; "" where it did not come from a folder."""
    return str(kept.get("dtype") or kept.get("torch_dtype") or "")


def _dtype(kept: Values) -> torch.dtype | None:
    name = kept_dtype(kept)
    found: torch.dtype | None = getattr(torch, name) if name in NARROW else None
    return found


def _json(source: Source, name: str) -> Values:
    """The values of a kept JSON file; none where there is no such file."""
    content = source.kept(name)
    return {} if content is None else json_of(content, source.path / name)
