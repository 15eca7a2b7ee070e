"""Checkpoints: the native format and its commit protocol.

A checkpoint is a folder ``step-00002000`` with model.safetensors, train_state.safetensors, state.json, facts.json, spec.yaml,
the assets of the data (tokenizer.json), trained_on.bin (hashes of the items), and manifest.json, which names every file with its
size and SHA-256 and every tensor with its shape and dtype. It holds no absolute path, and reading it never runs code.
"""

from bigmodel_cli.checkpoints.contents import Contents
from bigmodel_cli.checkpoints.reading import find, newest, read, read_assets, read_spec, steps
from bigmodel_cli.checkpoints.replacing import tidy
from bigmodel_cli.checkpoints.safe import can_list
from bigmodel_cli.checkpoints.saving import drop_after, mark, prune, save
from bigmodel_cli.checkpoints.weights import LoadReport, load_weights, mean_weights

__all__ = [
    "Contents",
    "LoadReport",
    "can_list",
    "drop_after",
    "find",
    "load_weights",
    "mark",
    "mean_weights",
    "newest",
    "prune",
    "read",
    "read_assets",
    "read_spec",
    "save",
    "steps",
    "tidy",
]
