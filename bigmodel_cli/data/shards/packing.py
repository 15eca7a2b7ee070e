"""Packing: texts or tokens of any source as shards of tokens, in parallel, to be gone on with.

OUT/SPLIT/ holds `index.json`, `tokenizer.json` and safetensors files of so many tokens at most.
Each job (a source's file, or a slice of tokens) writes its own shards under its own names: the
bytes are the same whatever the workers were and wherever an earlier attempt ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.data.shards.indexes import INDEX, PACKED
from bigmodel_cli.data.shards.tokens import packed_head
from bigmodel_cli.data.text.tokenizer_files import ASSET
from bigmodel_cli.disk import replace_text, sync
from bigmodel_cli.errors import BigmodelError, DataError, ResourceError
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.progress import progress

DONE = ".done"
LOCK = ".lock"
SLICE = 1 << 26  # tokens
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """Tokens that become shards of their own: (N,) arrays, one after the other; `identity` changes
    with them, and `size` is how much work they are.
    """

    identity: str
    size: int
    pieces: Callable[[], Iterator[Any]]


@dataclass(frozen=True)
class Packable:
    """What can be packed: the jobs of each split, and the tokenizer's file (b"" where none is
    known).
    """

    splits: dict[str, list[Job]]
    tokenizer: bytes
    vocab_size: int


def slices(tokens: Any, identity: str) -> list[Job]:
    """Jobs of tokens that are at hand: one for each `SLICE` of them."""
    return [
        Job(
            f"{identity} {first}",
            tokens[first : first + SLICE].nbytes,
            partial(_slice, tokens, first),
        )
        for first in range(0, len(tokens), SLICE)
    ]


def _slice(tokens: Any, first: int) -> Iterator[Any]:
    yield np.asarray(tokens[first : first + SLICE])


@dataclass(frozen=True)
class Packed:
    """What was packed."""

    path: Path
    splits: dict[str, dict[str, int]]
    """The shards, tokens and bytes of each split."""

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "splits": self.splits}


def pack(source: Packable, out: Path, workers: int, most: int) -> Packed:
    """Write the shards, of at most `most` tokens each, and their indexes.

    What an earlier attempt finished is kept. Raises `ResourceError` where the folder cannot be
    written, is another's, or is being packed.
    """
    if not source.tokenizer:
        raise DataError(
            "these are tokens, and it is not known of which tokenizer; give --tokenizer"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        strange = [n for n in os.listdir(out) if n != LOCK and n not in ("train", "val", "test")]
        if strange:
            raise ResourceError(
                f"{out}: it holds {strange[0]}, which is no shard; name a new folder"
            )
        with open(out / LOCK, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ResourceError(f"{out}: another process is packing into it") from None
            found = {
                name: _pack_split(name, jobs, source, out / name, workers, most)
                for name, jobs in source.splits.items()
            }
        (out / LOCK).unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be written: {error.strerror or error}") from None
    return Packed(out, found)


def _pack_split(
    name: str, jobs: Sequence[Job], source: Packable, folder: Path, workers: int, most: int
) -> dict[str, int]:
    folder.mkdir(exist_ok=True)
    made_by = hashlib.sha256(source.tokenizer).hexdigest()
    dtype = "<u2" if source.vocab_size <= 1 << 16 else "<u4"
    work = [
        partial(_pack_job, job, number, folder, dtype, most, made_by, source.vocab_size)
        for number, job in enumerate(jobs)
    ]
    entries: list[Any] = []
    with progress(f"packing {name}", sum(job.size for job in jobs), "B") as shown:
        for job, own in zip(jobs, _results(work, workers), strict=True):
            entries += own
            shown.add(job.size)
    if not entries:
        raise DataError(f"the {name} split has no tokens")
    (folder / ASSET).write_bytes(source.tokenizer)
    index = {"format": PACKED, "version": 1, "tokenizer": made_by, "shards": entries}
    failpoint("pack.indexed")
    replace_text(folder / INDEX, json.dumps(index, indent=1) + "\n")
    kept = {entry["file"] for entry in entries} | {ASSET, INDEX}
    for file in folder.iterdir():
        if file.name not in kept:
            file.unlink()
    sync(folder)
    return {
        "shards": len(entries),
        "tokens": sum(entry["tokens"] for entry in entries),
        "bytes": sum(entry["bytes"] for entry in entries),
    }


def _results(work: Sequence[Callable[[], Any]], workers: int) -> Iterator[Any]:
    """The results in order; by several processes where there is work for them.

    Raises the first expected fault.
    """
    if workers <= 1 or len(work) <= 1:
        yield from (call() for call in work)
        return
    context = multiprocessing.get_context("fork")
    _work[:] = work
    pool = context.Pool(min(workers, len(work)), _start, (os.getpid(),))
    try:
        for result in pool.imap(_call, range(len(work))):
            if isinstance(result, BigmodelError):
                raise result
            yield result
    finally:
        pool.terminate()
        pool.join()
        _work.clear()


_work: list[Callable[[], Any]] = []
"""What forked processes are to do: calls need not be copied to them."""


def _call(number: int) -> Any:
    try:
        return _work[number]()
    except BigmodelError as error:
        return error


def _start(parent: int) -> None:
    """What a worker does first: stopping is its parent's business, with which it dies."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number != signal.SIGTERM else signal.SIG_DFL)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _pack_job(
    job: Job, number: int, folder: Path, dtype: str, most: int, made_by: str, vocab_size: int
) -> list[dict[str, Any]]:
    """The entries of a job's shards, written now or by an earlier attempt."""
    key = hashlib.sha256(f"{job.identity} {dtype} {most} {made_by}".encode()).hexdigest()
    done = folder / f"{DONE}-{number:06d}.json"
    earlier = _earlier(done, folder, key)
    if earlier is not None:
        return earlier
    entries = []
    for part, tokens in enumerate(_cut(job.pieces(), most)):
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            raise DataError(f"a token that the vocabulary of {vocab_size:,} does not have")
        name = f"{number:06d}-{part:05d}.safetensors"
        content = packed_head(len(tokens), dtype, key) + tokens.astype(dtype).tobytes()
        draft = folder / f".{name}.draft"
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        failpoint("pack.written")
        os.rename(draft, folder / name)
        entries.append(
            {
                "file": name,
                "bytes": len(content),
                "tokens": len(tokens),
                "dtype": dtype,
                "start": len(content) - len(tokens) * np.dtype(dtype).itemsize,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
    replace_text(done, json.dumps({"key": key, "shards": entries}))
    failpoint("pack.done")
    return entries


def _earlier(done: Path, folder: Path, key: str) -> list[dict[str, Any]] | None:
    """The entries that an earlier attempt wrote, where they are of this job and still there.

    Those of a finished folder are in its index: then the heads of the shards tell.
    """
    try:
        found = json.loads(done.read_text(encoding="utf-8"))
        whole = found["key"] == key and all(
            (folder / entry["file"]).stat().st_size == entry["bytes"] for entry in found["shards"]
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return list(found["shards"]) if whole else None


def _cut(pieces: Iterator[Any], most: int) -> Iterator[Any]:
    """Arrays of `most` tokens, the last one shorter."""
    held: list[Any] = []
    count = 0
    for piece in pieces:
        start = 0
        while count + len(piece) - start >= most:
            end = start + most - count
            yield np.concatenate([*held, piece[start:end]])
            held, count, start = [], 0, end
        held.append(piece[start:])
        count += len(piece) - start
    if count:
        yield np.concatenate(held)
