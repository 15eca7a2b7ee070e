"""WAV files as recorders leave them: lengths that a pipe could not fill in, chunks without padding,
more than 4 GB.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
from tones import packed, riff, tone

from bigmodel_cli.data.audio.wav import read_wav
from bigmodel_cli.errors import DataError

X = tone(8000, 0.1, 333)
FORM = struct.pack("<HHIIHH", 1, 1, 8000, 16_000, 2, 16)
DATA = packed(X, "16")


def chunk(kind: bytes, content: bytes, padded: bool = True, size: int | None = None) -> bytes:
    head = kind + struct.pack("<I", len(content) if size is None else size)
    return head + content + (b"\0" if padded and len(content) % 2 else b"")


def file(*chunks: bytes, kind: bytes = b"RIFF", size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return kind + struct.pack("<I", len(body) if size is None else size) + body


def check(content: bytes) -> None:
    samples, rate = read_wav(content, "a.wav")
    assert rate == 8000
    np.testing.assert_allclose(samples[:, 0], X, atol=1.1 / 32768)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
@pytest.mark.parametrize("whole", ["true", "same", "zero", "header"])
def test_a_length_that_a_pipe_could_not_fill_in(size: int, whole: str) -> None:
    parts = chunk(b"fmt ", FORM), chunk(b"LIST", b"INFOISFT"), chunk(b"data", DATA, size=size)
    header = len(file(*parts)) - len(DATA) - 8
    claimed = {"true": None, "same": min(size + header, 0xFFFFFFFF), "zero": 0, "header": header}[
        whole
    ]
    check(file(*parts, size=claimed))


@pytest.mark.parametrize("whole", [0, 0xFFFFFFFF, 0x7FFFF024, 0x80000024])
def test_any_length_beyond_the_end_where_the_files_own_is_none(whole: int) -> None:
    check(file(chunk(b"fmt ", FORM), chunk(b"data", DATA, size=0x12345678), size=whole))


def test_a_length_beyond_the_end_of_a_file_that_knows_its_own() -> None:
    with pytest.raises(
        DataError, match="cut off: 1,600 bytes of samples, and its header says 1,700"
    ):
        read_wav(file(chunk(b"fmt ", FORM), chunk(b"data", DATA, size=1700)), "a.wav")
    with pytest.raises(
        DataError, match="cut off: 1,600 bytes of samples, and its header says 305,419,896"
    ):
        read_wav(file(chunk(b"fmt ", FORM), chunk(b"data", DATA, size=0x12345678)), "a.wav")


def test_an_empty_data_chunk_is_an_empty_recording() -> None:
    for after in ([], [chunk(b"LIST", b"INFOISFT")]):
        assert not len(
            read_wav(file(chunk(b"fmt ", FORM), chunk(b"data", b""), *after), "a.wav")[0]
        )


@pytest.mark.parametrize("after", [b"data", b"fact"])
@pytest.mark.parametrize("kind", [b"LIST", b"abcd"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("text", [b"abc", b"odd length.", b"a"])
def test_wav_chunks_of_odd_length_with_and_without_padding(
    text: bytes, padded: bool, kind: bytes, after: bytes
) -> None:
    between = [chunk(after, struct.pack("<I", len(X)))] if after == b"fact" else []
    check(file(chunk(b"fmt ", FORM), chunk(kind, text, padded), *between, chunk(b"data", DATA)))


def test_padding_that_is_not_zero() -> None:
    odd = b"LIST" + struct.pack("<I", 3) + b"abcX"
    check(file(chunk(b"fmt ", FORM), odd, chunk(b"data", DATA)))


@pytest.mark.parametrize("kind", [b"RF64", b"BW64"])
@pytest.mark.parametrize("known", [True, False])
def test_wav_lengths_beyond_4_gb_are_read(kind: bytes, known: bool) -> None:
    sizes = (5000, len(DATA), len(X)) if known else (0, 0, 0)
    table = struct.pack("<4sQ", b"LIST", 8)
    long = chunk(b"ds64", struct.pack("<QQQI", *sizes, 1) + table)
    tagged = chunk(b"LIST", b"INFOISFT", size=0xFFFFFFFF)
    samples = chunk(b"data", DATA, size=0xFFFFFFFF)
    after = [chunk(b"abcd", bytes(50))] if known else []
    check(file(long, chunk(b"fmt ", FORM), tagged, samples, *after, kind=kind, size=0xFFFFFFFF))
    if known:
        cut = chunk(b"ds64", struct.pack("<QQQI", 2**33, 2**33, 2**32, 0))
        with pytest.raises(
            DataError, match="cut off: 1,600 bytes of samples, and its header says 8,589,934,592"
        ):
            read_wav(file(cut, chunk(b"fmt ", FORM), samples, kind=kind, size=0xFFFFFFFF), "a.wav")
        with pytest.raises(DataError, match="its ds64 chunk has 4 bytes"):
            read_wav(
                file(chunk(b"ds64", bytes(4)), chunk(b"fmt ", FORM), samples, kind=kind), "a.wav"
            )


def test_fewer_valid_bits_than_a_sample_has_are_the_upper_ones() -> None:
    values = np.round(X * 2047).astype(np.int16) << 4  # 12 bits in 16
    form = struct.pack("<HHIIHHHHIH14s", 0xFFFE, 1, 8000, 16_000, 2, 16, 22, 12, 0, 1, bytes(14))
    samples, _ = read_wav(file(chunk(b"fmt ", form), chunk(b"data", values.tobytes())), "a.wav")
    np.testing.assert_allclose(samples[:, 0], X, atol=1 / 2047)


def test_big_endian_files_are_named() -> None:
    with pytest.raises(
        DataError, match=r"a.wav: a WAV file of big-endian samples \(RIFX\); convert it to RIFF"
    ):
        read_wav(b"RIFX" + riff(DATA)[4:], "a.wav")
