"""Cross-attention of Marian, T5 and Whisper in attend: weights of transformers' eager attention."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Result
from published import read
from test_seq2seq_families import batch
from test_seq2seq_families import published as published_text
from test_whisper import MULTILINGUAL, frames, recording, with_tokens
from test_whisper import published as published_speech
from torch import Tensor

from bigmodel_cli.attend.capture import watch
from bigmodel_cli.attend.pairs import dense
from bigmodel_cli.attend.stream import Stream
from bigmodel_cli.models import Model
from bigmodel_cli.parts.contract import Attends
from bigmodel_cli.parts.watched import AttentionCall


def seen(model: Model, *arguments: Tensor) -> dict[str, list[Tensor]]:
    """(H, T, S) of the first row of each call: of the encoder, the decoder, and across."""
    found: dict[str, list[Tensor]] = {"encoder": [], "decoder": [], "cross": []}

    def each(name: str, part: Attends, call: AttentionCall) -> None:
        kind = "cross" if call.memory else name.split(".")[0]
        found[kind].append(dense(Stream(call)))

    with watch(model, each), torch.no_grad():
        model(*arguments)
    return found


@pytest.mark.parametrize("name", ["marian, swish", "t5", "whisper"])
def test_weights_equal_those_of_eager_attention(name: str, tmp_path: Path) -> None:
    if name == "whisper":
        theirs = published_speech(tmp_path)
        target = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(2))
        inputs, source = {"input_features": frames(1).mT}, frames(1)
    else:
        theirs = published_text(tmp_path, name)
        source, _, target = (x[:1] for x in batch(theirs.config.vocab_size))
        inputs = {"input_ids": source}
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        want = theirs(**inputs, decoder_input_ids=target, output_attentions=True)
    ours, _ = read(tmp_path)
    found = seen(ours, source, target)
    for kind, layers in (
        ("encoder", want.encoder_attentions),
        ("decoder", want.decoder_attentions),
        ("cross", want.cross_attentions),
    ):
        assert len(found[kind]) == len(layers)
        for own, other in zip(found[kind], layers, strict=True):
            assert float((own - other[0]).abs().max()) < 1e-5, kind


def test_words_of_a_published_model_of_speech_have_times(
    tmp_path: Path, cli: Callable[..., Result]
) -> None:
    published_speech(tmp_path)
    with_tokens(tmp_path, **MULTILINGUAL, alignment_heads=[[1, 2], [2, 0]], max_new_tokens=8)
    path = recording(tmp_path / "a.wav", 0.6)
    done = cli("attend", tmp_path, path, "--json", "--device", "cpu")
    assert done.status == 0, done.err
    seen = json.loads(done.out)
    told = json.loads(cli("predict", tmp_path, path, "--device", "cpu").out)
    assert seen["answer"] == told["text"]
    times = seen["times"]
    assert times["heads"] == ["1.2", "2.0"]
    assert times["seconds_per_position"] == pytest.approx(0.02)
    assert [word["word"] for word in times["words"]] == told["text"].split()
    ends = [second for word in times["words"] for second in (word["start"], word["end"])]
    assert ends == sorted(ends)
    assert ends[0] == 0
    assert ends[-1] == pytest.approx(0.6)
