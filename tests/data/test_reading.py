"""Files as text: line ends, marks, gzip and JSON are read alike by corpora, tables, pairs,
transcripts and samples.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result

from bigmodel_cli.data import open_data, reading
from bigmodel_cli.data.audio.targets import read_transcripts
from bigmodel_cli.data.reading import json_rows, lines, lookup, pieces
from bigmodel_cli.data.text.corpus import Corpus, survey
from bigmodel_cli.data.text.documents import TextOptions
from bigmodel_cli.data.text.pair_files import parallel
from bigmodel_cli.data.text.table_columns import Columns
from bigmodel_cli.data.text.table_files import read_rows
from bigmodel_cli.errors import DataError
from bigmodel_cli.evaluation.predictions import read_predictions

Cli = Callable[..., Result]
INSIDE = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
"""What str.splitlines takes for nine lines, and is one."""


def file(name: str, content: bytes | str) -> Path:
    path = Path(name)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\nb", ["a", "b"]),
        (b"a\rb\r", ["a", "b"]),
        (b"a\r\rb", ["a", "", "b"]),
        (b"a\r\r\nb\r\r\n", ["a", "b"]),  # written twice in text mode
        (b"a\nb\r", ["a", "b"]),
        (b"\n\na", ["", "", "a"]),
        (b"a\n\n", ["a", ""]),
        (b"", []),
        (b"\r", [""]),
        (b"abcde\x00b\n", ["abcde\0b"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "b"]),  # files with marks, joined
        (b"\xef\xbb\xbf\xef\xbb\xbfa\r\n", ["a"]),
        (b"x\xef\xbb\xbfa\n", ["x\ufeffa"]),
        (INSIDE.encode() + b"\r\nz", [INSIDE, "z"]),
    ],
)
def test_lines_are_split_alike_whatever_the_chunk_size(
    content: bytes, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file("a.txt", content)
    for size in (1 << 20, 1, 2, 3):
        monkeypatch.setattr(reading, "CHUNK", size)
        if size > 4 or b"\x00" not in content:  # a chunk of one NUL looks like another encoding
            assert list(lines(path)) == expected, size


def test_running_text_has_the_lines_of_pythons_own_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    for _ in range(60):
        text = "".join(
            rng.choices(["a", "é", "\r", "\n", "\r\n", "\u2028", "\x85"], k=rng.randint(0, 40))
        )
        path = file("a.txt", text)
        monkeypatch.setattr(reading, "CHUNK", rng.randint(1, 9))
        with open(path, encoding="utf-8", newline=None) as other:
            assert "".join(pieces(path)) == other.read()


def test_a_return_within_a_line_is_placed_unless_a_quoted_value_has_it() -> None:
    with pytest.raises(DataError, match=r"a.txt:2: a carriage return within a line"):
        list(lines(file("a.txt", "one\ntwo\rthree\n")))
    path = file("a.csv", 'text,label\r\n"one\rtwo\r\nthree",x\r\n')
    assert [row.texts for row in read_rows(path, Columns(("text",), "label"))] == [
        ("one\ntwo\nthree",)
    ]
    with pytest.raises(DataError, match=r"not CSV .* in the row that begins in line 2"):
        list(read_rows(file("b.csv", "text,label\none\rtwo,x\n"), Columns(("text",), "label")))


def test_no_other_character_ends_a_line_in_any_form() -> None:
    tab = "\t"
    assert [r.texts for r in read_rows(file("a.txt", f"{INSIDE}\nz\n"), Columns((0,), None))] == [
        (INSIDE,),
        ("z",),
    ]
    for name, between in (("a.tsv", tab), ("a.csv", ",")):
        found = [
            (r.texts, r.label)
            for r in read_rows(file(name, f"{INSIDE}{between}x\r\n"), Columns((0,), 1))
        ]
        assert found == [((INSIDE,), "x")], name
    row = {"text": INSIDE, "task": "classification", "scores": {}}
    rows = file("a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for _ in range(2)))
    assert [r.texts for r in read_rows(rows, Columns(("text",), None))] == [(INSIDE,)] * 2
    assert ["".join(d) for d in Corpus((rows,)).documents()] == [INSIDE] * 2
    assert [r["text"] for r in read_predictions(rows)] == [INSIDE] * 2
    one, two = file("a.en", f"{INSIDE}\nx\n"), file("a.de", "y\nz\n")
    assert list(parallel("train", {"source": (one,), "target": (two,)}).rows()) == [
        (INSIDE, "y"),
        ("x", "z"),
    ]
    file("said.tsv", f"r1\t{INSIDE}\nr2\tz\n")
    assert read_transcripts(["said.tsv"], ["r1.wav", "r2.wav"], Path())[0] == [INSIDE, "z"]


def test_windows_and_old_mac_files_leave_no_return_anywhere() -> None:
    for end in ("\r\n", "\r", "\n"):
        file("a.txt", end.join(["ab", "b", ""] * 40))
        options = {"files": ["a.txt"], "context": 4, "tokenizer": {"type": "characters"}}
        data = open_data(TextOptions.model_validate(options), base=Path(), say=lambda _: None)
        assert data.info.vocab_size == 3, repr(end)  # a, b, newline
        table = file("a.tsv", end.join(["one\tx", "two\ty", ""]))
        assert [(r.texts[0], r.label) for r in read_rows(table, Columns((0,), 1))] == [
            ("one", "x"),
            ("two", "y"),
        ]
        file("said.tsv", end.join(["r1\tgo", "r2\tstop", ""]))
        assert read_transcripts(["said.tsv"], ["r1.wav", "r2.wav"], Path())[0] == ["go", "stop"]
        side = file("a.en", end.join(["one", "", "three", ""]))
        other = file("a.de", "eins\n\ndrei\n")
        pairs = list(parallel("train", {"source": (side,), "target": (other,)}).rows())
        assert pairs == [("one", "eins"), ("", ""), ("three", "drei")]
    rows = file("a.jsonl", json.dumps({"text": "a\r\nb\rc"}))
    assert survey(Corpus((rows,))).symbols == "\nabc"
    assert next(read_rows(rows, Columns(("text",), None))).texts == ("a\nb\nc",)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "A.JSONL.GZ", "a.txt.gz", "a.Csv.Gz"])
def test_gzip_of_several_members_and_endings_in_any_case(name: str) -> None:
    wanted = ["one", "two"]
    rows = {
        "jsonl": [json.dumps({"text": t}) for t in wanted],
        "csv": ["text", *wanted],
        "txt": wanted,
    }
    form = name.lower().split(".")[1]
    path = file(name, b"".join(gzip.compress(f"{row}\n".encode()) for row in rows[form]))
    columns = Columns((0,) if form == "txt" else ("text",), None)
    assert [row.texts[0] for row in read_rows(path, columns)] == wanted
    if form != "csv":
        documents = ["".join(d) for d in Corpus((path,)).documents()]
        assert documents == (wanted if form == "jsonl" else ["one\ntwo\n"])


def test_the_ending_decides_and_not_what_stands_within_a_name() -> None:
    path = file("my.jsonl.backup.txt", '{"text": "a"}\n')
    assert ["".join(d) for d in Corpus((path,)).documents()] == ['{"text": "a"}\n']
    assert ["".join(d) for d in Corpus((file("B.JSONL", '{"text": "a"}\n'),)).documents()] == ["a"]


def test_a_damaged_gzip_is_never_read_short() -> None:
    rng = random.Random(3)
    text = "".join(f'{{"text": "{rng.random()} and more"}}\n' for _ in range(4000)).encode()
    whole = gzip.compress(text)
    damaged = [whole[:n] for n in (1, 5, 12, len(whole) // 2, len(whole) - 9, len(whole) - 1)]
    damaged += [whole[:-8] + bytes(8), whole + b"garbage", whole[: len(whole) // 2] + b"\xff" * 99]
    for index, content in enumerate(damaged):
        path = file(f"bad{index}.jsonl.gz", content)
        for read in (lines, pieces, json_rows):
            with pytest.raises(DataError, match=rf"bad{index}.jsonl.gz: "):
                list(read(path))  # type: ignore[operator]
    assert zlib.crc32(text)  # the damaged trailer above is not by chance the right one
    many = gzip.compress("".join(f"line {i}\n" for i in range(300_000)).encode(), 1)
    with pytest.raises(
        DataError, match=r"cannot be read after line \d+,\d+: Compressed file ended"
    ):
        list(lines(file("cut.txt.gz", many[:-20])))


def test_a_transcript_is_of_one_recording() -> None:
    file("said.tsv", b"1\tgo\nb/2\tstop\na/2.wav\tup\n")
    assert read_transcripts(["said.tsv"], ["a/1.wav", "b/2.wav", "a/2.wav"], Path())[0] == [
        "go",
        "stop",
        "up",
    ]
    with pytest.raises(
        DataError,
        match=r"1 is the name of two recordings, a/1\.wav and b/1\.wav; write them with folder",
    ):
        read_transcripts(["said.tsv"], ["a/1.wav", "b/1.wav"], Path())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "text\n".encode("utf-16"), "a.txt: UTF-16, not UTF-8; save it as UTF-8"),
        ("a.tsv", b"\xfe\xff" + "text\n".encode("utf-16-be"), "a.tsv: UTF-16, not UTF-8"),
        ("a.csv", "text\n".encode("utf-32"), "a.csv: UTF-32, not UTF-8"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16-le"), "a.jsonl: binary, or UTF-16, not UTF-8"),
        (
            "a.txt",
            gzip.compress(b"text", mtime=0),
            "a.txt: it is compressed with gzip; let its name end in .gz",
        ),
        (
            "a.txt",
            b"good\nb\xe4d\n",
            "a.txt: not UTF-8 at byte offset 6 (byte 0xe4) in line 2; save it as UTF-8",
        ),
    ],
)
def test_other_encodings_are_named(name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        list(lines(file(name, content)))
    assert message in str(caught.value)
    with pytest.raises(DataError) as caught:
        list(pieces(Path(name)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}",
            ":2: not JSON (maximum recursion depth",
        ),
        ('{"text": "a\\ud800"}', ":2: not Unicode at character 1 (a lone surrogate)"),
        ('{"text": "a", "text": "b"}', ":2: the key 'text' stands twice in one object"),
        ('{"text": NaN}', ":2: no text under the key 'text'"),
        ('{"text": ' + "1" * 5000 + "}", ":2: not JSON (Exceeds the limit"),
        ('{"\\ud800": "a"}', ":2: no text under the key 'text'"),
        ('["text"]', ":2: not an object"),
    ],
)
def test_rows_of_a_corpus_that_are_refused(
    line: str, message: str, decoder_spec: Path, cli: Cli
) -> None:
    path = file("rows.jsonl", '\ufeff{"text": "good", "n": NaN}\n' + line + "\n")
    result = cli("pretrain", decoder_spec, "--out", "run", "--set", "data.files=[rows.jsonl]")
    assert result.status == 3
    assert f"{path}{message}" in result.err
    assert "Traceback" not in result.err
    assert "Aborted" not in result.err
    assert not list(Path().glob("run/checkpoints/step-*"))


def test_marks_at_the_start_of_json_lines() -> None:
    path = file("a.jsonl", '\ufeff{"text": "a"}\n\ufeff{"text": "\ufeffb"}\n')
    assert [row["text"] for _, row in json_rows(path)] == ["a", "\ufeffb"]


def test_a_line_has_a_limit_and_long_ones_are_read_in_linear_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = "x" * 3_000_000
    # 3,000 pieces of one line: quadratic copying would be 4.5 GB
    monkeypatch.setattr(reading, "CHUNK", 1000)
    assert list(lines(file("a.txt", f"{long}\nend\n"))) == [long, "end"]
    monkeypatch.setattr(reading, "LONGEST_LINE", 2_000_000)
    with pytest.raises(DataError, match=r"a.txt:1: a line of more than 2,000,000 characters"):
        list(lines(Path("a.txt")))


def test_keys_of_nested_objects() -> None:
    row: dict[str, Any] = {
        "a.b": 1,
        "a": {"b": 2, "c": {"d": 3}, "e.f": 4},
        "g.h": {"i": 5},
        "l": [6],
    }
    wanted = {"a.b": 1, "a.c.d": 3, "a.e.f": 4, "g.h.i": 5, "a.c": {"d": 3}}
    assert {key: lookup(row, key) for key in wanted} == wanted
    for key in ("a.x", "b", "a.b.c", "l.0", ".", "a."):
        with pytest.raises(KeyError):
            lookup(row, key)
    path = file("a.jsonl", json.dumps({"answer": {"text": "yes"}}) + "\n")
    assert ["".join(d) for d in Corpus((path,), "answer.text").documents()] == ["yes"]
    with pytest.raises(
        DataError, match=r"no text under the key 'answer.txt'.*did you mean answer.text\?"
    ):
        list(Corpus((path,), "answer.txt").documents())
