"""Names that quote, expand, drive a terminal or are not UTF-8: of runs, specs, files, classes and
checkpoints.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import DECODER, Result, write_text
from PIL import Image
from zygote import Zygote

Cli = Callable[..., Result]
NAMES = {
    "quotes": 'it\'s "q" [x] $HOME ${X} ~ #h: c{}, 50% \\ *',
    "newline and bytes": os.fsdecode(b"a\n\xff\xe9 b"),
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_run_of_any_name_goes_through_all_commands(name: str, cli: Cli) -> None:
    """Row 86, and 85 for bytes that are not UTF-8: the run is called as its spec's file is."""
    Path("texts").mkdir()
    write_text(Path("texts", f"{name}.txt"))
    literal = "data.files=" + json.dumps(
        [f"texts/{name}.txt" if name.isprintable() else "texts/*.txt"]
    )
    Path(f"{name}.yaml").write_text(DECODER, encoding="utf-8")
    words = ["./" + f"{name}.yaml", "--set", literal, "--set", "train.validate_every=null"]
    first = cli("pretrain", *words, "--set", "train.steps=1")
    assert first.status == 0, first.err
    run = f"runs/{name}"
    assert Path(run, "status.json").exists()
    assert cli("pretrain", *words, "--set", "train.steps=1").status == 0
    assert Path(f"{run}-2", "status.json").exists()
    again = cli("pretrain", *words, "--set", "train.steps=2", "--resume")
    assert (again.status, Path(f"{run}-2/checkpoints/step-00000002").is_dir()) == (
        0,
        True,
    ), again.err
    tuned = cli("finetune", "--from", run, "--out", "tuned", "--set", "train.steps=1")
    if name == NAMES["newline and bytes"]:  # the run's spec, which names its start, is YAML
        assert (tuned.status, Path("tuned").exists()) == (2, False)
        assert (
            "is not UTF-8, and no spec can record it; rename it, or give a link to it" in tuned.err
        )
    else:
        assert tuned.status == 0, tuned.err
        assert (
            cli(
                "finetune", "--from", run, "--out", "tuned", "--set", "train.steps=2", "--resume"
            ).status
            == 0
        )
    looked = cli("eval", run, "--predictions", f"{name}.jsonl", "--json")
    assert json.loads(looked.out)["checkpoint"].encode("utf-8", "surrogateescape") == os.fsencode(
        f"{run}/checkpoints/step-00000001"
    )
    assert Path(f"{name}.jsonl").read_text(encoding="utf-8").endswith("}\n")
    assert cli("predict", run, "a small", "--max-tokens", "1").status == 0
    assert cli("attend", run, "a small", "--png", f"{name}.png").status == 0
    assert Image.open(f"{name}.png").format == "PNG"


def test_the_command_that_resumes_is_quoted(decoder_spec: Path, cli: Cli) -> None:
    """Row 86."""
    from bigmodel_cli.rundir import RunDirectory
    from bigmodel_cli.train.request import Request, resume_command

    name = NAMES["quotes"]
    with RunDirectory.open(Path("runs", name), resume=False) as directory:
        directory.begin("", 0)
        said = resume_command(Request(name), directory)
    assert shlex.split(said) == ["bigmodel", "pretrain", "--resume", "--out", f"runs/{name}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.blocks.²=1", "has one item, 0, not '²'"),
        ("model.blocks.٣=1", "has one item, 0, not '٣'"),
        ("model.blocks." + "9" * 5000 + "=1", "has one item, 0"),
        ("model.blocks.-1.repeat=1", "has one item, 0"),
        ("model.\udcff=1", "is not a valid string"),
        ("data.files=[\udcff.txt]", "not UTF-8; name a file of such a name by a glob"),
        ("model.dim.x=1", "model.dim is a value"),
        ("=1", "write --set KEY=VALUE"),
        ("train..steps=1", "write --set KEY=VALUE"),
        ("\x1b=1", "\\x1b: unknown option"),
    ],
)
def test_odd_keys_of_set_are_refused(
    change: str, message: str, decoder_spec: Path, cli: Cli
) -> None:
    """Row 86."""
    result = cli("pretrain", decoder_spec, "--dry-run", "--set", change)
    assert result.status == 2
    assert message in result.err


def test_odd_devices_are_refused(decoder_spec: Path, cli: Cli) -> None:
    """Row 86: digits that `int` does not take."""
    for device in ("cuda:²", "cuda:" + "9" * 5000):
        assert cli("pretrain", decoder_spec, "--dry-run", "--device", device).status == 2


def test_a_plugin_may_lie_under_any_path(plain_zygote: Zygote) -> None:
    """Row 86: also under one with the character that separates paths."""
    code = (
        "from typing import Literal\nfrom bigmodel_cli.config import Options\nclass"
        " Mean(Options):\n    'Each position becomes the mean.'\n    type: Literal['running_mean']"
        " = 'running_mean'\n    def build(self, place): ...\nPARTS = {'mixer': [Mean]}\n"
    )
    path = Path(f"a{os.pathsep}b '$x", "mean.py")
    path.parent.mkdir()
    path.write_text(code, encoding="utf-8")
    found = plain_zygote.run("models", "--plugin", path)
    assert "running_mean" in found.out, found.err


CLASSES = [
    "\x1b]52;c;aGk=\x07",
    "$x$",
    "_",
    "[red]x",
    "a\nb",
    "\u202eevil",
    os.fsdecode(b"\xff\xfe"),
    ":smile:",
    "d^{\\$",
]


