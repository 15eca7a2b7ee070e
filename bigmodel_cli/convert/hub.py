"""Models by their name on the Hugging Face hub: hf://org/name, or hf://org/name@revision.

The files lie in huggingface_hub's cache (HF_HOME), which fetches what is missing unless
HF_HUB_OFFLINE is set; HF_TOKEN opens what needs a login. Only the files that are read are fetched.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.console import call
from bigmodel_cli.convert import sentences
from bigmodel_cli.convert.assets import KEPT
from bigmodel_cli.convert.folder import CONFIG, has, located, read_json
from bigmodel_cli.convert.tokenizer_files import OLDER, PIECES
from bigmodel_cli.convert.weights import INDEX, PICKLE, PICKLE_INDEX, WEIGHTS
from bigmodel_cli.data import TOKENIZER
from bigmodel_cli.errors import CheckpointError, ResourceError
from bigmodel_cli.packages import need

SCHEME = "hf:"
_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
SMALL = (
    *(CONFIG, TOKENIZER, *KEPT, *OLDER, *PIECES, INDEX, PICKLE_INDEX),
    *(sentences.MODULES, sentences.LENGTH, sentences.PROMPTS),
)


def is_hub(path: Path) -> bool:
    """Whether a path names a model of the hub."""
    return path.parts[:1] == (SCHEME,)


def recorded(given: Path, found: Path) -> str:
    """What a run records of the checkpoint that it began with: of a model of the hub the commit."""
    if not is_hub(given):
        return str(found)
    return f"{SCHEME}//{_split(given)[0]}@{found.name}"


def fetched(path: Path) -> Path:
    """The folder of a model of the hub. Raises `CheckpointError` naming what is missing."""
    name, revision = _split(path)
    folder = _snapshot(name, revision, [*SMALL])
    if not has(folder, CONFIG):
        raise _missing(name, revision, CONFIG)
    if has(folder, sentences.MODULES):
        more = [f"{path}/{CONFIG}" for path in sentences.module_folders(folder) if path]
        folder = _with(folder, name, more)
        if absent := [n for n in more if not os.path.exists(folder / n)]:
            raise _missing(name, revision, absent[0])
    for index, single in ((INDEX, WEIGHTS), (PICKLE_INDEX, PICKLE)):
        wanted = [single]
        if has(folder, index):
            mapped = read_json(folder, index).get("weight_map")
            named = mapped.values() if isinstance(mapped, dict) else ()
            wanted = sorted({n for n in named if isinstance(n, str)})
        folder = _with(folder, name, wanted)
        absent = [n for n in wanted if not os.path.exists(folder / n)]
        if wanted and not absent:
            return folder
        if has(folder, index):
            raise _missing(name, revision, absent[0] if absent else index)
    raise _missing(name, revision, WEIGHTS)


def named(given: Path, found: Path) -> Path:
    """The folder, which messages call as the hub does, and the blobs in it by their files' names.

    A blob that is the file of two models has the name of the one that was opened last.
    """
    name = recorded(given, found)
    for folder, folders, files in os.walk(found):
        for file in (*folders, *files):
            blob = located(Path(folder), file)
            if blob.parent != Path(folder):
                call(blob, f"{name}/{(Path(folder) / file).relative_to(found)}")
    call(found, name)
    return found


def _split(path: Path) -> tuple[str, str | None]:
    text = "/".join(path.parts[1:])
    found = _ID.fullmatch(text)
    if found is None or ".." in text:
        raise CheckpointError(
            f"{SCHEME}//{text}: a model of the hub is written hf://organisation/name, or"
            " hf://organisation/name@revision"
        )
    return found[1], found[2]


def _with(folder: Path, name: str, files: list[str]) -> Path:
    """The folder of a commit with these files too, so that all are of one commit.

    Where they are there the hub is not asked once more.
    """
    if all(os.path.exists(folder / file) for file in files):
        return folder
    return _snapshot(name, folder.name, files)


def _snapshot(name: str, revision: str | None, files: list[str]) -> Path:
    """The folder of a revision, with those of the files that there are."""
    hub = _library()
    if not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
    hub.utils.logging.set_verbosity_error()  # "no files matched": that is seen here
    patterns = [re.sub(r"([*?\[])", r"[\1]", name) for name in files]
    try:
        found = hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
    except hub.errors.LocalEntryNotFoundError:
        raise _missing(name, revision, files[0]) from None
    except hub.errors.GatedRepoError:
        raise CheckpointError(
            f"{SCHEME}//{name}: needs its publisher's consent; ask for it at"
            f" https://huggingface.co/{name}, and set HF_TOKEN"
        ) from None
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError):
        raise CheckpointError(
            f"{_called(name, revision)}: the hub has no such model and revision, or shows it only"
            " to those who have access (HF_TOKEN)"
        ) from None
    except Exception as error:  # of the hub's library: the network, a proxy, a full disk
        reason = clipped(str(error).partition("\n")[0] or type(error).__name__)
        raise ResourceError(f"{_called(name, revision)}: cannot be fetched: {reason}") from None
    return Path(found)


def _library() -> Any:
    """huggingface_hub, with the modules that are used of it."""
    for module in ("constants", "errors", "utils"):
        need(f"huggingface_hub.{module}", "hub", "a model of the hub")
    return need("huggingface_hub", "hub", "a model of the hub")


def _called(name: str, revision: str | None) -> str:
    return f"{SCHEME}//{name}{f'@{revision}' if revision else ''}"


def _missing(name: str, revision: str | None, file: str) -> CheckpointError:
    hub = _library()
    cache = Path(hub.constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    why = (
        "HF_HUB_OFFLINE is set"
        if hub.constants.HF_HUB_OFFLINE
        else "the hub cannot be reached, or has no such file"
    )
    command = f"hf download {name}{f' --revision {revision}' if revision else ''}"
    return CheckpointError(
        f"{_called(name, revision)}: {file} is not in the cache {cache}, and {why}; fetch it where"
        f" there is a network ({command}), or name a folder that has the files"
    )
