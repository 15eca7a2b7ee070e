"""Devices whose rates are published, several of them together, and how fast they get near these."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bigmodel_cli.errors import SpecError, did_you_mean

T, G = 1e12, 1e9
THIS = "this"
MOST = 1 << 20
_NAMED = re.compile(r"([0-9]{1,7})x([a-z0-9-]+)")


@dataclass(frozen=True)
class Card:
    """A device: dense FLOP/s by precision, bytes/s and bytes of its memory; bytes/s that it sends
    to the others of its node and, at once, into the network; how many a node has.
    """

    rates: Mapping[str, float]
    copies: float
    memory: float
    link: float
    network: float
    node: int = 8


def _rates(bf16: float | None, fp32: float, fp8: float | None = None) -> dict[str, float]:
    half = {"bf16": bf16, "fp16": bf16, "fp8": fp8, "fp32": fp32}
    return {name: rate * T for name, rate in half.items() if rate is not None}


CARDS = {
    # NVIDIA H100 Tensor Core GPU datasheet (SXM5), DGX H100: 8 ports of 400 Gb/s
    "h100": Card(_rates(989.4, 66.9, 1978.9), 3.35 * T, 80 * G, 450 * G, 50 * G),
    # NVIDIA H200 datasheet (SXM)
    "h200": Card(_rates(989.4, 66.9, 1978.9), 4.8 * T, 141 * G, 450 * G, 50 * G),
    # NVIDIA HGX B200 datasheet
    "b200": Card(_rates(2250.0, 75.0, 4500.0), 7.7 * T, 180 * G, 900 * G, 50 * G),
    # NVIDIA A100 datasheet (SXM, 80 and 40 GB), DGX A100: 8 ports of 200 Gb/s
    "a100": Card(_rates(312.0, 19.5), 2.039 * T, 80 * G, 300 * G, 25 * G),
    "a100-40": Card(_rates(312.0, 19.5), 1.555 * T, 40 * G, 300 * G, 25 * G),
    # AMD Instinct MI300X datasheet: 7 links of 64 GB/s each way
    "mi300x": Card(_rates(1307.4, 163.4, 2614.9), 5.3 * T, 192 * G, 448 * G, 50 * G),
    # NVIDIA L40S datasheet; PCIe 4.0 x 16
    "l40s": Card(_rates(362.0, 91.6, 733.0), 0.864 * T, 48 * G, 32 * G, 25 * G),
    # NVIDIA Ada and Ampere GA102 white papers (fp32 accumulation); PCIe 4.0 x 16; 100 Gb/s assumed
    "rtx4090": Card(_rates(165.2, 82.6, 330.3), 1.008 * T, 24 * G, 32 * G, 12.5 * G),
    "rtx3090": Card(_rates(71.0, 35.6), 0.936 * T, 24 * G, 32 * G, 12.5 * G),
    # NVIDIA V100 datasheet (SXM2, 32 GB): no bf16; NVIDIA T4 datasheet, PCIe 3.0 x 16
    "v100": Card({"fp16": 125 * T, "fp32": 15.7 * T}, 0.9 * T, 32 * G, 150 * G, 12.5 * G),
    "t4": Card({"fp16": 65 * T, "fp32": 8.1 * T}, 0.32 * T, 16 * G, 16 * G, 12.5 * G),
}
"""By name, as they are published."""
FULL_NAMES = {
    "h100": "NVIDIA H100 SXM of 80 GB, 8 a node, 400 Gb/s each",
    "h200": "NVIDIA H200 SXM of 141 GB, 8 a node, 400 Gb/s each",
    "b200": "NVIDIA B200 of 180 GB, 8 a node, 400 Gb/s each",
    "a100": "NVIDIA A100 SXM of 80 GB, 8 a node, 200 Gb/s each",
    "a100-40": "NVIDIA A100 SXM of 40 GB, 8 a node, 200 Gb/s each",
    "mi300x": "AMD Instinct MI300X of 192 GB, 8 a node, 400 Gb/s each",
    "l40s": "NVIDIA L40S of 48 GB, PCIe 4.0, 8 a node, 200 Gb/s each",
    "rtx4090": "NVIDIA RTX 4090 of 24 GB, PCIe 4.0, 8 a node, 100 Gb/s each",
    "rtx3090": "NVIDIA RTX 3090 of 24 GB, PCIe 4.0, 8 a node, 100 Gb/s each",
    "v100": "NVIDIA V100 SXM2 of 32 GB, 8 a node, 100 Gb/s each",
    "t4": "NVIDIA T4 of 16 GB, PCIe 3.0, 8 a node, 100 Gb/s each",
}
PRODUCTS, ATTENTION, MOVING, LINKS = 0.75, 0.5, 0.85, 0.8
"""The part of the published rates that products, attention, other operations and links reach.

The best product on an H200 reaches 0.80 (tests/measure/figures.md).
"""
LAUNCH, CALLED = 3e-6, 8e-6
"""Seconds of a kernel beside its work, and of the host to call one."""
JOINED = 0.5
"""Compiled: the part of the bytes that is left to operations that only move numbers, and the part
of their kernels, once neighbours are joined.
"""
LATENCY, OVERLAP = 2e-5, 0.9
"""Seconds of a transfer among devices beside its bytes; the part of the passes that can hide them.
"""
ETHERNET = 1.25 * G
"""Bytes/s between machines such as this: 10 Gb/s assumed."""


@dataclass(frozen=True)
class Cluster:
    """So many of a device."""

    count: int
    name: str

    def __str__(self) -> str:
        return f"{self.count}x{self.name}"

    @property
    def card(self) -> Card | None:
        """None for this machine."""
        return CARDS.get(self.name)

    @property
    def bandwidth(self) -> float:
        """Bytes/s that each sends in a ring of all: within nodes and, by all of a node at once,
        between them.
        """
        return self.along(self.count, 1)

    def along(self, size: int, stride: int) -> float:
        """Bytes/s that each of `size` devices, whose numbers lie so far apart, sends in their ring;
        rings of their neighbours go on at the same time.

        Devices of a node have neighbouring numbers. Where a ring leaves the node it has its part of
        the node's network, which the rings that begin there share.
        """
        card = self.card
        if card is None:
            return LINKS * ETHERNET
        across = card.network * card.node / min(stride, card.node)
        inside = size * stride <= card.node
        return LINKS * (card.link if inside else min(card.link, across))


def cluster(text: str) -> Cluster:
    """Of "8xh100". Raises `SpecError`."""
    found = _NAMED.fullmatch(text.strip().lower())
    if found is None:
        raise SpecError(f"--plan {text}: write NxNAME, for instance --plan 8xh100")
    count, name = int(found[1]), found[2]
    if not 1 <= count <= MOST:
        raise SpecError(f"--plan {text}: 1 to {MOST:,} devices")
    return Cluster(count, checked_name(name, f"--plan {text}:"))


def checked_name(name: str, option: str) -> str:
    """The name of a device. Raises `SpecError`, which begins with the option."""
    name = name.strip().lower()
    if name not in (THIS, *CARDS):
        hint = did_you_mean(name, (THIS, *CARDS))
        raise SpecError(f"{option} {name} is not one of {', '.join((THIS, *CARDS))}{hint}")
    return name
