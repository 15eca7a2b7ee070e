"""What `attend` found in one model for one input: what all its views are drawn from.

Nothing here grows with T x S: maps are of blocks of positions, rows are those that were asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli.attend.alignment import Alignment
from bigmodel_cli.attend.heat import Heat
from bigmodel_cli.attend.times import Heard, Times
from bigmodel_cli.console import one_line
from bigmodel_cli.lazy import Tensor


@dataclass(frozen=True)
class Side:
    """The tokens of one axis: of the source, of the text, of the patches of an image.

    `labels` (T) are for people; `ids` (T) tell equal tokens, where they are tokens. `first` special
    positions (a class token) come before the others, of which there are `grid` rows and columns
    where they are patches of an image: what comes after those are registers. `seconds` is how long
    a position lasts in a sound.
    """

    name: str
    labels: Sequence[str]
    ids: Sequence[int] | None = None
    first: int = 0
    grid: tuple[int, int] | None = None
    seconds: float | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Statistics:
    """Figures of the heads (H) of a layer, each a mean over queries, exact or over sampled ones.

    `entropy` is in nats. `sink` is the share of the weight on the first key (and, where heads have
    sinks of their own, beside the keys); `own`, `previous` that on the query's own position and on
    the one before it. `distance` is the mean of |i - j| in positions; of patches it is that between
    them, in patches. `induction` is the share on the positions that follow earlier occurrences of
    the query's own token, `duplicate` that on those occurrences, over queries that have one: NaN
    where no token comes twice. `column` is the largest share of the weight of all queries that one
    key other than the first receives; `uniform` the entropy as a part of that of equal weights.
    `moved` is as `sink`, of |weight| x |v W_O| (Kobayashi et al. 2020): how much of what a head
    moves comes from the sink; None where it is not defined. NaN where a figure has no meaning. Of
    signed weights (`Layer.signed`) all are parts of the sum of absolute weights. A score beside the
    keys counts as one more place in `entropy` and
    `uniform`. `half` are half the 95 % intervals of each, by name, where queries were sampled.
    """

    entropy: Tensor
    sink: Tensor
    own: Tensor
    previous: Tensor
    distance: Tensor
    induction: Tensor
    duplicate: Tensor
    column: Tensor
    uniform: Tensor
    moved: Tensor | None = None
    half: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Blocks:
    """Weights (H, R, C) of blocks of queries and keys: the largest, and the mean of those seen.

    Block (r, c) is of queries r * `rows` to (r + 1) * `rows`, and of keys by `columns`. Where both
    are 1 they are the weights themselves. Blocks that no query sees are NaN.
    """

    most: Tensor
    mean: Tensor
    rows: int
    columns: int


@dataclass(frozen=True)
class Kept:
    """Chosen heads of a layer: weight (i, j) is exp(score - lse[i]), of what query i may see.

    `heads` are their numbers (N). The score is `scale` x q[i] . k[j], through `softcap` where given
    (softcap x tanh(score / softcap)), plus `bias` (N, T, S). Query i stands at key S - T + i; it
    sees keys up to its own place where `causal`, nearer than `window` where given, of its own
    segment (S), and of those that `key_mask` (S) has. `sink` (N) are scores beside the keys.
    """

    heads: list[int]
    q: Tensor  # (N, T, D)
    k: Tensor  # (N, S, D)
    lse: Tensor  # (N, T)
    scale: float
    causal: bool
    window: int | None = None
    softcap: float | None = None
    segments: Tensor | None = None
    key_mask: Tensor | None = None
    bias: Tensor | None = None
    sink: Tensor | None = None


@dataclass(frozen=True)
class Layer:
    """What the heads of one part do.

    `name` is the module's path, `kind` "self", "cross" or "mixing" (a matrix that another mixer
    implies: signed, and no share). `read` (H, S) is what the query position `query` reads, `moved`
    (H, S) the same times |v W_O|, None where that is not defined. `received` (H, S) is the mean
    weight that each key receives of the queries that see it. `top` are (H, T, K) the heaviest keys
    of each query, and their weights. `difference` is the largest one between weights times values
    and what the kernel returned, as a part of the largest output. `signed` weights may be negative
    and are no shares (differential attention, mixing). `sampled` (N) are the queries that the
    statistics, `received`, `blocks` and `top` are of, where not all were looked at. `key` is a key
    position that was asked for, and `readers` (H, T) what each query reads of it. `kept` are the
    tensors of chosen heads, from which any weight can be computed again.
    """

    name: str
    kind: str
    queries: Side
    keys: Side
    causal: bool
    statistics: Statistics
    blocks: Blocks
    query: int
    read: Tensor
    received: Tensor
    moved: Tensor | None = None
    top: tuple[Tensor, Tensor] | None = None
    difference: float = 0.0
    letters: str = ""  # the class of each head, a letter: see classes.py
    signed: bool = False
    sampled: Tensor | None = None
    key: int | None = None
    readers: Tensor | None = None
    kept: Kept | None = None
    rounded: str = ""
    """"bf16" or "fp16", where the kernel rounds the weights and its output to it."""
    number: int | None = None
    """Which of the layers that attend it is; its place in the look when None."""
    weights: tuple[Tensor, Tensor] | None = None
    """Numbers of heads (N) and all their weights (N, T, S), where they were asked for."""
    chosen: tuple[int, ...] = ()
    """Heads that were asked for by number: views show these, and not those that tell most."""

    @property
    def heads(self) -> int:
        """How many."""
        return len(self.read)


@dataclass(frozen=True)
class Told:
    """Which words of a source the words written come from, or when they are said in what was
    `heard`.
    """

    alignment: Alignment | None = None
    times: Times | None = None
    heard: Heard | None = None

    def tables(self) -> dict[str, Any]:
        """As plain values, by name."""
        named = {"alignment": self.alignment, "times": self.times}
        return {name: table.to_json() for name, table in named.items() if table is not None}


@dataclass(frozen=True)
class Look:
    """All of it: the model's name, its layers in the order of the forward pass, and what is said.

    `answer` is what the model gave back, in words: the likeliest class or next tokens, the text
    that beam search returned. `notes` are sentences on what was cut, sampled, or has no meaning.
    """

    model: str
    layers: list[Layer]
    answer: str = ""
    notes: list[str] = field(default_factory=list)
    heat: Heat | None = None
    """Of an image: its pixels, and a map of where the answer comes from."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further tables by name, for `--json`: routing of experts, logit lens, alignment."""
    told: Told = field(default_factory=Told)
    title: str = ""
    """What was looked at, in a few words: the text's beginning, or the file's name."""
    part: str = ""
    """Which window of it the maps are of, and how that begins, where it is read in several."""
    checkpoint: str = ""
    """The path of the checkpoint that was looked at."""

    @property
    def difference(self) -> float:
        """The largest one of all layers."""
        return max((layer.difference for layer in self.layers), default=0.0)

    @property
    def rounded(self) -> str:
        """To what its kernels round, where they do: see `Layer`."""
        return next((layer.rounded for layer in self.layers if layer.rounded), "")


def within(checkpoint: str) -> str:
    """Which checkpoint of its run, or which snapshot of its model, a path names: what a run's name
    alone does not say. "" for a folder of its own.
    """
    path = Path(checkpoint)
    return one_line(path.name) if path.parent.name in ("checkpoints", "snapshots") else ""


CAUTION = (
    "Weights show where information is fetched, not why the model answers so; what a head is worth"
    " is measured by cutting it: --ablate LAYER.HEAD"
)
