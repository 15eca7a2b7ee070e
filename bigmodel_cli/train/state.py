"""Everything that changes while a model is trained, in one object that saves and restores itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bigmodel_cli.checkpoints import load_weights
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.optim import Optimizer
from bigmodel_cli.train.smaller import Division


@dataclass
class LossScale:
    """Dynamic scaling of the mean loss for fp16 (Micikevicius et al. 2018): halved on overflow, doubled after 2,000 good steps.

    `skipped` counts the steps of the run that overflowed and so changed nothing, `stuck` those in a row that did at a scale of 1.
    """

    value: float = 1.0
    good_steps: int = 0
    dynamic: bool = False
    skipped: int = 0
    stuck: int = 0

    @classmethod
    def of(cls, precision: str) -> LossScale:
        """What a run in this precision begins with."""
        return cls(2.0**16, dynamic=True) if precision == "fp16" else cls()

    def update(self, finite: bool) -> None:
        """Take note of a step whose gradients were finite or not."""
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
    """What a step's passes move: statistics, and the states of the random numbers."""

    buffers: list[Tensor]
    cpu: Tensor
    cuda: Tensor | None


@dataclass
class TrainState:
    """Weights, their moving average, the optimizer, the place in the run, and the random states."""

    model: Module
    optimizer: Optimizer
    ema_decay: float | None = None
    step: int = 0
    still: frozenset[str] = frozenset()  # modules that are frozen and so stay in evaluation mode
    scores: dict[str, float | None] = field(
        default_factory=dict
    )  # step -> the task's metric; None: not a finite number
    best: float | None = None
    since_best: int = 0  # validations since the best one
    elapsed: float = 0.0  # seconds of training, over all resumes
    loss_sum: float = 0.0  # since the last logged step, over `loss_count` targets
    loss_count: float = 0.0
    loss_scale: LossScale = field(default_factory=LossScale)
    division: Division = field(default_factory=Division)
    passed: int = 0  # batches that were taken and whose steps were taken back (train.rewind)
    recent: list[float] = field(default_factory=list)  # losses of the last steps, where a spike is looked for
    rewinds: int = 0
    ema: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        trained = [module for name, module in self.model.named_modules() if name not in self.still]
        self.balanced: list[Any] = [m for m in trained if hasattr(m, "after_step")]  # mixtures of experts
        recorded = self.model.state_dict().keys()
        self.buffers = [tensor for name, tensor in self.model.named_buffers() if name in recorded]  # statistics
        if self.ema_decay is not None:
            self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    @property
    def batch(self) -> int:
        """The number of the next batch: of those that were taken, also for steps that were taken back."""
        return self.step + self.passed

    def auxiliary(self) -> Tensor | None:
        """The sum of what parts add to the mean loss (load balance of experts); None where none does."""
        losses = [m.auxiliary for m in self.balanced if m.auxiliary is not None]
        return torch.stack(losses).sum() if losses else None

    def after_step(self) -> None:
        """Let parts that keep count of a step take note that it is over."""
        for module in self.balanced:
            module.after_step()

    def before_step(self) -> Before:
        """What the passes of a step move beside the gradients, to `undo` them with."""
        return Before([tensor.clone() for tensor in self.buffers], *self.random())

    def undo(self, before: Before, random: bool) -> None:
        """After passes that must change nothing: the statistics as they were, no gradients, and parts forget their count.

        With `random` the random numbers are drawn again; else they are used up.
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
        """The states of the random numbers: of the CPU, and of the CUDA device where the model is on one."""
        cuda = torch.cuda.get_rng_state() if next(self.model.parameters()).is_cuda else None
        return torch.get_rng_state(), cuda

    def statistics(self) -> dict[str, float]:
        """What such parts have to say of the last step, averaged over them, as metrics."""
        found = [m.statistics() for m in self.balanced]
        return {f"experts.{name}": sum(s[name] for s in found) / len(found) for name in (found[0] if found else {})}

    def update_ema(self) -> None:
        """Move the average towards the weights; its decay grows to the full value over the first steps."""
        if self.ema_decay is None:
            return
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        weights = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.ema.values()), weights, 1 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights (where there are any)."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange the weights and their moving average."""
        for name, p in self.model.named_parameters():
            failpoint("train.exchanging")
            if name in self.ema:
                p.data, self.ema[name] = self.ema[name], p.data

    @contextlib.contextmanager
    def holding(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """Inside, the model has these weights, and there is no moving average."""
        own = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        ema, self.ema = self.ema, {}
        load_weights(self.model, weights)
        try:
            yield
        finally:
            load_weights(self.model, own)
            self.ema = ema

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """(weights to use, tensors to resume with, plain values to resume with).

        The weights to use are the averaged ones where there is an average; the raw ones are then among the tensors to resume.
        """
        train = {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state_dict().items()}
        train["rng.cpu"], cuda = self.random()
        if cuda is not None:
            train["rng.cuda"] = cuda
        if self.ema:
            train |= {f"raw.{name}": p.detach() for name, p in self.model.named_parameters()}
        with self.averaged():
            weights = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        values = {
            "step": self.step,
            "optimizer_steps": self.optimizer.steps,
            "scores": self.scores,
            "best": self.best,
            "since_best": self.since_best,
            "elapsed": self.elapsed,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "loss_scale": self.loss_scale.value,
            "loss_scale_good_steps": self.loss_scale.good_steps,
            "loss_scale_skipped": self.loss_scale.skipped,
            "division": self.division.to_json(),
            "passed": self.passed,
            "recent": self.recent,
            "rewinds": self.rewinds,
        }
        return weights, train, values

    def restore(self, weights: dict[str, Tensor], train: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Become the captured state, to the bit. Raises `CheckpointError` where it is of another model or optimizer."""
        prefix = "optimizer."
        own = {name.removeprefix(prefix): tensor for name, tensor in train.items() if name.startswith(prefix)}
        differing = sorted(own.keys() ^ self.optimizer.state_dict().keys())
        if differing:
            raise CheckpointError(
                f"the checkpoint's optimizer is not this run's: {len(differing)} tensors are in one of them alone, such as "
                f"{differing[0]} (earlier versions gave other weights to muon); start a new run: bigmodel finetune --from"
            )
        load_weights(self.model, weights)
        if self.ema:
            for name, tensor in self.ema.items():
                tensor.copy_(weights[name])
            with torch.no_grad():
                for name, p in self.model.named_parameters():
                    p.copy_(train[f"raw.{name}"])
        self.optimizer.load_state_dict(own, values["optimizer_steps"])
        self.step = values["step"]
        self.scores, self.best = dict(values["scores"]), values["best"]
        self.since_best, self.elapsed = values["since_best"], values["elapsed"]
        self.loss_sum, self.loss_count = values["loss_sum"], values["loss_count"]
        self.loss_scale.value = values["loss_scale"]
        self.loss_scale.good_steps = values["loss_scale_good_steps"]
        self.loss_scale.skipped = values.get("loss_scale_skipped", 0)  # not in checkpoints of earlier versions
        self.division.add(values.get("division", {}))
        for module in self.balanced:
            module.forget_step()
        self.passed, self.rewinds = values.get("passed", 0), values.get("rewinds", 0)
        self.recent = list(values.get("recent", []))
        torch.set_rng_state(train["rng.cpu"])
        if "rng.cuda" in train and torch.cuda.is_available():
            torch.cuda.set_rng_state(train["rng.cuda"])
