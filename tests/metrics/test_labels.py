"""F1 from counts is scikit-learn's; the picture is there and as large as its classes need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

from bigmodel_cli.errors import ResourceError
from bigmodel_cli.metrics.labels import confusion, draw_confusion, f1_measure, macro_f1


@pytest.mark.parametrize("classes", [2, 3, 10, 60])
def test_counts_and_f1_are_those_of_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    for case in range(20):
        # others are absent from both
        present = rng.choice(classes, rng.integers(1, classes + 1), replace=False)
        labels, predictions = rng.choice(present, 40), rng.choice(present, 40)
        if case % 2:
            predictions = np.where(rng.random(40) < 0.7, labels, rng.integers(classes, size=40))
        found = confusion(torch.from_numpy(labels), torch.from_numpy(predictions), classes)
        every = list(range(classes))
        assert np.array_equal(found.numpy(), confusion_matrix(labels, predictions, labels=every))
        wanted = f1_score(labels, predictions, average="macro")
        assert float(macro_f1(found)) == pytest.approx(wanted, abs=1e-12)
        measure = f1_measure(torch.from_numpy(labels), torch.from_numpy(predictions), classes)
        assert measure.total() == pytest.approx(wanted, abs=1e-12)
        weights = torch.from_numpy(rng.multinomial(40, np.full(40, 1 / 40), size=3)).double()
        for row, value in zip(
            weights.long().numpy(), measure.value(measure.sums(weights)).tolist(), strict=True
        ):
            again = f1_score(labels.repeat(row), predictions.repeat(row), average="macro")
            assert value == pytest.approx(again, abs=1e-12)


def test_counts_add_up_and_f1_is_computed_for_many_at_once() -> None:
    labels, predictions = torch.randint(5, (3, 4, 50)), torch.randint(5, (3, 4, 50))
    counts = torch.stack(
        [
            torch.stack([confusion(a, b, 5) for a, b in zip(*r, strict=True)])
            for r in zip(labels, predictions, strict=True)
        ]
    )
    assert counts.shape == (3, 4, 5, 5)
    together = macro_f1(counts)
    assert together.shape == (3, 4)
    assert together[1, 2] == macro_f1(counts[1, 2])
    assert torch.equal(counts.sum((0, 1)), confusion(labels.flatten(), predictions.flatten(), 5))
    assert bool(macro_f1(torch.zeros(4, 4, dtype=torch.int64)).isnan())  # nothing was counted


def test_the_confusion_matrix_is_drawn_for_few_and_many_classes(tmp_path: Path) -> None:
    from PIL import Image

    for classes in (
        ["negative", "positive"],
        [str(i) for i in range(10)],
        [f"a $long$ name\n{i}" for i in range(100)],
    ):
        count = len(classes)
        path = tmp_path / f"{count}.png"
        draw_confusion(
            torch.randint(50, (count, count)) + 500 * torch.eye(count, dtype=torch.int64),
            classes,
            path,
        )
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 400
            assert max(image.size) <= 2000
    with pytest.raises(ResourceError, match="cannot be written"):
        draw_confusion(torch.eye(2), ["a", "b"], tmp_path / "no" / "folder.png")
