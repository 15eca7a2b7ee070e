"""Whether the first row of a file without a `header` option holds the names of the columns; such a
row is never learnt from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bigmodel_cli.data.text.table_columns import Columns
from bigmodel_cli.data.text.table_files import Row
from bigmodel_cli.errors import DataError

_COLUMNS = """
text texts sentence sentence1 sentence2 sentence_1 sentence_2 premise hypothesis question question1
question2 answer context review reviews content body title message tweet comment document passage
article summary abstract headline description query input output prompt response completion source
target src tgt source_text target_text utterance phrase transcript
"""
_LABELS = """
label labels class classes category categories sentiment polarity rating score stars tag
target_class y gold emotion intent topic language lang label_id label_text class_index coarse_label
fine_label
"""
_LANGUAGES = """
ar bg cs da de el en es et fi fr he hi hu id it ja ko lt lv nl no pl pt ro ru sk sl sv tr uk vi zh
arabic chinese czech dutch english finnish french german greek hindi italian japanese korean polish
portuguese russian spanish turkish eng deu ger fra fre spa ita rus zho original translation
translated complex simple normal noisy clean code docstring dialogue dialog highlights before after
"""
LABELS = frozenset(_LABELS.split())
"""Usual names of columns of labels, in lower case."""
NAMES = frozenset(_COLUMNS.split()) | LABELS
"""Usual names of columns of texts and labels, in lower case."""
LANGUAGES = frozenset(_LANGUAGES.split())
"""Usual names of the two columns of pairs."""
WORD = re.compile(r"[^\W\d][\w.-]*")


def check_headers(firsts: Sequence[Row], labels: Mapping[str, int], columns: Columns) -> None:
    """Raise `DataError` where the first row of a file looks like names; `labels` are counted over
    all rows.

    That is where its texts, or its label that no other row has, are usual names of columns; where
    its label is unique, one word, and the others are numbers, or all occur several times; and where
    the values are the columns' own numbers.
    """
    for row in firsts:
        why = _why(row, sum(other.label == row.label for other in firsts), labels, columns)
        if why:
            cells = ", ".join(
                f"{cell:.40}" for cell in (*row.texts, *([] if row.label is None else [row.label]))
            )
            raise DataError(
                f"{row.place}: the first row ({cells}) looks like the names of the columns: {why};"
                " set data.header: true to skip it, or data.header: false to read it as an"
                " item"
            )


def are_names(texts: Sequence[str]) -> bool:
    """Whether usual names of text columns; those of pairs may be languages."""
    usual = NAMES if len(texts) == 1 else NAMES | LANGUAGES
    return all(column_name(text) in usual for text in texts)


def _why(row: Row, as_first: int, labels: Mapping[str, int], columns: Columns) -> str:
    texts = are_names(row.texts)
    if row.label is None:
        return "usual names of text columns" if texts else ""
    alone = labels[row.label] == as_first
    others = {label: count for label, count in labels.items() if label != row.label}
    if texts and (alone or column_name(row.label) in NAMES):
        return "usual names of text columns"
    if (*row.texts, row.label) == tuple(map(str, (*columns.text, columns.label))):
        return "they are the numbers of the columns"
    if not alone or not others:
        return ""
    if column_name(row.label) in NAMES:
        return "a usual name of a label column, and no other row has this label"
    if not is_number(row.label) and all(map(is_number, others)):
        return "every other label is a number"
    words = all(WORD.fullmatch(cell.strip('"')) for cell in (*row.texts, row.label))
    return "no other row has this label" if words and min(others.values()) > 1 else ""


def column_name(cell: str) -> str:
    """A column's name as it is looked up in these lists."""
    return cell.strip('" ').lower().replace(" ", "_")


def is_number(label: str) -> bool:
    """Whether a value spells a number."""
    try:
        float(label)
    except ValueError:
        return False
    return True
