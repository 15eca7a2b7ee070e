"""Processes that share heads, hidden units, experts and vocabulary train as one does."""

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
def results(folder: Path) -> dict[str, Results]:
    """By one process, by two that share all parts, and by two pairs of them."""
    tuned = {"optimizer": MUON, "ema": 0.9, "micro_batch_size": 4}
    untied = {"tie_embeddings": False, "logit_softcap": 5.0}
    one = [
        case("all", {}, evaluate=True, save=str(folder / "of one")),
        case("tuned", {}, 8, train=tuned, model=untied),
        case("longer", {}, 26, **{"from": str(folder / "of one")}),
        case("rows", {}, 6, model={"blocks": ROWS}),
    ]
    two = [
        case("all", {"tensor": 2}, evaluate=True, save=str(folder / "of two")),
        case("tuned", {"tensor": 2}, 8, train=tuned, model=untied),
        case("longer", {"tensor": 2}, 26, **{"from": str(folder / "of one")}),
        case("rows", {"context": 2}, 6, model={"blocks": ROWS}),
        case("three heads", {"tensor": 2}, model={"blocks": [THREE]}),
        case("adapted", {"tensor": 2}) | {"spec": {**text({"parallel": {"tensor": 2}}), **LORA}},
    ]
    return {
        "one": run(one, folder / "1", 1),
        "two": run(two, folder / "2", 2),
        "four": run([case("all", {"tensor": 2, "replicate": 2})], folder / "4", 4),
        "back": run([case("longer", {}, 26, **{"from": str(folder / "of two")})], folder / "b", 1),
    }


THREE = {"mixer": {"type": "attention", "num_heads": 3, "head_dim": 4}, "ffn": {"type": "gelu"}}
LORA = {"adapter": {"type": "lora", "rank": 2, "targets": ["*qkv*"]}}


def compare(folder: Path, found: dict[str, Any], want: dict[str, Any], a: str, b: str) -> None:
    """Losses, norms and weights.

    Adam's first steps are of the learning rate however small a gradient is, so that an embedding
    that is seldom read follows its gradient's rounding.
    """
    assert found["losses"] == pytest.approx(want["losses"], abs=3e-6)
    assert found["norms"] == pytest.approx(want["norms"], rel=1e-4)
    weights = load_file(folder / a)
    for name, weight in load_file(folder / b).items():
        assert torch.allclose(weights[name], weight, rtol=0, atol=2e-5), name


@pytest.mark.parametrize(("count", "place"), [("two", "2"), ("four", "4")])
def test_twenty_steps(results: dict[str, Results], folder: Path, count: str, place: str) -> None:
    found, want = results[count]["all"], results["one"]["all"]
    compare(folder, found, want, f"{place}/all.safetensors", "1/all.safetensors")
    assert all(b < 0.6 * want["bytes"][0] for b in found["bytes"])


def test_muon_averages_and_micro_batches(results: dict[str, Results], folder: Path) -> None:
    both = (results[count]["tuned"] for count in ("two", "one"))
    compare(folder, *both, "2/tuned.safetensors", "1/tuned.safetensors")


def test_two_that_share_positions(results: dict[str, Results], folder: Path) -> None:
    both = (results[count]["rows"] for count in ("two", "one"))
    compare(folder, *both, "2/rows.safetensors", "1/rows.safetensors")


def test_a_validation_counts_what_one_process_counts(results: dict[str, Results]) -> None:
    found, want = (results[count]["all"]["metrics"] for count in ("two", "one"))
    assert found == pytest.approx(want, rel=1e-5)


def test_a_checkpoint_is_gone_on_with_by_another_number(
    results: dict[str, Results], folder: Path
) -> None:
    found, want = results["two"]["longer"], results["one"]["longer"]
    compare(folder, found, want, "2/longer.safetensors", "1/longer.safetensors")
    found = results["back"]["longer"]
    assert found["losses"] == pytest.approx(want["losses"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three heads", "model.blocks.0.mixer: 3 heads cannot be shared evenly by 2 processes"),
        ("adapted", "adapter does not go with train.parallel.tensor"),
    ],
)
def test_what_is_not_done_is_refused(results: dict[str, Results], name: str, message: str) -> None:
    assert message in results["two"][name]["error"]


def test_numbers_of_processes() -> None:
    assert SharingOptions(tensor=2).division(6) == (3, 1)
    assert SharingOptions(tensor=4).division(4) == (1, 1)
    with pytest.raises(SpecError, match=r"train\.parallel\.tensor: 4 does not divide 6"):
        SharingOptions(tensor=4).division(6)
    with pytest.raises(SpecError, match="is 4, and 3 train"):
        SharingOptions(tensor=2, replicate=4, shard=1).division(6)
