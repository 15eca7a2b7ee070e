"""ResNet-18 and ViT-tiny trained on CIFAR-10 by bigmodel, timm's parts, and a plain loop, in turns.

    python tests/measure/peers_vision.py --data FOLDER [--model resnet18 resnet18_3x3 vit_tiny]
        [--rounds 6] [--seconds 6] [--only NAME ...] [--losses 200]

FOLDER has train.parquet. Images of 32 x 32 in batches of 128, cut out of black edges of 4 pixels
and mirrored, label smoothing 0.1. resnet18 is the published network (11,181,642 parameters),
resnet18_3x3 begins with a convolution of 3 x 3 and no pooling, as is usual for CIFAR (11,173,962),
vit_tiny has patches of 4 (5,362,762). The ResNets learn by SGD with Nesterov's momentum, the ViT by
AdamW. bigmodel is `pretrain`, which chooses its precision by itself.

timm's train.py is not in its package: its step is written here from what it calls (create_model,
create_loader with its prefetcher and four workers, LabelSmoothingCrossEntropy, create_optimizer_v2,
create_scheduler_v2), in its default of fp32, with its `--amp --amp-dtype bfloat16` and with
`--channels-last` besides. Its random crop is that of DeiT for small images. Workers load ahead
while others have their turn (eight batches at most), and their processor time is not counted.
`by hand` trains timm's network on batches gathered at once, with fused optimizers. Decoded images
lie ready for all. timm's last gains of residual branches start at one, as torchvision's do.
`--losses N` measures nothing: each trains N steps alone, and the mean loss of each fifth is
printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from turns import Player, Turns, play  # noqa: E402

OURS, BATCH, SMOOTHING, EPOCHS = "bigmodel", 128, 0.1, 1000
TIMM = {"timm": (), "timm, amp": ("amp",), "timm, amp, channels last": ("amp", "last")}
HAND = {"by hand, fp32": ("last",), "by hand, autocast": ("amp", "last")}
SGD = {"lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
ADAMW = {"lr": 1e-3, "weight_decay": 0.05}
AUGMENT = [{"type": "RandomCrop", "padding": 4}, {"type": "RandomHorizontalFlip"}]


def stage(channels: int, stride: int) -> list[dict[str, Any]]:
    """Two residual blocks, as ResNet-18 has them."""

    def block(stride: int) -> dict[str, Any]:
        conv = {"type": "conv", "channels": channels, "padding": 1, "bias": False, "norm": "batch"}
        layers = [{**conv, "stride": stride}, {**conv, "activation": "none"}]
        return {"type": "residual", "layers": layers}

    return [block(stride), block(1)]


STEM = {"type": "conv", "channels": 64, "padding": 1, "bias": False, "norm": "batch"}
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {"type": "torchvision", "name": "resnet18"},
    "resnet18_3x3": {
        "type": "cnn",
        "layers": [
            STEM, *stage(64, 1), *stage(128, 2), *stage(256, 2), *stage(512, 2),
            {"type": "adaptive_pool", "size": 1}, {"type": "flatten"},
            {"type": "dense", "units": "classes"},
        ],
    },
    "vit_tiny": {
        "type": "vit", "dim": 192, "patch": 4, "pool": "cls",
        "blocks": [{
            "repeat": 12, "mixer": {"type": "attention", "num_heads": 3}, "ffn": {"type": "gelu"}
        }],
    },
}  # fmt: skip


def spec_of(name: str, data: Path) -> dict[str, Any]:
    """What `pretrain` reads."""
    sgd = name != "vit_tiny"
    return {
        "model": MODELS[name],
        "data": {
            "type": "parquet_images", "train": [str(data / "train.parquet")], "val_fraction": 0,
            "augment": AUGMENT,
        },
        "task": {"type": "classification", "label_smoothing": SMOOTHING},
        "train": {
            "epochs": EPOCHS, "batch_size": BATCH, "schedule": {"type": "cosine", "warmup": 0},
            "optimizer": {"type": "sgd", **SGD} if sgd else {"type": "adamw", **ADAMW},
        },
    }  # fmt: skip


class Losses:
    """A worker's turns, or its losses over so many steps."""

    def __init__(self, turns: Turns | None, count: int) -> None:
        self.turns, self.count, self.found = turns, count, list[float]()

    def step(self, loss: float) -> None:
        """A step is over, whose loss this is."""
        if self.turns is not None:
            self.turns.step()
            return
        self.found.append(loss)
        if len(self.found) == self.count:
            part = self.count // 5
            means = [sum(self.found[i * part : (i + 1) * part]) / part for i in range(5)]
            line = json.dumps([round(mean, 3) for mean in means])
            print(line, file=sys.__stdout__, flush=True)
            os._exit(0)


