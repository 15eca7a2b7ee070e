"""Processes that share heads, hidden units, experts and vocabulary train as one does; those that
share these shares in turn too, and those that keep whole experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_cases import run as run_cases
from parallel_cases import text
from safetensors.torch import load_file

from bigmodel_cli.errors import SpecError
from bigmodel_cli.parallel import SharingOptions

Results = dict[str, dict[str, Any]]
SMALL = {"dropout": 0.1, "norm": {"type": "rmsnorm"}}
BLOCKS: list[dict[str, Any]] = [
    {
        "mixer": {
            "type": "attention", "num_heads": 4, "kv_heads": 1, "position": "rotary",
            "qk_norm": True, "bias": False,
        },
        "ffn": {"type": "swiglu", "hidden": 32, "dropout": 0.1},
        **SMALL,
    },
    {
        "mixer": {"type": "mamba2", "head_dim": 4, "state": 4},
        "ffn": {"type": "moe", "experts": 4, "top_k": 2, "hidden": 8},
        **SMALL,
    },
    {
        "mixer": {"type": "mla", "num_heads": 4, "kv_rank": 6, "rotary_dim": 4},
        "ffn": {"type": "gelu", "hidden": 32},
        **SMALL,
    },
]  # fmt: skip
ROWS = [{**BLOCKS[0], "mixer": {**BLOCKS[0]["mixer"], "dropout": 0.1}}, BLOCKS[2]]
"""Whose positions divide too (test_context_parallel.py)."""
MUON = {"type": "muon", "lr": 1e-2}


def case(name: str, parallel: dict[str, Any], steps: int = 20, **more: Any) -> dict[str, Any]:
    """A decoder of several kinds of parts, trained by processes that share its weights so."""
    spec = text({"batch_size": 12, "parallel": parallel, **more.pop("train", {})})
    spec["model"] = {"type": "decoder", "dim": 16, "blocks": BLOCKS, **more.pop("model", {})}
    return {"name": name, "spec": spec, "steps": steps, **more}


def run(cases: list[dict[str, Any]], out: Path, count: int) -> Results:
    """What the first of so many processes wrote, by case."""
    return run_cases(cases, out, count, "sharded_ranks.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensor")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """By one process, by two, and by four that share weights in several ways."""
    two = [
        *alike("tensor", {"tensor": 2}, folder),
        case("context rows", {"context": 2}, 6, model={"blocks": ROWS}),
        case("three heads", {"tensor": 2}, 6, model={"blocks": [THREE]}),
        case("adapted", {"tensor": 2}) | {"spec": {**text({"parallel": {"tensor": 2}}), **LORA}},
        case("too many", {"experts": 2, "shard": 2}),
        case("no experts", {"experts": 2}, model={"blocks": BLOCKS[:1]}),
        case("odd experts", {"experts": 2}, model={"blocks": [ODD]}),
    ]
    four = [
        *alike("shards", {"tensor": 2, "shard": 2}, folder),
        *alike("experts", {"experts": 2}, folder),
        case("experts few", {"experts": 4}, 6, train={"batch_size": 2}),
    ]
    few = case("one few", {}, 6, train={"batch_size": 2})
    rows = case("one rows", {}, 6, model={"blocks": ROWS})
    found = run([*alike("one", {}, folder), few, rows], folder / "1", 1)
    return found | run(two, folder / "2", 2) | run(four, folder / "4", 4)


@pytest.fixture(scope="module")
def longer(folder: Path, results: Results) -> Results:
    """What takes more time: Muon and averages, copies, and going on from what others saved."""
    found = {**results, **run(more("one", {}, folder), folder / "1", 1)}
    found |= run(more("tensor", {"tensor": 2}, folder), folder / "2", 2)
    four = [
        case("copies all", {"tensor": 2, "replicate": 2}),
        *more("shards", {"tensor": 2, "shard": 2}, folder),
        *more("experts", {"experts": 2}, folder),
    ]
    found |= run(four, folder / "4", 4)
    back = [
        case(f"{way} back", {}, 26, **{"from": str(folder / f"of {way}")})
        for way in ("tensor", "shards", "experts")
    ]
    return found | run(back, folder / "1", 1)


def alike(way: str, parallel: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What is to come out alike, in one way to share."""
    return [
        case(f"{way} all", parallel, evaluate=True, save=str(folder / f"of {way}")),
        case(f"{way} exact", parallel, 6, double=True),
    ]


