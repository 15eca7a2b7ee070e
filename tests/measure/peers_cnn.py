"""A small CNN trained on MNIST by bigmodel, Keras on three backends, and plain loops, in turns.

    python tests/measure/peers_cnn.py --data FOLDER --peers VENV [--rounds 6] [--seconds 3]
        [--only NAME ...] [--tensorflow]

93,322 parameters (`sample_configs/mnist_cnn.yaml`), batches of 64, Adam with a learning rate of
1e-3; FOLDER has MNIST/raw. Each as its user gets it by default: bigmodel by `pretrain` on the
sample spec, Keras by `compile` and `fit` on arrays in memory. VENV is made where it is missing:
keras and jax (and with `--tensorflow` tensorflow-cpu) are installed into it from PyPI, and it sees
this Python's torch beside them, so that one torch is measured.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from turns import Player, Turns, installed, play  # noqa: E402

OURS, BATCH = "bigmodel", 64
KERAS = {"Keras, torch": "torch", "Keras, JAX": "jax", "Keras, TensorFlow": "tensorflow"}
HAND = {"by hand, fp32": "fp32", "by hand, autocast": "autocast"}


def images(folder: Path) -> tuple[Any, Any]:
    """(60000, 28, 28) float32 in 0 to 1, and (60000,) int64."""
    import numpy as np

    def read(name: str, skipped: int) -> Any:
        path = folder / "MNIST" / "raw" / name
        packed = path.with_name(name + ".gz")
        content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
        return np.frombuffer(content, np.uint8, offset=skipped)

    pixels = read("train-images-idx3-ubyte", 16).reshape(-1, 28, 28).astype("float32") / 255
    return pixels, read("train-labels-idx1-ubyte", 8).astype("int64")


def bigmodel(folder: Path, turns: Turns) -> None:
    """`bigmodel pretrain` of the sample spec, stopped between steps."""
    sys.path.insert(0, str(HERE.parents[1]))
    from bigmodel_cli.__main__ import run
    from bigmodel_cli.train import loop

    between = loop._between_steps

    def taking_turns(training: Any) -> bool:
        if training.state.step:
            turns.step()
        return between(training)

    loop._between_steps = taking_turns
    spec = HERE.parents[1] / "sample_configs" / "mnist_cnn.yaml"
    long = ["--set", f"data.root={folder}", "--set", "train.epochs=1000"]
    sys.exit(run(["pretrain", str(spec), *long]))


def keras(folder: Path, turns: Turns, backend: str) -> None:
    """The same network as a Sequential, by `fit`."""
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from keras import Sequential, callbacks, layers

    class Waiting(callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            turns.step()

    x, y = images(folder)
    model = Sequential([
        layers.Input((28, 28, 1)),
        layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.Flatten(),
        layers.Dense(64, activation="relu"), layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x[..., None], y, batch_size=BATCH, epochs=1000, verbose=2, callbacks=[Waiting()])


def work(name: str, folder: Path) -> None:
    """The worker `name`: it trains until its pipe is closed."""
    turns = Turns()
    if name == OURS:
        bigmodel(folder, turns)
    elif name in KERAS:
        keras(folder, turns, KERAS[name])
    else:
        import torch
        from by_hand import cnn

        x, y = (torch.from_numpy(array) for array in images(folder))
        cnn(x[:, None], y, BATCH, turns.step, HAND[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--tensorflow", action="store_true")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--logs", type=Path, help="a folder for what they print")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    folder = asked.data.resolve()
    if asked.work:
        work(asked.work, folder)
        return
    python, backends = sys.executable, list(KERAS)[: 3 if asked.tensorflow else 2]
    if asked.peers:
        packages = {"keras": "keras", "jax": "jax"}
        packages |= {"tensorflow": "tensorflow-cpu"} if asked.tensorflow else {}
        python = str(installed(asked.peers.resolve(), packages))
    names = [OURS, *(backends if asked.peers else []), *HAND]
    with tempfile.TemporaryDirectory() as temporary:
        place, players = Path(temporary), []
        for name in [n for n in names if n == OURS or not asked.only or n in asked.only]:
            own = python if name in KERAS else sys.executable
            command = [own, str(Path(__file__).resolve()), "--data", str(folder), "--work", name]
            log = (asked.logs or place) / f"{name}.log"
            players.append(Player.start(name, command, log, place))
        play(players, OURS, "images", BATCH, asked.rounds, asked.seconds)


if __name__ == "__main__":
    main()
