"""All state of a training, in one object that saves and restores itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bigmodel_cli.checkpoints import copy_tensors, glance, load_weights
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.optim import Optimizer
from bigmodel_cli.parts.contract import counting_ahead, counting_steps
from bigmodel_cli.sharding import Sharding
from bigmodel_cli.shares import ALONE, Team
from bigmodel_cli.tensor_parallel import TensorParallel
from bigmodel_cli.train.kept import Kept
from bigmodel_cli.train.recorded import ANOTHER, Recorded, check_fits
from bigmodel_cli.train.smaller import Division

OPTIMIZER, CPU, CUDA = "optimizer.", "rng.cpu", "rng.cuda"
"""Names of tensors to resume with."""
PLAIN = (
    *("step", "scores", "best", "since_best", "elapsed", "loss_sum", "loss_count"),
    *("passed", "recent", "rewinds"),
)
"""Attributes of `TrainState` that state.json has under the same names."""
UNKNOWN = 10**10
"""The steps of a run by the clock before its first one: the most that a spec allows."""


@dataclass
class LossScale:
    """Dynamic loss scaling for fp16 (Micikevicius et al. 2018).

    It is halved on overflow and doubled after 2,000 good steps. `skipped` counts the steps of the
    run that overflowed and so changed nothing, `stuck` consecutive ones at a scale of 1.
    """

    value: float = 1.0
    good_steps: int = 0
    dynamic: bool = False
    skipped: int = 0
    stuck: int = 0

    @classmethod
    def of(cls, precision: str) -> LossScale:
        """The initial scale for this precision."""
        return cls(2.0**16, dynamic=True) if precision == "fp16" else cls()

    def update(self, finite: bool) -> None:
        """Update the scale after a step with finite gradients or not."""
        if not self.dynamic:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        self.stuck = self.stuck + 1 if not finite and self.value == 1.0 else 0
        if not finite:
            self.skipped += 1
            self.value = max(1.0, self.value / 2)
        elif self.good_steps >= 2000:
            self.value, self.good_steps = min(2.0**24, self.value * 2), 0


@dataclass(frozen=True)
class Before:
    """What a step's passes change: statistics, and the random states."""

    buffers: list[Tensor]
    cpu: Tensor
    cuda: Tensor | None


