"""A storm of signals over runs in all their phases: what is stopped says so, and ends after all as
a run that nobody stopped.

    python tests/measure/signals.py [--signals 300] [--seed 0] [--jobs 2] [--data DATA] [--only
    FAMILY] [--folder DIR] python tests/measure/signals.py --repeat decoder:17        # run 17 of
    that family again, with the same signals

SIGTERM, SIGINT, SIGHUP and SIGINT twice, each to the process or to its whole group, at a random
moment of a start, of training a tokenizer (half of the runs begin with an empty cache), of a step,
a validation with averaged weights, a save, an average of checkpoints, or the end; a run is stopped
up to three times, and resumed by the command that it printed. Checked are the exit status,
status.json, that there is no traceback, and the result against that of the undisturbed run. The
status is 1 where a run is at fault.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import ClassVar

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from measure.families import AVERAGED, FAMILIES  # noqa: E402
from measure.kills import Outcome, Reference, Storm, compared, send, start, storms  # noqa: E402
from zygote import Child, Ended, Zygote, resume_command  # noqa: E402

SIGNALS = {"TERM": 143, "INT": 130, "HUP": 129, "INT twice": 130}
"""What is sent, and the exit status of a run that it stops."""
MOST_STOPS = 3
PATIENCE = 60.0
"""Seconds within which a stopped run must have ended: steps here take milliseconds."""


def stop_once(
    child: Child, rng: random.Random, seconds: float, outcome: Outcome
) -> tuple[str, Ended]:
    """Send a signal at a random moment and wait for the end.

    Returns what was sent ('' where the run had ended before).
    """
    name, group = rng.choice(list(SIGNALS)), rng.random() < 0.5
    moment, pause = rng.uniform(0, 1.1 * seconds), rng.uniform(0, 0.05)
    outcome.plan.append(f"{name}{' to the group' if group else ''} after {moment:.3f} s")
    early = child.end_within(moment)
    if not early:
        number = getattr(signal, f"SIG{name.split()[0]}")
        send(child, number, group)
        if "twice" in name:
            time.sleep(pause)
            send(child, number, group)
    return "" if early else f"{name}{' group' if group else ''}", child.wait(PATIENCE)


def faults_of(ended: Ended, name: str, out: Path) -> list[str]:
    """What is wrong with how a run ended after a signal; nothing where it was done before the
    signal came.
    """
    expected = SIGNALS[name.removesuffix(" group")]
    unheard = (
        expected - 128
        # killed before the command had a handler, or when all was printed: a shell's status is the
        # same
    )
    faults = [f"a traceback: {ended.err[-1500:]}"] if "Traceback" in ended.err else []
    if ended.status not in (0, expected, -unheard):
        return [*faults, f"status {ended.status} after {name}: {ended.err[-1500:]}"]
    told = json.loads((out / "status.json").read_text()) if (out / "status.json").exists() else {}
    if ended.status == -unheard and ended.err and told.get("state") == "running":
        faults.append(f"killed by {name} in the midst of training")
    if ended.status == 0 and told.get("state") != "done":
        faults.append(f"ended with 0, and status.json says {told}")
    # a command that was stopped before it began leaves the status of the one before
    began = not any(
        text in ended.err
        for text in ("bigmodel: stopped by SIG", "stopped before anything was written")
    )
    if ended.status == expected and "twice" not in name and out.exists() and began:
        if (told.get("state"), told.get("code")) != ("stopped", expected):
            faults.append(f"status.json says {told} after {name}: {ended.err[-300:]}")
        if "to go on: " not in ended.err:
            faults.append(f"does not say how to go on: {ended.err[-300:]}")
    return faults


def stopped_at_times(
    zygote: Zygote, family: str, out: Path, rng: random.Random, reference: Reference
) -> Outcome:
    """Stop a run several times, let it end, and compare it with the one that nobody stopped."""
    outcome, env = Outcome(), {}
    if rng.random() < 0.5:
        (out.parent / "cache").mkdir(parents=True)
        env = {"XDG_CACHE_HOME": str(out.parent / "cache")}
    child = start(zygote, family, out, env)
    for _ in range(rng.randint(1, MOST_STOPS)):
        outcome.leaders.append(child.pid)
        name, ended = stop_once(child, rng, reference.seconds, outcome)
        outcome.kills[name] += bool(name)
        outcome.faults += faults_of(ended, name, out) if name else []
        if ended.status == 0 or outcome.faults:
            break
        told = "to go on: " in ended.err
        child = (
            zygote.start(*resume_command(ended.err), env=env)
            if told
            else start(zygote, family, out, env)
        )
    else:
        ended = child.wait(PATIENCE)
    if not outcome.faults and ended.status != 0:
        outcome.faults.append(f"resumed, it ended with {ended.status}: {ended.err[-1500:]}")
    outcome.faults += compared(out, reference, stopped=True) if not outcome.faults else []
    return outcome


KINDS = {f"{name}{group}": 1 / (2 * len(SIGNALS)) for group in ("", " group") for name in SIGNALS}


class SignalStorm(Storm):
    """The signals of one family."""

    # of each kind at least half of its part
    shares: ClassVar[dict[str, float]] = {name: share / 2 for name, share in KINDS.items()}
    disturb = staticmethod(stopped_at_times)


def main() -> None:
    """Make the storms, and print the table."""
    storms(__doc__ or "", SignalStorm, "signals", 300, {**FAMILIES, **AVERAGED})


if __name__ == "__main__":
    main()