def more(way: str, parallel: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """More of it."""
    tuned = {"optimizer": MUON, "ema": 0.9, "micro_batch_size": 4}
    untied = {"tie_embeddings": False, "logit_softcap": 5.0}
    return [
        case(f"{way} tuned", parallel, 8, train=tuned, model=untied),
        case(f"{way} longer", parallel, 26, **{"from": str(folder / "of one")}),
    ]


ODD = {"mixer": {"type": "convolution"}, "ffn": {"type": "moe", "experts": 3}}
THREE = {"mixer": {"type": "attention", "num_heads": 3, "head_dim": 4}, "ffn": {"type": "gelu"}}
LORA = {"adapter": {"type": "lora", "rank": 2, "targets": ["*qkv*"]}}


def compare(found: dict[str, Any], folder: Path, way: str, name: str, close: float = 1.0) -> None:
    """Losses, norms and weights.

    Adam's first steps are of the learning rate however small a gradient is, so that an embedding
    that is seldom read follows its gradient's rounding: that is why bounds in fp32 are wider than
    those of sums in another order. In fp64 nothing is left of it.
    """
    own, want = found[f"{way} {name}"], found[f"one {name}"]
    assert own["losses"] == pytest.approx(want["losses"], rel=0, abs=3e-6 * close)
    assert own["norms"] == pytest.approx(want["norms"], rel=1e-4 * close)
    weights = load_file(folder / PLACES[way] / f"{way} {name}.safetensors")
    for key, weight in load_file(folder / "1" / f"one {name}.safetensors").items():
        assert weights[key].dtype == weight.dtype
        assert torch.allclose(weights[key], weight, rtol=0, atol=2e-5 * close), key


WAYS = ["tensor", "shards", "experts"]
PLACES = {"tensor": "2", "context": "2", "shards": "4", "experts": "4", "copies": "4"}
"""The folder of each way to share, named after the number of processes."""


@pytest.mark.parametrize("way", WAYS)
def test_twenty_steps(results: Results, folder: Path, way: str) -> None:
    compare(results, folder, way, "all")
    most = {"shards": 0.35, "experts": 0.95}.get(way, 0.6) * results["one all"]["bytes"][0]
    assert max(results[f"{way} all"]["bytes"]) < most


@pytest.mark.parametrize("way", WAYS)
def test_in_fp64_nothing_but_rounding_is_another(results: Results, folder: Path, way: str) -> None:
    compare(results, folder, way, "exact", 1e-6)
    (weight, *_) = load_file(folder / "1" / "one exact.safetensors").values()
    assert weight.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_muon_averages_and_micro_batches(longer: Results, folder: Path, way: str) -> None:
    compare(longer, folder, way, "tuned")


@pytest.mark.slow
def test_copies(longer: Results, folder: Path) -> None:
    compare(longer, folder, "copies", "all")


def test_two_that_share_positions(results: Results, folder: Path) -> None:
    compare(results, folder, "context", "rows")


def test_processes_without_a_sample(results: Results, folder: Path) -> None:
    compare(results, folder, "experts", "few")


@pytest.mark.parametrize("way", WAYS)
def test_a_validation_counts_what_one_process_counts(results: Results, way: str) -> None:
    found, want = (results[f"{name} all"]["metrics"] for name in (way, "one"))
    assert want
    assert found == pytest.approx(want, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_is_gone_on_with_by_another_number(
    longer: Results, folder: Path, way: str
) -> None:
    compare(longer, folder, way, "longer")
    back, want = longer[f"{way} back"], longer["one longer"]
    assert back["losses"] == pytest.approx(want["losses"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three heads", "model.blocks.0.mixer: 3 heads cannot be shared evenly by 2 processes"),
        ("adapted", "adapter does not go with train.parallel.tensor"),
        ("too many", "train.parallel.experts goes with copies of the other weights"),
        ("no experts", "train.parallel.experts: no part of this network has experts"),
        ("odd experts", "model.blocks.0.ffn: 3 experts cannot be shared evenly by 2 processes"),
    ],
)
def test_what_is_not_done_is_refused(results: Results, name: str, message: str) -> None:
    assert message in results[name]["error"]


def test_numbers_of_processes() -> None:
    assert SharingOptions(tensor=2).division(6) == (3, 1)
    assert SharingOptions(tensor=4).division(4) == (1, 1)
    assert SharingOptions(tensor=2, shard=3).division(12) == (2, 3)
    assert SharingOptions(experts=4).division(8) == (8, 1)
    with pytest.raises(SpecError, match=r"train\.parallel\.tensor: 4 does not divide 6"):
        SharingOptions(tensor=4).division(6)
    with pytest.raises(SpecError, match="is 4, and 3 train"):
        SharingOptions(tensor=2, replicate=4, shard=1).division(6)
