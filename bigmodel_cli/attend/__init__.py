"""`bigmodel attend`: attention heads, or the region of an image that decides its class."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli.attend.heads import Heads, record_heads
from bigmodel_cli.attend.images import ImageOptions, look_at_image
from bigmodel_cli.attend.picture import draw_heads, draw_heat
from bigmodel_cli.attend.text import show_heads, show_heat
from bigmodel_cli.console import say
from bigmodel_cli.data import Prompts, Reader, Tokenizer, input_of, load_tokenizer
from bigmodel_cli.errors import SpecError
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.pictures import check_picture

MOST_PARTS = 4
"""Most tokens of one character: the bytes of UTF-8."""


@dataclass(frozen=True)
class AttendResult:
    """Text for the terminal, the picture's path, and the figures."""

    text: str
    picture: Path
    values: dict[str, Any] = field(default_factory=dict)


def attend(
    loaded: Loaded, source: str, out: Path | None, layer: int | None, head: int | None, color: bool
) -> AttendResult:
    """What the model attends to in `source`: a text, or an image's path.

    The picture is written to `out` (attend.png when None). Raises `DataError` for input that cannot
    be read, and `SpecError` for a layer or head that is not there.
    """
    picture = out or Path("attend.png")
    check_picture(picture, "--out")
    if input_of(loaded.info).one_size:
        if layer is not None or head is not None:
            raise SpecError(
                f"{'--head' if layer is None else '--layer'} chooses what is shown of a text; of an"
                " input of one size it is the region that decides, over all layers and heads;"
                " leave it out"
            )
        return _attend_image(loaded, Path(source), picture, color)
    return _attend_text(loaded, source, picture, layer, head, color)


def _attend_text(
    loaded: Loaded, text: str, picture: Path, layer: int | None, head: int | None, color: bool
) -> AttendResult:
    if loaded.model.is_encoder_decoder:
        raise SpecError(
            "attend looks into networks of one side, and this one reads a source and writes a"
            " target"
        )
    kind = input_of(loaded.info)
    if kind.in_files:
        raise SpecError(
            "attend shows texts and pictures; of sound, those of one length (data.seconds)"
        )
    tokenizer, options = load_tokenizer(loaded.assets), loaded.spec.data
    reader: Reader = (
        Prompts(tokenizer, loaded.model.limit, options)
        if loaded.model.can_generate
        else kind.reader(options, loaded.assets)
    )
    content, truncated = reader.read(text, "the text")
    if truncated:
        say(f"the text is cut: the model reads {reader.most}")
    batch = {name: tensor.to(loaded.device) for name, tensor in reader.batch([content]).items()}
    labels = name_tokens(tokenizer, batch["tokens"][0].tolist())
    heads = record_heads(loaded.model, loaded.model.arguments(batch), labels)
    check_choice(heads, layer, head)
    every = range(len(heads.layers))
    layers = every if layer is None and head is None else [every[-1] if layer is None else layer]
    title = f"{loaded.name} ({loaded.spec.model.type}), attention in: {' '.join(text.split())}"
    draw_heads(heads, layers, head, title, picture)
    shown = show_heads(heads, layers[-1], head, color)
    return AttendResult(
        shown, picture, {**heads.to_json(), **({"truncated": True} if truncated else {})}
    )


def name_tokens(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """The tokens' labels: text or special token; parts of one character are numbered: 漢·1/3."""
    names: list[str] = []
    while (place := len(names)) < len(tokens):
        token = tokens[place]
        if token in (tokenizer.start_of_text, tokenizer.end_of_text):
            names.append("<start>" if token == tokenizer.start_of_text and not place else "<end>")
            continue
        texts = [
            tokenizer.decode(tokens[place : place + count]) for count in range(1, MOST_PARTS + 1)
        ]
        whole = next((count for count, text in enumerate(texts, 1) if "\ufffd" not in text), 1)
        text = texts[whole - 1]
        names += (
            [text] if whole == 1 else [f"{text}·{part}/{whole}" for part in range(1, whole + 1)]
        )
    return names


def _attend_image(loaded: Loaded, path: Path, picture: Path, color: bool) -> AttendResult:
    look = look_at_image(loaded, path, ImageOptions())
    assert look.heat is not None
    for note in look.notes:
        say(note)
    title = f"{look.model}: {path.name}, {look.answer}"
    draw_heat(look.heat, title, picture)
    return AttendResult(show_heat(look.heat, color), picture, look.heat.to_json())


def check_choice(heads: Heads, layer: int | None, head: int | None) -> None:
    """Raise `SpecError` for a layer or head that the model does not have."""
    if layer is not None and not 0 <= layer < len(heads.layers):
        raise SpecError(
            f"--layer {layer}: the layers with attention are 0 to {len(heads.layers) - 1}"
        )
    count = heads.weights[layer if layer is not None else -1].shape[0]
    if head is not None and not 0 <= head < count:
        raise SpecError(f"--head {head}: the heads of that layer are 0 to {count - 1}")
