"""A published model's config.json, read so that no option of it is overlooked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from bigmodel_cli.errors import CheckpointError

T = TypeVar("T")

IRRELEVANT = {
    "_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "model_type", "initializer_range", "initializer_factor", "bos_token_id", "eos_token_id",
    "pad_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id", "unk_token_id",
    "id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "max_length",
    "min_length", "do_sample", "temperature", "top_k", "top_p", "num_beams", "length_penalty",
    "no_repeat_ngram_size", "repetition_penalty", "early_stopping", "num_return_sequences",
    "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "output_attentions",
    "output_hidden_states", "return_dict", "finetuning_task", "gradient_checkpointing",
    "attn_implementation", "_attn_implementation", "prefix", "tokenizer_class",
    "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "pruned_heads",
    "summary_type", "sbert_ce_default_activation_function", "sentence_transformers",
}  # fmt: skip
"""Keys that do not change what the network computes: of training, of files, of generation."""


LEAST, MOST, MOST_LISTED = -1, 2**40, {"layers": 2_000, "layer": 2_000, "labels": 100_000}
"""Bounds of whole numbers, smaller by the last word of a key of which lists are made."""


class Config:
    """The values of config.json by key; the keys that were asked for are remembered.

    `finish` refuses what nobody asked for: an option that is not understood may change what the
    network computes. Each method raises `CheckpointError` naming the file and the key.
    """

    def __init__(self, values: Mapping[str, Any], file: str) -> None:
        self.values = dict(values)
        self.file = file
        self.asked: set[str] = set()
        self.notes: list[str] = []
        self.parts: dict[str, Config] = {}

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of a key, of this type (a whole number passes as a float).

        A key that is absent or null has the default, which is that of the family's config class.
        """
        self.asked.add(key)
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self.file}: {key}: missing; this family needs it")
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(f"{self.file}: {key}: {str(value)[:60]!r} is not {_called(kind)}")
        if isinstance(value, int) and not LEAST <= value <= _most(key):
            raise CheckpointError(
                f"{self.file}: {key}: {value:,} is not one of {LEAST} to {_most(key):,}"
            )
        return value

    def maybe(self, key: str, kind: type[T], absent: T | None = None) -> T | None:
        """The same; None where it is null, and `absent` where it is not there.

        The two differ where the family's config class has another default than None.
        """
        self.asked.add(key)
        if key not in self.values:
            return absent
        return None if self.values[key] is None else self.get(key, kind)

    def note(self, text: str) -> None:
        """Remember what is to be said when the checkpoint is used, such as what is guessed."""
        if text not in self.notes:
            self.notes.append(text)

    def fill(self, defaults: Mapping[str, Any]) -> None:
        """Give keys that are not there these values; null stays null."""
        self.values = {**defaults, **self.values}

    def part(self, key: str) -> Config:
        """The mapping below a key, such as the text part of a model of several."""
        if key not in self.parts:
            self.parts[key] = Config(self.get(key, dict), f"{self.file}: {key}")
            self.parts[key].notes = self.notes
        return self.parts[key]

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse any value but these, the first of which is what an absent key means."""
        self.asked.add(key)
        value = self.values.get(key)
        if value is not None and value not in allowed:
            known = ", ".join(str(a) for a in allowed)
            raise CheckpointError(
                f"{self.file}: {key}: {str(value)[:60]!r} is not built; what is: {known}"
            )

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Refuse keys that nothing asked for, but for those that do not matter."""
        for part in self.parts.values():
            part.finish(ignored)
        left = self.values.keys() - self.asked - IRRELEVANT - set(ignored)
        if left:
            raise CheckpointError(
                f"{self.file}: {', '.join(sorted(left)[:5])}: not known for this family; it may"
                " change what the network computes, so it is not passed over"
            )


def _most(key: str) -> int:
    return MOST_LISTED.get(key.rpartition("_")[2], MOST)


def _called(kind: type) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(kind, f"a {kind.__name__}")
