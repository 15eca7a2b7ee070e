"""Each format: the samples that its reference library wrote, and hostile files."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigmodel_cli.data.shards.cache import ShardCache
from bigmodel_cli.data.shards.sources import find_shards
from bigmodel_cli.errors import BigmodelError, DataError

MADE = Path(__file__).parent / "made"
EXPECTED = json.loads((MADE / "expected.json").read_text())
TEXTS = [f"sample {i}: " + "äbc " * (i % 5) for i in range(7)]


def samples(path: Path, tmp_path: Path) -> list[Any]:
    folder = tmp_path / "cache"
    folder.mkdir(exist_ok=True)
    cache = ShardCache(10**8, folder)
    return [
        row
        for shard in find_shards([str(path)], Path(), "data.train")
        for row in shard.form.open(shard.path(cache), shard.place)
    ]


@pytest.mark.parametrize("name", ["mds", "mds_zstd"])
def test_mds(name: str, tmp_path: Path) -> None:
    if name == "mds_zstd":
        pytest.importorskip("pyarrow")
    rows = samples(MADE / name, tmp_path)
    assert [row["text"] for row in rows] == TEXTS
    for i, row in enumerate(rows):
        assert row["n"] == i - 3
        assert row["f"] == i / 2
        assert row["pk"] == i**20
        assert row["meta"] == {"a": [i]}
        assert row["tokens"].tolist() == EXPECTED["tokens"][i]
        assert row["tokens"].dtype == np.uint16
        assert row["dyn"].tolist() == [EXPECTED["tokens"][i]]
        assert np.array_equal(row["fix"], np.full((2, 2), i, np.float32))
        assert row["img"].hex() == EXPECTED["png"][i]


def test_litdata(tmp_path: Path) -> None:
    rows = samples(MADE / "lit", tmp_path)
    assert [row["text"] for row in rows] == TEXTS
    for i, row in enumerate(rows):
        assert (row["n"], row["deep.x"], row["deep.flag"]) == (i - 3, i / 2, i % 2 == 0)
        assert row["tokens"].tolist() == EXPECTED["tokens"][i]
        assert row["img"].hex() == EXPECTED["png"][i]


def test_webdataset(tmp_path: Path) -> None:
    rows = samples(MADE / "webdataset.tar", tmp_path)
    assert [row["txt"] for row in rows] == TEXTS
    for i, row in enumerate(rows):
        assert (row["cls"], row["json"]) == (i - 3, {"a": [i]})
        assert row["png"].hex() == EXPECTED["png"][i]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": TEXTS, "n": list(range(7)), "tokens": EXPECTED["tokens"]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    assert samples(tmp_path / "a.parquet", tmp_path) == table.to_pylist()


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_json_lines(ending: str, tmp_path: Path) -> None:
    content = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()
    path = tmp_path / f"a.{ending}"
    if ending == "jsonl.zst":
        pyarrow = pytest.importorskip("pyarrow")
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(content)
    else:
        path.write_bytes(gzip.compress(content) if ending == "jsonl.gz" else content)
    assert [row["text"] for row in samples(path, tmp_path)] == TEXTS


def write_megatron(stem: Path, rows: list[list[int]], code: int = 8, dtype: str = "<u2") -> None:
    """As Megatron's own description says: sequences, their lengths and places, documents."""
    arrays = [np.array(row, dtype) for row in rows]
    stem.with_suffix(".bin").write_bytes(b"".join(a.tobytes() for a in arrays))
    sizes = np.array([len(a) for a in arrays], np.int32)
    places = np.concatenate(([0], np.cumsum(sizes[:-1]))).astype(np.int64) * arrays[0].itemsize
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(rows), len(rows) + 1)
    documents = np.arange(len(rows) + 1, dtype=np.int64)
    stem.with_suffix(".idx").write_bytes(
        head + sizes.tobytes() + places.tobytes() + documents.tobytes()
    )


