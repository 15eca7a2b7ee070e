"""Reading an adapter that the PEFT library saved, onto the model whose family it is of."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from bigmodel_cli.adapters import ADAPTERS
from bigmodel_cli.adapters.base import LowRankOptions
from bigmodel_cli.adapters.targets import Target, targets
from bigmodel_cli.checkpoints import not_finite
from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.convert import peft_biases, peft_stacks
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.folder import read_json
from bigmodel_cli.convert.peft import Part, adapted_parts, by_every_name
from bigmodel_cli.convert.peft_layout import CONFIG, PREFIX, WEIGHTS, Layout, Place
from bigmodel_cli.convert.peft_ranks import Ranks, ranks_of_parts, read_ranks
from bigmodel_cli.convert.peft_whole import BASE, check_base, check_saved, fill_whole
from bigmodel_cli.convert.weights import FolderTensors, open_file
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Module, Tensor, torch

OF_FILES = (
    *("auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type"),
    *("inference_mode", "target_modules", "exclude_modules", "modules_to_save", "runtime_config"),
    *("ensure_weight_tying", "fan_in_fan_out", "megatron_core", "qalora_group_size", "eva_config"),
    *("layers_to_transform", "layers_pattern"),
)
"""Keys that change nothing, or say what the tensors' names do."""
LINEAR = ("lora_A.weight", "lora_B.weight")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
MAGNITUDE = "lora_magnitude_vector"
OTHERS = "another adapter than of the module whose weights it shares (tied), which here have one"


def described(folder: Path, layout: Layout, model: Module) -> LowRankOptions:
    """The options of the adapter in a folder, for a model that is not adapted yet.

    Raises `CheckpointError` for what is not built, and where it is of another model.
    """
    config = Config(read_json(folder, CONFIG), str(folder / CONFIG))
    config.only("peft_type", "LORA")
    # others change the weights too
    config.only("init_lora_weights", True, False, "gaussian", "orthogonal", "eva")
    dora, stabilized = (config.get(key, bool, False) for key in ("use_dora", "use_rslora"))
    dropout = config.get("lora_dropout", float, 0.0)
    if dora and stabilized:
        raise CheckpointError(f"{config.file}: use_dora with use_rslora is not built")
    theirs = _tensors(folder)
    biases = peft_biases.find(config, folder, layout, theirs)
    names = _modules(name for name in theirs if name not in biases.names)
    ranks = read_ranks(config, stabilized, [*names])
    wanted = peft_stacks.named(config, layout)
    unset = [key for key, value in config.values.items() if value in (None, False, {}, [])]
    config.finish([*OF_FILES, *unset])
    places = {place.module: place for place in layout.places()}
    there = targets(model)
    whole = biases.ours
    meant, of_stacks = peft_stacks.described(folder, layout, wanted, theirs, ranks)
    for module, own in names.items():
        if module in of_stacks or (module.endswith(BASE) and not own & {*LINEAR}):
            continue
        ours = [rule.ours for rule in layout.rules if rule.theirs.rpartition(".")[0] == module]
        if not ours:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {clipped(module)!r} is not a module of this model; an adapter"
                " belongs to the model that it was trained on"
            )
        if own <= {*LINEAR, *EMBEDDING, MAGNITUDE}:
            if module not in places:
                raise CheckpointError(
                    f"{folder / WEIGHTS}: {clipped(module)!r}: adapters of stacks are not read"
                )
            called = f"{module}.weight" if peft_stacks.is_parameter(config, module) else module
            found = _meant(folder, places[module], there, theirs, ranks.of(called), ranks)
            if any(meant.get(name, own) != own for name, own in found.items()):
                raise CheckpointError(f"{folder / CONFIG}: {clipped(module)}: {OTHERS}")
            meant |= found
        else:
            whole += ours
    _check_targets(config, folder, places, names)
    check_saved(config, layout, whole)
    values: dict[str, object] = {
        "rank": ranks.rank,
        "alpha": ranks.alpha,
        "dropout": dropout,
        "targets": [*meant],
        "rank_pattern": {name: r for name, (r, _) in meant.items() if r != ranks.rank},
        "alpha_pattern": {name: a for name, (_, a) in meant.items() if a != ranks.alpha},
        "modules_to_save": list(dict.fromkeys(whole)),
    }
    kind = "dora" if dora else "rslora" if stabilized else "lora"
    return ADAPTERS[kind].model_validate(values).low_rank()


