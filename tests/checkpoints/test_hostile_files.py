"""Files of a checkpoint that lie, or are none: status 4 and a sentence, in little time and memory;
nothing outside is opened.
"""

from __future__ import annotations

import functools
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from tampered import STEP, bounded, change_json, container, fresh_copy, node, saved, sign

from bigmodel_cli import checkpoints
from bigmodel_cli.checkpoints import safe
from bigmodel_cli.checkpoints.files import MOST_VALUES, parse_json
from bigmodel_cli.errors import CheckpointError, ResourceError

Cli = Callable[..., Result]


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS = {
    "a string as a size": {"a": entry("1000000000", [0, 4])},
    "strings as sizes": {"a": entry(["1"] * 100_000, [0, 4])},
    "a list as a size": {"a": entry([[1]], [0, 4])},
    "a fraction as a size": {"a": entry([1.0], [0, 4])},
    "true as a size": {"a": entry([True], [0, 4])},
    "a size below zero": {"a": entry([-1], [0, 4])},
    "a size of 4,000 digits": (
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,4]}}'
    ),
    "100,000 sizes of 19 digits": {"a": entry([10**18] * 100_000, [0, 4])},
    "64 large sizes": {"a": entry([2**50] * 64, [0, 4])},
    "a large size beside none": {"a": entry([0, 2**53, 2**53], [0, 0])},
    "sizes as a mapping": {"a": entry({"1": 1}, [0, 4])},
    "offsets as strings": {"a": entry([1], ["0", "4"])},
    "offsets as a string": {"a": entry([1], "04")},
    "one offset": {"a": entry([1], [0])},
    "an offset of 4,000 digits": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,' + b"9" * 4000 + b"]}}"
    ),
    "offsets backwards": {"a": entry([1], [4, 0])},
    "a list as a dtype": {"a": entry([1], [0, 4], ["F32"])},
    "another key": {"a": {**entry([1], [0, 4]), "more": 1}},
    "a number as an entry": {"a": 5},
    "a name of a megabyte": {"a" * 1_000_000: entry([1], [0, 4])},
    "metadata that is a list": {"__metadata__": [], "a": entry([1], [0, 4])},
    "metadata with a number": {"__metadata__": {"a": 1}, "a": entry([1], [0, 4])},
    "a name twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    ),
    "a key twice in an entry": (
        b'{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}'
    ),
    "overlapping tensors": {"a": entry([1], [0, 4]), "b": entry([1], [0, 4])},
    "a gap before the first": {"a": entry([1], [4, 8])},
    "NaN": b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}',
    "a number that overflows": b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}',
    "100,000 brackets": b'{"a":' * 100_000,
    "a million values": b'{"a":[' + b"[]," * MOST_VALUES + b"[]]}",
    "16 MB of objects": b'{"a":[' + b'{"a":1},' * 2_000_000 + b"1]}",
    "5 MB that is not ASCII": '{"\U0001f600'.encode() + b"a" * 5_000_000 + b'":1}',
    "not UTF-8": b'{"\xff":1}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_is_typed_before_anything_is_computed_with_it(header: Any) -> None:
    """Rows 15 and 75."""
    content = container(header, bytes(4))
    with (
        bounded(),
        pytest.raises(CheckpointError, match=r"^x: damaged: .*; use another checkpoint$") as caught,
    ):
        safe.check_header(content, Path("x"), len(content))
    assert len(str(caught.value)) < 500


def test_a_header_of_many_tensors_is_read() -> None:
    """Row 75: what is refused are lies, not size: 40,000 tensors, as 1,000 blocks and their
    optimizer have.
    """
    names = [f"blocks.{i // 40}.mixer.part{i % 40}.weight" for i in range(40_000)]
    header = {name: entry([1], [4 * i, 4 * i + 4]) for i, name in enumerate(names)}
    content = container(header, bytes(4 * len(names)))
    assert safe.check_header(content, Path("x"), len(content)).keys() == set(names)


def test_an_empty_tensor_and_a_scalar_are_read() -> None:
    """Row 15."""
    header = {"b": entry([0, 3], [0, 0]), "a": entry([], [0, 4]), "__metadata__": {"format": "pt"}}
    content = container(header, bytes(4))
    _, tensors = safe.read_header(io.BytesIO(content), Path("x"), len(content))
    assert {name: list(t.shape) for name, t in tensors.items()} == {"b": [0, 3], "a": []}


