"""A teacher's answers to each row of a split, in a file without a name, and given with its batches.

The file is in the run's directory, where there is room for checkpoints too, and has no name: the
system frees it with the last process that holds it, however that ends.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from bigmodel_cli.data import Split
from bigmodel_cli.data.order import Ints
from bigmodel_cli.errors import ResourceError
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.lazy import Tensor, torch

LOGITS, STREAMS, POSITIONS = "teacher_logits", "teacher_streams", "teacher_positions"
"""The keys of a batch under which it has the answers."""


class Answers:
    """Of each row of a split: logits (n, K) float32 of its n targets, and the residual stream
    (t, C) bfloat16 at its t positions, of several layers one after the other.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        """No answers yet. Raises `ResourceError` where the folder cannot be written."""
        self.folder = folder
        try:
            self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as error:
            raise self.fault("cannot be kept", error) from None
        self.choices = self.width = self.size = 0
        self.places = np.full((rows, 3), -1, np.int64)  # first byte, n, t

    def fault(self, what: str, error: OSError) -> ResourceError:
        """A fault of the file."""
        return ResourceError(
            f"{self.folder}: the teacher's answers {what}: {os.strerror(error.errno or 0)};"
            f" {self.size:,} bytes of them were written. Make room, or leave distill.once out"
        )

    def write(self, samples: Ints, logits: list[Tensor], streams: list[Tensor]) -> None:
        """Add the answers to these rows, (n, K) and (t, C) of each, and no streams where none are
        compared. Raises `ResourceError`.
        """
        try:
            failpoint("teacher.writing")
            for index, sample in enumerate(samples.tolist()):
                own = logits[index].to("cpu", torch.float32).contiguous()
                parts, positions, self.choices = [own.numpy().tobytes()], 0, own.shape[1]
                if streams:
                    stream = streams[index].to("cpu", torch.bfloat16).contiguous()
                    positions, self.width = stream.shape
                    parts.append(stream.view(torch.int16).numpy().tobytes())
                self.places[sample] = self.size, len(own), positions
                for part in parts:
                    self.size += self.file.write(part)
            self.file.flush()
        except OSError as error:
            raise self.fault("could not be written", error) from None

    def read(self, samples: Ints) -> dict[str, Tensor]:
        """{LOGITS: (B, most n, K) float32}, and where streams are compared {STREAMS: (B, most t, C)
        bfloat16, POSITIONS: (B,) t of each row}; zeros after the last of a row.

        Raises `ResourceError`.
        """
        places = self.places[samples]
        if (places < 0).any():
            raise ValueError(
                f"the teacher has not answered row {int(samples[places.min(1) < 0][0])}"
            )
        most = places[:, 1:].max(0).tolist()
        logits = torch.zeros(len(samples), most[0], self.choices)
        streams = torch.zeros(len(samples), most[1], self.width, dtype=torch.bfloat16)
        for row, (first, count, positions) in enumerate(places.tolist()):
            cut = 4 * count * self.choices
            found = self._bytes(first, cut + 2 * positions * self.width)
            own = np.frombuffer(found, np.float32, count * self.choices)
            logits[row, :count] = torch.tensor(own).view(count, self.choices)
            if positions:
                stream = torch.tensor(np.frombuffer(found, np.int16, offset=cut))
                streams[row, :positions] = stream.view(torch.bfloat16).view(positions, self.width)
        if not self.width:
            return {LOGITS: logits}
        return {LOGITS: logits, STREAMS: streams, POSITIONS: torch.from_numpy(places[:, 2])}

    def _bytes(self, first: int, count: int) -> bytes:
        """Bytes of the file. Reading moves nothing that loader workers share."""
        try:
            found = os.pread(self.file.fileno(), count, first)
        except OSError as error:
            raise self.fault("cannot be read back", error) from None
        if len(found) != count:
            raise ResourceError(f"{self.folder}: the teacher's answers are cut; start again")
        return found


class Answered(Split):
    """A split whose batches also have a teacher's answers (see `Answers.read`)."""

    def __init__(self, own: Split, answers: Answers) -> None:
        self.own, self.answers = own, answers
        self.resident, self.lengths, self.near = own.resident, own.lengths, own.near

    def __len__(self) -> int:
        return len(self.own)

    def order(self, places: Ints, epoch: int, seed: int) -> Ints:
        return self.own.order(places, epoch, seed)

    def coming(self, place: int, epoch: int, seed: int) -> None:
        self.own.coming(place, epoch, seed)

    def to(self, device: torch.device) -> None:
        self.own.to(device)

    def longest_rows(self) -> tuple[int, ...]:
        return self.own.longest_rows()

    def texts(self) -> tuple[list[str], list[str]]:
        """Those of the split."""
        return self.own.texts()

    def redrawn(self) -> str | None:
        return self.own.redrawn()

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The rows, and the answers to them."""
        return {**self.own.tensors(samples, epoch, seed, augment), **self.answers.read(samples)}
