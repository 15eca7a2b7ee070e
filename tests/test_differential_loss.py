"""Random specs: a row's loss, gradient, scores and masks depend on the row alone, for every task
with every model that fits it.

For each of some 190 networks and batches, of which every second is tried by default: micro-batches
add up to the whole, more padding changes nothing, a row alone has the scores and masks that it has
beside others, and so it has in any order. Dropout and stochastic depth, which are noise of layers,
are left out; and BatchNorm, which looks at the batch by definition, is only evaluated. (Generation:
test_differential.py.)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from conftest import loss_of, scores_of
from torch import Tensor

from bigmodel_cli.config import NO_DATASET, DatasetInfo, MelConfig
from bigmodel_cli.data.batches import join
from bigmodel_cli.data.order import keys_of
from bigmodel_cli.models import MODELS, build
from bigmodel_cli.tasks import TASKS, build_task

# other tests run these lines; coverage would take half of the time again
pytestmark = pytest.mark.no_cover

Batch = dict[str, Tensor]
V, LONGEST, MORE = 29, 13, 6
"""Tokens, the longest row, and how many columns longer the row is that stands beside the others to
pad them.
"""


@dataclass
class Case:
    """A network, a task, and rows as batches of one, with a longer row where rows have lengths."""

    model: Any
    task: Any
    rows: list[Batch]
    longer: Batch | None
    tolerance: float  # of what is computed in fp32 whatever the network's precision, or in fp64
    trains: bool = True


def pick(r: random.Random, **options: list[Any]) -> dict[str, Any]:
    """Of each option one of its values; None leaves it out."""
    chosen = {name: r.choice(values) for name, values in options.items()}
    return {name: value for name, value in chosen.items() if value is not None}


def position(r: random.Random) -> dict[str, Any] | None:
    scaling = {"type": "yarn", "factor": 2.0, "trained": 8}
    kinds = [
        {"type": "rotary"},
        {"type": "rotary", "fraction": 0.5},
        {"type": "rotary", "scaling": scaling},
    ]
    return r.choice(
        [*kinds, None, {"type": "alibi"}, {"type": "t5", "buckets": 8, "max_distance": 12}]
    )


def mixer(r: random.Random, causal: bool) -> dict[str, Any]:
    """A mixer of 24 channels."""
    kinds = ["attention"] * 4 + ["mla", "differential"]
    kinds += ["mamba2", "gated_deltanet", "convolution", "retention"] if causal else []
    kind = r.choice(kinds)
    if kind == "attention":
        return {
            "type": kind,
            "num_heads": r.choice([2, 3, 6]) * 2,
            "head_dim": r.choice([4, 8]),
            **pick(
                r,
                position=[position(r)],
                window=[None, None, 1, 3, 40],
                qk_norm=[None, True],
                sinks=[None, True],
            ),
            **pick(
                r,
                softcap=[None, None, 5.0],
                kv_heads=[None, 2, 1],
                bias=[True, False],
                scale=[None, 0.3],
            ),
        }
    if kind == "mla":
        return {
            "type": kind,
            "num_heads": 3,
            "kv_rank": 10,
            "rotary_dim": 4,
            **pick(r, q_rank=[None, 8], value_dim=[None, 5]),
        }
    if kind == "differential":
        return {
            "type": kind,
            "num_heads": r.choice([1, 3]),
            **pick(r, position=[None, {"type": "rotary"}]),
        }
    if kind == "mamba2":
        return {
            "type": kind,
            "state": 5,
            "head_dim": 8,
            "groups": r.choice([1, 2, 3]),
            "chunk": r.choice([3, 64]),
        }
    if kind == "gated_deltanet":
        return {"type": kind, "num_heads": 4, "key_heads": 2, "chunk": r.choice([3, 64])}
    if kind == "convolution":
        return {"type": kind, "kernel": r.choice([2, 5])}
    return {"type": kind, "num_heads": 3, "chunk": r.choice([4, 64])}


def blocks(r: random.Random, causal: bool, cross: bool = False) -> list[dict[str, Any]]:
    """One to three blocks."""
    made = []
    for number in range(r.choice([1, 2, 3])):
        experts = {
            "type": "moe",
            "experts": 4,
            "hidden": 8,
            **pick(r, top_k=[1, 2, 3], shared=[0, 1]),
        }
        experts |= pick(r, router=["softmax", "sigmoid"], balance=["loss", "bias", "none"])
        ffn = r.choice(
            [
                None,
                {"type": r.choice(["gelu", "relu", "relu2", "swiglu", "geglu"]), "hidden": 20},
                experts,
            ]
        )
        block: dict[str, Any] = {
            "mixer": mixer(r, causal),
            **pick(r, ffn=[ffn], layer_scale=[None, 0.4]),
        }
        block["norm"] = {"type": r.choice(["layernorm", "rmsnorm"])}
        block["placement"] = r.choice(["pre", "post", "sandwich", "after"])
        if cross and (number == 0 or r.random() < 0.5):
            block["cross"] = {"num_heads": 4, **pick(r, kv_heads=[None, 2], qk_norm=[None, True])}
        made.append(block)
    return made


def network(r: random.Random, kind: str, info: DatasetInfo, **options: Any) -> Any:
    """A network in fp64 whose weights differ enough from zero to matter."""
    values = {
        "type": kind,
        **({"dim": 24} if kind not in ("cnn", "torchvision") else {}),
        **options,
    }
    model = build(MODELS[kind].model_validate(values), info).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def task(r: random.Random, kind: str, info: DatasetInfo = NO_DATASET, **options: Any) -> Any:
    return build_task(TASKS[kind].model_validate({"type": kind, **options}), info)


def lengths(r: random.Random) -> list[int]:
    """Of two to five rows, and of a longer one."""
    return [*(r.randint(1, LONGEST) for _ in range(r.randint(2, 5))), LONGEST + MORE]


def keyed(r: random.Random, rows: list[Batch]) -> list[Batch]:
    """The rows with their keys."""
    keys = keys_of(r.randint(0, 9), r.randint(0, 9), np.array(r.sample(range(1000), len(rows))))
    return [{**row, "key": key[None]} for row, key in zip(rows, keys, strict=True)]


def tokens(r: random.Random, length: int, known: int = V) -> Tensor:
    return torch.tensor([[r.randrange(known) for _ in range(length)]])


def text_facts(**more: Any) -> DatasetInfo:
    return DatasetInfo(vocab_size=V, context=LONGEST + MORE + 1, **more)


def causal_lm(r: random.Random) -> Case:
    places = [None, {"type": "learned"}, {"type": "sinusoidal"}]
    options = pick(
        r,
        position=places,
        tie_embeddings=[True, False],
        scale_embeddings=[None, True],
        logit_softcap=[None, 4.0],
    )
    model = network(r, "decoder", text_facts(), blocks=blocks(r, causal=True), **options)
    rows = [{"tokens": tokens(r, n + 1)} for n in lengths(r)]
    if r.random() < 0.4:  # packed documents, each for itself
        rows = [{**row, "segments": (row["tokens"] == 0).cumsum(1)} for row in rows]
    *rows, longer = keyed(r, rows)
    return Case(
        model, task(r, "causal_lm", label_smoothing=r.choice([0.0, 0.2])), rows, longer, 1e-9
    )


def preferences(r: random.Random) -> Case:
    place = pick(r, position=[None, {"type": "learned"}])
    model, reference = (
        network(r, "decoder", text_facts(), blocks=blocks(r, causal=True), **place)
        for _ in range(2)
    )
    rows: list[Batch] = []
    for one, other in zip(lengths(r), reversed(lengths(r)), strict=False):
        row = {"tokens": tokens(r, one + 2), "rejected": tokens(r, other + 2)}
        for name, mask in (("tokens", "loss_mask"), ("rejected", "rejected_mask")):
            at = torch.arange(row[name].shape[1])
            row[mask] = (at >= r.randint(1, len(at) - 1))[None]
        rows.append(row)
    *rows, longer = keyed(r, rows)
    of = task(r, "dpo", beta=r.choice([0.1, 0.7]), label_smoothing=r.choice([0.0, 0.2]))
    of.reference = reference
    return Case(model, of, rows, longer, 1e-9)


def typed(r: random.Random, rows: list[Batch]) -> list[Batch]:
    """Rows of which the later part is of another type, as in pairs of texts."""
    cuts = [r.randint(0, row["tokens"].shape[1]) for row in rows]
    split = [
        (torch.arange(row["tokens"].shape[1]) >= cut).long()[None]
        for row, cut in zip(rows, cuts, strict=True)
    ]
    return [
        {**row, "types": types.masked_fill(row["tokens"] < 0, -1)}
        for row, types in zip(rows, split, strict=True)
    ]


def masked_lm(r: random.Random) -> Case:
    options = pick(
        r,
        position=[None, {"type": "learned"}],
        embedding_norm=[None, {"type": "layernorm"}],
        token_types=[0, 2],
    )
    model = network(r, "encoder", text_facts(), blocks=blocks(r, causal=False), **options)
    rows = [{"tokens": torch.cat((tokens(r, n), torch.full((1, 1), -1)), 1)} for n in lengths(r)]
    if options["token_types"] and r.random() < 0.7:
        rows = typed(r, rows)
    whole = r.random() < 0.4
    if whole or r.random() < 0.3:
        marks = [torch.rand(row["tokens"].shape) < 0.2 for row in rows]
        words = [(torch.rand(row["tokens"].shape) < 0.6).cumsum(1) for row in rows]
        rows = [
            {
                **row,
                "words": (
                    w.clamp(max=row["tokens"].shape[1] - 2).masked_fill(m | (row["tokens"] < 0), -1)
                ),
            }
            for row, w, m in zip(rows, words, marks, strict=True)
        ]
    *rows, longer = keyed(r, rows)
    chosen = {
        "whole_words": whole,
        "mask_prob": r.choice([0.15, 0.5, 0.9]),
        "replace_mask": 0.4,
        "replace_random": r.choice([0.1, 0.6]),
    }
    return Case(
        model, task(r, "masked_lm", DatasetInfo(vocab_size=V), **chosen), rows, longer, 1e-9
    )


def seq2seq(r: random.Random) -> Case:
    options = pick(
        r,
        norm=[None, {"type": "rmsnorm"}],
        init=["xavier", "normal"],
        share_embeddings=[True, False],
    )
    options |= {"encoder": blocks(r, causal=False), "decoder": blocks(r, causal=True, cross=True)}
    two = r.random() < 0.3
    model = network(r, "seq2seq", text_facts(source_vocab_size=11 if two else None), **options)
    known = 11 if two else V
    written = lengths(r)
    read = [r.randint(1, LONGEST) for _ in written[1:]] + [LONGEST + MORE]
    rows = [
        {"source": tokens(r, m, known), "target": tokens(r, n + 1)}
        for m, n in zip(read, written, strict=True)
    ]
    *rows, longer = keyed(r, rows)
    return Case(model, task(r, "seq2seq", label_smoothing=r.choice([0.0, 0.1])), rows, longer, 1e-9)


def labels_of_text(r: random.Random) -> Case:
    options = pick(
        r,
        pool=["cls", "mean"],
        pooler=[True, False],
        position=[None, {"type": "learned"}],
        token_types=[0, 2],
    )
    info = text_facts(classes=("a", "b", "c"))
    model = network(r, "encoder", info, blocks=blocks(r, causal=False), **options)
    rows = [{"tokens": tokens(r, n)} for n in lengths(r)]
    if options["token_types"] and r.random() < 0.7:
        rows = typed(r, rows)
    *rows, longer = keyed(r, [{**row, "label": torch.tensor([r.randrange(3)])} for row in rows])
    return Case(
        model, task(r, "classification", label_smoothing=r.choice([0.0, 0.1])), rows, longer, 3e-5
    )


def heard(r: random.Random, width: int, stride: int) -> list[Batch]:
    """Rows of frames, each of as many frames as it has."""
    counts = [r.randint(max(1, (n - 1) * stride + 1), n * stride) for n in lengths(r)]
    return [
        {"frames": torch.randn(1, n, width).double(), "lengths": torch.tensor([n])} for n in counts
    ]


def speech(r: random.Random, info: DatasetInfo, stride: int) -> Any:
    frontend = {"type": "conv", "stride": stride, **pick(r, kernel=[1, 3, 7], channels=[None, 9])}
    return network(
        r,
        "encoder",
        info,
        blocks=blocks(r, causal=False),
        frontend=frontend,
        pool=r.choice(["cls", "mean"]),
    )


def labels_of_sound(r: random.Random) -> Case:
    stride = r.choice([1, 2, 4, 8])
    info = DatasetInfo(frame_width=5, context=stride * (LONGEST + MORE), classes=("a", "b", "c"))
    rows = [{**row, "label": torch.tensor([r.randrange(3)])} for row in heard(r, 5, stride)]
    *rows, longer = keyed(r, rows)
    return Case(speech(r, info, stride), task(r, "classification"), rows, longer, 3e-5)


def ctc(r: random.Random) -> Case:
    stride = r.choice([1, 2, 4])
    sound = MelConfig(rate=100, window=20, hop=10, mels=5, low=1.0, high=50.0)
    info = DatasetInfo(
        frame_width=5,
        context=stride * (LONGEST + MORE),
        classes=tuple("abcd"),
        sound=sound,
        spelling="words",
    )
    rows = []
    for row in heard(r, 5, stride):
        vectors = -(-int(row["lengths"]) // stride)
        # with a blank between any two
        rows.append({**row, "target": tokens(r, r.randint(1, (vectors + 1) // 2), 4)})
    *rows, longer = keyed(r, rows)
    return Case(speech(r, info, stride), task(r, "ctc", info), rows, longer, 1e-4)


def images(r: random.Random, labelled: bool) -> list[Batch]:
    rows = [{"image": torch.randn(1, 3, 8, 12).double()} for _ in range(r.randint(2, 4))]
    return keyed(
        r, [{**row, "label": torch.tensor([r.randrange(3)])} for row in rows] if labelled else rows
    )


def vit(r: random.Random, info: DatasetInfo, **more: Any) -> Any:
    options = pick(
        r,
        pool=["cls", "mean"],
        registers=[0, 2],
        position=["learned", "sines"],
        norm=[None, {"type": "rmsnorm"}],
    )
    return network(
        r, "vit", info, patch=r.choice([2, 4]), blocks=blocks(r, causal=False), **options, **more
    )


def labels_of_images(r: random.Random) -> Case:
    info = DatasetInfo(image_shape=(3, 8, 12), classes=("a", "b", "c"))
    return Case(vit(r, info), task(r, "classification"), images(r, labelled=True), None, 3e-5)


def labels_by_convolutions(r: random.Random) -> Case:
    norm = r.choice(["none", "batch"])
    conv = {"type": "conv", "channels": 6, "padding": "same", "norm": norm}
    layers = [
        conv,
        {"type": "pool"},
        {"type": "residual", "layers": [conv]},
        {"type": "adaptive_pool"},
        {"type": "flatten"},
    ]
    model = network(
        r,
        "cnn",
        DatasetInfo(image_shape=(3, 8, 12), classes=("a", "b", "c")),
        layers=[*layers, {"type": "dense", "units": "classes"}],
    )
    trains = not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    return Case(model, task(r, "classification"), images(r, labelled=True), None, 3e-5, trains)


def labels_by_torchvision(r: random.Random) -> Case:
    info = DatasetInfo(image_shape=(3, 8, 12), classes=("a", "b", "c"))
    rows = [
        {**row, "image": torch.nn.functional.interpolate(row["image"], (32, 32))}
        for row in images(r, labelled=True)
    ]
    info = DatasetInfo(image_shape=(3, 32, 32), classes=("a", "b", "c"))
    return Case(
        network(r, "torchvision", info, name="squeezenet1_1"),
        task(r, "classification"),
        rows,
        None,
        3e-5,
        False,
    )


def masked_image(r: random.Random) -> Case:
    decoder = {
        "dim": 12,
        "blocks": [{"mixer": {"type": "attention", "num_heads": 2}, "ffn": {"type": "gelu"}}],
    }
    model = vit(r, DatasetInfo(image_shape=(3, 8, 12)), reconstruct=decoder)
    chosen = {"mask_ratio": r.choice([0.25, 0.5, 0.75]), "normalize": r.choice([True, False])}
    return Case(model, task(r, "masked_image", **chosen), images(r, labelled=False), None, 3e-5)


def numbers_of_text(r: random.Random) -> Case:
    scale = {"target_mean": (3.0, -1.0), "target_std": (2.0, 0.5)}
    info = text_facts(targets=("a", "b"), **scale)
    options = pick(r, pool=["cls", "mean"], position=[None, {"type": "learned"}])
    model = network(r, "encoder", info, blocks=blocks(r, causal=False), **options)
    rows = [
        {"tokens": tokens(r, n), "numbers": 3 * torch.randn(1, 2, dtype=torch.float64)}
        for n in lengths(r)
    ]
    *rows, longer = keyed(r, rows)
    chosen = {"loss": r.choice(["mse", "mae", "huber"])}
    return Case(model, task(r, "regression", info, **chosen), rows, longer, 3e-5)


def sets_of_images(r: random.Random) -> Case:
    counts = {"class_counts": (4, 1, 9), "items": 10}
    info = DatasetInfo(image_shape=(3, 8, 12), classes=("a", "b", "c"), label_sets=True, **counts)
    rows = [{**row, "labels": torch.rand(1, 3) < 0.5} for row in images(r, labelled=False)]
    chosen = {"pos_weight": r.choice(["none", "balanced"])}
    return Case(vit(r, info), task(r, "multilabel", info, **chosen), rows, None, 3e-5)


def tags_of_text(r: random.Random) -> Case:
    info = text_facts(classes=("O", "B-x", "I-x"), tagged=True)
    kind = r.choice(["encoder", "decoder"])
    model = network(r, kind, info, blocks=blocks(r, causal=kind == "decoder"))
    rows = []
    for n in lengths(r):
        tags = tokens(r, n, 3)
        rows.append({"tokens": tokens(r, n), "tags": tags.masked_fill(torch.rand(1, n) < 0.3, -1)})
    *rows, longer = keyed(r, rows)
    smoothing = r.choice([0.0, 0.1])
    return Case(model, task(r, "tagging", info, label_smoothing=smoothing), rows, longer, 3e-5)


MAKERS: dict[str, tuple[Callable[[random.Random], Case], int]] = {
    "causal_lm": (causal_lm, 36),
    "dpo": (preferences, 8),
    "masked_lm": (masked_lm, 36),
    "seq2seq": (seq2seq, 26),
    "classification of text": (labels_of_text, 20),
    "classification of sound": (labels_of_sound, 14),
    "classification of images": (labels_of_images, 10),
    "classification by convolutions": (labels_by_convolutions, 3),
    "classification by torchvision": (labels_by_torchvision, 1),
    "masked_image": (masked_image, 14),
    "ctc": (ctc, 14),
    "regression of text": (numbers_of_text, 8),
    "multilabel of images": (sets_of_images, 4),
    "tagging": (tags_of_text, 8),
}


@dataclass
class Found:
    """What a batch gives: loss, targets, gradient, scores of each row, and what the network was
    asked in both modes.
    """

    loss: Tensor
    count: int
    gradient: Tensor
    scores: dict[str, tuple[Tensor, Tensor]]
    asked: list[Tensor]


def run(
    case: Case, batch: Batch, rows: int | None = None, backward: bool = True, score: bool = True
) -> Found:
    """Loss and gradient, then scores; where `rows` is said, of the first so many alone (those
    beyond are there to pad).
    """
    model, asked = case.model, []

    if rows is not None:
        batch = {name: tensor[:rows] for name, tensor in batch.items()}
    count_of_rows = len(next(iter(batch.values())))

    def note(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        for t in (*inputs, *named.values()):
            if torch.is_tensor(t) and t.dim() == 2:
                asked.extend(t.split(count_of_rows))  # pairs of answers pass one below the other

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    model.train(case.trains)
    model.zero_grad()
    with torch.set_grad_enabled(backward):
        loss, count = loss_of(case.task, model, batch)
    if backward:
        loss.backward()
    gradient = torch.cat(
        [
            (p.grad if p.grad is not None else torch.zeros_like(p)).flatten()
            for p in model.parameters()
        ]
    )
    model.eval()
    with torch.no_grad():
        scores = scores_of(case.task, model, batch) if score else {}
    hook.remove()
    return Found(loss.detach(), int(count), gradient.clone(), scores, asked)


def close(got: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    size = float(wanted.double().abs().max()) if wanted.numel() else 0.0
    error = float((got.double() - wanted.double()).abs().max()) if wanted.numel() else 0.0
    assert error <= tolerance * max(1.0, size), f"{what}: {error} of {size}"


def the_same(case: Case, got: Found, wanted: Found, rows: list[int], what: str) -> None:
    """Of these rows of the whole: loss and gradient (where they are all), scores, and what was
    asked as far as both reach.
    """
    if len(rows) == len(case.rows):
        close(got.loss, wanted.loss, case.tolerance, f"loss {what}")
        close(got.gradient, wanted.gradient, case.tolerance, f"gradient {what}")
        assert got.count == wanted.count, what
    for name, (sums, counts) in wanted.scores.items():
        close(got.scores[name][0], sums[rows], case.tolerance, f"{name} {what}")
        assert torch.equal(got.scores[name][1], counts[rows]), f"{name} {what}"
    for mine, theirs in zip(got.asked, wanted.asked, strict=True):
        width = min(mine.shape[1], theirs.shape[1])
        assert torch.equal(mine[:, :width], theirs[rows][:, :width]), f"masks {what}"
        if mine.dtype == torch.bool:  # what stands behind is not hidden
            assert not bool(mine[:, width:].any() or theirs[rows][:, width:].any()), f"masks {what}"


CASES = [(name, number) for name, (_, count) in MAKERS.items() for number in range(count)]


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["even", "odd"])
@pytest.mark.parametrize("name", MAKERS)
def test_loss_gradient_and_scores_of_a_row_do_not_depend_on_the_batch(name: str, half: int) -> None:
    make, count = MAKERS[name]
    for number in range(half, count, 2):
        r = random.Random(f"{name} {number}")
        torch.manual_seed(r.randrange(1 << 30))
        case = make(r)
        try:
            check(case, r)
        except AssertionError as error:
            raise AssertionError(
                f"{name} {number}: {error}\n{case.model.options if name[-6:] != 'vision' else ''}"
            ) from error


def check(case: Case, r: random.Random) -> None:
    """The four properties."""
    every = list(range(len(case.rows)))
    whole = run(case, join(case.rows))
    assert whole.loss.isfinite()
    if case.longer is not None:
        padded = join([*case.rows, case.longer])
        the_same(case, run(case, padded, len(every)), whole, every, "padded more")
    order = r.sample(every, len(every))
    shuffled = run(case, join([case.rows[i] for i in order]))
    the_same(case, shuffled, whole, order, "in another order")
    for i in every:
        the_same(case, run(case, case.rows[i], backward=False), whole, [i], "alone")
    cut = r.randint(1, len(every) - 1)
    parts = [run(case, join(part), score=False) for part in (case.rows[:cut], case.rows[cut:])]
    close(parts[0].loss + parts[1].loss, whole.loss, case.tolerance, "loss of micro-batches")
    close(
        parts[0].gradient + parts[1].gradient,
        whole.gradient,
        case.tolerance,
        "gradient of micro-batches",
    )
    assert sum(part.count for part in parts) == whole.count


def test_every_task_has_cases_and_both_halves_together_have_150() -> None:
    assert len(CASES) >= 150
    assert set(TASKS) <= {name.split()[0] for name in MAKERS}
