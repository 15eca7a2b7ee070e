"""Whisper of transformers, in and out: logits, greedy text, beams, languages, files equal."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from published import drawn, off, read, saved, settings, tensors, written
from torch import Tensor

from bigmodel_cli.convert import opening
from bigmodel_cli.data import LANGUAGE
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.generation.beam import Beam, beam_search
from bigmodel_cli.generation.sampling import Sampling, generate
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.spec import from_dict

transformers = pytest.importorskip("transformers")

START, END = 257, 256
ENGLISH, GERMAN, TRANSCRIBE, TRANSLATE, NO_TIMES, TIME = 258, 259, 260, 261, 262, 263
MARKS = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>"]
MARKS += ["<|notimestamps|>", "<|0.00|>"]
CONFIG: dict[str, Any] = {
    "vocab_size": 269, "num_mel_bins": 12, "d_model": 24, "encoder_layers": 2,
    "decoder_layers": 3, "encoder_attention_heads": 3, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 20, "decoder_ffn_dim": 28, "max_source_positions": 50,
    "max_target_positions": 80, "decoder_start_token_id": START, "eos_token_id": END,
    "bos_token_id": END, "pad_token_id": END, "suppress_tokens": None,
    "begin_suppress_tokens": None,
}  # fmt: skip
EXTRACTOR = {"feature_size": 12, "chunk_length": 1, "sampling_rate": 16000}
MULTILINGUAL = {
    "is_multilingual": True, "lang_to_id": {"<|en|>": ENGLISH, "<|de|>": GERMAN},
    "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE},
    "no_timestamps_token_id": NO_TIMES, "suppress_tokens": [40, 41, START],
    "begin_suppress_tokens": [32, END],
}  # fmt: skip


def published(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A tiny Whisper whose every weight is drawn, the encoder's sines too."""
    config = transformers.WhisperConfig(**{**CONFIG, **changes})
    model = drawn(transformers.WhisperForConditionalGeneration(config), 0.15).to(dtype)
    saved(model, folder)
    transformers.WhisperFeatureExtractor(**EXTRACTOR).save_pretrained(folder)
    return model


