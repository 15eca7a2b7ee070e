"""`bigmodel options`: what it shows is what the spec takes, fast, and never of another version of
the files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from conftest import ROOT, Result

from bigmodel_cli.config import Options
from bigmodel_cli.errors import SpecError
from bigmodel_cli.options import cache, description, find, table
from bigmodel_cli.options.tree import Tree, classes_of
from bigmodel_cli.spec import check
from bigmodel_cli.yaml_source import parse_yaml

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The description, made anew."""
    return description(plugins=True)


def inner(text: str, path: str) -> Any:
    """The value at a path of a YAML text; of lists their first item, as long as there is more to
    go.
    """
    value = parse_yaml(text.encode(), "example").plain()
    for name in path.split("."):
        value = value[0] if isinstance(value, list) else value
        value = value[name]
    return value


def classes(above: type[Options] = Options) -> Iterator[type[Options]]:
    """All classes of options that there are."""
    for options in above.__subclasses__():
        yield options
        yield from classes(options)


def test_every_example_is_valid(known: dict[str, Any]) -> None:
    """Typed by the classes themselves."""
    by_name = {options.__name__: options for options in classes()}
    tried = set()
    for path, words in known["paths"].items():
        for word in [*words, None]:
            found = find(known, path, word)
            holder, name = found.holders[0][0], path.rpartition(".")[2]
            if path == "base" or (holder, name, word) in tried:
                continue
            tried.add((holder, name, word))
            value = inner(table.example(known, found), path)
            item = value[0] if isinstance(value, list) and found.classes else value
            if word is not None:
                assert item["type"] == word
            if found.classes:
                assert any(_fits(by_name[c], item) for c in found.classes), f"{path} {word}: {item}"
            else:
                assert _fits(by_name[holder].model_fields[name].rebuild_annotation(), item), (
                    f"{path}: {item}"
                )
    assert len(tried) > 300


def _fits(kind: Any, value: Any) -> bool:
    with contextlib.suppress(pydantic.ValidationError):
        pydantic.TypeAdapter(kind).validate_python(value, strict=True)
        return True
    return False


def test_the_example_without_a_path_is_a_whole_spec(known: dict[str, Any]) -> None:
    assert check(parse_yaml(table.example(known, find(known, "", None)).encode(), "example"))


def test_a_table_has_name_type_default_bounds_and_description(cli: Cli) -> None:
    out = cli("options", "model.blocks.0.mixer", "attention").out
    row = next(line for line in out.splitlines() if line.startswith("window"))
    cells = re.split(" {2,}", row)
    assert cells[:4] == ["window", "whole number or null", "null", "> 0, <= 1,000,000,000"]
    assert cells[4].startswith("positions seen, the own one included")
    assert (
        next(line for line in out.splitlines() if line.startswith("num_heads")).split()[3]
        == "required"
    )
    assert "\x1b" not in out


def test_options_with_several_types_list_them_and_json_says_the_same(cli: Cli) -> None:
    listed = json.loads(cli("options", "train.optimizer", "--json").out)
    assert {"adamw", "sgd", "muon"} <= listed["types"].keys()
    options = json.loads(cli("options", "train.optimizer", "adamw", "--json").out)["options"]
    by_name = {option["name"]: option for option in options}
    assert (by_name["lr"]["default"], by_name["lr"]["bounds"]) == ("0.001", "> 0, <= 1,000,000")
    alone = json.loads(cli("options", "train.seed", "--json").out)["options"]
    assert [(option["name"], option["default"]) for option in alone] == [("seed", "0")]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("train.optimiser", "did you mean train.optimizer?"),
        ("train.stepz", "did you mean train.steps?"),
        ("weight_decay", "did you mean train.optimizer.weight_decay"),
        ("learning_rate", "did you mean train.optimizer.lr"),  # as other tools call it
        ("attention", "did you mean model.blocks.mixer attention"),
        ("model.blocks.mixer atention", "did you mean attention?"),
        ("train.steps adamw", "train.steps has no types"),
        ("xyzzy", "there are base, model, data, task, train, init"),
    ],
)
def test_an_unknown_option_is_refused_with_suggestions(words: str, meant: str, cli: Cli) -> None:
    result = cli("options", *words.split())
    assert (result.status, result.out) == (2, "")
    assert meant in result.err


