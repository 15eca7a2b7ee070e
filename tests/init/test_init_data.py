"""`bigmodel init --data`: a look at somebody's data gives a spec that trains on it, and says what
was decided.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Result
from PIL import Image

from bigmodel_cli.console import say
from bigmodel_cli.data import open_data
from bigmodel_cli.data.audio.audio import AudioOptions
from bigmodel_cli.data.text.table_look import look_at_table
from bigmodel_cli.errors import DataError
from bigmodel_cli.init import Wanted, draft, write_out
from bigmodel_cli.init.draft import batch_size, by_split, context_of, epochs, warmup
from bigmodel_cli.spec import load
from bigmodel_cli.train.batches import micro_batches

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


def table() -> list[str]:
    rows = "".join(f'{i},"{sentence()}",{("pos", "neg")[i % 2]},{i % 5}\n' for i in range(30))
    Path("reviews.csv").write_text(f"id,review,sentiment,stars\n{rows}")
    return ["reviews.csv"]


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


def test_quoted_values_between_semicolons_are_read_whatever_they_contain() -> None:
    """As spreadsheets write them where the comma is the decimal sign."""
    rows = "".join(f'"{sentence(6)}, ""{i}""; so";"{("good", "bad")[i % 2]}"\n' for i in range(20))
    Path("export.csv").write_text(f'"review";"verdict"\n{rows}')
    data = spec_of("export.csv")[0]["data"]
    assert (data["text"], data["label"], data["delimiter"]) == (["review"], "verdict", ";")


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
        (["--data", "short.txt", "--like", "cnnn"], 2, "--like cnnn: not one of"),
        (["--label", "x"], 2, "--label has no effect on init without --data"),
        (
            ["--data", os.fsdecode(b"b\xff.txt")],
            2,
            "is not UTF-8, and no spec can record it; rename it",
        ),
        (["--data", "one"], 3, "all images are of one class, cats"),
        (["--data", "twice.csv"], 3, "twice.csv:1: two columns are called 'text'; rename one"),
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
    Path("twice.csv").write_text("text,text,label\na b c d,e f g h,1\n")
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
    assert (epochs(10, 1000), epochs(10_000, 1000), epochs(100, 1000)) == (50, 1, 10)
    assert (batch_size(3), batch_size(100), batch_size(10**6)) == (2, 8, 64)
    assert context_of([90] * 99 + [5000], {"type": "bytes"}) == 128
    files = [Path("a/Train.csv"), Path("a/valid-1.csv"), Path("a/contest.csv")]
    assert by_split(files) == {"train": [files[0], files[2]], "val": [files[1]]}
    assert by_split(files[1:2]) == {"train": files[1:2]}


def test_the_warm_up_is_a_tenth_of_a_short_run_and_has_a_limit_in_a_long_one() -> None:
    assert [warmup(steps, 100) for steps in (0, 9, 49, 999, 1001, 1e6)] == [0, 0, 4, 99, 100, 100]
    table()
    Path("a.de").write_text("".join(f"{sentence(3)}\n" for _ in range(20)))
    Path("a.en").write_text(Path("a.de").read_text())
    Path("a.conll").write_text("Ann\tB-PER\nsleeps\tO\n\n" * 9)
    Path("a.txt").write_text("a little of text " * 30)
    for number in range(8):
        write_wave(Path(f"said/{number}.wav"), 4000, 300.0)
        write_wave(Path(f"words/{('yes', 'no')[number % 2]}/{number}.wav"), 4000, 300.0)
        image = Path(f"pets/{('cat', 'dog')[number % 2]}/{number}.png")
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (9 * number, 90, 200)).save(image)
    Path("said/texts.tsv").write_text("".join(f"{n}\tyes no\n" for n in range(8)))
    for *names, label in (
        *(["reviews.csv", None], ["reviews.csv", ""], ["a.de", "a.en", None], ["a.conll", None]),
        *(["a.txt", None], ["said", None], ["words", None], ["pets", None]),
    ):
        spec_of(*names, label=label)
        train = (spec := load(Path("mine.yaml"))).train
        data = open_data(spec.data, base=Path(), say=lambda _: None).split("train")
        steps = train.total_steps(micro_batches(data, train).per_epoch)
        assert 0 < train.schedule.warmup <= steps / 4, (names, steps)


def test_a_number_is_estimated_where_there_is_no_label() -> None:
    Path("offers.csv").write_text(
        "id,offer,price\n" + "".join(f"{i},{sentence()},{i % 9 + 0.5}\n" for i in range(40))
    )
    spec, said = spec_of("offers.csv")
    assert (spec["data"]["targets"], spec["task"]["type"]) == (["price"], "regression")
    assert "number to estimate: 'price', from 0.5 to 8.5" in said
    assert spec_of("offers.csv", label="id")[0]["data"]["targets"] == ["id"]
    assert "targets" not in spec_of("offers.csv", label="")[0]["data"]
    Path("few.csv").write_text(  # texts that repeat, beside the column that is named
        "about,price\n" + "".join(f"{i % 5} rooms,{i + 0.5}\n" for i in range(40))
    )
    assert spec_of("few.csv", label="price")[0]["data"]["text"] == ["about"]
    Path("pairs.csv").write_text(
        "de,en,score\n" + "".join(f"{sentence()},{sentence()},0.{i}\n" for i in range(40))
    )
    assert spec_of("pairs.csv")[0]["data"]["type"] == "pair_table"


@pytest.mark.parametrize("lists", [False, True])
def test_sets_of_labels_are_found_in_texts_and_lists(lists: bool) -> None:
    sets = [("a", "b"), ("b",), ("c", "a"), ()] * 10
    rows = [{"text": sentence(), "tags": list(s) if lists else ", ".join(s)} for s in sets]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec, said = spec_of("rows.jsonl")
    assert (spec["task"]["type"], spec["data"]["label"]) == ("multilabel", "tags")
    assert spec["data"]["label_separator"] == ("|" if lists else ",")
    assert "sets of labels, lists" in said if lists else "with ',' between them" in said


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("names.txt", "-DOCSTART- -X- O\n\nAnn NN B-PER\nsleeps VB O\n\n", {}),
        ("names.tsv", "Ann\tB-PER\nsleeps\tO\n\n", {}),
        ("names.jsonl", '{"tokens": ["Ann", "sleeps"], "tags": ["B-PER", "O"]}\n', {}),
        (
            "ud.conllu",
            "# text = x\n1\tAnn\t_\tPROPN\n2\tsleeps\t_\tVERB\n\n",
            {"words": 1, "tags": 3},
        ),
    ],
)
def test_words_with_tags_are_known_by_their_lines(
    name: str, content: str, columns: dict[str, int]
) -> None:
    Path(name).write_text(content * 20)
    spec, said = spec_of(name)
    assert (spec["data"]["type"], spec["task"]["type"]) == ("conll", "tagging")
    assert {k: v for k, v in spec["data"].items() if k in ("words", "tags")} == columns
    assert "20 sentences for training" in said


def test_a_sample_gives_the_structure_and_the_data_its_columns_splits_and_tokenizer(
    cli: Cli,
) -> None:
    table()
    made = cli("init", "mine", "--data", "reviews.csv", "--like", "sst2")
    assert made.status == 0, made.err
    spec = yaml.safe_load(Path("mine.yaml").read_text())
    assert (spec["model"]["dropout"], spec["train"]["ema"]) == (0.3, 0.998)  # the sample's
    assert (spec["data"]["train"], spec["data"]["label"]) == (["reviews.csv"], "sentiment")
    assert "train is that of sst2: epochs 8" in made.err
    warm, steps = 10, 108  # 27 rows are left for training, in batches of 2, 8 times
    assert spec["train"]["schedule"]["warmup"] == warm
    said = f"warmup: {warm} steps, a tenth of the {steps} that this data makes; the sample's 100"
    assert said in made.err
    dry = cli("pretrain", "mine.yaml", "--dry-run")
    assert dry.status == 0, dry.err


def test_a_task_decides_what_a_table_is_for(cli: Cli) -> None:
    table()
    for task, model in (
        ("masked_lm", "encoder"),
        ("regression", "encoder"),
        ("causal_lm", "decoder"),
    ):
        made = cli("init", task, "--data", "reviews.csv", "--like", task)
        assert made.status == 0, made.err
        spec = load(Path(f"{task}.yaml"))
        assert (spec.task.type, spec.model.type) == (task, model)
    assert load(Path("regression.yaml")).to_dict()["data"]["targets"] == ["stars"]


def test_a_sample_that_does_not_fit_the_data_is_refused_with_those_that_do(cli: Cli) -> None:
    table()
    made = cli("init", "mine", "--data", "reviews.csv", "--like", "vit")
    assert made.status == 2
    assert "--like vit (task classification, model vit) does not fit this data (table" in made.err
    assert made.err.rstrip().endswith("Leave --like out, or --like sst2")
    assert not Path("mine.yaml").exists()


@pytest.mark.parametrize("texts", [False, True], ids=["labels", "transcripts"])
def test_folders_of_recordings_that_are_called_as_splits_are(texts: bool) -> None:
    for index in range(12):
        split, label = ("Train", "Train", "dev")[index % 3], ("low", "high")[index % 2]
        name = f"{split}/{index}.wav" if texts else f"{split}/{label}/{index}.wav"
        write_wave(Path("said", name), 1500, 300)
    if texts:
        Path("said/texts.tsv").write_text("".join(f"{i}\tlow high\n" for i in range(12)))
    spec, said = spec_of("said")
    assert spec["data"]["split"] == {"val": {"split": ["dev"]}}
    assert "8 recordings for training" in said
    assert "left out" not in said  # transcripts are read
    Path("said/other").mkdir()
    write_wave(Path("said/other/x/1.wav"), 1500, 300)
    with pytest.raises(DataError, match="Train, dev beside other: are they splits or classes"):
        spec_of("said")


def test_a_column_with_empty_values_is_named_with_their_number() -> None:
    rows = "".join(f"{sentence()},{'' if i % 4 else i + 0.5}\n" for i in range(40))
    Path("offers.csv").write_text(f"offer,price\n{rows}")
    assert (
        "'price' is not taken for labels, since values are missing in 30 of 40"
        in spec_of("offers.csv")[1]
    )


def test_a_hand_written_spec_with_transcripts_needs_no_folders_of_classes() -> None:
    write_wave(Path("said/1.wav"), 1500, 300)
    options = AudioOptions(files=["said"], transcripts=["texts.tsv"], units="words")
    assert re.search(options.pattern, "1.wav")
    assert not re.search(AudioOptions(files=["said"]).pattern, "1.wav")
