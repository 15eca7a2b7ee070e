"""Peak memory of one training step of GPT-2 small, with and without what saves memory.

    python tests/measure/gpt2_memory.py [--batch 8] [--context 1024] [--dropout 0.1] [--precision
    fp32] [--only NAME ...] [--limit GB]

Each variant is a process of its own: random weights, random tokens, one step of AdamW. Reported are
the peak of its resident memory (VmHWM) in all and above what it had before the model was built
(libraries), and the time of the step. The last two are the Trainer of `transformers`, with the same
network (its GPT-2), batch and precision. A variant that needs more than `--limit` gigabytes of data
ends, and that is reported. One JSON line for each, and a table at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VARIANTS: dict[str, dict[str, str]] = {
    "whole logits": {"loss_chunk": "off", "checkpointing": "none"},
    "default": {"loss_chunk": "auto", "checkpointing": "none"},
    "whole logits, checkpointing": {"loss_chunk": "off", "checkpointing": "blocks"},
    "default, checkpointing": {"loss_chunk": "auto", "checkpointing": "blocks"},
}
PEERS = {"HF Trainer": False, "HF Trainer, checkpointing": True}
LAYERS, WIDTH, HEADS, VOCAB = 12, 768, 12, 50257


def resident(name: str) -> float:
    """Megabytes of `VmRSS` or `VmHWM` of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def spec(args: argparse.Namespace, train: dict[str, str]) -> dict[str, Any]:
    """sample_configs/gpt2.yaml with random tokens."""
    attention = {"type": "attention", "num_heads": HEADS, "dropout": args.dropout}
    ffn = {"type": "gelu", "approximate": "tanh"}
    block = {"repeat": LAYERS, "mixer": attention, "ffn": ffn, "dropout": args.dropout}
    return {
        "type": "decoder",
        "dim": WIDTH,
        "vocab_size": VOCAB,
        "max_len": args.context,
        "init_std": 0.02,
        "position": {"type": "learned"},
        "dropout": args.dropout,
        "blocks": [block],
    }


def own(args: argparse.Namespace) -> dict[str, float]:
    """One step of bigmodel's."""
    import torch

    from bigmodel_cli.config import DatasetInfo
    from bigmodel_cli.device import keep_freed_memory
    from bigmodel_cli.lazy import load_torch

    load_torch()
    keep_freed_memory()  # as `pretrain` does
    from bigmodel_cli.depths import rated
    from bigmodel_cli.models import MODELS
    from bigmodel_cli.recipe import TrainOptions
    from bigmodel_cli.roles import named_weights
    from bigmodel_cli.tasks import TASKS
    from bigmodel_cli.train.objective import Objective
    from bigmodel_cli.train.state import TrainState
    from bigmodel_cli.train.step import train_step

    floor, info = resident("VmRSS"), DatasetInfo(vocab_size=VOCAB, context=args.context)
    train = {"steps": 1, "precision": args.precision, "max_grad_norm": 1.0, **VARIANTS[args.run]}
    options = TrainOptions.model_validate(train)
    model = MODELS["decoder"].model_validate(spec(args, VARIANTS[args.run])).build(info).train()
    if options.checkpointing == "blocks":
        model.recompute()
    task: Any = TASKS["causal_lm"].model_validate({}).build(info)
    state = TrainState(model, options.optimizer.build(rated(model, named_weights(model), options)))
    tokens = torch.randint(VOCAB, (args.batch, args.context + 1))
    start = time.perf_counter()
    device, objective = torch.device("cpu"), Objective(task, options.loss_chunk)
    train_step(state, objective, options, [{"tokens": tokens}], device, 1e-4)
    return {"floor": floor, "seconds": time.perf_counter() - start}


def peer(args: argparse.Namespace) -> dict[str, float]:
    """One step of the Trainer."""
    import torch
    import transformers

    floor = resident("VmRSS")
    p = args.dropout
    config = transformers.GPT2Config(
        n_positions=args.context, resid_pdrop=p, embd_pdrop=p, attn_pdrop=p
    )
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.randint(VOCAB, (args.batch, args.context))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    seconds: list[float] = []

    class Timed(transformers.TrainerCallback):
        """Notes when the step begins and ends."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(time.perf_counter())

        on_step_end = on_step_begin

    with tempfile.TemporaryDirectory() as folder:
        options = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=args.batch,
            max_steps=1,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            bf16=args.precision == "bf16",
            gradient_checkpointing=PEERS[args.run],
            disable_tqdm=True,
        )
        transformers.Trainer(
            model=model, args=options, train_dataset=rows, callbacks=[Timed()]
        ).train()
    return {"floor": floor, "seconds": seconds[-1] - seconds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--only", nargs="*", choices=[*VARIANTS, *PEERS])
    parser.add_argument("--limit", type=float, default=18.0, help="gigabytes of data of a process")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        most = int(args.limit * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        found = own(args) if args.run in VARIANTS else peer(args)
        found["peak"] = resident("VmHWM")
        print(json.dumps({"variant": args.run, **found}))
        return
    rows = []
    for name in args.only or [*VARIANTS, *PEERS]:
        command = [sys.executable, __file__, *sys.argv[1:], "--run", name]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"variant')]
        if done.returncode or not lines:
            why = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
            lines = [json.dumps({"variant": name, "failed": why[:200], "limit": args.limit})]
        print(lines[-1], flush=True)
        rows.append(json.loads(lines[-1]))
    print("\n| variant | peak | above the libraries | step |\n|---|---|---|---|")
    for row in rows:
        if "failed" in row:
            print(f"| {row['variant']} | more than {args.limit:g} GB: {row['failed']} | | |")
            continue
        peak, floor = (1.048576e-3 * row[key] for key in ("peak", "floor"))
        print(
            f"| {row['variant']} | {peak:.2f} GB | {peak - floor:.2f} GB | {row['seconds']:.0f} s |"
        )


if __name__ == "__main__":
    main()
