"""Each format: the samples that its reference library wrote, and hostile files."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import resource
import shutil
import struct
import tarfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigmodel_cli.data.reading import lookup
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
    rows: list[Any] = []
    for shard in find_shards([str(path)], Path(), "data.train"):
        with shard.held(cache) as file:
            rows += shard.form.open(file, shard.place)
    return rows


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


def ramp(i: int) -> Any:
    """(5, 4, 3) the pixels that the fixtures' script counts up from `i`."""
    return (np.arange(60, dtype=np.uint8) * 4 + i).reshape(5, 4, 3)


def pixels(encoded: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def test_mds_of_all_kinds(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    jpegs = [bytes.fromhex(text) for text in json.loads((MADE / "jpegs.json").read_text())]
    rows = samples(MADE / "mds_all", tmp_path)
    assert len(rows) == 3
    for i, row in enumerate(rows):
        mode = ("RGB", "L", "RGBA")[i]
        assert np.array_equal(
            pixels(row["pil"]), np.asarray(Image.fromarray(ramp(i)).convert(mode))
        )
        assert np.array_equal(pixels(row["png"]), ramp(i))
        grey = np.asarray(Image.fromarray(ramp(i)).convert("L"))
        assert len(row["pils"]) == i
        assert all(np.array_equal(pixels(image), grey) for image in row["pils"])
        assert [pixels(image).tolist() for image in row["pngs"]] == [ramp(i).tolist()]
        assert row["array"] == [jpegs[i]] * (i + 1)
        assert row["jpegs"] == [row["jpeg"]] * 2  # encoded once more by its writer
        assert abs(pixels(row["jpeg"]).astype(int) - pixels(jpegs[i])).max() < 20
        assert (row["decimal"], row["float"]) == (Decimal("1.10") * i, i / 7)
        numbers = [row[f"{kind}{bits}"] for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
        assert numbers == [i] * 8
        assert [row[f"float{bits}"] for bits in (16, 32, 64)] == [float(i)] * 3


def test_litdata_that_is_packed_or_has_one_leaf(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for i, row in enumerate(samples(MADE / "lit_zstd", tmp_path)):
        assert np.array_equal(pixels(row["pil"]), ramp(i))
        assert row["one"].dtype == np.uint32
        assert row["one"].tolist() == list(range(i + 2))
        assert np.array_equal(row["two"], np.arange(6.0).reshape(2, 3) + i)
        assert row["t"].tolist() == [[i / 2]] * 2
    for name in ("lit_tokens", "lit_one"):
        rows = samples(MADE / name, tmp_path)
        assert [next(iter(row.values())).tolist() for row in rows] == EXPECTED["tokens"]


def test_webdataset(tmp_path: Path) -> None:
    rows = samples(MADE / "webdataset.tar", tmp_path)
    assert [row["txt"] for row in rows] == TEXTS
    for i, row in enumerate(rows):
        assert (row["cls"], row["json"]) == (i - 3, {"a": [i]})
        assert row["png"].hex() == EXPECTED["png"][i]


def test_json_lines_as_other_programs_write_them(tmp_path: Path) -> None:
    lines = [b'\xef\xbb\xbf{"text": "a", "x": NaN}', b"", b'{"text": "\xc3\xa4\\r\\nb"}', b" \t "]
    (tmp_path / "a.jsonl").write_bytes(b"\r\n".join([*lines, b'\xef\xbb\xbf{"text": ""}']))
    rows = samples(tmp_path / "a.jsonl", tmp_path)
    assert [row["text"] for row in rows] == ["a", "ä\r\nb", ""]


def test_several_members_and_frames_in_one_file(tmp_path: Path) -> None:
    parts = [json.dumps({"text": text}).encode() + b"\n" for text in TEXTS]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    assert [row["text"] for row in samples(tmp_path / "a.jsonl.gz", tmp_path)] == TEXTS
    pyarrow = pytest.importorskip("pyarrow")
    frames = b"".join(bytes(pyarrow.compress(part, "zstd")) for part in parts)
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    assert [row["text"] for row in samples(tmp_path / "a.jsonl.zst", tmp_path)] == TEXTS
    for end in (3, len(frames) // 2, len(frames) - 1):
        (tmp_path / "a.jsonl.zst").write_bytes(frames[:end])
        with pytest.raises(DataError, match=r"a\.jsonl\.zst: cannot be unpacked"):
            samples(tmp_path / "a.jsonl.zst", tmp_path)


def test_parquet_with_groups_and_columns_in_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"meta": {"text": f"t{i}", "ids": list(range(i))}, "a.b": f"own {i}", "n": None}
        for i in range(5)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    assert samples(tmp_path / "a.parquet", tmp_path) == rows
    (shard,) = find_shards([str(tmp_path / "a.parquet")], Path(), "data.train")
    for field, expected in (
        ("meta.text", [f"t{i}" for i in range(5)]),
        ("meta.ids", [list(range(i)) for i in range(5)]),
        ("a.b", [f"own {i}" for i in range(5)]),
    ):
        records = shard.form.of_fields((field,)).open(tmp_path / "a.parquet", "a")
        assert [lookup(records.sample(i), field) for i in range(5)] == expected
    with pytest.raises(DataError, match=r"a: it has no column 'b\.c'; it has meta, a\.b, n"):
        shard.form.of_fields(("b.c",)).open(tmp_path / "a.parquet", "a")


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


def test_megatron_with_pointers_beyond_32_bits(tmp_path: Path) -> None:
    """Three sequences of 1.5 thousand million tokens in a file that is a hole but for its ends."""
    count, width = 1_500_000_000, 4
    with open(tmp_path / "a.bin", "wb") as file:
        file.truncate(3 * count * width)
        file.seek(2 * count * width - 8)
        file.write(np.array([5, 6, 7, 70_000], "<i4").tobytes())
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, 3, 2)
    places = struct.pack("<3i3q2q", *[count] * 3, *(count * width * i for i in range(3)), 0, 3)
    (tmp_path / "a.idx").write_bytes(head + places)
    (shard,) = find_shards([str(tmp_path / "a.idx")], Path(), "data.train")
    flat = shard.form.flat()
    assert flat is not None
    assert flat.count == 3 * count
    found = flat.take(tmp_path / "a.bin", "a", [(2 * count - 2, 2 * count + 2)])
    assert found[0].tolist() == [5, 6, 7, 70_000]


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
    "lit packed": (
        "lit_zstd",
        lambda x: x["config"].update(compression_level="batch"),
        "inside of the chunks of litdata is not read",
    ),
    "lit bomb": ("lit_zstd", lambda x: x["chunks"][0].update(chunk_bytes=9), "unpacked"),
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


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_of_all_kinds_in_a_tar_file(form: int, tmp_path: Path) -> None:
    """As Python's own reader sees them."""
    names = ["a/1.txt", f"{'d' * 90}/2.txt", "ä/3.txt", "4.x.TXT"]
    if form != tarfile.USTAR_FORMAT:
        names += [f"{'long' * 60}/5.txt", "line\nend 6.txt"]
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        folder = tarfile.TarInfo("a")
        folder.type, folder.size = tarfile.DIRTYPE, 0
        tar.addfile(folder)
        for number, name in enumerate(names):
            if form != tarfile.USTAR_FORMAT:  # a long target, which is not the name of what follows
                link = tarfile.TarInfo(f"{name}.link")
                link.type, link.linkname = tarfile.SYMTYPE, "to" * 80
                tar.addfile(link)
            entry = tarfile.TarInfo(name)
            entry.size = 600 * number
            tar.addfile(entry, io.BytesIO(bytes([97 + number]) * entry.size))
    (shard,) = find_shards([str(tmp_path / "a.tar")], Path(), "data.train")
    records: Any = shard.form.open(tmp_path / "a.tar", "a")
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = [(m.name, m.size) for m in tar if m.isreg()]
    found = [
        (f"{key}.{ending}", end - start)
        for key, files in records.found
        for ending, (start, end) in files.items()
    ]
    assert found == [(name.replace("TXT", "txt"), size) for name, size in expected]
    content = (tmp_path / "a.tar").read_bytes()
    _, start = records.found[-1][1].popitem()[1]
    for end in (start - 1, start - 700):
        (tmp_path / "cut.tar").write_bytes(content[:end])
        with pytest.raises(DataError, match=r"(?s)cut\.tar: .*it ends before this file does"):
            samples(tmp_path / "cut.tar", tmp_path)


def pax(records: dict[str, str]) -> bytes:
    """An extended header, with these records."""
    info = tarfile.TarInfo("x.txt")
    info.pax_headers = records
    content = info.tobuf(tarfile.PAX_FORMAT)
    return content[: len(content) - 512]


def test_sizes_and_holes_that_headers_say(tmp_path: Path) -> None:
    """A size in an extended header is that of what follows; a sparse file is refused."""
    header = tarfile.TarInfo("x.txt").tobuf(tarfile.USTAR_FORMAT)
    data = b"seven b".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(pax({"size": "7"}) + header + data + bytes(1024))
    assert samples(tmp_path / "a.tar", tmp_path) == [{"txt": "seven b"}]
    old = tarfile.TarInfo("x.txt")
    old.type, old.size = tarfile.GNUTYPE_SPARSE, 7
    for head in (
        pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}) + header,
        old.tobuf(tarfile.GNU_FORMAT),
    ):
        (tmp_path / "a.tar").write_bytes(head + data + bytes(1024))
        with pytest.raises(DataError, match=r"a\.tar: x\.txt: a sparse file"):
            samples(tmp_path / "a.tar", tmp_path)
    (tmp_path / "a.tar").write_bytes(pax({"size": "-7"}) + header + data)
    with pytest.raises(DataError, match="its size is -7"):
        samples(tmp_path / "a.tar", tmp_path)


def test_keys_that_stand_twice_in_a_tar_file(tmp_path: Path) -> None:
    """Side by side they are one sample, which cannot have two files of one ending; apart, two."""
    for names, words in (
        (["a.txt", "a.TXT"], "a.txt stands twice"),
        (["a.txt", "b.txt", "a.txt"], None),
    ):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size = 1
                tar.addfile(entry, io.BytesIO(b"x"))
        if words is None:
            assert len(samples(tmp_path / "a.tar", tmp_path)) == 3
        else:
            with pytest.raises(DataError, match=words):
                samples(tmp_path / "a.tar", tmp_path)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_file_in_place_that_is_not_what_its_index_says_is_refused(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read when it is first asked for, and anew when it has changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    shutil.copytree(MADE / "mds", tmp_path / "data")
    path = tmp_path / "data" / "shard.00000.mds"
    digits = hashlib.new(algorithm, path.read_bytes()).hexdigest()
    change_json(
        tmp_path / "data" / "index.json",
        lambda x: x["shards"][0]["raw_data"].update(hashes={algorithm: digits}),
    )
    rows = samples(tmp_path / "data", tmp_path)
    assert [row["text"] for row in rows] == TEXTS
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"00000\.mds: its {algorithm} is not that of its index"):
        samples(tmp_path / "data", tmp_path)


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    """A pickled column beside the one that is used."""
    shutil.copytree(MADE / "mds", tmp_path / "data")
    change_json(tmp_path / "data" / "index.json", kind("pkl"))
    for shard in find_shards([str(tmp_path / "data")], Path(), "data.train"):
        records = shard.form.of_fields(("text",)).open(Path(shard.place), shard.place)
        assert all(row["text"] in TEXTS and len(row) == 9 for row in records)


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


@pytest.mark.slow
def test_a_megatron_index_of_more_than_two_gigabytes(tmp_path: Path) -> None:
    """180 million empty sequences, and one of five tokens at the end: a hole, and few bytes."""
    count = 180_000_000
    (tmp_path / "a.bin").write_bytes(np.arange(5, dtype="<u2").tobytes())
    with open(tmp_path / "a.idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, count, 2))
        file.seek(34 + 4 * (count - 1))
        file.write(struct.pack("<i", 5))
        file.seek(34 + 12 * count)
        file.write(struct.pack("<2q", 0, count))
    assert (tmp_path / "a.idx").stat().st_size > 1 << 31
    (row,) = samples(tmp_path / "a.idx", tmp_path)
    assert row["tokens"].tolist() == [0, 1, 2, 3, 4]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1 << 20  # KiB


@pytest.mark.parametrize("place", [17, 18, 26, 34, 62, 120, 166])
def test_a_megatron_index_that_lies_is_refused(place: int, tmp_path: Path) -> None:
    write_megatron(tmp_path / "a", EXPECTED["tokens"])
    put(tmp_path / "a.idx", place, b"\xff\xff\xff\x7f" if place != 17 else b"\x06")
    with pytest.raises(DataError, match=r"a\.idx"):
        samples(tmp_path / "a.idx", tmp_path)
