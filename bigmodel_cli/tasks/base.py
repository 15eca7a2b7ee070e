"""What all options of tasks answer."""

from __future__ import annotations

from bigmodel_cli.config import Facts, Options


class AnyTaskOptions(Options):
    """Options of a task. Each class also has `build(facts)`, which gives the task."""

    def notes(self, facts: Facts) -> list[str]:
        """What is to be said before training on data of which these are the facts."""
        return []
