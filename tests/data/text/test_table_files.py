"""Tables as they come from other tools: header rows, separators, quotes, long values, nested
columns, labels of many spellings.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result

from bigmodel_cli.data import open_data
from bigmodel_cli.data.text import table_files
from bigmodel_cli.data.text.pair_files import parallel
from bigmodel_cli.data.text.pairs import PairTableOptions
from bigmodel_cli.data.text.table import TableOptions
from bigmodel_cli.data.text.table_columns import Columns
from bigmodel_cli.data.text.table_files import read_rows
from bigmodel_cli.data.text.table_survey import alike_labels, survey_table
from bigmodel_cli.errors import DataError

Cli = Callable[..., Result]


def file(name: str, content: bytes | str) -> Path:
    path = Path(name)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(name: str, columns: Columns) -> list[tuple[Any, ...]]:
    return [(*row.texts, row.label) for row in read_rows(Path(name), columns)]


ITEMS = "a film\t1\nno film\t0\n"
WORDS = "good\tpos\nfine\tpos\nbad\tneg\nworse\tneg\n"


@pytest.mark.parametrize(
    ("name", "content", "columns", "why"),
    [
        ("a.tsv", "sentence\tlabel\n" + ITEMS, Columns((0,), 1), "usual names of text columns"),
        ("a.tsv.gz", "sentence\tlabel\n" + ITEMS, Columns((0,), 1), "usual names of text columns"),
        (
            "a.csv",
            '"Sentence","Gold"\r\nx,pos\r\n',
            Columns((0,), 1),
            "usual names of text columns",
        ),
        ("a.csv", ",text,label\n0,x,1\n1,y,0\n", Columns((1,), 2), "usual names of text columns"),
        (
            "a.tsv",
            "id\tPhrase\tClass\n7\tx y\tgood\n8\tz\tbad\n",
            Columns((1,), 2),
            "usual names of text columns",
        ),
        (
            "a.tsv",
            "Phrase text\tsentiment\n" + ITEMS,
            Columns((0,), 1),
            "a usual name of a label column",
        ),
        (
            "a.tsv",
            "what was said\tis it\n" + ITEMS,
            Columns((0,), 1),
            "every other label is a number",
        ),
        ("a.tsv", "said\tjudgement\n" + WORDS, Columns((0,), 1), "no other row has this label"),
        ("a.csv", "0,1\nx,1\ny,0\n", Columns((0,), 1), "they are the numbers of the columns"),
        (
            "a.tsv",
            "a\tb\tlabel\nx\ty\t1\nz\tw\t0\n",
            Columns((0, 1), 2),
            "a usual name of a label column",
        ),
        ("a.txt", "text\none\ntwo\n", Columns((0,), None), "usual names of text columns"),
        ("a.tsv", "en\tde\nyes\tja\n", Columns((0, 1), None), "usual names of text columns"),
        ("a.csv", "English,German\nyes,ja\n", Columns((0, 1), None), "usual names of text columns"),
        (
            "a.csv",
            "source;target\nyes;ja\n",
            Columns((0, 1), None, delimiter=";"),
            "usual names of text columns",
        ),
    ],
)
def test_a_header_row_is_never_an_item(name: str, content: str, columns: Columns, why: str) -> None:
    path = file(name, gzip.compress(content.encode()) if name.endswith(".gz") else content)
    with pytest.raises(DataError) as caught:
        survey_table([path], columns)
    assert f"{name}:1: the first row (" in str(caught.value)
    assert why in str(caught.value)
    assert "set data.header: true to skip it, or data.header: false" in str(caught.value)
    lines = content.count("\n")
    for header in (True, False):
        said = Columns(columns.text, columns.label, header, delimiter=columns.delimiter)
        assert survey_table([path], said).rows == lines - header


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.tsv", ITEMS, Columns((0,), 1)),
        ("a.tsv", WORDS, Columns((0,), 1)),
        ("a.tsv", "good\tpos\nbad\tneg\n", Columns((0,), 1)),  # each label once
        (
            "a.tsv",
            "Khoury\tArabic\nSmith\tEnglish\nNahas\tArabic\nJones\tEnglish\n",
            Columns((0,), 1),
        ),
        ("a.tsv", "what is it?\tquestion\nwhy?\tquestion\nso\tanswer\n", Columns((0,), 1)),
        (
            "a.tsv",
            "It rains today\tweather\ngoal\tsport\nrun\tsport\n",
            Columns((0,), 1),
        ),  # one of a kind, but a sentence
        ("a.txt", "no\nit\nde\n", Columns((0,), None)),
        ("a.txt", "Text of the law\none\n", Columns((0,), None)),
        ("a.jsonl", '{"0": "text"}\n', Columns(("0",), None)),
    ],
)
def test_items_are_not_taken_for_a_header(name: str, content: str, columns: Columns) -> None:
    assert survey_table([file(name, content)], columns).rows == content.count("\n")


def test_each_file_may_have_a_header_and_real_tables_have_none(data_root: Path) -> None:
    paths = [file(f"{n}.tsv", f"tweet id\tlabel\n{n} x\t1\n{n} y\t0\n") for n in "ab"]
    with pytest.raises(DataError, match=r"a.tsv:1: the first row \(tweet id, label\)"):
        survey_table(paths, Columns((0,), 1))
    with pytest.raises(DataError, match=r"b.tsv:1: the first row"):
        survey_table([file("a.tsv", "x x\t1\ny\t0\n"), paths[1]], Columns((0,), 1))
    found = survey_table([data_root / "sst2" / "dev.tsv"], Columns((0,), 1))
    assert (found.rows, found.counts, found.notes) == (872, {"0": 428, "1": 444}, [])


def test_a_table_with_a_probable_header_is_refused_until_data_header_is_set(cli: Cli) -> None:
    file("a.tsv", "sentence\tlabel\n" + ITEMS * 4)
    file("spec.yaml", SPEC)
    refused = cli("pretrain", "spec.yaml", "--out", "run")
    assert refused.status == 3
    assert (
        "a.tsv:1: the first row (sentence, label) looks like the names of the columns"
        in refused.err
    )
    assert not list(Path().glob("run/checkpoints/step-*"))
    assert cli("pretrain", "spec.yaml", "--out", "other", "--set", "data.header=true").status == 0


SPEC = """\
model: {type: encoder, dim: 16, pool: mean, blocks: [{mixer: {type: attention, num_heads: 2}}]}
data: {type: table, train: [a.tsv], text: [0], label: 1, context: 16, tokenizer: {type: bytes}}
task: {type: classification}
train: {steps: 2, batch_size: 2, precision: fp32, memory_format: contiguous, compile: "off"}
"""


def test_separated_files_are_read_as_they_were_written() -> None:
    rng = random.Random(11)
    cells = ["", "a", 'q"q', '"', "a;b", "c,d", "e\tf", "two\nlines", "é\u2028x", "|", "x\r\ny"]
    for trial, (delimiter, end) in enumerate(
        [(";", "\r\n"), ("\t", "\n"), ("|", "\r\n"), (",", "\n"), (" ", "\n")]
    ):
        for quoting in (csv.QUOTE_ALL, csv.QUOTE_MINIMAL):
            table = [
                [rng.choice(cells) + "x", rng.choice(cells), rng.choice(["p", "q"])]
                for _ in range(30)
            ]
            name = f"a{trial}-{quoting}.dat"
            with open(name, "w", newline="", encoding="utf-8") as out:
                csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(
                    table
                )
            wanted = [
                (a.replace("\r\n", "\n").strip(), b.replace("\r\n", "\n").strip(), c)
                for a, b, c in table
            ]
            assert rows(name, Columns((0, 1), 2, False, delimiter=delimiter)) == wanted


def test_values_beyond_131072_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 131_072 < 300_000  # what Python's csv reads by default
    before = csv.field_size_limit(131_072)
    try:
        for name, between in (("a.csv", ","), ("a.tsv", "\t")):
            file(name, f"{'y' * 300_000}{between}1\nb{between}2\n")
            assert [len(r[0]) for r in rows(name, Columns((0,), 1))] == [300_000, 1]
        csv.field_size_limit(1 << 30)
        assert len(rows("a.csv", Columns((0,), 1))) == 2
        assert csv.field_size_limit() == 1 << 30  # what another set is not lowered
    finally:
        csv.field_size_limit(before)
    monkeypatch.setattr(table_files, "LONGEST_LINE", 0)
    csv.field_size_limit(before)
    file("open.csv", 'text,label\n"' + "z\n" * 100_000)
    with pytest.raises(
        DataError,
        match=r"open.csv:\d+: not CSV .* in the row that begins in line 2; is a quote left open",
    ):
        rows("open.csv", Columns(("text",), "label"))


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        (
            "a.csv",
            "text;label\na;1\n",
            Columns(("text",), "label"),
            'semicolons: set data.delimiter: ";"',
        ),
        (
            "a.csv",
            "good;1\n",
            Columns((0,), 1),
            "a.csv:1: 1 column, and data.label is number 1 (from 0); it has semi",
        ),
        (
            "a.csv",
            "good;1\nso, so;0\n",
            Columns((0,), None),
            "a.csv:2: 2 columns, and the first row has 1",
        ),
        ("a.tsv", "good,1\n", Columns((0,), 1), 'it has commas: set data.delimiter: ","'),
        ("a.txt", "good\t1\n", Columns((0,), 1), 'it has tabs: set data.delimiter: "\\t"'),
        (
            "a.tsv",
            'a\t1\n"b\tc"\t0\n',
            Columns((0,), 1),
            'where values are in quotes, set data.delimiter: "\\t"',
        ),
        ("a.tsv", "a\t1\n\t\n", Columns((0,), 1), "a.tsv:2: data.label: empty"),
        (
            "a.csv",
            "text,text,label\na,b,1\n",
            Columns(("text",), "label"),
            "2 columns are called 'text'; give its",
        ),
        (
            "a.jsonl",
            '{"t": "a", "y": 1.0}\n',
            Columns(("t",), "y"),
            "1.0 is a float, which is not a class; write 1",
        ),
        (
            "a.jsonl",
            '{"t": "a", "y": NaN}\n',
            Columns(("t",), "y"),
            "data.label: nan is neither a word nor",
        ),
        (
            "a.jsonl",
            '{"t": "a", "y": "\\udfff"}\n',
            Columns(("t",), "y"),
            "a.jsonl:1: data.label: not Unicode at",
        ),
        (
            "a.jsonl",
            '{"\\ud800": "a"}\n',
            Columns(("t",), None),
            "a.jsonl:1: data.text: no key 't'",
        ),
        (
            "a.jsonl",
            '{"t": "a", "t": "b"}\n',
            Columns(("t",), None),
            "a.jsonl:1: the key 't' stands twice",
        ),
        (
            "a.jsonl",
            '{"t": {"b": "a"}}\n',
            Columns(("t.c",), None),
            "no key 't.c'; it has t, t.b; did you mean t.b?",
        ),
        (
            "a.jsonl",
            "[" * 100_000 + "\n",
            Columns(("t",), None),
            "a.jsonl:1: not JSON (maximum recursion depth",
        ),
    ],
)
def test_unreadable_tables_are_refused_with_a_remedy(
    name: str, content: str, columns: Columns, message: str
) -> None:
    file(name, content)
    with pytest.raises(DataError) as caught:
        survey_table([Path(name)], columns)
    assert message in str(caught.value)
    str(caught.value).encode("utf-8", "backslashreplace")


def test_ambiguous_tables_are_reported() -> None:
    quoted = file("a.tsv", 'one "word"\t1\n"a ""quoted"" text"\t0\n"x"\t1\n')
    assert "2 of 3 rows have a text in quotes" in survey_table([quoted], Columns((0,), 1)).notes[0]
    # as GLUE has them
    assert rows("a.tsv", Columns((0,), 1))[1:] == [
        ('"a ""quoted"" text"', "0"),
        ('"x"', "1"),
    ]
    as_pandas = Columns((0,), 1, delimiter="\t")
    assert rows("a.tsv", as_pandas)[1:] == [('a "quoted" text', "0"), ("x", "1")]
    assert survey_table([quoted], as_pandas).notes == []
    one = file("a.csv", "good;1\nbad;0\n")
    assert (
        'each of 2 has 1 semicolons; if they stand between columns, set data.delimiter: ";"'
        in " ".join(survey_table([one], Columns((0,), None)).notes)
    )
    assert survey_table([file("b.txt", "a; b\nc\n")], Columns((0,), None)).notes == []
    said: list[str] = []
    file("p.tsv", '"a"\tb\n"c"\td\n')
    values = {
        "train": ["p.tsv"],
        "source": 0,
        "target": 1,
        "context": 8,
        "tokenizer": {"type": "bytes"},
    }
    open_data(PairTableOptions.model_validate(values), base=Path(), say=said.append)
    assert any("2 of 2 rows have a text in quotes" in line for line in said)


def test_two_spellings_of_a_label_are_reported() -> None:
    assert alike_labels(["1", "2", "10"]) == []
    assert alike_labels(["a", "b", "1.1", "1.2"]) == []
    assert alike_labels(["1", "01", "2"]) == ["warning: '1' and '01' are read as different labels"]
    assert alike_labels(["1.0", "1", "x"]) == [
        "warning: '1.0' and '1' are read as different labels"
    ]
    assert alike_labels(["Pos", "neg", "pos"]) == [
        "warning: 'Pos' and 'pos' are read as different labels"
    ]
    assert len(alike_labels(["caf\u00e9", "cafe\u0301"])) == 1
    file(
        "a.jsonl",
        "".join(
            json.dumps({"t": "x", "y": y}) + "\n" for y in (1, "1", " 1 ", "01", 2, True, "true")
        ),
    )
    values = {
        "train": ["a.jsonl"],
        "text": ["t"],
        "label": "y",
        "context": 8,
        "tokenizer": {"type": "bytes"},
    }
    values["val_fraction"] = 0
    said: list[str] = []
    data = open_data(TableOptions.model_validate(values), base=Path(), say=said.append)
    assert data.info.classes == ("01", "1", "2", "true")
    assert data.info.class_counts == (1, 3, 1, 2)
    assert "warning: '1' and '01' are read as different labels" in said


def test_columns_in_structs_of_parquet_and_objects_of_jsonl() -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    items = [
        {"tr": {"en": "one", "de": {"a.b": "eins"}}, "tr.y": "p"},
        {"tr": {"en": "two", "de": {"a.b": "zwei"}}, "tr.y": "q"},
    ]
    columns = Columns(("tr.en", "tr.de.a.b"), "tr.y")
    pq.write_table(pa.Table.from_pylist(items), "a.parquet")
    file("a.jsonl", "".join(json.dumps(item) + "\n" for item in items))
    wanted = [("one", "eins", "p"), ("two", "zwei", "q")]
    assert rows("a.parquet", columns) == wanted
    assert rows("a.jsonl", columns) == wanted
    both = pa.table({"a.b": ["literal"], "a": [{"b": "inner"}]})
    pq.write_table(both, "b.parquet")
    assert rows("b.parquet", Columns(("a.b",), None)) == [("literal", None)]
    assert rows("b.parquet", Columns((0,), None)) == [("literal", None)]
    null = pa.table({"a": pa.array([{"b": "x"}, None], pa.struct([("b", pa.string())]))})
    pq.write_table(null, "c.parquet")
    with pytest.raises(DataError, match=r"c.parquet: row 1: data.text: None is not text"):
        rows("c.parquet", Columns(("a.b",), None))
    with pytest.raises(
        DataError, match=r"data.text: no column 'a.c'; it has a, a.b; did you mean a.b\?"
    ):
        rows("c.parquet", Columns(("a.c",), None))
    with pytest.raises(DataError, match=r"data.text is number 3"):
        rows("c.parquet", Columns((3,), None))


def test_names_of_numbered_labels_within_a_struct() -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    features = {
        "meta": {"y": {"names": ["neg", "pos"], "_type": "ClassLabel"}},
        "t": {"dtype": "string"},
    }
    table = pa.Table.from_pylist([{"t": "a", "meta": {"y": 1}}, {"t": "b", "meta": {"y": 0}}])
    pq.write_table(
        table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        ),
        "a.parquet",
    )
    assert rows("a.parquet", Columns(("t",), "meta.y")) == [("a", "pos"), ("b", "neg")]


@pytest.mark.parametrize("name", ["a.tsv.gz", "a.csv.gz", "a.jsonl.gz", "a.txt.gz"])
@pytest.mark.parametrize("form", ["text", "table", "pairs"])
def test_a_damaged_gzip_ends_a_command_with_3(name: str, form: str, cli: Cli) -> None:
    content = {"tsv": "a\t1\n", "csv": "a,1\n", "jsonl": '{"text": "a", "y": 1}\n', "txt": "a\n"}[
        name.split(".")[1]
    ]
    column = ("[text]", "y") if "jsonl" in name else ("[0]", "null" if "txt" in name else 1)
    data = {
        "text": f"{{type: text, files: [{name}], context: 4}}",
        "table": (
            f"{{type: table, train: [{name}], text: {column[0]}, label: {column[1]}, tokenizer:"
            " {type: bytes}}"
        ),
        "pairs": f"{{type: pairs, source: [{name}], target: [{name}], tokenizer: {{type: bytes}}}}",
    }[form]
    file("spec.yaml", SPEC)
    whole = gzip.compress((content * 500).encode())
    for number, damaged in enumerate(
        (whole[: len(whole) // 2], whole[:-3], (content * 500).encode())
    ):
        file(name, damaged)
        result = cli("pretrain", "spec.yaml", "--out", f"run{number}", "--set", f"data={data}")
        assert result.status == 3, result.err
        assert f"{name}: " in result.err
        assert "Traceback" not in result.err
        assert "Aborted" not in result.err
        assert not list(Path().glob("run*/checkpoints/step-*"))


def test_parallel_files_belong_together_file_by_file() -> None:
    first, second = file("a.en", "1\n2\n\n 3 \n"), file("b.en", "4\n")
    one, two = file("a.de", "a\nb\nc\nd"), file("b.de", "e\n")
    found = list(parallel("train", {"source": (first, second), "target": (one, two)}).rows())
    assert found == [("1", "a"), ("2", "b"), ("", "c"), ("3", "d"), ("4", "e")]
    file("a.de", "a\nb\nc\n")
    file("b.de", "d\ne\n")  # as many in all, and no pair after the third is one
    with pytest.raises(
        DataError, match=r"sources \(a.en\) have 4 lines and the targets \(a.de\) 3; line n of one"
    ):
        list(parallel("train", {"source": (first, second), "target": (one, two)}).rows())
    assert parallel("train", {"source": (first,), "target": (one,)}).notes == ()
    named = parallel(
        "val",
        {"source": (file("n.en", "English\nyes\n"),), "target": (file("n.de", "German\nja\n"),)},
    )
    assert "n.en and n.de (English, German) look like the names of columns" in named.notes[0]
    together = file("ab.de", "a\nb\nc\nd\ne\n")
    assert (
        list(parallel("train", {"source": (first, second), "target": (together,)}).rows()) == found
    )
    with pytest.raises(
        DataError, match=r"c.jsonl: pairs are lines of text; .* data.type: pair_table"
    ):
        parallel("train", {"source": (file("c.jsonl", "{}\n"),), "target": (one,)})


def test_a_delimiter_is_one_character() -> None:
    values = {"train": ["a.csv"], "text": [0], "tokenizer": {"type": "bytes"}}
    for bad in ("", ";;", '"', "\n", "\\t"):
        with pytest.raises(ValueError, match="one character, and no quote or newline"):
            TableOptions.model_validate({**values, "delimiter": bad})
    assert TableOptions.model_validate({**values, "delimiter": "\t"}).columns.delimiter == "\t"
