"""How fast this machine computes the operations of networks: measured once, kept for a day."""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bigmodel_cli.bench.doing import Opened, warm
from bigmodel_cli.bench.grids import run, works
from bigmodel_cli.bench.rates import KINDS, Rates, host_of, learnt, merged
from bigmodel_cli.bench.reference import Reference
from bigmodel_cli.bench.result import WHOLE
from bigmodel_cli.bench.roof import DAY, identity, peaks
from bigmodel_cli.bench.training import Training
from bigmodel_cli.bench.watching import Call, overhead, seen
from bigmodel_cli.cache_home import cache_directory
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import say
from bigmodel_cli.errors import BigmodelError
from bigmodel_cli.lazy import torch
from bigmodel_cli.outputs import write_output
from bigmodel_cli.progress import progress
from bigmodel_cli.spec import Spec, from_dict

FORM = 2
"""The version of what is kept."""
WATCHED, TIMED = 3, 8
"""Steps of each network whose operations are timed, and those timed as a whole."""
BETWEEN = 1 << 20
"""Numbers that are used between operations: 4 MB, more than a core's own cache."""
TEN = tuple("0123456789")
Values = dict[str, Any]


def _decoder(
    dim: int, repeat: int, vocab: int, length: int, batch: int, more: Values | None = None
) -> Values:
    block = dict(more or {})
    norm = block.pop("norm", "layernorm")
    own: Values = {"mixer": {"type": "attention", "num_heads": max(1, dim // 64)}, "ffn": "gelu"}
    blocks = [{**own, "repeat": repeat, "norm": {"type": norm}, **block}]
    return {
        "model": {"type": "decoder", "dim": dim, "blocks": blocks, "norm": {"type": norm}},
        "task": {"type": "causal_lm"},
        "info": {"vocab_size": vocab, "context": length},
        "batch": batch,
    }


def _images(model: Values, shape: tuple[int, int, int], batch: int) -> Values:
    info = {"image_shape": shape, "mean": (0.5,) * shape[0], "std": (0.25,) * shape[0]}
    return {
        "model": model,
        "task": {"type": "classification"},
        "info": {**info, "classes": TEN},
        "batch": batch,
    }


def _conv(channels: int, more: Values | None = None) -> Values:
    return {"type": "conv", "channels": channels, "kernel": 3, **(more or {})}


POOL = {"type": "pool", "kind": "max", "kernel": 2}
HEAD = [{"type": "flatten"}, {"type": "dense", "units": "classes"}]
ROTARY = {"type": "attention", "num_heads": 4, "position": {"type": "rotary"}, "bias": False}
BATCHED = {"norm": "batch", "padding": 1}
MLA = {"type": "mla", "num_heads": 4, "kv_rank": 32, "q_rank": 64, "head_dim": 32, "rotary_dim": 16}
MOE = {"type": "moe", "experts": 8, "top_k": 2, "hidden": 128}
TWO = {"repeat": 2, "mixer": {"type": "attention", "num_heads": 4}, "ffn": "relu", "dropout": 0.1}


def _of_pairs(dim: int, vocab: int, length: int, batch: int) -> Values:
    decoder = {**TWO, "cross": {"num_heads": 4}}
    return {
        "model": {"type": "seq2seq", "dim": dim, "encoder": [TWO], "decoder": [decoder]},
        "task": {"type": "seq2seq"},
        "info": {"vocab_size": vocab, "context": length},
        "batch": batch,
    }


def _vit(dim: int, patch: int, heads: int) -> Values:
    block = {"repeat": 2, "mixer": {"type": "attention", "num_heads": heads}, "ffn": "gelu"}
    return {"type": "vit", "dim": dim, "patch": patch, "blocks": [block]}


NETWORKS: Sequence[Values] = (
    _decoder(32, 2, 64, 32, 4, {"ffn": "swiglu"}),
    _decoder(
        40, 3, 70, 48, 12, {"norm": "rmsnorm", "ffn": "swiglu", "mixer": {**ROTARY, "kv_heads": 2}}
    ),
    _decoder(24, 6, 90, 12, 6, {"norm": "rmsnorm", "ffn": "swiglu", "mixer": ROTARY}),
    _decoder(56, 2, 70, 20, 4, {"norm": "rmsnorm", "ffn": {**MOE, "hidden": 40}, "mixer": MLA}),
    _of_pairs(48, 120, 24, 8),
    _images(_vit(32, 8, 2), (3, 32, 32), 8),
    _decoder(64, 2, 65, 256, 2, {"mixer": ROTARY}),
    _decoder(128, 3, 300, 64, 12, {"mixer": ROTARY, "ffn": {"type": "swiglu", "bias": False}}),
    _decoder(
        256,
        2,
        1000,
        192,
        4,
        {"norm": "rmsnorm", "ffn": "swiglu", "mixer": {**ROTARY, "kv_heads": 2}},
    ),
    _decoder(512, 1, 4096, 128, 4),
    _decoder(768, 1, 8192, 64, 4, {"norm": "rmsnorm"}),
    _decoder(128, 2, 500, 128, 4, {"norm": "rmsnorm", "ffn": MOE, "mixer": MLA}),
    _decoder(128, 2, 500, 128, 4, {"norm": "rmsnorm", "mixer": {"type": "mamba2", "state": 32}}),
    {
        "model": {
            "type": "encoder",
            "dim": 192,
            "dropout": 0.1,
            "blocks": [{**TWO, "mixer": {"type": "attention", "num_heads": 6}}],
        },
        "task": {"type": "classification"},
        "info": {"vocab_size": 2000, "context": 48, "classes": TEN},
        "batch": 16,
    },
    _of_pairs(128, 1500, 32, 16),
    _images(_vit(192, 4, 3), (3, 32, 32), 16),
    _images({"type": "cnn", "layers": [_conv(16), POOL, _conv(32), POOL, *HEAD]}, (1, 28, 28), 16),
    _images(
        {
            "type": "cnn",
            "layers": [
                *(_conv(32, BATCHED), _conv(64, BATCHED), POOL),
                *(_conv(96, BATCHED), POOL, _conv(128), *HEAD),
            ],
        },
        (3, 32, 32),
        32,
    ),
    _images({"type": "torchvision", "name": "resnet18"}, (3, 64, 64), 4),
    _images({"type": "torchvision", "name": "mobilenet_v2"}, (3, 64, 64), 4),
)
"""What is measured: the model and the task of a spec, the data's facts, samples at once."""


def network(values: Values, precision: str, memory_format: str) -> tuple[Spec, DatasetInfo]:
    """One of them as a spec."""
    train = {"steps": 1, "batch_size": values["batch"], "precision": precision, "compile": "off"}
    text = {"type": "text", "files": ["none"], "tokenizer": "bytes", "context": 8}
    kinds: dict[str, Values] = {
        "seq2seq": {"type": "pairs", "source": ["none"], "target": ["none"], "tokenizer": "bytes"},
        "encoder": {
            **text, "type": "table", "train": ["none"], "text": [0], "label": 1, "files": None,
        },
    }  # fmt: skip
    data = kinds.get(values["model"]["type"], text)
    if "image_shape" in values["info"]:
        data = {"type": "image_folder", "root": "none"}
    spec = from_dict(
        {
            "model": values["model"],
            "task": values["task"],
            "data": {name: value for name, value in data.items() if value is not None},
            "train": {**train, "memory_format": memory_format, "max_grad_norm": 1.0},
        }
    )
    return spec, DatasetInfo(**values["info"])


def rates(device: torch.device, precision: str) -> Rates:
    """What is kept of the last day, or measured now."""
    place = _place(device, precision)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        kept = Rates.from_json(place.read_text(encoding="utf-8")) if place is not None else None
        if kept is not None and kept.samples and 0 <= time.time() - kept.date < DAY:
            return kept
    found = measured(device, precision)
    if place is not None:
        with contextlib.suppress(BigmodelError):  # a full disk: it is measured again next time
            write_output(place, [json.dumps(found.to_json()).encode()])
    return found


def measured(device: torch.device, precision: str) -> Rates:
    """By training steps of the networks, operation by operation."""
    own = peaks(device, precision)
    kinds = {"float32": peaks(device, "fp32").matrix_rate}
    kinds[KINDS[precision]] = own.matrix_rate
    reference, extra = Reference(device), overhead(device)
    every: list[list[Call]] = []
    steps: list[tuple[float, float, float, float]] = []
    times: list[float] = []
    with progress("measuring operations", len(NETWORKS), "networks") as shown:
        for number, values in enumerate(NETWORKS):
            images = "image_shape" in values["info"]
            layout = "channels_last" if images and number % 2 else "contiguous"
            try:
                spec, info = network(values, precision, layout)
                calls, step, beside = _one(spec, info, device, extra, reference)
            except BigmodelError as error:
                say(f"a network that is measured was left out: {error}")
                continue
            every.append(calls)
            steps.append(step)
            times += beside
            shown.add(1)
    others = _of_sizes(device, precision, extra)
    samples = merged([*(call for calls in every for call in calls), *others])
    found = Rates(samples, kinds, own.copy_rate, reference=statistics.median(times))
    # by how much networks differ from what is foreseen by others
    inside = learnt(every, others, found)
    rows = [(step, own, n, w) for (step, _, n, w), own in zip(steps, inside, strict=True)]
    return replace(found, host=host_of(rows), date=time.time())


def _of_sizes(device: torch.device, precision: str, extra: float) -> list[Call]:
    """The operations of `grids.works`, each with the median of its times."""
    every, between = list(works(device)), torch.zeros(BETWEEN, device=device)
    found: list[Call] = []
    with progress("measuring operations of many sizes", len(every), "operations") as shown:
        for work in every:
            run(work, precision, device, between)
            found += seen(partial(run, work, precision, device, between), device, WATCHED, extra)[0]
            shown.add(1)
    return found


def _one(
    spec: Spec, info: DatasetInfo, device: torch.device, extra: float, reference: Reference
) -> tuple[list[Call], tuple[float, float, float, float], list[float]]:
    """(the operations of a step with their times; the step as `host_of` takes it; seconds of the
    reference work among the steps).
    """
    training = Training(Opened(("network",), spec, info, None), device)
    warm(training)
    beside = [reference.seconds()]
    times = [training.step(False)[WHOLE] for _ in range(TIMED // 2)]
    beside.append(reference.seconds())
    found, dispatched = seen(training.once(), device, WATCHED, extra)
    times += [training.step(False)[WHOLE] for _ in range(TIMED // 2)]
    training.close()
    inside = sum(call.seconds for call in found)
    weights = sum(p.requires_grad for p in training.model.parameters())
    step = (statistics.median(times), inside, float(dispatched), float(weights))
    return found, step, beside


def _place(device: torch.device, precision: str) -> Path | None:
    """The file of this machine's; None where there is no cache."""
    text = "\n".join([*identity(device), precision, f"operations {FORM}"])
    with contextlib.suppress(BigmodelError):
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cache_directory("peaks") / f"{name}.json"
    return None
