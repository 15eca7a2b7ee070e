"""The `train` section of a spec: how a model is trained."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, Options, Positive, Probability, Seed, Steps
from bigmodel_cli.distill_options import DistillOptions as DistillOptions
from bigmodel_cli.optim import AdamWOptions, OptimizerOptions
from bigmodel_cli.parallel import SharingOptions
from bigmodel_cli.schedules import SCHEDULES, ConstantOptions, ScheduleOptions
from bigmodel_cli.trackers import TrackerOptions

VALIDATION_TOKENS = 1 << 14
"""Tokens at once in a validation, where training has fewer."""

OLD_SCHEDULE = {"type", "warmup", "final", "decay"}
"""Options that older specs and checkpoints recorded for a schedule of any type."""


class RewindOptions(Options):
    """When to go back to the last checkpoint and continue with later batches: where the loss of a
    step jumps.
    """

    spike: Annotated[float, Field(gt=1, le=1e6)] = Field(
        3.0, description="a loss above this multiple of the median of the last steps is a spike"
    )
    window: Annotated[int, Field(gt=0, le=10_000)] = Field(
        100, description="number of steps for that median"
    )
    most: Count = Field(3, description="how often a run goes back; the next spike ends it")


class TrainOptions(Options):
    """One training run.

    `steps`, `epochs` or `minutes` says how long; a step is one update of the weights.
    """

    exclusive: ClassVar[tuple[tuple[str, str], ...]] = (
        ("steps", "epochs"),
        ("steps", "minutes"),
        ("epochs", "minutes"),
        ("validate_every", "validate_epochs"),
        ("batch_size", "batch_tokens"),
    )

    steps: Steps | None = Field(None, description="optimizer steps in all")
    epochs: Positive | None = Field(
        None, description="passes over the training split, instead of steps"
    )
    minutes: Positive | None = Field(
        None,
        description=(
            "minutes of training, instead of steps: validations and saving do not count, and the"
            " schedule follows the clock; such a run is not exactly repeatable"
        ),
    )
    batch_size: Count = Field(64, description="samples per step, over all micro-batches")
    batch_tokens: Count | None = Field(
        None,
        description=(
            "tokens per step, instead of batch_size: samples of similar length, each counted as"
            " long as the longest beside it (of pairs, the longer side)"
        ),
    )
    micro_batch_size: Count | None = Field(
        None,
        description=(
            "samples (with batch_tokens: tokens) at once; all when left out. Results differ only by"
            " batch normalisation and (batch_tokens) which samples a step has; on GPUs by dropout"
        ),
    )
    optimizer: OptimizerOptions = Field(AdamWOptions(), description="how gradients become updates")
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description=(
            "each block's learning rate is this times that of the block after it, the last one's"
            " times that of the head; embeddings count as the block before the first"
        ),
    )
    lr_scale: dict[str, Positive] = Field(
        {}, description="factors of the learning rate by name or pattern of weights: {head: 10}"
    )
    unfreeze_every: Steps | None = Field(
        None,
        description=(
            "gradual unfreezing: the head alone is trained at first, and after each so many steps"
            " one block more, the last one first and the embeddings at the end"
        ),
    )
    schedule: ScheduleOptions = Field(
        ConstantOptions(), description="the learning rate over the run"
    )
    max_grad_norm: Positive | None = Field(None, description="gradients are clipped to this norm")
    ema: Probability | None = Field(
        None, description="decay of an exponential moving average of the weights, used to evaluate"
    )
    consistency: Positive | None = Field(
        None,
        description=(
            "each batch passes twice, and this times the mean of both KL divergences between the"
            " answers under two draws of dropout is added to the loss (R-Drop)"
        ),
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto measures at the start of the run"
    )
    memory_format: Literal["auto", "contiguous", "channels_last"] = Field(
        "auto", description="layout of images in memory; auto measures at the start of the run"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto: only on CUDA"
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        "auto", description="repeat recorded steps on CUDA, where that is faster, as measured"
    )
    loss_chunk: Literal["auto", "off"] | Count = Field(
        "auto", description="tokens whose logits are in memory at once; auto: by their size"
    )
    checkpointing: Literal["none", "blocks"] = Field(
        "none", description="blocks: keep their inputs alone; compute the rest again: less memory"
    )
    seed: Seed = Field(
        0, description="of the initial weights, the order of the samples, augmentation and dropout"
    )
    deterministic: bool = Field(
        False, description="the same bits on 1, 2, 4 ... processes with as many threads each"
    )
    timeout: Positive = Field(
        600.0,
        description=(
            "of several processes: seconds without a sign of life of one, or its part of a step,"
            " after which the run ends with status 7"
        ),
    )
    log_every: Count = Field(10, description="steps between lines of metrics.jsonl")
    validate_every: Steps | None = Field(None, description="steps between validations")
    validate_epochs: Positive | None = Field(
        None, description="epochs between validations, instead of validate_every"
    )
    validation_batch: Count | None = Field(
        None,
        description=(
            "samples at once in a validation; left out: a micro-batch, and at least 256 samples or"
            " 16,384 tokens"
        ),
    )
    checkpoint_every: Steps | None = Field(
        None, description="steps between checkpoints; as the validations when left out"
    )
    save_async: Literal["auto", "on", "off"] = Field(
        "auto",
        description=(
            "write checkpoints while training goes on, from a copy in the host's memory; auto:"
            " those of 64 MB and more, where there is room for the copy"
        ),
    )
    keep_last: Count = Field(2, description="newest checkpoints that are kept")
    keep_best: Count = Field(1, description="best checkpoints that are kept, by the task's metric")
    average_last: Count | None = Field(
        None, description="the result is the mean of the weights of this many newest checkpoints"
    )
    patience: Count | None = Field(
        None, description="validations without a better metric until the run stops, with its best"
    )
    rewind: RewindOptions | None = Field(
        None,
        description=(
            "go back to the last checkpoint where the loss of a step jumps, and skip the batches"
            " that led there; {} for the usual bounds, null for never"
        ),
    )
    parallel: SharingOptions = Field(
        SharingOptions(), description="how several processes share weights and sequences"
    )
    trackers: list[TrackerOptions] = Field(
        [], description="services and files that get the records of metrics.jsonl too"
    )

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """Options of older specs and checkpoints under their present names."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        schedule = values.get("schedule")
        if (
            isinstance(schedule, dict)
            and schedule.keys() == OLD_SCHEDULE
            and str(schedule["type"]) in SCHEDULES
        ):
            own = SCHEDULES[str(schedule["type"])].model_fields
            values["schedule"] = {name: value for name, value in schedule.items() if name in own}
        if isinstance(values.get("tensorboard"), bool):
            given = values.get("trackers", [])
            if values.pop("tensorboard") and isinstance(given, list):
                there = "tensorboard" in given or {"type": "tensorboard"} in given
                values["trackers"] = given if there else [*given, "tensorboard"]
        return values

    @model_validator(mode="after")
    def _consistent(self) -> TrainOptions:
        given = [n for n in ("steps", "epochs", "minutes") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give either {' or '.join(given)}, not both"
                if given
                else "give steps, epochs or minutes"
            )
        if self.validate_every is not None and self.validate_epochs is not None:
            raise ValueError("give either validate_every or validate_epochs, not both")
        if self.average_last is not None and self.patience is not None:
            raise ValueError(
                "average_last takes the newest checkpoints and patience the best one; give only one"
            )
        if self.ema is not None and self.optimizer.averages:
            raise ValueError(
                f"ema: {self.optimizer.type} averages the weights itself; leave ema out"
            )
        if self.unfreeze_every is not None and self.optimizer.averages:
            raise ValueError(
                f"unfreeze_every: {self.optimizer.type} averages all weights from the first step"
                " on; take another optimizer"
            )
        kinds = [tracker.type for tracker in self.trackers]
        if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
            raise ValueError(f"trackers: {twice[0]} is given twice")
        if self.micro_batch_size is not None and self.batch % self.micro_batch_size:
            name = "batch_size" if self.batch_tokens is None else "batch_tokens"
            raise ValueError(
                f"{name} {self.batch} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self

    @property
    def batch(self) -> int:
        """Samples, or tokens where they are counted, per step."""
        return self.batch_tokens or self.batch_size

    @property
    def micro(self) -> int:
        """Samples (or tokens) per micro-batch."""
        return self.micro_batch_size or self.batch

    @property
    def accumulate(self) -> int:
        """Micro-batches per step."""
        return self.batch // self.micro

    def rows(self, length: int | None) -> int:
        """Samples in a micro-batch whose samples have that many tokens."""
        return self.micro if self.batch_tokens is None else max(1, self.micro // (length or 1))

    def validation_rows(self, length: int | None) -> int:
        """Samples at once in a validation, where each has up to that many tokens (or frames)."""
        least = 256 if length is None else max(1, min(256, VALIDATION_TOKENS // length))
        return self.validation_batch or max(least, self.rows(length))

    def total_steps(self, per_epoch: Fraction) -> int | None:
        """Optimizer steps of the whole run; None where the clock decides."""
        return self.steps_of(self.epochs, per_epoch) if self.epochs is not None else self.steps

    def steps_of(self, epochs: float, per_epoch: Fraction) -> int:
        """Optimizer steps of that many epochs, as written (the float nearest to 0.1 is more, which
        would cost a step); the last one may reach into the next epoch.
        """
        return max(1, math.ceil(Fraction(repr(epochs)) * per_epoch / self.accumulate))

    def remarks(self, total: int) -> list[str]:
        """What is worth saying about the learning rate over a run of that many steps."""
        steps = total - 1, min(self.schedule.warmup, total - 1)
        last, peak = (self.schedule.factor(step, total) for step in steps)
        return [
            *self.schedule.remarks(total),
            *self.optimizer.remarks(last / peak if peak else 1.0),
        ]

    def validation_interval(self, per_epoch: Fraction) -> int | None:
        """Steps between validations, or None for the end of the run only."""
        return self.validate_every or (
            self.steps_of(self.validate_epochs, per_epoch) if self.validate_epochs else None
        )
