"""The command line.

Every command is one call; torch and all that needs it are imported inside the command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli import __version__
from bigmodel_cli.arguments import (
    AcceptData,
    Checkpoint,
    Device,
    DryRun,
    Json,
    Out,
    Plugin,
    PluginFile,
    Precision,
    Resume,
    Seed,
    Set,
    SetPart,
    Source,
    SpecPath,
    TaskSpec,
)
from bigmodel_cli.arguments.common import (
    Start,
    all_of_stdin,
    collect_overrides,
    need_run,
    print_result,
    refuse,
    resolve_checkpoint,
    run_training,
    with_a_first,
)
from bigmodel_cli.arguments.evaluate import (
    AnyCheckpoint,
    Compare,
    Confusion,
    Include,
    Limit,
    Metric,
    Predictions,
    Rescore,
    SplitName,
    Tasks,
)
from bigmodel_cli.arguments.init import LabelColumn, Like, NewName, OwnData, TextColumn
from bigmodel_cli.arguments.inspect import Head, Input, Layer, Picture, Seconds, Targets
from bigmodel_cli.arguments.options import OptionPath, TypeName
from bigmodel_cli.arguments.predict import (
    Beams,
    DrawSeed,
    Inputs,
    JsonLines,
    LengthPenalty,
    MaxTokens,
    MinP,
    NBest,
    RepetitionPenalty,
    Temperature,
    Top,
    TopK,
    TopP,
)
from bigmodel_cli.arguments.runs import CompareRuns, Plot, Runs
from bigmodel_cli.arguments.seeds import Seeds, run_seeds

if TYPE_CHECKING:
    from bigmodel_cli.overrides import Change
    from bigmodel_cli.spec import Spec

app = typer.Typer(
    name="bigmodel",
    help=(
        "The workbench for the structure of AI models: write a network as YAML, then pretrain,"
        " finetune, evaluate, look inside and measure it."
    ),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


USAGE_FAULT: Any = typer.BadParameter.__mro__[2]
"""What Typer raises for a wrong command line: the base class, which newer versions keep under
another name.
"""


def _print_version(wanted: bool) -> None:
    if wanted:
        print_result(__version__)
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback for expected errors too.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and leave.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Options that every command shares.

    `--debug` and `--version` have taken effect before this runs.
    """


