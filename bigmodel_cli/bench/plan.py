"""`bench --plan 8xh100`: the step of a spec on devices that need not be there, on paper.

Each device has its part of a batch. Where all that training keeps fits one device, each keeps it
whole and gradients are summed over all (data parallel); where not, it is split among them (fully
sharded data parallel): weights are gathered for the forward and again for the backward pass, and
gradients summed and scattered.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigmodel_cli.assemble import Outline, kept_bytes, outline
from bigmodel_cli.bench.calibrating import rates
from bigmodel_cli.bench.clusters import LATENCY, OVERLAP, Cluster
from bigmodel_cli.bench.doing import Opened
from bigmodel_cli.bench.paper import Paper, on_paper
from bigmodel_cli.bench.roof import forget
from bigmodel_cli.bench.speeds import Learnt, Published, Speeds
from bigmodel_cli.bench.targets import FACTS, built_in, opened
from bigmodel_cli.console import say, short_names
from bigmodel_cli.data import random_batch
from bigmodel_cli.device import pick_device, total_memory
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import load_torch, torch
from bigmodel_cli.models.describe import training_flops
from bigmodel_cli.overrides import Change
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import build_task
from bigmodel_cli.train.plan import flops_per_sample

_BLOCK = re.compile(r"^(.*?\.\d+)\.")
FULL = 0.95
"""The part of a device's memory that can be had."""
BUCKET = 25e6
"""Bytes of gradients that are summed over devices at once."""
WHOLE, SPLIT, ALONE = "data parallel", "fully sharded", "one device"
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Share:
    """What each device has of a batch."""

    rows: int
    passes: int  # micro-batches in turn

    @classmethod
    def of(cls, spec: Spec, context: int | None, count: int) -> Share:
        """Raises `SpecError` where there are more devices than samples."""
        rows, passes = spec.train.rows(context), spec.train.accumulate
        own = math.ceil(rows * passes / count)
        if rows * passes < count:
            raise SpecError(
                f"--plan: {rows * passes:,} samples of a batch are too few for {count:,} devices;"
                f" set train.batch_size={count} or more"
            )
        rows = min(rows, own)
        return cls(rows, math.ceil(own / rows))


@dataclass(frozen=True)
class Memory:
    """Bytes of a device: what it keeps, gathered weights among it, and what passes add."""

    kept: float
    passes: float
    room: float

    @property
    def fits(self) -> bool:
        """Whether the device has as much."""
        return self.kept + self.passes <= FULL * self.room


@dataclass(frozen=True)
class Plan:
    """A step of a target on a cluster: seconds by part, of which "communication" is what nothing
    hides; bytes that each device sends; the useful part of the matrix rate.
    """

    name: str
    cluster: Cluster
    how: str
    precision: str
    memory_format: str
    compiled: bool
    share: Share
    batch: int
    unit: str
    size: float
    parts: dict[str, float]
    communication: float
    sent: float
    memory: Memory
    useful: float
    mfu: float
    operations: dict[str, float]

    @property
    def step(self) -> float:
        """Seconds."""
        return sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        memory = {"kept": self.memory.kept, "passes": self.memory.passes, "room": self.memory.room}
        return {
            "name": self.name,
            "devices": str(self.cluster),
            "how": self.how,
            "precision": self.precision,
            "memory_format": self.memory_format,
            "compiled": self.compiled,
            "batch": self.batch,
            "rows_per_device": self.share.rows,
            "passes": self.share.passes,
            "step_s": self.step,
            "unit": self.unit,
            "per_second": self.size / self.step,
            "parts_s": self.parts,
            "communication_s": self.communication,
            "sent_bytes": self.sent,
            "memory_bytes": {**memory, "fits": self.memory.fits},
            "useful_flops": self.useful,
            "mfu": self.mfu,
            "operations_s": self.operations,
        }


def plans(
    targets: Sequence[str],
    changes: Sequence[Change],
    clusters: Sequence[Cluster],
    device: str = "auto",
    roof: bool = False,
) -> list[Plan]:
    """Of each target (the built-in set without any) on each cluster; with `roof` this machine's
    rates are measured anew.
    """
    load_torch()
    if roof:
        forget()
    names = targets or list(FACTS)
    every = [(opened if targets else built_in)(name, changes) for name in names]
    short = short_names([list(map(Path, found.places)) for found in every])
    return [
        planned(name, found, each, device)
        for name, found in zip(short, every, strict=True)
        for each in clusters
    ]


def planned(name: str, found: Opened, cluster: Cluster, device: str) -> Plan:
    """The plan of a target, in what is fastest where its spec says auto.

    Raises `SpecError` for a batch that cannot be shared, and `Unfit` for a network that has no
    operations on paper.
    """
    plans = [_planned(name, found, cluster, speeds) for speeds in _speeds(found, cluster, device)]
    return min(plans, key=lambda plan: plan.step)


