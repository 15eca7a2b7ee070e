"""Data that would be read otherwise than it is meant, or not used at all, without a word."""

from __future__ import annotations

import json
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from conftest import Result
from PIL import Image

from bigmodel_cli.data import open_data
from bigmodel_cli.data.image.images import FolderOptions, MNISTOptions
from bigmodel_cli.data.text.documents import TextOptions
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer
from bigmodel_cli.data.text.pairs import PairsOptions, PairTableOptions
from bigmodel_cli.data.text.table import TableOptions
from bigmodel_cli.data.text.tokenizer_files import read_tokenizer
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.generation.pieces import added_text

Cli = Callable[..., Result]
TRAIN = (
    "train: {steps: 1, batch_size: 4, precision: fp32, memory_format: contiguous, compile: 'off'}\n"
)
BLOCKS = "dim: 16, position: {type: learned}, blocks: [{mixer: {type: attention, num_heads: 2}}]"
LAYERS = (
    "{type: conv, channels: 4}, {type: adaptive_pool}, {type: flatten}, {type: dense, units:"
    " classes}"
)
CNN = f"model: {{type: cnn, layers: [{LAYERS}]}}\n"


def opened(options: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    return open_data(options, base=Path(), say=said.append), said


def images(root: str, endings: tuple[str, ...] = (".png",), count: int = 6) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        folder = Path(root) / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            for ending in endings:
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}{ending}", format="PNG")


def table(files: dict[str, str], **more: Any) -> tuple[Any, list[str]]:
    for name, content in files.items():
        Path(name).write_text(content)
    given = {
        "text": ["text"],
        "label": "label",
        "tokenizer": {"type": "bytes"},
        "val_fraction": 0,
        **more,
    }
    return opened(TableOptions.model_validate({"train": [*files], **given}))


def test_columns_by_number_stand_at_the_same_place_in_every_file() -> None:
    files = {"a.csv": "text,label\ngood,1\nbad,0\n", "b.csv": "label,text\n1,fine\n0,poor\n"}
    with pytest.raises(
        DataError,
        match=r"b.csv:2: data.text: column 0 of this file is called 'label', and 'text' in a.csv",
    ):
        table(files, text=[0], label=1, header=True)
    assert len(table(files)[0].split("train")) == 4  # by name
    files["b.csv"] = "sentence,y\nfine,1\npoor,0\n"  # other names at the same places
    assert len(table(files, text=[0], label=1, header=True)[0].split("train")) == 4
    Path("v.csv").write_text("label,text\n1,fine\n0,poor\n")
    with pytest.raises(DataError, match="called 'label'"):
        table(
            {"a.csv": "text,label\ngood,1\nbad,0\n"},
            text=[0],
            label=1,
            header=True,
            val=["v.csv"],
            val_fraction=None,
        )
    for name, columns in (("p", ["text", "label"]), ("q", ["label", "text"])):
        pyarrow.parquet.write_table(
            pyarrow.table({c: ["x", "y"] for c in columns}), f"{name}.parquet"
        )
    by_number = {
        "train": ["p.parquet", "q.parquet"],
        "text": [0],
        "label": 1,
        "tokenizer": {"type": "bytes"},
    }
    with pytest.raises(
        DataError, match=r"column 0 of this file is called 'label', and 'text' in p.parquet"
    ):
        opened(TableOptions.model_validate(by_number))
    pairs: dict[str, Any] = {
        "train": ["a.csv"],
        "val": ["v.csv"],
        "source": 0,
        "target": 1,
        "header": True,
        "tokenizer": {"type": "bytes"},
    }
    with pytest.raises(DataError, match=r"data.source: column 0 of this file is called 'label'"):
        opened(PairTableOptions.model_validate(pairs))


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_empty_texts_are_counted(ending: str) -> None:
    rows = [("good", "1"), ("", "0"), ("  ", "1"), ("bad", "0")]
    separator = "," if ending == "csv" else "\t"
    lines = [f"text{separator}label", *(separator.join(row) for row in rows)]
    if ending == "jsonl":
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    name = f"a.{ending}"
    said = table({name: "".join(line + "\n" for line in lines)})[1]
    assert f"warning: {name}: 2 of 4 rows have an empty text" in said


