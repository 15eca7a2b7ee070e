"""Training on shards: the same rows as running text, any division of batches, mixtures, caches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import SOURCES, open_data, with_replay
from bigmodel_cli.data.base import DataSet
from bigmodel_cli.data.shards import fetching
from bigmodel_cli.data.shards.remote import Remote
from bigmodel_cli.data.text.parts import Windows
from bigmodel_cli.errors import DataError, MissingData, ResourceError, SpecError
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.batches import micro_batches
from tests.data.shards.serving import serving

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(fetching, "FIRST_WAIT", 0.001)


def opened(**options: Any) -> DataSet:
    kept: list[str] = []
    values = {"type": "shards", "context": 8, **options}
    data = open_data(SOURCES["shards"].model_validate(values), base=Path(), say=kept.append)
    data.said = kept  # type: ignore[attr-defined]
    return data


def write_rows(path: Path, first: int, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"text": f"{i} " + " ".join(WORDS[: i % 5 + 1])} for i in range(first, first + count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tokens_of(texts: list[str]) -> list[int]:
    """Bytes, and 256 behind each text."""
    return [token for text in texts for token in (*text.encode(), 256)]


def bigmodel(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bigmodel_cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def batches(data: DataSet, count: int, **options: Any) -> Iterator[dict[str, torch.Tensor]]:
    train = TrainOptions.model_validate({"steps": 1, "batch_size": 12, **options})
    stream = micro_batches(data.split("train"), train)
    return (stream[k] for k in range(count))


def test_one_shard_has_the_rows_of_the_text_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the text's windows begin at its start, as a shard's rows do."""
    monkeypatch.setattr(Windows, "phase", lambda *_: 0)
    text = "".join(WORDS[i % 5][0] + str(i % 10) for i in range(4 * 50))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text[:399]}))
    values = {"type": "text", "files": [str(tmp_path / "a.jsonl")], "context": 8}
    options = SOURCES["text"].model_validate({**values, "val_fraction": 0})
    other = open_data(options, base=Path(), say=lambda _: None)
    own = opened(train=[str(tmp_path / "b.jsonl")])
    assert len(own.split("train")) == len(other.split("train")) == 49
    for a, b in zip(batches(own, 12), batches(other, 12), strict=True):
        assert torch.equal(a["tokens"], b["tokens"])
        assert torch.equal(a["key"], b["key"])


def test_every_row_once_an_epoch_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    for i in range(5):
        write_rows(tmp_path / f"{i}.jsonl", 10 * i, 10 + i)
    data = opened(train=[str(tmp_path)], mixed_shards=2)
    split = data.split("train")
    order = split.order(np.arange(len(split)), 0, 3)
    assert np.array_equal(np.sort(order), np.arange(len(split)))
    assert any("left out" in line for line in data.said)  # type: ignore[attr-defined]
    for number in range(5):  # the rows of a shard are its text, in order
        first = int(np.concatenate(([0], split.ends))[number])  # type: ignore[attr-defined]
        rows = split.batch(np.arange(first, int(split.ends[number])), 0, 0, False)["tokens"]  # type: ignore[attr-defined]
        flat = [int(rows[0, 0]), *rows[:, 1:].flatten().tolist()]
        texts = [json.loads(x)["text"] for x in (tmp_path / f"{number}.jsonl").open()]
        whole = tokens_of(texts)
        assert flat == whole[: len(flat)]
        assert 0 <= len(whole) - len(flat) < 8


def test_in_evaluation_each_token_is_a_target(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 0, 7)
    write_rows(tmp_path / "b.jsonl", 7, 3)
    data = opened(train=[str(tmp_path / "a.jsonl")], val=[str(tmp_path)])
    val = data.split("val")
    rows = val.batch(np.arange(len(val)), 0, 0, False)["tokens"]
    total = sum(
        len(json.loads(x)["text"].encode()) + 1
        for name in "ab"
        for x in (tmp_path / f"{name}.jsonl").open()
    )
    assert int((rows[:, 1:] >= 0).sum()) == total - 2  # all but each shard's first