def test_megatron(tmp_path: Path) -> None:
    write_megatron(tmp_path / "a", EXPECTED["tokens"])
    for name in ("a.idx", "a.bin"):
        (row,) = samples(tmp_path / name, tmp_path)
        assert row["tokens"].tolist() == [t for row in EXPECTED["tokens"] for t in row]


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def put(path: Path, place: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(content)


def kind(value: str) -> Callable[[Any], object]:
    return lambda index: [s["column_encodings"].__setitem__(1, value) for s in index["shards"]]


INDEXES: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "outside": (
        "mds",
        lambda x: x["shards"][0]["raw_data"].update(basename="../../x"),
        "not one beside",
    ),
    "absolute": (
        "mds",
        lambda x: x["shards"][0]["raw_data"].update(basename="/etc/passwd"),
        "not one beside",
    ),
    "bytes": ("mds", lambda x: x["shards"][0]["raw_data"].update(bytes=12), "its index says"),
    "negative": ("mds", lambda x: x["shards"][0]["raw_data"].update(bytes=-1), "not a size"),
    "huge": ("mds", lambda x: x["shards"][0]["raw_data"].update(bytes=10**40), "not a size"),
    "text": ("mds", lambda x: x["shards"].__setitem__(0, "x"), "not an index"),
    "pickled": ("mds", kind("pkl"), "pickled"),
    "unknown": ("mds", kind("os.system"), "not a kind"),
    "bomb": ("mds_zstd", lambda x: x["shards"][0]["raw_data"].update(bytes=100), "unpacked"),
    "packing": ("mds_zstd", lambda x: [s.update(compression="xz") for s in x["shards"]], "packed"),
    "lit pickled": (
        "lit",
        lambda x: x["config"]["data_format"].__setitem__(0, "pickle"),
        "pickled",
    ),
    "lit outside": ("lit", lambda x: x["chunks"][0].update(filename="../x"), "not one beside"),
    "lit spec": ("lit", lambda x: x["config"].update(data_spec="[1, []]"), "does not describe"),
    "lit packed": ("lit", lambda x: x["config"].update(compression="zstd"), "is not read"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    folder, change, words = INDEXES[name]
    shutil.copytree(MADE / folder, tmp_path / "data")
    change_json(tmp_path / "data" / "index.json", change)
    with pytest.raises(DataError, match=words) as fault:
        samples(tmp_path / "data", tmp_path)
    assert fault.value.status == 3


@pytest.mark.parametrize(("folder", "file"), [("mds", "shard.00000.mds"), ("lit", "chunk-0-0.bin")])
def test_offsets_and_lengths_that_lie_are_refused(folder: str, file: str, tmp_path: Path) -> None:
    """Every byte of the head, and many of the rest, set to 255: a sample or one clear message."""
    shutil.copytree(MADE / folder, tmp_path / "data")
    path = tmp_path / "data" / file
    content, said = path.read_bytes(), list[tuple[int, bool]]()
    for place in [*range(40), *range(40, len(content), 7)]:
        put(path, place, b"\xff")
        try:
            samples(tmp_path / "data", tmp_path)
        except BigmodelError as error:
            said.append((error.status, file in str(error)))
        path.write_bytes(content)
    assert len(said) > 10
    assert set(said) == {(3, True)}
    for size in (0, 3, 8, len(content) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=file.replace(".", r"\.")):
            samples(tmp_path / "data", tmp_path)


def test_names_in_a_tar_file_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "x.txt", "../../outside.txt")
        link = tarfile.TarInfo("b.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.add(tmp_path / "x.txt", "c.pickle")
    before = sorted(p.name for p in tmp_path.iterdir())
    assert samples(tmp_path / "a.tar", tmp_path) == [{"txt": "hello"}, {}]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "cache"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tar", b"x" * 2000, "not a plain tar"),
        ("a.tar", b"", "no sample"),
        ("a.parquet", b"PAR1xxxx", "as Parquet"),
        ("a.jsonl", b'{"text": "a"}\n{"te', "a.jsonl:2: not JSON"),
        ("a.jsonl", b"[" * 100_000, "not JSON"),
        ("a.jsonl", b"[1]", "not an object"),
        ("a.jsonl", b'{"text": "\xff"}', "not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}')[:-9], "cannot be unpacked"),
        ("a.jsonl.gz", b"nothing", "cannot be unpacked"),
        ("a.idx", b"MMIDIDX\x00\x00", "not the index"),
        ("a.idx", b"x" * 100, "not the index"),
    ],
)
def test_a_damaged_file_is_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as fault:
        samples(tmp_path / name, tmp_path)
    assert fault.value.status == 3


@pytest.mark.parametrize("place", [17, 18, 26, 34, 62])
def test_a_megatron_index_that_lies_is_refused(place: int, tmp_path: Path) -> None:
    write_megatron(tmp_path / "a", EXPECTED["tokens"])
    put(tmp_path / "a.idx", place, b"\xff\xff\xff\x7f" if place != 17 else b"\x06")
    with pytest.raises(DataError, match=r"a\.idx"):
        samples(tmp_path / "a.idx", tmp_path)