def with_tokens(folder: Path, **generation: Any) -> None:
    """A tokenizer of words with the marks, and these settings of generation."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    vocab = {f"w{i}": i for i in range(END)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|endoftext|>", *MARKS[:-1]])
    tokenizer.add_tokens([AddedToken(MARKS[-1], special=False, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    path = folder / "generation_config.json"
    values = json.loads(path.read_text())
    values.pop("_from_model_config")  # else transformers passes over the file
    path.write_text(json.dumps({**values, **generation}))


def frames(rows: int = 3) -> Tensor:
    """(B, T, mels)."""
    return torch.randn(rows, 100, 12, generator=torch.Generator().manual_seed(3))


def recording(path: Path, seconds: float = 0.7, seed: int = 0) -> Path:
    """Noise whose pitch changes."""
    count = int(16000 * seconds)
    noise = np.random.default_rng(seed).standard_normal(count).cumsum()
    noise -= np.linspace(noise[0], noise[-1], count)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((noise / np.abs(noise).max() * 20000).astype("<i2").tobytes())
    return path


def heard(folder: Path, path: Path) -> Tensor:
    """(1, mels, T) as transformers hears a recording."""
    with wave.open(str(path), "rb") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    found = extractor(samples.astype(np.float32), sampling_rate=16000, return_tensors="pt")
    values: Tensor = found["input_features"]
    return values


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_and_what_is_written_is_what_was_read(tied: bool, tmp_path: Path) -> None:
    theirs = published(tmp_path / "theirs", tie_word_embeddings=tied)
    ours, _ = read(tmp_path / "theirs")
    x, lengths = frames(), torch.tensor([100] * 3)
    target = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(2))
    out = written(tmp_path / "theirs", ours, tmp_path / "ours")
    again = type(theirs).from_pretrained(out).eval()
    inputs = {"input_features": x.mT, "decoder_input_ids": target}
    with torch.no_grad():
        want = theirs(**inputs).logits
        assert off(ours(x, target), want) < 1e-5
        assert off(ours(x, target, lengths), want) < 1e-5
        assert off(again(**inputs).logits, want) < 1e-6
        for row, length in enumerate((9, 7, 2)):  # padded = alone
            padded = target.clone()
            padded[row, length:] = -1
            alone = ours(x[row : row + 1], target[row : row + 1, :length])
            assert off(ours(x, padded)[row : row + 1, :length], alone) < 1e-5
            assert off(alone, want[row : row + 1, :length]) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert off(ours(x, target).float(), theirs(**inputs).logits.float()) < 2e-2
    before, after = tensors(tmp_path / "theirs"), tensors(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in after)
    assert settings(again.config) == settings(
        type(theirs).from_pretrained(tmp_path / "theirs").config
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_stay_what_they_are(
    dtype: torch.dtype, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    published(tmp_path / "theirs", dtype)
    done = cli("export", tmp_path / "theirs", tmp_path / "ours")
    assert done.status == 0, done.err
    before, after = tensors(tmp_path / "theirs"), tensors(tmp_path / "ours")
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    assert all(torch.equal(before[n], after[n]) for n in after)


def test_greedy_text_and_beams_equal(tmp_path: Path) -> None:
    theirs = published(tmp_path)
    ours, _ = read(tmp_path)
    x = frames()
    shared = {"input_features": x.mT, "do_sample": False, "eos_token_id": None, "use_cache": True}
    with torch.no_grad():
        reading = ours.generator(x)
    prompt = torch.full((3, 1), START)
    want = transformers.GenerationMixin.generate(theirs, **shared, num_beams=1, max_new_tokens=64)
    steps = generate(reading, prompt, Sampling(temperature=0.0), max_new_tokens=64)
    got = torch.stack(list(steps), 1)
    assert got.shape == (3, 64)
    assert torch.equal(got, want[:, 1:])
    beams = {"num_beams": 4, "length_penalty": 0.0, "max_new_tokens": 9}
    want = transformers.GenerationMixin.generate(theirs, **shared, **beams)[:, 1:]
    found = beam_search(reading, prompt, Beam(4, 0.0), max_new_tokens=9, stop=None)
    assert [row[0].tokens for row in found] == want.tolist()


PROMPTS: dict[str, tuple[dict[str, Any], str]] = {
    "English alone": ({"no_timestamps_token_id": NO_TIMES}, "<|notimestamps|>"),
    "heard": (MULTILINGUAL, f"{LANGUAGE}<|notimestamps|>"),
    "heard, as older files ask": (
        {**MULTILINGUAL, "forced_decoder_ids": [[1, None], [2, TRANSCRIBE]]},
        f"{LANGUAGE}<|transcribe|><|notimestamps|>",
    ),
    "older files": (
        {**MULTILINGUAL, "forced_decoder_ids": [[1, GERMAN], [2, TRANSLATE], [3, NO_TIMES]]},
        "<|de|><|translate|><|notimestamps|>",
    ),
    "named": ({**MULTILINGUAL, "language": "de"}, "<|de|><|transcribe|><|notimestamps|>"),
    "both named": (
        {**MULTILINGUAL, "language": "<|en|>", "task": "translate"},
        "<|en|><|translate|><|notimestamps|>",
    ),
    "task named": (
        {**MULTILINGUAL, "task": "translate"},
        f"{LANGUAGE}<|translate|><|notimestamps|>",
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_predict_writes_what_transformers_generates(
    name: str, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    """From the command line: frames, language, prompt, what is left out, and the end."""
    generation, prompt = PROMPTS[name]
    theirs = published(tmp_path)
    with_tokens(tmp_path, **generation)
    theirs.generation_config = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert opening.read_spec(tmp_path)["data"]["prompt"] == prompt
    paths = [recording(tmp_path / f"{i}.wav", 0.3 + 0.3 * i, i) for i in range(3)]
    done = cli("predict", tmp_path, *paths, "--beams", "1", "--max-tokens", "12", "--device", "cpu")
    assert done.status == 0, done.err
    texts = [json.loads(line)["text"] for line in done.out.splitlines()]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json")
    )
    for path, text in zip(paths, texts, strict=True):
        tokens = theirs.generate(heard(tmp_path, path), max_new_tokens=12, do_sample=False)[0]
        want = tokenizer.decode(tokens, skip_special_tokens=True)
        assert text == want.replace(MARKS[-1], "")


def test_training_rows_begin_with_the_prompt_which_is_not_learnt(tmp_path: Path) -> None:
    published(tmp_path)
    with_tokens(tmp_path, **MULTILINGUAL, language="de")
    recording(tmp_path / "a.wav")
    (tmp_path / "texts.txt").write_text("a\tw8 w30\n")
    values = opening.read_spec(tmp_path)
    data = {**values["data"], "files": [str(tmp_path / "a.wav")], "val_fraction": 0}
    data["transcripts"] = [str(tmp_path / "texts.txt")]
    spec = from_dict({**values, "data": data})
    opened = spec.data.open(base=Path(), say=print, assets=opening.read_assets(tmp_path))
    batch = opened.split("train").batch(np.arange(1), 0, 0, False)
    row = [START, GERMAN, TRANSCRIBE, NO_TIMES, 8, 30, END]
    assert batch["target"].tolist() == [row]
    assert batch["loss_mask"].tolist() == [[False] * 4 + [True] * 3]
    assert batch["lengths"].tolist() == [100]
    assert torch.allclose(batch["frames"].mT, heard(tmp_path, tmp_path / "a.wav"), atol=1e-5)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"scale_embedding": True}, "scale_embedding: 'True' is not built"),
        ("config.json", {"activation_function": "relu"}, "activation_function: 'relu' is not"),
        ("config.json", {"max_source_positions": 51}, "not the 102 frames that the encoder reads"),
        ("config.json", {"num_mel_bins": 13}, "feature_size: '12' is not built"),
        ("preprocessor_config.json", {"dither": 0.1}, "dither: '0.1' is not built"),
        ("preprocessor_config.json", {"hop_length": 0}, "in steps of 0 samples"),
        ("preprocessor_config.json", {"power": 1}, "power: not known for this family"),
        ("generation_config.json", {"return_timestamps": True}, "times are not written"),
        ("generation_config.json", {"language": "fr"}, "language: 'fr' is not one of <|en|>"),
        ("generation_config.json", {"forced_decoder_ids": [[2, 3]]}, "forced_decoder_ids"),
        ("generation_config.json", {"forced_decoder_ids": [[1, 7]]}, "7 is not a special token"),
        ("generation_config.json", {"lang_to_id": {"a": "b"}}, "lang_to_id"),
    ],
)
def test_what_is_not_built_is_refused(
    file: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    published(tmp_path)
    with_tokens(tmp_path, **MULTILINGUAL)
    path = tmp_path / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError) as fault:
        opening.read(tmp_path)
    assert message in str(fault.value)


def test_frames_are_described_in_either_file_or_by_default(tmp_path: Path) -> None:
    published(tmp_path)
    info = opening.describe(tmp_path).info
    path = tmp_path / "preprocessor_config.json"
    values = json.loads(path.read_text())
    path.unlink()
    assert opening.describe(tmp_path).info == info
    assert "25 ms" in opening.describe(tmp_path).notes[0]
    nested = {"feature_extractor": values, "processor_class": "WhisperProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert opening.describe(tmp_path).info == info
    assert not opening.describe(tmp_path).notes


@pytest.mark.parametrize(("seconds", "most"), [(1.2, "1.0"), (1.0001, "1.0000")])
def test_too_long_a_recording_is_refused(
    seconds: float, most: str, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    published(tmp_path)
    with_tokens(tmp_path, **MULTILINGUAL)
    path = recording(tmp_path / "long.wav", seconds)
    done = cli("predict", tmp_path, path, "--device", "cpu")
    assert done.status == 3
    assert f"{seconds} s long, and the model reads up to {most} s; cut it into" in done.out


SCRATCH: dict[str, Any] = {
    "model": {
        "type": "seq2seq", "dim": 12, "frontend": {"type": "conv", "stride": 2, "kernel": 3},
        "position": {"type": "sinusoidal", "layout": "halves", "slowest": "last", "stored": True},
        "decoder_position": "learned", "norm": "layernorm", "scale_embeddings": False,
        "encoder": [{
            "mixer": {"type": "attention", "num_heads": 3, "bias": ["q", "v", "o"]},
            "ffn": {"type": "gelu", "hidden": 20},
        }],
        "decoder": [{
            "mixer": {"type": "attention", "num_heads": 2, "bias": ["q", "v", "o"]},
            "cross": {"num_heads": 2, "bias": ["q", "v", "o"]},
            "ffn": {"type": "gelu", "hidden": 16},
        }],
    },
    "data": {
        "type": "audio", "files": ["recs"], "transcripts": ["said.txt"], "val_fraction": 0,
        "tokenizer": {"type": "bpe", "vocab_size": 260}, "features": "whisper", "mels": 10,
        "pad_to": 1.0, "context": 14,
    },
    "task": {"type": "seq2seq", "beams": 1, "max_tokens": 8},
    "train": {"steps": 2, "batch_size": 2, "precision": "fp32", "compile": "off"},
}  # fmt: skip


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four recordings in recs, and what is said in them."""
    monkeypatch.chdir(tmp_path)
    Path("recs").mkdir()
    for i in range(4):
        recording(Path("recs", f"r{i}.wav"), 0.3 + 0.1 * i, i)
    Path("said.txt").write_text("".join(f"r{i}\tw{i} w{40 + i}\n" for i in range(4)))
    return tmp_path


