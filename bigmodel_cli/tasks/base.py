"""What all options of tasks answer."""

from __future__ import annotations

from bigmodel_cli.config import Facts, Options
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.tasks.shown import Pictures, SampleText


class AnyTaskOptions(Options):
    """Options of a task. Each class also has `build(facts)`, which gives the task."""

    def notes(self, facts: Facts) -> list[str]:
        """What is to be said before training on data of which these are the facts."""
        return []

    def sample(self) -> SampleText | None:
        """The text that a finished training shows; None where the task is not to write any."""
        return None

    def pictures(self) -> Pictures | None:
        """The images that a finished training shows; None where there are none."""
        return None


class CountsSamples:
    """A task whose work is counted in samples: how fast it is trained is said so."""

    unit = "samples"

    def size(self, batch: dict[str, Tensor]) -> int | Tensor:
        """The rows of a batch."""
        return len(next(iter(batch.values())))