def test_quotes_after_a_space_are_reported() -> None:
    said = table({"a.csv": 'text,label\ngood, "pos"\nfine,pos\nbad,neg\n'})[1]
    assert any(
        "1 of 3 rows have a label in quotes that are read as its characters" in s for s in said
    )
    said = table({"b.csv": 'text,label\n "good",1\n "bad",0\n'})[1]
    assert any("2 of 2 rows have a text in quotes" in s for s in said)
    said = table({"c.csv": 'text,label\n"good, fine",1\n"""Bad"", he said",0\n'})[1]
    assert not any("quotes" in s for s in said)


def test_pairs_whose_running_text_is_the_same_are_not_the_same_pairs() -> None:
    def read(source: bytes, target: bytes) -> list[str]:
        Path("s.txt").write_bytes(source)
        Path("t.txt").write_bytes(target)
        given = {
            "source": ["s.txt"],
            "target": ["t.txt"],
            "tokenizer": {"type": "bytes"},
            "val_fraction": 0,
            "context": 32,
        }
        split = opened(PairsOptions.model_validate(given))[0].split("train")
        tokens = split.batch(np.arange(len(split)), 0, 0, False)["source"].tolist()
        assert split.texts()[0] == [
            bytes(t for t in row if 0 <= t < 256).decode() for row in tokens
        ]
        return list(split.texts()[0])

    # every second line is empty
    assert read(b"a\n\nb\n\nc\n\n", b"x\n\ny\n\nz\n\n") == [
        "a",
        "b",
        "c",
    ]
    assert read(b"a\r\r\nb\r\r\nc\r\r\n", b"x\r\r\ny\r\r\nz\r\r\n") == ["a", "b", "c"]


def test_images_without_an_ending_are_counted(capfd: pytest.CaptureFixture[str]) -> None:
    images("plain", (".png", ""))
    Path("plain/a/notes").write_text("no image")
    assert len(opened(FolderOptions(root="plain", val_fraction=0))[0].split("train")) == 12
    assert "12 images are left out without an ending" in capfd.readouterr().err


def test_pair_files_in_different_order_are_reported() -> None:
    for number in range(1, 12):
        Path(f"p{number}.en").write_text(f"a{number}\n")
        Path(f"p{number:02}.de").write_text(f"b{number}\n")
        Path(f"p{number}.fr").write_text(f"c{number}\n")
    given = {"source": ["p*.en"], "tokenizer": {"type": "bytes"}, "val_fraction": 0}
    data, said = opened(PairsOptions.model_validate({**given, "target": ["p*.de"]}))
    assert data.split("train").texts()[1][1] == "b2"  # beside a10, as they sort
    assert any("p10.en is read beside p02.de, whose name has another number" in s for s in said)
    said = opened(PairsOptions.model_validate({**given, "target": ["p*.fr"]}))[1]
    assert not any("number" in s for s in said)


def test_skipped_files_and_files_of_another_format_are_reported(
    capfd: pytest.CaptureFixture[str],
) -> None:
    Path("mixed").mkdir()
    Path("mixed/a.txt").write_text("the cat sat on a mat\n" * 20)
    for name in ("b.json", "c.json", "README"):
        Path("mixed", name).write_text('{"text": "the cat"}\n' * 40)
    given = {"context": 8, "val_fraction": 0}
    opened(TextOptions.model_validate({"files": ["mixed"], **given}))
    assert (
        "data.files: mixed: 3 files that end otherwise are left out (2 .json, 1 no ending)"
        in capfd.readouterr().err
    )
    said = opened(TextOptions.model_validate({"files": ["mixed/b.json"], **given}))[1]
    assert any("mixed/b.json: read as running text" in s for s in said)
    said = table({"d.json": '{"text": "the cat"}\n' * 9}, text=[0], label=None)[1]
    assert any("d.json: read as lines of one column" in s for s in said)


