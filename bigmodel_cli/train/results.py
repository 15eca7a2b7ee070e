"""What a finished run shows of itself: what its model writes or rebuilds, and the curve."""

from __future__ import annotations

from bigmodel_cli.attend.rebuilt import draw_reconstructions
from bigmodel_cli.console import say
from bigmodel_cli.data import DataSet, load_tokenizer
from bigmodel_cli.errors import DataError
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.lazy import torch
from bigmodel_cli.models import Model
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import CausalLMOptions, MaskedImage
from bigmodel_cli.train.loop import Run
from bigmodel_cli.train.report import draw_curve, drawn
from bigmodel_cli.writing import Decoding, stream_text


def show_results(run: Run, data: DataSet) -> None:
    """What a finished run shows of itself: what its model writes or rebuilds, and the curve."""
    spec, task, model, device, directory = run.loaded.spec, run.task, run.loaded.model, run.device, run.directory
    failpoint("train.showing")
    with run.state.averaged():
        _show_sample(spec, data, model, device)
        if isinstance(task, MaskedImage):
            picture, split = directory.path / "rebuilt.png", "val" if "val" in data.splits else "train"
            chosen = data.split(split)
            if drawn(picture, lambda: draw_reconstructions(model, task, chosen, data.facts, device, picture)):
                given = ", each hidden patch at its true mean and deviation, which the loss does not ask for"
                say(f"rebuilt images: {picture}{given if task.options.normalize else ''}")
    if not directory.metrics.broken:
        curve = directory.path / "curve.png"
        if drawn(curve, lambda: draw_curve(directory.metrics.path, curve, task.metric)):
            say(f"curve: {curve}")


def _show_sample(spec: Spec, data: DataSet, model: Model, device: torch.device) -> None:
    """Text that a language model writes after its training, on stderr."""
    if not isinstance(spec.task, CausalLMOptions) or not spec.task.sample_tokens:
        return
    prompt = spec.task.sample_prompt
    decoding = Decoding(spec.task.sample_tokens, spec.task.sample_temperature, seed=spec.train.seed)
    try:
        text = "".join(stream_text(model, load_tokenizer(data.assets()), spec.data, prompt, decoding, device))
    except DataError as error:
        say(f"no sample is shown: task.sample_prompt: {error}")
        return
    say(f"sample:\n{prompt}{text}\n")