MANIFESTS: dict[str, Any] = {
    "a list": lambda v: [1],
    "files as a list": lambda v: v.update(files=[]),
    "a step below zero": lambda v: v.update(step=-1),
    "an absurd step": lambda v: v.update(step=10**15),
    "a step that is true": lambda v: v.update(step=True),
    "a step that is a string": lambda v: v.update(step="60"),
    "another step": lambda v: v.update(step=61),
    "a format that is a list": lambda v: v.update(format=[1]),
    "format true": lambda v: v.update(format=True),
    "no format": lambda v: v.pop("format") and None,
    "a size that is a string": lambda v: v["files"]["spec.yaml"].update(size="1"),
    "a size that is true": lambda v: v["files"]["spec.yaml"].update(size=True),
    "a size below zero": lambda v: v["files"]["spec.yaml"].update(size=-1),
    "a size of a petabyte": lambda v: v["files"]["tokenizer.json"].update(size=10**15),
    "a hash that is a number": lambda v: v["files"]["spec.yaml"].update(sha256=1),
    "a hash that is short": lambda v: v["files"]["spec.yaml"].update(sha256="0"),
    "an entry that is a list": lambda v: v["files"].update({"spec.yaml": []}),
    "10,000 files": (
        lambda v: v["files"].update(
            {f"f{i}": {"size": 0, "sha256": "0" * 64} for i in range(10_000)}
        )
    ),
    "a long name": lambda v: v["files"].update({"a" * 200: {"size": 0, "sha256": "0" * 64}}),
    "tensors as a list": lambda v: v.update(tensors=[]),
    "no tensors of the model": lambda v: v["tensors"].pop("model.safetensors") and None,
    "tensors of the model as a list": lambda v: v["tensors"].update({"model.safetensors": []}),
    "another shape": lambda v: v["tensors"]["model.safetensors"]["norm.weight"].update(shape=[9]),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_is_typed(change: Any) -> None:
    """Rows 16 and 75."""
    checkpoint = fresh_copy()
    change_json(checkpoint, "manifest.json", change)
    with bounded(), pytest.raises(CheckpointError):
        checkpoints.read(checkpoint, train_state=False)


@pytest.mark.parametrize("size", [31_000_000, 200_000_000])
def test_a_large_manifest_takes_little_memory(size: int) -> None:
    """Row 75."""
    checkpoint = fresh_copy()
    with open(checkpoint / "manifest.json", "wb") as file:
        file.write(b'{"files":[' + b"{}," * 1000)
        file.truncate(size)
    with bounded(), pytest.raises(CheckpointError, match=r"manifest.json: "):
        checkpoints.read(checkpoint, train_state=False)


def test_json_has_no_numbers_that_are_not_finite_and_no_long_ones() -> None:
    """Row 75."""
    for text in (
        b"[NaN]",
        b"[-Infinity]",
        b"[1e999]",
        b"[" + b"1" * 21 + b"]",
        b'{"a":1,"a":1}',
        b"[" * 10_000,
    ):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
    assert parse_json(b'{"a": [18446744073709551615, -0.5, null, true]}') == {
        "a": [2**64 - 1, -0.5, None, True]
    }


NAMES = [
    "manifest.json",
    "model.safetensors",
    "state.json",
    "facts.json",
    "spec.yaml",
    "tokenizer.json",
    "trained_on.bin",
]


@pytest.mark.parametrize("kind", ["folder", "FIFO", "link", "loop", "socket"])
def test_a_link_folder_fifo_or_device_instead_of_a_checkpoints_file_is_refused(
    kind: str, cli: Cli
) -> None:
    """Rows 17 and 77: nothing hangs, nothing is followed.

    A FIFO that is opened to be read would wait for ever.
    """
    for name in NAMES:
        checkpoint = fresh_copy()
        Path("outside").unlink(missing_ok=True)
        node(checkpoint / name, kind)
        result = cli("eval", checkpoint)
        assert (result.status, result.out) == (4, ""), (name, result.err)
        if name != "manifest.json":
            assert f"{name}: a link, folder, FIFO or device, where a file belongs" in result.err
        if kind != "folder":
            (checkpoint / name).unlink()


@pytest.mark.parametrize("kind", ["FIFO", "link", "socket"])
def test_other_file_types_instead_of_what_a_resume_reads(kind: str) -> None:
    """Row 77."""
    checkpoint = fresh_copy()
    node(checkpoint / "train_state.safetensors", kind)
    with pytest.raises(
        CheckpointError, match=r"train_state.safetensors: a link, folder, FIFO or device"
    ):
        checkpoints.read(checkpoint, train_state=True)


@pytest.mark.parametrize("kind", ["file", "FIFO", "link", "loop", "socket"])
def test_something_other_than_a_folder_instead_of_a_checkpoint_is_refused(
    kind: str, cli: Cli
) -> None:
    """Row 77: also for --from, --compare and init.checkpoint."""
    good = fresh_copy()
    place = good.parent / "step-00000070"
    Path("elsewhere").mkdir()
    if kind == "file":
        place.write_text("x")
    elif kind == "link":
        good.rename("elsewhere/moved")
        place.symlink_to(Path("elsewhere/moved").resolve())
    else:
        node(place, kind)
    Path("more.yaml").write_text(f"init: {{checkpoint: {place}}}\ntrain: {{steps: 1}}\n")
    commands = [
        ["eval", place],
        ["eval", "run", "--compare", place],
        ["predict", place, "red"],
        ["bench", place],
    ]
    commands += [["finetune", "--from", place], ["attend", place, "red"]]
    for command in commands if kind in ("FIFO", "file") else commands[:1]:
        result = cli(*command)
        if kind == "link" and command[0] == "eval":  # the user named the link himself
            assert result.status == 0, result.err
        else:
            assert (result.status, result.out) == (4, ""), result.err
    if kind == "link":  # of a run, where nobody named it
        assert cli("eval", "run").status == 4


@pytest.mark.parametrize("target", ["{outside}", "../../outside", "last", "best", "."])
def test_the_link_last_may_only_name_a_checkpoint_beside_it(target: str, cli: Cli) -> None:
    """Row 77: an absolute link, one that leads outside, and loops."""
    checkpoint = fresh_copy()
    outside = Path("outside").resolve()
    checkpoint.rename(outside)
    last = checkpoint.parent / "last"
    last.symlink_to(target.format(outside=outside))
    for named in ("run", "run/checkpoints", last):
        result = cli("eval", named)
        assert (result.status, result.out) == (4, "")
        assert "last: a link to" in result.err
        assert "name the checkpoint itself" in result.err


def test_a_dangling_last_link_is_skipped(cli: Cli) -> None:
    """Row 77: a process died between two renames; the newest checkpoint is taken."""
    checkpoint = fresh_copy()
    (checkpoint.parent / "last").symlink_to("step-00000099")
    assert json.loads(cli("eval", "run", "--json").out)["checkpoint"] == str(checkpoint)


def test_a_link_of_the_users_own_is_followed(cli: Cli) -> None:
    """Row 77: what the command line names is not the checkpoint's content."""
    checkpoint = fresh_copy()
    Path("mine").symlink_to(checkpoint)
    Path("again").symlink_to("mine")
    assert json.loads(cli("eval", "again", "--json").out)["accuracy"] > 0.4
    Path("nowhere").symlink_to("nothing")
    assert "a link that leads nowhere" in cli("eval", "nowhere").err


def test_a_path_that_is_too_long_is_refused(cli: Cli) -> None:
    """Row 77."""
    for name in ("a" * 5000, "a/" * 3000):
        result = cli("eval", name)
        assert (result.status, "cannot be read" in result.err) == (4, True)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "manifest.json"])