def test_what_is_trained_here_opens_in_transformers(
    recordings: Path, cli: Callable[..., Result]
) -> None:
    Path("a.yaml").write_text(json.dumps(SCRATCH))
    assert cli("pretrain", "a.yaml", "--out", "run", "--device", "cpu").status == 0
    done = cli("export", "run", "out")
    assert done.status == 0, done.err
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained("out").eval()
    ours = load_checkpoint(Path("run"), "cpu", tell=lambda text: None).model
    x, target = torch.randn(2, 100, 10), torch.randint(0, 256, (2, 6))
    with torch.no_grad():
        want = theirs(input_features=x.mT, decoder_input_ids=target).logits
        assert off(ours(x, target), want) < 1e-5
    told = cli("predict", "run", "recs/r0.wav", "--device", "cpu")
    tokens = theirs.generate(heard(Path("out"), Path("recs/r0.wav")), max_new_tokens=8)[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    assert json.loads(told.out)["text"] == text
    assert "automatic-speech-recognition" in Path("out/README.md").read_text()
    # the same from the folder
    again = cli("predict", "out", "recs/r0.wav", "--max-tokens", "8", "--device", "cpu")
    assert json.loads(again.out)["text"] == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.high": 7000.0}, "Whisper's feature extractor has other frames"),
        ({"data.pad_to": None}, "Whisper's feature extractor has other frames"),
        ({"model.position.stored": False}, "model.position.stored"),
        ({"model.frontend.kernel": 5}, "model.frontend.kernel"),
        ({"model.logit_bias": True}, "model.logit_bias"),
    ],
)
def test_what_whisper_does_not_have_is_not_exported(
    recordings: Path, cli: Callable[..., Result], changes: dict[str, Any], message: str
) -> None:
    Path("a.yaml").write_text(json.dumps(SCRATCH))
    sets = [w for k, v in changes.items() for w in ("--set", f"{k}={json.dumps(v)}")]
    done = cli("pretrain", "a.yaml", "--out", "run", "--device", "cpu", *sets)
    assert done.status == 0, done.err
    done = cli("export", "run", "out")
    assert done.status == 2
    assert message in done.err
    assert not Path("out").exists()


