"""`bigmodel init --data`: a look at somebody's data gives a spec that trains on it, and says what
was decided.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Result
from PIL import Image

from bigmodel_cli.console import say
from bigmodel_cli.data.text.table_look import look_at_table
from bigmodel_cli.init import Wanted, draft, write_out
from bigmodel_cli.init.draft import batch_size, by_split, context_of, epochs
from bigmodel_cli.spec import load

Cli = Callable[..., Result]
WORDS = [
    "good",
    "bad",
    "film",
    "story",
    "actor",
    "plot",
    "long",
    "short",
    "music",
    "scene",
    "quite",
    "never",
    "always",
]
RNG = random.Random(3)


def sentence(words: int = 7) -> str:
    return " ".join(RNG.choices(WORDS, k=words))


def write_wave(path: Path, samples: int, frequency: float) -> None:
    import wave

    path.parent.mkdir(parents=True, exist_ok=True)
    values = (np.sin(2 * np.pi * frequency * np.arange(samples) / 8000) * 20_000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(values.tobytes())


def images() -> list[str]:
    for label, value in (("dark", 30), ("light", 220)):
        Path("pets", label).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (18 + index % 2, 12), (value, index, 0)).save(
                f"pets/{label}/{index}.png"
            )
    return ["pets"]


def table() -> list[str]:
    rows = "".join(f'{i},"{sentence()}",{("pos", "neg")[i % 2]},{i % 5}\n' for i in range(30))
    Path("reviews.csv").write_text(f"id,review,sentiment,stars\n{rows}")
    return ["reviews.csv"]


def text() -> list[str]:
    Path("book.txt").write_text("\n".join(sentence() for _ in range(60)))
    return ["book.txt"]


def pairs() -> list[str]:
    for name in ("train.de", "train.en"):
        Path(name).write_text("".join(f"{sentence(4)}\n" for _ in range(20)))
    return ["train.de", "train.en"]


def recordings() -> list[str]:
    for index in range(8):
        write_wave(
            Path("tones", ("low", "high")[index % 2], f"{index}.wav"),
            2000 + 50 * index,
            300 + 400 * (index % 2),
        )
    return ["tones"]


def transcribed() -> list[str]:
    for index in range(6):
        write_wave(Path(f"said/r{index}.wav"), 4000 + 50 * index, 300)
    Path("said/texts.tsv").write_text("".join(f"r{i}\tone two\n" for i in range(6)))
    return ["said"]


SMALL = {
    "images": [],
    "table": ["model.dim=16"],
    "text": ["model.dim=16", "model.blocks.0.repeat=1", "task.sample_tokens=2"],
    "pairs": [
        "model.dim=16",
        "model.encoder.0.repeat=1",
        "model.decoder.0.repeat=1",
        "task.max_tokens=2",
    ],
    "recordings": [],
    "transcribed": ["model.dim=12", "model.blocks.0.repeat=1"],
}
ALL = [
    "train.steps=2",
    "train.epochs=null",
    "train.validate_epochs=null",
    "train.validate_every=2",
    "train.precision=fp32",
]


@pytest.mark.parametrize(
    "make", [images, table, text, pairs, recordings, transcribed], ids=lambda make: make.__name__
)
def test_own_data_to_a_prediction(make: Callable[[], list[str]], cli: Cli) -> None:
    named = [word for path in make() for word in ("--data", path)]
    made = cli("init", "mine", *named)
    assert (made.status, made.out) == (0, "mine.yaml\n"), made.err
    *_, following, then = made.err.splitlines()
    assert following == "next: bigmodel pretrain mine.yaml"
    assert then.startswith("then: bigmodel predict runs/mine ")
    changes = [*ALL, *SMALL[make.__name__], "train.memory_format=contiguous"]
    trained = cli(
        "pretrain", "mine.yaml", "--out", "runs/mine", *(w for c in changes for w in ("--set", c))
    )
    assert trained.status == 0, trained.err
    import shlex

    more = ["--max-tokens", "2"] if make in (text, pairs) else []
    predicted = cli(*shlex.split(then)[2:], *more)
    assert predicted.status == 0, predicted.err
    assert len(predicted.out.splitlines()) == 1
    assert "error" not in json.loads(predicted.out)


def spec_of(*names: str, text: tuple[str, ...] = (), label: str | None = None) -> tuple[dict, str]:  # type: ignore[type-arg]
    """The spec for these files as plain values, and what is said of it."""
    made = draft([Path(name) for name in names], Wanted(text, label))
    written = write_out(made, Path("mine.yaml"))
    Path("mine.yaml").write_text(written)
    load(Path("mine.yaml"))
    for note in made.notes:
        say(note)
    return yaml.safe_load(written), "\n".join(made.notes)


def test_init_reports_what_it_found_and_the_alternatives() -> None:
    spec, said = spec_of(*table())
    assert (spec["data"]["text"], spec["data"]["label"]) == (["review"], "sentiment")
    assert "label: 'sentiment', of 2 classes (neg, pos)" in said
    assert "'stars' (5 values) may hold labels too: --label stars takes it, --label '' none" in said
    spec, _ = spec_of("reviews.csv", label="stars")
    assert spec["data"]["label"] == "stars"
    spec, _ = spec_of("reviews.csv", label="")
    assert (spec["model"]["type"], spec["task"]["type"], "label" in spec["data"]) == (
        "decoder",
        "causal_lm",
        False,
    )


def test_splits_are_found_by_the_names_of_files_and_columns_by_number() -> None:
    Path("folder").mkdir()
    for name in ("train.tsv", "dev.tsv", "test-2.tsv"):
        Path("folder", name).write_text("".join(f"{sentence(9)}\t{i % 3}\n" for i in range(12)))
    data = spec_of("folder")[0]["data"]
    assert {n: data[n] for n in ("train", "val", "test")} == {
        "train": ["folder/train.tsv"],
        "val": ["folder/dev.tsv"],
        "test": ["folder/test-2.tsv"],
    }
    assert (data["text"], data["label"], data["header"]) == ([0], 1, False)


def test_two_columns_of_text_are_pairs_and_with_a_label_one_item() -> None:
    Path("pairs.csv").write_text(
        "article;summary\n" + "".join(f"{sentence(9)};{sentence(4)}\n" for _ in range(20))
    )
    spec, said = spec_of("pairs.csv")
    assert (spec["data"]["type"], spec["data"]["source"], spec["data"]["target"]) == (
        "pair_table",
        "article",
        "summary",
    )
    assert spec["data"]["delimiter"] == ";"
    assert "'article' is read, and 'summary' is written" in said
    assert spec_of("pairs.csv", text=("summary", "article"))[0]["data"]["source"] == "summary"
    rows = [
        {"premise": sentence(), "hypothesis": sentence(4), "label": ("yes", "no")[i % 2]}
        for i in range(20)
    ]
    Path("nli.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec, said = spec_of("nli.jsonl")
    assert (spec["data"]["text"], spec["model"]["token_types"]) == (["premise", "hypothesis"], 2)
    assert "--text premise takes one of them" in said


def test_json_lines_of_texts_are_running_text() -> None:
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"id": i, "body": sentence(9)}) + "\n" for i in range(40))
    )
    data = spec_of("rows.jsonl")[0]["data"]
    assert (data["type"], data["field"], data["files"]) == ("text", "body", ["rows.jsonl"])


def test_a_label_column_without_labels_is_reported() -> None:
    rows = [{"text": sentence(9), "label": None if i else "x"} for i in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec, said = spec_of("rows.jsonl")
    assert "label" not in spec["data"]
    assert "'label' is not taken for labels, since values are missing" in said


def test_a_folder_of_parallel_files_with_splits() -> None:
    Path("multi").mkdir()
    for stem, count in (("train", 20), ("val", 4), ("test_2016", 4)):
        for end in ("de", "en"):
            Path("multi", f"{stem}.{end}").write_text(
                "".join(f"{sentence(4)}\n" for _ in range(count))
            )
    data = spec_of("multi")[0]["data"]
    assert (data["source"], data["val_target"]) == (["multi/train.de"], ["multi/val.en"])
    assert data["test_source"] == ["multi/test_2016.de"]


def test_labels_in_the_names_of_recordings_and_what_lies_beside_them() -> None:
    for index in range(6):
        write_wave(Path(f"flat/{('yes', 'no')[index % 2]}_anna_{index}.wav"), 1500, 300)
    Path("flat/README.md").write_text("about")
    spec, said = spec_of("flat")
    assert "the label is what stands first in the name: 2 classes (no, yes)" in said
    assert "left out, since the recordings count: 1 texts" in said
    assert load(Path("mine.yaml")).to_dict()["data"]["pattern"] == spec["data"]["pattern"]


def test_large_images_are_made_smaller_and_small_ones_stay() -> None:
    for label in ("a", "b"):
        for folder, size in (("large", (300, 200)), ("small", (16, 16))):
            Path(folder, label).mkdir(parents=True)
            Image.new("L", size, 9).save(f"{folder}/{label}/0.png")
            Image.new("L", size, 99).save(f"{folder}/{label}/1.png")
    assert spec_of("large")[0]["data"]["size"] == 96
    assert "size" not in spec_of("small")[0]["data"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--data", "nowhere"], 2, "--data nowhere: no such file or folder"),
        (["--data", "empty"], 3, "--data empty: no file in it"),
        (["--data", "odd.xyz"], 3, "none of which is known by its ending"),
        (["--data", "short.txt"], 3, "a model learns to write from"),
        (["--data", "short.txt", "--label", "x"], 2, "--label has no effect on texts"),
        (["--data", "numbers.csv"], 2, "no column of texts among a, b; name it with --text COLUMN"),
        (["--data", "numbers.csv", "--text", "aa"], 2, "--text aa: no such column; there are a, b"),
        (["--data", "short.txt", "--like", "cnn"], 2, "--like has no effect on init with --data"),
        (["--label", "x"], 2, "--label has no effect on init without --data"),
        (
            ["--data", os.fsdecode(b"b\xff.txt")],
            2,
            "is not UTF-8, and no spec can record it; rename it",
        ),
        (["--data", "one"], 3, "all images are of one class, cats"),
    ],
)
def test_what_no_spec_can_be_made_of_is_refused_and_nothing_is_written(
    words: list[str], status: int, said: str, cli: Cli
) -> None:
    Path("empty").mkdir()
    Path("one/cats").mkdir(parents=True)
    Image.new("L", (8, 8)).save("one/cats/a.png")
    Path("odd.xyz").write_text("x")
    Path("short.txt").write_text("too short\n")
    Path(os.fsdecode(b"b\xff.txt")).write_text("too short\n")
    Path("numbers.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    result = cli("init", "mine", *words)
    assert (result.status, said in result.err) == (status, True), result.err
    assert not Path("mine.yaml").exists()


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("text,label\na b c d,1\ne f g h,2\n", ["text", "label"]),
        ("a b c d,1\ne f g h,2\n", [0, 1]),
        ("words here,count\nlong text of a film,1\nanother one of it,2\n", ["words here", "count"]),
        ("same,same\nlong text of a film,1\n", [0, 1]),
        ("text;label\na b c d;1\ne f g h;2\n", ["text", "label"]),
    ],
)
def test_names_of_columns_in_the_first_row(content: str, names: list[object]) -> None:
    Path("t.csv").write_text(content)
    assert [column.name for column in look_at_table(Path("t.csv")).columns] == names


def test_sizes_follow_the_data() -> None:
    assert (epochs(10, 1000), epochs(10_000, 1000), epochs(100, 1000)) == (50, 3, 10)
    assert (batch_size(3), batch_size(100), batch_size(10**6)) == (2, 8, 64)
    assert context_of([90] * 99 + [5000], {"type": "bytes"}) == 128
    files = [Path("a/Train.csv"), Path("a/valid-1.csv"), Path("a/contest.csv")]
    assert by_split(files) == {"train": [files[0], files[2]], "val": [files[1]]}
    assert by_split(files[1:2]) == {"train": files[1:2]}
