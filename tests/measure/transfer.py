"""Transfer in small, each by the shell lines that a user would type, against from the beginning.

    python tests/measure/transfer.py digits|probe|resnet --data DATA --out FOLDER [--seeds 5]

digits: a CNN trained on the digits 0 to 4 of MNIST, finetuned on 5 to 9 with ten images a class.
probe: a ViT in DINOv2's form, a masked autoencoder for some minutes on CIFAR-10; a linear probe on
its frozen features, here and by scikit-learn's logistic regression on the same ones; and of the
same network once more as a folder of Hugging Face's.
resnet: torchvision's ResNet-18 trained on seven classes of CIFAR-10, written as NAME.pth, read from
there and finetuned on the other three.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import random
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PINNED = "precision: fp32, memory_format: contiguous, compile: 'off'"
MNIST = """\
model:
  type: cnn
  layers:
    - {type: conv, channels: 32, kernel: 3}
    - {type: pool}
    - {type: conv, channels: 64, kernel: 3}
    - {type: pool}
    - {type: conv, channels: 64, kernel: 3}
    - {type: flatten}
    - {type: dense, units: 64, activation: relu}
    - {type: dense, units: classes}
"""
DINO = """\
model:
  type: vit
  dim: 96
  patch: 4
  pool: cls_mean
  norm: {type: layernorm, eps: 1e-6}
  blocks:
    - repeat: 4
      mixer: {type: attention, num_heads: 3}
      ffn: {type: gelu, hidden: 384}
      norm: {type: layernorm, eps: 1e-6}
      layer_scale: 1.0
"""
RECONSTRUCT = """\
  reconstruct:
    dim: 64
    blocks: [{mixer: {type: attention, num_heads: 2}, ffn: {type: gelu}}]
"""
Pictures = list[tuple[str, bytes]]  # (label, PNG)


def bigmodel(line: str, folder: Path) -> str:
    """Run a shell line's command, which is shown; its stdout."""
    print(f"$ bigmodel {line}", file=sys.stderr, flush=True)
    words = [sys.executable, "-m", "bigmodel_cli", *shlex.split(line)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"status {done.returncode}\n{done.stderr}")
    return done.stdout


def accuracy(run: str, folder: Path) -> float:
    """Percent of the validation images."""
    found = json.loads(bigmodel(f"eval {run} --split val --json", folder))
    return 100 * float(found["metrics"]["accuracy"]["value"])


def mnist(data: Path, split: str) -> Pictures:
    """The images of a split."""
    raw = data / "mnist" / "MNIST" / "raw"
    pixels, labels = (
        gzip.decompress((raw / f"{split}-{name}-ubyte.gz").read_bytes())
        for name in ("images-idx3", "labels-idx1")
    )
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
    return [(str(label), _png(image)) for image, label in zip(images, labels[8:], strict=True)]


def _png(image: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def cifar(data: Path, split: str) -> Pictures:
    """The images of a split."""
    from pyarrow import parquet

    table = parquet.read_table(data / "cifar10" / f"{split}.parquet")
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    rows = table.to_pydict()
    return [
        (names[label], image["bytes"])
        for image, label in zip(rows["image"], rows["label"], strict=True)
    ]


def folders(place: Path, train: Pictures, val: Pictures) -> None:
    """An image folder: train/CLASS/N.png, val/CLASS/N.png."""
    for split, pictures in (("train", train), ("val", val)):
        for number, (label, content) in enumerate(pictures):
            (place / split / label).mkdir(parents=True, exist_ok=True)
            (place / split / label / f"{number}.png").write_bytes(content)


def some(
    pictures: Pictures, labels: Iterable[str], count: int, seed: int, after: int = 0
) -> Pictures:
    """So many of each of these classes, those after the first so many of a random order."""
    order = random.Random(seed).sample(pictures, len(pictures))
    return [
        p for label in labels for p in [p for p in order if p[0] == label][after : after + count]
    ]


def spec(
    model: str, root: str, task: str = "classification", more: str = "", train: str = ""
) -> str:
    """A spec on an image folder."""
    return (
        f"{model}data: {{type: image_folder, root: {root}{more}}}\n"
        f"task: {{type: {task}}}\ntrain: {{{train}, {PINNED}}}\n"
    )


def interval(values: list[float]) -> str:
    """The mean and its 95 % interval by Student's t."""
    t = {1: math.nan, 2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}[len(values)]
    mean = statistics.mean(values)
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.1f} % (95 % {mean - half:.1f} to {mean + half:.1f})"


def compared(rows: dict[str, list[float]]) -> None:
    """The table of ways, and the difference of the first two, seed by seed."""
    print("| way | accuracy, mean of the seeds | seeds |\n|---|---|---|")
    for way, values in rows.items():
        print(f"| {way} | {interval(values)} | {', '.join(f'{v:.1f}' for v in values)} |")
    first, second = list(rows.values())[:2]
    gains = [b - a for a, b in zip(first, second, strict=True)]
    print(f"| gain, paired | {interval(gains).replace(' %', '')} | |")


