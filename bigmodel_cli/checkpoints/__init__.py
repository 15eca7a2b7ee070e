"""Checkpoints: the native format and its commit protocol.

A checkpoint is a folder ``step-00002000`` with model.safetensors, train_state.safetensors (or
numbered files, such as model-00001-of-00004.safetensors, where the tensors of a kind take more than
0.5 GB), state.json, facts.json, spec.yaml, the assets of the data (tokenizer.json), trained_on.bin
(hashes of the items), and manifest.json, which names every file with its size and SHA-256 and every
tensor with its shape and dtype. Tensors are written and read one after the other. It holds no
absolute path, and reading it never runs code.
"""

from bigmodel_cli.checkpoints.contents import Contents, step_name
from bigmodel_cli.checkpoints.copies import Copies
from bigmodel_cli.checkpoints.layers import Taken, TakenLayers
from bigmodel_cli.checkpoints.marks import drop_after, mark, prune
from bigmodel_cli.checkpoints.reading import (
    Checkpoint,
    find,
    newest,
    read,
    read_assets,
    read_spec,
    steps,
)
from bigmodel_cli.checkpoints.replacing import tidy
from bigmodel_cli.checkpoints.safe import can_list
from bigmodel_cli.checkpoints.saving import Save, save
from bigmodel_cli.checkpoints.stored import (
    ChangedTensors,
    StoredTensors,
    Tensors,
    copy_tensors,
    glance,
)
from bigmodel_cli.checkpoints.weights import (
    LoadReport,
    check_weights,
    load_weights,
    mean_weights,
    not_finite,
)

__all__ = [
    "ChangedTensors",
    "Checkpoint",
    "Contents",
    "Copies",
    "LoadReport",
    "Save",
    "StoredTensors",
    "Taken",
    "TakenLayers",
    "Tensors",
    "can_list",
    "check_weights",
    "copy_tensors",
    "drop_after",
    "find",
    "glance",
    "load_weights",
    "mark",
    "mean_weights",
    "newest",
    "not_finite",
    "prune",
    "read",
    "read_assets",
    "read_spec",
    "save",
    "step_name",
    "steps",
    "tidy",
]