@app.command()
def pretrain(
    spec: SpecPath = None,
    set_: Set = None,
    plugin: Plugin = None,
    out: Out = None,
    resume: Resume = False,
    accept_data: AcceptData = False,
    device: Device = "auto",
    precision: Precision = None,
    seed: Seed = None,
    seeds: Seeds = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train a network from initial weights; prints the checkpoint's path.

    Example: bigmodel pretrain sample_configs/quickstart.yaml --set train.steps=500
    """
    from bigmodel_cli.spec import load

    overrides = collect_overrides(set_, precision, seed)
    if spec is None:
        need_run("pretrain", None, out, resume, dry_run)
    name = spec.stem if spec is not None else ""
    start = Start(
        "pretrain", name, out, resume, device, overrides, accept_data, plugin, dry_run, json
    )
    if seeds is not None and spec is not None:
        run_seeds(seeds, seed, lambda more: load(spec, [*overrides, *more]), start)
    else:
        refuse("a run that is gone on with without a spec", {"--seeds": seeds})
        run_training(load(spec, overrides) if spec is not None else None, start)


@app.command()
def finetune(
    source: Source = None,
    spec: TaskSpec = None,
    set_: Set = None,
    plugin: Plugin = None,
    out: Out = None,
    resume: Resume = False,
    accept_data: AcceptData = False,
    device: Device = "auto",
    precision: Precision = None,
    seed: Seed = None,
    seeds: Seeds = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train from a checkpoint: a new head where the classes differ, all weights or only the head.

    Example: bigmodel finetune --from runs/mnist_cnn digits.yaml --set init.train=head
    """
    from bigmodel_cli import checkpoints
    from bigmodel_cli.overrides import Override
    from bigmodel_cli.spec import from_dict, load, of_checkpoint

    overrides = collect_overrides(set_, precision, seed)
    if source is None:
        need_run("finetune", spec, out, resume, dry_run)
        refuse("a run that is gone on with without --from", {"SPEC": spec, "--seeds": seeds})
        run_training(
            None,
            Start(
                "finetune", "", out, resume, device, overrides, accept_data, plugin, dry_run, json
            ),
        )
        return
    path = checkpoints.find(resolve_checkpoint(source))
    base = checkpoints.read_spec(path)
    of_checkpoint(base, path)
    # Each run begins anew: its own start, and its own measurement of how to compute.
    base = {
        **base,
        "init": {},
        "train": {**base["train"], "precision": "auto", "memory_format": "auto", "compile": "auto"},
    }
    changes = [*overrides, Override("init.checkpoint", str(path), "--from")]

    def loaded(more: Sequence[Change] = ()) -> Spec:
        every = [*changes, *more]
        return (
            load(spec, every, base)
            if spec is not None
            else from_dict(base, every, f"{path}/spec.yaml")
        )

    name = spec.stem if spec is not None else f"{path.parent.parent.name}-finetuned"
    start = Start(
        "finetune", name, out, resume, device, overrides, accept_data, plugin, dry_run, json
    )
    if seeds is not None:
        run_seeds(seeds, seed, loaded, start)
    else:
        run_training(loaded(), start)


@app.command("eval")
def evaluate(
    checkpoint: AnyCheckpoint = None,
    set_: Set = None,
    plugin: Plugin = None,
    split: SplitName = None,
    predictions: Predictions = None,
    compare: Compare = None,
    confusion: Confusion = None,
    rescore: Rescore = None,
    metric: Metric = None,
    tasks: Tasks = None,
    include: Include = None,
    limit: Limit = None,
    device: Device = "auto",
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Measure the task's metrics on a whole split, each with its count and 95 % interval.

    Example: bigmodel eval runs/mnist_cnn --json, or: bigmodel eval runs/a --compare runs/b
    """
    from bigmodel_cli.errors import SpecError, did_you_mean
    from bigmodel_cli.evaluation.report import evaluate_checkpoint, rescored

    if (checkpoint is None) == (rescore is None):
        raise SpecError(
            "give either a checkpoint, or --rescore with a file that --predictions wrote"
        )
    of_splits = {
        "--split": split,
        "--predictions": predictions,
        "--compare": compare,
        "--confusion": confusion,
    }
    of_tasks, of_models = (
        {"--include": include, "--limit": limit},
        {"--set": set_, "--precision": precision},
    )
    if rescore is not None:
        refuse(
            "a file of predictions (--rescore)",
            {**of_splits, **of_models, **of_tasks, "--tasks": tasks},
        )
    elif tasks is not None:
        refuse("the harness (--tasks)", {**of_splits, "--metric": metric})
    else:
        refuse("an evaluation without --tasks", of_tasks)
        refuse("an evaluation without --rescore", {"--metric": metric})
    if rescore is not None:
        from bigmodel_cli.metrics.text import MEASURES

        for name in metric or []:
            if name not in MEASURES:
                raise SpecError(
                    f"--metric {name}: not one of"
                    f" {', '.join(MEASURES)}{did_you_mean(name, MEASURES)}"
                )
        report = rescored(rescore, metric or [])
    elif tasks is not None:
        from bigmodel_cli.evaluation.lm_eval import evaluate_tasks
        from bigmodel_cli.loaded import load_checkpoint

        loaded = load_checkpoint(
            resolve_checkpoint(str(checkpoint)), device, collect_overrides(set_, precision, None)
        )
        report = evaluate_tasks(loaded, [name.strip() for name in tasks.split(",")], include, limit)
    else:
        overrides = collect_overrides(set_, precision, None)
        path = resolve_checkpoint(str(checkpoint))
        report = evaluate_checkpoint(
            path, overrides, split, device, predictions, compare, confusion
        )
    print_result(report.to_json() if json else report.to_text())


@app.command()
def predict(
    checkpoint: Checkpoint,
    inputs: Inputs = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    n_best: NBest = 1,
    seed: DrawSeed = 0,
    top: Top = None,
    set_: Set = None,
    device: Device = "auto",
    plugin: Plugin = None,
    json: JsonLines = False,
) -> None:
    """Classify, tag or transcribe inputs, continue texts, or translate; JSON Lines out, in input
    order.

    On a terminal a continued text is printed as it is generated.

    Example: bigmodel predict runs/mnist_cnn seven.png, or: ls *.png | bigmodel predict
    runs/mnist_cnn
    """
    from contextlib import closing

    from bigmodel_cli.console import has_colour, result_record
    from bigmodel_cli.data import lines_of
    from bigmodel_cli.generation.text import Decoding
    from bigmodel_cli.loaded import load_checkpoint
    from bigmodel_cli.predict import TextPrinter, continues
    from bigmodel_cli.predict import predict as predict_

    path = resolve_checkpoint(checkpoint, with_inputs=True)
    given = inputs or with_a_first(lines_of(sys.stdin.buffer))
    loaded = load_checkpoint(path, device, collect_overrides(set_, None, None))
    decoding = Decoding(
        max_tokens,
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        beams,
        length_penalty,
        n_best,
        seed,
    )
    word = "input" if inputs else "line"
    if json or not sys.stdout.isatty() or not continues(loaded):
        for record in predict_(loaded, given, decoding, top, word):
            result_record(record)
        return
    with closing(TextPrinter(has_colour(sys.stdout))) as printer:
        for record in predict_(loaded, given, decoding, top, word, printer.tell):
            printer.record(record)


@app.command()
def attend(
    checkpoint: Checkpoint,
    source: Input,
    layer: Layer = None,
    head: Head = None,
    out: Picture = None,
    device: Device = "auto",
    json: Json = False,
    plugin: Plugin = None,
) -> None:
    """Show a decoder's attention, or the image region that decides a class; prints the picture's
    path.

    Example: bigmodel attend runs/quickstart "def main(argv):"
    """
    from bigmodel_cli.attend import attend as attend_
    from bigmodel_cli.console import has_colour, result, result_json, say_coloured
    from bigmodel_cli.loaded import load_checkpoint

    color = has_colour(sys.stderr)
    seen = attend_(
        load_checkpoint(resolve_checkpoint(checkpoint), device), source, out, layer, head, color
    )
    say_coloured(seen.text)
    if json:
        result_json({"picture": str(seen.picture), **seen.values})
    else:
        result(str(seen.picture))


@app.command()
def bench(
    targets: Targets = None,
    set_: Set = None,
    plugin: Plugin = None,
    seconds: Seconds = 5.0,
    device: Device = "auto",
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Time training steps: median, p95, rate, memory, FLOPs, and their share of the machine's
    limit.

    Example: bigmodel bench sample_configs/mnist_cnn.yaml --device cpu, or: bigmodel bench a.yaml
    b.yaml runs/c
    """
    from bigmodel_cli.bench import bench as bench_
    from bigmodel_cli.bench.targets import builtin, named

    overrides = collect_overrides(set_, precision, None)
    report = bench_(named(targets, overrides) if targets else builtin(overrides), device, seconds)
    print_result(report.to_json() if json else report.to_text())


@app.command()
def runs(
    given: Runs = None, compare: CompareRuns = False, plot: Plot = None, json: Json = False
) -> None:
    """List runs: state, step, best metric, time, differing options; or compare some and plot
    curves.

    Example: bigmodel runs, or: bigmodel runs --compare mnist_cnn mnist_cnn-2 --plot curves.pdf
    """
    from bigmodel_cli.pictures import check_picture
    from bigmodel_cli.runs import (
        PICTURE,
        as_text,
        compare_runs,
        comparison,
        list_runs,
        listing,
        to_json,
    )

    names = all_of_stdin(given or [])
    if not compare:
        refuse("a listing (without --compare)", {"--plot": plot})
        found = list_runs(names)
    else:
        check_picture(plot or PICTURE, "--plot")
        found = compare_runs(names, plot or PICTURE)
    if json:
        print_result({"runs": to_json(found)})
    elif found:
        print_result(as_text(*(comparison if compare else listing)(found)))


@app.command()
def schema(plugin: Plugin = None) -> None:
    """Print the JSON Schema of a spec, for editors.

    Example: bigmodel schema > bigmodel.schema.json
    """
    import json as json_

    from bigmodel_cli.catalog import schema as schema_
    from bigmodel_cli.console import result

    result(json_.dumps(schema_(), indent=2))


@app.command()
def options(
    path: OptionPath = None, kind: TypeName = None, plugin: Plugin = None, json: Json = False
) -> None:
    """Show the options of a part of a spec: type, default, bounds, description, and an example.

    Example: bigmodel options model.blocks.mixer attention
    """
    from bigmodel_cli.options import description, find, to_json, to_text

    known = description(plugins=bool(plugin))
    found = find(known, path or "", kind)
    print_result(to_json(known, found) if json else to_text(known, found))


@app.command()
def models(plugin: Plugin = None, json: Json = False) -> None:
    """List models, parts, tasks, data sources, optimizers, schedules and trackers, one line each.

    Example: bigmodel models
    """
    from bigmodel_cli.catalog import catalog, catalog_text

    print_result(catalog() if json else catalog_text())


@app.command()
def check(file: PluginFile, set_: SetPart = None, json: Json = False) -> None:
    """Test each part in a Python file: shapes, causality, caches, padding, gradients, saving.

    Optimizers and schedules are tested too; for models, tasks, data and trackers only what their
    table requires.

    Example: bigmodel check my_part.py --set heads=4
    """
    from bigmodel_cli.plugins import name_plugins

    name_plugins([file], option="")
    from bigmodel_cli.errors import SpecError
    from bigmodel_cli.promises.command import check_plugin, checked_text

    parts = check_plugin(file, set_ or [])
    print_result({"parts": [part.to_json() for part in parts]} if json else checked_text(parts))
    broken = [f"{part.type}: {promise}" for part in parts for promise in part.broken]
    if broken:
        raise SpecError(f"{file}: not kept: {', '.join(broken)}")


@app.command()
def init(
    name: NewName,
    like: Like = None,
    data: OwnData = None,
    text: TextColumn = None,
    label: LabelColumn = None,
) -> None:
    """Write a commented spec for your own data, or like a sample; prints its path.

    Example: bigmodel init mine --data photos/ --like vit, or one of the two alone
    """
    from bigmodel_cli.catalog import write_sample, write_spec
    from bigmodel_cli.console import result, say

    if not data:
        refuse("init without --data", {"--text": text, "--label": label is not None})
        result(str(write_sample(name, like or "decoder")))
        return
    import shlex

    from bigmodel_cli.init import Wanted, draft, task_of, write_out

    made = draft(data, Wanted(tuple(text or ()), label, task_of(like) if like else ""))
    path = write_spec(name, lambda path: write_out(made, path, like))
    for note in made.notes:
        say(note)
    say(f"next: bigmodel pretrain {shlex.quote(str(path))}")
    say(f"then: bigmodel predict {shlex.quote(f'runs/{path.stem}')} {shlex.quote(made.input)}")
    result(str(path))
