"""`bigmodel merge`: an adapter added to its weights, with a certificate that nothing else changed.

The certificate compares the logits of both models on the same inputs. It is kept in state.json.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints
from bigmodel_cli.adapters import adapters, merged
from bigmodel_cli.adapting import without_adapter
from bigmodel_cli.assemble import build_for
from bigmodel_cli.console import say
from bigmodel_cli.convert import opening
from bigmodel_cli.data import Prompts, input_of, load_tokenizer, random_batch, read_items
from bigmodel_cli.device import dtype_of
from bigmodel_cli.errors import CheckpointError, DataError, SpecError
from bigmodel_cli.generation.sampling import generate
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.metrics import shown
from bigmodel_cli.models import Model
from bigmodel_cli.roles import ORIGINAL, plain_name
from bigmodel_cli.start_options import InitOptions

BOUNDS = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}
"""Largest difference of logits, as a part of the largest logit, by the dtype that sums are rounded
to.
"""
DRAWN = 16
"""Random inputs where none are given."""
PROMPT, CONTINUED = 8, 32
"""Tokens of a random prompt, and of its continuation."""


@dataclass(frozen=True)
class Certificate:
    """How a merged model's logits differ from those of the adapted one.

    `kl` is the mean over positions, in nats; `greedy_agreement` is the share of positions with the
    same likeliest choice. Both are None where outputs are not logits of choices. `effect` is the
    largest difference that the adapter makes.
    """

    dtype: str
    inputs: int
    given: bool
    positions: int
    largest_logit: float
    largest_difference: float
    kl: float | None
    greedy_agreement: float | None
    effect: float
    bound: float

    @property
    def relative(self) -> float:
        """The largest difference as a part of the largest logit."""
        return self.largest_difference / (self.largest_logit or 1.0)

    def to_text(self) -> str:
        """For people, in one line."""
        drawn = "given" if self.given else "random"
        same = shown(self.greedy_agreement or 0, percent=True)
        also = f", KL {self.kl:.1e} nats, greedy agreement {same}" if self.kl is not None else ""
        return (
            f"sums in fp32, rounded once to {self.dtype}: on {self.inputs:,} {drawn} inputs"
            f" ({self.positions:,} positions) logits differ by at most"
            f" {self.largest_difference:.1e} of {self.largest_logit:.3g}{also}; the adapter itself"
            f" changes them by up to {self.effect:.2g}"
        )


def merge(
    loaded: Loaded, out: Path, inputs: Sequence[str], dtype: str, bound: float | None
) -> tuple[Path, Certificate]:
    """Write the checkpoint without its adapter to the folder `out`.

    `inputs` are texts or paths, as for `predict`. Raises `SpecError` where there is no adapter, or
    `out` is there, and `CheckpointError` where logits differ by more than the bound: then nothing
    is written.
    """
    if not adapters(loaded.model):
        raise SpecError(f"{loaded.path}: it has no adapter; it needs no merging")
    if os.path.lexists(out):
        raise SpecError(f"--out: {out} is there already; name another folder")
    spec = without_adapter(loaded.spec)
    _say_base(loaded)
    weights = merged(loaded.model)
    plain = build_for(spec, loaded.info, weights)
    kind = dtype_of(dtype)
    base = {
        plain_name(name): tensor
        for name, tensor in loaded.model.state_dict().items()
        if name.endswith(ORIGINAL)
    }
    batches = list(_batches(loaded, inputs))
    before = _logits(loaded, loaded.model, batches)
    checkpoints.load_weights(plain, {**weights, **base})
    without = _logits(loaded, plain.eval(), batches)
    rounded = {
        name: t.to(kind).to(t.dtype) if t.is_floating_point() else t for name, t in weights.items()
    }
    checkpoints.load_weights(plain, rounded)
    after = _logits(loaded, plain.eval(), batches)
    certificate = Certificate(
        dtype=dtype,
        inputs=len(batches),
        given=bool(inputs),
        effect=_largest_difference(before, without),
        bound=BOUNDS[dtype] if bound is None else bound,
        **_compared(before, after, loaded.task.chooses),
    )
    if not certificate.relative <= certificate.bound:
        raise CheckpointError(
            f"{loaded.path}: not merged: {certificate.to_text()}; that is"
            f" {certificate.relative:.2g} of the largest logit, and --bound is"
            f" {certificate.bound:g}: take --dtype fp32, or another bound"
        )
    stored = opening.read(loaded.path)
    contents = checkpoints.Contents(
        step=stored.step,
        model=plain.state_dict(),
        train={},
        state={
            "step": stored.step,
            "merged": {"adapter": loaded.spec.to_dict()["adapter"], **vars(certificate)},
        },
        spec=spec.model_copy(update={"init": InitOptions()}).recorded(),
        info=loaded.info.to_json(),
        assets=loaded.assets,
    )
    return checkpoints.save(out.parent, contents, out.name), certificate


def _say_base(loaded: Loaded) -> None:
    """Say to which weights factors are added that were trained on others than the checkpoint's."""
    if loaded.spec.adapter is not None and loaded.spec.adapter.base is not None:
        say(
            f"adapter.base: {loaded.spec.adapter.base}: the factors are added to the values of 4"
            " bits that they were trained on, so that what was measured is what is written; for"
            f" the exact weights: bigmodel export {loaded.path} FOLDER --to adapter"
        )


