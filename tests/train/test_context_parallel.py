"""Processes that have some positions of each sequence train as one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_cases import run as run_cases
from parallel_cases import text
from safetensors.torch import load_file

from bigmodel_cli.assemble import build_on_meta
from bigmodel_cli.distributed import World
from bigmodel_cli.errors import SpecError
from bigmodel_cli.parallel import SharingOptions
from bigmodel_cli.sharding import Mesh
from bigmodel_cli.spec import from_dict
from bigmodel_cli.train import divided, divisible
from bigmodel_cli.train.setup import open_run, open_task

Results = dict[str, dict[str, Any]]
SMALL = {"norm": {"type": "rmsnorm"}, "dropout": 0.1, "drop_path": 0.1}
GROUPED = {
    "type": "attention", "num_heads": 4, "kv_heads": 2, "position": "rotary", "bias": False,
    "qk_norm": True,
}  # fmt: skip
BLOCKS = [
    {
        "mixer": {**GROUPED, "window": 5},
        "ffn": {"type": "swiglu", "hidden": 32, "dropout": 0.1},
        **SMALL,
    },
    {
        "mixer": {"type": "mla", "num_heads": 4, "kv_rank": 6, "rotary_dim": 4, "dropout": 0.1},
        "ffn": {"type": "moe", "experts": 4, "top_k": 2, "hidden": 8, "balance_weight": 0.5},
        **SMALL,
    },
]
OTHERS = [
    {
        "mixer": {
            "type": "attention", "num_heads": 2, "position": {"type": "alibi"}, "sinks": True,
            "bias": False, "dropout": 0.1,
        },
        "ffn": {"type": "gelu", "hidden": 24},
        "dropout": 0.1,
    },
    {
        "mixer": {"type": "differential", "num_heads": 2},
        "ffn": {"type": "moe", "experts": 4, "hidden": 8, "balance": "bias"},
    },
]  # fmt: skip
TWO_SIDED = [
    {
        "mixer": {
            "type": "attention", "num_heads": 2, "bias": False, "dropout": 0.1,
            "position": {"type": "t5", "buckets": 8, "max_distance": 6},
        },
        "ffn": {"type": "gelu", "hidden": 24},
        "dropout": 0.1,
    },
    {
        "mixer": {**GROUPED, "window": 3},
        "ffn": {"type": "moe", "experts": 4, "hidden": 8},
    },
]  # fmt: skip
ENCODER = {"type": "encoder", "position": {"type": "learned"}, "dropout": 0.1}
LORA = {"type": "lora", "rank": 2, "dropout": 0.2, "targets": ["*qkv*", "*kv*"]}
CPU = torch.device("cpu")
LABELS = {"problem": "parity", "form": "labels", "symbols": None, "min_length": 9}
ONE_STEP = {"steps": 1, "batch_size": 4}


def case(
    name: str, parallel: dict[str, Any], blocks: list[Any] = BLOCKS, steps: int = 20, **more: Any
) -> dict[str, Any]:
    """A decoder trained by processes that share its sequences so."""
    spec = text({"batch_size": 12, "parallel": parallel, **more.pop("train", {})})
    spec["model"] = {"type": "decoder", "dim": 16, "blocks": blocks, **more.pop("model", {})}
    return {"name": name, "spec": {**spec, **more.pop("spec", {})}, "steps": steps, **more}


def run(cases: list[dict[str, Any]], out: Path, count: int) -> Results:
    """What the first of so many processes wrote, by case."""
    return run_cases(cases, out, count, "sharded_ranks.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("context")
    texts = ["a rose is a rose"[: 3 + n % 14] + "." * (n % 3) for n in range(90)]
    (path / "documents.jsonl").write_text("".join(f'{{"text": "{t}"}}\n' for t in texts))
    return path


def every_case(folder: Path, parallel: dict[str, Any], **saved: str) -> list[dict[str, Any]]:
    """The cases, by processes that share their sequences so."""
    files = [str(folder / "documents.jsonl")]
    documents = {"type": "text", "files": files, "context": 23, "isolate": True}
    documents |= {"tokenizer": {"type": "characters"}, "val_fraction": 0.1}
    ragged = {"batch_tokens": 96, "micro_batch_size": 24, "batch_size": 32}
    short = {"data": {**text({})["data"], "length": 6, "min_length": 1, "symbols": 90}}
    tuned = {"micro_batch_size": 4, "checkpointing": "blocks", "ema": 0.9, "consistency": 0.5}
    return [
        case("all", parallel, evaluate=True, **saved),
        case("others", parallel, OTHERS, model={"position": {"type": "learned"}, "dropout": 0.1}),
        case("documents", parallel, OTHERS[:1] + BLOCKS[1:], spec={"data": documents}),
        case("ragged", parallel, BLOCKS[:1], train=ragged, spec=short),
        case("tuned", parallel, steps=6, train=tuned, model={"tie_embeddings": False}),
        case("adapted", parallel, spec={"adapter": LORA}),
        case("hidden", parallel, TWO_SIDED, model=ENCODER, spec={"task": {"type": "masked_lm"}}),
    ]


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Results]:
    """By one process, and by two that share all sequences; test_tensor_parallel.py has a short
    one of these.
    """
    saved = {"save": str(folder / "of two")}
    return {
        "1": run(every_case(folder, {}), folder / "1", 1),
        "2": run(every_case(folder, {"context": 2}, **saved), folder / "2", 2),
    }


def compare(folder: Path, found: Results, place: str, want: Results, name: str, own: str) -> None:
    """Losses, norms and weights of the case `own` in `place`, and of `name` by one process."""
    assert found[own]["losses"] == pytest.approx(want[name]["losses"], abs=1e-6)
    assert found[own]["norms"] == pytest.approx(want[name]["norms"], rel=1e-5)
    weights = load_file(folder / place / f"{own}.safetensors")
    for key, weight in load_file(folder / "1" / f"{name}.safetensors").items():
        assert torch.allclose(weights[key], weight, rtol=0, atol=1e-5), key


NAMES = ["all", "others", "documents", "ragged", "tuned", "adapted", "hidden"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_that_share_each_sequence(results: dict[str, Results], folder: Path, name: str) -> None:
    compare(folder, results["2"], "2", results["1"], name, name)


@pytest.mark.slow
def test_a_validation_counts_what_one_process_counts(results: dict[str, Results]) -> None:
    found, want = (results[count]["all"]["metrics"] for count in ("2", "1"))
    assert found == pytest.approx(want, rel=1e-5)


@pytest.mark.slow
def test_four_in_all_ways(results: dict[str, Results], folder: Path) -> None:
    """And on from a checkpoint of two, with which one process goes on too."""
    undropped = [BLOCKS[0], {**BLOCKS[1], "mixer": {**BLOCKS[1]["mixer"], "dropout": 0.0}}]
    ways = {
        "copies": {"replicate": 2, "context": 2},
        "parts": {"shard": 2, "context": 2},
        "tensor": {"tensor": 2, "context": 2},
    }
    longer = {"from": str(folder / "of two"), "steps": 26}
    cases = [
        *every_case(folder, {"context": 4}),
        *(case(f"all by {n}", way) for n, way in ways.items() if n != "tensor"),
        case("undropped", ways["tensor"], undropped),
        case("longer", ways["parts"], **longer),
    ]
    four = run(cases, folder / "4", 4)
    again = [case("undropped", {}, undropped), case("longer", {}, **longer)]
    one = results["1"] | run(again, folder / "1", 1)
    for name in NAMES:
        compare(folder, four, "4", one, name, name)
    for name in ("copies", "parts"):
        compare(folder, four, "4", one, "all", f"all by {name}")
    for name in ("undropped", "longer"):
        compare(folder, four, "4", one, name, name)
    whole = one["all"]["bytes"][0]
    assert all(b < 0.4 * whole for b in four["all by parts"]["bytes"])
    assert all(b == whole for b in four["all by copies"]["bytes"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"deterministic": True}}, "train.deterministic: true does not go with"),
        ({"train": {"compile": "on"}}, "train.compile: on does not go with train.parallel.context"),
    ],
)
def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    train = {"steps": 1, "parallel": {"context": 2}, **changes.get("train", {})}
    with pytest.raises(SpecError, match=message):
        mesh(
            monkeypatch, 2, 10**9, text(train) | {n: v for n, v in changes.items() if n != "train"}
        )


def mesh(
    monkeypatch: pytest.MonkeyPatch, count: int, room: int, spec: dict[str, Any]
) -> tuple[Mesh, list[str]]:
    """How so many processes share the work, of so much memory each, and what is said of it."""
    said: list[str] = []
    monkeypatch.setattr(divided, "world", lambda: World(0, count))
    monkeypatch.setattr(divided, "neighbours", lambda: 1)
    monkeypatch.setattr(divided, "total_memory", lambda device: room)
    monkeypatch.setattr(divided, "share_samples", lambda *counts: None)
    monkeypatch.setattr(divided, "say", said.append)
    opened = open_run(from_dict(spec))
    found = divided.mesh_of(opened.spec, opened.data.info, opened.data.split("train"), CPU)
    return found, said


@pytest.mark.parametrize(
    ("mixer", "task", "message"),
    [
        ({"type": "mamba2", "head_dim": 8}, "causal_lm", "model.blocks.0.mixer: Mamba2 mixes pos"),
        (
            {"type": "attention", "num_heads": 2, "dropout": 0.1, "window": 3},
            "causal_lm",
            "model.blocks.0.mixer.dropout: of attention's weights, in a window",
        ),
        (
            {"type": "attention", "num_heads": 2},
            "classification",
            "task.type: classification has no loss that is a sum over positions",
        ),
    ],
)
def test_what_does_not_divide_is_refused(mixer: dict[str, Any], task: str, message: str) -> None:
    labels = task == "classification"
    kind = "encoder" if labels else "decoder"
    spec = {"model": {"type": kind, "dim": 16, "blocks": [{"mixer": mixer}]}}
    data = {**text({})["data"], **(LABELS if labels else {})}
    opened = open_run(from_dict({**spec, "data": data, "task": {"type": task}, "train": ONE_STEP}))
    model = build_on_meta(opened.spec, opened.data.info)
    with pytest.raises(SpecError) as fault:
        divisible.check_rows(model, open_task(opened.spec, opened.data))
    assert f"train.parallel.context: {message}" in str(fault.value)


def test_memory_decides_about_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = text({"steps": 1, "parallel": {"context": 2}})
    found, said = mesh(monkeypatch, 4, 10**9, spec)
    assert found == Mesh(2, 1, context=2)
    assert said[0].startswith(
        "parallel: 4 copies of the weights; each sequence divided among 2 (about "
    )
    for count in (2, 4):
        found, said = mesh(monkeypatch, count, 10_000, spec)
        assert found == Mesh(1, count, context=2)
        assert f"1 copy of the weights, divided among {count} processes; each seq" in said[0]


def test_numbers_of_processes() -> None:
    assert SharingOptions(context=2).division(6) is None
    assert SharingOptions(context=2).division(2) is None
    assert SharingOptions(context=2, shard=1).division(2) == (1, 1)
    assert SharingOptions(context=2, shard=2).division(8) == (2, 2)
    assert SharingOptions(context=2, tensor=2).division(8) == (2, 1)
    with pytest.raises(SpecError, match=r"train\.parallel\.context: 4 does not divide 6"):
        SharingOptions(context=4).division(6)
    with pytest.raises(SpecError, match=r"parallel\.tensor x context: 4 does not divide 6"):
        SharingOptions(context=2, tensor=2).division(6)