def test_characters_without_a_token_are_reported() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    library: Any = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer: Any = trainers.BpeTrainer(vocab_size=60, special_tokens=["</s>"], show_progress=False)
    library.train_from_iterator(["the cat sat"], trainer)
    library.save("own.json")
    assert library.encode("the ü cat").tokens == ["the", "cat"]  # what a file without bytes does
    Path("a.txt").write_text("the \u00fc cat\n" * 9)
    given = {
        "files": ["a.txt"],
        "context": 8,
        "val_fraction": 0,
        "tokenizer": {"type": "file", "path": "own.json"},
    }
    said = opened(TextOptions.model_validate(given))[1]
    assert any("has no token for 1 of the 8 characters in the texts ('\u00fc')" in s for s in said)
    Path("a.txt").write_text("the cat sat\n" * 9)
    assert not any("no token" in s for s in opened(TextOptions.model_validate(given))[1])
    library.model.unk_token = "</s>"
    library.save("own.json")
    Path("a.txt").write_text("the \u00fc cat\n" * 9)
    assert any("no token for 1 of" in s for s in opened(TextOptions.model_validate(given))[1])


def test_null_answers_are_not_scored(cli: Cli) -> None:
    row = {
        "index": 0,
        "task": "ctc",
        "reference": "a b",
        "prediction": None,
        "scores": {"wer": 1.0},
        "counts": {"wer": 2},
    }
    Path("s.jsonl").write_text(json.dumps(row) + "\n")
    refused = cli("eval", "--rescore", "s.jsonl")
    assert (refused.status, "prediction: None is not text" in refused.err) == (3, True)


def test_a_white_level_without_effect_is_reported() -> None:
    images("plain")
    said = opened(FolderOptions(root="plain", val_fraction=0, white_level=100))[1]
    assert "data.white_level: 100 changes nothing: no image has grey of more than 8 bits" in said


