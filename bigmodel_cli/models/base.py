"""The base classes of models and their options, as training, generation and attend use them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from bigmodel_cli.config import DatasetInfo, Options
from bigmodel_cli.errors import OptionError, SpecError
from bigmodel_cli.lazy import Module, Tensor
from bigmodel_cli.models.init import UNLIMITED, Cache
from bigmodel_cli.shares import ALONE, Team


class Generator(Protocol):
    """A decoder for `generate` and `beam_search`; it takes at most `limit` positions."""

    limit: int

    def eval(self) -> object:
        """Switch to evaluation mode."""

    def new_cache(self, batch: int, max_len: int | None = None) -> Cache:
        """An empty cache."""

    def __call__(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        segments: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """Logits (B, T, V) of tokens (B, T) that continue the cache; (B, 1, V) where those of the
        `last` position alone are wanted.
        """


Resizing = Callable[[Tensor], Tensor]
"""A tensor of a checkpoint -> one for images of another size; others stay as they are."""


class Model(Module):
    """Base of all models.

    The defaults are those of an image classifier.
    """

    team: Team = ALONE
    """Processes that each have a share of its weights."""
    inputs: tuple[str, ...] = ("image",)
    """Batch keys of the arguments, in call order; those after the first are optional."""
    max_len: int = UNLIMITED
    """The longest sequence that the model is built for."""
    limit: int = UNLIMITED
    """The most positions that it takes, where a table or a cache limits them."""
    can_generate: bool = False
    """Whether it writes text."""
    is_encoder_decoder: ClassVar[bool] = False
    """Whether it reads a source before it generates."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches, for attention over images; `first` tokens come before them."""
    first: int = 0

    def arguments(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The model's arguments for a batch."""
        first, *others = self.inputs
        return (batch[first], *(batch[name] for name in others if name in batch))

    def unmasked(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The arguments for a batch of which nothing is hidden, where the task hides some."""
        return self.arguments(batch)

    learns_before: bool = False
    """Whether a new network takes something from the first batch before it is trained."""

    def learn_before(self, batch: Mapping[str, Tensor]) -> None:
        """Take it, of a batch as training has it."""

    stacks: ClassVar[tuple[str, ...]] = ()
    """Names of the lists of blocks or layers, from the input to the output."""

    def groups(self) -> list[Module]:
        """Modules whose weights processes that divide them gather at once, for each one's pass; the
        others' are gathered for the whole pass.

        Each is called as a module, and its weights are read in that call alone.
        """
        layers = [layer for stack in self.stacks for layer in getattr(self, stack)]
        return layers or list(self.children())

    def last_layers(self) -> tuple[str, ...]:
        """Prefixes of the weights after the last block."""
        return self.output_layers()

    def output_layers(self) -> tuple[str, ...]:
        """Prefixes of the weights that a new task initialises anew."""
        raise NotImplementedError

    def row_vectors(self, *arguments: Tensor, pool: str | None = None) -> Tensor:
        """(B, C)   a vector for each row; `pool` "cls" or "mean" replaces the model's own.

        Raises `SpecError` for a model that reads no whole texts.
        """
        raise SpecError("--embed is for encoders of texts, which this model is not; leave it out")

    def recompute(self) -> None:
        """From now on keep the input of each block alone for the backward pass.

        Raises `SpecError` for a network that has none.
        """
        raise SpecError(
            "train.checkpointing: this network has neither blocks nor layers whose activations"
            " could be computed again; set none"
        )

    def stream_layers(self) -> list[Module]:
        """The blocks along the one residual stream, in order; [] where there is none."""
        return []

    def parts(self) -> dict[str, Module]:
        """The parts in the slots of its blocks, or its layers, by name; {} where it has neither."""
        return {
            f"{stack}.{number}": layer
            for stack in self.stacks
            for number, layer in enumerate(getattr(self, stack))
        }

    def answer_layers(self) -> list[Module]:
        """The blocks along the stream that the answer is read from; [] where there is none."""
        return self.stream_layers()

    def answer_remark(self) -> str | None:
        """What to say of an answer that is read from an earlier block of that stream."""
        return None

    def resizing(self, before: DatasetInfo) -> Mapping[str, Resizing]:
        """How weights that follow the images' size become this model's, by name.

        `before` describes the data that they are from.
        """
        return {}

    def source(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What an encoder-decoder's encoder reads of a batch: a text, or frames and lengths."""
        raise NotImplementedError

    def generator(self, *source: Tensor) -> Generator:
        """The decoder that generates; of an encoder-decoder, conditioned on what `source` gave."""
        raise NotImplementedError

    def last_feature_layer(self) -> str:
        """The name of the last module that gives a map of the image, for Grad-CAM.

        Raises `SpecError` where there is none.
        """
        raise SpecError("this network has no convolution to look at")

    def feature_map(self, name: str, output: Tensor) -> Tensor | None:
        """(B, K, h, w)   a view of what the module `name` gave, as a map of the image.

        None where it is not one.
        """
        return output if output.dim() == 4 else None

    def unseen_attention(self) -> str:
        """Why attention of this network is not shown, as the beginning of a sentence; "" if it
        is.
        """
        return ""


class AnyModelOptions(Options):
    """Options of a model."""

    type: str
    outputs: ClassVar[tuple[str, ...]]
    """What models of this type can compute, in the words of the tasks' `output`."""
    two_sided: ClassVar[str | None] = None
    """The path below which attention is bidirectional."""
    stacks: ClassVar[tuple[str, ...]] = ()
    """Options that are lists of blocks around one residual stream, which may be any number."""
    in_blocks: ClassVar[str] = ""
    """Without `stacks`: how the same networks are had in blocks, for `init.layers`."""

    @abstractmethod
    def build(self, info: DatasetInfo) -> Model:
        """The model for data as `info` describes it, with freshly drawn weights.

        Raises `SpecError` where they do not fit.
        """

    def check_output(self, output: str, task: str) -> None:
        """Raise `ValueError` where these options cannot compute an output that the type can."""

    def longest(self) -> int | None:
        """`max_len`; None where it is left to the data, or there is none."""
        return dict(self).get("max_len")

    def with_longest(self, length: int) -> AnyModelOptions:
        """The same with this `max_len` where it is left open."""
        is_open = "max_len" in type(self).model_fields and self.longest() is None
        return self.model_copy(update={"max_len": length}) if is_open else self

    def one_by_one(self, stack: str) -> list[dict[str, Any]]:
        """Each block of one of the `stacks` as plain values, with what follows from its place."""
        raise NotImplementedError

    def with_layers(self, taken: Mapping[str, Sequence[int]]) -> AnyModelOptions:
        """The same network of these blocks of each stack, by number, in this order.

        Raises `ValueError` where that is no network of this type.
        """
        raise NotImplementedError

    def width(self) -> int | None:
        """The width of the residual stream; None for a network without one."""
        return None

    def without_download(self) -> AnyModelOptions:
        """The same network without pretrained weights to download."""
        return self


def no_images(what: str, info: DatasetInfo) -> OptionError:
    """The fault of a network that reads `what`, where the data has none of them."""
    remedy = "" if info.sound is None else "; data.seconds: N makes them of recordings"
    return OptionError(("model.type", f"{what}, and the data has none{remedy}"))
