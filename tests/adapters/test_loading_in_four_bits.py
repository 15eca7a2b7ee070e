"""Matrices that become 4 bits while they are read are those that become so after reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bigmodel_cli import checkpoints
from bigmodel_cli.adapters import ADAPTERS, attach, is_quantized, quantize
from bigmodel_cli.adapters.four_bits import bytes_of, values
from bigmodel_cli.assemble import assemble
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import opening
from bigmodel_cli.errors import SpecError
from bigmodel_cli.spec import Spec, of_checkpoint

pytest.importorskip("torchao", reason="torchao is not installed")
WIDE = {
    "hidden_act": "silu", "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 259,
    "max_position_embeddings": 24, "rms_norm_eps": 1e-5, "bos_token_id": 256, "eos_token_id": 256,
}  # fmt: skip
GPT2 = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 16, "n_layer": 2,
    "n_head": 4, "n_positions": 24, "vocab_size": 259, "bos_token_id": 256, "eos_token_id": 256,
}  # fmt: skip
FOLDERS: dict[str, dict[str, Any]] = {
    "fused, in shards": {**WIDE, "architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "transposed, tied": GPT2,
    "experts by name": {
        **WIDE, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
        "num_local_experts": 3, "num_experts_per_tok": 2,
    },
}  # fmt: skip


def source_of(kind: str, folder: Path) -> Path:
    """A folder of that kind; "ours" is a checkpoint of the first kind's network."""
    from folders import INDEX, WEIGHTS, drawn_folder, write_tensors
    from safetensors.torch import load_file

    named = next(iter(FOLDERS)) if kind == "ours" else kind
    at = drawn_folder(folder / "theirs", FOLDERS[named])
    if kind == "ours":
        return written(at, folder / "ours")
    if "shards" in kind:  # of which each has a part of each matrix of ours
        import json

        tensors = {n: t.clone() for n, t in load_file(at / WEIGHTS).items()}
        (at / WEIGHTS).unlink()
        where = {n: f"model-{i % 3 + 1:05d}-of-00003.safetensors" for i, n in enumerate(tensors)}
        for file in set(where.values()):
            write_tensors(at / file, {n: t for n, t in tensors.items() if where[n] == file})
        (at / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return at


def written(source: Path, out: Path) -> Path:
    """A checkpoint of ours with the weights of another."""
    found = opening.read(source)
    spec, info = opened(source)
    model = assemble(spec, info, torch.device("cpu"), source)
    contents = checkpoints.Contents(
        step=1,
        model=model.state_dict(),
        train={},
        state={"step": 1},
        spec=spec.to_dict(),
        info=info.to_json(),
        assets=found.assets,
    )
    checkpoints.save(out, contents)
    return checkpoints.find(out)


def opened(source: Path) -> tuple[Spec, DatasetInfo]:
    return (
        of_checkpoint(opening.read_spec(source), source),
        DatasetInfo.from_json(opening.read(source).info),
    )


def adapter(kind: str) -> Any:
    targets = ["*.qkv.q", "*.ffn", "*.out"]
    return ADAPTERS[kind].model_validate(
        {"type": kind, "rank": 2, "targets": targets, "base": "nf4"}
    )


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "convert"))


def compared(four: Any, reference: Any, held: set[str]) -> None:
    """Every weight is the reference's to the bit, and these are of 4 bits."""
    own, others = four.state_dict(), reference.state_dict()
    assert own.keys() == others.keys()
    assert {n for n, t in own.items() if is_quantized(t)} == held
    for name, tensor in own.items():
        assert torch.equal(values(tensor), values(others[name])), name


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("source", [*FOLDERS, "ours"])
def test_the_bits_are_those_of_quantizing_afterwards(
    tmp_path: Path, source: str, kind: str
) -> None:
    at = source_of(source, tmp_path)
    spec, info = opened(at)
    options = adapter(kind)
    cpu = torch.device("cpu")
    four = assemble(spec.model_copy(update={"adapter": options}), info, cpu, at)
    reference = assemble(spec, info, cpu, at)
    torch.manual_seed(spec.train.seed)
    attach(reference, options.low_rank(), fill=True)
    found = quantize(reference)
    held = {n for n, t in reference.state_dict().items() if is_quantized(t)}
    assert len(held) >= len(found.names) > 3
    compared(four, reference, held)
    again = quantize(four)  # what is said of them
    assert (again.names, again.numbers, again.bytes) == (found.names, found.numbers, found.bytes)
    assert again.whole == found.whole