def _check_targets(
    config: Config, folder: Path, places: Collection[str], there: Collection[str]
) -> None:
    """Raise `CheckpointError` for a module of a block that is named as adapted, without tensors.

    Where only some layers are meant, or a pattern names them, the tensors say which.
    """
    wanted = config.values.get("target_modules")
    keys = ("layers_to_transform", "exclude_modules")
    some = any(config.values.get(key) not in (None, [], "") for key in keys)  # layer 0 is one
    if some or not isinstance(wanted, list):
        return
    for module in sorted(set(places) - set(there)):
        within = any(piece.isdigit() for piece in module.split("."))
        if within and any(f".{module}".endswith(f".{name}") for name in wanted):
            raise CheckpointError(
                f"{folder / WEIGHTS}: {module}: no tensors, and {CONFIG} names it (target_modules):"
                " a part of the adapter is missing"
            )


def load_adapter(folder: Path, model: Module, layout: Layout) -> None:
    """Fill the adapter of a model with the tensors in a folder, and the modules that are saved
    whole.

    Raises `CheckpointError` where they do not fit, or one has no place.
    """
    theirs = _tensors(folder)
    if note := not_finite((name, theirs.read(name)) for name in theirs):
        raise CheckpointError(f"{folder / WEIGHTS}: {note}; use another adapter")
    own, used = by_every_name(model), set[str]()
    filled: set[int] = set()
    for place in layout.places():
        parts = adapted_parts(own, place)
        stem = PREFIX + place.module
        names = [f"{stem}.{name}" for name in LINEAR]
        if f"{stem}.{EMBEDDING[0]}" in theirs:
            names = [f"{stem}.{name}" for name in EMBEDDING[::-1]]
        if not parts:
            continue
        if names[0] not in theirs or names[1] not in theirs:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {place.module}: nothing for it, and it shares its weights"
                " with a module that is adapted (tied), or one of its tensors is missing"
            )
        a, b = (theirs.read(name) for name in names)
        a, b = (a.T, b.T) if names[0].endswith(EMBEDDING[1]) else (a.flatten(1), b.flatten(1))
        lengths = theirs.read(f"{stem}.{MAGNITUDE}") if f"{stem}.{MAGNITUDE}" in theirs else None
        used |= {*names, f"{stem}.{MAGNITUDE}"}
        blocks = _blocks(folder, place, parts, a, b)
        for part, narrow, wide in blocks:
            again = id(part.factors) in filled
            _fill(folder, place, part, narrow, wide, lengths, again=again)
            filled.add(id(part.factors))
    config = Config(read_json(folder, CONFIG), str(folder / CONFIG))
    ranks = read_ranks(config, bool(config.values.get("use_rslora")), [*_modules(theirs)])
    for stack, stem in peft_stacks.named(config, layout):
        rank, _ = ranks.of(stack.name)
        a, b = peft_stacks.read(folder, layout, stack, stem, theirs, rank)
        peft_stacks.fill(stack, own, a, b)
        used |= {stem + name for name in LINEAR}
    biases = peft_biases.find(config, folder, layout, theirs)
    used |= fill_whole(folder, layout, theirs) | check_base(folder, layout, theirs, biases.names)
    used |= biases.fill(folder, layout, theirs, ranks)
    if left := sorted(theirs.keys() - used):
        raise CheckpointError(
            f"{folder / WEIGHTS}: {clipped(left[0])}: the model has no place for it"
        )


def _blocks(
    folder: Path, place: Place, parts: Sequence[Part], a: Tensor, b: Tensor
) -> Iterator[tuple[Part, Tensor, Tensor]]:
    """Each part's A and B.

    They share A, or have a block of it each, and zeros in the columns of the other blocks.
    """
    own = [part.factors.rank for part in parts]
    stacked = len(parts) > 1 and len(a) == sum(own)
    first = 0
    for part, rank in zip(parts, own, strict=True):
        _check_rows(folder, place.module, part.order, b)
        wide = b[part.order]
        if stacked:
            block = slice(first, first + rank)
            first += rank
            rest = wide.clone()
            rest[:, block] = 0
            if bool(rest.any()):
                raise CheckpointError(
                    f"{folder / WEIGHTS}: {place.module}: rank {len(a)}, where {rank} of it are of"
                    f" {part.ours}: it is of another model"
                )
            yield part, a[block], wide[:, block]
        else:
            yield part, a, wide


