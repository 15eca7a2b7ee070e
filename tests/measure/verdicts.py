"""Verdicts of `bigmodel bench` on this machine: of a program against itself, and against one that
is slowed down by a known share.

    python tests/measure/verdicts.py --data ../shared/data --count 100 [--slower 0 0.03 0.1]

Each comparison is a command of its own, at most a minute long. A mixer of a plugin (written here)
adds waiting to the second spec: that share of the first one's measured step. Run it alone: rounds
in which other work runs are left out, and are counted.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = '''
import time
from typing import Annotated, Literal

from pydantic import Field

from bigmodel_cli.config import Options
from bigmodel_cli.parts.attention import AttentionOptions


class SlowedOptions(AttentionOptions):
    """Attention that waits before it begins."""

    type: Literal["slowed"] = "slowed"
    wait: Annotated[float, Field(ge=0)] = Field(0.0, description="seconds that it waits")

    def build(self, layer):
        part = super().build(layer)
        part.register_forward_pre_hook(self.waiting)
        return part

    def waiting(self, module, inputs):
        end = time.perf_counter() + self.wait
        while time.perf_counter() < end:
            pass


PARTS = {"mixer": [SlowedOptions]}
'''
SPEC = """\
model:
  type: decoder
  dim: 128
  blocks:
    - {{mixer: {{type: slowed, num_heads: 4, wait: {wait}}}, ffn: gelu}}
    - {{repeat: 3, mixer: {{type: attention, num_heads: 4}}, ffn: gelu}}
data: {{type: text, files: ["{text}"], context: 64, tokenizer: {{type: characters}}}}
task: {{type: causal_lm, sample_tokens: 0}}
train: {{steps: 1000, batch_size: 12, precision: fp32}}
"""


def written(folder: Path, name: str, text: Path, wait: float) -> Path:
    """A spec in the folder."""
    path = folder / f"{name}.yaml"
    path.write_text(SPEC.format(wait=wait, text=text))
    return path


def benched(folder: Path, *specs: Path, seconds: float | None = None) -> dict[str, object]:
    """What `bench --json` says of them."""
    more = [] if seconds is None else ["--seconds", str(seconds)]
    plugin = ["--plugin", str(folder / "slowed.py")]
    command = [sys.executable, "-m", "bigmodel_cli", "bench", *map(str, specs), *plugin, *more]
    found = subprocess.run(
        [*command, "--json", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return dict(json.loads(found.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--slower", type=float, nargs="+", default=[0.0, 0.03, 0.1])
    options = parser.parse_args()
    text = (options.data / "tinyshakespeare" / "input.txt").resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slowed.py").write_text(PLUGIN)
        first = written(folder, "first", text, 0.0)
        (alone,) = benched(folder, first, seconds=5)["benchmarks"]
        step = alone["median_s"]
        print(f"a step takes {1e3 * step:.2f} ms")
        for slower in options.slower:
            second = written(folder, f"second-{slower:g}", text, slower * step)
            said: collections.Counter[str] = collections.Counter()
            for number in range(options.count):
                began = time.perf_counter()
                verdict = benched(folder, first, second)["benchmarks"][1]["verdict"]
                said[verdict["says"]] += 1
                took = time.perf_counter() - began
                print(
                    f"{100 * slower:g} % slower, {number + 1}: {verdict['says']},"
                    f" {100 * verdict['change']:+.2f} %, floor {100 * (verdict['floor'] or 0):.2f}"
                    f" %, {verdict['rounds']} rounds, {verdict['rejected']} left out, {took:.0f} s",
                    flush=True,
                )
            print(f"{100 * slower:g} % slower: {dict(said)} of {options.count}", flush=True)


if __name__ == "__main__":
    main()
