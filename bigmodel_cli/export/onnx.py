"""ONNX, which onnxruntime and many devices run: graphs in fp32, and what stands beside them."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.console import say
from bigmodel_cli.export.graphs import graphs_of
from bigmodel_cli.export.onnx_files import files
from bigmodel_cli.export.recording import difference, record
from bigmodel_cli.export.source import Source
from bigmodel_cli.export.target import Target
from bigmodel_cli.export.writing import write_file
from bigmodel_cli.models.init import UNLIMITED
from bigmodel_cli.packages import need
from bigmodel_cli.parts.contract import grow_tables


class ONNX(Target):
    """model.onnx, or an encoder's and a decoder's graphs, compared with the model."""

    opens = "onnxruntime: InferenceSession(FOLDER/model.onnx)"

    def write(self, source: Source, folder: Path) -> None:
        for package in ("onnx", "onnxscript"):
            need(package, "onnx", "--to onnx")
        weights = [*source.model.parameters(), *source.model.buffers()]
        narrow = {str(w.dtype)[6:] for w in weights if w.is_floating_point()} - {"float32"}
        if narrow:
            say(f"weights in {', '.join(sorted(narrow))} are written in fp32")
        source.model.float().requires_grad_(False)
        grow_tables(source.model, source.model.max_len)
        graphs, notes = graphs_of(source), list[str]()
        for graph in graphs:
            record(graph, folder)
            found = difference(graph, folder)
            checked = (
                "not compared, since onnxruntime is not installed"
                if found is None
                else f"largest difference from the model in onnxruntime {found:.1e}, relative"
            )
            notes.append(f"{graph.file}: {checked}")
            say(notes[-1])
        if source.model.limit < UNLIMITED:
            say(f"at most {source.model.limit:,} positions, as the model")
        for name, content in files(source, graphs, notes):
            write_file(folder / name, [content])
