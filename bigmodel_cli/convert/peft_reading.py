"""Reading an adapter that the PEFT library saved, onto the model whose family it is of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bigmodel_cli.adapters import ADAPTERS
from bigmodel_cli.adapters.attaching import Adapter
from bigmodel_cli.adapters.base import Factors, LowRankOptions
from bigmodel_cli.adapters.targets import Target, targets
from bigmodel_cli.checkpoints import not_finite
from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.folder import read_json
from bigmodel_cli.convert.peft import CONFIG, PREFIX, WEIGHTS, Layout, Place, by_every_name
from bigmodel_cli.convert.weights import FolderTensors, open_file
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Module, Tensor, torch

OF_FILES = (
    *("auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type"),
    *("inference_mode", "target_modules", "exclude_modules", "modules_to_save", "runtime_config"),
    *("ensure_weight_tying", "fan_in_fan_out", "megatron_core", "qalora_group_size"),
    *("layers_to_transform", "layers_pattern"),
)
"""Keys that change nothing, or say what the tensors' names do."""
LINEAR = ("lora_A.weight", "lora_B.weight")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
MAGNITUDE = "lora_magnitude_vector"


def described(folder: Path, layout: Layout, model: Module) -> LowRankOptions:
    """The options of the adapter in a folder, for a model that is not adapted yet.

    Raises `CheckpointError` for what is not built, and where it is of another model.
    """
    config = Config(read_json(folder, CONFIG), str(folder / CONFIG))
    config.only("peft_type", "LORA")
    config.only("bias", "none")
    config.only("init_lora_weights", True, False, "gaussian")  # others change the weights too
    dora, stabilized = (config.get(key, bool, False) for key in ("use_dora", "use_rslora"))
    values: dict[str, object] = {
        "rank": config.get("r", int),
        "alpha": config.get("lora_alpha", float),
        "dropout": config.get("lora_dropout", float, 0.0),
    }
    if dora and stabilized:
        raise CheckpointError(f"{config.file}: use_dora with use_rslora is not built")
    unset = [key for key, value in config.values.items() if value in (None, False, {}, [])]
    config.finish([*OF_FILES, *unset])
    names = _modules(_tensors(folder))
    places = {place.module: place for place in layout.places()}
    there = targets(model)
    meant: list[str] = []
    whole: list[str] = []
    for module, own in names.items():
        ours = [rule.ours for rule in layout.rules if rule.theirs.rpartition(".")[0] == module]
        if not ours:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {clipped(module)!r} is not a module of this model; an adapter"
                " belongs to the model that it was trained on"
            )
        if own <= {*LINEAR, *EMBEDDING, MAGNITUDE}:
            target = next(t for t in there if places[module].ours in t.names)
            meant += [target.called(part)[0] for part in _parts(target, places[module])]
        else:
            whole += ours
    values |= {
        "targets": list(dict.fromkeys(meant)),
        "modules_to_save": list(dict.fromkeys(whole)),
    }
    kind = "dora" if dora else "rslora" if stabilized else "lora"
    return ADAPTERS[kind].model_validate(values).low_rank()


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
        parts = _adapted_parts(own.get(place.ours), place)
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
        for factors, at in parts:
            _fill(folder, place, factors, a, b[at], at, lengths, again=id(factors) in filled)
            filled.add(id(factors))
    for rule in layout.rules:
        if PREFIX + rule.theirs in theirs:
            used.add(PREFIX + rule.theirs)
            with torch.no_grad():
                rule.load(layout.weights[rule.ours], theirs.read(PREFIX + rule.theirs))
    if left := sorted(theirs.keys() - used):
        raise CheckpointError(
            f"{folder / WEIGHTS}: {clipped(left[0])}: the model has no place for it"
        )


def _adapted_parts(adapter: Adapter | None, place: Place) -> list[tuple[Factors, list[int]]]:
    """The factors for rows of a module of theirs, and where in it each of those rows is."""
    if adapter is None:
        return []
    found = []
    index = {row: i for i, row in enumerate(place.rows)}
    for name, factors in adapter.factors().items():
        first, count = adapter.rows[name]
        at = [index[row] for row in range(first, first + count) if row in index]
        if at:
            found.append((factors, at))
    return found


def _fill(
    folder: Path,
    place: Place,
    factors: Factors,
    a: Tensor,
    b: Tensor,
    at: Sequence[int],
    lengths: Tensor | None,
    again: bool,
) -> None:
    """Copy one module's tensors; `again`: they must be those that a tied module had."""
    magnitudes = factors.magnitudes()
    pairs = [(factors.lora_A, a), (factors.lora_B, b)]
    if magnitudes is not None and lengths is not None:
        flat = lengths.flatten()
        pairs.append((magnitudes, flat if factors.lookup else flat[list(at)]))
    where = f"{folder / WEIGHTS}: {place.module}"
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise CheckpointError(
                f"{where}: {list(theirs.shape)}, where {CONFIG} and the model give"
                f" {list(ours.shape)}; it is of another model, or of several ranks"
            )
        if again and not torch.equal(ours, theirs.to(ours.dtype)):
            raise CheckpointError(
                f"{where}: another adapter than of the module whose weights it shares (tied), which"
                " here have one"
            )
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


def _modules(theirs: FolderTensors) -> dict[str, set[str]]:
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


def _parts(target: Target, place: Place) -> list[str]:
    """The parts of ours that a module of theirs covers."""
    rows = set(place.rows)
    return [
        part
        for part, (first, count) in target.parts.items()
        if rows.issuperset(range(first, first + count))
    ]
