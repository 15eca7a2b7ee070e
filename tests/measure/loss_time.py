"""Time of a head and its loss, forward and backward: whole logits beside pieces, in turns.

    python tests/measure/loss_time.py [--rounds 5] [--precision bf16] [--shape N,C,V ...] [--mask
    0.5]

Whole, pieces, pieces, whole; the ratio of the medians is reported, pieces / whole: one JSON line a
shape.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from bigmodel_cli.lazy import load_torch
from bigmodel_cli.logits import cross_entropy, late, logits_of

SHAPES = ["2048,768,50257", "4096,128,9700", "4096,256,32768", "8192,384,16384"]


def main() -> None:
    load_torch()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--shape", nargs="*", default=SHAPES)
    parser.add_argument("--mask", type=float, default=0.0, help="share of tokens without a target")
    parser.add_argument("--rows", default="auto", help="tokens at once")
    args = parser.parse_args()
    chunk = args.rows if args.rows == "auto" else int(args.rows)
    for shape in args.shape:
        rows, width, vocab = map(int, shape.split(","))
        head = torch.nn.Linear(width, vocab, bias=False)
        x = torch.randn(rows, width, requires_grad=True)
        targets = torch.randint(vocab, (rows,)).masked_fill(torch.rand(rows) < args.mask, -1)
        times: dict[str, list[float]] = {"off": [], str(chunk): []}
        for number in range(1 + args.rounds):
            for way in ("off", chunk, chunk, "off"):
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, args.precision == "bf16"), late(way):
                    cross_entropy(logits_of(x, head, vocab), targets).backward()
                if number:
                    times[str(way)].append(time.perf_counter() - start)
                head.weight.grad = x.grad = None
        whole, pieces = (statistics.median(t) for t in times.values())
        found = {"shape": shape, "precision": args.precision, "mask": args.mask, "whole": whole}
        print(
            json.dumps({**found, "pieces": pieces, "ratio": round(pieces / whole, 3)}), flush=True
        )


if __name__ == "__main__":
    main()