def test_a_new_head_is_drawn_and_nothing_else(tmp_path: Path) -> None:
    at = source_of("fused, in shards", tmp_path)
    spec, info = opened(at)
    spec = spec.model_copy(update={"adapter": adapter("lora")})
    import dataclasses

    from bigmodel_cli.tasks import TASKS

    info = dataclasses.replace(info, classes=("a", "b", "c"))
    task = TASKS["classification"].model_validate({"type": "classification"})
    low = spec.adapter.low_rank().model_copy(update={"modules_to_save": ["head"]})
    spec = spec.model_copy(update={"task": task, "adapter": low})
    model = assemble(spec, info, torch.device("cpu"), at)
    head = model.get_submodule("head").weight
    assert head.requires_grad
    assert 0 < head.std() < 1
    assert sum(is_quantized(p) for p in model.parameters()) > 8


def test_one_exact_matrix_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    from bigmodel_cli.adapters import Hollow

    alive: list[Any] = []
    own: Callable[..., None] = Hollow.keep

    def keep(self: Any, name: str, exact: Tensor) -> None:
        gc.collect()
        assert all(known() is None for known in alive), name
        alive.append(weakref.ref(exact))
        own(self, name, exact)

    monkeypatch.setattr(Hollow, "keep", keep)
    for kind in ("fused, in shards", "ours"):
        alive.clear()
        at = source_of(kind, tmp_path / kind)
        spec, info = opened(at)
        assemble(
            spec.model_copy(update={"adapter": adapter("lora")}), info, torch.device("cpu"), at
        )
        assert len(alive) == 10


@pytest.mark.parametrize("base", ["nf4", None])
def test_memory_is_counted_of_what_is_held_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str | None
) -> None:
    from bigmodel_cli.assemble import check_memory, loading, outlines, starting

    at = source_of("fused, in shards", tmp_path)
    spec, info = opened(at)
    exact = sum(4 * t.numel() for t in opening.read(at).model.values())
    options = adapter("lora").low_rank().model_copy(update={"base": base})
    spec, cpu = spec.model_copy(update={"adapter": options}), torch.device("cpu")
    model = assemble(spec, info, cpu, at)
    quantize(model) if base else None
    own = sum(map(bytes_of, model.parameters()))
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    assert own < exact if base else own == exact + trained
    for room in (own + 3 * trained, own + 3 * trained - 1):  # adamw: two numbers each
        for place in (loading, outlines, starting):
            monkeypatch.setattr(place, "total_memory", lambda device, room=room: room)
        if room >= own + 3 * trained:
            check_memory(spec, info, cpu)
            assemble(spec, info, cpu, at)  # not what training all of it would take
        else:
            with pytest.raises(SpecError, match="make the model smaller"):
                assemble(spec, info, cpu, at)


def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    from folders import WEIGHTS, drawn_folder, write_tensors
    from safetensors.torch import load_file

    from bigmodel_cli.errors import CheckpointError

    at = drawn_folder(tmp_path / "m", FOLDERS["transposed, tied"])
    tensors = {n: t.clone() for n, t in load_file(at / WEIGHTS).items()}
    next(t for n, t in tensors.items() if n.endswith("c_fc.weight"))[0, 0] = torch.nan
    write_tensors(at / WEIGHTS, tensors)
    spec, info = opened(at)
    with pytest.raises(CheckpointError, match="not finite: 1 of"):
        assemble(
            spec.model_copy(update={"adapter": adapter("lora")}), info, torch.device("cpu"), at
        )