def _speeds(found: Opened, cluster: Cluster, device: str) -> list[Speeds]:
    """How fast the device is, in each way to compute that the spec leaves open."""
    options, card = found.spec.train, cluster.card
    images = found.info.image_shape is not None
    layouts = [options.memory_format]
    if options.memory_format == "auto":
        layouts = ["contiguous", "channels_last"] if images and card is None else ["contiguous"]
    precisions = [options.precision]
    if card is not None:
        if options.precision == "auto":
            precisions = ["bf16" if "bf16" in card.rates else "fp16"]
        elif options.precision not in card.rates:
            raise SpecError(f"--plan {cluster}: {cluster.name} has no {options.precision}")
        compiled = options.compile != "off"
        return [Published(card, p, layout, compiled) for p in precisions for layout in layouts]
    if options.precision == "auto":
        precisions = ["fp32", "bf16"]
    here = pick_device(device, say)
    room = total_memory(here)
    return [Learnt(rates(here, p), p, layout, room, here) for p in precisions for layout in layouts]


def _planned(name: str, found: Opened, cluster: Cluster, speeds: Speeds) -> Plan:
    spec, info, count = found.spec, found.info, cluster.count
    share = Share.of(spec, info.context, count)
    outlined = outline(spec, info)
    samples = spec.train.rows(info.context) * spec.train.accumulate
    useful = flops_per_sample(training_flops, spec, info, outlined) * samples
    kept = kept_bytes(spec, outlined.weights, outlined.saved)
    paper = on_paper(spec, info, speeds.precision, speeds.memory_format, share.rows, speeds.kind)
    how, memory = _memory(outlined, kept, paper, cluster, speeds)
    parts = speeds.parts(paper, share.passes)
    if how == SPLIT:
        parts["update"] /= count
    sent, communication = _communication(outlined, kept, cluster, speeds, how, share)
    hidden = parts["backward"] + (parts["forward"] if how == SPLIT else 0.0)
    shown = max(communication - OVERLAP * hidden, communication / max(1, len(_blocks(outlined))))
    task = build_task(spec.task, info)
    row = random_batch(info, task.reads, 1, torch.device("cpu"))
    plan = Plan(
        name=name,
        cluster=cluster,
        how=how,
        precision=speeds.precision,
        memory_format=speeds.memory_format,
        compiled=speeds.compiled,
        share=share,
        batch=samples,
        unit=task.unit,
        size=float(task.size(row)) * samples,
        parts={**parts, "communication": shown},
        communication=communication,
        sent=sent,
        memory=memory,
        useful=useful,
        mfu=0.0,
        operations=speeds.by_name(paper, share.passes),
    )
    return replace(plan, mfu=useful / count / plan.step / speeds.matrix_rate)


def _memory(
    outlined: Outline,
    kept: tuple[int, int, int],
    paper: Paper,
    cluster: Cluster,
    speeds: Speeds,
) -> tuple[str, Memory]:
    """(how training is spread, what each device needs)."""
    begun, *others = paper.peaks
    passes = max(max(others) - kept[1], 0.0)
    whole = Memory(sum(kept), passes, speeds.memory)
    if cluster.count == 1:
        return ALONE, whole
    if whole.fits:
        return WHOLE, whole
    gathered = 2 * max(_blocks(outlined).values(), default=0.0)  # one is used, one is on its way
    return SPLIT, Memory(sum(kept) / cluster.count + gathered, begun, speeds.memory)


def _blocks(outlined: Outline) -> dict[str, float]:
    """Bytes of the weights of each block, and of each weight outside them."""
    found: dict[str, float] = defaultdict(float)
    for weight in outlined.weights:
        inside = _BLOCK.match(weight.name)
        size = weight.tensor.numel() * weight.tensor.element_size()
        found[inside[1] if inside else weight.name] += size
    return dict(found)


def _communication(
    outlined: Outline,
    kept: tuple[int, int, int],
    cluster: Cluster,
    speeds: Speeds,
    how: str,
    share: Share,
) -> tuple[float, float]:
    """(bytes that each device sends in a step, seconds of that), by rings of all devices (Patarasuk
    and Yuan 2009).
    """
    if how == ALONE:
        return 0.0, 0.0
    ring = (cluster.count - 1) / cluster.count
    weights, gradients, _ = kept
    if how == WHOLE:
        sent, transfers = 2 * ring * gradients, 2 * math.ceil(gradients / BUCKET)
    else:
        gathered = weights * BYTES[speeds.precision] / 4
        sent = share.passes * ring * (2 * gathered + gradients)
        transfers = 3 * share.passes * len(_blocks(outlined))
    return sent, sent / cluster.bandwidth + transfers * LATENCY


def order(operations: dict[str, float], most: int) -> Sequence[tuple[str, float]]:
    """Those that take longest."""
    return sorted(operations.items(), key=lambda item: -item[1])[:most]
