"""One self-contained page of HTML: every head, every weight, and nothing fetched from elsewhere.

The text of tokens, names and notes is data: the script puts it in place as text. What the page may
do is written in its policy: run the script and use the style whose hashes it has, show images that
it carries, and nothing else, so that it makes no request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from string import Template

from bigmodel_cli.attend.details import Details
from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.page_facts import Arrays, PageOptions, facts_of
from bigmodel_cli.attend.page_heat import layer_of_heat, png_of
from bigmodel_cli.attend.page_views import View, views_of
from bigmodel_cli.console import one_line
from bigmodel_cli.errors import SpecError

__all__ = ["PageOptions", "page"]

SCRIPTS = (
    "data", "scores", "colours", "state", "overview", "map", "axes", "lines", "image", "text",
    "sorted", "tables", "views", "charts", "keys", "start",
)  # fmt: skip


def page(
    look: Look,
    details: Details | None = None,
    options: PageOptions | None = None,
    views: Sequence[View] = (),
) -> str:
    """The page, to be written as UTF-8.

    Without `details` they are made of what the look has kept; heads that have none are shown as
    blocks. `views` come before those of what the look has beside its heads. Raises `SpecError` for
    a look at nothing.
    """
    options, details = options or PageOptions(), details or Details.of(look)
    if look.heat is not None:
        if options.image is None:
            options = replace(options, image=png_of(look.heat.image))
        mapped = layer_of_heat(look.heat)
        if mapped is not None:
            details.add_matrix(mapped.name, 0, mapped.blocks.most[0], causal=False)
            look = replace(look, layers=[*look.layers, mapped])
    shown = [*views, *views_of(look)]
    if not look.layers and not shown:
        raise SpecError("--html: there is nothing to show: neither heads nor a map of an image")
    arrays = Arrays()
    facts = facts_of(look, details, options, arrays, shown)
    room = files("bigmodel_cli.attend") / "web"
    style = (room / "style.css").read_text(encoding="utf-8")
    parts = [(room / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    written = json.dumps(facts, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template((room / "template.html").read_text(encoding="utf-8")).substitute(
        policy=policy,
        title=html.escape(_ascii(f"{one_line(look.model)}: attention")),
        style=style,
        data=f'<script type="application/json" id="data">{written}</script>\n' + arrays.written(),
        script=script,
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode()


def _ascii(text: str) -> str:
    """Without lone surrogates, which no file can hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
