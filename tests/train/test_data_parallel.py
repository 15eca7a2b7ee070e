"""Several processes train as one does: losses, weights, scores, and to the bit where asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_cases import ROUNDED, SPECS, deterministic, run, text, weights

Results = dict[int, dict[str, dict[str, Any]]]
TEXT_METRICS = ["bleu"]
SOON = {"beside": True, "bucket": 2000}
FIXED = ("batch norm", "dropout", "experts, loss", "tokens", "fp16", "muon and ema")
FEW = ("batch norm", "dropout", "tokens", "fp16")
THREE = ("batch norm", "a row for each", "uneven", "experts, loss", "tokens")


def cases(steps: int) -> list[dict[str, Any]]:
    return [{"name": name, "spec": spec, "steps": steps} for name, spec in SPECS.items()]


def fixed(steps: int, names: tuple[str, ...] = FIXED) -> list[dict[str, Any]]:
    """Of the trainings with the same bits; each also judges its validation data."""
    own = [{"name": f"fixed {name}", "spec": deterministic(name), "steps": steps} for name in names]
    return [{**case, "evaluate": True, "rows": 8} for case in own]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """A few steps in one, two and three processes."""
    short = [{"name": "short", "spec": text({"batch_size": 12}), "steps": 3}]
    refused = [{"name": "refused", "spec": text({"batch_size": 18, "micro_batch_size": 3})}]
    refused[0]["spec"]["train"]["deterministic"] = True
    written = translated()
    found = {1: run([*cases(4), *short, *fixed(4, FEW), *written], folder / "1", 1)}
    little = [{**short[0], "short": 1}, {**refused[0], "steps": 1}]
    found[2] = run([*cases(4), *little, *beside(), *fixed(4, FEW), *written], folder / "2", 2)
    three = [c for c in cases(4) if c["name"] in THREE]
    found[3] = run([*three, {**three[2], "name": "beside", **SOON}], folder / "3", 3)
    return found


def beside() -> list[dict[str, Any]]:
    """Trainings whose gradients are summed while the last backward pass of a step goes on."""
    own = [{**case, "name": f"beside {case['name']}", **SOON} for case in cases(4)]
    short = {"spec": text({"batch_size": 12}), "steps": 3, "short": 1}
    late = {"spec": SPECS["uneven"], "steps": 4, "late": True}
    return [
        *own,
        {**short, "name": "failing", "failing": True, **SOON},
        {**late, "name": "in time"},
        {**late, "name": "late", "beside": True, "bucket": 1},
    ]


def translated() -> list[dict[str, Any]]:
    """A training whose validation generates texts."""
    spec = deterministic("tokens")
    return [{"name": "written", "spec": spec, "steps": 1, "evaluate": TEXT_METRICS, "rows": 8}]


def compare(found: Results, folder: Path, name: str, bound: float) -> None:
    """Losses and weights of all against those of one process, and of the processes' among them."""
    one, own = found[1][name], weights(folder / "1", name)
    for count in sorted(n for n in found if n > 1 and name in found[n]):
        other = found[count][name]
        assert len(other["hashes"]) == count
        assert len(set(other["hashes"])) == 1
        assert other["sizes"] == one["sizes"]
        assert other["finite"] == one["finite"]
        assert other["losses"] == pytest.approx(one["losses"], abs=1e-6 * bound)
        for key, values in weights(folder / str(count), name).items():
            apart = float((values.double() - own[key].double()).abs().max())
            assert apart <= 1e-5 * bound, (key, apart)


@pytest.mark.parametrize("name", SPECS)
def test_processes_train_as_one_does(results: Results, folder: Path, name: str) -> None:
    compare(results, folder, name, 5000.0 if name in ROUNDED else 1.0)


@pytest.mark.parametrize("name", FEW)
def test_bits_are_the_same_on_any_number_of_processes(results: Results, name: str) -> None:
    one, two = (results[count][f"fixed {name}"] for count in (1, 2))
    assert {*one["hashes"], *two["hashes"]} == {one["hashes"][0]}
    for what in ("losses", "norms", "sizes", "scale", "metrics", "columns"):
        assert one[what] == two[what], what


