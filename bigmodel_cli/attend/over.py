"""`--over`: what the heads of a run did at each of its checkpoints, and when induction appeared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bigmodel_cli import checkpoints
from bigmodel_cli.attend.course import Course
from bigmodel_cli.attend.details import MOST_ENTRIES
from bigmodel_cli.attend.judging import judge_of, judged_whole, losses_of, of_tokens
from bigmodel_cli.attend.layers import Wanted
from bigmodel_cli.attend.looking import look_through
from bigmodel_cli.attend.repeated import repeated_tokens
from bigmodel_cli.attend.runs import Prepared, Window, prepare, tokens_side
from bigmodel_cli.console import counted
from bigmodel_cli.convert import opening
from bigmodel_cli.data import load_tokenizer
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded, load_checkpoint
from bigmodel_cli.parts.contract import attending, mixing
from bigmodel_cli.progress import progress

MOST = 100
"""Checkpoints that are looked at; of more, so many evenly spread ones."""
Losses = Callable[[], tuple[float, float]]
"""The loss on the whole input by the model as it is, and on what repeats in it (NaN: nothing
does).
"""


@dataclass(frozen=True)
class OverOptions:
    """`seed` draws the repeated tokens that are read where no input is given, and `rows` is how
    many queries the statistics are of (all when None). With `maps` the look at the last checkpoint,
    with blocks of so many to a side and its heads' tensors, is kept too. `place` is what messages
    call the input.
    """

    seed: int = 0
    rows: int | None = None
    maps: int = 0
    place: str = "the input"


def over(run: Path, given: str | None, options: OverOptions, device: str = "auto") -> Course:
    """The statistics of every head at each checkpoint that the run has kept, on one input.

    The model is built once, and each checkpoint's weights are loaded into it; what is asked of the
    model's own answers is the last one's. Raises `SpecError` where there are fewer than two
    checkpoints or no attention, and `CheckpointError` for a damaged one.
    """
    found, notes = saved(run)
    loaded = load_checkpoint(found[-1], device)
    if not attending(loaded.model) and not mixing(loaded.model):
        raise SpecError("this model has no attention to look at, and no mixer in its place")
    if loaded.spec.adapter is not None and loaded.spec.adapter.base is not None:
        raise SpecError(
            f"--over {run}: it finetunes a base of few bits, which is made anew for each"
            " checkpoint; look at them one by one"
        )
    prepared, losses = _input(loaded, given, options)
    wanted = Wanted(rows=options.rows, seed=options.seed, resolution=1)
    course = Course(
        loaded.name,
        prepared.title,
        notes=[*notes, *prepared.notes],
        given=given is not None,
    )
    with progress("checkpoints", len(found), "") as seen:
        for number, path in enumerate(found):
            seen.to(number)
            contents = opening.read(path)
            checkpoints.load_weights(loaded.model, contents.model, spare=contents.model.spare)
            if options.maps and path == found[-1]:
                wanted = replace(wanted, resolution=options.maps, whole=MOST_ENTRIES)
            look = look_through(loaded, prepared, wanted)
            course.last = look if path == found[-1] else None
            course.checkpoints.append(str(path))
            course.add(contents.step, look.layers, *losses())
    return course


def saved(run: Path) -> tuple[list[Path], list[str]]:
    """The checkpoints of a run, oldest first, and what is to be said of them.

    `run` is the folder of a run, or one of its checkpoints. Raises `SpecError`.
    """
    folders = (run / "checkpoints", run, run.absolute().parent)
    found = next((steps for folder in folders if (steps := checkpoints.steps(folder))), [])
    if len(found) < 2:
        raise SpecError(
            f"--over {run}: {counted(len(found), 'checkpoint is', 'checkpoints are')} there, and it"
            " takes two or more; a run keeps them with --set train.keep_last=50 (and saves as often"
            " as train.checkpoint_every says)"
        )
    if len(found) <= MOST:
        return found, []
    places = torch.linspace(0, len(found) - 1, MOST).round().long().tolist()
    return [found[n] for n in places], [f"{MOST} of the {len(found)} checkpoints are looked at"]


def _input(loaded: Loaded, given: str | None, options: OverOptions) -> tuple[Prepared, Losses]:
    """What is run at each step, and what gives the losses on it."""
    if given is None:
        tokens = repeated_tokens(loaded, options.seed).to(loaded.device)
        side = tokens_side("text", load_tokenizer(loaded.assets), tokens[0])
        window = Window(
            lambda: _forward(loaded, tokens),
            lambda n, c: (side, side),
            len(side),
            {"tokens": tokens},
        )
        title = f"{tokens.shape[1]} tokens: random ones, and the same again (seed {options.seed})"
        item, task = of_tokens(tokens), judge_of(loaded)
        return Prepared(title, [window], lambda y: ""), lambda: losses_of(loaded, task, [item])
    task = judge_of(loaded)
    items = judged_whole(loaded, task, given, options.place)
    return prepare(loaded, given, options.place), lambda: losses_of(loaded, task, items)


def _forward(loaded: Loaded, tokens: Tensor) -> Tensor:
    with torch.no_grad(), autocast(loaded.device, loaded.precision):
        logits: Tensor = loaded.model(tokens)
    return logits
