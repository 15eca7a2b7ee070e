"""Writes tests/data/shards/made/ with the reference libraries themselves.

Needs, in an environment of its own: mosaicml-streaming, litdata, webdataset, pillow, torch. The
folders mds_all, lit_zstd, lit_tokens and lit_one have what releases of 2026 can write besides.

    python tests/measure/shard_fixtures.py OUT
"""

from __future__ import annotations

import io
import json
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import torch
import webdataset
from litdata.streaming.item_loader import TokensLoader
from litdata.streaming.writer import BinaryWriter
from PIL import Image
from streaming import MDSWriter

out = Path(sys.argv[1])
random = np.random.default_rng(0)
TEXTS = [f"sample {i}: " + "äbc " * (i % 5) for i in range(7)]
TOKENS = [random.integers(0, 500, size=3 + i).astype(np.uint16) for i in range(7)]


def png() -> bytes:
    """An image of random pixels, encoded."""
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (6, 5, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


PNGS = [png() for _ in range(7)]
COLUMNS = {
    "text": "str",
    "n": "int",
    "tokens": "ndarray:uint16",
    "dyn": "ndarray",
    "meta": "json",
    "fix": "ndarray:float32:2,2",
    "img": "bytes",
    "f": "float32",
    "pk": "str_int",
}
for name, packing in (("mds", None), ("mds_zstd", "zstd")):
    with MDSWriter(
        out=str(out / name), columns=COLUMNS, compression=packing, hashes=["sha1"], size_limit=1024
    ) as mds:
        for i in range(7):
            values = {"fix": np.full((2, 2), i, np.float32), "img": PNGS[i], "meta": {"a": [i]}}
            values |= {"text": TEXTS[i], "n": i - 3, "tokens": TOKENS[i], "f": i / 2, "pk": i**20}
            mds.write({**values, "dyn": TOKENS[i].astype(np.int64).reshape(1, -1)})
lit = BinaryWriter(str(out / "lit"), chunk_size=3)
for i in range(7):
    tokens = torch.tensor(TOKENS[i].astype(np.int64))
    deep = {"x": i / 2, "flag": i % 2 == 0}
    lit[i] = {"text": TEXTS[i], "n": i - 3, "tokens": tokens, "img": PNGS[i], "deep": deep}
lit.done()
lit.merge()
with webdataset.TarWriter(str(out / "webdataset.tar")) as tar:
    for i in range(7):
        stem = "long" * 30 if i == 2 else "s"  # a name that a plain header cannot hold
        files = {"txt": TEXTS[i], "cls": i - 3, "png": PNGS[i], "json": {"a": [i]}}
        tar.write({"__key__": f"a/{stem}{i:03d}", **files})
written = {"tokens": [t.tolist() for t in TOKENS], "png": [p.hex() for p in PNGS]}
(out / "expected.json").write_text(json.dumps(written) + "\n", encoding="utf-8")


def ramp(i: int, mode: str) -> Image.Image:
    """An image whose pixels count up from `i`."""
    return Image.fromarray((np.arange(60, dtype=np.uint8) * 4 + i).reshape(5, 4, 3)).convert(mode)


def jpeg(i: int) -> bytes:
    """The same, encoded."""
    file = io.BytesIO()
    ramp(i, "RGB").save(file, "JPEG")
    return file.getvalue()


ALL = {
    "pil": "pil",
    "png": "png",
    "jpeg": "jpeg",
    "decimal": "str_decimal",
    "float": "str_float",
    "pils": "list[pil]",
    "pngs": "list[png]",
    "jpegs": "list[jpeg]",
    "array": "jpeg_array",
    **{f"{k}{b}": f"{k}{b}" for k in ("int", "uint") for b in (8, 16, 32, 64)},
    **{f"float{b}": f"float{b}" for b in (16, 32, 64)},
}
with MDSWriter(out=str(out / "mds_all"), columns=ALL, compression="br", hashes=["md5"]) as mds:
    for i in range(3):
        opened = Image.open(io.BytesIO(jpeg(i)))
        values = {"pil": ramp(i, ("RGB", "L", "RGBA")[i]), "png": ramp(i, "RGB"), "jpeg": opened}
        values |= {"decimal": Decimal("1.10") * i, "float": i / 7, "array": [jpeg(i)] * (i + 1)}
        values |= {"pils": [ramp(i, "L")] * i, "pngs": [ramp(i, "RGB")], "jpegs": [opened] * 2}
        values |= {k: getattr(np, k)(i) for k in ALL if k[-1].isdigit()}
        mds.write(values)
options = {"chunk_size": 2, "compression": "zstd", "compression_level": "chunk"}
lit = BinaryWriter(str(out / "lit_zstd"), **options)
for i in range(3):
    one, two = np.arange(i + 2, dtype=np.uint32), np.arange(6.0).reshape(2, 3) + i
    lit[i] = {"pil": ramp(i, "RGB"), "one": one, "two": two, "t": torch.full((2, 1), i / 2)}
lit.done()
lit.merge()
lit = BinaryWriter(str(out / "lit_tokens"), chunk_bytes=200, item_loader=TokensLoader(block_size=4))
for i in range(7):
    lit[i] = torch.tensor(TOKENS[i].astype(np.int64))
lit.done()
lit.merge()
lit = BinaryWriter(str(out / "lit_one"), chunk_size=3)
for i in range(7):
    lit[i] = torch.tensor(TOKENS[i].astype(np.int64))
lit.done()
lit.merge()
(out / "jpegs.json").write_text(json.dumps([jpeg(i).hex() for i in range(3)]) + "\n")