def test_a_missing_file_is_refused_and_gets_no_default(name: str, cli: Cli) -> None:
    """Row 18: neither where it is gone, nor where the manifest does not name it."""
    checkpoint = fresh_copy()
    (checkpoint / name).unlink()
    result = cli("eval", checkpoint)
    assert (result.status, f"{name}: cannot be read: No such file" in result.err) == (4, True)
    change_json(checkpoint, "manifest.json", lambda v: v["files"].pop(name) and None)
    result = cli("eval", checkpoint)
    needed = name not in ("tokenizer.json", "trained_on.bin")
    assert result.status == 4 if needed else result.status in (0, 3)
    assert not needed or f"incomplete: {name} is missing" in result.err


def test_a_file_larger_than_the_memory() -> None:
    """Row 75: a sparse file takes no room on the disk; 5 before it is read."""
    checkpoint = fresh_copy()
    with open(checkpoint / "model.safetensors", "ab") as file:
        file.truncate(2**42)
    change_json(
        checkpoint, "manifest.json", lambda v: v["files"]["model.safetensors"].update(size=2**42)
    )
    with (
        bounded(),
        pytest.raises(ResourceError, match=r"4,398,046,511,104 bytes, and this machine has"),
    ):
        checkpoints.read(checkpoint, train_state=False)