def test_an_unknown_option_of_a_spec_names_the_command_that_lists_them(cli: Cli) -> None:
    Path("a.yaml").write_text(
        "train: {qqqqqqq: 1}\nmodel: {type: decoder, blocks: [{mixer: {type: attention, zzzzzz:"
        " 2}}]}\nyyyyyyy: 3\n"
    )
    train, mixer, top = [
        line for line in cli("pretrain", "a.yaml").err.splitlines() if "unknown option" in line
    ]
    assert train.endswith("; see `bigmodel options train`")
    assert mixer.endswith("; see `bigmodel options model.blocks.mixer attention`")
    assert top.endswith("; see `bigmodel options`")


def test_every_option_of_the_schema_is_under_a_path(known: dict[str, Any]) -> None:
    """Counted in the schema itself, without the walk from its top."""
    tree = Tree(known["schema"])
    names = {
        name for cls in known["schema"]["$defs"].values() for name in cls.get("properties", {})
    } - {"type"}
    assert names <= {path.rpartition(".")[2] for path in known["paths"]}
    assert all(
        name in tree.classes
        for v in tree.classes.values()
        for o in v["properties"].values()
        for name in classes_of(o)
    )


def test_the_description_is_cached_until_a_file_of_the_package_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package, made = tmp_path / "package", list[int]()
    (package / "inner").mkdir(parents=True)
    (package / "inner/a.py").write_text("1")
    monkeypatch.setattr(cache, "PACKAGE", package)
    monkeypatch.setattr(cache, "_made", lambda: {"made": made.append(1) or len(made)})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert [description()["made"], description()["made"]] == [1, 1]
    before = (package / "inner/a.py").stat()
    (package / "inner/a.py").write_text("2")
    # size and time as before
    os.utime(package / "inner/a.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert description()["made"] == 2
    file = next((tmp_path / "cache/bigmodel/options").iterdir())
    file.write_text(file.read_text()[:20])
    assert [description()["made"], description(plugins=True)["made"], description()["made"]] == [
        3,
        4,
        3,
    ]
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert [description()["made"], description()["made"]] == [5, 6]


def test_parts_of_plugins_are_among_the_options(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from typing import Literal\nfrom pydantic import Field\nfrom bigmodel_cli.config import"
        ' Options\nclass Mean(Options):\n    """The mean."""\n    type: Literal["my_mean"] ='
        ' "my_mean"\n    reach: int = Field(description="how far")\n    def build(self, place):'
        ' ...\nPARTS = {"mixer": [Mean]}\n'
    )
    script = (
        "import sys\nfrom bigmodel_cli.__main__ import run\n"
        f"status = run(['options', 'model.blocks.mixer', 'my_mean', '--plugin', {str(plugin)!r}])\n"
        "assert 'torch' not in sys.modules\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.search("^reach +whole number +required +how far$", done.stdout, re.MULTILINE)
    assert (
        yaml.safe_load(done.stdout.partition("For example:\n")[2].strip())["model"]["blocks"][0][
            "mixer"
        ]["reach"]
        == 1
    )


@pytest.mark.parametrize("words", [[], ["train"], ["model.blocks.mixer", "attention", "--json"]])
def test_the_answer_is_the_same_with_and_without_typer(
    words: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bigmodel_cli.__main__ import _run_command, _show_options

    assert _show_options(["options", *words])
    light = capsys.readouterr().out
    assert _run_command(["options", *words]) == 0
    assert light == capsys.readouterr().out != ""
    assert not any(_show_options(["options", *more]) for more in (["-h"], ["a", "b", "c"], ["--x"]))


def test_the_command_imports_neither_typer_nor_torch_nor_the_spec(cache: Path) -> None:
    description()
    script = (
        "import sys\nfrom bigmodel_cli.__main__ import run\n"
        "assert run(['options', 'model.blocks.mixer', 'attention']) == 0\n"
        "assert not {'typer', 'torch', 'pydantic', 'yaml', 'numpy', 'rich',"
        " 'bigmodel_cli.spec'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("columns", [110, 70])
def test_a_terminal_gets_a_table_as_wide_as_it_is_or_paragraphs(
    columns: int, known: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    text = table.to_text(known, find(known, "train", None)).partition("For example")[0]
    assert max(map(len, text.splitlines()[3:])) <= columns
    assert ("─" in text) == (columns == 110)


def test_unknown_types_of_a_path_with_types_in_it(known: dict[str, Any]) -> None:
    assert find(known, "model.cnn.layers.0.conv.kernel", None).path == "model.layers.kernel"
    with pytest.raises(SpecError, match=r"did you mean model\.blocks\.mixer\.window or model"):
        find(known, "model.blocks.ffn.window", None)
