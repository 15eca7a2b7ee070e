"""`bench SPEC --against GIT-REF`: the spec and its plugins of another commit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Result

from bigmodel_cli.bench.earlier import at_ref
from bigmodel_cli.spec import load

Cli = Callable[..., Result]
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
PLUGIN = """
from typing import Literal

from bigmodel_cli.parts.ffn import GeluFFNOptions


class Wide(GeluFFNOptions):
    type: Literal["wide_here"] = "wide_here"
    hidden: int = {hidden}


PARTS = {{"ffn": [Wide]}}
"""


def git(folder: Path, *words: str) -> None:
    """Run git there, whoever the user is."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


@pytest.fixture
def repository(decoder_spec: Path) -> Path:
    """A spec in a folder of its own in a repository, of another width in the last commit; the
    current folder is the one above.
    """
    folder = decoder_spec.parent / "kept"
    folder.mkdir()
    (folder / "net.yaml").write_text(decoder_spec.read_text())
    git(folder, "init")
    git(folder, "add", "net.yaml")
    git(folder, "commit", "-m", "one")
    git(folder, "tag", "first")
    (folder / "net.yaml").write_text(decoder_spec.read_text().replace("dim: 16", "dim: 24"))
    return folder


def test_the_spec_and_its_plugins_lie_there_as_they_were(repository: Path, tmp_path: Path) -> None:
    plugin, other = repository / "wide.py", tmp_path / "other.py"
    plugin.write_text("PARTS = {}")
    git(repository, "add", ".")
    git(repository, "commit", "-m", "two")
    kept = (repository / "net.yaml").read_text()
    plugin.write_text("PARTS = {'ffn': []}")
    other.write_text("PARTS = {}")
    (repository / "net.yaml").write_text("changed")
    with at_ref("main~0", str(repository / "net.yaml"), [plugin, other]) as found:
        assert Path(found.target).read_text() == kept
        assert Path(found.target).name == "net.yaml"
        (mine, path), (_, same) = json.loads(found.plugins)
        assert mine == f"{plugin} at main~0"
        assert Path(path).read_text() == "PARTS = {}"
        assert Path(same) == other
    assert not Path(found.target).exists()


def test_what_it_inherits_from_lies_there_as_it_was(repository: Path) -> None:
    (repository / "deep").mkdir()
    upper, middle = repository / "deep" / "upper.yaml", repository / "middle.yaml"
    upper.write_text("base: ../middle.yaml\ntrain: {batch_size: 3}\n")
    middle.write_text("base: net.yaml\ntrain: {batch_size: 5}\n")
    git(repository, "add", ".")
    git(repository, "commit", "-m", "two")
    wide = (repository / "net.yaml").read_text()
    for file in (upper, middle, repository / "net.yaml"):
        file.write_text("gone: true")
    with at_ref("HEAD", str(upper), []) as found:
        place = Path(found.target).parent.parent
        assert (place / "net.yaml").read_text() == wide
        spec = load(Path(found.target))
        assert (spec.train.batch_size, "dim: 24" in wide) == (3, True)


@pytest.mark.slow
def test_a_spec_is_compared_with_itself_in_another_commit(repository: Path, cli: Cli) -> None:
    assert repository.is_dir()
    result = cli("bench", "kept/net.yaml", "--against", "first", "--seconds", "0.1", "--json")
    assert result.status == 0, result.err
    before, now = json.loads(result.out)["benchmarks"]
    assert (before["name"], now["name"]) == ("first/net", "kept/net")
    assert before["facts"]["parameters"] < now["facts"]["parameters"]
    assert now["ratio_to_first"] == pytest.approx(now["per_second"] / before["per_second"])


@pytest.mark.slow
def test_plugins_are_those_of_the_commit_too(repository: Path) -> None:
    plugin = repository / "wide.py"
    text = (repository / "net.yaml").read_text()
    changed = re.sub(r"ffn: *(\{[^}]*\}|[^\n,}]+)", "ffn: {type: wide_here}", text)
    (repository / "net.yaml").write_text(changed)
    plugin.write_text(PLUGIN.format(hidden=8))
    git(repository, "add", ".")
    git(repository, "commit", "-m", "two")
    plugin.write_text(PLUGIN.format(hidden=80))
    command = ["bench", "kept/net.yaml", "--against", "HEAD", "--plugin", "kept/wide.py", "--json"]
    result = subprocess.run(  # a plugin joins the tables as they are made
        [sys.executable, "-m", "bigmodel_cli", *command, "--seconds", "0.1"],
        capture_output=True, text=True, check=False, cwd=repository.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    before, now = json.loads(result.stdout)["benchmarks"]
    assert before["facts"]["parameters"] < now["facts"]["parameters"]


def test_what_is_no_commit_is_refused(repository: Path, cli: Cli, tmp_path: Path) -> None:
    lacking = cli("bench", "kept/net.yaml", "--against", "second")
    assert lacking.status == 2
    assert "--against second: neither a file nor a commit, branch or tag" in lacking.err
    option = cli("bench", "kept/net.yaml", "--against=--all")
    assert option.status == 2
    (repository / "new.yaml").write_text((repository / "net.yaml").read_text())
    new = cli("bench", "kept/new.yaml", "--against", "first")
    assert new.status == 2
    assert "kept/new.yaml is not in that commit" in new.err
    outside = cli("bench", "decoder.yaml", "--against", "first")
    assert outside.status == 2
    assert "decoder.yaml is in no git repository" in outside.err
    assert cli("bench", "--against", "first").status == 2
    assert cli("bench", "kept/net.yaml", "--against", "gone.json").status == 3
    assert not list(tmp_path.glob("bigmodel-*"))
