"""A survey of a source's image headers: all of them, not the first, decide channels, size and
depth.

A survey is cached by the digest of the source's content, so that it is made once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bigmodel_cli.console import counted
from bigmodel_cli.data.base import Say
from bigmodel_cli.data.cache import cached_json
from bigmodel_cli.data.image.files import open_image, read_header
from bigmodel_cli.data.image.pixels import decode
from bigmodel_cli.data.image.sources import RawImages, RawSplit
from bigmodel_cli.data.order import Ints
from bigmodel_cli.errors import DataError
from bigmodel_cli.progress import Progress, progress

FORMAT = 1  # of the survey in the cache
MANY = 5000
"""Number of images whose headers take a while to read."""
SAMPLED = 100
"""Images of more than 8 bits, evenly among all, that are decoded to find a set whose white is not
what the files' type says.
"""
FEW_BITS = 14
"""A brightest value of at most this many of 16 bits is reported."""
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Headers:
    """Of each image its `sizes` (N, 2), height and width, and its kind (N,), an index into `names`
    and `grey`.
    """

    sizes: Ints
    kinds: Ints
    names: tuple[str, ...]
    grey: tuple[bool, ...]

    def part(self, chosen: Any) -> Headers:
        """Only those images."""
        return replace(self, sizes=self.sizes[chosen], kinds=self.kinds[chosen])

    def greys(self) -> list[bool]:
        """Whether it is grey, for each kind that there is."""
        return [self.grey[kind] for kind in np.unique(self.kinds).tolist()]

    def counts(self) -> list[tuple[str, int]]:
        """How many images there are of each kind, the most frequent first."""
        numbers = Counter(self.names[kind] for kind in self.kinds.tolist())
        return sorted(numbers.items(), key=lambda pair: (-pair[1], pair[0]))

    def most_frequent(self) -> tuple[int, int]:
        """The size of most images; in a tie the largest, then the highest."""
        sizes, counts = np.unique(self.sizes, axis=0, return_counts=True)
        best = max(range(len(sizes)), key=lambda i: (counts[i], sizes[i].prod(), sizes[i][0]))
        return int(sizes[best][0]), int(sizes[best][1])


@dataclass
class Survey:
    """One split: its headers as plain lists, the images that cannot be read (index, why), and how
    bright those of 16 bits are.

    `peaks` gives for "grey" and "colour" (images of 16 bits, how many were decoded, the brightest
    value in those).
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    names: list[tuple[str, bool]] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    peaks: dict[str, tuple[int, int, int]] = field(default_factory=dict)


def survey_images(raw: RawImages, skip_bad: bool, white: float | None, say: Say) -> RawImages:
    """The source with the headers of its encoded images, without unreadable images where they are
    to be skipped.

    Raises `DataError` for the first unreadable image where they are not, and for a split that has
    no other.
    """
    return replace(
        raw,
        splits={
            name: _surveyed(name, split, skip_bad, white, say) if split.encoded else split
            for name, split in raw.splits.items()
        },
    )


def _surveyed(
    name: str, split: RawSplit, skip_bad: bool, white: float | None, say: Say
) -> RawSplit:
    description = [FORMAT, split.digest, name, len(split.encoded), skip_bad, white]

    def read() -> dict[str, Any]:
        if len(split.encoded) > MANY:
            say(f"reading the headers of {len(split.encoded):,} images of the {name} split (once)")
        with progress(
            f"reading the headers of the {name} split", len(split.encoded), "images"
        ) as shown:
            return vars(_survey(split, skip_bad, white, shown))

    found = Survey(**cached_json("surveys", ["images", *description], read))
    _say_depth(name, found, white, say)
    if found.bad:
        index, reason = found.bad[0]
        first = f"{split.names[index]}: {reason}"
        if len(found.bad) == len(split.encoded):
            count = counted(len(found.bad), "image")
            raise DataError(f"none of {count} can be decoded, the first: {first}")
        say(
            f"warning: skipped {counted(len(found.bad), 'image')} that cannot be decoded, the"
            f" first: {first}"
        )
        bad = {index for index, _ in found.bad}
        split = split.part([i for i in range(len(split.encoded)) if i not in bad])
    sizes, kinds = (
        np.asarray(found.sizes, np.int64).reshape(-1, 2),
        np.asarray(found.kinds, np.int64),
    )
    names, grey = zip(*found.names, strict=True)
    return replace(split, headers=Headers(sizes, kinds, names, grey))


