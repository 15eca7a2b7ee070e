"""Structures side by side by `bench --learn`: each at its best rate, as much time of training for
each, taking turns; loss, rate window, speed, memory and cache as a table.

    python tests/measure/structures.py --data ../shared/data --budget 3min --out DIR

Every structure is sample_configs/structures.yaml with one change. The same command goes on where it
was stopped. With --again as many other seeds train each at the rate found before (in DIR-again),
and Kendall's tau of the two rankings is printed. --only NAME ... takes some of them, --precision
another one than bf16, for machines that have none. Three minutes for each of ten structures, with
two seeds and about four rates, are two and a half hours, and an hour with --again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import quantity, table
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.models import build
from bigmodel_cli.spec import load

SPEC = Path(__file__).resolve().parent.parent.parent / "sample_configs" / "structures.yaml"
ROTARY = "position: {type: rotary}"
REST = "ffn: {type: swiglu}, norm: {type: rmsnorm}"
STRUCTURES = {
    "attention": "model.blocks.0.repeat=5",
    "sliding window (64)": "model.blocks.0.mixer.window=64",
    "grouped query (4 : 1)": "model.blocks.0.mixer.kv_heads=1",
    "latent (MLA)": "model.blocks.0.mixer={type: mla, num_heads: 4, kv_rank: 32, rotary_dim: 16}",
    "differential": f"model.blocks.0.mixer={{type: differential, num_heads: 2, {ROTARY}}}",
    "Mamba-2": "model.blocks.0.mixer={type: mamba2, state: 32, head_dim: 32}",
    "gated DeltaNet": "model.blocks.0.mixer={type: gated_deltanet, num_heads: 4}",
    "convolution (8)": "model.blocks.0.mixer={type: convolution, kernel: 8}",
    "hybrid (conv, attention)": (
        f"model.blocks=[{{repeat: 3, mixer: {{type: convolution, kernel: 4}}, {REST}}}, "
        f"{{repeat: 2, mixer: {{type: attention, num_heads: 4, bias: false, {ROTARY}}}, {REST}}}]"
    ),
    "experts (2 of 8)": "model.blocks.0.ffn={type: moe, experts: 8, top_k: 2, hidden: 172}",
}
LENGTHS = (256, 2048)


def written(name: str, folder: Path, data: Path, *more: str) -> Path:
    """The structure's spec as a file, with more changes."""
    text = data / "tinyshakespeare" / "input.txt"
    changes = [f"data.files=['{text}']", "task.sample_tokens=0", *more]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub('[^A-Za-z0-9]+', '-', name).strip('-')}.yaml"
    path.write_text(load(SPEC, [STRUCTURES[name], *changes]).to_yaml(), encoding="utf-8")
    return path