def test_twelve_divisions_of_one_epoch_have_the_same_global_batches(tmp_path: Path) -> None:
    """(processes, workers, accumulation) changes twelve times; a mixture of two sources."""
    for i in range(6):
        write_rows(tmp_path / "a" / f"{i}.jsonl", 20 * i, 20)
    for i in range(2):
        write_rows(tmp_path / "b" / f"{i}.jsonl", 1000 + 20 * i, 20)
    mix = [{"files": [str(tmp_path / n)], "weight": w} for n, w in (("a", 0.75), ("b", 0.25))]
    data = opened(mix=mix, mixed_shards=2)
    whole = list(batches(data, 12))
    divisions = [
        *((1, 1, 1), (2, 1, 1), (3, 2, 1), (4, 1, 3), (1, 3, 4), (6, 1, 2)),
        *((12, 1, 1), (2, 2, 3), (3, 1, 4), (1, 2, 12), (4, 3, 1), (2, 1, 6)),
    ]
    for step, (processes, workers, accumulate) in enumerate(divisions):
        # each worker opens the data anew, as another process does
        sources = [opened(mix=mix, mixed_shards=2) for _ in range(min(workers, 2))]
        size = 12 // processes // accumulate or 1
        parts = []
        for k in range(step * 12 // size, (step + 1) * 12 // size):
            own = sources[k % len(sources)]
            train = TrainOptions.model_validate(
                {"steps": 1, "batch_size": size, "micro_batch_size": size}
            )
            parts.append(micro_batches(own.split("train"), train)[k])
        for name in ("tokens", "key"):
            assert torch.equal(torch.cat([p[name] for p in parts]), whole[step][name])


def test_a_mixture_has_its_weights_and_its_sources_their_own_epochs(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 0, 60)
    write_rows(tmp_path / "b.jsonl", 1000, 12)
    mix = [{"files": [str(tmp_path / f"{n}.jsonl")], "weight": w} for n, w in (("a", 1), ("b", 3))]
    data = opened(mix=mix)
    said = data.said  # type: ignore[attr-defined]
    assert any("75.00% of all rows" in line for line in said)
    split: Any = data.split("train")
    small = split.sources[1]
    seen = [
        samples
        for epoch in range(3)
        for number, _, _, samples in split.found(np.arange(len(split)), epoch, 5)
        if number == 1
    ]
    counts = np.bincount(np.concatenate(seen), minlength=len(small))
    assert counts.max() - counts.min() <= 1  # each row as often as the others
    assert counts.min() > 3
    assert split.redrawn()


def test_replay_keeps_together_what_lies_together(tmp_path: Path) -> None:
    """Both sources keep their own orders, and stand evenly among one another."""
    for i in range(12):
        write_rows(tmp_path / "new" / f"{i}.jsonl", 20 * i, 20)
    for i in range(7):
        write_rows(tmp_path / "old" / f"{i}.jsonl", 1000 + 10 * i, 10)
    new, old = (opened(train=[str(tmp_path / n)], mixed_shards=2) for n in ("new", "old"))
    mixed, count = with_replay(new, old, 0.25).split("train"), len(new.split("train"))
    replayed = []
    for epoch in range(2):
        order = mixed.order(np.arange(len(mixed)), epoch, 3)
        assert np.array_equal(np.sort(order), np.arange(len(mixed)))
        own = new.split("train").order(np.arange(count), epoch, 3)
        assert np.array_equal(order[order < count], own)
        for first in range(0, len(mixed) - 40, 13):
            assert abs(int((order[first : first + 40] >= count).sum()) - 10) <= 1
        rows = mixed.batch(order, epoch, 3, True)["tokens"]
        own_rows = new.split("train").batch(own, epoch, 3, True)["tokens"]
        assert torch.equal(rows[torch.from_numpy(order < count)], own_rows)
        replayed.append(rows[torch.from_numpy(order >= count)])
    stream = micro_batches(old.split("train"), TrainOptions(steps=1, batch_size=1, seed=3))
    for k, row in enumerate(torch.cat(replayed)):
        assert torch.equal(row, stream[k]["tokens"][0])


def test_packed_shards_hold_the_tokens_of_the_text(tmp_path: Path) -> None:
    for i in range(4):
        write_rows(tmp_path / "in" / f"{i}.jsonl", 30 * i, 30)
    out = tmp_path / "out"
    done = bigmodel("pack", str(tmp_path / "in"), str(out), "--shard-tokens", "1024", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(out)
    data = opened(train=[str(out / "train")])
    split: Any = data.split("train")
    flat = np.concatenate([s.take(split.cache, [(0, s.flat.count)])[0] for s in split.shards])
    files = [tmp_path / "in" / f"{i}.jsonl" for i in range(4)]
    texts = [json.loads(x)["text"] for file in files for x in file.open()]
    assert flat.tolist() == tokens_of(texts)
    assert data.info == DatasetInfo(vocab_size=257, context=8)


@pytest.mark.parametrize(
    "place", ["pack.written:kill", "pack.written:kill:4", "pack.done:kill:2", "pack.indexed:kill"]
)
def test_packing_goes_on_after_a_kill_with_the_same_bytes(place: str, tmp_path: Path) -> None:
    for i in range(4):
        write_rows(tmp_path / "in" / f"{i}.jsonl", 30 * i, 80)
    command = ["pack", str(tmp_path / "in"), "OUT", "--shard-tokens", "1024", "--workers"]

    def files(name: str) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (tmp_path / name / "train").iterdir()}

    command[2] = str(tmp_path / "whole")
    assert bigmodel(*command, "2").returncode == 0
    command[2] = str(tmp_path / "killed")
    assert bigmodel(*command, "1", BIGMODEL_FAILPOINT=place).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/train/index.json").exists()
    assert bigmodel(*command, "1").returncode == 0
    assert files("killed") == files("whole")


def packed(tmp_path: Path, count: int, tokens: int) -> Path:
    """A folder of packed shards, of `tokens` tokens each, as `bigmodel pack` writes them."""
    from bigmodel_cli.data.shards.packing import Packable, pack, slices
    from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer

    stream = np.random.default_rng(1).integers(0, 256, count * tokens).astype(np.uint16)
    source = Packable({"train": slices(stream, "x")}, ByteTokenizer().to_json(), 257)
    return pack(source, tmp_path / "served", 1, tokens).path


def test_a_corpus_of_twenty_caches_over_a_bad_network(tmp_path: Path) -> None:
    """50 ms of latency in tests/measure; here errors and cuts alone, more of them."""
    folder = packed(tmp_path, 60, 8192)
    shard = 8192 * 2 + 1024
    limit = 3 * shard
    local = opened(train=[str(folder / "train")], context=127, mixed_shards=2)
    with serving(folder, errors=0.05, cuts=0.2) as server:
        there = opened(
            train=[f"{server.url}/train"], context=127, mixed_shards=2, cache_bytes=limit
        )
        assert there.fingerprint == local.fingerprint
        cache: Any = there.split("train").cache  # type: ignore[attr-defined]
        most = 0
        for a, b in zip(batches(local, 250), batches(there, 250), strict=True):
            assert torch.equal(a["tokens"], b["tokens"])
            used = sum(p.stat().st_size for p in cache.folder.iterdir() if p.exists())
            most = max(most, used)
    assert 0 < most <= limit
    assert server.asked > 60


def test_a_file_that_is_not_what_its_index_says_is_refused(tmp_path: Path) -> None:
    folder = packed(tmp_path, 2, 4096)
    path = next((folder / "train").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with serving(folder) as server:
        data = opened(train=[f"{server.url}/train"])
        with pytest.raises(DataError, match="its sha256 is not that of its index, three times"):
            list(batches(data, 40))


@pytest.mark.parametrize("size", [1003, 3_000_017])
def test_a_file_that_changes_while_it_is_fetched_is_fetched_anew(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first half of one content and the second of another are no file, nor is it refused."""
    draws = np.random.default_rng(7)
    old, new = (draws.integers(0, 256, size, np.uint8).tobytes() for _ in range(2))
    path = tmp_path / "part"
    path.write_bytes(old)
    with serving(tmp_path, cuts=1.0) as server:

        def change(failed: int, asked: float | None = None) -> None:
            path.write_bytes(new)
            server.cuts = 0.0

        monkeypatch.setattr(fetching, "_wait", change)
        with open(tmp_path / "fetched", "w+b") as file:
            assert fetching.fetch(Remote(f"{server.url}/part", size), file) == size
        assert (tmp_path / "fetched").read_bytes() == new


def test_what_cannot_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = packed(tmp_path, 2, 4096)
    with serving(folder, errors=1.0) as server, pytest.raises(DataError, match="503; 8 tries"):
        opened(train=[f"{server.url}/train"])
    with serving(folder) as server:
        with pytest.raises(MissingData, match=r"no index\.json in it"):
            opened(train=[f"{server.url}/nothing"])
        with pytest.raises(MissingData, match="no such file"):
            opened(train=[f"{server.url}/part-{{00..03}}.jsonl"])
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(SpecError, match=r"needs fsspec.*bigmodel\[cloud\]"):
        opened(train=["s3://bucket/folder"])


def test_fsspec_reads_other_places(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    folder = packed(tmp_path, 2, 4096)
    memory = fsspec.filesystem("memory")
    for file in (folder / "train").iterdir():
        memory.pipe_file(f"/corpus/{file.name}", file.read_bytes())
    there, local = opened(train=["memory://corpus"]), opened(train=[str(folder / "train")])
    for a, b in zip(batches(local, 20), batches(there, 20), strict=True):
        assert torch.equal(a["tokens"], b["tokens"])


def test_a_cache_that_is_too_small_is_refused(tmp_path: Path) -> None:
    folder = packed(tmp_path, 20, 4096)
    with (
        serving(folder) as server,
        pytest.raises(
            ResourceError, match=r"data\.cache_bytes: .* the 9 shards that are needed at once"
        ),
    ):
        opened(train=[f"{server.url}/train"], cache_bytes=20_000)


def test_tokens_beyond_the_vocabulary_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    folder = packed(tmp_path, 1, 4096)
    for file in (folder / "train").glob("*.safetensors"):
        (tmp_path / "x.bin").write_bytes(file.read_bytes()[-8192:])
    from tests.data.shards.test_shard_formats import write_megatron

    write_megatron(tmp_path / "x", [[1, 2, 3, 300] * 30])
    with pytest.raises(SpecError, match="not known of which tokenizer"):
        opened(train=[str(tmp_path / "x.idx")])
    data = opened(train=[str(tmp_path / "x.idx")], vocab_size=256)
    with pytest.raises(DataError, match=r"the token 300, and the vocabulary has 256"):
        list(batches(data, 1))
    assert len(list(batches(opened(train=[str(tmp_path / "x.idx")], vocab_size=301), 1))) == 1
    # -1 stands for padding in a batch; in a file it is a token that there is not
    write_megatron(tmp_path / "x", [[1, 2, 3, -1] * 30], 4, "<i4")
    with pytest.raises(DataError, match=r"the token -1, and the vocabulary has 256"):
        list(batches(opened(train=[str(tmp_path / "x.idx")], vocab_size=256), 1))