def _survey(split: RawSplit, skip_bad: bool, white: float | None, shown: Progress) -> Survey:
    found = Survey()
    deep: dict[str, list[int]] = {"grey": [], "colour": []}
    numbers: dict[tuple[str, bool], int] = {}
    for index, (source, name) in enumerate(zip(split.encoded, split.names, strict=True)):
        shown.to(index)
        try:
            if skip_bad:
                decode(source, name, 1, None, white)
            with open_image(source, name) as opened:
                header = read_header(opened, name)
        except DataError as error:
            if not skip_bad:
                raise
            found.bad.append((index, str(error).removeprefix(f"{name}: ")))
            continue
        found.sizes.append(header.size)
        found.kinds.append(numbers.setdefault((header.name, header.grey), len(numbers)))
        if header.depth != "8" or header.name.startswith("16-bit"):
            deep["grey" if header.grey else "colour"].append(index)
    found.names = list(numbers)
    for kind, indices in deep.items():
        step = max(1, len(indices) // SAMPLED)
        chosen = indices[::step]
        peaks = [_brightest(split.encoded[i], split.names[i], white) for i in chosen]
        if chosen:
            found.peaks[kind] = (len(indices), len(chosen), max(peaks))
    return found


def _brightest(source: Any, name: str, white: float | None) -> int:
    """The brightest value of 16 bits in an image, of which the upper eight are known in colour;
    65,535 for other images.

    Raises `DataError` for pixels beyond black and white.
    """
    decode(source, name, 1, None, white)
    with open_image(source, name) as opened:
        header = read_header(opened, name)
        if header.depth in ("float", "integer"):
            return 65_535
        if header.depth == "16":
            return int(np.asarray(opened).max())
        return int(np.asarray(opened.convert("RGB")).max()) * 256 + 255


def _say_depth(name: str, found: Survey, white: float | None, say: Say) -> None:
    """Warn where images of 16 bits hold so few that white at 65,535 leaves them nearly black."""
    for kind, (count, decoded, peak) in found.peaks.items():
        bits = peak.bit_length()
        if white is not None or not 0 < bits <= FEW_BITS:
            continue
        remedy = (
            f"set data.white_level: {2**bits - 1}" if kind == "grey" else "convert them to 8 bits"
        )
        say(
            f"warning: {counted(count, f'{kind} image')} of 16 bits in the {name} split:"
            f" the brightest value in {decoded:,} of them is {peak:,}, as if they held {bits} bits,"
            f" and white is 65,535, so that they are nearly black; {remedy} if it is not"
        )


def choose_shape(
    splits: dict[str, RawSplit],
    size: int | None,
    channels: int | None,
    white: float | None,
    known: Shape | None,
    say: Say,
) -> Shape:
    """(channels, height, width) that all images are brought to; what that changes, and which value
    is white, is reported.

    It is `known` (a checkpoint's) where given. Else `channels` and `size` decide, and where they
    are None the training split does: 3 channels if any image has colour, and the size of most
    images.
    """
    lead = splits.get("train") or next(iter(splits.values()))
    if lead.headers is None:
        own: Shape = lead.pixels.shape[1:]
    else:
        own = (1 if all(lead.headers.greys()) else 3, *lead.headers.most_frequent())
    shape = known or (channels or own[0], size or own[1], size or own[2])
    why = "as the checkpoint's are" if known else "data.size" if size else ""
    if white is not None and known is None and not any(map(_is_deep, splits.values())):
        say(f"data.white_level: {white:g} changes nothing: no image has grey of more than 8 bits")
    for name, split in splits.items():
        if split.headers is not None:
            _say_sizes(name, split.headers, shape, why, say)
            _say_kinds(name, split.headers, shape, white, known is None and channels is None, say)
    return shape


def _is_deep(split: RawSplit) -> bool:
    """Whether it has grey images of more than 8 bits, whose white the file's type or
    `data.white_level` says.
    """
    kinds = split.headers.counts() if split.headers is not None else []
    return any(
        part in kind for kind, _ in kinds for part in ("16-bit grey", "floating-point", "integer")
    )


def _say_sizes(name: str, headers: Headers, shape: Shape, why: str, say: Say) -> None:
    other = (headers.sizes != shape[1:]).any(1)
    if not other.any():
        return
    stretched = int((headers.sizes[:, 0] * shape[2] != headers.sizes[:, 1] * shape[1]).sum())
    sizes, counts = np.unique(headers.sizes, axis=0, return_counts=True)
    order = sorted(range(len(sizes)), key=lambda i: (-counts[i], -sizes[i].prod()))
    shown = ", ".join(f"{sizes[i][0]} x {sizes[i][1]} ({counts[i]:,})" for i in order[:3])
    more = f" and {len(sizes) - 3:,} more" if len(sizes) > 3 else ""
    reason = why or "the size of most in the training split; set data.size to choose another"
    say(
        f"{'' if why else 'warning: '}{int(other.sum()):,} of {len(other):,} images of the {name}"
        f" split are resized to {shape[1]} x {shape[2]} ({reason}), {stretched:,} of them"
        f" stretched; height x width: {shown}{more}"
    )


def _say_kinds(
    name: str, headers: Headers, shape: Shape, white: float | None, surveyed: bool, say: Say
) -> None:
    counts = headers.counts()
    lost = shape[0] == 1 and not all(headers.greys())
    if len(counts) == 1 and counts[0][0] in ("grey", "colour", "1-bit grey") and not lost:
        return
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts)
    laid = "; transparency on black" if any("transparency" in kind for kind, _ in counts) else ""
    for kind, type_says in (("16-bit grey", "65,535"), ("floating-point", "1"), ("integer", "")):
        if any(kind in named for named, _ in counts):
            laid += f"; white is {type_says if white is None else f'{white:,g}'} in those of {kind}"
    how = "grey (1 channel)" if shape[0] == 1 else "colour (3 channels)"
    remedy = (
        "; set data.channels to choose"
        if surveyed and (lost or len({*headers.greys()}) > 1)
        else ""
    )
    say(
        f"{'warning: ' if lost and surveyed else ''}images of the {name} split: {kinds}; all are"
        f" read as {how}{laid}{remedy}"
    )
