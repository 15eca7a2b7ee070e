"""The house stays as it is planned: imports go down only, the options are documented, the sample
specs live.
"""

from __future__ import annotations

import ast
import functools
import gzip
import itertools
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Result

from bigmodel_cli.catalog import catalog
from bigmodel_cli.data.text import docstrings

PACKAGE = ROOT / "bigmodel_cli"
STOREYS = (
    {
        "config",
        "differences",
        "disk",
        "errors",
        "failpoints",
        "heeding",
        "lazy",
        "names",
        "old_names",
        "yaml_scalars",
        "yaml_syntax",
    },
    {
        "cache_home",
        "console",
        "device",
        "distill_options",
        "distributed",
        "draw",
        "modes",
        "outputs",
        "packages",
        "plugin_faults",
        "products",
        "parallel",
        "roles",
        "schedules",
        "shares",
        "yaml_source",
    },
    {"tensor_parallel"},
    {"parted"},
    {"expert_parallel", "sharding"},
    {"sharded_shares"},
    {
        "checkpoints",
        "explain",
        "logits",
        "optim",
        "parts",
        "pictures",
        "plugins",
        "progress",
        "trackers",
    },
    {
        *("adapters", "data", "inherit", "metrics", "models", "overrides", "recipe", "rundir"),
        *("context_parallel", "start_options"),
    },
    {"convert", "depths", "frozen", "labels", "runs", "tasks"},
    {"numbers", "tables"},
    {"promises", "spec"},
    {"adapting", "taken_layers"},
    {"assemble", "catalog"},
    {"init", "loaded", "options"},
    {"export", "generation", "imported"},
    {"embed", "evaluation", "merging", "predict"},
    {"attend", "averaging"},
    {"train"},
    {"bench"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
"""The rooms from the ground up: each knows rooms of lower storeys alone."""
FLOORS = {room: number for number, rooms in enumerate(STOREYS) for room in rooms}
GROUND = {*STOREYS[0], *STOREYS[1]} - {"schedules"} | {"pictures", "plugins", "progress"}
"""Rooms without parts of a model, tasks or data, whose classes any room may look at."""
STRANGERS = {"adapters", "models", "data", "tasks", "checkpoints"}
"""Rooms that do not know one another."""


def imports(path: Path) -> Iterator[str]:
    """The rooms of this package that a file imports, at its top or inside a function."""
    for node in ast.walk(trees()[path]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bigmodel_cli"):
            parts = (node.module or "").split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (
                a.name.split(".")[1] for a in node.names if a.name.startswith("bigmodel_cli.")
            )


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """The syntax tree of each file of the package."""
    return {p: ast.parse(p.read_text(encoding="utf-8")) for p in sorted(PACKAGE.rglob("*.py"))}


def files() -> list[Path]:
    return list(trees())


def named(path: Path) -> str:
    """How a file is called in lists and messages."""
    return str(path.relative_to(PACKAGE))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_go_down_only() -> None:
    faults = []
    for path in files():
        own = room(path)
        for other in set(imports(path)) - {own, "__version__"}:
            if own == "__init__" or FLOORS[other] >= FLOORS[own]:
                faults.append(f"{named(path)} imports {other}, which is not below {own}")
            elif {own, other} <= STRANGERS:
                faults.append(f"{named(path)}: {own} and {other} must not know each other")
    assert not faults


SNIFFING = {
    "data/text/bpe_process.py": [
        '{"progress_format": "json"} if hasattr(trainers.BpeTrainer, "progress_format") else {}'
    ],
    "data/hashes.py": ['or getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING'],
    "explain/tree.py": ['return getattr(default, "type", None)'],
    "models/sizing.py": [
        'elif function in fills or getattr(function, "__name__", "") in FILLS:',
        'if torch.device(kwargs.get("device") or torch.get_default_device()).type == "meta":',
    ],
    "parts/contract.py": ['return getattr(kept, "__dict__", {})'],
    "promises/sequence.py": ['if not callable(getattr(trial.part, "new_cache", None)):'],
}
"""Lines that still look at what something is instead of asking it.

Take off what is mended; put nothing on.
"""


def sniffing(path: Path) -> set[str]:
    """Lines that look at the class, the attributes or the `type` of something by their names.

    A room may look at its own classes, and at those of the ground, which has no parts of a model,
    tasks or data.
    """
    tree, own = trees()[path], room(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    foreign = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bigmodel_cli."):
            other = (node.module or "").split(".")[1]
            foreign |= (
                {a.asname or a.name for a in node.names} if other not in {own, *GROUND} else set()
            )
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            what, names = (
                node.func.id,
                {n.id for a in node.args[1:] for n in ast.walk(a) if isinstance(n, ast.Name)},
            )
            by_class = what in ("isinstance", "issubclass") and bool(foreign & names)
            by_attribute = what in ("hasattr", "getattr") and isinstance(node.args[1], ast.Constant)
            looks = by_class or by_attribute
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            whose = [
                ast.unparse(s.value)
                for s in sides
                if isinstance(s, ast.Attribute) and s.attr == "type"
            ]
            named = any(isinstance(s, ast.Constant | ast.Tuple | ast.Set | ast.List) for s in sides)
            looks = named and any(w != "self" and not w.endswith("device") for w in whose)
        else:
            continue
        if looks:
            found.add(lines[node.lineno - 1].strip())
    return found


def test_rooms_do_not_inspect_the_classes_of_others() -> None:
    """Where this finds more: ask the class of the lower room by a method or an attribute of its
    base class; where it finds less, take that off the list.
    """
    upper = [path for path in files() if room(path) not in {"__init__", *GROUND}]
    found = {named(path): sniffing(path) for path in upper}
    assert {name: lines for name, lines in found.items() if lines} == {
        name: set(lines) for name, lines in SNIFFING.items()
    }


def test_every_room_has_a_layer() -> None:
    assert {room(path) for path in files()} - {"__init__"} <= FLOORS.keys()


def test_only_the_assembler_builds_models() -> None:
    builders = re.compile(r"from bigmodel_cli\.models import (.*|\([^)]*)\b(build|within)\b")
    found = {path.name for path in files() if builders.search(path.read_text(encoding="utf-8"))}
    # converted.py builds one on the meta device, to know what a folder's weights are in it
    assert found == {"building.py", "converted.py"}


def test_three_places_may_import_torch_distributed() -> None:
    for path in files():
        text = path.read_text(encoding="utf-8")
        allowed = path.parent.name == "distributed" or path.name in ("sharding.py", "parted.py")
        assert allowed or "torch.distributed" not in text, path


def test_torch_is_imported_through_lazy_where_options_are_declared() -> None:
    for path, tree in trees().items():
        names = [a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)]
        heavy = [
            n
            for n in names
            if n.split(".")[0] in ("torch", "torchvision", "matplotlib", "sklearn", "pyarrow")
        ]
        assert not heavy, f"{path} imports {heavy} when it is imported"


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 60
LONGER: dict[str, int] = {}
"""Files that are longer than that, and their lines. Take off what is split; put nothing on."""


def test_files_and_functions_fit_a_sitting_and_a_screen() -> None:
    long, functions = {}, []
    for path, tree in trees().items():
        name = named(path)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES:
            long[name] = lines
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MOST_LINES_OF_A_FUNCTION:
                    functions.append(f"{name}: {node.name} has {length} lines")
    assert long == LONGER, "split it where its subjects part"
    assert not functions


PASSED_ON = {
    "commands/fields.py": ["spread"],
    "models/describe.py": ["convolution_gradient_flops"],
    "models/layer_shapes.py": ["named"],
}
"""Functions with `**`: one puts Typer's options together, one is called by torch's counter of
FLOPs, and one names the parts of a Sequential. Take off what is mended; put nothing on.
"""


def test_values_are_not_passed_through_double_starred_parameters() -> None:
    found: dict[str, list[str]] = {}
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg:
                found.setdefault(named(path), []).append(node.name)
    assert found == PASSED_ON


def test_every_name_of_the_catalog_has_a_line_about_it() -> None:
    for kind, entries in catalog().items():
        for name, line in entries.items():
            assert len(line) > 15, f"{kind} {name}"


Defined = ast.FunctionDef | ast.ClassDef
OBVIOUS = {"forward", "step", "state_dict", "load_state_dict", "to_json", "to_text", "validate"}
"""Methods of torch's or of the field's own contracts, which every reader knows."""


@functools.cache
def classes() -> dict[str, list[ast.ClassDef]]:
    """The classes of the package by name; a name may be used in several files."""
    table: dict[str, list[ast.ClassDef]] = {}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                table.setdefault(node.name, []).append(node)
    return table


def base_classes(of: ast.ClassDef) -> Iterator[ast.ClassDef]:
    """The classes that `of` inherits from, directly or not, by their names."""
    for base in of.bases:
        name = ast.unparse(base).split("[")[0].split(".")[-1]
        for node in classes().get(name, []):
            if node is not of and name != of.name:
                yield node
                yield from base_classes(node)


def methods(*of: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    """The public methods of classes by name."""
    defined = [n for node in of for n in node.body if isinstance(n, ast.FunctionDef)]
    return {n.name: n for n in defined if not n.name.startswith("_")}


def protocols(of: ast.ClassDef) -> Iterator[ast.ClassDef]:
    """The protocols that a class fulfils, by the names of its methods."""
    own = methods(of, *base_classes(of)).keys()
    for node in (n for named in classes().values() for n in named):
        is_protocol = any(ast.unparse(base).startswith("Protocol") for base in node.bases)
        if is_protocol and methods(node) and methods(node).keys() <= own:
            yield node


def is_obvious(node: Defined, owner: ast.ClassDef | None) -> bool:
    """A function of one short line, a method that every reader knows, or one that fills in a method
    which a base class or a protocol documents.
    """
    if isinstance(node, ast.ClassDef):
        return False
    only = node.body[0]
    one_line = isinstance(only, ast.Return) and only.lineno == only.end_lineno
    if node.name in OBVIOUS or one_line or owner is None:
        return node.name in OBVIOUS or one_line
    contracts = [*base_classes(owner), *protocols(owner)]
    filled_in = [methods(contract).get(node.name) for contract in contracts]
    return any(ast.get_docstring(method) for method in filled_in if method is not None)


def definitions(tree: ast.Module) -> Iterator[tuple[Defined, ast.ClassDef | None]]:
    """The public functions and classes of a file, and the methods with their class."""
    for node in tree.body:
        if isinstance(node, Defined) and not node.name.startswith("_"):
            yield node, None
        if isinstance(node, ast.ClassDef):
            own = [n for n in node.body if isinstance(n, Defined)]
            yield from ((n, node) for n in own if not n.name.startswith("_"))


def test_files_public_functions_and_classes_say_what_is_not_obvious() -> None:
    faults = [named(path) for path, tree in trees().items() if not ast.get_docstring(tree)]
    for path, tree in trees().items():
        if path.name != "yaml_source.py":
            faults += [
                f"{named(path)}:{node.lineno} {node.name}"
                for node, owner in definitions(tree)
                if not ast.get_docstring(node) and not is_obvious(node, owner)
            ]
    assert not faults


@pytest.mark.parametrize(
    "words",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy", "--strict", "bigmodel_cli"],
    ],
    ids=["lint", "format", "types"],
)
def test_no_lint_and_no_type_errors(words: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


SAMPLES = sorted(p for p in (ROOT / "sample_configs").glob("*.yaml") if "finetune" not in p.name)
SMALLER = {
    "docstrings": ["task.max_tokens=4", "data.tokenizer.vocab_size=400"],
    "multi30k_en_de": ["task.max_tokens=4"],
    "gpt2": [
        "model.dim=48",
        "model.blocks.0.repeat=2",
        "data.max_bytes=100_000",
        "data.context=64",
        "train.micro_batch_size=2",
    ],
    "llama_like": [
        "model.dim=64",
        "model.blocks.0.repeat=2",
        "data.max_bytes=100_000",
        "train.micro_batch_size=2",
    ],
    "quickstart": ["data.max_bytes=100_000"],
    "deepseek_like": ["model.dim=64", "model.blocks.1.repeat=1", "data.max_bytes=100_000"],
    "bert": ["model.dim=64", "model.blocks.0.repeat=2", "data.max_bytes=100_000"],
    "transformer_base": [
        "model.dim=64",
        "model.encoder.0.repeat=1",
        "model.decoder.0.repeat=1",
        "data.tokenizer.vocab_size=400",
        "train.micro_batch_size=2",
    ],
    "mamba2": ["model.dim=64", "model.blocks.0.repeat=2", "data.max_bytes=100_000"],
    "hybrid": ["model.dim=64", "data.max_bytes=100_000"],
    "invent_your_own": ["model.dim=96", "data.max_bytes=100_000"],
    "vit": ["data.type=mnist", "data.augment=[]"],
    "cifar10_mae": ["data.type=mnist", "data.augment=[]"],
    "cifar10_94": ["data.type=mnist"],
    "alexnet": ["train.batch_size=2", "model.layers.11.units=64", "model.layers.13.units=64"],
}


def head(path: Path, lines: int = 400) -> str:
    """The name of a file in this folder with the first lines of another: most of a sample's time
    goes into its tokenizer and its validation, which take all of the data.
    """
    unpack = gzip.open if path.suffix == ".gz" else open
    with unpack(path, "rt", encoding="utf-8") as whole:
        text = "".join(itertools.islice(whole, lines))
    Path(name := path.name.removesuffix(".gz")).write_text(text, encoding="utf-8")
    return name


@pytest.mark.no_cover
@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.stem)
def test_every_sample_spec_trains_a_few_steps(
    path: Path, data_root: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = sorted(docstrings.standard_library(10**9))[::8]
    monkeypatch.setattr(docstrings, "standard_library", lambda limit: iter(some))
    changes = [
        "train.steps=2",
        "train.epochs=null",
        "train.batch_size=4",
        "train.precision=fp32",
        "train.compile='off'",
    ]
    changes += [
        "train.memory_format=contiguous",
        "train.validate_every=null",
        "train.validate_epochs=null",
    ]
    changes += ["train.patience=null", "train.average_last=null"]
    changes += SMALLER.get(path.stem, [])
    text = path.read_text(encoding="utf-8")
    if "type: mnist" in text or "type: cifar10" in text:
        changes.append(f"data.root='{data_root / 'mnist'}'")
    if "tinyshakespeare" in text:
        changes.append(f"data.files=[{head(data_root / 'tinyshakespeare' / 'input.txt')}]")
    if "multi30k" in text:
        sides = [
            ("source", "train.en"),
            ("target", "train.de"),
            ("val_source", "val.en"),
            ("val_target", "val.de"),
        ]
        changes += [
            f"data.{side}=[{head(data_root / 'multi30k' / f'{name}.gz')}]" for side, name in sides
        ]
        changes += ["data.test_source=[]", "data.test_target=[]"]
    if "sst2" in text:
        files = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}
        changes += [
            f"data.{split}=[{head(data_root / 'sst2' / name)}]" for split, name in files.items()
        ]
        changes.append("data.tokenizer.vocab_size=400")
    if "fsdd" in text:
        changes.append(f"data.files=['{data_root / 'fsdd' / 'recordings.tar.gz'}']")
    if "functions.jsonl" in text:
        runpy.run_path(str(path.with_name("functions.py")))["write"](Path("functions.jsonl"), 40)
        changes.append("data.tokenizer.vocab_size=300")
    if path.stem == "alexnet":
        write_images(Path("pictures"))
        changes = [c for c in changes if not c.startswith("data.")] + [
            "data.type=image_folder",
            "data.root=pictures",
        ]
    if "type: causal_lm" in text:
        changes.append("task.sample_tokens=4")
    result = cli("pretrain", path, "--out", "run", *(w for c in changes for w in ("--set", c)))
    assert result.status == 0, result.err
    assert result.out == "run/checkpoints/step-00000002\n"
    assert Path(result.out.strip(), "model.safetensors").stat().st_size > 1000


def write_images(root: Path) -> None:
    """Two classes of two plain pictures each."""
    from PIL import Image

    for number, label in enumerate(("dark", "light")):
        (root / label).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (80, 60), (200 * number + index, 10, 30)).save(
                root / label / f"{index}.png"
            )
