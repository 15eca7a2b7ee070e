"""The graphs of a model that ONNX is written from: their inputs, outputs and axes, in the field's
names.

A network is asked what it reads (`Model.inputs`), and the table says which graphs that makes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.convert.sentences import sentences
from bigmodel_cli.errors import SpecError
from bigmodel_cli.export.source import Source
from bigmodel_cli.lazy import F, Module, Tensor, torch

Given = dict[str, Tensor]
Sizes = Mapping[str, int]
"""The sizes of the axes that are open, by name."""
BATCH, LENGTH = "batch_size", "sequence_length"
PAST, TOTAL = "past_sequence_length", "total_sequence_length"
SOURCE = "encoder_sequence_length"


@dataclass(frozen=True)
class Input:
    """An input by name: its axes, numbers or the names of open ones, and what it holds.

    `kind` is "numbers"; "state", which are zeros where nothing came before; "tokens" (below
    `most`); or "mask", 1 where a position is real, with the padding on the side `padded`.
    """

    name: str
    axes: tuple[int | str, ...]
    kind: str = "numbers"
    most: int = 2
    padded: str = "right"

    def drawn(self, sizes: Sizes, draw: torch.Generator, padding: bool) -> Tensor:
        """An example of these sizes; with `padding` all rows but the first are padded."""
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in self.axes]
        if self.kind == "state" and not sizes[PAST]:
            return torch.zeros(shape)
        if self.kind in ("numbers", "state"):
            return torch.randn(shape, generator=draw)
        if self.kind == "tokens":
            return torch.randint(self.most, shape, generator=draw)
        rows, length = shape
        mask = torch.ones(rows, length, dtype=torch.int64)
        for row in range(1, rows) if padding else ():
            count = int(torch.randint(1, length, (), generator=draw)) if length > 1 else 0
            mask[row, slice(0, count) if self.padded == "left" else slice(length - count, None)] = 0
        return mask


class Graph(Module):
    """{name: tensor} of the inputs -> {name: tensor} of the outputs, the main one first."""

    file = "model.onnx"
    inputs: tuple[Input, ...]
    limit: int
    """The most positions along an axis."""

    @abstractmethod
    def forward(self, given: Given) -> Given:
        """The outputs."""

    def seen(self, given: Given) -> Tensor | None:
        """(B, T) bool: the positions of the main output that are not padding, where it has some."""
        return None

    def recorded_at(self) -> Sizes:
        """The sizes at which it is recorded: all above 1, and no two of a kind alike."""
        length = max(2, min(5, self.limit // 2))
        past = max(2, min(7, self.limit - length))
        return {BATCH: 2, LENGTH: length, PAST: past, TOTAL: past + length, SOURCE: 6}

    def checked_at(self) -> list[tuple[Sizes, bool]]:
        """Other sizes, and whether rows are padded."""
        most = min(11, self.limit)
        return [
            (
                {BATCH: rows, LENGTH: own, PAST: past, TOTAL: past + own, SOURCE: source},
                padded,
            )
            for rows, own, past, source, padded in (
                (3, most, 0, 4, True),
                (1, 1, most - 1, 1, False),
                (4, max(1, most // 2), most // 3, most, False),
            )
        ]


class ImageGraph(Graph):
    """Images, normalised, to logits: of sound as pictures of frames too."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        assert source.info.image_shape is not None
        self.model, self.scale = source.model, Scale(source)
        self.name = "pixel_values" if source.info.sound is None else "input_features"
        self.inputs = (Input(self.name, (BATCH, *source.info.image_shape)),)
        self.limit = source.model.limit

    def forward(self, given: Given) -> Given:
        return {"logits": self.scale(self.model(given[self.name]))}


