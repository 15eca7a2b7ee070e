"""Specs that are meant to do harm: refused quickly, within bounds of memory, whatever they come
through (rows 24, 27, 28).
"""

from __future__ import annotations

import math
import os
import resource
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from conftest import DECODER, Result

from bigmodel_cli import yaml_source
from bigmodel_cli.config import Options
from bigmodel_cli.errors import SpecError
from bigmodel_cli.explain.tree import classes_in
from bigmodel_cli.overrides import apply_overrides
from bigmodel_cli.spec import Spec, check, load
from bigmodel_cli.yaml_source import parse_yaml

Cli = Callable[..., Result]


def bomb(item: str, join: str) -> str:
    """Ten levels of nine aliases each."""
    lines = [f"a0: &a0 {item}"]
    return "\n".join(
        [*lines, *(f"a{i}: &a{i} {join % ', '.join([f'*a{i - 1}'] * 9)}" for i in range(1, 10))]
    )


HOSTILE = {
    "aliases of lists": (bomb("[x]", "[%s]"), "once its aliases are followed"),
    "aliases that merge": (bomb("{x: 1}", "{<<: [%s]}"), "once its aliases are followed"),
    "an alias of itself": ("a: &a [*a]", "has no anchor"),
    "lists in lists": ("a: " + "[" * 100_000 + "]" * 100_000, "nest"),
    "mappings in mappings": ("{a: " * 100_000, "nest"),
    "pairs in lists": ("[a: " * 100_000, "nest"),
    "block lists in one line": ("- " * 100_000, "nest"),
    "block mappings": ("\n".join(" " * i + "a:" for i in range(1200)), "nest"),
    "keys of mappings": ("? " * 100_000, "nest"),
    "many values": (
        DECODER.replace("[text.txt]", "[" + "1," * 90_000 + "]"),
        "more than 20,000 values",
    ),
    "many unknown keys": ("train:\n" + "".join(f" k{i}: 1\n" for i in range(9_000)), "more faults"),
    "many keys given twice": ("a: 1\n" * 9_000, "more faults"),
    "many tags": ("a: [" + "!x 1," * 15_000 + "]", "more faults"),
    "a long number": ("model: " + "1" * 90_000, "unknown type"),
    "a long word": ("train: {optimizer: " + "a" * 900_000 + "}", "unknown type"),
    "a long key": ("train: {? " + "a" * 900_000 + " : 1}", "unknown option"),
    "many documents": ("---\n" * 200_000, "a second document"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_spec_is_refused_within_bounds(name: str) -> None:
    """Row 24: alias bombs, nesting, floods; through neither Python's nor C's stack."""
    text, said = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(SpecError, match=said) as error:
            check(parse_yaml(text.encode(), "spec.yaml"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60_000_000
    assert len(str(error.value)) < 50_000


@pytest.mark.parametrize(
    "change",
    [
        "x=" + "[" * 100_000,
        "x=" + "{a: " * 30_000,
        "x=" + "- " * 50_000,
        ".".join(["a"] * 50_000) + "=1",
        "train." + "x" * 100_000 + "=1",
        "train.steps=" + "1" * 100_000,
        "model.blocks." + "9" * 50_000 + ".repeat=1",
        "model.blocks.²=1",
        "model.blocks.-1.repeat=1",
        "=",
        ".=1",
    ],
    ids=lambda change: change[:16],
)
def test_a_hostile_override_is_refused_in_a_short_message(change: str) -> None:
    """Rows 24, 86: by `--set` too."""

    def changed() -> Spec:
        root = parse_yaml(DECODER.encode(), "spec.yaml")
        apply_overrides(root, [change], Spec)
        return check(root)

    with pytest.raises(SpecError) as error:
        changed()
    assert len(str(error.value)) < 2_000


def test_a_spec_may_come_through_a_pipe() -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_text(DECODER))
    writer.start()
    assert load(Path("pipe")) == check(parse_yaml(DECODER.encode(), "s"))
    writer.join()


def test_a_pipe_without_a_writer_does_not_block(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """Row 24: a FIFO does not hang."""
    monkeypatch.setattr(yaml_source, "PATIENCE", 0.1)
    os.mkfifo("pipe")
    result = cli("pretrain", "pipe")
    assert result.status == 2
    assert "nothing more came through this pipe" in result.err
    holding = os.open("pipe", os.O_RDWR)
    assert cli("pretrain", "pipe").status == 2
    os.close(holding)


def test_a_pipe_without_end_is_not_read_to_its_end() -> None:
    """Row 24: a FIFO that is written into for ever fills no memory."""
    os.mkfifo("pipe")

    def write() -> None:
        try:
            with open("pipe", "wb", buffering=0) as file:
                while True:
                    file.write(b"#" * 65_536)
        except BrokenPipeError:
            pass

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(SpecError, match="more than 1,000,000 bytes"):
        load(Path("pipe"))
    writer.join()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/zero and /dev/full")
def test_a_device_a_socket_and_a_folder_are_refused_unopened() -> None:
    """Row 24: `bigmodel pretrain /dev/zero`."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for path in ("/dev/zero", "/dev/null", "socket"):
            with pytest.raises(SpecError, match="this is a device or a socket; name a spec file"):
                load(Path(path))
    Path("linked").symlink_to("/dev/zero")
    with pytest.raises(SpecError, match="this is a device"):
        load(Path("linked"))


def numbers() -> Iterator[tuple[str, pydantic.TypeAdapter[Any], bool]]:
    """Every option of every class that takes a number, or a list of them: its name, a check of
    values, whether it is a list.
    """
    seen: set[type[Options]] = set()

    def classes(options: type[Options]) -> None:
        if options not in seen:
            seen.add(options)
            for field in options.model_fields.values():
                for inner in classes_in(field.annotation):
                    classes(inner)

    classes(Spec)
    config = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
    for options in seen:
        for name, field in options.model_fields.items():
            if not classes_in(field.annotation):
                adapter: Any = pydantic.TypeAdapter(
                    pydantic.create_model(
                        "M", x=(field.rebuild_annotation(), ...), __config__=config
                    )
                )
                for listed in (False, True):
                    if any(takes(adapter, v, listed) for v in (0.5, 1, 2, 16, 300)):
                        yield f"{options.__name__}.{name}", adapter, listed


def takes(adapter: pydantic.TypeAdapter[Any], value: Any, listed: bool) -> bool:
    for count in (1, 2) if listed else (0,):
        try:
            adapter.validate_python({"x": [value] * count if listed else value})
            return True
        except pydantic.ValidationError:
            pass
    return False


def test_no_number_of_any_type_takes_nan_infinity_negative_or_absurd_values() -> None:
    """Rows 27, 28: every numeric option of every model, part, task, data source, optimizer and
    augmentation.
    """
    found = list(numbers())
    assert len(found) > 200
    assert any(listed for _, _, listed in found)
    for name, adapter, listed in found:
        for value in (math.nan, math.inf, -math.inf, 1e30, 10**19, -1, -0.5):
            signed = name in ("NormalizeOptions.mean", "CoNLLOptions.words", "CoNLLOptions.tags")
            assert not takes(adapter, value, listed) or (signed and abs(value) <= 1), (name, value)


def test_a_spec_is_read_where_many_files_are_open(decoder_spec: Path) -> None:
    """Row 24: waiting for a pipe knows no largest number of a file."""
    first = os.open(os.devnull, os.O_RDONLY)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    many = [first]
    try:
        while many[-1] < 1030:
            many.append(os.dup(first))
        assert load(decoder_spec).model.type == "decoder"
    finally:
        for number in many:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
