"""Which files a spec names: what is passed over, what links lead to, globs, variables, and how it
is said.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from bigmodel_cli.config import DatasetInfo, MelConfig
from bigmodel_cli.data import open_data, prepare_image
from bigmodel_cli.data.audio.split import read_sound
from bigmodel_cli.data.files import expand, find_files, find_named
from bigmodel_cli.data.folders import folders_in, walk
from bigmodel_cli.data.image.sources import read_mnist
from bigmodel_cli.data.text.documents import TextOptions
from bigmodel_cli.data.text.tokenizer_fit import Corpora, FileOptions, fit_tokenizer
from bigmodel_cli.errors import BigmodelError, DataError, SpecError

HERE = Path()
HIDDEN = (
    ".hidden.txt",
    "._a.txt",
    "__MACOSX/a.txt",
    ".ipynb_checkpoints/a.txt",
    "sub/.git/deep/b.txt",
    "Thumbs.db",
    "desktop.ini",
)


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)


def named(*names: str, endings: tuple[str, ...] = (".txt", ".db", ".ini")) -> list[str]:
    return [path.as_posix() for path in find_files(names, HERE, "data.files", endings)]


def test_system_files_are_skipped_unless_named() -> None:
    touch(
        *(f"top/{name}" for name in HIDDEN),
        "top/a.txt",
        "top/sub/B.TXT",
        "top/sub/c.Txt",
        "top/d.dat",
    )
    wanted = ["top/a.txt", "top/sub/B.TXT", "top/sub/c.Txt"]
    assert named("top") == wanted
    assert named("top/**/*.[tT]*") == [*wanted]
    assert named("top/*") == ["top/a.txt", "top/d.dat"]
    assert named("top/.hidden.txt", "top/__MACOSX") == ["top/.hidden.txt", "top/__MACOSX/a.txt"]
    assert named("top/.ipynb*/*.txt", "top/__MACOSX/*.txt") == [
        "top/.ipynb_checkpoints/a.txt",
        "top/__MACOSX/a.txt",
    ]
    assert [p.name for p in folders_in(Path("top"))] == ["sub"]
    touch(".above/a.txt")  # what a folder lies in does not hide it
    assert [p.as_posix() for p in walk(Path(".above"))] == [".above/a.txt"]


def test_links_are_followed_once(capsys: pytest.CaptureFixture[str]) -> None:
    touch("top/real/a.txt", "top/b.txt", "other/deep/c.txt", "other/d.txt")
    Path("top/alias").symlink_to("real")  # before "real" by name
    Path("top/real/loop").symlink_to("../..")  # the folder that all lie in
    Path("top/aa.txt").symlink_to("b.txt")
    Path("top/far").symlink_to(Path("other").absolute())
    Path("top/further").symlink_to(Path("other/deep").absolute())
    found = named("top")
    assert sorted(Path(p).resolve().relative_to(Path.cwd()).as_posix() for p in found) == [
        "other/d.txt", "other/deep/c.txt", "top/b.txt", "top/real/a.txt"
    ]  # fmt: skip
    # each by its own name where it has one there
    assert {"top/b.txt", "top/real/a.txt"} <= set(found)
    assert "to what is below it already, or above it" in capsys.readouterr().err


def test_a_file_and_a_folder_reached_by_two_links_count_once() -> None:
    touch("store/x/one.txt", "top/z.txt")
    Path("top/l1.txt").symlink_to("../store/x/one.txt")
    Path("top/l2").symlink_to("../store")
    Path("top/l3").symlink_to("../store/x")
    assert named("top") == ["top/l1.txt", "top/z.txt"]
    os.link("top/z.txt", "top/zz.txt")  # a hard link is a file of its own
    assert named("top") == ["top/l1.txt", "top/z.txt", "top/zz.txt"]


@pytest.mark.parametrize("name", ["top", "top/gone.txt", "top/*.txt", "top/**"])
def test_a_link_to_nowhere_is_an_error_with_its_name(name: str) -> None:
    touch("top/a.txt")
    Path("top/.gone").symlink_to("nowhere")  # hidden: nobody asks for it
    assert named("top") == ["top/a.txt"]
    Path("top/gone.txt").symlink_to("nowhere")
    with pytest.raises(
        DataError, match=r"^top/gone.txt: a link to nowhere, which is not there; mend it"
    ):
        named(name)


def test_a_file_named_twice_is_used_once_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    touch("top/a.txt", "top/b.txt")
    Path("side").symlink_to("top")
    assert named("top/b.txt", "side", "top/*.txt") == ["top/b.txt", "side/a.txt"]
    assert (
        "data.files: 3 files are named or linked more than once, and taken once"
        in capsys.readouterr().err
    )


def test_a_glob_takes_endings_in_any_case() -> None:
    for name in ("a.txt", "B.TXT", "C.Txt.GZ", "d.tsv", "e[.txt", "sub/F.TXT"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)

    def found(pattern: str) -> list[str]:
        return [str(p) for p in find_files([pattern], Path(), "data.files", (".txt",))]

    assert found("*.txt") == ["B.TXT", "a.txt", "e[.txt"]
    assert found("*.txt.gz") == ["C.Txt.GZ"]
    assert sorted(found("**/*.TXT")) == ["B.TXT", "a.txt", "e[.txt", "sub/F.TXT"]
    with pytest.raises(DataError, match="no such file"):
        found("b.txt")  # a name is a name


def test_file_names_with_glob_characters_and_dollar_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    touch("a[1]*/x.txt", "a[1]*/y.dat", "cost $HOME/~/it's.txt", "a1b/z.txt", "deep/$X/w.txt")
    assert named("a[1]*/*.txt") == ["a[1]*/x.txt"]
    assert named("a[1]*") == ["a[1]*/x.txt"]
    assert named("a[1]?/*.txt") == ["a1b/z.txt"]
    assert named("cost $HOME/~/*.txt") == ["cost $HOME/~/it's.txt"]
    monkeypatch.setenv("X", "elsewhere")
    assert named("deep/$X/w.txt") == ["deep/$X/w.txt"]  # there is one of that very name


def test_home_and_environment_variables_in_paths(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    touch("home/t.txt", "data/set/u.txt")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PART", "set")
    found = find_files(
        ["~/t.txt", "~", "$DATA/*/u.txt", "${DATA}/${PART}/u.txt", "data/$PART"],
        HERE,
        "o",
        (".txt",),
    )
    assert found == (tmp_path / "home/t.txt", tmp_path / "data/set/u.txt")
    assert expand("$DATA/new", HERE, "data.root") == tmp_path / "data/new"
    assert expand("new/place", Path("base"), "data.root") == Path("base/new/place")
    with pytest.raises(
        SpecError, match=r"^data.root: \$DATA/\$NOT_SET_1/x: the variable NOT_SET_1 is not set$"
    ):
        expand("$DATA/$NOT_SET_1/x", HERE, "data.root")
    with pytest.raises(SpecError, match=r"there is no user 'nobody-of-that-name'"):
        expand("~nobody-of-that-name/x", HERE, "data.root")


def test_patterns_without_a_match_report_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch("only/folders/a.txt", "mixed/f/a.txt", "mixed/b.txt")
    for name in ("no.txt", "only/*.none"):
        message = f"data.files: {name}: no such file; it was looked for as {tmp_path / name}"
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            named(name)
    with pytest.raises(
        DataError,
        match=(
            r"^data.files: only/\*: matches only folders, the first only/folders; end it with /\*\*"
        ),
    ):
        named("only/*")
    with pytest.raises(DataError, match=r"the folder only holds no file that ends in .wav, .flac"):
        named("only", endings=(".wav", ".flac"))
    assert named("mixed/*") == ["mixed/b.txt"]
    assert (
        "data.files: mixed/*: 1 folder is matched too and left out, the first mixed/f"
        in capsys.readouterr().err
    )
    os.mkfifo("pipe.txt")
    with pytest.raises(DataError, match=r"pipe.txt: neither a file nor a folder"):
        named("pipe.txt")


def _idx() -> None:
    Path("data/MNIST/raw").mkdir(parents=True)
    os.mkfifo("data/MNIST/raw/train-images-idx3-ubyte")
    read_mnist(Path("data"), "MNIST", False, ("train",))


def _packed_idx() -> None:
    Path("data/MNIST/raw").mkdir(parents=True)
    os.mkfifo("data/MNIST/raw/train-images-idx3-ubyte.gz")
    read_mnist(Path("data"), "MNIST", False, ("train",))


def _image() -> None:
    os.mkfifo("pipe.png")
    prepare_image(Path("pipe.png"), DatasetInfo(image_shape=(1, 4, 4)))


def _recording() -> None:
    os.mkfifo("pipe.wav")
    read_sound(
        Path("pipe.wav"),
        DatasetInfo(image_shape=(1, 4, 4), sound=MelConfig(8000, 200, 80, 4, 20.0, 4000.0, 800)),
    )


def _tokenizer() -> None:
    os.mkfifo("pipe.json")
    Path("text.txt").write_text("some text\n" * 100)
    tokenizer = {"type": "file", "path": "pipe.json"}
    options = TextOptions.model_validate(
        {"files": ["text.txt"], "context": 8, "tokenizer": tokenizer}
    )
    open_data(options, base=Path(), say=print)


@pytest.mark.parametrize(
    ("read", "status"), [(_idx, 3), (_packed_idx, 3), (_image, 3), (_recording, 3), (_tokenizer, 2)]
)
def test_a_pipe_in_the_place_of_a_file_is_refused_and_never_waited_for(
    read: Callable[[], None], status: int
) -> None:
    """Row 77, in the data: nobody writes to the pipe, so that reading it would never end."""
    signal.alarm(20)  # ends the process, should it wait after all
    try:
        with pytest.raises(
            BigmodelError, match="a pipe, and not a file; write what it gives to a file"
        ) as caught:
            read()
    finally:
        signal.alarm(0)
    assert caught.value.status == status


def test_each_file_has_its_name_below_the_folder_that_was_named() -> None:
    touch("base/top/in/a.txt", "base/top/b.txt")
    found = find_named(["top", "../base/top/in/*"], Path("base"), "data.files", (".txt",))
    assert found == [(Path("base/top/b.txt"), "b.txt"), (Path("base/top/in/a.txt"), "in/a.txt")]
    os.chdir("base/top")
    assert find_named([""], HERE, "data.files", (".txt",)) == [
        (Path("b.txt"), "b.txt"),
        (Path("in/a.txt"), "in/a.txt"),
    ]


def test_the_walk_equals_the_plain_one_of_the_library(tmp_path: Path) -> None:
    touch(
        *(
            f"t/{a}{b}/{c}.{e}"
            for a in "xY"
            for b in range(3)
            for c in "ab"
            for e in ("txt", "TXT", "md")
        ),
        "t/x0.txt",
    )
    plain = sorted(p for p in Path("t").rglob("*") if p.is_file() and p.suffix.lower() == ".txt")
    assert walk(Path("t"), (".txt",)) == plain
    assert len(plain) == 25
    assert find_files(["t/**/*.txt"], HERE, "o", ()) == tuple(plain)


def test_a_start_and_a_tokenizer_named_by_a_variable(
    cnn_spec: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cli("pretrain", cnn_spec, "--out", "run", "--set", "train.steps=1").status == 0
    monkeypatch.setenv("PLACE_1", str(tmp_path))
    start = (
        "pretrain",
        cnn_spec,
        "--set",
        "train.steps=1",
        "--set",
        "init.checkpoint=$PLACE_1/run",
        "--out",
    )
    assert f"from {tmp_path / 'run'}" in cli(*start, "again").err
    monkeypatch.delenv("PLACE_1")
    refused = cli(*start, "third")
    assert refused.status == 2
    assert refused.err.endswith(
        "bigmodel: init.checkpoint: $PLACE_1/run: the variable PLACE_1 is not set\n"
    )
    with pytest.raises(
        SpecError, match=r"^data.tokenizer.path: \$PLACE_1/t.json: the variable PLACE_1 is not set"
    ):
        fit_tokenizer(
            FileOptions(type="file", path="$PLACE_1/t.json"), Corpora(None, {}), print, None
        )
