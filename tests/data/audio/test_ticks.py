"""Round seconds and frequencies on frames: against tones and clicks that are heard there."""

from __future__ import annotations

import math

import pytest
import torch

from bigmodel_cli.config import DatasetInfo, MelConfig
from bigmodel_cli.data import input_of
from bigmodel_cli.data.audio.mel import log_mel
from bigmodel_cli.data.audio.ticks import frequency_ticks, time_ticks

SOUNDS = [
    MelConfig(rate=8000, window=256, hop=100, mels=32, low=60, high=3900),
    MelConfig(rate=16000, window=400, hop=160, mels=80, low=0, high=8000, features="whisper"),
]


@pytest.mark.parametrize("sound", SOUNDS)
def test_a_tone_is_in_the_band_at_its_tick(sound: MelConfig) -> None:
    ticks = frequency_ticks(sound)
    names = {name: place for place, name in ticks}
    assert {"200 Hz", "500 Hz", "1,000 Hz", "2,000 Hz"} <= set(names)
    assert [place for place, _ in ticks] == sorted(place for place, _ in ticks)
    time = torch.arange(sound.rate, dtype=torch.float64) / sound.rate
    for hertz in (500, 1000, 2000):
        wave = 0.5 * torch.sin(2 * math.pi * hertz * time).float()
        loudest = int(log_mel(wave[None], sound)[0, :, 20:-20].mean(-1).argmax())
        assert abs(names[f"{hertz:,} Hz"] - (loudest + 0.5)) <= 0.75


@pytest.mark.parametrize("sound", SOUNDS)
def test_a_click_is_in_the_frame_at_its_tick(sound: MelConfig) -> None:
    frames = 2 * sound.rate // sound.hop
    ticks = time_ticks(sound, frames)
    assert 4 <= len(ticks) <= 7
    names = {name: place for place, name in ticks}
    wave = torch.zeros(2 * sound.rate)
    wave[sound.rate] = 1.0
    loudest = int(log_mel(wave[None], sound)[0].sum(0).argmax())
    assert names["1 s"] == pytest.approx(loudest + 0.5, abs=0.5)
    assert names["0 s"] == 0.5


def test_short_sounds_and_ordinary_images() -> None:
    assert time_ticks(SOUNDS[0], 1) == [(0.5, "0 s")]
    assert [name for _, name in time_ticks(SOUNDS[0], 9)] == [
        "0 s", "0.02 s", "0.04 s", "0.06 s", "0.08 s", "0.1 s",
    ]  # fmt: skip
    assert input_of(DatasetInfo(image_shape=(3, 8, 8), classes=("a", "b"))).ticks(8) is None
    heard = DatasetInfo(image_shape=(1, 32, 50), classes=("a", "b"), sound=SOUNDS[0])
    ticks = input_of(heard).ticks(50)
    assert ticks is not None
    assert ticks[1][-1][0] <= 50