@functools.cache
def bomb() -> bytes:
    """A zip file of 64 MB of zeros, as torch.save would name them."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(4):
            archive.writestr(f"archive/data/{i}", bytes(16_000_000))
    return made.getvalue()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "pytorch_model.bin"])
def test_a_zip_bomb_is_not_unpacked(name: str, cli: Cli) -> None:
    """Row 21: alone, in a folder, and in the place of the tensors."""
    content = bomb()
    Path(name).write_bytes(content)
    Path("folder").mkdir()
    (Path("folder") / name).write_bytes(content)
    checkpoint = fresh_copy()
    (checkpoint / "model.safetensors").write_bytes(content)
    sign(checkpoint, describe=False)
    for path in (name, "folder", checkpoint):
        with bounded():
            result = cli("eval", path)
        assert (result.status, result.out) == (4, ""), result.err


OPENED: list[str] | None = None


def _watch(event: str, arguments: Any) -> None:
    """Notes what is opened, connected to, started or unpickled while `OPENED` is a list."""
    if OPENED is not None and event in (
        "open",
        "socket.connect",
        "subprocess.Popen",
        "os.exec",
        "pickle.find_class",
    ):
        if event == "open" and isinstance(arguments[0], int):  # a descriptor that was opened before
            return
        OPENED.append(f"{event} {arguments[0]}")


@functools.cache
def _install() -> None:
    """Once: a hook stays until the process ends."""
    sys.addaudithook(_watch)


@pytest.fixture
def watched(cli: Cli) -> Callable[..., list[str]]:
    """Runs a command and returns what it opened below the test's folder, and whatever else an audit
    hook heard of.
    """
    _install()

    def run(*arguments: object) -> list[str]:
        global OPENED
        OPENED = []
        try:
            cli(*arguments)
        finally:
            heard, OPENED = OPENED, None
        here = os.getcwd()
        found = []
        for line in heard:
            event, _, name = line.partition(" ")
            path = os.path.abspath(name)
            if event != "open":
                found.append(line)
            elif path.startswith(here) or "secret" in path:
                found.append(os.path.relpath(path, here))
        return found

    return run


@pytest.mark.parametrize(
    "name",
    ["../secret", "../../../secret", "{here}/secret", "sub/../../secret", "secret_link", "."],
)
def test_nothing_outside_a_checkpoint_is_opened(name: str, watched: Any) -> None:
    """Row 17: an audit hook hears every file that is opened."""
    checkpoint = fresh_copy()
    Path("secret").write_text("x")
    (checkpoint / "secret_link").symlink_to(Path("secret").resolve())
    change_json(
        checkpoint,
        "manifest.json",
        lambda v: v["files"].update(
            {name.format(here=os.getcwd()): {"size": 1, "sha256": "0" * 64}}
        ),
    )
    opened = watched("predict", checkpoint, "red")
    inside = f"run/checkpoints/{STEP}/"
    assert opened
    assert all(path.startswith(inside) for path in opened), opened


def test_code_named_in_a_checkpoint_is_not_run(watched: Any, cli: Cli) -> None:
    """Row 22: `auto_map` in config.json and tokenizer files, modules beside them; nothing imported,
    no socket.
    """
    checkpoint = fresh_copy()
    for name in ("modeling_evil.py", "tokenization_evil.py", "sitecustomize.py"):
        (checkpoint / name).write_text("open('canary', 'w')")
    remote = {
        "auto_map": {
            "AutoModel": "modeling_evil.Evil",
            "AutoTokenizer": ["tokenization_evil.Evil", None],
        }
    }
    (checkpoint / "config.json").write_text(json.dumps({**remote, "trust_remote_code": True}))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(remote))
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    (checkpoint / "tokenizer.json").write_text(json.dumps({**tokenizer, **remote}))
    sign(checkpoint)
    opened = watched("predict", checkpoint, "red", "--max-tokens", "2")
    assert not [line for line in opened if " " in line], opened
    assert not Path("canary").exists()
    assert not [name for name in sys.modules if "evil" in name]
    spec = checkpoint / "spec.yaml"
    spec.write_text(spec.read_text() + "auto_map: {model: modeling_evil.Evil}\n")
    sign(checkpoint)
    result = cli("eval", checkpoint)
    assert (result.status, "auto_map: unknown option" in result.err) == (4, True)


def test_pretrained_weights_are_not_fetched_where_a_checkpoint_brings_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 22: the spec names them for the record; no network."""
    import torchvision

    from bigmodel_cli.config import DatasetInfo
    from bigmodel_cli.loaded import load_checkpoint

    info = DatasetInfo(image_shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, classes=("a", "b"))
    spec: dict[str, Any] = {
        "model": {"type": "torchvision", "name": "squeezenet1_1"},
        "data": {"type": "cifar10"},
        "task": {"type": "classification"},
        "train": {"steps": 1},
    }
    checkpoint = saved(spec, info)
    text = (checkpoint / "spec.yaml").read_text()
    (checkpoint / "spec.yaml").write_text(text.replace("weights: null", "weights: DEFAULT"))
    sign(checkpoint)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(torchvision.models, "get_model_weights", refuse)
    loaded = load_checkpoint(checkpoint, "cpu")
    assert loaded.spec.to_dict()["model"]["weights"] == "DEFAULT"
