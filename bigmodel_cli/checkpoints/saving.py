"""Saving checkpoints.

Commit protocol: everything is written into a temporary folder and fsynced, the manifest last, the
folder is renamed, its parent fsynced; `last` and `best` (relative links, marks.py) move only after
that. A step that is saved again keeps its old copy until the new one has its name (replacing.py).
Failpoints, in the order in which a save reaches them: checkpoint.write, checkpoint.writing (before
each piece), checkpoint.wrote, checkpoint.synced (each once a file), checkpoint.rename,
(checkpoint.aside,) checkpoint.renamed, checkpoint.marked, checkpoint.prune (before each file that
is removed).

Where several processes save together each writes some of the files, tells the first one their sizes
and hashes, and that one commits. What fails in one of them is an error in all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints.contents import (
    FACTS,
    FORMATS,
    INDEX,
    MANIFEST,
    MODEL,
    SPEC,
    STATE,
    TRAIN,
    Contents,
    step_name,
)
from bigmodel_cli.checkpoints.copies import Copies
from bigmodel_cli.checkpoints.files import read_file
from bigmodel_cli.checkpoints.gathering import Gathering
from bigmodel_cli.checkpoints.manifest import shard_of
from bigmodel_cli.checkpoints.reading import read
from bigmodel_cli.checkpoints.replacing import replace
from bigmodel_cli.checkpoints.shards import Shard, shards, writers
from bigmodel_cli.checkpoints.writing import entry_of, write_file
from bigmodel_cli.console import quantity
from bigmodel_cli.disk import draft_of, held, remove, remove_drafts, sync
from bigmodel_cli.distributed import ALONE, told, world
from bigmodel_cli.errors import BigmodelError, ProcessError, ResourceError, status_of
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.yaml_scalars import dump_yaml

Exchange = Callable[[Any], list[Any]]
"""Gives the values of all processes that save together, by rank."""
Failure = dict[str, Any]


def save(checkpoints: Path, contents: Contents, name: str | None = None) -> Path:
    """Commit a checkpoint, named after its step by default, and return its folder.

    Drafts of one that is named otherwise, outside a run, are removed where they were left; a run's
    are by `tidy`.
    Raises `ResourceError`; then nothing of it is left.
    """
    return Save(checkpoints, contents, name).write()


class Save:
    """A checkpoint on its way to the disk: of this process alone, or of all of them `together`.

    Those make it at the same time, with the same content. Some of its files are then written by
    each process where they are `divided`, else all by the first.
    """

    def __init__(
        self,
        checkpoints: Path,
        contents: Contents,
        name: str | None = None,
        *,
        together: bool = False,
        divided: bool = False,
    ) -> None:
        self.checkpoints, self.name, self.step = checkpoints, name, contents.step
        self.among = world() if together else ALONE
        self.target = checkpoints / (name or step_name(contents.step))
        self.draft = draft_of(checkpoints / (name or f"step-{contents.step}"))
        self.files = [*shards(MODEL, contents.model), *shards(TRAIN, contents.train)]
        if together:
            self._agree(contents)
        self.described = {shard.name: shard.described() for shard in self.files}
        self.sizes = {shard.name: shard.size() for shard in self.files}
        self.writers = writers(self.files, self.among.size if divided else 1)
        self.copied = False
        self.small = self._small(contents) if self.among.first else {}
        self.trouble: Exception | None = None  # of this process

    def _agree(self, contents: Contents) -> None:
        """Take over from the first process what it decides: where, and which tensors go where."""
        plan = [(shard.name, list(shard.tensors), shard.tied) for shard in self.files]
        numbers = {n: contents.train[n].cpu().tolist() for n in sorted(contents.own)}
        draft, plan, numbers = told([str(self.draft), plan, numbers])
        own = {n: contents.train[n].cpu().new_tensor(v) for n, v in numbers.items()}
        tensors: dict[str, Mapping[str, Tensor]] = {
            MODEL: contents.model,
            TRAIN: {**contents.train, **own},
        }
        self.draft = Path(draft)
        self.files = [
            Shard(name, {n: tensors[shard_of(name)[0]][n] for n in names}, tied)
            for name, names, tied in plan
        ]

    def _small(self, contents: Contents) -> dict[str, bytes]:
        """The files without tensors, which the first process writes."""
        models = [shard for shard in self.files if shard_of(shard.name)[0] == MODEL]
        found = {
            STATE: json.dumps(contents.state, indent=1, allow_nan=False).encode(),
            FACTS: json.dumps(contents.info, indent=1, allow_nan=False).encode(),
            SPEC: dump_yaml(contents.spec).encode(),
            **contents.assets,
        }
        if len(models) > 1:
            total = sum(t.nbytes for shard in models for t in shard.tensors.values())
            places = {n: shard.name for shard in models for n in shard.tensors}
            index = {"metadata": {"total_size": total}, "weight_map": places}
            found[INDEX] = json.dumps(index, indent=1).encode()
        return found

    @property
    def own(self) -> list[Shard]:
        """The files of tensors that this process writes."""
        pairs = zip(self.files, self.writers, strict=True)
        return [shard for shard, writer in pairs if writer == self.among.rank]

    def copy(self, copies: Copies, unchanging: frozenset[str] = frozenset()) -> None:
        """Copy what this process is to write into its memory, so that the state may change then;
        weights of `unchanging` names do not, and need not be.

        Raises `ResourceError` where there is no memory for it.
        """
        gathering = Gathering(self.files, self.writers)
        whole = [changed(shard, comes=gathering.take) for shard in self.own]
        mine = iter(copies.take(whole, unchanging))
        gathering.finish()
        self.files = [
            next(mine) if writer == self.among.rank else shard
            for shard, writer in zip(self.files, self.writers, strict=True)
        ]
        self.copied = True

    def write(self, exchange: Exchange = lambda value: [value]) -> Path:
        """Commit it. Raises `ResourceError`; then nothing of it is left."""
        if self._is_there(exchange):  # the same step again, after a resume
            return self.target
        try:
            with contextlib.ExitStack() as stack:
                self._all_well(exchange(self._tried(lambda: self._begin(stack))))
                entries: dict[str, Any] = {}
                failure = self._tried(lambda: entries.update(self._write_own()))
                found = exchange({"failure": failure, "entries": entries})
                self._all_well([one["failure"] for one in found])
                every = {name: e for one in found for name, e in one["entries"].items()}
                self._all_well(exchange(self._tried(lambda: self._commit(every))))
        except BaseException:  # also where the user will not wait
            if self.among.first:
                remove(self.draft, ignore_errors=True)
            raise
        return self.target

    def _begin(self, stack: contextlib.ExitStack) -> None:
        if self.among.first:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if self.name is not None:
                remove_drafts(self.target)
            remove(self.draft, ignore_errors=True)
            self.draft.mkdir()
            stack.enter_context(held(self.draft))

    def _write_own(self) -> dict[str, Any]:
        """Write this process's files; their manifest entries."""
        entries = self._passed(lambda shard: write_file(self.draft / shard.name, shard))
        entries |= {name: write_file(self.draft / name, [x]) for name, x in self.small.items()}
        if entries and not self.among.first:
            sync(self.draft)
        return entries

    def _passed(self, taken: Callable[[Shard], Any]) -> dict[str, Any]:
        """What comes of each of this process's files, for which all of them give their parts."""
        if self.copied:
            return {shard.name: taken(shard) for shard in self.own}
        gathering = Gathering(self.files, self.writers)
        try:
            found = {s.name: taken(changed(s, comes=gathering.take)) for s in self.own}
        except OSError:
            gathering.finish()
            raise
        gathering.finish()
        return found

    def _commit(self, entries: dict[str, Any]) -> None:
        if self.among.first:
            write_file(self.draft / MANIFEST, [self._manifest(entries)])
            sync(self.draft)
            failpoint("checkpoint.rename")
            replace(self.draft, self.target, sync)
            sync(self.checkpoints)

    def _manifest(self, entries: dict[str, Any]) -> bytes:
        files = {name: entries[name] for name in (*self.sizes, *self.small)}
        head = {"format": max(FORMATS), "step": self.step}
        manifest = {**head, "files": files, "tensors": self.described}
        return json.dumps(manifest, indent=1).encode()

    def _tried(self, work: Callable[[], object]) -> Failure | None:
        """Do this process's part; how that failed, for all to know."""
        try:
            work()
        except OSError as error:
            return {"number": error.errno or 0}
        except Exception as error:
            if self.among.alone:
                raise
            self.trouble = error
            return {"message": f"{type(error).__name__}: {error}", "status": status_of(error)}
        return None

    def _all_well(self, failures: list[Failure | None]) -> None:
        """Raise what failed in this process, or else in any."""
        if self.trouble is not None:
            raise self.trouble
        for rank, failure in enumerate(failures):
            if failure is not None and "number" in failure:
                raise self._not_saved(failure["number"])
            if failure is not None:
                where = f"process {rank} of {self.among.size}"
                raise ProcessError(f"{where}: {failure['message']}", failure["status"])

    def _not_saved(self, number: int) -> ResourceError:
        """The error of a disk, when what was written of it is gone."""
        if self.among.first:
            remove(self.draft, ignore_errors=True)
        what = f"{self.checkpoints}: a checkpoint was not saved: {os.strerror(number)}"
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return ResourceError(f"{what}; the ones before it are untouched")
        sizes = {**self.sizes, **{name: len(content) for name, content in self.small.items()}}
        unhashed = {name: {"size": size, "sha256": "0" * 64} for name, size in sizes.items()}
        needed = sum(sizes.values()) + len(self._manifest(unhashed))
        free = shutil.disk_usage(self.checkpoints).free
        return ResourceError(
            f"{what}; it needs {needed:,} bytes ({quantity(needed, 'B')}), and {free:,} are free."
            " Make room, then go on with --resume"
        )

    def _is_there(self, exchange: Exchange) -> bool:
        """Whether this very checkpoint is there already, byte for byte."""
        if not any(exchange(self.among.first and self._is_like_it())):
            return False
        own = self._passed(lambda shard: entry_of(shard, lambda _: None))
        every = {name: entry for one in exchange(own) for name, entry in one.items()}
        return any(exchange(self.among.first and self._is_it(every)))

    def _is_like_it(self) -> bool:
        """Whether there are files of the same names, and the small ones are the same."""
        names = {*self.sizes, *self.small, MANIFEST}
        with contextlib.suppress(OSError, BigmodelError):
            return {p.name for p in self.target.iterdir()} == names and all(
                read_file(self.target / name, len(content), len(content)) == content
                for name, content in self.small.items()
            )
        return False

    def _is_it(self, entries: dict[str, Any]) -> bool:
        """Whether the files are those of these entries."""
        with contextlib.suppress(OSError, BigmodelError):
            small = {name: entry_of([x], lambda _: None) for name, x in self.small.items()}
            manifest = self._manifest({**entries, **small})
            if read_file(self.target / MANIFEST, len(manifest), len(manifest)) == manifest:
                read(self.target, train_state=True).verify()
                return True
        return False
