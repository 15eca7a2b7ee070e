"""`--plan 8xh100`, `--mesh shard=64,tensor=8`: a step on devices that need not be there, on paper.

The devices are divided as a mesh says, or the spec (train.parallel). Where neither does, each keeps
all where that fits it, and gradients are summed over all (data parallel); where not, it is split
among them (fully sharded data parallel): weights are gathered for the forward and again for the
backward pass, and gradients summed and scattered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bigmodel_cli.assemble import outline
from bigmodel_cli.bench.calibrating import rates
from bigmodel_cli.bench.clusters import LATENCY, OVERLAP, Cluster
from bigmodel_cli.bench.doing import Opened
from bigmodel_cli.bench.mesh.axes import NAMES, Axes, axes_said, divided_by
from bigmodel_cli.bench.mesh.memory import Memory, memory_of
from bigmodel_cli.bench.mesh.traffic import Exchange, exchanges, timed
from bigmodel_cli.bench.paper import on_paper
from bigmodel_cli.bench.roof import forget, peaks
from bigmodel_cli.bench.speeds import AtPeaks, Learnt, Published, Speeds
from bigmodel_cli.bench.targets import FACTS, built_in, opened
from bigmodel_cli.console import say, short_names
from bigmodel_cli.data import random_batch
from bigmodel_cli.device import pick_device, total_memory
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import load_torch, torch
from bigmodel_cli.models.describe import training_flops
from bigmodel_cli.overrides import Change
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import build_task
from bigmodel_cli.train.divided import checked_mesh, unmeasured
from bigmodel_cli.train.divisible import say_whole
from bigmodel_cli.train.plan import flops_per_sample

WHOLE, SPLIT, ALONE = "data parallel", "fully sharded", "one device"


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
                f"train.batch_size: {rows * passes:,} samples of a batch are too few for {count:,}"
                f" devices; set train.batch_size={count} or more"
            )
        turns = math.ceil(own / rows)
        return cls(math.ceil(own / turns), turns)


@dataclass(frozen=True)
class Plan:
    """A step of a target on a cluster: seconds by part, of which "communication" is what nothing
    hides; what each device keeps and sends; the useful part of the matrix rate.
    """

    name: str
    cluster: Cluster
    axes: Axes
    options: TrainOptions
    precision: str
    memory_format: str
    compiled: bool
    share: Share
    batch: int
    unit: str
    size: float
    parts: dict[str, float]
    exchanges: Sequence[Exchange]
    memory: Memory
    useful: float
    mfu: float
    operations: dict[str, float]
    at_peaks: bool = False  # of this machine, as fast as its best products and copies

    @property
    def step(self) -> float:
        """Seconds."""
        return sum(self.parts.values())

    @property
    def how(self) -> str:
        """How training is spread over the devices."""
        if self.axes.count == 1:
            return ALONE
        alike = {Axes(replicate=self.axes.count): WHOLE, Axes(shard=self.axes.count): SPLIT}
        return alike.get(self.axes, str(self.axes))

    @property
    def communication(self) -> float:
        """Seconds of all that is sent, hidden or not."""
        return sum(e.seconds for e in self.exchanges)

    @property
    def sent(self) -> float:
        """Bytes that each device sends."""
        return sum(e.bytes for e in self.exchanges)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.name,
            "devices": str(self.cluster),
            "how": self.how,
            "mesh": asdict(self.axes),
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
            "exchanges": [asdict(exchange) for exchange in self.exchanges],
            "memory_bytes": self.memory.to_json(),
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


def planned(
    name: str, found: Opened, cluster: Cluster, device: str, axes: Axes | None = None
) -> Plan:
    """The plan of a target, in what is fastest where its spec says auto. Without `axes` its devices
    are divided as the spec says, or by what fits one of them; with them, this machine's are taken
    at their measured peaks.

    Raises `SpecError` for a batch or parts that cannot be shared so, and `Unfit` for a network that
    has no operations on paper.
    """
    if axes is not None and cluster.card is None:
        ways = _at_peaks(found, pick_device(device, say))
    else:
        ways = _speeds(found, cluster, device)
    every = [_planned(name, found, cluster, speeds, axes) for speeds in ways]
    return min(every, key=lambda plan: plan.step)


def _at_peaks(found: Opened, device: torch.device) -> list[Speeds]:
    """How fast this machine's device is at its measured peaks, in the precision that training takes
    there where nothing is measured.
    """
    options = unmeasured(found.spec.train, device)
    own = peaks(device, options.precision)
    return [AtPeaks(own, options.precision, options.memory_format, total_memory(device), device)]


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
            raise SpecError(f"train.precision: {cluster.name} has no {options.precision}")
        compiled = options.compile != "off"
        return [Published(card, p, layout, compiled) for p in precisions for layout in layouts]
    if options.precision == "auto":
        precisions = ["fp32", "bf16"]
    here = pick_device(device, say)
    room = total_memory(here)
    return [Learnt(rates(here, p), p, layout, room, here) for p in precisions for layout in layouts]


def _planned(name: str, found: Opened, cluster: Cluster, speeds: Speeds, axes: Axes | None) -> Plan:
    options, count = found.spec.train.parallel, cluster.count
    if axes is not None:
        return _divided(name, found, cluster, speeds, axes)
    said = options.division(count)
    if said is not None:
        return _divided(name, found, cluster, speeds, axes_said(options, *said))
    whole = _divided(name, found, cluster, speeds, Axes(replicate=count))
    if whole.memory.fits:
        return whole
    return _divided(name, found, cluster, speeds, Axes(shard=count))


def _divided(name: str, found: Opened, cluster: Cluster, speeds: Speeds, axes: Axes) -> Plan:
    """The plan of a target whose devices are divided so."""
    spec, info = divided_by(found.spec, axes), found.info
    checked_mesh(spec, axes.replicate, axes.shard)
    share = Share.of(spec, info.context, axes.samples)
    outlined = outline(spec, info)
    if axes.tensor > 1:
        say_whole(outlined.short)
    if axes.shard > 1 or axes.tensor > 1:
        speeds = speeds.eager()
    samples = spec.train.rows(info.context) * spec.train.accumulate
    useful = flops_per_sample(training_flops, spec, info, outlined) * samples
    paper = on_paper(
        spec,
        info,
        speeds.precision,
        speeds.memory_format,
        share.rows,
        speeds.kind,
        axes,
        outlined,
    )
    trees = int(math.log2(share.passes)) if spec.train.deterministic else 0
    parts = speeds.parts(paper, share.passes)
    ahead = paper.ahead and max(share.passes, axes.count) > 1
    parts["forward"] *= 1 + ahead
    bandwidth = {name: cluster.along(*axes.ring(name)) for name in NAMES}
    sent = timed(exchanges(paper.traffic, share.passes, ahead), axes, bandwidth, LATENCY)
    task = build_task(spec.task, info)
    row = random_batch(info, task.reads, 1, torch.device("cpu"))
    plan = Plan(
        name=name,
        cluster=cluster,
        axes=axes,
        options=spec.train,
        precision=speeds.precision,
        memory_format=speeds.memory_format,
        compiled=speeds.compiled,
        share=share,
        batch=samples,
        unit=task.unit,
        size=float(task.size(row)) * samples,
        parts={**parts, "communication": _waited(sent, parts)},
        exchanges=sent,
        memory=memory_of(paper, axes, share.passes, trees, speeds.memory),
        useful=useful,
        mfu=0.0,
        operations=speeds.by_name(paper, share.passes),
        at_peaks=speeds.at_peaks,
    )
    return replace(plan, mfu=useful / axes.count / plan.step / speeds.matrix_rate)


def _waited(sent: Sequence[Exchange], parts: dict[str, float]) -> float:
    """Seconds of exchanges that nothing hides: of those that go on beside passes what these do not
    hide, and at least the first of each.
    """
    beside = [e for e in sent if e.hidden]
    room = OVERLAP * (parts["forward"] + parts["backward"])
    rest = max(
        sum(e.seconds for e in beside) - room,
        sum(e.seconds / max(1.0, e.calls) for e in beside),
    )
    return sum(e.seconds for e in sent if not e.hidden) + max(rest, 0.0)


def order(operations: dict[str, float], most: int) -> Sequence[tuple[str, float]]:
    """Those that take longest."""
    return sorted(operations.items(), key=lambda item: -item[1])[:most]