def test_sizes_that_no_idx_file_has() -> None:
    folder = Path("idx/MNIST/raw")
    folder.mkdir(parents=True)
    for name in ("train", "t10k"):
        header = bytes((0, 0, 8, 3)) + struct.pack(">iii", 4, -2, -2)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + bytes(16))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            bytes((0, 0, 8, 1)) + struct.pack(">i", 4) + bytes(4)
        )
    with pytest.raises(DataError, match="its header says 4 x -2 x -2"):
        opened(MNISTOptions(root="idx"))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Pad", {"padding": 2}, "Pad makes 3 x 20 x 20 of an image of 3 x 16 x 16"),
        ("RandomResizedCrop", {"size": 8}, "makes 3 x 8 x 8"),
        ("Grayscale", {}, "makes 1 x 16 x 16"),
        ("FiveCrop", {"size": 8}, "makes a tuple"),
        ("Normalize", {"mean": [0.5], "std": [0.5]}, "data.augment.0: Normalize: "),
        ("ElasticTransform", {}, "data.augment.0: ElasticTransform: "),
        (
            "LinearTransformation",
            {"transformation_matrix": [1.0], "mean_vector": [1.0]},
            "data.augment.0.args: ",
        ),
    ],
)
def test_a_transform_leaves_an_image_its_size(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    images("plain")
    change = {"type": "v2", "name": name, "args": arguments}
    with pytest.raises(SpecError, match=message):
        opened(FolderOptions.model_validate({"root": "plain", "augment": [change]}))
    change = {"type": "v2", "name": "RandomResizedCrop", "args": {"size": 16}}
    opened(FolderOptions.model_validate({"root": "plain", "augment": [change]}))


@pytest.mark.parametrize("kind", ["metaspace", "wordpiece"])
def test_a_prompt_and_its_continuation_are_joined_to_the_whole_text(kind: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    text = "the cat satan sat on the mat"
    library: Any
    if kind == "metaspace":
        library = Tokenizer(models.BPE(unk_token="<unk>"))
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        library.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer: Any = trainers.BpeTrainer(
            vocab_size=60, special_tokens=["<unk>", "</s>"], show_progress=False
        )
    else:
        library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        library.pre_tokenizer, library.decoder = (
            pre_tokenizers.BertPreTokenizer(),
            decoders.WordPiece(),
        )
        trainer = trainers.WordPieceTrainer(
            vocab_size=24, special_tokens=["[UNK]", "[SEP]"], show_progress=False
        )
    library.train_from_iterator([text], trainer)
    tokenizer = read_tokenizer(library.to_str().encode(), kind)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    for cut in range(1, len(tokens)):
        assert (
            tokenizer.decode(tokens[:cut]) + added_text(tokenizer, tokens[:cut], tokens[cut:])
            == text
        )
    own = ByteTokenizer()
    assert added_text(own, own.encode("é"), own.encode(" ü")) == " ü"


def test_options_fixed_by_the_checkpoint_are_reported(cli: Cli) -> None:
    images("plain", count=12)
    Path("i.yaml").write_text(
        CNN + "data: {type: image_folder, root: plain}\ntask: {type: classification}\n" + TRAIN
    )
    assert cli("pretrain", "i.yaml", "--out", "i").status == 0
    told = cli("eval", "i", "--set", "data.normalize=none", "--set", "data.size=8").err
    assert "data.normalize: none is not used: the checkpoint has its own (auto)" in told
    assert "data.size: 8 is not used" in told
    assert "not used" not in cli("eval", "i", "--set", "data={type: image_folder, root: plain}").err
    # What a finetuning says itself is what it gets, else what the checkpoint has.
    for given, mean in (
        ("none", []),
        ("{mean: [0.1, 0.2, 0.3], std: [1.0, 1.0, 1.0]}", [0.1, 0.2, 0.3]),
        ("auto", None),
    ):
        Path("f.yaml").write_text(
            f"data: {{type: image_folder, root: plain, normalize: {given}}}\n{TRAIN}"
        )
        path = Path(cli("finetune", "--from", "i", "f.yaml", "--out", f"f{given[1:4]}").out.strip())
        start = json.loads((next(Path("i/checkpoints").glob("step-*")) / "facts.json").read_text())[
            "mean"
        ]
        assert json.loads((path / "facts.json").read_text())["mean"] == (
            start if mean is None else mean
        )

    Path("t.txt").write_text("the cat sat on a mat\n" * 60)
    data = "data: {type: text, files: [t.txt], context: 16, tokenizer: {type: characters}}\n"
    Path("t.yaml").write_text(
        f"model: {{type: decoder, {BLOCKS}}}\n{data}task: {{type: causal_lm}}\n{TRAIN}"
    )
    assert cli("pretrain", "t.yaml", "--out", "t").status == 0
    Path("g.yaml").write_text(data.replace("characters", "bpe, vocab_size: 300") + TRAIN)
    told = cli("finetune", "--from", "t", "g.yaml", "--out", "g").err
    assert "data.tokenizer: bpe 300 is not used: the checkpoint has its own (characters)" in told
    assert "not used" not in cli("finetune", "--from", "t", "t.yaml", "--out", "h").err
    # No table of positions is read behind its end.
    longer = cli("eval", "t", "--set", "data.context=17")
    assert (
        longer.status,
        "has items of 17 tokens, and the model's positions end after 16" in longer.err,
    ) == (2, True)
    assert cli("eval", "t", "--set", "data.context=9").status == 0


def test_recordings_longer_than_the_model_reads_are_named(cli: Cli) -> None:
    rng = np.random.default_rng(0)
    for name, seconds in (("short/a", 0.3), ("short/b", 0.3), ("long/a", 1.1), ("long/b", 0.2)):
        Path(name).mkdir(parents=True)
        for i in range(4):
            with wave.open(f"{name}/{i}.wav", "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes(rng.normal(0, 3000, int(seconds * 8000)).astype("<i2").tobytes())
    Path("a.yaml").write_text(
        f"model: {{type: encoder, {BLOCKS}, frontend: {{stride: 2}}}}\ndata: {{type: audio, files:"
        f" [short], rate: 8000, mels: 16}}\ntask: {{type: classification}}\n{TRAIN}"
    )
    assert cli("pretrain", "a.yaml", "--out", "a").status == 0
    longer = cli("eval", "a", "--set", "data.files=[long]", "--split", "train")
    assert longer.status == 3
    assert "a/" in longer.err
    assert "1.1 s long, and the model reads up to 0.3 s" in longer.err
    assert cli("eval", "a").status == 0
    assert "data.rate: 16000 is not used" in cli("eval", "a", "--set", "data.rate=16000").err
