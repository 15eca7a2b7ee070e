"""A copy of a checkpoint's tensors has the bytes that they had, and memory that is used again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bigmodel_cli import checkpoints
from bigmodel_cli.checkpoints import copies, shards
from bigmodel_cli.checkpoints.contents import Contents
from bigmodel_cli.checkpoints.copies import Copies
from bigmodel_cli.errors import ResourceError

DTYPES = (
    "bool uint8 int8 float8_e5m2 float8_e4m3fn int16 uint16 float16 bfloat16 int32 uint32 float32"
    " complex64 float64 int64 uint64"
)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """Of every dtype, transposed, empty, a single number, and two names of one."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name in DTYPES.split():
        numbers = torch.randint(0, 2, (3, 5), generator=draw)
        found[name] = numbers.to(getattr(torch, name)).T
    found |= {"empty": torch.zeros(4, 0), "one": torch.tensor(seed / 7)}
    return {**found, "tied": found["float32"]}


def content(files: list[shards.Shard]) -> list[bytes]:
    return [b"".join(shard) for shard in files]


@pytest.mark.parametrize("size", [100, 10**9])
def test_a_copy_is_the_same_bytes_and_stays_so(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_SIZE", size)
    memory = Copies()
    for seed in (1, 2):
        given = tensors(seed)
        files = shards.shards("model.safetensors", given)
        assert (len(files) > 1) == (size == 100)
        expected = content(files)
        copied = memory.take(files, frozenset())
        for tensor in given.values():
            tensor.zero_()
        assert content(copied) == expected
        assert [shard.tied for shard in copied] == [shard.tied for shard in files]
        assert memory.lacks(files) == 0
    place = memory.memory
    memory.take(shards.shards("model.safetensors", {"a": torch.ones(3)}), frozenset())
    assert memory.memory is place
    memory.take(shards.shards("model.safetensors", {"a": torch.ones(999)}), frozenset())
    assert memory.memory is not place


def test_what_does_not_change_is_not_copied() -> None:
    given = {"a": torch.ones(100), "b": torch.ones(100), "c": torch.ones(10, 10).T}
    files = shards.shards("model.safetensors", given)
    memory = Copies()
    still = frozenset({"a", "c"})
    (first,) = memory.take(files, still)
    assert first.tensors["a"].data_ptr() == given["a"].data_ptr()
    assert first.tensors["b"].data_ptr() != given["b"].data_ptr()
    given["c"].zero_()  # which shows that it is not copied again
    given["b"].zero_()
    (second,) = memory.take(files, still)
    assert bool(second.tensors["c"].all())
    assert not bool(second.tensors["b"].any())
    # in another place of the memory it is
    (third,) = memory.take(shards.shards("model.safetensors", {"c": given["c"]}), still)
    assert not bool(third.tensors["c"].any())


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*given: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(copies.mmap, "mmap", none)
    files = shards.shards("model.safetensors", {"a": torch.ones(100)})
    with pytest.raises(ResourceError, match=r"train.save_async: there is no memory for a copy"):
        Copies().take(files, frozenset())


def test_files_are_written_by_processes_in_equal_parts() -> None:
    sizes = [700, 100, 300, 300, 50, 900, 20]
    files = [
        shards.Shard(f"{n}", {"a": torch.zeros(size, dtype=torch.uint8)}, {})
        for n, size in enumerate(sizes)
    ]
    for count in (1, 2, 3, 9):
        found = shards.writers(files, count)
        loads = [
            sum(f.size() for f, w in zip(files, found, strict=True) if w == rank)
            for rank in range(count)
        ]
        assert sum(loads) == sum(f.size() for f in files)
        least = max(-(-sum(loads) // count), max(f.size() for f in files))
        assert max(loads) <= 4 / 3 * least
        assert found == shards.writers(files, count)
    assert shards.writers([], 3) == []


def test_files_are_never_too_many_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a file grows with what is to be written."""
    monkeypatch.setattr(shards, "SHARD_SIZE", 8)
    some = {f"{n:04}": torch.zeros(3) for n in range(3000)}
    assert len(shards.shards("model.safetensors", some)) <= 2 * shards.MOST_SHARDS + 1


def test_several_files_have_an_index_that_is_no_asset(monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import safe_open

    state = {"model": {}, "data": {}, "task": {}, "train": {}}
    info: dict[str, object] = {}
    place = Path("checkpoints")
    given = {name: torch.full((10, 10), float(n)) for n, name in enumerate("abcd")}
    given["tied"] = given["b"]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "SHARD_SIZE", 1000)
        path = checkpoints.save(place, Contents(3, given, {}, {"step": 3}, state, info))
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 1600}
    assert index["weight_map"].keys() == set("abcd")
    for name, file in index["weight_map"].items():
        with safe_open(path / file, "pt") as stored:
            assert torch.equal(stored.get_tensor(name), given[name])
    read = checkpoints.read(path, train_state=True)
    assert not read.assets
    again = checkpoints.save(
        place, Contents(4, read.model.load(), {}, {"step": 4}, state, info, read.assets)
    )
    assert not list(again.glob("*.index.json"))
