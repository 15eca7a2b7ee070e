"""A small sample of every form of data that is read, at the paths that sample_configs name, for the
fuzzers.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import tarfile
import wave
from pathlib import Path
from typing import Any

WORDS = (
    *("attention", "is", "all", "you", "need", "a", "small", "model", "learns", "from", "text"),
    *("and", "film", "can", "be", "good", "or", "bad", "."),
)


def sentences(count: int, seed: int = 0, words: int = 8) -> list[str]:
    """Sentences of a few words."""
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(words)) for _ in range(count)]


def rows(separator: str, names: tuple[str, ...] = (), count: int = 24) -> str:
    """A table of a text and a label."""
    lines = [separator.join((text, "01"[n % 2])) for n, text in enumerate(sentences(count))]
    return "\n".join([*([separator.join(names)] if names else []), *lines]) + "\n"


def wav(hertz: float, seconds: float = 0.1, rate: int = 8000) -> bytes:
    """A tone."""
    import numpy as np

    samples = (8000 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(
        "<i2"
    )
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    return file.getvalue()


def image(kind: str, shade: int, size: int = 12) -> bytes:
    """A picture of two shades."""
    from PIL import Image

    file = io.BytesIO()
    picture = Image.new("RGB", (size, size), (shade, 255 - shade, 40))
    picture.paste((0, 0, shade), (2, 2, size // 2, size // 2))
    picture.save(file, kind)
    return file.getvalue()


def idx(values: Any) -> bytes:
    """An array of bytes in the format of MNIST's files."""
    return (
        bytes((0, 0, 8, values.ndim))
        + struct.pack(f">{values.ndim}i", *values.shape)
        + values.tobytes()
    )


def archive(members: dict[str, bytes], mode: str) -> bytes:
    """A tar archive; mode "w", "w:gz"."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def parquet(columns: dict[str, list[Any]]) -> bytes:
    """A table as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def texts() -> dict[str, bytes]:
    """Running text, tables and pairs: the content of each file, by its path."""
    english, german = "\n".join(sentences(24)) + "\n", "\n".join(sentences(24, 1)) + "\n"
    objects = "".join(
        json.dumps({"text": t, "label": n % 2, "en": t, "de": t[::-1]}) + "\n"
        for n, t in enumerate(sentences(24))
    )
    columns = {
        "text": sentences(24),
        "label": [n % 2 for n in range(24)],
        "en": sentences(24),
        "de": sentences(24, 1),
    }
    pairs = "en,de\n" + "".join(
        f'"{a}","{b}"\n' for a, b in zip(sentences(24), sentences(24, 1), strict=True)
    )
    long = "\n".join(sentences(400)) + "\n"
    found = {
        "text/a.txt": long.encode(),
        "text/b.txt.gz": gzip.compress(long.encode(), mtime=0),
        "text/c.jsonl": objects.encode(),
        "data/tinyshakespeare/input.txt": long.encode(),
        "table.csv": rows(",", ("text", "label")).encode(),
        "table.tsv": rows("\t", ("text", "label")).encode(),
        "table.tsv.gz": gzip.compress(rows("\t", ("text", "label")).encode(), mtime=0),
        "table.jsonl": objects.encode(),
        "table.parquet": parquet(columns),
        "pairs.csv": pairs.encode(),
    }
    for name in ("train", "dev", "test"):
        found[f"data/sst2/{name}.tsv"] = rows("\t").encode()
    for name in ("train", "val", "test_2016_flickr"):
        found[f"data/multi30k/{name}.en.gz"] = gzip.compress(english.encode(), mtime=0)
        found[f"data/multi30k/{name}.de.gz"] = gzip.compress(german.encode(), mtime=0)
    return found


def pictures() -> dict[str, bytes]:
    """Image folders, Parquet and MNIST's files."""
    import numpy as np

    kinds = ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm")
    found = {
        f"images/{'ab'[n % 2]}/{n}.{kinds[n % 7]}": image(kinds[n % 7], 17 * n) for n in range(14)
    }
    columns = {
        "image": [{"bytes": image("png", 20 * n), "path": None} for n in range(12)],
        "label": [n % 2 for n in range(12)],
    }
    found["images.parquet"] = parquet(columns)
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 20)):
        pixels = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        found[f"data/MNIST/raw/{name}-images-idx3-ubyte"] = idx(pixels)
        found[f"data/MNIST/raw/{name}-labels-idx1-ubyte"] = idx(
            (np.arange(count) % 10).astype(np.uint8)
        )
    return found


def sounds() -> dict[str, bytes]:
    """Recordings in folders and archives, and transcripts."""
    import soundfile

    members = {
        f"{n % 10}_{['theo', 'nic'][n % 2]}_{n // 4}.wav": wav(300 + 40 * n, 0.1 + 0.01 * (n % 3))
        for n in range(40)
    }
    found = {
        "data/fsdd/recordings.tar.gz": archive(members, "w:gz"),
        "sounds.tar": archive(members, "w"),
    }
    for n in range(12):
        found[f"sounds/{'ab'[n % 2]}/{n}.wav"] = wav(300 + 50 * n)
    for ending in ("flac", "ogg", "mp3"):
        file = io.BytesIO()
        samples, rate = soundfile.read(io.BytesIO(wav(700, 0.3)))
        soundfile.write(file, samples, rate, format=ending.upper())
        found[f"sounds/a/other.{ending}"] = file.getvalue()
    found["transcripts.tsv"] = "".join(
        f"{'ab'[n % 2]}/{n}.wav\t{['low', 'high'][n % 2]} tone\n" for n in range(12)
    ).encode()
    return found


def write_all(folder: Path) -> dict[str, bytes]:
    """Write every sample below a folder."""
    found = {**texts(), **pictures(), **sounds()}
    for name, content in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return found
