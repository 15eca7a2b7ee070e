"""Logits over a vocabulary, whole or in pieces, and their cross-entropy."""

from __future__ import annotations

from bigmodel_cli.logits.entropy import cross_entropy, token_nll
from bigmodel_cli.logits.late import Chunk, LateLogits, is_late, late, logits_of, whole
from bigmodel_cli.logits.pieces import summed_in_pieces
from bigmodel_cli.logits.share import LogitsShare, tokens
from bigmodel_cli.logits.wide import wide, wide_logits

__all__ = [
    "Chunk",
    "LateLogits",
    "LogitsShare",
    "cross_entropy",
    "is_late",
    "late",
    "logits_of",
    "summed_in_pieces",
    "token_nll",
    "tokens",
    "whole",
    "wide",
    "wide_logits",
]
