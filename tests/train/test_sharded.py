"""Weights divided among processes: losses, weights and checkpoints are those of one process."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_cases import ROUNDED, SPECS, TRAIN, experts, text
from parallel_cases import run as run_cases
from safetensors.torch import load_file

from bigmodel_cli import checkpoints
from bigmodel_cli.errors import SpecError
from bigmodel_cli.parallel import SharingOptions

Case = dict[str, Any]
Found = dict[str, dict[str, Any]]
ODD = {
    "dim": 33,
    "tie_embeddings": False,
    "position": {"type": "learned"},
    "blocks": [
        {
            "repeat": 2,
            "mixer": {"type": "attention", "num_heads": 3, "qk_norm": True},
            "ffn": {"type": "swiglu", "hidden": 35},
            "layer_scale": 0.5,
        }
    ],
}
"""Rows that neither 2, 3 nor 4 processes divide evenly, of which the last ones have none."""
VISION = {
    "model": {
        "type": "vit",
        "dim": 12,
        "patch": 4,
        "blocks": [{"mixer": {"type": "attention", "num_heads": 2}}],
    },
    "data": {"type": "digits"},
    "task": {"type": "classification"},
    "train": {**TRAIN, "optimizer": {"type": "sgd", "lr": 0.05}},
}
RESNET = {**VISION, "model": {"type": "torchvision", "name": "resnet18"}}
MORE: dict[str, dict[str, Any]] = {
    "odd": text({"optimizer": {"type": "sgd", "lr": 0.1}}, ODD),
    "frozen": text({}, init={"freeze": ["blocks.0.*", "embedding"]}),
    "kept whole": text({"parallel": {"reshard": False, "offload": True}}),
    "summed in bf16": text({"batch_size": 12, "parallel": {"reduce": "bf16"}}),
    "vision": VISION,
    "few experts": text({"batch_size": 2}, experts("loss")),
    "few, fp16": text({"batch_size": 3, "micro_batch_size": 1, "precision": "fp16"}),
}
EVERY = {**SPECS, **MORE}
LAYOUTS = ((1, 2), (1, 3), (1, 4), (2, 2))
INEXACT = (*ROUNDED, "few, fp16", "summed in bf16")
FEW = (
    *("batch norm", "muon and ema", "schedule free", "experts, bias", "lora", "odd", "fp16"),
    *("vision", "summed in bf16"),
)
FOUR = ("batch norm", "muon and ema", "tokens, micro", "odd", "few experts", "few, fp16")


def divided(spec: Case, replicate: int, shard: int) -> Case:
    """A spec for so many processes."""
    parallel = {**spec["train"].get("parallel", {}), "replicate": replicate, "shard": shard}
    return {**spec, "train": {**spec["train"], "parallel": parallel}}


def run(cases: list[Case], out: Path, count: int) -> Found:
    """The cases in that many processes."""
    return run_cases(cases, out, count, "sharded_ranks.py")


def compare(one: Case, other: Case, folders: tuple[Path, Path], name: str) -> None:
    """Losses, norms and weights of a training against those of one process."""
    assert "error" not in other, other
    bound = 5000.0 if name in INEXACT else 1.0
    assert other["losses"] == pytest.approx(one["losses"], abs=1e-6 * bound)
    assert other["norms"] == pytest.approx(one["norms"], rel=1e-5 * bound, abs=1e-6)
    if "metrics" in one:
        assert other["metrics"] == pytest.approx(one["metrics"], rel=1e-5 * bound)
    own, weights = (load_file(folder / f"{name}.safetensors") for folder in folders)
    assert own.keys() == weights.keys()
    for key, values in weights.items():
        assert values.shape == own[key].shape
        apart = (values.double() - own[key].double()).abs()
        assert not apart.numel() or float(apart.max()) <= 1e-5 * bound, (key, apart.max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[tuple[int, int], Found]:
    """A few steps of one process, of two that divide the weights, and of two times two."""
    names = dict.fromkeys((*FEW, *FOUR))
    alone: list[Case] = [{"name": n, "spec": EVERY[n], "steps": 4, "evaluate": True} for n in names]
    alone += [{"name": "saved", "spec": EVERY["muon and ema"], "steps": 2, "save": "one"}, *tuned()]
    found = {(1, 1): run(placed(alone, folder), folder / "1x1", 1)}
    for (replicate, shard), some in {
        (1, 2): (*FEW, *(c["name"] for c in tuned())),
        (2, 2): FOUR,
    }.items():
        cases = [{**c, "spec": divided(c["spec"], replicate, shard)} for c in alone]
        cases = [c for c in cases if c["name"] in some]
        spec, name = divided(EVERY["muon and ema"], replicate, shard), f"{replicate}x{shard}"
        cases += [{"name": "resumed", "spec": spec, "steps": 4, "from": "one"}]
        if (replicate, shard) == (1, 2):
            cases += [
                {"name": "saved", "spec": spec, "steps": 2, "save": "two"},
                *again(),
                {"name": "fixed", "spec": divided(text({"deterministic": True}), 1, 2), "steps": 1},
                {"name": "wrong", "spec": divided(text({}), 2, 2), "steps": 1},
            ]
        found[replicate, shard] = run(placed(cases, folder), folder / name, replicate * shard)
    last = [{"name": "resumed", "spec": EVERY["muon and ema"], "steps": 4, "from": "two"}]
    found[1, 1] |= run(placed(last, folder), folder / "1x1", 1)
    return found


def tuned() -> list[Case]:
    """Trainings that start from the checkpoint "one", of which one draws some weights anew."""
    start = {"checkpoint": f"one/{checkpoints.step_name(2)}"}
    anew = {**start, "leave_out": ["blocks.1.ffn.*"]}
    return [
        {"name": "tuned", "spec": text({}, init=start), "steps": 2},
        {"name": "tuned in part", "spec": text({}, init=anew), "steps": 2},
    ]


def again() -> list[Case]:
    """A training with sums in bf16 that is saved and gone on with."""
    own = {"spec": divided(EVERY["summed in bf16"], 1, 2)}
    return [
        {**own, "name": "half", "steps": 2, "save": "half"},
        {**own, "name": "other half", "steps": 4, "from": "half"},
    ]


def placed(cases: list[Case], folder: Path) -> list[Case]:
    """With checkpoints below the folder."""
    found = []
    for case in cases:
        own = {**case, **{key: str(folder / case[key]) for key in ("save", "from") if key in case}}
        if "init" in case["spec"] and "checkpoint" in case["spec"]["init"]:
            start = case["spec"]["init"]
            at = str(folder / start["checkpoint"])
            own["spec"] = {**case["spec"], "init": {**start, "checkpoint": at}}
        found.append(own)
    return found


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *(((1, 2), name) for name in (*FEW, *(c["name"] for c in tuned()))),
        *(((2, 2), name) for name in FOUR),
    ],
)
def test_weights_in_parts_train_as_whole_ones(
    results: dict[tuple[int, int], Found], folder: Path, layout: tuple[int, int], name: str
) -> None:
    folders = folder / "1x1", folder / f"{layout[0]}x{layout[1]}"
    compare(results[1, 1][name], results[layout][name], folders, name)


@pytest.mark.parametrize("layout", [(1, 1), (1, 2), (2, 2)])
def test_a_checkpoint_is_gone_on_with_by_other_processes(
    results: dict[tuple[int, int], Found], folder: Path, layout: tuple[int, int]
) -> None:
    whole, own = results[1, 1]["muon and ema"], results[layout]["resumed"]
    assert own["losses"] == pytest.approx(whole["losses"][2:], abs=1e-6)
    ended = load_file(folder / "1x1" / "muon and ema.safetensors")
    for key, values in load_file(
        folder / f"{layout[0]}x{layout[1]}" / "resumed.safetensors"
    ).items():
        assert torch.allclose(values, ended[key], rtol=0, atol=1e-5), key


def test_a_checkpoint_has_the_same_tensors(
    results: dict[tuple[int, int], Found], folder: Path
) -> None:
    assert results
    one, two = (
        checkpoints.read(checkpoints.steps(folder / name)[-1], train_state=True)
        for name in ("one", "two")
    )
    for kind in ("model", "train"):
        own, other = getattr(one, kind), getattr(two, kind)
        assert own.tied == other.tied
        tensors, others = own.load(), other.load()
        assert list(tensors) == list(others)
        for name, tensor in tensors.items():
            assert tensor.dtype == others[name].dtype
            assert tensor.shape == others[name].shape
            if not name.startswith("rng"):
                assert torch.allclose(tensor.double(), others[name].double(), rtol=0, atol=1e-5)


def test_what_is_summed_in_bf16_is_gone_on_with_to_the_bit(
    results: dict[tuple[int, int], Found], folder: Path
) -> None:
    found = results[1, 2]
    assert found["other half"]["losses"] == found["summed in bf16"]["losses"][2:]
    whole, own = (
        load_file(folder / "1x2" / f"{name}.safetensors")
        for name in ("summed in bf16", "other half")
    )
    assert all(torch.equal(values, whole[key]) for key, values in own.items())


@pytest.mark.parametrize("layout", [(1, 2), (2, 2)])
def test_a_process_keeps_its_share(
    results: dict[tuple[int, int], Found], layout: tuple[int, int]
) -> None:
    (whole,) = results[1, 1]["muon and ema"]["bytes"]
    own = results[layout]["muon and ema"]["bytes"]
    assert len(own) == layout[0] * layout[1]
    assert max(own) <= 1.02 * whole / layout[1]


def test_what_cannot_be_divided_is_refused(results: dict[tuple[int, int], Found]) -> None:
    found = results[1, 2]
    assert found["fixed"]["error"] == (
        "train.deterministic: true is not for weights that are divided among processes; leave it"
        " out, or set train.parallel.replicate=2"
    )
    assert found["wrong"]["error"] == (
        "train.parallel: replicate 2 x shard 2 is 4, and 2 train: start 4 (--processes 4), or set"
        " one of the two to auto"
    )


def test_one_given_number_leaves_the_other() -> None:
    assert SharingOptions(shard=2).division(6) == (3, 2)
    assert SharingOptions(replicate=3).division(6) == (3, 2)
    assert SharingOptions().division(6) is None
    assert SharingOptions().division(1) == (1, 1)
    with pytest.raises(SpecError, match=r"train\.parallel\.shard: 4 does not divide 6"):
        SharingOptions(shard=4).division(6)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_fifty_steps_in_parts(tmp_path: Path, name: str) -> None:
    case = {"name": name, "spec": EVERY[name], "steps": 50}
    one = run([case], tmp_path / "1x1", 1)
    for replicate, shard in LAYOUTS:
        own = [{**case, "spec": divided(EVERY[name], replicate, shard)}]
        out = tmp_path / f"{replicate}x{shard}"
        found = run(own, out, replicate * shard)
        if name not in INEXACT:
            compare(one[name], found[name], (tmp_path / "1x1", out), name)


@pytest.mark.slow
def test_saved_by_some_and_gone_on_with_by_others(tmp_path: Path) -> None:
    name = "muon and ema"
    whole = run([{"name": name, "spec": EVERY[name], "steps": 8}], tmp_path / "whole", 1)[name]
    for before in (1, 2, 3, 4):
        spec = divided(EVERY[name], 1, before)
        saved = [{"name": "saved", "spec": spec, "steps": 4, "save": f"of {before}"}]
        run(placed(saved, tmp_path), tmp_path / "saved", before)
    for before, after in product((1, 2, 3, 4), repeat=2):
        spec = divided(EVERY[name], 1, after)
        resumed = [{"name": "resumed", "spec": spec, "steps": 8, "from": f"of {before}"}]
        found = run(placed(resumed, tmp_path), tmp_path / f"{before} {after}", after)["resumed"]
        assert found["losses"] == pytest.approx(whole["losses"][4:], abs=1e-6)