def learnt(
    specs: dict[str, Path], budget: str, seeds: str, out: Path, *more: str
) -> list[dict[str, Any]]:
    """What `bench --learn` found of each structure, the best first."""
    words = ["bench", "--learn", *map(str, specs.values()), "--budget", budget, "--seeds", seeds]
    words += more
    words += ["--out", str(out), "--png", f"{out}.png", "--device", "cpu", "--json"]
    command = [sys.executable, "-m", "bigmodel_cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        # stopped, it stops what it started, which saves: the same command goes on
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        answer = process.communicate()[0]
    if process.returncode:
        sys.exit(process.returncode)
    found = json.loads(answer)
    names = {path.stem: name for name, path in specs.items()}
    return [{**own, "name": names[Path(own["name"]).name]} for own in found["structures"]]


def kendall(first: list[str], second: list[str]) -> float:
    """Tau of two rankings of the same names: pairs in the same order less those in the other one,
    as a part of all (Kendall 1938).
    """
    pairs = list(itertools.combinations(first, 2))
    return sum(1 if second.index(a) < second.index(b) else -1 for a, b in pairs) / len(pairs)


def tensors(values: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a cache."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from tensors(value)
    elif hasattr(values, "__dict__"):
        yield from tensors(vars(values))


def measure(structure: str, length: int) -> dict[str, float]:
    """In this process: peak memory of a forward and backward pass at batch 1 above what stood
    before, and the cache's size.
    """
    load_torch()
    torch.manual_seed(0)
    spec = load(SPEC, [STRUCTURES[structure], f"data.context={length}"])
    model: Any = build(spec.model, DatasetInfo(vocab_size=65, context=length))
    tokens = torch.randint(65, (1, length))
    with torch.inference_mode():
        cache = model.new_cache(1)
        model(tokens, cache)
    cached = sum(t.numel() * t.element_size() for t in tensors(cache.blocks))
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    model(tokens).float().logsumexp(-1).sum().backward()
    parameters = sum(p.numel() for p in model.parameters())
    return {"peak": resident("VmHWM") - before, "cache": cached / length, "parameters": parameters}


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory, now or at most."""
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field)
    )
    return int(line.split()[1]) * 1024


def measured(structure: str, length: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--data", "-", "--measure", structure, str(length)]
    values: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return values


def row(own: dict[str, Any]) -> list[str]:
    """A structure's cells."""
    sizes = {length: measured(own["name"], length) for length in LENGTHS}
    window, step = own["window"], own["step"]
    runs = [r for r in own["runs"] if r["rate"] == own["best_rate"]]
    steps = sum(r["steps"] for r in runs) / len(runs)
    seconds = sum(r["curve"][-1]["seconds"] for r in runs) / len(runs)
    low = ("< " if window["open_below"] else "") + f"{window['low']:.3g}"
    high = ("> " if window["open_above"] else "") + f"{window['high']:.3g}"
    return [
        own["name"], f"{own['parameters'] / 1e6:.2f} M",
        f"{own['mean'] / math.log(2):.3f} +- {own['half_of_interval'] / math.log(2):.3f}",
        f"{own['best_rate']:.3g}", f"{low} to {high}", f"{steps:,.0f}",
        f"{steps * step['size'] / seconds:,.0f}",
        " / ".join(quantity(sizes[n]["peak"], "B") for n in LENGTHS),
        " / ".join(f"{sizes[n]['cache']:,.0f}" for n in LENGTHS),
    ]  # fmt: skip


def main() -> None:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--budget", default="3min")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("structures"))
    parser.add_argument("--again", action="store_true")
    parser.add_argument(
        "--only", nargs="+", choices=list(STRUCTURES), default=list(STRUCTURES), metavar="NAME"
    )
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], int(arguments.measure[1]))))
        return
    count, data = arguments.seeds, arguments.data.resolve()
    specs = arguments.out.with_name(f"{arguments.out.name}-specs")
    precision = f"train.precision={arguments.precision}"
    files = {name: written(name, specs, data, precision) for name in arguments.only}
    seeds = [f"{','.join(map(str, range(n, n + count)))}," for n in (0, count)]
    found = learnt(files, arguments.budget, seeds[0], arguments.out)
    at = " / ".join(f"{n:,}" for n in LENGTHS)
    columns = ["structure", "parameters", "bits per byte (95 %)", "best rate", "good rates"]
    columns += ["steps", "tokens/s", f"peak memory {at}", f"cache bytes per token {at}"]
    print(table(columns, [row(own) for own in found]))
    if arguments.again:
        other = arguments.out.with_name(f"{arguments.out.name}-again")
        rates = {own["name"]: f"train.optimizer.lr={own['best_rate']!r}" for own in found}
        folder = other.with_name(f"{other.name}-specs")
        files = {name: written(name, folder, data, precision, rates[name]) for name in rates}
        again = learnt(files, arguments.budget, seeds[1], other, "--rates", "1")
        rankings = [[own["name"] for own in each] for each in (found, again)]
        print(f"with other seeds: {', '.join(rankings[1])}; Kendall's tau {kendall(*rankings):.2f}")


if __name__ == "__main__":
    main()
