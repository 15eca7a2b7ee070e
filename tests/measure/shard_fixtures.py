"""Writes tests/data/shards/made/ with the reference libraries themselves.

Needs, in an environment of its own: mosaicml-streaming, litdata, webdataset, pillow, torch.

    python tests/measure/shard_fixtures.py OUT
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
import webdataset
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