def bigmodel(name: str, data: Path, after: Losses) -> None:
    """`bigmodel pretrain`, stopped between steps."""
    sys.path.insert(0, str(HERE.parents[1]))
    from bigmodel_cli.__main__ import run
    from bigmodel_cli.train import loop

    add = loop._add

    def taking_turns(run: Any, watch: Any, result: Any) -> None:
        add(run, watch, result)
        after.step(result.loss)

    loop._add = taking_turns
    spec = Path(tempfile.mkdtemp(), f"{name}.yaml")
    spec.write_text(json.dumps(spec_of(name, data)))
    sys.exit(run(["pretrain", str(spec), "--out", str(spec.parent / "run")]))


def network(name: str) -> Any:
    """timm's network."""
    import timm
    from torch import nn

    if name == "vit_tiny":
        return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10)
    model = timm.create_model("resnet18", num_classes=10, zero_init_last=False)
    if name == "resnet18_3x3":
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def decoded(data: Path, place: Path) -> None:
    """Pixels (N, H, W, C) uint8 and labels (N,) as files."""
    import numpy as np
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(data / "train.parquet").to_pydict()
    images = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"]]
    np.save(place / "pixels.npy", np.stack(images))
    np.save(place / "labels.npy", np.array(table["label"], np.int64))


def moments(pixels: Any) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel, of pixels in 0 to 1."""
    import numpy as np

    flat = pixels.reshape(-1, 3)[::7].astype(np.float32) / 255
    return flat.mean(0).tolist(), flat.std(0).tolist()


def timm_batches(place: Path, workers: int) -> Any:
    """timm's loader over the images, as PIL reads them."""
    import numpy as np
    import torch
    from PIL import Image
    from timm.data import create_loader
    from torchvision import transforms

    pixels, labels = np.load(place / "pixels.npy"), np.load(place / "labels.npy")

    class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
        """As torchvision's CIFAR10."""

        transform: Any = None

        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, i: int) -> tuple[Any, int]:
            return self.transform(Image.fromarray(pixels[i])), int(labels[i])

    mean, std = moments(pixels)
    loader = create_loader(
        Images(), (3, 32, 32), BATCH, is_training=True, color_jitter=0.0, hflip=0.5, mean=mean,
        std=std, num_workers=workers, device=torch.device("cpu"),
    )  # fmt: skip
    loader.dataset.transform.transforms[0] = transforms.RandomCrop(32, padding=4)
    return loader


def timm_loop(name: str, place: Path, after: Losses, kind: tuple[str, ...], workers: int) -> None:
    """The epochs of timm's train.py on a CPU."""
    import torch
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    layout = torch.channels_last if "last" in kind else torch.contiguous_format
    model = network(name).to(memory_format=layout)
    opt, options = ("adamw", ADAMW) if name == "vit_tiny" else ("sgd", SGD)
    optimizer = create_optimizer_v2(model, opt=opt, **options)
    loader, loss_of = timm_batches(place, workers), LabelSmoothingCrossEntropy(SMOOTHING)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", EPOCHS, step_on_epochs=False, updates_per_epoch=len(loader)
    )
    model.train()
    updates = 0
    for epoch in range(EPOCHS):
        for x, y in loader:
            x = x.contiguous(memory_format=layout)
            with amp(kind):
                loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            scheduler.step_update(num_updates=updates)
            after.step(loss.item())
        scheduler.step(epoch + 1)