def transferred(out: Path, seeds: int, model: str, source: str, train: str) -> None:
    """Each seed's few images, from the beginning and from `source`."""
    rows: dict[str, list[float]] = {"from the beginning": [], "finetuned": []}
    (out / "scratch.yaml").write_text(spec(model, "few-0", train=train))
    (out / "finetune.yaml").write_text(spec("", "few-0", train=train))
    for seed in range(seeds):
        more = f"--seed {seed} --set data.root=few-{seed}"
        bigmodel(f"pretrain scratch.yaml --out scratch-{seed} {more}", out)
        bigmodel(f"finetune --from {source} finetune.yaml --out tuned-{seed} {more}", out)
        rows["from the beginning"].append(accuracy(f"scratch-{seed}", out))
        rows["finetuned"].append(accuracy(f"tuned-{seed}", out))
    compared(rows)


def digits(data: Path, out: Path, seeds: int) -> None:
    """0 to 4, then 5 to 9 with ten images a class."""
    train, test = mnist(data, "train"), mnist(data, "t10k")
    folders(out / "first", some(train, "01234", 1000, 0), some(test, "01234", 300, 0))
    for seed in range(seeds):
        folders(out / f"few-{seed}", some(train, "56789", 10, seed), some(test, "56789", 800, 0))
    (out / "first.yaml").write_text(spec(MNIST, "first", train="epochs: 3, batch_size: 64"))
    bigmodel("pretrain first.yaml --out first-run", out)
    print(f"0 to 4: {accuracy('first-run', out):.1f} %")
    transferred(out, seeds, MNIST, "first-run", "steps: 150, batch_size: 50")


def resnet(data: Path, out: Path, seeds: int) -> None:
    """Seven classes, then three with thirty images a class."""
    train, test = cifar(data, "train"), cifar(data, "test")
    names = sorted({label for label, _ in train})
    three = ["cat", "deer", "ship"]
    seven = [name for name in names if name not in three]
    folders(out / "first", some(train, seven, 600, 0), some(test, seven, 100, 0))
    for seed in range(seeds):
        folders(out / f"few-{seed}", some(train, three, 30, seed), some(test, three, 400, 0))
    model = "model: {type: torchvision, name: resnet18}\n"
    augment = ", augment: [{type: RandomCrop, padding: 4}, {type: RandomHorizontalFlip}]"
    train_first = "minutes: 4, batch_size: 64, optimizer: {type: adamw, lr: 1.0e-3}"
    (out / "first.yaml").write_text(spec(model, "first", more=augment, train=train_first))
    bigmodel("pretrain first.yaml --out first-run", out)
    print(f"seven classes: {accuracy('first-run', out):.1f} %")
    bigmodel("export first-run written --to torchvision", out)
    few = "steps: 60, batch_size: 30, optimizer: {type: adamw, lr: 3.0e-4}"
    transferred(out, seeds, model, "written/resnet18.pth", few)


def probe(data: Path, out: Path, seeds: int) -> None:
    """A linear probe here and by scikit-learn."""
    train, test = cifar(data, "train"), cifar(data, "test")
    names = sorted({label for label, _ in train})
    folders(out / "bare", some(train, names, 1500, 1), some(test, names, 20, 1))
    # rates were tried on the first 200 of each class; what is reported is of 200 others
    folders(out / "few-0", some(train, names, 300, 0), some(test, names, 200, 0, after=200))
    masked = "minutes: 4, batch_size: 128, optimizer: {type: adamw, lr: 1.5e-3}"
    (out / "bare.yaml").write_text(
        spec(DINO + RECONSTRUCT, "bare", "masked_image", ", labels: false", masked)
    )
    bigmodel("pretrain bare.yaml --out bare-run", out)
    linear = (  # features with a large mean need a large rate, and its fall
        "epochs: 20, batch_size: 32, optimizer: {type: adamw, lr: 0.1, weight_decay: 0.0},"
        " schedule: {type: cosine}"
    )
    head = f"init: {{train: head}}\n{spec(DINO, 'few-0', train=linear)}"
    (out / "probe.yaml").write_text(head)
    bigmodel("finetune --from bare-run probe.yaml --out probe-run", out)
    ours = accuracy("probe-run", out)
    print(f"probe: {ours:.1f} %; logistic regression: {regression(out / 'probe-run'):.1f} %")
    bigmodel("export probe-run written", out)
    kind = json.loads((out / "written" / "config.json").read_text())["model_type"]
    (out / "again.yaml").write_text(head.replace(DINO, ""))
    bigmodel("finetune --from written again.yaml --out again-run --seed 1", out)
    print(f"from the folder ({kind}): {accuracy('again-run', out):.1f} %")


def regression(run: Path) -> float:
    """Percent right of scikit-learn's logistic regression on the features before the head."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from bigmodel_cli.loaded import load_checkpoint

    loaded = load_checkpoint(run, "cpu", tell=lambda text: None)
    kept: list[Any] = []
    loaded.model.head.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
    info, sides = loaded.info, {}
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (info.mean, info.std))
    for split in ("train", "val"):
        labels = []
        kept.clear()
        for path in sorted((run.parent / "few-0" / split).glob("*/*.png")):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
            with torch.inference_mode():
                loaded.model(((image - mean) / std)[None])
            labels.append(path.parent.name)
        sides[split] = torch.cat(kept).numpy(), labels
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000, C=0.1))
    return 100 * float(fitted.fit(*sides["train"]).score(*sides["val"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    ways: dict[str, Callable[[Path, Path, int], None]] = {
        "digits": digits, "probe": probe, "resnet": resnet,
    }  # fmt: skip
    parser.add_argument("what", choices=ways)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    ways[given.what](given.data, given.out, given.seeds)


if __name__ == "__main__":
    main()
