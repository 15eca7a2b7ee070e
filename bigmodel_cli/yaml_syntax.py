"""The YAML parser's errors in plain words, each with what to do."""

from __future__ import annotations

_MEANINGS = (
    (
        "mapping values are not allowed",
        (
            "a colon cannot stand here; indent this line as the one above, write a blank after the"
            " colon there, or put text that holds a colon and a blank in quotes"
        ),
    ),
    (
        "could not find expected ':'",
        "this line, or the one before it, has no `KEY: VALUE`; write a blank after the colon",
    ),
    (
        "did not find expected ',' or",
        (
            "a list or mapping in brackets goes on where it should have ended{since}; add the"
            " missing comma, ] or }}"
        ),
    ),
    (
        "did not find expected key",
        (
            "this line is not indented as the other lines of its mapping{since}; give all lines of"
            " a mapping as many blanks"
        ),
    ),
    (
        "did not find expected '-' indicator",
        (
            "this line stands in a list{since}, and does not begin with `- `; indent it as the item"
            " that it belongs to, or less"
        ),
    ),
    (
        "block sequence entries are not allowed",
        "a list item `- ` cannot stand here; put it on a line of its own",
    ),
    (
        "block collections are not allowed",
        "a list or mapping of several lines cannot stand here; put it on lines of its own",
    ),
    (
        "found unexpected end of stream",
        "a quote is opened{since} and not closed; add the closing quote",
    ),
    (
        "found unexpected document indicator",
        "a quote is opened{since} and not closed; add the closing quote",
    ),
    (
        "unknown escape character",
        "a backslash in double quotes must be written twice; or take single quotes",
    ),
    ("hexadecimal", "a backslash in double quotes must be written twice; or take single quotes"),
    (
        "did not find expected alphabetic or numeric",
        "* and & begin names of anchors; put text that begins so in quotes",
    ),
    (
        "did not find expected whitespace",
        "a tag or an anchor must be followed by a blank; put text that begins so in quotes",
    ),
    (
        "did not find expected node content",
        "a value is missing here; write one, or put what stands here in quotes",
    ),
    (
        "did not find expected <document start>",
        "text after the end of the spec; put the whole spec into one mapping",
    ),
    ("found unexpected ':'", "a colon in brackets without a blank after it; write {{KEY: VALUE}}"),
    ("tag", "tags (what begins with !) are not allowed; put text that begins so in quotes"),
    (
        "expected comment or line break",
        "after | or > the text begins on the next line; put text that begins so in quotes",
    ),
    ("directive", "a line cannot begin with %; put it in quotes"),
    ("special characters are not allowed", "{problem}; remove NUL bytes and control characters"),
    ("control characters are not allowed", "{problem}; remove NUL bytes and control characters"),
)


def in_plain_words(problem: str, context: str, rest: str, since: int | None) -> str:
    """What is wrong and what to do.

    `problem` and `context` are the parser's own words, kept where they are unknown here. `rest` is
    the rest of the line at that position. `since` is the number of the line where the unfinished
    construct began, if that is another one.
    """
    if "cannot start any token" in problem or rest.startswith("\t"):
        sign = rest[:1]
        if sign == "\t":
            return "a tab; indent with blanks alone"
        return f"a value cannot begin with {sign}; put it in quotes" if sign else problem
    if rest[:1] in ("]", "}") and (
        "expected key" in problem or "node content" in problem or "document start" in problem
    ):
        return (
            f"a closing {rest[0]} without an opening one; remove it, or write the value that is"
            " missing"
        )
    if "expected key" in problem and since is None:
        return "text follows a value that has ended; a quote within quotes is written twice"
    opened = f" (it begins in line {since})" if since is not None else ""
    for known, meaning in _MEANINGS:
        if known in problem:
            return meaning.format(problem=problem, since=opened)
    if "end of stream" in problem or "stream end" in problem:
        return f"the file ends within brackets or quotes{opened}; close them"
    return f"{problem} ({context})" if context else problem
