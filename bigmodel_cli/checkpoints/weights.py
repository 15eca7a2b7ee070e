"""Loading weights into a model: strict on both sides, all or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bigmodel_cli.checkpoints.places import Complete, refused
from bigmodel_cli.checkpoints.stored import Tensors, copy_tensors
from bigmodel_cli.console import counted
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Module, Tensor, torch

MOST_LINES = 5


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors that were loaded, newly initialised, and not used of the checkpoint."""

    loaded: list[str]
    fresh: list[str]
    ignored: list[str]


def load_weights(
    model: Module,
    tensors: Mapping[str, Tensor],
    *,
    fresh: Sequence[str] = (),
    spare: Sequence[str] = (),
    complete: Complete = refused,
) -> LoadReport:
    """Copy the tensors into the model's parameters and buffers.

    Names below a prefix in `fresh` stay as they are; for those below one in `spare` the model may
    have no place; those of the model on the meta device are given to `complete`, one by one.
    Raises `CheckpointError` as `check_weights`, and the model is then unchanged; or naming a file
    that is damaged.
    """
    report = check_weights(model, tensors, fresh=fresh, spare=spare)
    own = model.state_dict()
    copy_tensors(tensors, {name: own[name] for name in report.loaded}, complete)
    return report


def check_weights(
    model: Module,
    tensors: Mapping[str, Tensor],
    *,
    fresh: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> LoadReport:
    """What `load_weights` would do, by names, shapes and dtypes alone.

    Raises `CheckpointError` listing what is missing, unexpected, or of another shape or dtype.
    """
    own = model.state_dict()
    new = [name for name in own if below(name, fresh)]
    wanted = {name: tensor for name, tensor in own.items() if name not in new}
    given = {
        name: tensor
        for name, tensor in tensors.items()
        if not below(name, fresh) and (name in wanted or not below(name, spare))
    }
    faults = [f"{n}: missing; expected {_shown(t)}" for n, t in wanted.items() if n not in given]
    faults += [
        f"{n}: not in the model; found {_shown(t)}" for n, t in given.items() if n not in wanted
    ]
    faults += [
        f"{n}: expected {_shown(t)}, found {_shown(given[n])}"
        for n, t in wanted.items()
        if n in given and (t.shape != given[n].shape or t.dtype != given[n].dtype)
    ]
    if faults:
        more = [f"and {len(faults) - MOST_LINES} more"] if len(faults) > MOST_LINES else []
        lines = "\n  ".join(faults[:MOST_LINES] + more)
        raise CheckpointError(
            "the weights do not fit the model; is the spec's model section another, or are they of"
            " an earlier version of bigmodel, whose parts had other weights (then train anew)?\n "
            f" {lines}"
        )
    return LoadReport(list(wanted), new, sorted(tensors.keys() - wanted.keys() - set(new)))


def below(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a tensor is of one of the modules with these names."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A sentence about the weights that are NaN or infinite; "" where all are finite."""
    counts = {
        name: (t.numel() - int(t.isfinite().sum()), t.numel())
        for name, t in weights
        if not _is_finite(t)
    }
    if not counts:
        return ""
    first = next(iter(counts))
    more = counted(len(counts) - 1, "more tensor has", "more tensors have")
    more = f", and {more} such" if len(counts) > 1 else ""
    return (
        "the weights are not finite: {:,} of {:,} numbers of ".format(*counts[first])
        + f"{first}{more}"
    )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; True for dtypes that no weight has (refused elsewhere)."""
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return True
    # The sum of finite numbers may overflow.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def mean_weights(several: Sequence[Tensors]) -> dict[str, Tensor]:
    """The mean of each tensor over several checkpoints, in float64; integers are the last's."""
    last = several[-1]
    mean = {
        name: torch.zeros_like(
            t, device="cpu", dtype=torch.float64 if t.is_floating_point() else t.dtype
        )
        for name, t in last.items()
        if name not in last.tied
    }
    for weights in several:
        for name, tensor in weights.stream():
            if name in mean and tensor.is_floating_point():
                mean[name] += tensor
            elif name in mean:
                mean[name] = tensor
    for name, total in mean.items():
        mean[name] = (
            (total / len(several)).to(last[name].dtype) if total.is_floating_point() else total
        )
    return {name: mean[last.tied.get(name, name)] for name in last}
