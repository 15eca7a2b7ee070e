"""Graphs that generate: a decoder takes the caches of its blocks as inputs and gives the new ones.

The names are those of optimum and transformers.js: `past_key_values.N.key` becomes `present.N.key`,
and of recurrent parts `past_conv.N`, `past_recurrent.N` become `present_conv.N`,
`present_recurrent.N`. A decoder alone is one graph, whose first step has a past of length 0. An
encoder-decoder's first step reads the memory into keys and values, which further steps are given:
two graphs, as optimum has them, without a branch in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigmodel_cli.errors import SpecError
from bigmodel_cli.export.graphs import (
    BATCH,
    LENGTH,
    PAST,
    SOURCE,
    TOTAL,
    Given,
    Graph,
    Input,
    frame_inputs,
    vocabulary,
)
from bigmodel_cli.export.source import Source
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.models.init import Cache
from bigmodel_cli.parts.context import SequenceInfo, after
from bigmodel_cli.parts.contract import KeepsTensors, keeping_tensors

SIDES = {"mixer": "decoder", "cross": "encoder"}
"""A slot of an encoder-decoder's block -> the word for it in names."""


@dataclass(frozen=True)
class State:
    """A tensor of a block's cache: where it is, its shape without the batch, and its names."""

    block: int
    slot: str
    name: str
    shape: tuple[int | None, ...]
    side: str = ""

    def called(self, past: bool) -> str:
        """Its name as an input, or as an output."""
        number, _, kind = self.name.rpartition(".")
        before = "past" if past else "present"
        if kind in ("conv", "recurrent"):
            return ".".join(filter(None, (f"{before}_{kind}", str(self.block), number)))
        before = "past_key_values" if past else before
        return ".".join(filter(None, (before, str(self.block), self.side, number, kind)))

    def axes(self, growing: str) -> tuple[int | str, ...]:
        """The axes as an input, where `growing` is that of the positions."""
        return (BATCH, *(growing if size is None else size for size in self.shape))


class Caches:
    """The caches of all blocks as named tensors.

    Raises `SpecError` naming a part whose cache is not tensors alone.
    """

    def __init__(self, blocks: Any, path: str, sides: bool) -> None:
        self.parts: dict[tuple[int, str], KeepsTensors] = {}
        self.states: list[State] = []
        for index, block in enumerate(blocks):
            for slot, part in block.keepers().items():
                self.add(index, slot, part, path, SIDES[slot] if sides else "")

    def add(self, index: int, slot: str, part: Module, path: str, side: str) -> None:
        """Ask a part for the tensors of its cache."""
        known, where = keeping_tensors(part), f"{path}.{index}.{slot}"
        if known is None:
            raise SpecError(
                f"{where}: {type(part).__name__} does not say which tensors its cache holds"
                " (states, cache_of, tensors_of), so no graph can take them"
            )
        self.parts[index, slot] = known
        try:
            found = known.states()
        except ValueError as error:  # of one mixer of several
            raise SpecError(f"{where}.{error}") from None
        self.states += [State(index, slot, name, shape, side) for name, shape in found.items()]

    def of(self, given: Given, count: int) -> list[dict[str, Any]]:
        """The caches of all `count` blocks; without tensors for a slot an empty one."""
        found: list[dict[str, Any]] = [{} for _ in range(count)]
        for (index, slot), part in self.parts.items():
            own = [s for s in self.states if (s.block, s.slot) == (index, slot)]
            tensors = {s.name: given[s.called(True)] for s in own if s.called(True) in given}
            found[index][slot] = part.cache_of(tensors)
        return found

    def tensors(self, caches: list[dict[str, Any]], slots: tuple[str, ...]) -> Given:
        """The outputs: the tensors of these slots."""
        outputs: Given = {}
        for (index, slot), part in self.parts.items():
            tensors = part.tensors_of(caches[index][slot]) if slot in slots else {}
            for state in self.states:
                if (state.block, state.slot) == (index, slot) and state.name in tensors:
                    outputs[state.called(False)] = tensors[state.name]
        return outputs