@dataclass
class TrainState:
    """Weights, their average, the optimizer, the position in the run, and the random states."""

    model: Module
    optimizer: Optimizer
    ema_decay: float | None = None
    step: int = 0
    still: frozenset[str] = frozenset()  # frozen modules, which stay in evaluation mode
    left_out: frozenset[str] = frozenset()  # weights that checkpoints need not hold: see `based`
    held: frozenset[str] = frozenset()  # those of them that are rounded: see `hold_in_precision`
    # step -> the task's metric; None: not a finite number
    scores: dict[str, float | None] = field(default_factory=dict)
    best: float | None = None
    since_best: int = 0  # validations since the best one
    elapsed: float = 0.0  # seconds of training, over all resumes
    loss_sum: float = 0.0  # since the last logged step, over `loss_count` targets
    loss_count: float = 0.0
    loss_scale: LossScale = field(default_factory=LossScale)
    division: Division = field(default_factory=Division)
    passed: int = 0  # batches whose steps were undone (train.rewind)
    recent: list[float] = field(default_factory=list)  # losses of the last steps, to detect spikes
    rewinds: int = 0
    ema: dict[str, Tensor] = field(default_factory=dict)
    sharding: Sharding | TensorParallel | None = None  # where processes keep parts of the weights
    context: Team = ALONE  # processes that have other positions of the same rows in training
    compared: bool = False  # what passes change was looked at; see train/together.py

    def __post_init__(self) -> None:
        self.kept = Kept(self.model, self.sharding, self.context)
        self.balanced = counting_steps(self.model, self.still)  # mixtures of experts
        self.ahead = counting_ahead(self.balanced)
        recorded = self.model.state_dict().keys()
        # statistics
        self.buffers = [tensor for name, tensor in self.model.named_buffers() if name in recorded]
        self.ema = self.optimizer.averaged
        if self.ema_decay is not None:
            self.ema = {
                name: p.detach().clone()
                for name, p in self.kept.named().items()
                if name not in self.left_out
            }

    @property
    def batch(self) -> int:
        """The index of the next batch; batches of undone steps count too."""
        return self.step + self.passed

    def steps_in(self, minutes: float) -> int:
        """The steps of a run of `minutes` at its present rate;
        those done where the time is over.
        """
        share = self.elapsed / (60 * minutes)
        if share >= 1:
            return self.step
        return max(self.step + 1, round(self.step / share)) if self.step and share else UNKNOWN

    def after_step(self) -> None:
        """Tell parts that count steps that one is over."""
        for module in self.balanced:
            module.after_step()

    def before_step(self) -> Before:
        """What a step's passes change beside the gradients, for `undo`."""
        return Before([tensor.clone() for tensor in self.buffers], *self.random())

    def undo(self, before: Before, random: bool) -> None:
        """Undo passes: restore statistics, zero gradients, and reset the counts of parts.

        With `random` the random states are restored too; else the numbers are used up.
        """
        for now, then in zip(self.buffers, before.buffers, strict=True):
            now.copy_(then)
        for module in self.balanced:
            module.forget_step()
        self.optimizer.clear()
        if random:
            torch.set_rng_state(before.cpu)
            if before.cuda is not None:
                torch.cuda.set_rng_state(before.cuda)

    def random(self) -> tuple[Tensor, Tensor | None]:
        """The random states of the CPU, and of the model's CUDA device, if any."""
        cuda = torch.cuda.get_rng_state() if next(self.model.parameters()).is_cuda else None
        return torch.get_rng_state(), cuda

    def statistics(self) -> dict[str, float]:
        """Metrics of the last step reported by such parts, averaged."""
        found = [m.statistics() for m in self.balanced]
        return {
            name: sum(s[name] for s in found) / len(found) for name in (found[0] if found else {})
        }

    def update_ema(self) -> None:
        """Update the moving average; its decay grows to the full value over the first steps."""
        if self.ema_decay is None:
            return
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        weights = [p.detach() for n, p in self.kept.named().items() if n in self.ema]
        torch._foreach_lerp_(list(self.ema.values()), weights, 1 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights, if any, and this process all of them."""
        self.kept.swap(self.ema)
        try:
            with self.kept.gathered():
                yield
        finally:
            self.kept.swap(self.ema)

    @contextlib.contextmanager
    def swapped_weights(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the model has these weights, and there is no moving average."""
        every, held = self.model.state_dict(), sorted(self.held)  # these stay as they are
        own = {name: tensor.clone() for name, tensor in every.items() if name not in self.held}
        ema, self.ema = self.ema, {}
        load_weights(self.model, {**own, **weights}, fresh=held)
        try:
            yield
        finally:
            load_weights(self.model, own, fresh=held)
            self.ema = ema

    def raw(self) -> dict[str, Tensor]:
        """The parameters that have an average, by their names in a checkpoint's train state."""
        kept = self.kept.named().items()
        return {f"raw.{n}": self.kept.placed(n, p) for n, p in kept if n in self.ema}

    def resuming(self) -> dict[str, Tensor]:
        """The optimizer's tensors, by their names in a checkpoint's train state."""
        return {
            f"{OPTIMIZER}{name}": self.kept.placed(name.partition(".")[2], tensor)
            for name, tensor in self.optimizer.state_dict().items()
        }

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """(weights to use, tensors to resume with, plain values to resume with).

        The weights to use are the averaged ones where there is an average; the raw ones are then
        among the tensors to resume.
        """
        train = self.resuming()
        train[CPU], cuda = self.random()
        if cuda is not None:
            train[CUDA] = cuda
        train |= {name: p.detach() for name, p in self.raw().items()}
        with self.averaged() if self.sharding is None else contextlib.nullcontext():
            weights = {
                name: tensor if self.sharding is not None else tensor.detach()
                for name, tensor in self.kept.state_dict(self.ema).items()
                if name not in self.left_out
            }
        values = {
            **{name: getattr(self, name) for name in PLAIN},
            "optimizer_steps": self.optimizer.steps,
            "loss_scale": self.loss_scale.value,
            "loss_scale_good_steps": self.loss_scale.good_steps,
            "loss_scale_skipped": self.loss_scale.skipped,
            "division": self.division.to_json(),
        }
        return weights, train, values

    def restore(
        self, weights: Mapping[str, Tensor], train: Mapping[str, Tensor], values: dict[str, Any]
    ) -> None:
        """Restore the captured state, bit for bit; weights that are held rounded stay as they are.

        Raises `CheckpointError` where it is faulty or of another model or optimizer; then nothing
        changes.
        """
        found = Recorded.of(values)
        self._check(weights, train)
        load_weights(self.model, weights, fresh=sorted(self.held))
        own = self.optimizer.state_dict()
        random = {
            name: torch.empty_like(train[name], device="cpu")
            for name in (CPU, CUDA)
            if name in train
        }
        copy_tensors(self.kept.named(), self.ema)
        targets = {**self.resuming(), **random, **self.raw()}
        copy_tensors(train, targets)
        self.optimizer.load_state_dict(own, found.optimizer_steps)
        for name in PLAIN:
            setattr(self, name, getattr(found, name))
        self.loss_scale.value = found.loss_scale
        self.loss_scale.good_steps = found.loss_scale_good_steps
        self.loss_scale.skipped = found.loss_scale_skipped
        self.division.add(found.division.model_dump())
        for module in self.balanced:
            module.forget_step()
        torch.set_rng_state(random[CPU])
        if CUDA in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random[CUDA])

    def _check(self, weights: Mapping[str, Tensor], train: Mapping[str, Tensor]) -> None:
        """Raise `CheckpointError` where a state does not fit this run; nothing is changed."""
        own = self.resuming()
        moved = {name for name in train if name.startswith(OPTIMIZER)}
        if differing := sorted(moved ^ own.keys()):
            raise CheckpointError(
                f"the checkpoint's optimizer is not this run's: {len(differing)} tensors are in one"
                f" of them alone, such as {differing[0].removeprefix(OPTIMIZER)} (earlier versions"
                " gave other weights to muon); start a new run: bigmodel finetune --from"
            )
        expected = {**own, CPU: torch.get_rng_state(), **self.raw()}
        given, there = (
            {name: tensor for name, tensor in tensors.items() if name not in self.held}
            for tensors in (weights, self.model.state_dict())
        )
        check_fits(given, there, "model.safetensors")
        check_fits(
            {name: tensor for name, tensor in train.items() if name != CUDA},
            expected,
            "train_state.safetensors",
        )
        try:
            if CUDA in train and torch.cuda.is_available():
                torch.Generator("cuda").set_state(glance(train, CUDA))
            torch.Generator().set_state(glance(train, CPU))
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"train_state.safetensors: not the state of a generator ({reason}); {ANOTHER}"
            ) from None
