"""The spec that a resumed run goes on with: what is given, else what the run recorded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints import Checkpoint
from bigmodel_cli.console import listed, say
from bigmodel_cli.differences import leaves, written
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.overrides import Change
from bigmodel_cli.rundir import SPEC, RunDirectory
from bigmodel_cli.spec import Spec, from_dict

MAY_CHANGE = {
    "train.steps",
    "train.epochs",
    "train.minutes",
    "train.checkpointing",
    "train.log_every",
    "train.validate_every",
    "train.validate_epochs",
    "train.validation_batch",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_best",
    "train.average_last",
    "train.patience",
    "train.rewind.most",
    "train.trackers",
    "train.parallel.replicate",
    "train.parallel.shard",
    "train.parallel.reshard",
    "train.parallel.offload",
    "data.workers",
}
"""Options that a resumed run may change: they do not change what a step computes, except that a
longer run stretches its schedule.
"""
EXCLUSIVE = (
    *(("steps", "epochs"), ("steps", "minutes"), ("epochs", "minutes")),
    *(("validate_every", "validate_epochs"), ("average_last", "patience")),
)
"""Options of `train` that exclude one another: a given one replaces the recorded one."""
MOST_SHOWN = 10


@dataclass(frozen=True)
class Previous:
    """A run to resume: its resolved spec, and its newest good checkpoint, if any."""

    spec: Spec
    path: Path | None
    contents: Checkpoint | None


def resumed_spec(
    directory: RunDirectory,
    previous: Previous | None,
    given: Spec | None,
    overrides: Sequence[Change],
    command: str,
) -> Spec:
    """The spec to resume with: the given options, and the recorded ones for all others.

    Without a spec it is the recorded one with the overrides.

    Raises `SpecError` where that would train differently, `CheckpointError` where no spec is known.
    """
    if previous is None:
        if given is None:
            raise CheckpointError(
                f"--resume: {directory.path} has no checkpoint, and no {SPEC} that can be read;"
                f" give the spec: bigmodel {command} SPEC --resume --out"
                f" {shlex.quote(str(directory.path))}"
            )
        return given
    old = previous.spec
    if given is None:
        new = from_dict(old.to_dict(), overrides, str(directory.path / SPEC))
    else:
        new = merged(given, old)
        _say_recorded(given, new)
    before, after = _options(old), _options(new)
    changed = [
        p
        for p in sorted(before.keys() | after.keys())
        if before.get(p) != after.get(p) and not _may_change(p)
    ]
    moved = [
        p for p in changed if any(f"{p}.".startswith(f"data.{name}.") for name in new.data.paths)
    ]
    changed = [p for p in changed if p not in moved]
    if changed:
        raise SpecError(_refusal(directory.path, changed, before, after, command))
    if moved:  # the data's fingerprint, a hash of the content, decides
        where = f"{_side(before, moved[0])} -> {_side(after, moved[0])}"
        say(f"{moved[0]}: {where}: data in another place; its content must be the same")
    return new


def _may_change(path: str) -> bool:
    return path in MAY_CHANGE or any(path.startswith(f"{free}.") for free in MAY_CHANGE)


def merged(new: Spec, old: Spec) -> Spec:
    """The options that `new` names, and for all others those of `old`, whatever the defaults are
    now.
    """
    named = new.model_dump(mode="json", exclude_unset=True)
    train = named.setdefault("train", {})
    recorded = old.to_dict()
    for name in ("precision", "memory_format", "compile"):
        if train.get(name) == "auto":  # as it was resolved
            del train[name]
    if new.adapter is not None and new.adapter.folder() is not None:
        known = recorded.get("adapter") or {}
        same = known.get("path") == new.adapter.folder() and known.get("base") == new.adapter.base
        if same:  # as it was read from there
            del named["adapter"]
    model = named.get("model", {})
    # as long as the checkpoint that the run started from (`with_length`)
    if model.get("max_len", 0) is None:
        del model["max_len"]
    for pair in EXCLUSIVE:
        for name, other in (pair, pair[::-1]):
            if train.get(name) is not None:
                recorded["train"][other] = None
    return from_dict(_overlaid(recorded, named), name="the spec with what the run recorded")


def _overlaid(old: Any, new: Any) -> Any:
    """Plain values of `old` overlaid with `new`; where `type` differs, only those of `new`."""
    if (
        isinstance(old, dict)
        and isinstance(new, dict)
        and new.get("type", old.get("type")) == old.get("type")
    ):
        return {**old, **{key: _overlaid(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [_overlaid(*pair) for pair in zip(old, new, strict=True)]
    return new


def _say_recorded(given: Spec, used: Spec) -> None:
    """Report the recorded options that differ from today's defaults, but for measured ones."""
    before, after = _options(given), _options(used)
    found = [
        f"{p}: {v}" for p, v in after.items() if before.get(p) != v and before.get(p) != "auto"
    ]
    if found:
        say(f"left out of the spec, and so as the run recorded it: {listed(found, MOST_SHOWN)}")


def _refusal(
    run: Path,
    changed: Sequence[str],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    command: str,
) -> str:
    told = _told(changed, before)
    lines = "".join(f"\n  {p}: {_side(before, p)} -> {_side(after, p)}" for p in told[:MOST_SHOWN])
    lines += f"\n  and {len(told) - MOST_SHOWN} more" if len(told) > MOST_SHOWN else ""
    place = shlex.quote(str(run))
    ways = [f"`bigmodel {command}` with another --out, from the first weights"]
    if all(p.startswith(("train.", "init.freeze", "init.train")) for p in changed):
        sets = " ".join(
            f"--set {shlex.quote(f'{p}={written(after.get(p))}')}" for p in changed[:MOST_SHOWN]
        )
        ways.insert(0, f"`bigmodel finetune --from {place} {sets}`, from its weights")
    elif not any(p.startswith("model.") for p in changed):
        ways.insert(0, f"`bigmodel finetune --from {place} SPEC`, from its weights")
    return (
        "--resume: the spec is not the one that this run began with; leave the change out, or"
        f" begin a new run with it ({', or '.join(ways)}):{lines}"
    )


def _told(changed: Sequence[str], before: Mapping[str, Any]) -> list[str]:
    """The changed options to report: where a `type` differs,
    not the options beside and below it.
    """
    others = [p.removesuffix("type") for p in changed if p.endswith(".type") and p in before]
    return [p for p in changed if not any(p.startswith(o) and p != f"{o}type" for o in others)]


def _side(values: Mapping[str, Any], path: str) -> str:
    return written(values[path]) if path in values else "(none)"


def _options(spec: Spec) -> dict[str, Any]:
    """Every option by its path, except empty lists and mappings."""
    return {path: value for path, value in leaves(spec.to_dict()) if value not in ([], {})}
