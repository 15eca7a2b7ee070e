"""How well `attend` aligns words of a translation: ten test captions of Multi30k, linked by hand.

    python tests/measure/alignments.py RUN

RUN is a checkpoint of `multi30k_en_de`. Each target is the caption's own German, fed as a whole, so
that every checkpoint is judged on the same links. Printed is each sentence as it is linked, and the
alignment error rate (Och and Ney 2003): 1 - (|A and S| + |A and P|) / (|A| + |S|), with A the links
found, S those that are sure, and P those with the ones that are possible; 0 is best. Beside it is
that of the diagonal, which links words by their places alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bigmodel_cli.attend.pairs import alignment_of, read_pair
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.loaded import load_checkpoint

SENTENCES = [
    # English, German, sure links and possible ones: numbers of words, German-English
    ("A child is splashing in the water", "Ein Kind planscht im Wasser.",
     "0-0 1-1 2-3 3-4 4-6", "2-2 3-5"),
    ("A car parked at the beach.", "Ein am Strand geparktes Auto.",
     "0-0 1-3 2-5 3-2 4-1 5-6", "1-4"),
    ("Man scaling wall with fire in hand", "Mann erklettert Mauer mit Feuer in der Hand",
     "0-0 1-1 2-2 3-3 4-4 5-5 7-6", "6-5 6-6"),
    ("These four people are standing outdoors, with 3 dogs.",
     "Diese vier Personen stehen mit 3 Hunden im Freien.",
     "0-0 1-1 2-2 3-4 4-7 5-8 6-9 8-5 9-10", "3-3 7-5"),
    ("A panting brown dog walking on the grass.", "Ein hechelnder brauner Hund geht auf dem Gras.",
     "0-0 1-1 2-2 3-3 4-4 5-5 6-6 7-7 8-8", ""),
    ("A small black dog jumping over gates", "Ein kleiner schwarzer Hund springt über Gatter",
     "0-0 1-1 2-2 3-3 4-4 5-5 6-6", ""),
    ("A woman in a striped outfit on a bike.",
     "Eine Frau in einem gestreiften Outfit auf einem Fahrrad.",
     "0-0 1-1 2-2 3-3 4-4 5-5 6-6 7-7 8-8 9-9", ""),
    ("A child is on a motorcycle smiling.", "Ein Kind sitzt lächelnd auf dem Motorrad.",
     "0-0 1-1 3-6 4-3 6-5 7-7", "2-2 5-4"),
    ("A man in an orange hat starring at something.",
     "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.",
     "0-0 1-1 2-2 3-3 4-4 5-5 8-8 9-6 10-9", "9-7 7-6 7-1 6-6"),
    ("The two kids are playing at the playground.", "Die zwei Kinder Spielen auf dem Spielplatz.",
     "0-0 1-1 2-2 3-4 4-5 5-6 6-7 7-8", "3-3"),
]  # fmt: skip

Links = set[tuple[int, int]]


def links_of(text: str) -> Links:
    """ "0-0 1-2" as pairs."""
    pairs = (pair.split("-") for pair in text.split())
    return {(int(target), int(source)) for target, source in pairs}


def diagonal(target: int, source: int) -> Links:
    """A link of each of these many target words, by its place."""
    return {(t, round(t * (source - 1) / max(1, target - 1))) for t in range(target)}


def counted(a: Links, sure: Links, possible: Links) -> tuple[int, int]:
    """The two sums that the error rate is 1 minus the quotient of."""
    return len(a & sure) + len(a & (sure | possible)), len(a) + len(sure)


def main() -> None:
    """Align, print, and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    load_torch()
    loaded = load_checkpoint(given.run, "cpu", tell=lambda text: None)
    sums = {"attend": [0, 0], "the diagonal": [0, 0]}
    for english, german, *gold in SENTENCES:
        found = alignment_of(read_pair(loaded, english, "the input", target=german))
        assert found is not None
        sure, possible = map(links_of, gold)
        a = set(found.links())
        words = len(found.target), sum(found.real)
        for name, links in (("attend", a), ("the diagonal", diagonal(*words))):
            hits, total = counted(links, sure, possible)
            sums[name] = [sums[name][0] + hits, sums[name][1] + total]
        hits, total = counted(a, sure, possible)
        pairs = (f"{found.target[t]}:{found.source[n]}" for t, n in sorted(a))
        print(f"{1 - hits / total:.2f}  {' '.join(pairs)}")
        print(f"      {found.layer}, {found.when}; agreement {found.agreement or 0:.2f}")
    for name, (hits, total) in sums.items():
        print(f"alignment error rate of {name}: {1 - hits / total:.3f}")


if __name__ == "__main__":
    main()