def _batches(loaded: Loaded, inputs: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """One input each, given or drawn; those of a decoder go on with what it writes greedily.

    Raises `DataError` for one that cannot be read.
    """
    model, info = loaded.model, loaded.info
    writes = model.can_generate and not model.is_encoder_decoder
    if inputs:
        reader = (
            Prompts(load_tokenizer(loaded.assets), model.limit, loaded.spec.data)
            if writes
            else input_of(info).reader(loaded.spec.data, loaded.assets)
        )
        for item in read_items(reader, inputs, "input"):
            if item.error is not None:
                raise DataError(item.error)
            batch = reader.batch([item.content])
            yield {"tokens": _continued(model, batch["tokens"])} if writes else batch
        return
    torch.manual_seed(0)
    for _ in range(DRAWN):
        batch = random_batch(info, loaded.task.reads, 1, torch.device("cpu"))
        yield {"tokens": _continued(model, batch["tokens"][:, :PROMPT])} if writes else batch


def _continued(model: Model, prompt: Tensor) -> Tensor:
    """(1, T) -> (1, T + n)"""
    prompt = prompt[:, -max(1, model.limit - CONTINUED) :]
    room = min(CONTINUED, model.limit - prompt.shape[1])
    added = list(generate(model.generator(), prompt, max_new_tokens=room))
    return torch.cat([prompt, *(token[:, None] for token in added)], 1)


def _logits(loaded: Loaded, model: Model, batches: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """(P, V) of each batch: the outputs, positions in rows."""
    from torch.utils._pytree import tree_leaves

    found = []
    with torch.inference_mode():
        for batch in batches:
            writes = batch.keys() == {"tokens"}
            outputs = (
                model(*model.arguments(batch))
                if writes
                else loaded.task.forward(model, batch, training=False)
            )
            leaves = [t for t in tree_leaves(outputs) if torch.is_tensor(t)]
            first = next(t for t in leaves if t.is_floating_point())
            found.append(first.flatten(0, -2).float())
    return found


def _largest_difference(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """NaN where one of them has a number that is not finite."""
    return max(
        (float((a - b).abs().max()) for a, b in zip(some, others, strict=True)), key=_not_a_number
    )


def _not_a_number(value: float) -> tuple[bool, float]:
    return value != value, value


def _compared(before: Sequence[Tensor], after: Sequence[Tensor], chooses: bool) -> dict[str, Any]:
    positions = sum(map(len, before))
    kl = same = 0.0
    for a, b in zip(before, after, strict=True):
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        kl += float((p.exp() * (p - q)).sum())
        same += float((a.argmax(-1) == b.argmax(-1)).sum())
    return {
        "positions": positions,
        "largest_logit": max(float(a.abs().max()) for a in before),
        "largest_difference": _largest_difference(before, after),
        "kl": kl / positions if chooses else None,
        "greedy_agreement": same / positions if chooses else None,
    }