class DecoderGraph(Graph):
    """Tokens that continue a past, with the mask of past and new positions, to their logits."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model: Any = source.model
        self.limit = source.model.limit
        self.blocks = self.model.stream_layers()
        if not self.blocks:
            raise SpecError(
                f"model.type: {source.spec.model.type} has no blocks, whose caches a graph takes"
            )
        self.caches = Caches(self.blocks, "model.blocks", sides=False)
        self.inputs = (
            Input("input_ids", (BATCH, LENGTH), "tokens", vocabulary(source)),
            Input("attention_mask", (BATCH, TOTAL), "mask", padded="left"),
            *(Input(state.called(True), state.axes(PAST), "state") for state in self.caches.states),
        )

    def forward(self, given: Given) -> Given:
        tokens, mask = given["input_ids"], given["attention_mask"]
        past = mask.shape[1] - tokens.shape[1]
        caches = self.caches.of(given, len(self.blocks))
        cache = Cache(caches, past, mask[:, torch.arange(past)])
        own = after(mask, past)
        logits = self.model(torch.where(own > 0, tokens, -1), cache, own)
        return {"logits": logits, **self.caches.tensors(caches, ("mixer",))}

    def seen(self, given: Given) -> Tensor | None:
        return given["attention_mask"][:, -given["input_ids"].shape[1] :] > 0


class SourceGraph(Graph):
    """An encoder-decoder's source to its memory."""

    file = "encoder_model.onnx"

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model: Any = source.model
        self.limit = source.model.limit
        vocab = source.info.source_vocab_size or vocabulary(source)
        self.inputs = (
            Input("input_ids", (BATCH, LENGTH), "tokens", vocab),
            Input("attention_mask", (BATCH, LENGTH), "mask"),
        )

    def forward(self, given: Given) -> Given:
        tokens = torch.where(given["attention_mask"] > 0, given["input_ids"], -1)
        return {"last_hidden_state": self.model.encode(tokens).memory}

    def seen(self, given: Given) -> Tensor | None:
        return given["attention_mask"] > 0


class SoundGraph(Graph):
    """Frames of sound to the memory, and which of its positions are not padding."""

    file = "encoder_model.onnx"

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model: Any = source.model
        longest = dict(source.spec.model).get("source_len") or source.info.context
        self.limit = longest or source.model.max_len
        self.inputs = frame_inputs(source)

    def forward(self, given: Given) -> Given:
        mask = given["attention_mask"]
        frames = given["input_features"] * mask[..., None]
        memory = self.model.encode(frames, mask.sum(1)).memory
        return {"last_hidden_state": memory, "encoder_attention_mask": self.real(mask, memory)}

    def real(self, mask: Tensor, memory: Tensor) -> Tensor:
        """(B, S') int64: 1 where the memory is not padding."""
        lengths = self.model.frontend.lengths(mask.sum(1))
        real: Tensor = torch.arange(memory.shape[1]) < lengths[:, None]
        return real.long()

    def seen(self, given: Given) -> Tensor | None:
        mask = given["attention_mask"]
        count = int(self.model.frontend.lengths(torch.tensor(mask.shape[1])))
        return self.real(mask, torch.empty(1, count)) > 0


class StepGraph(Graph):
    """Base of an encoder-decoder's steps."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model: Any = source.model
        self.limit = source.model.limit
        self.caches = Caches(self.model.decoder, "model.decoder", sides=True)
        self.own = [state for state in self.caches.states if state.slot == "mixer"]
        self.read = [state for state in self.caches.states if state.slot == "cross"]
        if not any(None in state.shape for state in self.own):
            raise SpecError(
                "model.decoder: of its mixers none keeps its positions, which tell how many came"
                " before; --to onnx needs one of attention"
            )
        self.ids = Input("input_ids", (BATCH, LENGTH), "tokens", vocabulary(source))
        self.mask = Input("encoder_attention_mask", (BATCH, SOURCE), "mask")

    def outputs(self, given: Given, tensors: Given, past: int, slots: tuple[str, ...]) -> Given:
        """The logits after `past` positions, and the caches of these slots."""
        caches = self.caches.of(tensors, len(self.model.decoder))
        memory = given.get("encoder_hidden_states")
        real = given["encoder_attention_mask"] > 0
        # a row of padding alone, as fills up a batch, reads it: a softmax of nothing is no number
        read = SequenceInfo(memory=memory, memory_mask=real | ~real.any(1, keepdim=True))
        logits = self.model.decode(given["input_ids"], read, Cache(caches, past))
        return {"logits": logits, **self.caches.tensors(caches, slots)}


class FirstStepGraph(StepGraph):
    """The target's first tokens and the memory to logits and all caches."""

    file = "decoder_model.onnx"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        memory = Input("encoder_hidden_states", (BATCH, SOURCE, self.model.options.dim))
        self.inputs = (self.ids, memory, self.mask)

    def forward(self, given: Given) -> Given:
        memory = given["encoder_hidden_states"]
        empty = {
            state.called(True): memory.new_zeros(
                memory.shape[0], *(0 if size is None else size for size in state.shape)
            )
            for state in self.own
        }
        return self.outputs(given, empty, 0, ("mixer", "cross"))


class FurtherStepGraph(StepGraph):
    """Tokens that continue a past, and all caches, to logits and the decoder's own caches."""

    file = "decoder_with_past_model.onnx"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.inputs = (
            self.ids,
            self.mask,
            *(Input(state.called(True), state.axes(PAST), "state") for state in self.own),
            *(Input(state.called(True), state.axes(SOURCE)) for state in self.read),
        )

    def forward(self, given: Given) -> Given:
        growing = next(state for state in self.own if None in state.shape)
        past = given[growing.called(True)].shape[1 + growing.shape.index(None)]
        return self.outputs(given, given, past, ("mixer",))