def amp(kind: tuple[str, ...]) -> contextlib.AbstractContextManager[Any]:
    """Products in bf16, or everything in fp32."""
    import torch

    return torch.autocast("cpu", torch.bfloat16) if "amp" in kind else contextlib.nullcontext()


def gathered(place: Path, layout: Any) -> Iterator[Any]:
    """Batches drawn, cut and mirrored at once."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    pixels = torch.from_numpy(np.load(place / "pixels.npy"))
    labels = torch.from_numpy(np.load(place / "labels.npy"))
    mean, std = (torch.tensor(found) * 255 for found in moments(pixels.numpy()))
    wide = F.pad(pixels, (0, 0, 4, 4, 4, 4))
    side = torch.arange(32)
    while True:
        for rows in torch.randperm(len(labels)).split(BATCH):
            corner = torch.randint(9, (2, len(rows), 1))
            across = torch.where(torch.rand(len(rows), 1) < 0.5, side, 31 - side) + corner[1]
            down = corner[0] + side
            found = wide[rows[:, None, None], down[:, :, None], across[:, None, :]]
            x = ((found - mean) / std).permute(0, 3, 1, 2).contiguous(memory_format=layout)
            yield x, labels[rows]


def by_hand(name: str, place: Path, after: Losses, kind: tuple[str, ...]) -> None:
    """A plain loop."""
    import torch
    import torch.nn.functional as F

    layout = torch.channels_last
    model = network(name).to(memory_format=layout)
    optimizer = (
        torch.optim.AdamW(model.parameters(), fused=True, **ADAMW)
        if name == "vit_tiny"
        else torch.optim.SGD(model.parameters(), nesterov=True, fused=True, **SGD)
    )
    for x, y in gathered(place, layout):
        with amp(kind):
            loss = F.cross_entropy(model(x), y, label_smoothing=SMOOTHING)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after.step(loss.detach().item())


def work(name: str, model: str, place: Path, asked: argparse.Namespace) -> None:
    """The worker `name`: it trains until its pipe is closed."""
    after = Losses(None if asked.losses else Turns(), asked.losses)
    if name == OURS:
        bigmodel(model, asked.data, after)
    elif name in TIMM:
        timm_loop(model, place, after, TIMM[name], asked.workers)
    else:
        by_hand(model, place, after, HAND[name])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=4, help="of timm's loader: its default")
    parser.add_argument("--losses", type=int, default=0)
    parser.add_argument("--logs", type=Path, help="a folder for what they print")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.data = asked.data.resolve()
    return asked


def main() -> None:
    asked = parsed()
    if asked.work:
        work(asked.work, asked.model[0], asked.place, asked)
        return
    names = [n for n in [OURS, *TIMM, *HAND] if n == OURS or not asked.only or n in asked.only]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        decoded(asked.data, place)
        for model in asked.model:
            own = [sys.executable, str(Path(__file__).resolve()), "--data", str(asked.data)]
            own += ["--model", model, "--place", temporary, "--workers", str(asked.workers)]
            commands = {name: [*own, "--work", name] for name in names}
            print(f"\n{model}, batches of {BATCH}", flush=True)
            if asked.losses:
                for name, command in commands.items():
                    told = subprocess.run(
                        [*command, "--losses", str(asked.losses)],
                        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
                    ).stdout.splitlines()  # fmt: skip
                    print(name, told[-1].decode(), flush=True)
                continue
            logs = {name: (asked.logs or place) / f"{model}, {name}.log" for name in names}
            Player.start(OURS, commands[OURS], logs[OURS], place).end()  # its cache is filled
            players = [Player.start(n, c, logs[n], place) for n, c in commands.items()]
            play(players, OURS, "images", BATCH, asked.rounds, asked.seconds)


if __name__ == "__main__":
    main()