def _check_rows(folder: Path, module: str, at: Sequence[int], b: Tensor) -> None:
    """Raise `CheckpointError` where a B has fewer rows than the module of the model."""
    if max(at, default=0) >= len(b):
        raise CheckpointError(
            f"{folder / WEIGHTS}: {clipped(module)}: {list(b.shape)}, where the model has"
            f" {max(at) + 1} outputs or more; it is of another model"
        )


def _fill(
    folder: Path,
    place: Place,
    part: Part,
    a: Tensor,
    b: Tensor,
    lengths: Tensor | None,
    again: bool,
) -> None:
    """Copy one part's tensors; `again`: they must be those that a tied module had."""
    factors = part.factors
    magnitudes = factors.magnitudes()
    pairs = [(factors.lora_A, a), (factors.lora_B, b)]
    if magnitudes is not None and lengths is not None:
        flat = lengths.flatten()
        if not part.lookup:
            _check_rows(folder, place.module, [*part.at], flat)
        pairs.append(
            (magnitudes, flat if part.lookup else flat[sorted(part.at, key=part.at.__getitem__)])
        )
    where = f"{folder / WEIGHTS}: {place.module}"
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise CheckpointError(
                f"{where}: {list(theirs.shape)}, where {CONFIG} and the model give"
                f" {list(ours.shape)}; it is of another model, or of several ranks"
            )
        if again and not torch.equal(ours, theirs.to(ours.dtype)):
            raise CheckpointError(f"{where}: {OTHERS}")
        with torch.no_grad():
            ours.copy_(theirs)
    if (magnitudes is None) != (lengths is None):
        raise CheckpointError(f"{where}: {MAGNITUDE} and use_dora do not agree")


def _tensors(folder: Path) -> FolderTensors:
    if not os.path.lexists(folder / WEIGHTS):
        pickled = os.path.lexists(folder / "adapter_model.bin")
        hint = "; adapter_model.bin is a pickle, which can run code, and is refused" * pickled
        raise CheckpointError(f"{folder / WEIGHTS}: missing{hint}")
    return open_file(folder / WEIGHTS)


def _modules(theirs: Iterable[str]) -> dict[str, set[str]]:
    """Each module's tensors."""
    found: dict[str, set[str]] = {}
    for name in theirs:
        stem = name.removeprefix(PREFIX)
        ending = next((e for e in (*LINEAR, *EMBEDDING, MAGNITUDE) if stem.endswith(f".{e}")), None)
        module, own = (
            stem.rpartition(".")[::2] if ending is None else (stem[: -len(ending) - 1], ending)
        )
        found.setdefault(module, set()).add(own)
    return found


def _meant(
    folder: Path,
    place: Place,
    there: Sequence[Target],
    theirs: FolderTensors,
    said: tuple[int, float],
    ranks: Ranks,
) -> dict[str, tuple[int, float]]:
    """Name -> rank and alpha of the parts of ours that a module of theirs covers, and changes.

    Where several are one module of theirs, those whose rows of B are zeros are not adapted, unless
    all are. Raises `CheckpointError` for another rank than said.
    """
    parts = []
    for name in place.ours:
        target = next(t for t in there if name in t.names)
        for part, rows in target.parts.items():
            at = place.of_part(name, *rows)
            if len(at) == rows[1]:
                parts.append((target.called(part)[0], list(at)))
    stem = f"{PREFIX}{place.module}."
    rank, alpha = said
    for name in (LINEAR[0], EMBEDDING[0]):
        if stem + name in theirs and theirs[stem + name].shape[0] != rank:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {clipped(place.module)}: rank"
                f" {theirs[stem + name].shape[0]}, where {CONFIG} says {rank}"
            )
    if len(parts) == 1 or stem + LINEAR[1] not in theirs:
        return {name: (rank, alpha) for name, _ in parts}
    b = theirs.read(stem + LINEAR[1])
    for _, rows_of_ours in parts:
        _check_rows(folder, place.module, rows_of_ours, b)
    if stem + MAGNITUDE not in theirs:
        parts = [(name, at) for name, at in parts if bool(b[at].any())] or parts
    own = ranks_of_parts(b.flatten(1), [at for _, at in parts], ranks.rank)
    return {name: (r, ranks.own(alpha, rank, r)) for (name, _), r in zip(parts, own, strict=True)}
