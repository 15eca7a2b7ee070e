"""Numbers and sets of labels: what stands in files is read or refused with its place, and the
DatasetInfo says names and scale.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from tones import write

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import FACTS, DataOptions, open_data
from bigmodel_cli.data.base import DataSet
from bigmodel_cli.errors import DataError, SpecError

TABLE: dict[str, Any] = {
    "type": "table",
    "text": ["t"],
    "tokenizer": {"type": "bytes"},
    "val_fraction": 0,
}
ROWS = 't,n,s\na,1,x|y\nb,2.5,\n"c,d", 4e0 ,y | y|\n'


def opened(
    said: list[str] | None = None, /, known: Any = None, only: str | None = None, **options: Any
) -> DataSet:
    typed: Any = TypeAdapter(DataOptions).validate_python(options)
    say = said.append if said is not None else (lambda _: None)
    return open_data(typed, base=Path(), say=say, assets=known, only=only)


def stored(info: DatasetInfo) -> dict[str, bytes]:
    return {FACTS: json.dumps(info.to_json()).encode()}


def test_numbers_of_a_table_are_kept_exactly_and_their_scale_is_in_the_facts() -> None:
    Path("a.csv").write_text(ROWS)
    data = opened(**TABLE, train=["a.csv"], targets=["n"])
    numbers = data.split("train").batch(np.array([2, 0, 1]), 0, 0, False)["numbers"]
    assert numbers.tolist() == [[4.0], [1.0], [2.5]]
    found = DatasetInfo.from_json(json.loads(json.dumps(data.info.to_json())))
    assert found == data.info
    assert (found.targets, found.outputs, found.classes) == (("n",), 1, ())
    assert (found.target_mean, found.target_std) == ((2.5,), pytest.approx((np.std([1, 2.5, 4]),)))

    # They are this data's, which the head's rows are scaled to, but where a checkpoint is used as
    # it is, or a run goes on, whatever the targets are called.
    before = DatasetInfo(targets=("n",), target_mean=(7.0,), target_std=(2.0,))
    again = opened(**TABLE, train=["a.csv"], targets=["n"], known=stored(before))
    assert again.info.target_mean == (2.5,)
    assert again.scaled_as(before).info == replace(
        again.info, target_mean=(7.0,), target_std=(2.0,)
    )
    other = DatasetInfo(targets=("m",), target_mean=(7.0,), target_std=(2.0,))
    assert opened(
        **TABLE, train=["a.csv"], targets=["n"], known=stored(other)
    ).info.target_mean == (2.5,)


def test_a_column_is_not_learnt_and_read_nor_learnt_twice() -> None:
    Path("a.csv").write_text(ROWS)
    for targets in ([1, "n"], ["n", 0]):
        with pytest.raises(DataError, match=r"a.csv:1: a column is given twice, by name"):
            opened(**TABLE, train=["a.csv"], targets=targets)
    with pytest.raises(ValidationError, match="text: 't' is also the label or a target"):
        opened(**TABLE, train=["a.csv"], targets=["n", "t"])


def test_sets_may_be_empty_and_their_labels_stand_once() -> None:
    Path("a.csv").write_text(ROWS)
    said: list[str] = []
    data = opened(said, **TABLE, train=["a.csv"], label="s", label_separator="|")
    assert data.split("train").batch(np.arange(3), 0, 0, False)["labels"].tolist() == [
        [True] * 2,
        [False] * 2,
        [False, True],
    ]
    assert (data.info.classes, data.info.class_counts, data.info.items) == (("x", "y"), (1, 2), 3)
    assert not [text for text in said if "several" in text]
    opened(said, **TABLE, train=["a.csv"], label="s", label_separator=";")
    assert (
        "a.csv: no row has several labels; is data.label_separator: ';' what stands between them?"
        in "".join(said)
    )


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ("", "empty; give it a number"),
        ("much", "'much' is not a number"),
        ("1_0", "'1_0' is not a number"),
        ('"1,5"', "'1,5' is not a number"),
        ("nan", "nan is not a finite number"),
        ("-inf", "-inf is not a finite number"),
        ("1e400", "inf is not a finite number"),
        ("1e200", "1e+200 is larger than 1e+100"),
    ],
)
def test_a_value_that_is_not_a_number_is_reported_with_file_and_line(cell: str, fault: str) -> None:
    Path("a.csv").write_text(f"t,n\na,1\nb,{cell}\n")
    with pytest.raises(DataError) as caught:
        opened(**TABLE, train=["a.csv"], targets=["n"])
    assert str(caught.value).startswith(f"a.csv:3: data.targets (n): {fault}")


def test_other_values_that_are_not_numbers_or_sets() -> None:
    for value, fault in (
        ("null", "null"),
        ("true", "True is not"),
        ("[1]", r"\[1\] is not"),
        (f"1{'0' * 400}", "10+ is not a number"),
    ):
        Path("a.jsonl").write_text(f'{{"t": "a", "n": 1}}\n{{"t": "b", "n": {value}}}\n')
        with pytest.raises(DataError, match=rf"a.jsonl:2: data.targets \(n\): {fault}"):
            opened(**TABLE, train=["a.jsonl"], targets=["n"])
    for value, fault in (
        ("null", "null is neither"),
        ("[1.5]", "1.5 is neither"),
        ('["a", ["b"]]', r"\['b'\] is neither"),
        ('["\\ud800"]', "not Unicode at character 0"),
        ('["x|3"]', r"'x\|3' stands in a list, and has label_separator '\|' within"),
    ):
        Path("b.jsonl").write_text(
            f'{{"t": "a", "s": ["x", 3, true]}}\n{{"t": "b", "s": {value}}}\n'
        )
        with pytest.raises(DataError, match=f"b.jsonl:2: data.label: {fault}"):
            opened(**TABLE, train=["b.jsonl"], label="s", label_separator="|")
        with pytest.raises(
            DataError, match=r"b.jsonl:1: data.label: a list; .* set data.label_separator"
        ):
            opened(**TABLE, train=["b.jsonl"], label="s")
    Path("c.csv").write_text("t,n\na,1\n")
    with pytest.raises(
        DataError,
        match=r"c.csv:1: data.targets \(column 1\): 'n' is not a number.* set data.header: true",
    ):
        opened(**{**TABLE, "text": [0]}, train=["c.csv"], targets=[1])
    Path("d.csv").write_text("t,s\na,\nb,\n")
    with pytest.raises(DataError, match="no training row has a label"):
        opened(**TABLE, train=["d.csv"], label="s", label_separator="|")
    for options in (
        {"label": "s", "targets": ["n"]},
        {"label_separator": "|"},
        {"targets": ["n", "n"]},
    ):
        with pytest.raises(ValidationError):
            opened(**TABLE, train=["d.csv"], **options)


def test_a_checkpoint_is_not_evaluated_on_another_kind_of_target() -> None:
    Path("a.csv").write_text("t,n,s,m\na,1,x,5\nb,2.5,y,6\nc,4e0,x,7\n")
    numbers = DatasetInfo(vocab_size=256, targets=("n",), target_mean=(0.0,), target_std=(1.0,))
    data = opened(**TABLE, train=["a.csv"], targets=["n"])
    files = {**data.assets(), **stored(numbers)}
    assert opened(
        **TABLE, train=["a.csv"], targets=["n"], known=files, only="train"
    ).info.target_std == (1.0,)
    with pytest.raises(SpecError, match=r"data.targets: 2"):
        opened(
            **{**TABLE, "text": [0], "header": True},
            train=["a.csv"],
            targets=[1, 3],
            known=files,
            only="train",
        )
    sets = {
        **data.assets(),
        **stored(DatasetInfo(vocab_size=256, classes=("1", "2.5", "4e0"), label_sets=True)),
    }
    with pytest.raises(SpecError, match=r"learnt sets of labels .* and the data has one label"):
        opened(**TABLE, train=["a.csv"], label="n", known=sets, only="train")


def test_recordings_have_numbers_in_their_names_or_in_a_file() -> None:
    write()
    names = sorted(path.name for path in Path("sounds").iterdir())
    sound: dict[str, Any] = {
        "type": "audio",
        "files": ["sounds"],
        "rate": 8000,
        "mels": 4,
        "pattern": r"_(?P<index>\d+)\.wav$",
    }
    data = opened(**sound, targets=["index"], val_fraction=0)
    rows = data.split("train").batch(np.arange(len(names)), 0, 0, False)["numbers"]
    assert sorted(rows[:, 0].tolist()) == sorted(
        float(name.rsplit("_", 1)[1][:-4]) for name in names
    )
    Path("said.tsv").write_text("".join(f"{name}\t{n}\t{-n}\n" for n, name in enumerate(names)))
    data = opened(**sound, targets=["up", "down"], transcripts=["said.tsv"], val_fraction=0)
    assert data.split("train").batch(np.array([1, 3]), 0, 0, False)["numbers"].tolist() == [
        [1.0, -1.0],
        [3.0, -3.0],
    ]
    with pytest.raises(
        DataError, match=r"said.tsv:1: 2 numbers behind the name, and data.targets names 1"
    ):
        opened(**sound, targets=["up"], transcripts=["said.tsv"])
    Path("said.tsv").write_text(
        "".join(f"{name}\t{'x' if n else 1}\n" for n, name in enumerate(names))
    )
    with pytest.raises(DataError, match=r"said.tsv:2: data.targets \(up\): 'x' is not a number"):
        opened(**sound, targets=["up"], transcripts=["said.tsv"])
    Path("said.tsv").write_text(
        "".join(f"{name}\t{'x' * (n != 2)}\n" for n, name in enumerate(names))
    )
    data = opened(**sound, label_separator="|", transcripts=["said.tsv"], val_fraction=0)
    assert data.split("train").batch(np.arange(4), 0, 0, False)["labels"].tolist() == [
        [True],
        [True],
        [False],
        [True],
    ]
    with pytest.raises(ValidationError, match="targets: the pattern has no group 'up'"):
        opened(**sound, targets=["up"])
