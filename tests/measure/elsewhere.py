"""Networks of ours and the same ones in other packages: opened, run, compared, read back."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_specs import Drawn
from torch import Tensor, nn

from bigmodel_cli.assemble import build_for
from bigmodel_cli.checkpoints import load_weights
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.exporting import ROUNDING_ONLY, TRAINING_ONLY
from bigmodel_cli.convert.family import written_out
from bigmodel_cli.differences import differing, leaves
from bigmodel_cli.export import TARGETS
from bigmodel_cli.export.source import Source
from bigmodel_cli.spec import of_checkpoint

Values = dict[str, Any]

NEAREST = 1e-5
"""Largest difference of outputs relative to the largest of them."""
NOISE = 1e-4
"""The same between their outputs and exact ones (in float64): more is no longer rounding."""
LENGTHS = (29, 1, 13)


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


def written(target: str, source: Source, folder: Path) -> str:
    """Export into a new folder; what is said of it."""
    folder.mkdir()
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        TARGETS[target].write(source, folder)
    return said.getvalue()


def apart(found: Tensor, want: Tensor) -> float:
    """The largest difference relative to the largest number."""
    if found.shape != want.shape:
        raise FaultError(f"shape {tuple(found.shape)}, ours {tuple(want.shape)}")
    size = want.double().abs().max()
    return float((found.double() - want.double()).abs().max() / size) if size > 0 else 0.0


def rows_for(drawn: Drawn, seed: int) -> list[Tensor]:
    """Inputs: images, frames of sound, or rows of tokens of several lengths."""
    draw = torch.Generator().manual_seed(seed)
    if drawn.info.frame_width is not None:
        shape = (drawn.info.context or 1, drawn.info.frame_width)
        return [torch.randn(rows, *shape, generator=draw) for rows in (3, 1)]
    if drawn.info.image_shape is not None:
        return [torch.randn(2, *drawn.info.image_shape, generator=draw)]
    most = drawn.spec.model.longest() or 40
    assert drawn.info.vocab_size is not None
    return [
        torch.randint(2, drawn.info.vocab_size, (1, min(n, most)), generator=draw) for n in LENGTHS
    ]


def target_of(row: Tensor, drawn: Drawn) -> Tensor:
    """(B, T) tokens that a decoder is given beside a row: some of it, or of its numbers."""
    if not row.is_floating_point():
        return row.flip(1)[:, :7]
    most = min(7, drawn.spec.model.longest() or 7)
    return (row[:, :most, 0].float() * 1000).long() % (drawn.info.vocab_size or 1)


def ours_of(model: Any, drawn: Drawn, row: Tensor) -> Tensor:
    """Our outputs for a row: logits, or of a network without a head its hidden states."""
    kind = drawn.spec.model.type
    if kind == "seq2seq":
        y = model(row, target_of(row, drawn))
    elif drawn.task:
        y = model(row)
    elif kind == "vit":
        y = model.features(model.patch_vectors(row))
    else:
        y = model.features(row)
    return y  # type: ignore[no-any-return]


def opened(target: str, folder: Path, drawn: Drawn, kernel: str = "eager") -> Any:
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
    speech = "Speech" if drawn.info.frame_width is not None else ""
    cls = {
        "causal_lm": "AutoModelForCausalLM",
        "masked_lm": "AutoModelForMaskedLM",
        "seq2seq": f"AutoModelFor{speech}Seq2Seq{'' if speech else 'LM'}",
        "tagging": "AutoModelForTokenClassification",
        "classification": f"AutoModelFor{'Image' if images else 'Sequence'}Classification",
    }.get(drawn.task, "AutoModel")
    model, report = getattr(transformers, cls).from_pretrained(
        folder, attn_implementation=kernel, output_loading_info=True
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
    if target == "timm" and not drawn.task:
        return model.forward_features(row)  # type: ignore[no-any-return]
    if target in ("timm", "torchvision"):
        return model(row)  # type: ignore[no-any-return]
    if drawn.spec.model.type == "seq2seq":
        more = {"decoder_input_ids": target_of(row, drawn), **more}
        if drawn.info.frame_width is not None:
            return model(input_features=row.mT, **more).logits  # type: ignore[no-any-return]
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
    if drawn.spec.model.type in ("encoder", "seq2seq") and drawn.info.frame_width is None:
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
    idle = {*TRAINING_ONLY, *ROUNDING_ONLY, "max_len"}
    unused = opening.describe(folder).family.unused(drawn.task, written_out(drawn.spec.model))
    apart_in = [
        path
        for path in differing([before, after])
        if path.rsplit(".", 1)[-1] not in idle and path.split(".")[0] not in unused
    ]
    if apart_in:
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


def quiet_transformers() -> None:
    """Its warnings and bars are not of interest here."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
