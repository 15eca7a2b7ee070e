"""Random networks written for others and opened there: equal outputs, or refused by part.

    python tests/measure/random_exports.py [--count 200] [--first SEED] [--seeds SEED ...]
        [--to hf|timm|torchvision|gguf] [--only BASE ...] [--show]

Each seed draws a network that is nearly one of a published family (random_specs.py), with every
weight drawn. It is exported as `bigmodel export` does and opened by the package that the layout is
from. What must show, of those that are exported: no weight missing or left over there; outputs as
ours (fp32, relative to the largest, at most 1e-5; where rounding alone makes more, by what it does
in their own code); of encoders also with padding; read back by us the same options, outputs and,
exported once more, files to the bit; the same after a step of training. Of those that are refused:
status 2 and a part of the model named. Nothing else may happen.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from random_specs import Drawn, draw, every_base
from torch import Tensor, nn

from bigmodel_cli.assemble import build_for
from bigmodel_cli.checkpoints import load_weights
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.exporting import TRAINING_ONLY
from bigmodel_cli.convert.family import written_out
from bigmodel_cli.differences import differing, leaves
from bigmodel_cli.errors import SpecError
from bigmodel_cli.export import TARGETS
from bigmodel_cli.export.source import Source
from bigmodel_cli.models import build
from bigmodel_cli.spec import of_checkpoint

Values = dict[str, Any]

NEAREST = 1e-5
"""Largest difference of outputs relative to the largest of them."""
NOISE = 1e-4
"""The same between their outputs and exact ones (in float64): more is no longer rounding."""
LENGTHS = (29, 1, 13)
NAMED = re.compile(r"\b(?:model|data)\.[\w.]+")


@dataclass
class Outcome:
    """How a seed ended: exported, refused, or a fault."""

    seed: int
    drawn: Drawn
    target: str
    way: str  # "exported", "refused" or "fault"
    said: str
    family: str = ""
    apart: float = 0.0  # the largest difference of outputs


class FaultError(Exception):
    """What must not be."""


def drawn_weights(model: nn.Module, seed: int, options: Values) -> None:
    """Every number anew: norms around one, statistics positive."""
    draw = torch.Generator().manual_seed(seed)
    unmoved = {  # of experts that are not balanced by it, it stays at 0
        f"blocks.{i}.ffn.bias"
        for i, block in enumerate(options.get("blocks", ()))
        if (block["ffn"] or {}).get("balance", "bias") != "bias"
    }
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or name in unmoved:
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=draw)
            elif tensor.dim() < 2:
                gain = name.endswith("weight") and not (tensor == 0).all()
                tensor.normal_(float(gain), 0.2, generator=draw)
            else:
                wide = 0.5 if "embedding" in name or tensor.shape[-1] > 40 else 0.2
                tensor.normal_(0.0, min(wide, 3.0 * tensor[0].numel() ** -0.5), generator=draw)


def step_of_training(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> None:
    """One step down the slope of some loss."""
    model.train()
    loss = run(model).float().square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    model.eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                norm = weight.grad.norm()
                weight -= 0.05 * weight.norm() * weight.grad / norm if norm > 0 else 0
                weight.grad = None


def source_of(drawn: Drawn, model: Any) -> Source:
    """What `bigmodel export` would have read from a checkpoint."""
    return Source(
        Path("drawn"), drawn.spec, drawn.info, model, {}, 7, "", not drawn.task, "export", {}
    )


def written(target: str, source: Source, folder: Path) -> None:
    """Export into a new folder."""
    folder.mkdir()
    with contextlib.redirect_stderr(io.StringIO()):
        TARGETS[target].write(source, folder)


def apart(found: Tensor, want: Tensor) -> float:
    """The largest difference relative to the largest number."""
    if found.shape != want.shape:
        raise FaultError(f"shape {tuple(found.shape)}, ours {tuple(want.shape)}")
    size = want.double().abs().max()
    return float((found.double() - want.double()).abs().max() / size) if size > 0 else 0.0


def rows_for(drawn: Drawn, seed: int) -> list[Tensor]:
    """Inputs: images, or rows of tokens of several lengths."""
    draw = torch.Generator().manual_seed(seed)
    if drawn.info.image_shape is not None:
        return [torch.randn(2, *drawn.info.image_shape, generator=draw)]
    most = drawn.spec.model.longest() or 40
    assert drawn.info.vocab_size is not None
    return [
        torch.randint(2, drawn.info.vocab_size, (1, min(n, most)), generator=draw) for n in LENGTHS
    ]


def ours_of(model: Any, drawn: Drawn, row: Tensor) -> Tensor:
    """Our outputs for a row: logits, or of a network without a head its hidden states."""
    kind = drawn.spec.model.type
    if kind == "seq2seq":
        y = model(row, row.flip(1)[:, :7])
    elif drawn.task:
        y = model(row)
    elif kind == "vit":
        y = model.features(model.patch_vectors(row))
    else:
        y = model.features(row)
    return y  # type: ignore[no-any-return]


def opened(target: str, folder: Path, drawn: Drawn) -> Any:
    """Their network from the folder; every weight has a place on both sides."""
    if target == "torchvision":
        return _torchvision(folder)
    if target == "timm":
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    import transformers

    if target == "gguf":
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file="model.gguf", attn_implementation="eager"
        ).eval()
    images = drawn.info.image_shape is not None
    cls = {
        "causal_lm": "AutoModelForCausalLM",
        "masked_lm": "AutoModelForMaskedLM",
        "seq2seq": "AutoModelForSeq2SeqLM",
        "tagging": "AutoModelForTokenClassification",
        "classification": f"AutoModelFor{'Image' if images else 'Sequence'}Classification",
    }.get(drawn.task, "AutoModel")
    model, report = getattr(transformers, cls).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        left = [n for n in report.get(what, ()) if "pooler" not in str(n) or drawn.task]
        if left and not (what == "missing_keys" and _derived(left)):
            raise FaultError(f"{cls}: {what}: {sorted(map(str, left))[:3]}")
    model.set_experts_implementation("eager")  # the others need widths of multiples of 4
    return model.eval()


def _derived(names: list[str]) -> bool:
    """Whether weights that files lack are those that their class computes or does not use."""
    return all("mask_token" in n or "register_tokens" in n for n in names)


def _torchvision(folder: Path) -> Any:
    import torchvision

    (path,) = folder.glob("*.pth")
    beside = json.loads(path.with_suffix(".json").read_text())
    model = torchvision.models.get_model(beside["name"], weights=None, **beside["arguments"])
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return model.eval()


def theirs_of(model: Any, target: str, drawn: Drawn, row: Tensor, **more: Any) -> Tensor:
    """Their outputs for a row."""
    if target in ("timm", "torchvision"):
        return model(row)  # type: ignore[no-any-return]
    if drawn.spec.model.type == "seq2seq":
        more = {"decoder_input_ids": row.flip(1)[:, :7], **more}
        return model(row, **more).logits  # type: ignore[no-any-return]
    cache = {"use_cache": False} if drawn.task == "causal_lm" else {}
    found = model(row, **cache, **more)
    return found.logits if drawn.task else found.last_hidden_state  # type: ignore[no-any-return]


def aligned(theirs: Tensor, drawn: Drawn, ours: Tensor) -> Tensor:
    """Hidden states of images without the places that we leave out (registers)."""
    if drawn.task or drawn.info.image_shape is None or theirs.shape == ours.shape:
        return theirs
    return torch.cat([theirs[:, :1], theirs[:, 1 - ours.shape[1] :]], 1)


@torch.no_grad()
def check_outputs(ours: Any, theirs: Any, target: str, drawn: Drawn, seed: int) -> float:
    """The largest difference of outputs. Raises `FaultError` where it is more than rounding."""
    largest = 0.0
    rows = rows_for(drawn, seed)
    exact = copy.deepcopy(ours).double()
    for row in rows:
        mine = ours_of(ours, drawn, row)
        want = aligned(theirs_of(theirs, target, drawn, row), drawn, mine)
        double = row.double() if row.is_floating_point() else row
        found = apart(mine, want)
        largest = max(largest, found)
        if found > NEAREST:
            noise = apart(want, ours_of(exact, drawn, double).float())
            if found > 4 * noise or noise > NOISE:
                raise FaultError(f"differ by {found:.1e} (theirs from the exact: {noise:.1e})")
    if drawn.spec.model.type in ("encoder", "seq2seq"):
        largest = max(largest, _padded(ours, theirs, drawn, rows))
    return largest


def _padded(ours: Any, theirs: Any, drawn: Drawn, rows: list[Tensor]) -> float:
    """The same for a batch of rows of several lengths."""
    long = rows[0].shape[1]
    real = torch.zeros(len(rows), long, dtype=torch.bool)
    tokens = torch.ones(len(rows), long, dtype=torch.long)
    for i, row in enumerate(rows):
        real[i, : row.shape[1]] = True
        tokens[i, : row.shape[1]] = row[0]
    target = rows[0].flip(1)[:, :7].expand(len(rows), -1)
    padded = tokens.masked_fill(~real, -1)
    both = drawn.spec.model.type == "seq2seq"
    if both:
        mine = ours(padded, target)
    else:
        mine = ours_of(ours, drawn, padded)
    more = {"decoder_input_ids": target} if both else {}
    want = theirs_of(theirs, "hf", drawn, tokens, attention_mask=real.long(), **more)
    if not both and drawn.task != "classification":
        mine, want = mine[real], want[real]
    if (found := apart(mine, want)) > 5 * NEAREST:
        raise FaultError(f"padded, outputs differ by {found:.1e}")
    return found


def read_back(folder: Path, drawn: Drawn) -> tuple[Any, DatasetInfo, Any]:
    """(our network from the folder, what its data is, its options)."""
    contents = opening.read(folder)
    info = DatasetInfo.from_json(contents.info)
    spec = of_checkpoint(contents.spec, folder)
    model = build_for(spec, info, contents.model)
    fresh = model.output_layers() if contents.headless else ()
    load_weights(model, contents.model, fresh=fresh, spare=contents.model.spare)  # type: ignore[attr-defined]
    return model.eval(), info, spec


@torch.no_grad()
def check_round_trip(ours: Any, target: str, drawn: Drawn, folder: Path, seed: int) -> None:
    """Read back: the same options, outputs and files. Raises `FaultError`."""
    again, info, spec = read_back(folder, drawn)
    before = dict(leaves(written_out(drawn.spec.model, drawn.info)))
    after = dict(leaves(written_out(spec.model, info)))
    idle = {*TRAINING_ONLY, "checkpoint", "max_len"}
    apart_in = [
        path for path in differing([before, after])
        if path.rsplit(".", 1)[-1] not in idle and path.split(".")[0] not in ("pool", "pooler")
    ]  # fmt: skip
    if apart_in and drawn.task not in ("masked_lm", "tagging", ""):
        raise FaultError(f"read back, other options: {apart_in[:4]}")
    for row in rows_for(drawn, seed):
        if not torch.equal(ours_of(again, drawn, row), ours_of(ours, drawn, row)):
            raise FaultError("read back, other outputs")
    second = folder.with_name(folder.name + "-again")
    found = Drawn(drawn.base, drawn.task, spec, info)
    written(target, source_of(found, again), second)
    for path in sorted(folder.iterdir()):
        if path.name != "README.md" and _content(path) != _content(second / path.name):
            raise FaultError(f"{path.name} is another one when it is written again")


def _content(path: Path) -> Any:
    """What a file says: of config.json all but dropout, which a head may have no place for."""
    if path.name != "config.json":
        return path.read_bytes()
    values = json.loads(path.read_bytes())
    return {name: value for name, value in values.items() if "dropout" not in name}


def try_seed(seed: int, target: str, names: list[str] | None = None) -> Outcome:
    """Draw, export, open, compare."""
    drawn = draw(seed, names)
    torch.manual_seed(seed)
    model = build(drawn.spec.model, drawn.info).eval()
    drawn_weights(model, seed, written_out(drawn.spec.model))
    with tempfile.TemporaryDirectory(prefix="exports-") as place:
        try:
            return _tried(seed, target, drawn, model, Path(place))
        except SpecError as error:
            named = [n for n in NAMED.findall(str(error)) if n.rstrip(".") != "model"]
            way = "refused" if named else "fault"
            return Outcome(seed, drawn, target, way, str(error))
        except FaultError as error:
            return Outcome(seed, drawn, target, "fault", str(error))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"
            return Outcome(seed, drawn, target, "fault", said)


def _tried(seed: int, target: str, drawn: Drawn, model: Any, place: Path) -> Outcome:
    written(target, source_of(drawn, model), place / "first")
    theirs = opened(target, place / "first", drawn)
    largest = check_outputs(model, theirs, target, drawn, seed)
    if target != "gguf":
        name = next((place / "first").glob("*.pth")) if target == "torchvision" else None
        if name is None:
            check_round_trip(model, target, drawn, place / "first", seed)
    row = rows_for(drawn, seed + 1)[0]
    step_of_training(model, lambda model: ours_of(model, drawn, row))
    written(target, source_of(drawn, model), place / "trained")
    theirs = opened(target, place / "trained", drawn)
    largest = max(largest, check_outputs(model, theirs, target, drawn, seed + 1))
    family = getattr(theirs, "config", None)
    kind = str(getattr(family, "model_type", "")) or target
    return Outcome(seed, drawn, target, "exported", "", kind, largest)


def run(
    seeds: list[int], target: str, names: list[str] | None, tell: Callable[[str], None]
) -> list[Outcome]:
    """Try each seed; faults are told at once."""
    outcomes = []
    for seed in seeds:
        outcomes.append(try_seed(seed, target, names))
        if outcomes[-1].way == "fault":
            tell(shown(outcomes[-1]))
    return outcomes


def shown(outcome: Outcome) -> str:
    """An outcome in two lines."""
    drawn = outcome.drawn
    return (
        f"seed {outcome.seed} {outcome.target} {outcome.way} {outcome.family} <- {drawn.base}"
        f" ({drawn.task or 'no head'}), changed {', '.join(drawn.changed) or 'nothing'}\n"
        f"    {outcome.said}"
    )


def table(outcomes: list[Outcome]) -> str:
    """Counts and largest difference by what the drawing began as."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    largest: dict[str, float] = defaultdict(float)
    for outcome in outcomes:
        for name in (outcome.drawn.base, "all"):
            counts[name][outcome.way] += 1
            largest[name] = max(largest[name], outcome.apart)
    lines = ["| drawn from | equal | refused by part | fault | largest difference |"]
    lines += ["|---|---|---|---|---|"]
    for name in [*sorted(counts.keys() - {"all"}), "all"]:
        of = [str(counts[name][way]) for way in ("exported", "refused", "fault")]
        apart = f"{largest[name]:.0e}" if counts[name]["exported"] else ""
        lines.append(f"| {name} | {' | '.join(of)} | {apart} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--to", default="hf", choices=["hf", "timm", "torchvision", "gguf"])
    parser.add_argument("--only", nargs="*", help=f"of {', '.join(every_base())}")
    parser.add_argument("--show", action="store_true", help="every outcome, not faults alone")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    quiet_transformers()
    seeds = given.seeds or list(range(given.first, given.first + given.count))
    outcomes = run(seeds, given.to, given.only, lambda text: print(text, flush=True))
    if given.show:
        for outcome in outcomes:
            print(shown(outcome))
    print(table(outcomes))
    sys.exit(any(outcome.way == "fault" for outcome in outcomes))


def quiet_transformers() -> None:
    """Its warnings and bars are not of interest here."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    main()
