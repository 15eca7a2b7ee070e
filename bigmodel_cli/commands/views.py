"""Which views `bigmodel attend` has, in which forms each is shown, and what each heeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bigmodel_cli.errors import SpecError

PICTURES = ("--png", "--pdf", "--svg")
FORMS = ("terminal", "--json", *PICTURES, "--html", "--data")
"""Ways to show a view; a terminal's is the one where no other is asked for."""
CHOICE = frozenset({"--layers", "--heads", "--query", "--key", "--rows", "--target"})
IMAGES = frozenset({"--cam", "--cam-layer", "--class", "--baseline"})
HEADS, LENS, ABLATE, DIFF, OVER = "all heads", "--lens", "--ablate", "--diff", "--over"
WITH_TOP = CHOICE | IMAGES | {"--top"}
TARGET, ROWS = frozenset({"--target"}), frozenset({"--rows"})
ASCII, ROLLOUT = frozenset({"--ascii"}), frozenset({"--rollout"})

VIEWS: dict[str, dict[str, frozenset[str]]] = {
    HEADS: {
        "terminal": CHOICE | IMAGES | ASCII | ROLLOUT,
        "--json": WITH_TOP | ROLLOUT,
        **dict.fromkeys(PICTURES, CHOICE | IMAGES),
        "--html": WITH_TOP | ROLLOUT,
        "--data": WITH_TOP,
    },
    LENS: {
        "terminal": CHOICE | IMAGES | ASCII,
        "--json": WITH_TOP,
        **dict.fromkeys(PICTURES, frozenset({"--query", "--target"})),
        "--html": WITH_TOP,
    },
    ABLATE: {
        "terminal": TARGET | ASCII | {"--layers", "--ablate-with"},
        **dict.fromkeys(("--json", "--html"), TARGET | {"--layers", "--ablate-with"}),
    },
    DIFF: {
        "terminal": TARGET | ASCII,
        "--json": TARGET,
        **dict.fromkeys((*PICTURES, "--html"), TARGET),
    },
    OVER: {
        "terminal": ROWS | ASCII,
        "--json": ROWS,
        **dict.fromkeys((*PICTURES, "--html"), ROWS),
    },
}
"""View -> form -> the options that change what is shown; a form that is not there is not made."""


def view_of(given: Collection[str]) -> str:
    """The view that options ask for. Raises `SpecError` for two that exclude one another."""
    asked = [view for view in VIEWS if view in given]
    measured = [view for view in asked if view != LENS]
    if len(measured) > 1:
        raise SpecError(f"{measured[0]} and {measured[1]} exclude one another; give one of them")
    if measured and LENS in asked:
        raise SpecError(f"{LENS} has no effect on {measured[0]}; give one of them")
    return asked[0] if asked else HEADS


def check_view(view: str, forms: Collection[str], options: Mapping[str, object]) -> None:
    """Raise `SpecError` for a form in which a view is not made, and for an option that changes
    nothing in the forms that are asked for.

    `forms` are those of `FORMS`; `options` are all that may be given, and whether each is.
    """
    made = VIEWS[view]
    for form in forms:
        if form not in made:
            raise SpecError(
                f"{form} has no effect on {view}, which is shown {_listed(made)}; leave it out"
            )
    for option, given in options.items():
        heeding = [form for form in made if option in made[form]]
        if not given or any(form in heeding for form in forms):
            continue
        if not heeding:
            raise SpecError(f"{option} has no effect on {view}; leave it out")
        raise SpecError(
            f"{option} has no effect on {view} as shown {_listed(forms)}; it goes with"
            f" {' or '.join('the terminal' if f == 'terminal' else f for f in heeding)}"
        )


def summary() -> str:
    """The table in a few words, for --help."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for view, made in VIEWS.items():
        groups.setdefault(tuple(made), []).append(view)
    parts = [f"{', '.join(views)}: {_listed(made)}" for made, views in groups.items()]
    return f"Views and their forms: {'; '.join(parts)}."


def _listed(forms: Collection[str]) -> str:
    """Forms in words: in the terminal, with --json, --png or --svg."""
    others = [form for form in forms if form != "terminal"]
    there = ["in the terminal"] if "terminal" in forms else []
    last = [f"with {' or '.join([', '.join(others[:-1]), others[-1]])}"] if others[1:] else []
    return " or ".join([*there, *(last or [f"with {other}" for other in others])])