class TokenGraph(Graph):
    """Tokens of whole texts to logits of a text or of each token; without a head to vectors."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model, self.scale, self.limit = source.model, Scale(source), source.model.limit
        self.vectors = source.headless
        self.how = sentences(source.path)
        vocab = vocabulary(source)
        inputs = [
            Input("input_ids", (BATCH, LENGTH), "tokens", vocab),
            Input("attention_mask", (BATCH, LENGTH), "mask"),
        ]
        types = dict(source.spec.model).get("token_types") or 0
        if types > 1:
            inputs.append(Input("token_type_ids", (BATCH, LENGTH), "tokens", types))
        self.inputs = tuple(inputs)

    def forward(self, given: Given) -> Given:
        real = given["attention_mask"] > 0
        tokens = torch.where(real, given["input_ids"], -1)
        types = [given[i.name] for i in self.inputs[2:]]
        if not self.vectors:
            return {"logits": self.scale(self.model(tokens, *types))}
        model: Any = self.model
        hidden = model.features(tokens, *types)
        vector = model.pooled(hidden, real, self.how.pool)
        vector = F.normalize(vector, dim=1) if self.how.normalised else vector
        return {"last_hidden_state": hidden, "sentence_embedding": vector}

    def seen(self, given: Given) -> Tensor | None:
        return given["attention_mask"] > 0


def frame_inputs(source: Source) -> tuple[Input, Input]:
    """Frames of sound, and which of them are not padding."""
    return (
        Input("input_features", (BATCH, LENGTH, source.info.frame_width or 1)),
        Input("attention_mask", (BATCH, LENGTH), "mask"),
    )


class FrameGraph(Graph):
    """Frames of sound to logits of a recording, or of each unit of a transcript."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model, self.scale, self.limit = source.model, Scale(source), source.model.limit
        self.inputs = frame_inputs(source)

    def forward(self, given: Given) -> Given:
        mask = given["attention_mask"]
        frames = given["input_features"] * mask[..., None]  # the model's padding is silence
        return {"logits": self.scale(self.model(frames, mask.sum(1)))}

    def seen(self, given: Given) -> Tensor | None:
        model: Any = self.model
        lengths = model.out_lengths(given["attention_mask"].sum(1))
        most = model.out_lengths(torch.tensor(given["attention_mask"].shape[1]))
        real: Tensor = torch.arange(int(most)) < lengths[:, None]
        return real


class Scale(Module):
    """Numbers in the data's units, out of those that a network of regression gives."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        info = source.info
        self.named = bool(info.targets)
        self.register_buffer("mean", torch.tensor(info.target_mean))
        self.register_buffer("std", torch.tensor(info.target_std))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and add, where the outputs are named numbers."""
        return x * self.get_buffer("std") + self.get_buffer("mean") if self.named else x


def vocabulary(source: Source) -> int:
    """The tokens that the model reads."""
    return int(dict(source.spec.model).get("vocab_size") or source.info.vocab_size or 1)


def of_tokens(source: Source) -> list[Graph]:
    """A decoder with its cache, or a network that reads whole texts."""
    from bigmodel_cli.export.cached import DecoderGraph

    if not source.model.can_generate:
        return [TokenGraph(source)]
    if source.headless:
        raise SpecError(
            "--to onnx: the checkpoint's decoder has no output layers; finetune it first"
        )
    return [DecoderGraph(source)]


def of_pairs(source: Source) -> list[Graph]:
    """An encoder, a decoder's first step, and its further ones."""
    from bigmodel_cli.export.cached import FirstStepGraph, FurtherStepGraph, SourceGraph

    return [SourceGraph(source), FirstStepGraph(source), FurtherStepGraph(source)]


def of_frames(source: Source) -> list[Graph]:
    """An encoder of sound, alone or with a decoder that writes."""
    from bigmodel_cli.export.cached import FirstStepGraph, FurtherStepGraph, SoundGraph

    if not source.model.is_encoder_decoder:
        return [FrameGraph(source)]
    return [SoundGraph(source), FirstStepGraph(source), FurtherStepGraph(source)]


GRAPHS: dict[str, Callable[[Source], list[Graph]]] = {
    "image": lambda source: [ImageGraph(source)],
    "tokens": of_tokens,
    "frames": of_frames,
    "source": of_pairs,
}
"""What a network reads first -> its graphs."""


def graphs_of(source: Source) -> list[Graph]:
    """The graphs of a checkpoint's model. Raises `SpecError` for one that has none."""
    first = source.model.inputs[0]
    if first not in GRAPHS:
        raise SpecError(f"--to onnx: no graph is known of a network that reads {first}")
    return [graph.eval() for graph in GRAPHS[first](source)]