def test_a_finetuned_adapter_opens_in_peft(recordings: Path, cli: Callable[..., Result]) -> None:
    peft = pytest.importorskip("peft")
    published(Path("tiny"))
    with_tokens(Path("tiny"), **MULTILINGUAL, language="en")
    adapter = {"type": "lora", "rank": 2, "targets": ["*.qkv.q", "*.qkv.v", "*.cross.q"]}
    data = {
        name: SCRATCH["data"][name] for name in ("type", "files", "transcripts", "val_fraction")
    }
    train = {**SCRATCH["train"], "optimizer": {"type": "adamw", "lr": 0.05}}
    spec = {"data": data, "task": SCRATCH["task"], "train": train, "adapter": adapter}
    Path("b.yaml").write_text(json.dumps(spec))
    done = cli("finetune", "--from", "tiny", "b.yaml", "--out", "run", "--device", "cpu")
    assert done.status == 0, done.err
    done = cli("export", "run", "adapter", "--to", "adapter")
    assert done.status == 0, done.err
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained("tiny")
    with torch.no_grad():
        inputs = {
            "input_features": frames(2).mT,
            "decoder_input_ids": torch.tensor([[1, 2, 3]] * 2),
        }
        before = theirs.eval()(**inputs).logits
        theirs = peft.PeftModel.from_pretrained(theirs, "adapter").eval()
        ours = load_checkpoint(Path("run"), "cpu", tell=lambda text: None).model
        want = theirs(**inputs).logits
        assert off(ours(frames(2), inputs["decoder_input_ids"]), want) < 1e-5
        assert off(before, want) > 1e-3
