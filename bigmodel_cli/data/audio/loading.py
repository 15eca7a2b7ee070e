"""Opening recordings: found, decoded, divided, with their targets, and measured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.audio.augment import SoundAugmentation
from bigmodel_cli.data.audio.mel import check_filters, frames_of
from bigmodel_cli.data.audio.recordings import Recordings, open_recordings
from bigmodel_cli.data.audio.sound import seconds_apart
from bigmodel_cli.data.audio.split import Bank, SoundSplit, longest_frames, longest_samples
from bigmodel_cli.data.audio.targets import Targets, read_targets, texts_of
from bigmodel_cli.data.audio.texts import read_spoken
from bigmodel_cli.data.base import Assets, DataSet, Say, info_of
from bigmodel_cli.data.cache import key_of
from bigmodel_cli.data.holdout import needed, parts_of
from bigmodel_cli.data.normalisation import normalisation, sampled
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.text.tokenizer_files import ASSET
from bigmodel_cli.errors import DataError

RESIDENT_BYTES = 2 << 30
SAMPLED = 1000  # recordings from which the mean and deviation are computed


def open_audio(
    options: Any, base: Path, say: Say, assets: Assets | None, only: str | None
) -> DataSet:
    """The recordings as splits; a checkpoint's normalisation is used when `assets` has one."""
    before = info_of(assets)
    known = before if only is not None else None
    sound = known.sound if known is not None and known.sound is not None else options.sound()
    check_filters(sound)
    fraction = options.fraction(base)
    wanted = needed(("train", *options.split), only)
    taken = None
    if only is not None:
        rule = [list(wanted), options.split]
        taken = (lambda groups: options.split_of(groups) in wanted, rule)
    skip_bad = options.on_bad == "skip"
    recordings = open_recordings(
        options.files, options.pattern, sound.rate, skip_bad, base, say, taken
    )
    rows = _rows(options, recordings, wanted, fraction, None if only else say)
    texts, places = texts_of(options, recordings, base)
    opened = {n: chosen for n, chosen in rows.items() if only in (None, n)}
    kept: dict[str, bytes] = {}
    if options.tokenizer is None:
        targets = read_targets(options, texts, places, opened, before, known, say)
    else:
        facts, spoken, tokenizer = read_spoken(
            options, texts, places, opened, base, known, say, assets
        )
        targets, kept = Targets(facts, None, spoken=spoken), {ASSET: tokenizer.to_json()}
    info = replace(targets.info, sound=sound)
    if sound.length is not None:
        info = replace(info, image_shape=(1, sound.mels, frames_of(sound.length, sound.hop)))
    bank, change = Bank(recordings), SoundAugmentation(options.augment)
    resident = recordings.samples.nbytes <= RESIDENT_BYTES
    splits = {
        name: SoundSplit(
            bank, chosen, targets, options.join, info, change, resident, recordings.names
        )
        for name, chosen in opened.items()
    }
    if known is None:
        info = _measured(options, info, splits, assets)
    elif known.context is not None:
        for split in splits.values():
            _check_lengths(split, recordings, known.context)
    splits = {name: replace(split, info=info) for name, split in splits.items()}
    items = {name: partial(recordings.items.__getitem__, chosen) for name, chosen in rows.items()}
    key = _fingerprint(options, recordings, rows, texts, kept.get(ASSET, b""))
    return DataSet(info, key, dict(splits), kept, items, "recordings", fraction > 0)


def _measured(
    options: Any, info: DatasetInfo, splits: dict[str, SoundSplit], assets: Assets | None
) -> DatasetInfo:
    """The DatasetInfo with what is measured on the recordings: normalisation, and the longest
    row.
    """
    sound, before = options.sound(), info_of(assets)
    alike = before if before is not None and before.sound == sound else None
    mean, std = normalisation(options.normalize == "auto", alike, lambda: _moments(splits["train"]))
    info = replace(info, mean=mean, std=std)
    if sound.length is None:
        longest = max(map(longest_frames, splits.values()))
        if sound.padded is not None:
            longest = _padded_frames(splits, sound.padded, sound.rate)
        info = replace(info, frame_width=sound.mels, context=longest)
    return info


