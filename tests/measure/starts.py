"""How long a first and a second start take until the data is open, over many small images and over
much text.

    python tests/measure/starts.py [--images 100000] [--text 1000000000] [--size 8] [--folder DIR]

Each start is a process of its own, as a command is, and the cache is one that is empty before the
first. What is timed is `open_data` (finding the files, their content, the cached pixels or tokens),
without the import of torch; beside it stands the processor's time, which other work does not
lengthen much. The files are written into a folder that is removed afterwards, or kept and used
again where `--folder` names one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START = """
import sys, time
from pathlib import Path
from bigmodel_cli.data import SOURCES, open_data
from bigmodel_cli.lazy import load_torch
load_torch()
import yaml
values = yaml.safe_load(sys.argv[1])
options = SOURCES[values["type"]].model_validate(values)
start, used = time.perf_counter(), time.process_time()
data = open_data(options, base=Path(), say=lambda text: None)
print(time.perf_counter() - start, time.process_time() - used, len(data.split("train")))
"""


def write_images(folder: Path, count: int, size: int) -> None:
    """Plain BMP files of `size` x `size` in 100 classes, each of another content."""
    header = (
        b"BM" + (54 + 3 * size * size).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    )
    header += (
        (40).to_bytes(4, "little") + 2 * size.to_bytes(4, "little") + b"\1\0\x18\0" + bytes(24)
    )
    for number in range(count):
        path = folder / f"class{number % 100:02}" / f"{number // 100:05}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(header + number.to_bytes(3, "little") * size * size)


def write_text(path: Path, size: int) -> None:
    """Lines of numbers, `size` bytes in all."""
    with open(path, "w") as file:
        number = 0
        while file.tell() < size:
            file.write(
                "".join(
                    f"line {n:09} of a long text that says nothing\n"
                    for n in range(number, number + 10_000)
                )
            )
            number += 10_000


def start(options: str, cache: Path, folder: Path) -> str:
    """The seconds of one start in a process of its own, and those of the processor."""
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", START, options]
    run = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(run.stderr)
    wall, used = map(float, run.stdout.split()[:2])
    return f"{wall:8.2f} s ({used:7.2f} s)"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--text", type=int, default=1_000_000_000)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.folder or Path(temporary)).resolve()
        images, text = folder / f"images-{chosen.images}", folder / f"text-{chosen.text}.txt"
        if chosen.images and not images.exists():
            write_images(images, chosen.images, chosen.size)
        if chosen.text and not text.exists():
            write_text(text, chosen.text)
        time.sleep(3)  # what changed a moment ago is not remembered
        print(f"{'data':40} {'first start (processor)':>24} {'second start (processor)':>24}")
        for name, options, wanted in (
            (
                f"{chosen.images:,} images",
                f"{{type: image_folder, root: {images.name}}}",
                chosen.images,
            ),
            (
                f"{chosen.text:,} bytes of text",
                f"{{type: text, files: [{text.name}], context: 256}}",
                chosen.text,
            ),
        ):
            if wanted:
                with tempfile.TemporaryDirectory(dir=folder) as cache:
                    first, second = (start(options, Path(cache), folder) for _ in range(2))
                print(f"{name:40} {first:>24} {second:>24}", flush=True)


if __name__ == "__main__":
    main()
