"""What an adapter saves: the peak memory and the time of training steps, beside full finetuning.

    python tests/measure/adapters.py --data DATA --minilm FOLDER [--cases minilm decoder vit resnet]
        [--teacher CKPT]

Each network is drawn and saved (MiniLM: published), then finetuned whole and with adapters. Peak
memory is measured in a process for each way, in two ways: `tensors` is what all tensors hold at
once, weights, gradients and optimizer included, in steps on the largest batches; `process` is the
most that the system gave the process, from building the model to the last step, above what it held
after a first step and after all of that was freed. With --teacher, a finetuned MiniLM, there is
also `taught`: rsLoRA of rank 32, with EMA and activation checkpointing, that learns from its
answers, which it gives once before the first step: `asking` is what all tensors hold at once
meanwhile, and `tensors` has the answers to a batch too. Times are of processor time, one thread, of
steps that take turns in one process.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
WAYS = ("full", "lora", "dora", *(("nf4",) if importlib.util.find_spec("torchao") else ()))
"""nf4: LoRA on a base of 4 bits, where torchao is installed."""
STEPS = 12
TARGETS = {
    "minilm": '["*.qkv", "*.ffn.up"]',
    "decoder": '["*.qkv.q", "*.qkv.v"]',
    "vit": '["*.qkv.q", "*.qkv.v"]',
    "resnet": '["*.conv*"]',
}
SPECS: dict[str, str] = {
    "decoder": """
model:
  type: decoder
  dim: 512
  tie_embeddings: false
  blocks:
    - repeat: 6
      mixer: {{type: attention, num_heads: 8, kv_heads: 2, bias: false, position: rotary}}
      ffn: {{type: swiglu, hidden: 1408}}
      norm: {{type: rmsnorm, eps: 1e-5}}
  norm: {{type: rmsnorm, eps: 1e-5}}
data: {{type: text, files: ["{data}/tinyshakespeare/input.txt"], context: 256,
       tokenizer: {{type: bpe, vocab_size: 4096}}}}
task: causal_lm
train: {{steps: 1, batch_size: 4, optimizer: {{type: adamw, lr: 1e-4}}, precision: {precision}}}
""",
    "vit": """
model:
  type: vit
  dim: 384
  patch: 4
  blocks:
    - {{repeat: 6, mixer: {{type: attention, num_heads: 6}}, ffn: gelu}}
data: {{type: parquet_images, train: ["{data}/cifar10/test.parquet"], val_fraction: 0.01}}
task: classification
train: {{steps: 1, batch_size: 16, optimizer: {{type: adamw, lr: 1e-4}}, precision: {precision}}}
""",
    "resnet": """
model: {{type: torchvision, name: resnet18}}
data: {{type: parquet_images, train: ["{data}/cifar10/test.parquet"], val_fraction: 0.01, size: 64}}
task: classification
train: {{steps: 1, batch_size: 16, optimizer: {{type: adamw, lr: 1e-4}}, precision: {precision}}}
""",
    "minilm": """
data: {{type: table, train: ["{data}/sst2/train.tsv"], val: ["{data}/sst2/dev.tsv"], text: [0],
       label: 1, context: 64}}
task: classification
train: {{steps: 1, batch_tokens: 800, optimizer: {{type: adamw, lr: 1e-4, weight_decay: 0.01}},
        max_grad_norm: 1.0, precision: {precision}}}
""",
}


TAUGHT = "taught"


def settings(case: str, way: str, base: Path, teacher: Path | None) -> list[str]:
    """What the command line adds to the case's spec."""
    if way == "full":
        return [f"init.checkpoint={base}"]
    if way == TAUGHT:
        targets = '["*.qkv", "*.out", "*.ffn.up", "*.ffn.down"]'
        return [
            f"init.checkpoint={base}",
            "model.pool=mean",
            "model.pooler=false",
            "train.ema=0.99",
            "train.checkpointing=blocks",
            f"adapter={{type: rslora, rank: 32, targets: {targets}, modules_to_save: [head]}}",
            f"distill={{teacher: {teacher}, weight: 0.9, hidden: 1.0, once: true}}",
        ]
    targets, head = TARGETS[case], "fc" if case == "resnet" else "head"
    kind = "lora, base: nf4" if way == "nf4" else way
    whole = f", modules_to_save: [{head}]" if case != "decoder" else ""
    return [
        f"init.checkpoint={base}",
        f"adapter={{type: {kind}, rank: 8, targets: {targets}{whole}}}",
    ]


