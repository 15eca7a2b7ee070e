"""Evaluation by several processes: each scores whole batches, and all of them get all scores.

The batches are those of one process, so that every number is the same to the bit.
"""

from __future__ import annotations

import json

import numpy as np

from bigmodel_cli.distributed import gathered_bytes, samples, wait_for_all
from bigmodel_cli.lazy import torch
from bigmodel_cli.tasks import Answers, Scores


def own_items(count: int, rows: int) -> range:
    """Which of `count` items in order this process has, in whole batches of `rows`."""
    own = samples().share(-(-count // rows))
    return range(own.start * rows, min(count, own.stop * rows))


def joined(scores: Scores, answers: Answers, rows: int) -> tuple[Scores, Answers, int]:
    """The scores and answers of all processes, in order, and the least `rows` of them.

    They are the same in all processes; one that had no items gives {}.
    """
    if samples().alone:
        return scores, answers, rows
    wait_for_all()  # one may be slower by more than an exchange of tensors would wait
    arrays = {name: [x.numpy() for x in pair] for name, pair in scores.items()}
    kinds = {name: [[x.dtype.str, len(x)] for x in pair] for name, pair in arrays.items()}
    head = json.dumps({"rows": rows, "kinds": kinds, "answers": answers}).encode()
    body = b"".join(x.tobytes() for pair in arrays.values() for x in pair)
    heads, pieces = [], dict[str, list[list[np.ndarray]]]()
    for content in gathered_bytes(len(head).to_bytes(8, "little") + head + body):
        at = 8 + int.from_bytes(content[:8], "little")
        heads.append(json.loads(content[8:at]))
        for name, pair in heads[-1]["kinds"].items():
            own = []
            for kind, length in pair:
                own.append(np.frombuffer(content, np.dtype(kind), length, at))
                at += own[-1].nbytes
            pieces.setdefault(name, []).append(own)
    every: Scores = {}
    for name, found in pieces.items():
        sums, counts = (torch.from_numpy(np.concatenate(x)) for x in zip(*found, strict=True))
        every[name] = sums, counts
    said: Answers = {}
    for one in heads:
        for name, values in one["answers"].items():
            said.setdefault(name, []).extend(values)
    return every, said, min(one["rows"] for one in heads)
