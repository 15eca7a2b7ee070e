"""Writing a graph as ONNX, and comparing what onnxruntime makes of it with the model."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigmodel_cli.errors import SpecError
from bigmodel_cli.export.graphs import Given, Graph, Sizes
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.parts.context import recording

BOUND = 1e-3
"""Largest difference from the model, relative to its largest output. Rounding in fp32 gives 1e-6 to
1e-5, and a graph of something else 0.01 and more.
"""


def record(graph: Graph, folder: Path) -> None:
    """Write a graph; weights of more than 2 GB go into a file beside it.

    Raises `SpecError` for a network whose way depends on the numbers in it.
    """
    given = drawn(graph, graph.recorded_at(), padding=True, seed=0)
    axes = {
        one.name: {i: axis for i, axis in enumerate(one.axes) if isinstance(axis, str)}
        for one in graph.inputs
    }
    with torch.no_grad(), _quiet():
        names = list(graph(given))
        try:
            with recording():
                program = torch.onnx.export(
                    graph,
                    (),
                    kwargs={"given": given},
                    input_names=list(given),
                    output_names=names,
                    dynamic_shapes={"given": axes},
                    verbose=False,
                )
            assert program is not None
            # Where each operator came from: paths of this machine, and most of a small file.
            _passes().ClearMetadataAndDocStringPass()(program.model)
            program.save(folder / graph.file)
        except OSError:
            raise
        except Exception as error:  # of torch's many kinds; the first cause says it best
            raise SpecError(
                f"--to onnx: {graph.file} cannot be recorded as a graph for all sizes:"
                f" {_cause(error)}; a part may decide by the numbers that it computes, or is one"
                " that ONNX has no operator for"
            ) from error


def drawn(graph: Graph, sizes: Sizes, padding: bool, seed: int) -> Given:
    """Random inputs of these sizes."""
    draw = torch.Generator().manual_seed(seed)
    return {one.name: one.drawn(sizes, draw, padding) for one in graph.inputs}


def difference(graph: Graph, folder: Path) -> float | None:
    """The largest difference on inputs of other sizes than recorded, relative to the outputs.

    None where onnxruntime is not installed. Padding is not compared. Raises `SpecError` for one
    above `BOUND`.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    session = _session(folder / graph.file)
    largest = 0.0
    for number, (sizes, padding) in enumerate(graph.checked_at()):
        given = drawn(graph, sizes, padding, seed=1 + number)
        with torch.no_grad():
            expected = graph(given)
        feeds = {one.name: given[one.name].numpy() for one in session.get_inputs()}
        found = dict(zip(expected, session.run(list(expected), feeds), strict=True))
        for name in list(expected)[: 1 if padding else None]:
            own, theirs = expected[name], torch.from_numpy(found[name])
            own, theirs = (_without_padding(graph, given, t, padding) for t in (own, theirs))
            if own.numel():
                size = float(own.abs().max()) or 1.0
                largest = max(largest, float((own - theirs).abs().max()) / size)
    if not largest <= BOUND:  # not a number, too
        raise SpecError(
            f"--to onnx: {graph.file} gives other numbers in onnxruntime than the model (largest"
            f" difference {largest:.2g} of the largest output, at most {BOUND:g}); nothing is"
            " written"
        )
    return largest


def _without_padding(graph: Graph, given: Given, output: Tensor, padding: bool) -> Tensor:
    real = graph.seen(given) if padding else None
    return output if real is None or output.shape[:2] != real.shape else output[real]


def _passes() -> Any:
    return importlib.import_module("onnx_ir.passes.common")


def _session(path: Path) -> Any:
    library = importlib.import_module("onnxruntime")
    options = library.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress and warnings, which are of its own work."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _cause(error: BaseException) -> str:
    """The first line of what was raised first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