def memory(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


def started(case: str, way: str, folder: Path, teacher: Path | None = None) -> Any:
    """A call that sets the run up as training does: (options, state, objective, loader, bytes of
    the tensors while a teacher answers).
    """
    from bigmodel_cli.convert import opening
    from bigmodel_cli.device import keep_few_kernels, pick_device
    from bigmodel_cli.models.footprint import following
    from bigmodel_cli.spec import load
    from bigmodel_cli.train.held import hold
    from bigmodel_cli.train.objectives import objective_of
    from bigmodel_cli.train.once import taught_once
    from bigmodel_cli.train.session import set_up
    from bigmodel_cli.train.setup import open_run, open_task

    base = Path((folder / f"{case}.base").read_text())
    known = {**opening.read_spec(base), "init": {}}
    run = open_run(load(folder / f"{case}.yaml", settings(case, way, base, teacher), known))
    task, device = open_task(run.spec, run.data), pick_device("cpu", lambda _: None)
    keep_few_kernels()

    def build() -> tuple[Any, Any, Any, Any, int]:
        with following([], "cpu") as alive:
            taught = taught_once(run, task, device, folder, None)
        spec, model, state, loader = set_up(taught, task, device, None)
        hold(model, state.left_out, spec.adapter, spec.train.precision)
        data = run.data
        objective = objective_of(spec, task, data.info, data.assets(), model, device)
        objective.hold(spec.train.precision)
        return spec.train, state, objective, loader, max(alive.course, default=0)

    return build


def stepping(options: Any, state: Any, objective: Any, batches: list[Any]) -> None:
    """One step."""
    import torch

    from bigmodel_cli.train.step import train_step

    train_step(state, objective, options, batches, torch.device("cpu"), options.optimizer.lr)
    state.after_step()


def measured(case: str, way: str, folder: Path, teacher: Path | None) -> dict[str, float]:
    """Peak bytes of one way, in this process."""
    import torch

    from bigmodel_cli.bench.peak import peak_memory
    from bigmodel_cli.train.answers import LOGITS, STREAMS

    build = started(case, way, folder, teacher)
    options, state, objective, loader, _ = build()  # loads libraries, and what they set up once
    for batches in loader.steps(0, 1):
        stepping(options, state, objective, batches)
    del options, state, objective, loader, batches
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    floor = memory("VmRSS")
    options, state, objective, loader, asking = build()
    built = memory("VmHWM") - floor
    for batches in loader.steps(0, STEPS):
        stepping(options, state, objective, batches)
    process = memory("VmHWM") - floor
    tensors = 0
    for batches in loader.steps(0, STEPS):
        every = [t for batch in batches for t in batch.values()]
        given = [t for batch in batches for n, t in batch.items() if n in (LOGITS, STREAMS)]

        def step(batches: list[Any] = batches) -> None:
            stepping(options, state, objective, batches)

        peak = peak_memory(state, step, every, torch.device("cpu"))
        tensors = max(tensors, peak + sum(t.nbytes for t in given))
    found = {"tensors": tensors, "process": process, "building": built}
    return found | ({"asking": asking} if way == TAUGHT else {})


def timed(case: str, folder: Path, rounds: int) -> dict[str, float]:
    """Seconds of processor time of a step, the median of steps that take turns."""
    runs = {way: started(case, way, folder)() for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    streams = {way: runs[way][3].steps(0, rounds) for way in WAYS}
    for _ in range(rounds):
        for way, (options, state, objective, *_) in runs.items():
            batches = next(streams[way])
            start = time.process_time()
            stepping(options, state, objective, batches)
            times[way].append(time.process_time() - start)
    found = {way: statistics.median(values[3:]) for way, values in times.items()}
    for way in WAYS[1:]:
        pairs = zip(times[way][3:], times["full"][3:], strict=True)
        found[f"{way} / full"] = statistics.median(a / b for a, b in pairs)
    return found


def make(case: str, folder: Path, given: argparse.Namespace) -> None:
    """The spec, and the checkpoint that it starts from."""
    text = SPECS[case].format(data=given.data.resolve(), precision=given.precision)
    (folder / f"{case}.yaml").write_text(text)
    base = given.minilm
    if case != "minilm":
        words = ["pretrain", str(folder / f"{case}.yaml"), "--out", str(folder / case)]
        done = run([sys.executable, "-m", "bigmodel_cli", *words])
        base = Path(done.stdout.strip())
    (folder / f"{case}.base").write_text(str(base.resolve()))


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A process with this repository's code."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done


def table_of(case: str, folder: Path, given: argparse.Namespace) -> None:
    """Print the figures of a case."""
    own = [sys.executable, __file__, "--data", str(given.data), "--folder", str(folder)]
    found = {}
    taught = given.teacher is not None and case == "minilm"
    for way in (*WAYS, *([TAUGHT] if taught else [])):
        more = ["--teacher", str(given.teacher.resolve())] if taught else []
        done = run([*own, "--one", case, way, *more])
        found[way] = json.loads(done.stdout.splitlines()[-1])
        whole = {"asking": found["full"]["tensors"], **found["full"]}
        shown = (
            f"{what} {size / 1e6:7.1f} MB ({size / whole[what]:5.1%})"
            for what, size in found[way].items()
        )
        print(f"{case:8} {way:6}", *shown, flush=True)
    if given.rounds:
        done = run([*own, "--one", case, "time", "--rounds", str(given.rounds)])
        print(f"{case:8} time ", done.stdout.splitlines()[-1], flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minilm", type=Path, help="the folder of all-MiniLM-L6-v2")
    parser.add_argument("--teacher", type=Path, help="a finetuned MiniLM of SST-2's labels")
    parser.add_argument("--cases", nargs="*", default=list(SPECS))
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--rounds", type=int, default=23, help="steps to time; 0: none")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        case, way = given.one
        found = (
            timed(case, given.folder, given.rounds)
            if way == "time"
            else measured(case, way, given.folder, given.teacher)
        )
        print(json.dumps(found))
        return
    folder = Path(tempfile.mkdtemp(prefix="adapters-"))
    try:
        for case in given.cases:
            if case != "minilm" or given.minilm:
                make(case, folder, given)
                table_of(case, folder, given)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
