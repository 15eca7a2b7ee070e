"""What stands beside the graphs: labels, preparation of inputs, tokenizer, and the card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bigmodel_cli.convert.assets import CARD
from bigmodel_cli.convert.exporting import express
from bigmodel_cli.convert.folder import CONFIG
from bigmodel_cli.convert.vision import PROCESSOR, processor
from bigmodel_cli.data import SOURCE_TOKENIZER, TOKENIZER
from bigmodel_cli.data.audio.mel import fft_size
from bigmodel_cli.errors import SpecError
from bigmodel_cli.export import snippets
from bigmodel_cli.export.card import card
from bigmodel_cli.export.graphs import Graph
from bigmodel_cli.export.source import Source
from bigmodel_cli.export.texts import dump, token_ids, tokenizer_files
from bigmodel_cli.export.usage import code
from bigmodel_cli.models.init import UNLIMITED

PROBLEMS = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
"""A task -> the word for it in config.json."""


def files(source: Source, graphs: list[Graph], notes: list[str]) -> Iterator[tuple[str, bytes]]:
    """The files by name, without the graphs."""
    written = dict(tokenizer_files(source))
    if SOURCE_TOKENIZER in source.assets:
        written[SOURCE_TOKENIZER] = source.assets[SOURCE_TOKENIZER]
    if source.info.sound is not None:
        written[PROCESSOR] = dump(sound_processor(source))
    elif source.info.image_shape is not None:
        written[PROCESSOR] = dump(processor(source.info))
    yield from written.items()
    yield CONFIG, dump(config(source))
    lines = [*interface(source, graphs, notes), "", "## Run", "", *usage(source)]
    kind = f"{source.spec.model.type} for {source.task or 'vectors of texts'}"
    yield CARD, card(source, kind, "onnx", lines).encode()


def config(source: Source) -> dict[str, Any]:
    """config.json: as transformers has the model where it has, else what any reader needs."""
    try:
        theirs = express(source.spec.model, source.info, source.task).config
    except SpecError:
        theirs = {"model_type": f"bigmodel_{source.spec.model.type}"}
    names = source.info.classes or source.info.targets
    labels = {str(index): name for index, name in enumerate(names)}
    found = {**theirs, **token_ids(source)}
    if labels:
        found |= {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}
    if source.task in PROBLEMS:
        found["problem_type"] = PROBLEMS[source.task]
    return found


def sound_processor(source: Source) -> dict[str, Any]:
    """preprocessor_config.json of log-mel frames: see the card for the formula."""
    sound, info = source.info.sound, source.info
    assert sound is not None
    return {
        "feature_size": sound.mels,
        "sampling_rate": sound.rate,
        "win_length": sound.window,
        "hop_length": sound.hop,
        "n_fft": fft_size(sound),
        "mel_low": sound.low,
        "mel_high": sound.high,
        "samples": sound.length,
        "padded_to": sound.padded,
        "features": sound.features,
        "mean": list(info.mean),
        "std": list(info.std),
        "return_attention_mask": info.frame_width is not None,
    }


def interface(source: Source, graphs: list[Graph], notes: list[str]) -> Iterator[str]:
    """Inputs of each graph, and what is to be known of them."""
    yield from ("", "## Graphs", "", "| graph | input | axes |", "|---|---|---|")
    for graph in graphs:
        for one in graph.inputs:
            yield f"| {graph.file} | {one.name} | {', '.join(map(str, one.axes))} |"
    yield ""
    yield "Numbers are in fp32, tokens and masks int64; a mask is 1 where a position is real."
    if any(one.padded == "left" for graph in graphs for one in graph.inputs):
        yield "Rows of several lengths are padded on the left, and each is one run of real tokens."
    elif any(one.kind == "mask" for graph in graphs for one in graph.inputs):
        yield "Rows of several lengths are padded on the right."
    if source.info.targets:
        yield "The outputs are in the data's units."
    if source.model.limit < UNLIMITED:
        yield f"At most {source.model.limit:,} positions."
    yield ""
    yield from (f"- {note}" for note in notes)


def usage(source: Source) -> list[str]:
    """How to run it: a script with one argument, in the folder itself."""
    if TOKENIZER not in source.assets and source.info.vocab_size is not None:
        return ["There is no tokenizer.json: the tokens are numbers, as in the training data."]
    try:
        text = snippets.HEAD + "\n" + code(source)
    except LookupError as error:
        return [f"What a text becomes is not shown here: {error.args[0]}."]
    files_read = source.info.sound is not None or source.info.image_shape is not None
    what = "FILE" if files_read else '"a text"'
    how = f"In this folder, saved as run.py: `python run.py {what}`"
    return [how, "", "```python", text.rstrip(), "```"]
