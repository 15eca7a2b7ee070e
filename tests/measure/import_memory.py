"""What importing a published model takes beside its weights: peak memory, and time.

    python tests/measure/import_memory.py [--gigabytes 2] [--folder FOLDER] [--rounds 3]
        [--ways loaded assembled four_bits transformers]

A Llama in fp32, in files of a fifth of it each, is written into the folder. Each measurement is a
process of its own. Peak memory is above what the process holds when its packages are loaded, as a
multiple of the weights' bytes; time is a multiple of that of reading the files' bytes into fresh
memory. transformers, which maps the files, is beside it: it reads them as they are used, so its
model is also summed up once. The files are in the system's cache.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "convert")]
DIM, HIDDEN, VOCAB = 1024, 2816, 32_000


def memory(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


def make(folder: Path, size: int) -> None:
    """The folder, of about so many bytes."""
    import torch
    from folders import LLAMA, write_tensors

    block = 4 * (DIM * (DIM * 4) + 3 * DIM * HIDDEN)
    layers = max(1, round((size - 8 * VOCAB * DIM) / block))
    config = LLAMA | {
        "hidden_size": DIM, "intermediate_size": HIDDEN, "num_hidden_layers": layers,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64, "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
    }  # fmt: skip
    shapes = {
        "model.embed_tokens.weight": (VOCAB, DIM),
        "lm_head.weight": (VOCAB, DIM),
        "model.norm.weight": (DIM,),
    }
    for i in range(layers):
        own = f"model.layers.{i}."
        shapes |= {f"{own}self_attn.{n}_proj.weight": (DIM, DIM) for n in "qkvo"}
        shapes |= {f"{own}mlp.{n}_proj.weight": (HIDDEN, DIM) for n in ("gate", "up")}
        shapes |= {f"{own}mlp.down_proj.weight": (DIM, HIDDEN)}
        names = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"{own}{n}.weight": (DIM,) for n in names}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names, where = list(shapes), {}
    for number in range(5):
        file = f"model-{number + 1:05d}-of-00005.safetensors"
        own_names = names[number::5]
        write_tensors(folder / file, {n: torch.randn(shapes[n]) * 0.02 for n in own_names})
        where |= dict.fromkeys(own_names, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )


def read(folder: Path) -> None:
    """The files' bytes, into fresh memory."""
    import numpy as np

    kept = []
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            kept.append(np.empty(path.stat().st_size, np.uint8))
            file.readinto(kept[-1].data)


def loaded(folder: Path) -> None:
    """As eval and predict import it."""
    from bigmodel_cli.loaded import load_checkpoint

    load_checkpoint(folder, "cpu")


def assembled(folder: Path) -> None:
    """As finetuning imports it, with the same head."""
    _assembled(folder)


def four_bits(folder: Path) -> None:
    """As finetuning a LoRA on a base of 4 bits imports it, up to the first step."""
    from bigmodel_cli.adapters import ADAPTERS
    from bigmodel_cli.train.held import hold

    low = {"type": "lora", "rank": 4, "targets": ["*.qkv.q", "*.qkv.v"], "base": "nf4"}
    model = _assembled(folder, ADAPTERS["lora"].model_validate(low))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    hold(model, frozen, ADAPTERS["lora"].model_validate(low), "bf16")


def _assembled(folder: Path, adapter: Any = None) -> Any:
    import torch

    from bigmodel_cli.assemble import assemble
    from bigmodel_cli.config import DatasetInfo
    from bigmodel_cli.convert import opening
    from bigmodel_cli.spec import of_checkpoint

    spec = of_checkpoint(opening.read_spec(folder), folder)
    spec = spec.model_copy(update={"adapter": adapter})
    info = DatasetInfo.from_json(opening.read(folder).info)
    return assemble(spec, info, torch.device("cpu"), folder)


def transformers(folder: Path) -> None:
    """As transformers imports it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    for weight in model.parameters():
        weight.sum()


WAYS = {f.__name__: f for f in (read, loaded, assembled, four_bits, transformers)}


def measured(way: str, folder: Path) -> None:
    """Print one measurement, in this process."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if way == "transformers":
        import transformers as library

        _ = library.AutoModelForCausalLM, library.LlamaForCausalLM
    elif way != "read":
        import tokenizers  # noqa: F401

        import bigmodel_cli.train.session  # noqa: F401
    small = folder.parent / "small"
    if way != "read":
        WAYS[way](small)  # what a first use loads is not the weights'
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    floor, start = memory("VmRSS"), time.perf_counter()
    WAYS[way](folder)
    taken = time.perf_counter() - start
    print(json.dumps({"seconds": taken, "bytes": memory("VmHWM") - floor}))


def run(way: str, folder: Path) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Write the folder and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="where to write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=[*WAYS], choices=WAYS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.way:
        measured(chosen.way, chosen.folder)
        return
    root = Path(tempfile.mkdtemp(prefix="import-", dir=chosen.folder))
    from folders import LLAMA, drawn_folder

    try:
        folder = root / "model"
        make(folder, int(chosen.gigabytes * 1e9))
        drawn_folder(root / "small", LLAMA | {"intermediate_size": 32})
        run("read", folder)  # into the system's cache
        size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        ways = ["read", *(way for way in chosen.ways if way != "read")]
        rounds = [{way: run(way, folder) for way in ways} for _ in range(chosen.rounds)]
        print(f"{size / 1e9:.2f} GB of weights in fp32; the best of {chosen.rounds} rounds")
        print("way            memory / weights   time / reading   seconds")
        least = min(r["read"]["seconds"] for r in rounds)
        for way in ways:
            best = min(r[way]["seconds"] for r in rounds)
            most = max(r[way]["bytes"] for r in rounds)
            print(f"{way:14} {most / size:16.3f} {best / least:16.2f} {best:9.2f}")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
