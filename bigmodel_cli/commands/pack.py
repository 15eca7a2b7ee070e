"""`bigmodel pack`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands.shared import Json, Plugin, Set, collect_overrides, print_result, refuse
from bigmodel_cli.errors import SpecError

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA... OUT",
        help=(
            "A spec, whose data is packed, or files, folders or URLs of text; and the folder for"
            " the shards."
        ),
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="A tokenizer.json, e.g. --tokenizer gpt2.json. [default: the spec's, or bytes]"
    ),
]
FieldName = Annotated[
    str | None, typer.Option(help="The field of the text, e.g. --field content. [default: text]")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Processes, e.g. --workers 8. [default: one a core]"),
]
ShardTokens = Annotated[
    int, typer.Option(min=1024, max=1 << 31, help="Most tokens of a shard, e.g. --shard-tokens 1e6")
]


def pack(
    data: Sources,
    tokenizer: Tokenizer = None,
    field: FieldName = None,
    workers: Workers = None,
    shard_tokens: ShardTokens = 1 << 24,
    set_: Set = None,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Write texts as shards of tokens, for data.type: shards; prints the folder.

    An attempt that was ended is gone on with by the same command, and gives the same bytes.

    Example: bigmodel pack corpus/*.jsonl.gz packed --tokenizer tokenizer.json, then in a spec:
    data: {type: shards, train: [packed/train], context: 1024}
    """
    from bigmodel_cli.console import quantity, say
    from bigmodel_cli.data.shards.packing import pack as packed

    if len(data) < 2:
        raise SpecError("name the data, and behind it the folder for the shards")
    *names, out = data
    if len(names) == 1 and names[0].endswith((".yaml", ".yml")):
        from bigmodel_cli.spec import load

        refuse(
            "a spec; use --set data.tokenizer, data.field",
            {"--tokenizer": tokenizer, "--field": field},
        )
        options = load(Path(names[0]), collect_overrides(set_)).data
    else:
        from bigmodel_cli.data.shards.options import of_files

        refuse("files, which have no spec", {"--set": set_})
        options = of_files(names, tokenizer, field)
    count = workers or len(os.sched_getaffinity(0))
    found = packed(options.packable(base=Path(), say=say), Path(out), count, shard_tokens)
    for name, counts in found.splits.items():
        say(
            f"{name}: {counts['shards']:,} shards, {counts['tokens']:,} tokens,"
            f" {quantity(counts['bytes'], 'B')}"
        )
    print_result(found.to_json() if json else str(found.path))
