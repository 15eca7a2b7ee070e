"""A task, a model, a data source, an optimizer and a schedule: whether more of a row's bits are 1
than 0.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.base import AnyDataOptions, DataSet, Split
from bigmodel_cli.draw import KEY
from bigmodel_cli.models.base import AnyModelOptions, Model
from bigmodel_cli.optim.base import AnyOptimizerOptions, Optimizer
from bigmodel_cli.schedules.base import AnyScheduleOptions
from bigmodel_cli.tasks.base import AnyTaskOptions, Task


class Bits(Split):
    """Rows of bits as images of one row."""

    def __init__(self, bits):
        self.bits = bits

    def __len__(self):
        return len(self.bits)

    def batch(self, samples, epoch, seed, augment):
        image = torch.from_numpy(self.bits[samples]).float()[:, None, None]
        more = (image.mean((1, 2, 3)) > 0.5).long()
        return {"image": image, "label": more, KEY: torch.from_numpy(samples)}


class BitsOptions(AnyDataOptions):
    """Rows of bits by seed."""

    type: Literal["bits"] = "bits"
    test_data: ClassVar[str] = "data.count=N"
    width: int = 9
    count: int = 96

    def splits(self, base):
        return ("train", "val")

    def open(self, *, base, say, assets=None, only=None):
        drawn = np.random.default_rng(0).integers(0, 2, (2, self.count, self.width))
        numbers = np.arange(2 * self.count, dtype=np.uint64).reshape(2, -1)
        info = DatasetInfo(
            image_shape=(1, 1, self.width), classes=("fewer", "more"), mean=(0.0,), std=(1.0,)
        )
        return DataSet(
            info,
            hashlib.sha256(drawn.tobytes()).hexdigest(),
            {
                name: Bits(bits)
                for name, bits in zip(("train", "val"), drawn, strict=True)
                if only in (None, name)
            },
            {},
            {
                name: partial(np.asarray, own)
                for name, own in zip(("train", "val"), numbers, strict=True)
            },
            "rows",
            False,
        )


class CountOptions(AnyModelOptions):
    """One linear layer of the mean."""

    type: Literal["count"] = "count"
    outputs: ClassVar = ("majority",)

    def build(self, info):
        return Count()


class Count(Model):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def output_layers(self):
        return ("layer",)

    def forward(self, image):
        return self.layer(image.mean((1, 2, 3))[:, None])[:, 0]


class MajorityOptions(AnyTaskOptions):
    """Whether most bits are 1; scored by accuracy."""

    type: Literal["majority"] = "majority"
    output: ClassVar[str] = "majority"

    def build(self, info=None):
        return Majority()


class Majority(Task):
    name = "majority"
    needs = "labels"
    reads = ("image", "label")

    def forward(self, model, batch, training=True):
        return model(*model.arguments(batch))

    def loss(self, outputs, batch):
        loss = nn.functional.binary_cross_entropy_with_logits(
            outputs, batch["label"].float(), reduction="sum"
        )
        return loss, torch.tensor(float(len(outputs)))

    def score(self, outputs, batch):
        loss = nn.functional.binary_cross_entropy_with_logits(
            outputs, batch["label"].float(), reduction="none"
        )
        right = ((outputs > 0).long() == batch["label"]).float()
        ones = torch.ones_like(loss)
        return {"loss": (loss, ones), "right": (right, ones)}, {}


class SignOptions(AnyOptimizerOptions):
    """Each weight goes by the sign of its mean gradient's running mean."""

    type: Literal["sign"] = "sign"
    state_per_param: ClassVar[int] = 1
    lr: float = 0.05

    def build(self, weights):
        return Sign(0.0, weights)


class Sign(Optimizer):
    slots = ("mean",)

    def step(self, lr, divisor):
        self.steps += 1
        with torch.no_grad():
            for p, mean, gradient in zip(
                self.parameters, self.state["mean"], self.gradients(), strict=True
            ):
                mean.lerp_(gradient / divisor, 0.5)
                p.sub_(mean.sign(), alpha=lr)


class HalvesOptions(AnyScheduleOptions):
    """The rate is halved in the second half."""

    type: Literal["halves"] = "halves"

    def after_warmup(self, step, total):
        return 1.0 if 2 * step < total else 0.5


PARTS = {
    "data": [BitsOptions],
    "model": [CountOptions],
    "task": [MajorityOptions],
    "optimizer": [SignOptions],
    "schedule": [HalvesOptions],
}