def _padded_frames(splits: dict[str, SoundSplit], padded: int, rate: int) -> int:
    """The frames of each row. Raises `DataError` naming a recording that is longer."""
    for split in splits.values():
        longest = longest_samples(split)
        if longest > padded:
            row = int(split.rows[split.bank.lengths[split.rows].argmax()])
            length, most = seconds_apart(longest, padded, rate)
            raise DataError(
                f"{split.names[row]}: {split.bank.lengths[row] / rate:.1f} s long, so that rows"
                f" have up to {length} s in training, and data.pad_to is {most}; cut it into"
                " pieces, or leave it out"
            )
    return frames_of(padded, next(iter(splits.values())).sound.hop)


def _check_lengths(split: SoundSplit, recordings: Recordings, context: int) -> None:
    """Raise `DataError` naming the first sample that is longer than a checkpoint's longest row, as
    `read_sound` does.
    """
    chosen, pauses = split.made_of(np.arange(len(split)), 0, 0)
    rate, longest = split.sound.rate, context * split.sound.hop
    for own, before in zip(chosen, pauses, strict=True):
        length = int(recordings.lengths[own].sum() + before.sum())
        if length > longest:
            names = " + ".join(recordings.names[i] for i in own.tolist())
            said, most = seconds_apart(length, longest, rate)
            raise DataError(
                f"{names}: {said} s long, and the model reads up to {most} s; cut it into pieces,"
                " or leave it out"
            )


def _rows(
    options: Any,
    recordings: Recordings,
    wanted: Sequence[str],
    fraction: float,
    say: Say | None,
) -> dict[str, Ints]:
    """The row numbers of each split's recordings.

    Raises `DataError` for an empty split.
    """
    count = len(recordings.names)
    inside = np.array([options.split_of(groups) for groups in recordings.groups])
    rows: dict[str, Ints] = {}
    for name, rule in sorted(options.split.items()):
        rows[name] = np.flatnonzero(inside == name)
        if not len(rows[name]) and name in wanted:
            groups = {k: sorted({g[k] for g in recordings.groups})[:8] for k in rule}
            groups_text = "; ".join(f"{k}: {', '.join(values)}" for k, values in groups.items())
            raise DataError(
                f"data.split.{name}: no recording of {count:,} is in it; the names have"
                f" {groups_text}"
            )
    train = np.flatnonzero(inside == "train")
    if "train" not in wanted:
        return {n: chosen for n, chosen in rows.items() if n in wanted}
    if not len(train):
        raise DataError(f"data.split: nothing of {count:,} recordings is left to train on")
    parts = {
        n: train[chosen] for n, chosen in parts_of(len(train), fraction, "recordings", say).items()
    }
    return {**parts, **{n: chosen for n, chosen in rows.items() if n in wanted}}


def _moments(train: SoundSplit) -> list[tuple[float, float]]:
    """(mean, variance) of the training split's frames, without padding."""
    chosen = sampled(len(train), SAMPLED)
    total, square, number = 0.0, 0.0, 0
    for first in range(0, len(chosen), 50):
        batch = train.batch(chosen[first : first + 50], 0, 0, False)
        x = train.own(batch)
        number += x.numel()
        total += float(x.double().sum())
        square += float(x.double().square().sum())
    mean = total / number
    return [(mean, max(0.0, square / number - mean**2))]


def _fingerprint(
    options: Any,
    recordings: Recordings,
    rows: dict[str, Ints],
    texts: list[str],
    tokenizer: bytes,
) -> str:
    join = options.join.model_dump() if options.join is not None else None
    sets = {name: chosen.tolist() for name, chosen in rows.items()}
    values = [recordings.digest, options.sound().identity(), options.units, join, sets, texts]
    if options.tokenizer is not None:
        values += [hashlib.sha256(tokenizer).hexdigest(), options.context, options.prompt]
    return key_of(values)
