"""How a folder of the sentence-transformers library makes a vector of a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints.files import MOST_JSON, clipped, parse_json
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.folder import ANOTHER, has, is_folder, read, read_json
from bigmodel_cli.errors import CheckpointError

MODULES, LENGTH = "modules.json", "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
BUILT = ("Transformer", "Pooling", "Normalize")
POOLS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


@dataclass(frozen=True)
class Sentences:
    """`pool` is "cls" or "mean", None where nothing says it; `longest` counts tokens.

    `prompt` is what every text begins with.
    """

    pool: str | None = None
    normalised: bool = False
    longest: int | None = None
    prompt: str = ""
    lower_case: bool = False

    def prepared(self, text: str) -> str:
        """A text as the network reads it."""
        if self.pool is None:
            return text
        text = f"{self.prompt}{text}".strip()
        return text.lower() if self.lower_case else text


def sentences(folder: Path) -> Sentences:
    """What the folder's modules.json says; without one, nothing.

    Raises `CheckpointError` for a damaged file, and for a module that is not built.
    """
    if not is_folder(folder) or not has(folder, MODULES):
        return Sentences()
    modules = _modules(folder)
    kinds = [kind.rpartition(".")[2] for kind, _ in modules]
    if tuple(kinds) not in (BUILT, BUILT[:2]):
        raise CheckpointError(
            f"{folder / MODULES}: {', '.join(map(clipped, kinds))}: not built; what is:"
            f" {', '.join(BUILT)}, or the first two"
        )
    own = Config(read_json(folder, LENGTH) if has(folder, LENGTH) else {}, str(folder / LENGTH))
    prompt = _prompt(folder)
    return Sentences(
        _pool(folder / modules[1][1], bool(prompt)),
        len(modules) == len(BUILT),
        own.maybe("max_seq_length", int),
        prompt,
        own.get("do_lower_case", bool, False),
    )


def _prompt(folder: Path) -> str:
    """What texts begin with where nobody chooses. Raises `CheckpointError`."""
    values = read_json(folder, PROMPTS) if has(folder, PROMPTS) else {}
    own = Config(values, str(folder / PROMPTS))
    own.only("truncate_dim", None)
    chosen, prompts = own.maybe("default_prompt_name", str), own.maybe("prompts", dict) or {}
    if chosen is None:
        return ""
    if not isinstance(prompts.get(chosen), str):
        raise CheckpointError(
            f"{own.file}: default_prompt_name: prompts has no {clipped(repr(chosen))}; {ANOTHER}"
        )
    return str(prompts[chosen])


def module_folders(folder: Path) -> list[str]:
    """The folders of the modules that have files of their own, but for the network.

    Raises `CheckpointError` for a damaged file.
    """
    return [path for kind, path in _modules(folder) if kind.rpartition(".")[2] == BUILT[1]]


def _modules(folder: Path) -> list[tuple[str, str]]:
    """(type, folder) of each module. Raises `CheckpointError`."""
    try:
        found: Any = parse_json(read(folder, MODULES, MOST_JSON))
        modules = [(str(module["type"]), str(module["path"])) for module in found]
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f"{folder / MODULES}: damaged; {ANOTHER}") from None
    for _, path in modules:
        if path != Path(path).name:  # of a folder beside it
            raise CheckpointError(f"{folder / MODULES}: {clipped(repr(path))}: {ANOTHER}")
    return modules


def _pool(folder: Path, prompted: bool) -> str:
    """Which vectors are taken. Raises `CheckpointError` for a way that is not built."""
    if folder.is_symlink():
        raise CheckpointError(f"{folder}: a link, where a folder is expected; {ANOTHER}")
    values = read_json(folder, "config.json")
    if prompted and values.get("include_prompt") is False:
        raise CheckpointError(
            f"{folder / 'config.json'}: include_prompt: false is not built; what is: true"
        )
    chosen = [n for n, on in values.items() if n.startswith("pooling_mode") and on is True]
    if isinstance(values.get("pooling_mode"), str):  # of newer versions
        chosen = [f"pooling_mode_{values['pooling_mode']}_token"]
        chosen += [f"{chosen[0]}s"] if chosen[0] not in POOLS else []
    known = [POOLS[name] for name in chosen if name in POOLS]
    if len(known) != 1 or (len(chosen) > 1 and "pooling_mode" not in values):
        raise CheckpointError(
            f"{folder / 'config.json'}: {', '.join(map(clipped, chosen)) or 'no pooling_mode'}:"
            " not built; what is: the mean of tokens, or the first one"
        )
    return known[0]
