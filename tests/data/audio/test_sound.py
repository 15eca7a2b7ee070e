"""Sound: every encoding is read as said, other rates and bands equal their references, and damage
is named.
"""

from __future__ import annotations

import contextlib
import io
import tracemalloc
import wave

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import packed, riff, tone

from bigmodel_cli.config import DatasetInfo, MelConfig
from bigmodel_cli.data.audio.audio import AudioOptions
from bigmodel_cli.data.audio.mel import (
    check_filters,
    fft_size,
    log_mel,
    mel_filters,
    normalise_frames,
)
from bigmodel_cli.data.audio.sound import _phases, decode, notes_said, resample
from bigmodel_cli.data.audio.wav import read_wav
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.packages import MissingPackage


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("form", ["8", "16", "24", "32", "float32", "float64"])
def test_every_form_of_wav(form: str, extensible: bool) -> None:
    x = tone(8000)
    code, bits = (3, int(form[5:])) if form.startswith("float") else (1, int(form))
    read = decode(riff(packed(x, form), code, bits, extensible=extensible), "a.wav", 8000)
    assert read.values.dtype == np.int16
    assert not read.notes
    np.testing.assert_allclose(read.floats(), x, atol=1 / 100 if form == "8" else 1.1 / 32768)


def test_what_the_standard_library_writes_is_read_to_the_bit() -> None:
    values = np.arange(-32768, 32768, 7, dtype=np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(values.tobytes())
    assert np.array_equal(decode(file.getvalue(), "a.wav", 8000).values, values)


def test_channels_become_their_mean() -> None:
    left, right = tone(8000), tone(8000, hertz=600)
    stereo = packed(np.stack((left, right), 1).ravel(), "16")
    read = decode(riff(stereo, channels=2), "a.wav", 8000)
    np.testing.assert_allclose(read.floats(), (left + right) / 2, atol=1.1 / 32768)
    assert not read.notes
    assert not decode(
        riff(packed(np.stack((left, 0 * left), 1).ravel(), "16"), channels=2), "a.wav", 8000
    ).notes


def test_channels_that_cancel_are_reported() -> None:
    x = tone(8000)
    turned = decode(
        riff(packed(np.stack((x, -0.95 * x), 1).ravel(), "16"), channels=2), "a.wav", 8000
    )
    assert turned.notes == ("cancelling",)
    assert notes_said([("cancelling", "a.wav"), ("cancelling", "b.wav")]) == [
        "warning: 2 recordings whose channels cancel one another: their mean, which is read, is"
        " all but silence; the first: a.wav"
    ]


@pytest.mark.parametrize("form", ["float32", "float64"])
def test_float_samples_beyond_full_scale_are_not_cut(form: str) -> None:
    x = 5 * tone(8000, hertz=333)  # to 2.5
    read = decode(riff(packed(x, form), 3, int(form[5:])), "a.wav", 8000)
    np.testing.assert_allclose(read.floats(), x, atol=2.5 / 32768)
    assert np.corrcoef(read.floats(), x)[0, 1] > 1 - 1e-8  # a square wave has 0.9
    square = np.sign(x) * 2
    read = decode(riff(packed(square, "float32"), 3, 32), "a.wav", 8000)
    np.testing.assert_allclose(read.floats(), square, atol=2 / 32768)


@pytest.mark.parametrize(("bits", "peak"), [(16, 3000), (16, 30_000), (24, 4_000_000), (32, 2**30)])
def test_float_samples_that_are_integers_are_read_as_such(bits: int, peak: int) -> None:
    x = np.round(2 * peak * tone(8000, hertz=333))
    expected = x / 2 ** (bits - 1)
    read = decode(riff(packed(x, "float64"), 3, 64), "a.wav", 8000)
    assert read.notes == ("integer",)
    np.testing.assert_allclose(read.floats(), expected, atol=np.abs(expected).max() / 32767)
    # the mean of two channels
    mixed = decode(riff(packed(x + 0.25, "float64"), 3, 64), "a.wav", 8000)
    np.testing.assert_allclose(
        mixed.floats(), (x + 0.25) / 2 ** (bits - 1), atol=np.abs(expected).max() / 16_000
    )
    with pytest.raises(DataError, match=r"a.wav: samples up to 1e\+20, where full scale is 1"):
        decode(riff(packed(np.array([0, 1e20]), "float32"), 3, 32), "a.wav", 8000)


@pytest.mark.parametrize("loudness", [1e-1, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("form", ["24", "32", "float32"])
def test_quiet_recordings_keep_their_bits(form: str, loudness: float) -> None:
    x = loudness * tone(8000, hertz=333)
    code, bits = (3, 32) if form == "float32" else (1, int(form))
    read = decode(riff(packed(x, form), code, bits), "a.wav", 8000).floats()
    own = {"24": 2.0**-23, "32": 2.0**-31}.get(form, 0)  # a step of the encoding
    np.testing.assert_allclose(read, x, atol=own + np.abs(x).max() / 30_000)


def test_pcm_of_16_bits_is_kept_to_the_bit_however_quiet() -> None:
    for peak in (1, 2, 7, 300, 32767, 32768):
        values = np.array([0, -peak, peak // 2, -(peak // 3), min(peak, 32767) - 1, 0], np.int16)
        read = decode(riff(values.tobytes()), "a.wav", 8000)
        assert np.array_equal(read.floats() * 32768, values), peak


def test_resampling_does_not_clip() -> None:
    from scipy.signal import resample_poly

    x = 0.999 * np.sign(np.sin(2 * np.pi * 250 * (np.arange(6000) + 0.5) / 12_000))
    for rate, wanted in ((12_000, 8000), (12_000, 18_000)):
        read = decode(riff(packed(x, "16"), rate=rate), "a.wav", wanted).floats()
        common = int(np.gcd(rate, wanted))
        expected = resample_poly(x, wanted // common, rate // common, window=("kaiser", 9.0))
        assert read.max() > 1.05
        assert abs(float(read.max()) - float(expected.max())) < 0.06  # by another filter


def test_decoding_does_not_clip() -> None:
    soundfile = pytest.importorskip("soundfile")
    x, file = 0.99 * np.sign(tone(16_000, 1.0, 300)), io.BytesIO()
    soundfile.write(file, x, 16_000, format="OGG")
    own = soundfile.read(io.BytesIO(file.getvalue()), dtype="float64")[0]
    read = decode(file.getvalue(), "a.ogg", 16_000).floats()
    assert np.abs(own).max() > 1.02
    np.testing.assert_allclose(read, own, atol=np.abs(own).max() / 16_000)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["WAV", "WAVEX", "RF64"])
def test_what_soundfile_writes_and_reads_is_the_same(
    format: str, channels: int, subtype: str
) -> None:
    soundfile = pytest.importorskip("soundfile")
    x, file = np.random.default_rng(0).uniform(-0.7, 0.7, (501, channels)), io.BytesIO()
    soundfile.write(file, x, 11_025, subtype, format=format)
    own, rate = soundfile.read(io.BytesIO(file.getvalue()), dtype="float64", always_2d=True)
    samples, read_rate = read_wav(file.getvalue(), "a.wav")
    assert (rate, read_rate) == (11_025, 11_025)
    np.testing.assert_allclose(samples, own, atol=1e-7)


@pytest.mark.parametrize(
    ("rate", "wanted"), [(192_000, 8000), (44_100, 16_000), (8000, 16_000), (11_025, 8000)]
)
def test_resampling_equals_scipys_with_the_same_filter(rate: int, wanted: int) -> None:
    from scipy.signal import resample_poly

    x = np.random.default_rng(0).standard_normal(4001).astype(np.float32)
    common = int(np.gcd(rate, wanted))
    up, down = wanted // common, rate // common
    table = _phases(up, down)  # phase p and tap k lie at (k - width) - p / up
    width = table.shape[1] // 2 - 1
    whole = np.zeros(2 * (width + 1) * up + 1)
    for p in range(up):
        at = (np.arange(table.shape[1]) - width) * up - p + (width + 1) * up
        inside = (at >= 0) & (at < len(whole))
        whole[len(whole) - 1 - at[inside]] = table[p][inside]
    expected = resample_poly(x.astype(np.float64), up, down, window=whole / up)
    ours = resample(x, rate, wanted)
    assert len(ours) == len(expected)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_resampling_keeps_what_both_rates_hold_and_nothing_else() -> None:
    kept = decode(
        riff(packed(tone(192_000, hertz=1000), "24"), bits=24, rate=192_000), "a.wav", 8000
    ).floats()
    np.testing.assert_allclose(kept[200:-200], tone(8000, hertz=1000)[200:-200], atol=2e-3)
    gone = decode(
        riff(packed(tone(192_000, hertz=5000), "24"), bits=24, rate=192_000), "a.wav", 8000
    ).floats()
    # above half the rate: it would fold back to 3,000 Hz
    assert np.abs(gone[200:-200]).max() < 1e-3
    assert len(kept) == 4000


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3"])
def test_other_encodings_by_soundfile(form: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    x, file = tone(16_000, 1.0), io.BytesIO()
    soundfile.write(file, np.stack((x, x), 1), 16_000, format=form)
    read = decode(file.getvalue(), f"a.{form.lower()}", 8000).floats()
    assert abs(len(read) - 8000) < 1200  # MP3 comes with padding
    middle = np.abs(np.fft.rfft(read[1000:7000] * np.hanning(6000)))
    assert abs(int(middle.argmax()) * 8000 / 6000 - 440) < 2
    whole = file.getvalue()
    with pytest.raises(DataError, match=rf"a.{form.lower()}: (cannot be decoded|cut off)"):
        decode(
            b"nothing of the kind" * 9 if form == "MP3" else whole[: len(whole) // 2],
            f"a.{form.lower()}",
            8000,
        )


HALF = packed(tone(8000), "16")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "zero bytes long"),
        (b"RIFF", "not a WAV file"),
        (b"OggS" + HALF, "not a WAV file: it begins with b'OggS"),
        (riff(HALF)[:16], "without its chunk of format"),
        (riff(HALF)[:48], "without its chunk of samples"),
        (riff(HALF)[:-100], "cut off: 7,900 bytes of samples, and its header says 8,000"),
        (riff(HALF[:-1]), "cut off: 7,999 bytes of samples are not a multiple of 2"),
        (riff(b""), "no samples in it"),
        (riff(packed(np.array([0.0, 0.5, np.nan]), "float32"), 3, 32),
         "sample 2 is not a finite number"),
        (riff(packed(np.array([0.0, -np.inf]), "float32"), 3, 32),
         "sample 1 is not a finite number"),
        (riff(packed(np.array([1e300]), "float64"), 3, 64), "sample 0 is not a finite number"),
        (riff(HALF, 7, 8), "encoded as mu-law; convert it to 16-bit PCM"),
        (riff(HALF, 0x1234, 16), "encoded as 16-bit format 4660"),
        (riff(HALF, 1, 12, frame=2), "encoded as 12-bit PCM"),
        (riff(HALF, channels=0, frame=0), "its header says 0 channels"),
        (riff(HALF, rate=0), "0 Hz"),
        (riff(HALF, frame=4), "4 bytes a frame"),
    ],
)  # fmt: skip
def test_wav_that_cannot_be_read(content: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        decode(content, "some.wav", 8000)
    assert str(caught.value).startswith("some.wav: ")
    assert message in str(caught.value)
    assert "repair or remove it" in str(caught.value) or "convert it" in str(caught.value)


def test_more_than_memory_should_hold_is_refused_before_it_is_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soundfile = pytest.importorskip("soundfile")
    monkeypatch.setattr("bigmodel_cli.data.audio.wav.MOST_VALUES", 3000)
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(4000), 8000, format="FLAC")
    assert len(silence.getvalue()) < 500
    for content, name in ((riff(HALF), "a.wav"), (silence.getvalue(), "a.flac")):
        with pytest.raises(
            DataError, match=f"{name}: 4,000 values, more than 3,000; cut it into pieces"
        ):
            decode(content, name, 8000)


def test_an_odd_rate_costs_neither_time_nor_memory() -> None:
    """A header of 44 bytes may name a rate without a factor in common with the one wanted: the
    filter has a row for each phase.
    """
    content = riff(packed(tone(767_957, seconds=0.02), "16"), rate=767_957)
    tracemalloc.start()
    try:
        read = decode(content, "a.wav", 16_000).floats()
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
    assert len(read) == -(-15_359 * 16_000 // 767_957)
    np.testing.assert_allclose(
        read, resample(tone(767_957, seconds=0.02), 767_957, 16_000), atol=1e-4
    )


def test_a_slow_rate_does_not_become_days_of_sound() -> None:
    with pytest.raises(
        DataError, match=r"a.wav: 320,000,000 values, more than 268,435,456; cut it into pieces"
    ):
        decode(riff(bytes(40_000), rate=1), "a.wav", 16_000)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 60), st.integers(0, 255))
def test_damage_is_a_data_error_or_sound(tail: bytes, place: int, value: int) -> None:
    content = bytearray(riff(HALF[:64]) + tail)
    content[place] = value
    with contextlib.suppress(DataError):
        assert len(decode(bytes(content), "a.wav", 8000).values)


def test_missing_soundfile_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(
        MissingPackage,
        match=r"a.flac: reading it needs soundfile, which is not installed: pip install",
    ):
        decode(b"fLaC", "a.flac", 8000)


SOUND = MelConfig(rate=8000, window=200, hop=80, mels=40, low=20.0, high=4000.0)


def test_mel_filters_equal_transformers() -> None:
    from transformers.audio_utils import mel_filter_bank

    for mels, size, rate, low, high in [
        (40, 256, 8000, 20.0, 4000.0),
        (80, 512, 16000, 0.0, 8000.0),
    ]:
        theirs = mel_filter_bank(size // 2 + 1, mels, low, high, rate, norm=None, mel_scale="htk")
        np.testing.assert_allclose(
            mel_filters(mels, size, rate, low, high).numpy(), theirs.T, atol=1e-9
        )


def test_what_is_taken_when_nothing_is_said_fills_every_band() -> None:
    check_filters(AudioOptions(files=["a.wav"]).sound())
    with pytest.raises(SpecError, match=r"data.mels: \d+ of 300 bands hold no frequency"):
        check_filters(AudioOptions(files=["a.wav"], mels=300).sound())


def test_log_mel_equals_the_plain_formula() -> None:
    x = np.random.default_rng(0).standard_normal(1234) * 0.1
    size = fft_size(SOUND)
    assert size == 256
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200)
    padded = np.pad(x, 200)
    filters = mel_filters(40, size, 8000, 20.0, 4000.0).numpy()
    expected = []
    for first in range(0, 1234, 80):  # frame t is centred on sample 80 t
        piece = padded[first + 100 : first + 300] * window
        power = np.abs(np.fft.rfft(piece, size)) ** 2 / window.sum() ** 2
        expected.append(1 + np.log10(filters @ power + 1e-8) / 8)
    ours = log_mel(torch.from_numpy(x).float()[None], SOUND)
    assert ours.shape == (1, 40, 16)
    np.testing.assert_allclose(ours[0].numpy().T, expected, atol=1e-4)


def test_frames_do_not_depend_on_zeros_behind_and_span_silence_to_full_scale() -> None:
    x = torch.randn(2, 800) * 0.1
    longer = torch.nn.functional.pad(x, (0, 700))
    torch.testing.assert_close(log_mel(longer, SOUND)[:, :, :10], log_mel(x, SOUND))
    loudest = log_mel(torch.from_numpy(2 * tone(8000)).float()[None], SOUND)
    assert 0.85 < float(loudest.max()) < 1.0
    assert float(log_mel(torch.zeros(1, 800), SOUND).abs().max()) < 1e-6
    assert torch.equal(normalise_frames(x, DatasetInfo()), x)
    torch.testing.assert_close(
        normalise_frames(x, DatasetInfo(mean=(0.5,), std=(0.25,))), (x - 0.5) / 0.25
    )


def test_facts_with_sound_survive_json() -> None:
    import json

    info = DatasetInfo(
        classes=("a", "b"), sound=SOUND, frame_width=40, spelling="words", mean=(0.1,), std=(0.2,)
    )
    assert DatasetInfo.from_json(json.loads(json.dumps(info.to_json()))) == info
    # of a checkpoint from before there was sound
    assert DatasetInfo.from_json({"classes": ["a"]}) == DatasetInfo(classes=("a",))
