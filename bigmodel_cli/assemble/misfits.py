"""How a checkpoint differs from what a spec asks for, in words."""

from __future__ import annotations

from bigmodel_cli import checkpoints
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.spec import Spec

LEAVE = "leave it out, or --set model=null, to take the checkpoint's"


def why_new_head(info: DatasetInfo, contents: checkpoints.Checkpoint, *, same_task: bool) -> str:
    """Why the output layers are not taken from the checkpoint; '' where they are."""
    before = DatasetInfo.from_json(contents.info)
    if contents.headless:
        return "checkpoint has no head"
    if before.classes != info.classes:
        return "classes differ"
    if before.targets != info.targets:
        return "targets differ"
    if (before.target_mean, before.target_std) != (info.target_mean, info.target_std):
        return "numbers are scaled otherwise"
    return "" if same_task else "task differs"


def of_another_model(spec: Spec, stored: Spec, misfit: str) -> str:
    """What is said where weights are a `misfit`: in what the spec's model is not the checkpoint's,
    where that can be told, and the tensors.
    """
    tensors = misfit.partition("\n")[2]
    if not tensors:  # a file is damaged
        return misfit
    options, old = spec.to_dict()["model"], stored.to_dict()["model"]
    changed = [name for name in options if name != "classes" and options[name] != old.get(name)]
    if options["type"] != old["type"]:
        return f"a model of type {old['type']}, and the spec's is {options['type']}; {LEAVE}"
    length = spec.model.longest() or spec.data.longest()
    known = stored.to_dict()["data"].get("context")
    if length and known and length > (stored.model.longest() or known):
        lengths = f"its texts have {known} tokens at most, and the spec's {length} (data.context)"
        return f"{lengths}\n{tensors}"
    if not changed:
        return misfit
    names = ", ".join(f"model.{name}" for name in changed[:3])
    return f"the spec's model differs in {names}; {LEAVE}{_of_fewer(spec, stored)}\n{tensors}"


def _of_fewer(spec: Spec, stored: Spec) -> str:
    """What to write where a stack has another number of blocks."""
    for stack in spec.model.stacks if spec.init.layers is None else ():
        own, theirs = (len(model.one_by_one(stack)) for model in (spec.model, stored.model))
        if own != theirs:
            chosen = [i * theirs // own for i in range(own)] if own < theirs else [0, 0, 1]
            written = f"[{', '.join(map(str, chosen[:8]))}{', ...' * (len(chosen) > 8)}]"
            one = len(spec.model.stacks) == 1
            return (
                f"; {own} of its {theirs} blocks are chosen by init.layers:"
                f" {written if one else f'{{{stack}: {written}}}'}"
            )
    return ""