def test_texts_of_a_validation_are_those_of_one_process(results: Results) -> None:
    one, two = (results[count]["written"] for count in (1, 2))
    assert "bleu" in one["metrics"]
    assert len(one["columns"]["prediction"]) > 30
    assert one["metrics"] == two["metrics"]
    assert one["columns"] == two["columns"]


def test_all_divide_where_one_has_too_little_memory(results: Results, folder: Path) -> None:
    found = results[2]["short"]
    assert found["pieces"] == {"0": 2}
    assert "out of memory" in found["said"][0]
    compare({1: results[1], 2: results[2]}, folder, "short", 1.0)


@pytest.mark.parametrize("name", SPECS)
def test_sums_beside_the_backward_pass_are_the_same_bits(results: Results, name: str) -> None:
    own, other = results[2][name], results[2][f"beside {name}"]
    for what in ("losses", "norms", "hashes", "scale"):
        assert own[what] == other[what], what


def test_three_sum_beside_the_backward_pass(results: Results, folder: Path) -> None:
    one, own = results[1]["uneven"], results[3]["beside"]
    assert len(set(own["hashes"])) == 1
    assert own["losses"] == pytest.approx(one["losses"], abs=1e-6)
    whole = weights(folder / "1", "uneven")
    for key, values in weights(folder / "3", "beside").items():
        assert torch.allclose(values, whole[key], rtol=0, atol=1e-5), key


def test_a_process_whose_backward_pass_fails_is_waited_for(results: Results, folder: Path) -> None:
    found = results[2]["failing"]
    assert found["pieces"] == {"0": 2}
    assert found["hashes"] == results[2]["short"]["hashes"]


def test_gradients_that_come_late_are_summed_too(results: Results, folder: Path) -> None:
    assert results[2]["late"]["late"]
    assert not any(results[2][f"beside {name}"]["late"] for name in SPECS)
    assert results[2]["late"]["losses"] == pytest.approx(results[2]["in time"]["losses"], abs=1e-6)
    assert len(set(results[2]["late"]["hashes"])) == 1
    whole = weights(folder / "2", "in time")
    for key, values in weights(folder / "2", "late").items():
        assert torch.allclose(values, whole[key], rtol=0, atol=1e-6), key


def test_a_division_without_the_same_bits_is_refused(results: Results) -> None:
    message = results[2]["refused"]["error"]
    assert message == (
        "train.deterministic: 6 micro-batches a step over 2 processes: each of them needs as many,"
        " and 1, 2, 4 or 8 ... of them; set train.micro_batch_size to 9, or take another number of"
        " processes"
    )


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_fifty_steps(tmp_path: Path, count: int) -> None:
    found = {n: run(cases(50), tmp_path / str(n), n) for n in (1, count)}
    for name in SPECS:
        if name not in ROUNDED:
            compare(found, tmp_path, name, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_two_hundred_steps_to_the_bit_through_resumes(tmp_path: Path, name: str) -> None:
    (case,) = fixed(200, (name,))
    hashes = set()
    for count in (1, 2, 4):
        found = run([case], tmp_path / str(count), count)[case["name"]]
        hashes |= {(*found["hashes"][:1], *map(str, found["metrics"].values()))}
        assert len(set(found["hashes"])) == 1
    assert len(hashes) == 1
    for i, (count, end) in enumerate(((4, 45), (2, 100), (1, 145), (4, 200))):
        before = {"from": f"part {i - 1}"} if i else {}
        part = {**case, "name": f"part {i}", "steps": end, **before}
        last = run([part], tmp_path, count)[part["name"]]["hashes"]
    assert {h[0] for h in hashes} == set(last)
    state = torch.load(tmp_path / "part 3.pt", weights_only=True)
    assert state["values"]["step"] == 200