def test_classes_of_any_name_are_shown_drawn_and_written(cnn_spec: Path, cli: Cli) -> None:
    """Rows 50, 81 and 85: in messages, tables, JSON, samples and pictures."""
    for number, name in enumerate(CLASSES):
        Path("pictures", name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (12, 12), (20 * number, 30 * index, 9)).save(
                Path("pictures", name, f"{index}.png")
            )
    words = [
        "--set",
        "data={type: image_folder, root: pictures, val_fraction: 0.5}",
        "--set",
        "train.steps=1",
    ]
    trained = cli("pretrain", cnn_spec, *words, "--set", "train.batch_size=4", "--out", "run")
    assert trained.status == 0, trained.err
    judged = cli("eval", "run", "--confusion", "confusion.png", "--predictions", "samples.jsonl")
    assert judged.status == 0, judged.err
    samples = Path("samples.jsonl").read_text(encoding="utf-8")
    assert samples.replace("\n", "").isprintable()
    assert {json.loads(line)["label"] for line in samples.splitlines()} <= set(CLASSES)
    image = f"pictures/{CLASSES[0]}/0.png"
    looked = cli("attend", "run", image, "--png", "seen.png")
    assert looked.status == 0, looked.err
    assert {Image.open(picture).format for picture in ("confusion.png", "seen.png")} == {"PNG"}
    said = cli("predict", "run", image, f"pictures/{CLASSES[6]}/0.png", "no\x1bne.png", "--top", 9)
    assert said.status == 3
    first, second, bad = [json.loads(line) for line in said.out.splitlines()]
    assert sorted(entry["label"] for entry in first["top"]) == sorted(CLASSES)
    assert (first["input"], second["input"]) == (image, "pictures/\\xff\\xfe/0.png")
    assert bad["error"] == "no\x1bne.png: no such image"
    for result in (trained, judged, looked, said):
        assert (result.out + result.err).replace("\n", "").isprintable()


def test_a_file_name_is_not_predicted_as_text(decoder_spec: Path, cli: Cli) -> None:
    """Row 100: a model of texts that is given a file's name says that it takes the words
    themselves.
    """
    assert cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=1").status == 0
    write_text(Path("small"), 200)
    result = cli("predict", "run", "small", "a", "small", "--max-tokens", "1")
    assert result.status == 0
    note = (
        "warning: input 1 (small) names a file, and this model reads the words themselves; for the"
        " lines of the file: "
    )
    assert result.err.count(note + "bigmodel predict CKPT < small\n") == 1


@pytest.mark.parametrize("name", ["x" * 300, "link", "loop"])
def test_names_that_no_file_can_have(name: str, decoder_spec: Path, cli: Cli) -> None:
    """Rows 85 and 86: too long, a link to such a name, a link to itself: a message for each place
    where a path is given.
    """
    os.symlink("y" * 300, "link")
    os.symlink("loop", "loop")
    assert cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=1").status == 0
    forms = [
        f"type: text, files: [{name}], tokenizer: {{type: characters}}, context: 8",
        f"type: text, files: [{name}/*.txt], tokenizer: {{type: characters}}, context: 8",
        f"type: table, train: [{name}], tokenizer: {{type: characters}}, text: [a], label: b",
        f"type: pairs, source: [{name}], target: [{name}], tokenizer: {{type: characters}}",
        f"type: image_folder, root: {name}",
        f"type: mnist, root: {name}",
        f"type: cifar10, root: {name}",
        f"type: parquet_images, train: [{name}]",
        f"type: audio, files: [{name}]",
        f"type: text, files: [README], tokenizer: {{type: file, path: {name}}}, context: 8",
    ]
    Path("README").write_text("some words")
    data = [f"data={{{form}}}" for form in forms]
    commands = [
        ["pretrain", name],
        ["pretrain", f"{name}.yaml"],
        ["pretrain", decoder_spec, "--out", name],
        ["pretrain", decoder_spec, "--out", f"{name}/in"],
        ["pretrain", decoder_spec, "--resume", "--out", name],
        ["pretrain", decoder_spec, "--plugin", name],
        ["pretrain", decoder_spec, "--plugin", f"{name}.py"],
        *(["pretrain", decoder_spec, "--dry-run", "--set", text] for text in data),
        ["finetune", "--from", name],
        ["eval", name],
        ["eval", f"run/{name}"],
        ["eval", "run", "--compare", name],
        ["eval", "run", "--predictions", f"{name}/a.jsonl"],
        ["eval", "--rescore", name],
        ["predict", name, "a"],
        ["attend", name, "a"],
        ["attend", "run", "a small", "--png", f"{name}/a.png"],
        ["bench", name],
        ["bench", f"{name}.yaml"],
        ["check", name],
        ["init", f"{name}/a"],
    ]
    for words in commands:
        result = cli(*words)
        assert result.status in (2, 3, 4, 5), words
        assert name[:20] in result.err, words
        assert not any(text in result.err for text in ("unknown option", "has no default")), words
    for words in (
        ["check", name],
        ["bench", name],
        ["pretrain", decoder_spec, "--resume", "--out", name],
    ):
        assert any(
            why in cli(*words).err for why in ("too long", "levels of symbolic", "leads nowhere")
        ), words
    too_long = "x" * 300 if name[0] == "x" else f"{name}/x"
    for words in (
        ["eval", "run", "--predictions", too_long],
        ["attend", "run", "a small", "--png", f"{too_long}.png"],
    ):
        assert cli(*words).status == 5, words
    link = Path("run/checkpoints/step-00000002")
    link.symlink_to(name)
    assert (
        cli("pretrain", decoder_spec, "--resume", "--out", "run", "--set", "train.steps=2").status
        == 0
    )
    assert link.is_dir()
    assert not link.is_symlink()
