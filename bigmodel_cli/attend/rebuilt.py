"""What a masked autoencoder makes of images it sees a part of, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bigmodel_cli.attend.picture import draw_rows
from bigmodel_cli.config import Facts
from bigmodel_cli.data import Split, denormalise
from bigmodel_cli.lazy import Module, torch
from bigmodel_cli.modes import evaluating
from bigmodel_cli.tasks import MaskedImage

SHOWN = 8


def draw_reconstructions(
    model: Module, task: MaskedImage, split: Split, facts: Facts, device: torch.device, path: Path
) -> None:
    """Draw the split's first images, what the model sees of them, and what it makes of that, as a PNG."""
    samples = np.arange(min(SHOWN, len(split)))
    batch = {name: tensor.to(device) for name, tensor in split.batch(samples, 0, 0, False).items()}
    with evaluating(model), torch.inference_mode():
        seen, rebuilt = task.rebuild(model, batch)
    rows = [denormalise(x, facts).cpu() for x in (batch["image"], seen, rebuilt)]
    last = "rebuilt at\ntrue mean,\ndeviation" if task.options.normalize else "rebuilt"
    draw_rows(dict(zip(("image", "seen", last), rows, strict=True)), path)
