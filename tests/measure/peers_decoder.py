"""A decoder trained by bigmodel, nanoGPT, the Hugging Face Trainer, x-transformers, and plain
loops, in turns.

    python tests/measure/peers_decoder.py --text input.txt [--size small|large] [--nanogpt FOLDER]
        [--peers VENV] [--rounds 6] [--seconds 3] [--only NAME ...]

small: 0.80 million parameters, 12 x 64 characters (4 layers, 4 heads, width 128); large: 10.7
million, 12 x 256 (6 layers, 6 heads, width 384). Each trains the same size on the same characters
by AdamW, as its user gets it by default: bigmodel by `pretrain` on its sample spec, the Trainer by
GPT2LMHeadModel without dropout. nanoGPT is not on PyPI: `--nanogpt` names its folder (git clone
https://github.com/karpathy/nanoGPT, with data/shakespeare_char prepared), whose train.py runs
unchanged by its README's options for a CPU. `like nanoGPT` is a loop that does what it does in a
step (fp32, a batch stacked row by row, clipping, AdamW without the fused kernel); the `by hand`
ones do less. With `--peers` x-transformers is installed into VENV, which is made where it is
missing and sees this Python's torch: its decoder of the same widths in a loop as its README has it
(fp32, clipping, AdamW), with its own attention and with attn_flash, PyTorch's; embeddings and head
tied, as the others have them. It reads one character more than it has targets, so that its rows are
of context + 1. The Trainer needs transformers with accelerate, which are not installed here.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from turns import Player, Turns, installed, play  # noqa: E402

SIZES = {"small": (12, 64, 128, 4, 4), "large": (12, 256, 384, 6, 6)}
"""Batch, context, width, layers, heads."""
OURS = "bigmodel"
HAND = {"like nanoGPT": "gathered", "by hand, fp32": "fp32", "by hand, autocast": "autocast",
        "by hand, all bf16": "bf16"}  # fmt: skip
WRAPPED = {"x-transformers": False, "x-transformers, attn_flash": True}


def bigmodel(text: Path, size: tuple[int, ...], turns: Turns) -> None:
    """`bigmodel pretrain` of the sample spec, stopped between steps."""
    sys.path.insert(0, str(HERE.parents[1]))
    from bigmodel_cli.__main__ import run
    from bigmodel_cli.train import loop

    batch, context, dim, layers, heads = size
    between = loop._between_steps

    def taking_turns(training: Any) -> bool:
        if training.state.step:
            turns.step()
        return between(training)

    loop._between_steps = taking_turns
    changes = {
        "data.files": f"[{text}]",
        "data.context": context,
        "model.dim": dim,
        "model.blocks.0.repeat": layers,
        "model.blocks.0.mixer.num_heads": heads,
        "train.batch_size": batch,
        "train.steps": 1_000_000,
        "train.validate_every": "null",
    }
    words = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    spec = HERE.parents[1] / "sample_configs" / "shakespeare_char.yaml"
    sys.exit(run(["pretrain", str(spec), *words]))


def trainer(text: Path, size: tuple[int, ...], turns: Turns) -> None:
    """transformers' Trainer with its defaults, on windows of the text."""
    import torch
    from by_hand import tokens_of
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class Waiting(TrainerCallback):
        def on_step_end(self, *args: Any, **options: Any) -> None:
            turns.step()

    batch, context, dim, layers, heads = size
    data, vocab = tokens_of(text)

    class Windows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(data) - context

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"input_ids": data[i : i + context], "labels": data[i : i + context]}

    config = GPT2Config(
        vocab_size=vocab, n_positions=context, n_embd=dim, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    options = TrainingArguments(
        "trainer", per_device_train_batch_size=batch, max_steps=1_000_000, learning_rate=1e-3,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    Trainer(
        GPT2LMHeadModel(config), options, train_dataset=Windows(), callbacks=[Waiting()]
    ).train()


def nanogpt(folder: Path, size: tuple[int, ...], turns: Turns) -> None:
    """Its train.py, which looks at the clock once before the first and once after each step."""
    batch, context, dim, layers, heads = size
    clock, calls = time.time, 0

    def looked_at() -> float:
        nonlocal calls
        if sys._getframe(1).f_code.co_filename.endswith("train.py"):
            calls += 1
            if calls > 1:
                turns.step()
        return clock()

    time.time = looked_at
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = [
        "train.py", "config/train_shakespeare_char.py", "--device=cpu", "--compile=False",
        "--eval_interval=1000000", "--eval_iters=1", "--log_interval=10", f"--block_size={context}",
        f"--batch_size={batch}", f"--n_layer={layers}", f"--n_head={heads}", f"--n_embd={dim}",
        "--max_iters=1000000", "--lr_decay_iters=1000000", "--dropout=0.0",
        f"--out_dir={tempfile.mkdtemp()}",
    ]  # fmt: skip
    runpy.run_path("train.py", run_name="__main__")


def x_transformers(text: Path, size: tuple[int, ...], turns: Turns, flash: bool) -> None:
    """x-transformers' decoder in a loop as its README has it."""
    import torch
    from by_hand import tokens_of
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    batch, context, dim, layers, heads = size
    data, vocab = tokens_of(text)
    decoder = Decoder(
        dim=dim, depth=layers, heads=heads, attn_dim_head=dim // heads, attn_flash=flash
    )
    wrapper = TransformerWrapper(
        num_tokens=vocab, max_seq_len=context + 1, attn_layers=decoder, tie_embedding=True
    )
    model = AutoregressiveWrapper(wrapper)
    numbers = sum(p.numel() for p in model.parameters())
    print(f"{numbers:,} parameters")
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=False
    )
    reach, count = torch.arange(context + 1), 0
    while True:
        starts = torch.randint(len(data) - context, (batch,))
        loss = model(data[starts[:, None] + reach])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        count += 1
        if count % 50 == 0:
            print(f"step {count}  loss {loss.item():.3f}", flush=True)
        turns.step()


def work(name: str, text: Path, size: tuple[int, ...], folder: Path | None) -> None:
    """The worker `name`: it trains until its pipe is closed."""
    turns = Turns()
    if name == OURS:
        bigmodel(text, size, turns)
    elif name == "Trainer":
        trainer(text, size, turns)
    elif name == "nanoGPT":
        assert folder is not None
        nanogpt(folder, size, turns)
    elif name in WRAPPED:
        x_transformers(text, size, turns, WRAPPED[name])
    else:
        from by_hand import decoder

        batch, context, dim, layers, heads = size
        decoder(text, (batch, context, dim, layers, heads), turns.step, HAND[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--peers", type=Path, help="an environment for x-transformers")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--logs", type=Path, help="a folder for what they print")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    text, folder = asked.text.resolve(), asked.nanogpt and asked.nanogpt.resolve()
    if asked.work:
        work(asked.work, text, SIZES[asked.size], folder)
        return
    there = ["Trainer"] if importlib.util.find_spec("transformers") else []
    wrapped, python = list[str](), sys.executable
    if asked.peers:
        wrapped = list(WRAPPED)
        python = str(installed(asked.peers.resolve(), {"x_transformers": "x-transformers"}))
    names = [OURS, *there, *(["nanoGPT"] if folder else []), *wrapped, *HAND]
    chosen = [name for name in names if name == OURS or not asked.only or name in asked.only]
    own = ["--text", str(text), "--size", asked.size]
    own += ["--nanogpt", str(folder)] if folder else []
    with tempfile.TemporaryDirectory() as temporary:
        players = []
        for name in chosen:
            own_python = python if name in WRAPPED else sys.executable
            command = [own_python, str(Path(__file__).resolve()), *own, "--work", name]
            place = Path(temporary)
            log = (asked.logs or place) / f"{name}.log"
            players.append(Player.start(name, command, log, place))
        batch, context, *_ = SIZES[asked.size]
        play(players, OURS, "tokens", batch * context, asked.rounds, asked.seconds)


if __name__ == "__main__":
    main()
