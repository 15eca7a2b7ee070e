"""Verdicts of `bigmodel bench` on this machine: of a program against itself, and against one that
is slowed down by a known share.

    python tests/measure/verdicts.py --data ../shared/data --count 100 --out verdicts.jsonl
        [--slower 0 0.03 0.1] [--seconds 20] [--dim 128] [--hyperfine [--steps 100]]

Each comparison is a command of its own, at most a minute long (`--seconds` is that of `bench`: of
each of the two). A mixer of a plugin (written here) adds waiting to the second spec: that share of
the first one's step, which is measured once. Run it alone: rounds in which other work runs are left
out, and are counted. Pinned (`taskset -c 1 python ...`), work on other processors does not count,
so that each of them may run a part, with an `--out` of its own. `--out` has a line of JSON for each
comparison; the same command goes on where it was stopped. The table at its end says of each
slow-down how many verdicts were "slower", "faster", "same" and undecided, how long they took, and
how many took above a minute.

Ends with status 1 where more than 5 % of the comparisons of a program with itself have a verdict
that is false, or fewer than 95 % find 3 %, or 100 % 10 %; a comparison that could not be told,
since other work ran in most rounds, counts as none.

With `--hyperfine`, hyperfine says of the same programs which is faster instead, within the same
minute: each run is a command that trains `--steps` steps. Its summary ("1.03 +- 0.02 times faster")
is a verdict where the interval leaves out 1. Nothing is asked of its verdicts.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MOST_FALSE, LEAST = 0.05, {0.03: 0.95, 0.1: 1.0}
"""Of verdicts on what is the same; the part of verdicts that find a slow-down."""
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
  dim: {dim}
  blocks:
    - {{mixer: {{type: slowed, num_heads: 4, wait: {wait}}}, ffn: gelu}}
    - {{repeat: 3, mixer: {{type: attention, num_heads: 4}}, ffn: gelu}}
data: {{type: text, files: ["{text}"], context: 64, tokenizer: {{type: characters}}}}
task: {{type: causal_lm, sample_tokens: 0}}
train: {{steps: 1000, batch_size: 12, precision: fp32}}
"""


def written(folder: Path, name: str, text: Path, wait: float, dim: int) -> Path:
    """A spec in the folder."""
    path = folder / f"{name}.yaml"
    path.write_text(SPEC.format(wait=wait, text=text, dim=dim))
    return path


def benched(folder: Path, *specs: Path, seconds: float | None = None) -> dict[str, Any]:
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


def compared(folder: Path, first: Path, second: Path, seconds: float) -> dict[str, Any]:
    """The verdict on the second, as plain values, and how long it took."""
    began = time.perf_counter()
    verdict = benched(folder, first, second, seconds=seconds)["benchmarks"][1]["verdict"]
    told = verdict["low"] is not None and verdict["rejected"] <= verdict["rounds"]
    return {**verdict, "told": told, "took": time.perf_counter() - began}


def by_hyperfine(folder: Path, first: Path, second: Path, seconds: float, steps: int) -> Any:
    """What hyperfine says of commands that train both: its ratio of means, and that one's interval
    as it computes it. It runs each command as often as fits into `seconds`.
    """
    began = time.perf_counter()
    commands = []
    for spec in (first, second):
        run = [sys.executable, "-m", "bigmodel_cli", "pretrain", str(spec), "--device", "cpu"]
        more = ["--plugin", str(folder / "slowed.py"), "--out", str(folder / "run")]
        commands.append(shlex.join([*run, *more, "--set", f"train.steps={steps}"]))
    clean = f"rm -rf {shlex.quote(str(folder / 'run'))}"
    once = time.perf_counter()
    subprocess.run(f"{clean}; {commands[0]}", shell=True, check=True, capture_output=True, cwd=ROOT)
    runs = max(2, int(seconds / (time.perf_counter() - once) / len(commands)))
    out = folder / "hyperfine.json"
    call = ["hyperfine", "--runs", str(runs), "--prepare", clean, "--export-json", str(out)]
    subprocess.run([*call, *commands], check=True, capture_output=True, cwd=ROOT)
    a, b = json.loads(out.read_text())["results"]
    ratio = b["mean"] / a["mean"]
    spread = ratio * math.hypot(a["stddev"] / a["mean"], b["stddev"] / b["mean"])
    apart = abs(ratio - 1) > spread
    return {
        "says": ("slower" if ratio > 1 else "faster") if apart else "undecided",
        "change": ratio - 1,
        "floor": spread,
        "rounds": runs,
        "rejected": 0,
        "told": True,
        "took": time.perf_counter() - began,
    }


def kept(path: Path | None) -> list[dict[str, Any]]:
    """The comparisons of an earlier call; a line that was cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path is not None and path.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def summed(rows: list[dict[str, Any]]) -> bool:
    """Print the table; whether every bound holds."""
    good = True
    print("slower by | comparisons | told | slower | faster | same | undecided | median, longest s")
    for slower in sorted({row["slower"] for row in rows}):
        own = [row for row in rows if row["slower"] == slower]
        told = [row for row in own if row["told"]]
        said = collections.Counter(row["says"] for row in told)
        times = [row["took"] for row in own]
        words = " | ".join(str(said[name]) for name in ("slower", "faster", "same", "undecided"))
        print(
            f"{100 * slower:g} % | {len(own)} | {len(told)} | {words} |"
            f" {statistics.median(times):.0f}, {max(times):.0f}"
        )
        share = said["slower"] / max(1, len(told))
        false = (said["slower"] + said["faster"]) / max(1, len(told))
        wanted = LEAST.get(slower)
        good = good and (false <= MOST_FALSE if slower == 0 else wanted is None or share >= wanted)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--slower", type=float, nargs="+", default=[0.0, 0.03, 0.1])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--hyperfine", action="store_true")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    text = (options.data / "tinyshakespeare" / "input.txt").resolve()
    rows = kept(options.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slowed.py").write_text(PLUGIN)
        first = written(folder, "first", text, 0.0, options.dim)
        known = [row["step"] for row in rows]
        step = known[0] if known else benched(folder, first, seconds=5)["benchmarks"][0]["median_s"]
        print(f"a step takes {1e3 * step:.2f} ms")
        # one of each in turn, so that a stop leaves as many of all
        done = collections.Counter(row["slower"] for row in rows)
        for number in range(options.count):
            for slower in options.slower:
                if done[slower] > number:
                    continue
                second = written(folder, f"second-{slower:g}", text, slower * step, options.dim)
                if options.hyperfine:
                    found = by_hyperfine(folder, first, second, options.seconds, options.steps)
                else:
                    found = compared(folder, first, second, options.seconds)
                rows.append({"slower": slower, "step": step, **found})
                if options.out is not None:
                    with options.out.open("a") as file:
                        print(json.dumps(rows[-1]), file=file)
                print(
                    f"{100 * slower:g} % slower, {number + 1}: {found['says']},"
                    f" {100 * found['change']:+.2f} %, floor {100 * (found['floor'] or 0):.2f} %,"
                    f" {found['rounds']} rounds, {found['rejected']} left out,"
                    f" {found['took']:.0f} s{'' if found['told'] else '; cannot be told'}",
                    flush=True,
                )
    return int(not summed(rows) and not options.hyperfine)


if __name__ == "__main__":
    sys.exit(main())
