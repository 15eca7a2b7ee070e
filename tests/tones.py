"""Tones as recordings: WAV files of every kind, a folder of labelled ones, and a small spec for
them.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

SPEC = """\
model:
  type: cnn
  layers: [{type: conv, channels: 8, norm: batch}, {type: adaptive_pool}, {type: flatten},
    {type: dense, units: classes}]
data:
  type: audio
  files: [sounds]
  pattern: '(?P<label>[a-z]+)_(?P<speaker>[a-z]+)_(?P<index>[0-9]+)\\.wav$'
  split: {test: {index: [0, 1]}}
  rate: 8000
  mels: 16
  seconds: 0.2
task: {type: classification}
train: {steps: 120, batch_size: 8, optimizer: {lr: 1e-2}, precision: fp32,
  memory_format: contiguous, validate_every: 60}
"""


def riff(
    data: bytes, code: int = 1, bits: int = 16, rate: int = 8000, channels: int = 1, **header: Any
) -> bytes:
    """A WAV file; `header` has frame (bytes a frame), size (of the samples) or extensible."""
    frame = header.get("frame", channels * bits // 8)
    form = struct.pack("<HHIIHH", code, channels, rate, rate * frame, frame, bits)
    if header.get("extensible"):
        form = struct.pack("<HHIIHH", 0xFFFE, channels, rate, rate * frame, frame, bits)
        form += struct.pack(
            "<HHIH14s",
            22,
            bits,
            0,
            code,
            b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71",
        )
    chunks = (
        b"fmt " + struct.pack("<I", len(form)) + form + b"LIST" + struct.pack("<I", 3) + b"abc\x00"
    )
    chunks += b"data" + struct.pack("<I", header.get("size", len(data))) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    """A sine of half the full scale, float64."""
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def packed(x: np.ndarray, form: str) -> bytes:
    """Samples in -1..1 as that form."""
    if form == "8":
        return np.round(x * 127 + 128).astype(np.uint8).tobytes()
    if form == "24":
        return (
            np.round(x * (2**23 - 1)).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        )
    if form.startswith("float"):
        return x.astype(f"<f{int(form[5:]) // 8}").tobytes()
    return np.round(x * (2 ** (int(form) - 1) - 1)).astype(f"<i{int(form) // 8}").tobytes()


def recording(hertz: float, seconds: float = 0.2) -> bytes:
    return riff(packed(tone(8000, seconds, hertz), "16"))


def write(root: str = "sounds", labels: tuple[str, ...] = ("low", "high"), count: int = 6) -> Path:
    """Tones called label_speaker_index.wav; the longer the greater the index."""
    Path(root).mkdir(parents=True, exist_ok=True)
    for label in labels:
        for index in range(count):
            speaker, hertz = ("ann", "bob")[index % 2], 300 if label == "low" else 1500
            Path(root, f"{label}_{speaker}_{index}.wav").write_bytes(
                recording(hertz + 20 * index, 0.1 + 0.02 * index)
            )
    return Path(root)
