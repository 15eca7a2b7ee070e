"""attend's table of views and forms: each cell is made, or refused with what works instead."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import DECODER, Result, run
from PIL import Image

from bigmodel_cli.commands.views import FORMS, HEADS, VIEWS, check_view, summary, view_of
from bigmodel_cli.errors import SpecError

Cli = Callable[..., Result]
ASKED = {HEADS: [], "--lens": ["--lens"], "--ablate": ["--ablate", "0.1"], "--over": ["--over"]}
FILES = {form: f"a.{form.removeprefix('--')}" for form in FORMS[2:-1]} | {"--data": "a.jsonl"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept two checkpoints; only to be read."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "text.txt").write_text("to be or not to be, " * 60)
    spec = DECODER.replace("text.txt", str(folder / "text.txt")).replace("steps: 12", "steps: 2")
    (folder / "kept.yaml").write_text(spec)
    sets = ["--set", "train.keep_last=9", "--set", "train.checkpoint_every=1"]
    assert run(["pretrain", str(folder / "kept.yaml"), "--out", str(folder / "run"), *sets]) == 0
    return folder / "run"


@pytest.mark.parametrize("view", list(VIEWS))
def test_each_cell_is_made_or_refused(view: str, kept: Path, cli: Cli) -> None:
    words = ["attend", kept, "to be", *ASKED.get(view, ["--diff", str(kept)])]
    made = VIEWS[view]
    shown = cli(*words)
    assert (shown.status, shown.out != "") == (0, True), shown.err
    files = [form for form in FILES if form in made]
    done = cli(*words, "--json", *(part for form in files for part in (form, FILES[form])))
    assert done.status == 0, done.err
    assert json.loads(done.out).get("files", []) == [FILES[form] for form in files]
    assert all(Path(FILES[form]).stat().st_size > 500 for form in files)
    for form in FILES.keys() - made.keys():
        refused = cli(*words, form, f"b{FILES[form]}")
        assert (refused.status, refused.out) == (2, "")
        assert f"{form} has no effect on {view}, which is shown in the terminal or" in refused.err
        assert not Path(f"b{FILES[form]}").exists()


def test_options_without_an_effect_are_refused_with_the_forms_where_they_have_one() -> None:
    check_view(HEADS, ["--png", "--data"], {"--top": True})
    for view, forms, option, fault in (
        (HEADS, ["terminal"], "--top", "it goes with --json or --html or --data"),
        (HEADS, ["--json"], "--ascii", "it goes with the terminal"),
        ("--lens", ["--png"], "--heads", "it goes with the terminal or --json"),
        ("--over", ["terminal"], "--target", "--target has no effect on --over; leave it out"),
    ):
        with pytest.raises(SpecError, match="has no effect on") as raised:
            check_view(view, forms, {"--layers": False, option: True})
        assert fault in str(raised.value)
    assert view_of(["--file", "--lens", "--png"]) == "--lens"
    assert view_of(["--png"]) == HEADS


def test_help_says_the_table(cli: Cli) -> None:
    shown = " ".join(cli("attend", "--help").out.split())
    assert all(view in shown for view in VIEWS)
    assert summary() in shown


@pytest.mark.parametrize("view", ["--lens", "--ablate", "--diff", "--over"])
def test_of_several_inputs_the_bad_one_is_named_and_the_others_are_shown(
    view: str, kept: Path, cli: Cli
) -> None:
    words = ["attend", kept, "to be", "", "or not", *ASKED.get(view, ["--diff", str(kept)])]
    found = cli(*words)
    assert found.status == 3, found.err
    assert "1 of 3 inputs could not be read; the first: input 2" in found.err
    assert found.out.strip()
    values = json.loads(cli(*words, "--json").out)
    assert [(each["number"], each["input"]) for each in values["failed"]] == [(2, "")]
    assert "empty" in values["failed"][0]["error"]
    assert (2 if view == "--ablate" else len(values["inputs"])) == 2


@pytest.mark.parametrize("view", ["--cam=gradcam", "--lens", "--ablate=auto", "--diff=vit"])
def test_a_file_is_opened_as_the_models_own_form_of_data(
    view: str, cnn_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = (
        "model={type: vit, dim: 8, patch: 4, blocks: [{mixer: {type: attention, num_heads: 2},"
        " ffn: {type: gelu}}]}"
    )
    sets = ["--set", model, "--set", "train.steps=1"]
    assert cli("pretrain", cnn_spec, *sets, "--out", "vit").status == 0
    Image.new("L", (8, 8), 90).save("grey.png")
    named, filed = (
        cli("attend", "vit", *words, view, "--json")
        for words in (["grey.png"], ["--file=grey.png"])
    )
    assert named.status == filed.status == 0, filed.err
    assert named.out == filed.out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"grey.png")))
    piped = cli("attend", "vit", "--file", "-", view)
    assert (piped.status, piped.out) == (2, "")
    assert "--file - is a text, and this model reads files" in piped.err
