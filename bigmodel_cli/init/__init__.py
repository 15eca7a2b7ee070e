"""`bigmodel init --data`: a first spec for a user's own data, which is inspected by the rooms that
read it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from string import Template

from bigmodel_cli.console import one_line
from bigmodel_cli.data.audio.recordings import ARCHIVES
from bigmodel_cli.data.audio.sound import ENDINGS as SOUNDS
from bigmodel_cli.data.files import check_plain
from bigmodel_cli.data.folders import walk
from bigmodel_cli.data.image.files import ENDINGS as IMAGES
from bigmodel_cli.data.reading import plain_name
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.init.draft import Draft, Wanted, listed
from bigmodel_cli.init.draft import paths as spelled
from bigmodel_cli.init.images import of_images
from bigmodel_cli.init.like import task_of, with_structure
from bigmodel_cli.init.pairs import of_pairs, sides_of
from bigmodel_cli.init.sounds import of_sounds
from bigmodel_cli.init.tables import of_tables
from bigmodel_cli.init.tagged import ENDINGS as TAGGED
from bigmodel_cli.init.tagged import is_tagged, of_tagged
from bigmodel_cli.init.texts import of_texts
from bigmodel_cli.spec import check
from bigmodel_cli.yaml_source import parse_yaml

FORMS: dict[
    str, tuple[tuple[str, ...], Callable[[Sequence[Path], Sequence[Path], Wanted], Draft]]
] = {
    "recordings": (SOUNDS + ARCHIVES, of_sounds),
    "images": (IMAGES, of_images),
    "tagged sentences": (TAGGED, of_tagged),
    "tables": ((".csv", ".tsv", ".parquet", ".jsonl"), of_tables),
    "texts": ((".txt", ".md", ".rst", ".py"), of_texts),
}
"""Forms of data: endings of their files, and the function that drafts a spec; in a mixed folder,
the first form counts.
"""


def draft(paths: Sequence[Path], wanted: Wanted) -> Draft:
    """A spec for the data in these files and folders.

    Raises `DataError` and `SpecError` where none can be made.
    """
    for path in paths:
        if not path.exists():
            raise SpecError(f"--data {path}: no such file or folder")
        check_plain(path, SpecError)
    spelled(paths)
    files = [file for path in paths for file in (walk(path) if path.is_dir() else [path])]
    if not files:
        raise DataError(f"--data {paths[0]}: no file in it")
    if sides_of(paths, files):
        return of_pairs(paths, files, wanted)
    kinds = Counter(map(_form, files))
    there = [form for form in FORMS if kinds[form]]
    if not there:
        endings = ", ".join(sorted({file.suffix or "no ending" for file in files})[:5])
        known = "; ".join(f"{form}: {', '.join(ends[:4])}" for form, (ends, _) in FORMS.items())
        raise DataError(
            f"--data {paths[0]}: {len(files):,} files ({endings}), none of which is known by its"
            f" ending; {known}"
        )
    if wanted.given and there[0] != "tables":
        raise SpecError(f"{wanted.given} has no effect on {there[0]}; leave it out")
    made = FORMS[there[0]][1](paths, [file for file in files if _form(file) == there[0]], wanted)
    left = Counter(
        _form(file) or "other files"
        for file in files
        if _form(file) != there[0] and file not in made.used
    )
    others = listed(f"{count:,} {form}" for form, count in left.items())
    return made.told(f"left out, since the {there[0]} count: {others}") if others else made


def _form(file: Path) -> str:
    if is_tagged(file):
        return "tagged sentences"
    names = (file.name.lower(), plain_name(file))
    return next(
        (form for form, (endings, _) in FORMS.items() if any(n.endswith(endings) for n in names)),
        "",
    )


def write_out(made: Draft, path: Path, like: str | None = None) -> str:
    """The text of the spec, for a file of that path; with the structure of a sample, where one is
    named. It is checked.
    """
    template = resources.files("bigmodel_cli") / "templates" / "data" / f"{made.template}.yaml"
    values = {"file": one_line(str(path)), "run": one_line(f"runs/{path.stem}"), **made.values}
    text = Template(template.read_text(encoding="utf-8")).substitute(values)
    check(parse_yaml(text.encode(), str(path)))
    return with_structure(text, like, path) if like else text


__all__ = ["Draft", "Wanted", "draft", "task_of", "write_out"]
