"""Replay: items of the data before among those that a network is finetuned on."""

from __future__ import annotations

import hashlib

import numpy as np

from bigmodel_cli.data.base import DataSet, Split
from bigmodel_cli.data.batches import join
from bigmodel_cli.data.order import Ints, permute
from bigmodel_cli.device import sent
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch

ORDER = (0, 1)
"""Key of the permutation that the data before is taken in, whatever `train.seed` is."""


OPTIONAL = {"loss_mask", "segments"}
"""Batch keys that rows may lack: all of their tokens are learnt, and they are one document."""


def with_replay(data: DataSet, before: DataSet, share: float) -> DataSet:
    """The data with a training split of which this `share` is of the data before.

    Raises `SpecError` where the items of the two are not of one form.
    """
    if odd := (data.names() ^ before.names()) - OPTIONAL:
        raise SpecError(
            f"data.replay: only one of the two data sources has {', '.join(sorted(odd))}; take one"
            " of the same form"
        )
    if data.info.image_shape != before.info.image_shape:
        raise SpecError("data.replay: the two data sources have images of different sizes")
    both = hashlib.sha256(f"{data.fingerprint} {before.fingerprint} {share}".encode()).hexdigest()
    return data.with_training(Replay(data.split("train"), before.split("train"), share), both)


class Replay(Split):
    """All samples of a split, and after them as many of another as make up `share` of both.

    Where all samples are of one size each epoch takes others, else the same ones, since batches of
    similar lengths need the lengths of all samples. Where either keeps together what lies together
    (shards), both keep their own orders, and the items of the data before stand evenly among the
    others.
    """

    def __init__(self, new: Split, before: Split, share: float) -> None:
        self.new, self.before = new, before
        self.more = max(1, round(len(new) * share / (1 - share)))
        self.resident, self.near = new.resident and before.resident, new.near or before.near
        self.lengths = None
        if new.lengths is not None and before.lengths is not None:
            added = before.lengths[self.taken(np.arange(self.more), 0)]
            self.lengths = np.concatenate((new.lengths, added))

    def __len__(self) -> int:
        return len(self.new) + self.more

    def order(self, places: Ints, epoch: int, seed: int) -> Ints:
        if not self.near:
            return super().order(places, epoch, seed)
        earlier = self._earlier(places)
        is_new = self._earlier(places + 1) == earlier
        samples = len(self.new) + earlier
        samples[is_new] = self.new.order((places - earlier)[is_new], epoch, seed)
        return samples

    def _earlier(self, places: Ints) -> Ints:
        """(B,) -> (B,)   how many items of the data before stand before each place."""
        total = len(self)  # products of 64 bits could overflow
        return np.array([place * self.more // total for place in places.tolist()], np.int64)

    def coming(self, place: int, epoch: int, seed: int) -> None:
        if not self.near:
            return
        earlier = place * self.more // len(self)
        self.new.coming(place - earlier, epoch, seed)
        own, within = divmod(epoch * self.more + earlier, len(self.before))
        self.before.coming(within, own, seed)

    def to(self, device: torch.device) -> None:
        self.new.to(device)
        self.before.to(device)

    def longest_rows(self) -> tuple[int, ...]:
        both = self.new.longest_rows(), self.before.longest_rows()
        return tuple(max(rows) for rows in zip(*both, strict=True))

    def taken(self, places: Ints, epoch: int) -> Ints:
        """The samples of the data before in these places, from 0 on, among those added."""
        first = 0 if self.before.lengths is not None else epoch * self.more
        return permute((first + places) % len(self.before), len(self.before), ORDER)

    def rows_before(self, places: Ints, epoch: int, seed: int) -> list[tuple[int, Ints, Ints]]:
        """(its own epoch, which of the places, the samples there) of the data before."""
        if not self.before.near:
            return [(epoch, np.arange(len(places)), self.taken(places, epoch))]
        epochs, within = np.divmod(epoch * self.more + places, len(self.before))
        found = []
        for own in np.unique(epochs).tolist():
            chosen = np.flatnonzero(epochs == own)
            found.append((own, chosen, self.before.order(within[chosen], own, seed)))
        return found

    def redrawn(self) -> str | None:
        if self.before.lengths is None:
            return "data.replay takes other items in each epoch"
        return self.new.redrawn() or self.before.redrawn()

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The rows of both, in the order asked for."""
        is_new = samples < len(self.new)
        parts, places = [], []
        if is_new.any():
            parts.append(self.new.tensors(samples[is_new], epoch, seed, augment))
            places.append(np.flatnonzero(is_new))
        others = np.flatnonzero(~is_new)
        for own, chosen, rows in self.rows_before(samples[others] - len(self.new), epoch, seed):
            if len(rows):
                parts.append(self.before.tensors(rows, own, seed, augment))
                places.append(others[chosen])
        _complete(parts)
        order = np.argsort(np.concatenate(places))
        back = torch.from_numpy(order)
        return {name: tensor[sent(back, tensor.device)] for name, tensor in join(parts).items()}


def _complete(parts: list[dict[str, Tensor]]) -> None:
    """Give each part the keys that only others have."""
    for name in OPTIONAL & {name for part in parts for name in part}:
        for part in parts:
            if name not in part:
                tokens = part["tokens"]
                part[name] = tokens >= 0 if name == "loss_mask" else torch.zeros_like(tokens)
