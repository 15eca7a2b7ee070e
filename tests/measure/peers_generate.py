"""How fast text is written with a cache, beside transformers' `generate` with the same weights.

    python tests/measure/peers_generate.py --out FOLDER [--sizes small gpt2] [--batches 1 16]

Decoders of GPT-2's layout are drawn, saved by transformers and opened by both from that folder. All
texts have one length (no token ends one). Both run in turns (A B B A) in one process; a JSON line
for each measurement, a table at the end. Greedy tokens are compared: where they part, the two best
logits at that place are within rounding of each other, or it is said.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bigmodel_cli.generation.sampling import GREEDY, Sampling, generate
from bigmodel_cli.loaded import load_checkpoint

SIZES: dict[str, dict[str, int]] = {
    "small": {"vocab_size": 65, "n_positions": 256, "n_embd": 128, "n_layer": 4, "n_head": 4},
    "gpt2": {},
}
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROMPT, ADDED, TOP_K, TEMPERATURE = 32, 128, 50, 0.8
Write = Callable[[torch.Tensor], torch.Tensor]


def drawn(place: Path, size: str, kind: str) -> Path:
    """A folder with such a decoder, drawn once."""
    folder = place / f"{size}-{kind}"
    if not (folder / "config.json").exists():
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(3)
        model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **SIZES[size]))
        model.to(KINDS[kind]).save_pretrained(folder)
    return folder


def theirs(folder: Path, sampled: bool) -> Write:
    """transformers, in the precision of the folder."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    drawing: dict[str, Any] = {"do_sample": False}
    if sampled:
        drawing = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K}

    def write(prompt: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            found = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=ADDED,
                min_new_tokens=None, eos_token_id=None, pad_token_id=0, **drawing,
            )  # fmt: skip
        return found[:, prompt.shape[1] :]

    return write


def ours(folder: Path, sampled: bool) -> Write:
    """As `predict` opens and writes."""
    from bigmodel_cli.device import autocast

    loaded = load_checkpoint(folder, "cpu", tell=lambda line: None)
    sampling = Sampling(TEMPERATURE, top_k=TOP_K) if sampled else GREEDY

    def write(prompt: torch.Tensor) -> torch.Tensor:
        draws = torch.rand(len(prompt), ADDED) if sampled else None
        with autocast(loaded.device, loaded.precision):
            steps = generate(
                loaded.model.generator(), prompt, sampling, max_new_tokens=ADDED, draws=draws
            )
            return torch.stack(list(steps), 1)

    return write


WAYS = {"bigmodel": ours, "transformers": theirs}


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(write: Write, prompt: torch.Tensor, clock: Callable[[], float]) -> float:
    """Tokens/s."""
    start = clock()
    write(prompt)
    return len(prompt) * ADDED / (clock() - start)


def compared(place: Path, size: str, kind: str, batch: int, sampled: bool, given: Any) -> Any:
    """Tokens/s of both in turns."""
    clock = CLOCKS[given.clock]
    folder = drawn(place, size, kind)
    writes = {name: way(folder, sampled) for name, way in WAYS.items()}
    torch.manual_seed(5)
    prompt = torch.randint(1, 60, (batch, PROMPT))
    texts = {name: write(prompt) for name, write in writes.items()}  # warm
    rates: dict[str, list[float]] = {name: [] for name in writes}
    order = list(writes)
    for number in range(2 * given.rounds):
        for name in order if number % 2 == 0 else order[::-1]:
            rates[name].append(timed(writes[name], prompt, clock))
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    row: dict[str, Any] = {
        "size": size, "precision": kind, "batch": batch, "sampled": sampled,
        **{name: round(statistics.median(found), 1) for name, found in rates.items()},
        "ratio": round(statistics.median(ratios), 2), "ratios": [round(r, 2) for r in ratios],
    }  # fmt: skip
    if not sampled:
        row["equal"] = int((texts["bigmodel"] == texts["transformers"]).all(1).sum())
    return row


def memory(place: Path, size: str, kind: str, batch: int, way: str) -> float:
    """MB at the most of a process that does nothing but write."""
    command = [sys.executable, __file__, "--out", str(place), "--alone", way]
    command += ["--sizes", size, "--precisions", kind, "--batches", str(batch)]
    told = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return float(told.split()[-1])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--precisions", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=2)
    ways = ("greedy", "sampled")
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of a busy machine")
    parser.add_argument("--alone", choices=WAYS)
    given = parser.parse_args()
    if given.alone:
        folder = drawn(given.out, given.sizes[0], given.precisions[0])
        write = WAYS[given.alone](folder, False)
        write(torch.randint(1, 60, (given.batches[0], PROMPT)))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    rows = []
    for size in given.sizes:
        for kind in given.precisions:
            for batch in given.batches:
                for way in given.ways:
                    sampled = way == "sampled"
                    row = compared(given.out, size, kind, batch, sampled, given)
                    if given.memory and not sampled:
                        row |= {f"MB {w}": memory(given.out, size, kind, batch, w) for w in WAYS}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    for row in rows:
        print(" | ".join(str(v) for k, v in row.items() if k != "ratios"))


if __name__ == "__main__":
    main()
