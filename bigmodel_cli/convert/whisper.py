"""Whisper (Radford et al. 2022): an encoder of sound, and a decoder that writes its text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo, MelConfig
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import NO_DATA, SEQ2SEQ, Family, Model, grouped
from bigmodel_cli.convert.folder import has, read_json
from bigmodel_cli.convert.rules import Rule, rows
from bigmodel_cli.convert.seq2seq import SIDES, both, side_sizes
from bigmodel_cli.convert.spoken_prompt import prompt_of
from bigmodel_cli.data import TOKENIZER
from bigmodel_cli.errors import CheckpointError, SpecError

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
HIGHEST = 8000.0
"""The upper end of the highest band in Hz, whatever the rate."""
BIASED = ["q", "v", "o"]
EPS = 1e-5


class Whisper(Family):
    """Pre-norm blocks; sines in the encoder, learned positions in the decoder; keys have no bias.

    The encoder reads frames of a fixed length, silence included, and no mask.
    """

    model_types: ClassVar = ("whisper",)
    heads: ClassVar = {"WhisperForConditionalGeneration": SEQ2SEQ}
    copies: ClassVar = {"proj_out.weight": "model.decoder.embed_tokens.weight"}
    pipelines: ClassVar = {SEQ2SEQ: "automatic-speech-recognition"}
    ignored: ClassVar = (
        *("encoder_layerdrop", "decoder_layerdrop", "init_std", "num_hidden_layers"),
        *("suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids"),
        *("median_filter_width", "classifier_proj_size", "use_weighted_layer_sum"),
        *("mask_time_prob", "mask_time_length", "mask_time_min_masks"),
        *("mask_feature_prob", "mask_feature_length", "mask_feature_min_masks"),
    )

    def model(self, config: Config) -> dict[str, Any]:
        config.only("scale_embedding", False)
        if config.get("apply_spec_augment", bool, False):
            config.note(f"{config.file}: apply_spec_augment: not taken over; see data.augment")
        config.only("activation_function", "gelu")
        config.get("num_mel_bins", int, 80)
        dropout = config.get("dropout", float, 0.0)
        return {
            "type": "seq2seq",
            "dim": config.get("d_model", int, 384),
            "frontend": {"type": "conv", "stride": 2, "kernel": 3},
            "position": {
                "type": "sinusoidal", "layout": "halves", "slowest": "last", "stored": True,
            },
            "decoder_position": {"type": "learned"},
            "norm": {"type": "layernorm", "eps": EPS},
            "share_embeddings": config.get("tie_word_embeddings", bool, True),
            "scale_embeddings": False,
            "max_len": config.get("max_target_positions", int, 448),
            "source_len": 2 * config.get("max_source_positions", int, 1500),
            "vocab_size": config.get("vocab_size", int, 51865),
            "dropout": dropout,
            **{side: self.blocks(config, side, dropout) for side in SIDES},
        }  # fmt: skip

    def blocks(self, config: Config, side: str, dropout: float) -> list[dict[str, Any]]:
        """The blocks of a side."""
        heads = {
            "num_heads": config.get(f"{side}_attention_heads", int, 6),
            "bias": BIASED,
            "dropout": config.get("attention_dropout", float, 0.0),
        }
        block = {
            "mixer": {"type": "attention", **heads},
            **({"cross": heads} if side == "decoder" else {}),
            "ffn": {
                "type": "gelu",
                "hidden": config.get(f"{side}_ffn_dim", int, 1536),
                "dropout": config.get("activation_dropout", float, 0.0),
            },
            "norm": {"type": "layernorm", "eps": EPS},
            "dropout": dropout,
        }
        return grouped([block] * config.get(f"{side}_layers", int, 4))

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        block = model["encoder"][0]
        return {
            "model_type": "whisper",
            "is_encoder_decoder": True,
            # their defaults may lie beyond the vocabulary; a tokenizer's own stand after these
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
            "d_model": model["dim"],
            **side_sizes(model),
            "num_mel_bins": info.frame_width,
            "vocab_size": model["vocab_size"],
            "max_source_positions": model["source_len"] // model["frontend"]["stride"],
            "max_target_positions": model["max_len"],
            "activation_function": "gelu",
            "scale_embedding": False,
            "dropout": model["dropout"],
            "attention_dropout": block["mixer"]["dropout"],
            "activation_dropout": block["ffn"]["dropout"],
            "tie_word_embeddings": model["share_embeddings"],
        }

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        for i in range(2):
            yield from both(f"model.encoder.conv{i + 1}", f"frontend.convs.{i}")
        yield Rule("model.encoder.embed_positions.weight", "position.table")
        yield Rule("model.decoder.embed_tokens.weight", "target_embedding.weight")
        yield Rule("model.decoder.embed_positions.weight", "decoder_position.table.weight")
        dim = model["dim"]
        for side in SIDES:
            for i in range(len(model[side])):
                theirs, ours = f"model.{side}.layers.{i}.", f"{side}.{i}."
                yield from _self_attention(f"{theirs}self_attn.", f"{ours}mixer.", dim)
                yield from both(f"{theirs}self_attn_layer_norm", f"{ours}mixer_norm")
                if side == "decoder":
                    yield from _cross_attention(f"{theirs}encoder_attn.", f"{ours}cross.", dim)
                    yield from both(f"{theirs}encoder_attn_layer_norm", f"{ours}cross_norm")
                yield from both(f"{theirs}fc1", f"{ours}ffn.up")
                yield from both(f"{theirs}fc2", f"{ours}ffn.down")
                yield from both(f"{theirs}final_layer_norm", f"{ours}ffn_norm")
            yield from both(f"model.{side}.layer_norm", f"{side}_norm")
        if not model["share_embeddings"]:
            yield Rule("proj_out.weight", "head.weight")

    def info(self, config: Config, folder: Path, model: Model, task: str) -> DatasetInfo:
        frames = model["source_len"]
        sound = _sound(config, folder, frames)
        found = DatasetInfo(
            vocab_size=model["vocab_size"],
            context=frames,
            text_context=model["max_len"],
            frame_width=sound.mels,
            sound=sound,
        )
        return DatasetInfo.from_json(found.to_json())  # which bounds the sizes

    def data(self, folder: Path, info: DatasetInfo) -> dict[str, Any]:
        sound = info.sound
        assert sound is not None
        return {
            "type": "audio",
            "files": [NO_DATA],
            "transcripts": [NO_DATA],
            "features": sound.features,
            "rate": sound.rate,
            "window": sound.window / sound.rate,
            "hop": sound.hop / sound.rate,
            "mels": sound.mels,
            "low": sound.low,
            "high": sound.high,
            "pad_to": (sound.padded or 0) / sound.rate,
            "context": info.text_context,
            "tokenizer": {"type": "file", "path": str(folder / TOKENIZER)},
            "prompt": prompt_of(folder),
        }

    def task_options(self) -> dict[str, Any]:
        return {"metrics": ["wer", "cer"], "beams": 1}

    def more_files(self, model: Model, info: DatasetInfo) -> dict[str, dict[str, Any]]:
        sound = info.sound
        assert sound is not None
        length = model["source_len"] * sound.hop
        wanted = ("whisper", length, 0.0, HIGHEST)
        if (sound.features, sound.padded, sound.low, sound.high) != wanted or length % sound.rate:
            seconds = length / sound.rate
            raise SpecError(
                "Whisper's feature extractor has other frames; what it has: data.features:"
                f" whisper, low: 0, high: 8000, and pad_to: {seconds:g}, whole seconds"
            )
        values = {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": sound.mels,
            "sampling_rate": sound.rate,
            "hop_length": sound.hop,
            "chunk_length": length // sound.rate,
            "n_fft": sound.window,
            "padding_value": 0.0,
            "return_attention_mask": False,
        }
        return {PREPROCESSOR: values}


def _self_attention(theirs: str, ours: str, dim: int) -> Iterator[Rule]:
    for i, name in enumerate("qkv"):
        yield Rule(f"{theirs}{name}_proj.weight", f"{ours}qkv.weight", rows(i * dim, dim))
    for name in "qv":
        yield Rule(f"{theirs}{name}_proj.bias", f"{ours}{name}_bias")
    yield from both(f"{theirs}out_proj", f"{ours}out")


def _cross_attention(theirs: str, ours: str, dim: int) -> Iterator[Rule]:
    yield from both(f"{theirs}q_proj", f"{ours}q")
    for i, name in enumerate("kv"):
        yield Rule(f"{theirs}{name}_proj.weight", f"{ours}kv.weight", rows(i * dim, dim))
    yield Rule(f"{theirs}v_proj.bias", f"{ours}v_bias")
    yield from both(f"{theirs}out_proj", f"{ours}out")


def _sound(config: Config, folder: Path, frames: int) -> MelConfig:
    """How sound becomes frames, by the folder's file for it. Raises `CheckpointError`."""
    values = _extractor(folder)
    if values is None:
        config.note(
            f"{folder}: no {PREPROCESSOR}; recordings are read at 16,000 Hz in frames of 25 ms"
        )
        values = Config({"chunk_length": max(1, frames // 100)}, f"{folder}: no {PREPROCESSOR}")
    values.only("feature_extractor_type", "WhisperFeatureExtractor")
    for key, usual in (("padding_value", 0.0), ("dither", 0.0), ("padding_side", "right")):
        values.only(key, usual)
    for key in ("return_attention_mask", "do_normalize"):
        values.only(key, False)
    mels = config.get("num_mel_bins", int, 80)
    values.only("feature_size", mels)
    rate, hop = values.get("sampling_rate", int, 16000), values.get("hop_length", int, 160)
    seconds, window = values.get("chunk_length", int, 30), values.get("n_fft", int, 400)
    values.finish(("n_samples", "nb_max_frames", "mel_filters", "processor_class"))
    if min(rate, hop, seconds, window) < 1 or seconds * rate // hop != frames or rate < 2 * HIGHEST:
        raise CheckpointError(
            f"{values.file}: {seconds} s at {rate:,} Hz in steps of {hop} samples are not the"
            f" {frames:,} frames that the encoder reads ({config.file}: max_source_positions)"
        )
    sound = MelConfig(
        rate, window, hop, mels, 0.0, HIGHEST, features="whisper", padded=seconds * rate
    )
    sound.check()
    return sound


def _extractor(folder: Path) -> Config | None:
    """The values of the feature extractor, in a file of their own or in the processor's."""
    if has(folder, PREPROCESSOR):
        return Config(read_json(folder, PREPROCESSOR), str(folder / PREPROCESSOR))
    if has(folder, PROCESSOR):
        whole = Config(read_json(folder, PROCESSOR), str(folder / PROCESSOR))
        return whole.part("feature_extractor")
    return None
