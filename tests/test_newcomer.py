"""A newcomer's way from data of their own to a model that is trained, judged and used: at most
five commands, whatever the data are, and what is learnt is better than chance.
"""

from __future__ import annotations

import json
import random
import shlex
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from PIL import Image

# other tests run these lines; coverage would take half of the time again
pytestmark = pytest.mark.no_cover

Cli = Callable[..., Result]
RNG = random.Random(7)


@pytest.fixture(autouse=True)
def the_same_data_in_any_order() -> None:
    """Whichever tests ran before."""
    RNG.seed(0)


FILLERS = [
    "this",
    "film",
    "that",
    "story",
    "an",
    "actor",
    "the",
    "plot",
    "its",
    "music",
    "some",
    "scene",
]


def sentence(*words: str, fillers: int = 4) -> str:
    """Words that say something among others that do not."""
    every = [*words, *RNG.choices(FILLERS, k=fillers)]
    RNG.shuffle(every)
    return " ".join(every)


def write_tone(path: Path, frequency: float, samples: int = 2400) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave_form = np.sin(2 * np.pi * frequency * np.arange(samples) / 8000) * 20_000
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(wave_form.astype("<i2").tobytes())


def folder_of_photos() -> list[str]:
    for index in range(40):
        label, value = (("dark", 40), ("light", 200))[index % 2]
        Path("pets", label).mkdir(parents=True, exist_ok=True)
        size = (18 + index % 3, 12)
        Image.new("RGB", size, (value + index % 7, index, 0)).save(f"pets/{label}/{index}.png")
    return ["pets"]


def table_of_classes() -> list[str]:
    rows = [("good", "pos"), ("bad", "neg")] * 60
    lines = [f'{i},"{sentence(word)}",{label}' for i, (word, label) in enumerate(rows)]
    Path("reviews.csv").write_text("\n".join(["id,review,sentiment", *lines, ""]))
    return ["reviews.csv"]


def table_of_numbers() -> list[str]:
    prices = {"cheap": 1.5, "fair": 5.25, "dear": 9.75}
    lines = [f"{sentence(word)},{price}" for word, price in prices.items() for _ in range(40)]
    Path("offers.csv").write_text("\n".join(["offer,price", *lines, ""]))
    return ["offers.csv"]


def table_of_sets() -> list[str]:
    sets = [names for names in (["sea"], ["city", "sea"], ["city"], []) for _ in range(30)]
    lines = [f"{sentence(*names)},{'|'.join(names)}" for names in sets]
    Path("places.csv").write_text("\n".join(["description,topics", *lines, ""]))
    return ["places.csv"]


def sentences_with_tags() -> list[str]:
    tags = {"Ann": "B-PER", "Bob": "B-PER", "Rome": "B-LOC", "Oslo": "B-LOC"}
    words = [sentence(*RNG.sample(list(tags), 2)).split() for _ in range(80)]
    texts = ["".join(f"{word} {tags.get(word, 'O')}\n" for word in own) for own in words]
    Path("names.txt").write_text("\n".join(texts))
    return ["names.txt"]


def text_file() -> list[str]:
    Path("book.txt").write_text("\n".join(sentence("good") for _ in range(60)))
    return ["book.txt"]


def pair_of_files() -> list[str]:
    words = {"ein": "a", "zwei": "two", "hund": "dog", "ball": "ball"}
    pairs = [RNG.choices(list(words), k=3) for _ in range(120)]
    Path("train.de").write_text("".join(f"{' '.join(own)}\n" for own in pairs))
    Path("train.en").write_text("".join(f"{' '.join(map(words.get, own))}\n" for own in pairs))  # type: ignore[arg-type]
    return ["train.de", "train.en"]


def folder_of_recordings() -> list[str]:
    for index in range(40):
        label, frequency = (("low", 300), ("high", 1500))[index % 2]
        write_tone(Path("tones", label, f"{index}.wav"), frequency + index, 2000 + 20 * index)
    return ["tones"]


def recordings_with_transcripts() -> list[str]:
    for index in range(40):
        write_tone(Path(f"said/r{index}.wav"), (300, 1500)[index % 2] + index)
    lines = [f"r{i}\t{('low', 'high')[i % 2]}\n" for i in range(40)]
    Path("said/texts.tsv").write_text("".join(lines))
    return ["said"]


SMALL = "model.dim=32"
FAST = ["train.optimizer.lr=5e-3", "train.schedule.warmup=5"]  # of tens of steps in all
PAIRS = ["model.encoder.0.repeat=1", "model.decoder.0.repeat=1", "model.dropout=0"]
WAYS: list[tuple[Callable[[], list[str]], int, list[str], Callable[[dict[str, Any]], bool]]] = [
    (folder_of_photos, 40, [], lambda found: found["accuracy"] == 1),
    (table_of_classes, 60, [SMALL], lambda found: found["accuracy"] > 0.8),
    (table_of_numbers, 120, [SMALL], lambda found: found["rmse"] < 0.7 * found["rmse_of_mean"]),
    (table_of_sets, 100, [SMALL], lambda found: found["map"] > 0.8),
    (sentences_with_tags, 100, [SMALL], lambda found: found["f1"] > 0.5),
    (text_file, 30, [SMALL, "model.blocks.0.repeat=1"], lambda found: found["perplexity"] < 8),
    (pair_of_files, 80, [SMALL, *PAIRS], lambda found: found["accuracy"] > 0.7),
    (folder_of_recordings, 40, [], lambda found: found["accuracy"] == 1),
    (recordings_with_transcripts, 60, ["model.blocks.0.repeat=1"], lambda found: found["wer"] < 1),
]


@pytest.mark.curve
@pytest.mark.parametrize(
    ("make", "steps", "changes", "learnt"), WAYS, ids=[way[0].__name__ for way in WAYS]
)
def test_own_data_to_a_trained_and_used_model(
    make: Callable[[], list[str]],
    steps: int,
    changes: list[str],
    learnt: Callable[[dict[str, Any]], bool],
    cli: Cli,
) -> None:
    made = cli("init", "mine", *(word for path in make() for word in ("--data", path)))
    assert (made.status, made.out) == (0, "mine.yaml\n"), made.err
    *_, following, then = made.err.splitlines()
    assert following == "next: bigmodel pretrain mine.yaml"
    assert then.startswith("then: bigmodel predict runs/mine ")
    pinned = [
        "train.precision=fp32",
        "train.memory_format=contiguous",
        "train.validate_epochs=null",
    ]
    every = [f"train.steps={steps}", f"train.validate_every={steps}", *pinned, *FAST, *changes]
    trained = cli(*shlex.split(following)[2:], *(w for c in every for w in ("--set", c)))
    assert trained.status == 0, trained.err
    judged = cli("eval", "runs/mine", "--json")
    assert judged.status == 0, judged.err
    found = json.loads(judged.out)
    assert learnt(found), found
    used = cli(*shlex.split(then)[2:])
    assert used.status == 0, used.err
    assert len(used.out.splitlines()) == 1
    assert "error" not in json.loads(used.out)
    looked = cli("attend", *shlex.split(then)[3:])
    assert looked.status == 0, looked.err
