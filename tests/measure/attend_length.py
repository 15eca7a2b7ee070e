"""Seconds and memory of a look at one layer by length, and at all heads of a network.

Run alone: python tests/measure/attend_length.py [25000 50000 100000]. Each length is a process of
its own: a layer of 12 heads of width 64, causal, with random queries, keys and values. 64 drawn
rows of its weights are compared with dense ones. Without lengths, a network of GPT-2's smallest
size with 1,024 tokens comes last.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

HEADS, WIDTH, ROWS = 12, 64, 64


def peak() -> float:
    """The process's largest memory so far, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    return math.nan


def layer(length: int) -> None:
    """Look at one layer; prints a line."""
    import torch

    from bigmodel_cli.attend.statistics import Pass
    from bigmodel_cli.attend.stream import Stream
    from bigmodel_cli.attend.tiles import spans
    from bigmodel_cli.parts.fused import AttentionSpec
    from bigmodel_cli.parts.kernels import attended
    from bigmodel_cli.parts.watched import AttentionCall

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    q, k, v = (torch.randn(1, HEADS, length, WIDTH) for _ in range(3))
    spec = AttentionSpec(True)
    began = time.perf_counter()
    output, sums = attended(q, k, v, spec)
    alone = time.perf_counter() - began
    ids = torch.randint(5000, (length,))
    before, began, cpu = peak(), time.perf_counter(), time.process_time()
    stream = Stream(AttentionCall(q, k, v, spec, output, log_sums=sums))
    seen = Pass(stream, ids=ids, sizes=v[0].norm(dim=-1), resolution=128)
    took, cpu, more = time.perf_counter() - began, time.process_time() - cpu, peak() - before
    worst, drawn = 0.0, torch.randperm(length)[:ROWS].sort().values
    queries = stream.of(drawn)
    for head in range(HEADS):
        scores = q[0, head, drawn].double() @ k[0, head].double().T / math.sqrt(WIDTH)
        place = torch.arange(length)
        dense = scores.masked_fill(place > drawn[:, None], -math.inf).softmax(-1)
        for keys in spans(queries):
            hidden = stream.seen(queries, keys)
            tile = stream.tile(queries, slice(head, head + 1), keys, hidden).weights[0]
            worst = max(worst, float((tile - dense[:, keys]).abs().max()))
    size = 2 * q.numel() * q.element_size() / 1e6
    print(
        f"T = {length:,}: {took:.1f} s beside the {alone:.1f} s of the kernel ({cpu:.1f} s of CPU),"
        f" {more:.0f} MB above the {size:.0f} MB of q and k, and those of v and the output;"
        f" {ROWS} rows of each head differ by {worst:.1e}; P v - output: {seen.difference:.1e}"
    )


def network() -> None:
    """All 144 heads of a network of 12 layers with 1,024 tokens; prints a line."""
    import torch

    from bigmodel_cli.attend.layers import Wanted, found_in
    from bigmodel_cli.attend.look import Side
    from bigmodel_cli.config import DatasetInfo
    from bigmodel_cli.models.decoder import Decoder, DecoderOptions

    torch.manual_seed(0)
    attention = {"type": "attention", "num_heads": HEADS}
    blocks = [{"repeat": 12, "mixer": attention, "ffn": "gelu"}]
    values = {"dim": 768, "blocks": blocks, "vocab_size": 50257, "position": "learned"}
    model = Decoder(DecoderOptions.model_validate(values), DatasetInfo(context=1024)).eval()
    tokens = torch.randint(50257, (1, 1024))
    side = Side("text", [str(i) for i in range(1024)], tokens[0].tolist())
    with torch.inference_mode():
        model(tokens)
        began = time.perf_counter()
        model(tokens)
        alone, before = time.perf_counter() - began, peak()
        began = time.perf_counter()
        found = found_in(model, lambda: model(tokens), lambda n, c: (side, side), Wanted())
    took = time.perf_counter() - began
    worst = max(layer.difference for layer, _ in found.layers)
    print(
        f"144 heads, T = 1,024: {took:.1f} s, of which {alone:.1f} s are the forward pass;"
        f" {peak() - before:.0f} MB more; P v - output: {worst:.1e}"
    )


def main() -> None:
    """Each measurement in a process of its own."""
    if sys.argv[1:2] == ["--one"]:
        network() if sys.argv[2] == "network" else layer(int(sys.argv[2]))
        return
    for what in sys.argv[1:] or ["25000", "50000", "100000", "network"]:
        subprocess.run([sys.executable, __file__, "--one", what], check=True)


if __name__ == "__main__":
    main()
