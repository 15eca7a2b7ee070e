"""How far the times of words are from where they were spoken: strings of digits, joined here.

    python tests/measure/word_times.py RUN RECORDINGS [--strings 60] [--seed 1]

RUN is a checkpoint of `spoken_digits_seq2seq` or `spoken_digits_ctc`, RECORDINGS the folder of the
unpacked recordings (digit_speaker_index.wav), of which those of index 0 to 4, the test split, are
joined with pauses of 0.05 to 0.3 s. Errors are of strings whose words are read rightly.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bigmodel_cli.attend.looking import look_at
from bigmodel_cli.loaded import load_checkpoint


def samples(path: Path) -> tuple[np.ndarray, int]:
    """The samples of a recording of 16 bits, and how many there are in a second."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate()


def joined(paths: list[Path], draw: random.Random, out: Path) -> list[tuple[float, float]]:
    """Write the recordings one after the other; returns when each begins and ends, in seconds."""
    pieces: list[np.ndarray] = []
    bounds, rate = [], 0
    for number, path in enumerate(paths):
        sound, rate = samples(path)
        if number:
            pieces.append(np.zeros(round(draw.uniform(0.05, 0.3) * rate), "<i2"))
        start = sum(map(len, pieces))
        pieces.append(sound)
        bounds.append((start / rate, (start + len(sound)) / rate))
    with wave.open(str(out), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.concatenate(pieces).astype("<i2").tobytes())
    return bounds


def main() -> None:
    """Print the median and the 90th percentile of the errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--strings", type=int, default=60)
    parser.add_argument("--most", type=int, default=4, help="words in a string")
    given = parser.parse_args()
    loaded = load_checkpoint(given.run, "cpu")
    wavs = sorted(p for p in given.recordings.glob("*.wav") if int(p.stem.split("_")[2]) < 5)
    draw, right = random.Random(given.seed), 0
    errors: dict[str, list[float]] = {"start": [], "end": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.strings):
            chosen = [draw.choice(wavs) for _ in range(draw.randint(2, given.most))]
            bounds = joined(chosen, draw, Path(folder, "a.wav"))
            found = look_at(loaded, str(Path(folder, "a.wav"))).extra["times"]["words"]
            if [word["word"] for word in found] != [path.stem.split("_")[0] for path in chosen]:
                continue
            right += 1
            for word, (start, end) in zip(found, bounds, strict=True):
                errors["start"].append(abs(word["start"] - start))
                errors["end"].append(abs(word["end"] - end))
    print(f"{right} of {given.strings} strings are read rightly: {len(errors['start'])} words")
    for name, values in errors.items():
        high = sorted(values)[int(0.9 * (len(values) - 1))]
        print(f"{name}: median {statistics.median(values):.3f} s, 90 % below {high:.3f} s")


if __name__ == "__main__":
    main()
