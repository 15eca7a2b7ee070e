"""How fast sentences are translated by beam search, beside a peer with the same weights.

    python tests/measure/decoding.py runs/multi30k_en_de --data DATA [--peer joeynmt]

The checkpoint's weights are put into the peer's own network of the same kind (pre-norm, sinusoidal
positions, scaled shared embeddings: M2M100 in transformers, the Transformer of JoeyNMT), and both
search the same sentences with the same number of beams in batches of one size; in turns, several
times. Without a penalty of length, which they define differently, the translations are the same but
for ties of rounding. Ours is timed as `bigmodel predict` works: text in, text out.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bigmodel_cli.data import load_tokenizer
from bigmodel_cli.generation.batches import BATCH
from bigmodel_cli.generation.text import Decoding, generate_from_source
from bigmodel_cli.loaded import Loaded, load_checkpoint

Translate = Callable[[list[str]], list[str]]


def transformers_peer(loaded: Loaded, tokenizer: Any, beams: int) -> Translate:
    """The same network in transformers, with the same weights, and its beam search."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    options: Any = loaded.spec.model
    block, state = options.encoder[0], loaded.model.state_dict()
    vocab, heads = loaded.info.vocab_size or 0, block.mixer.num_heads
    config = M2M100Config(
        vocab_size=vocab + 1, d_model=options.dim, encoder_layers=block.repeat,
        decoder_layers=options.decoder[0].repeat,
        encoder_attention_heads=heads, decoder_attention_heads=heads,
        encoder_ffn_dim=block.ffn.hidden,
        decoder_ffn_dim=block.ffn.hidden, scale_embedding=options.scale_embeddings,
        activation_function="relu",
        max_position_embeddings=vocab + 200, pad_token_id=vocab, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = M2M100ForConditionalGeneration(config)
    wanted: dict[str, torch.Tensor] = {}
    shared = torch.cat((state["source_embedding.weight"], torch.zeros(1, options.dim)))
    for name in (
        "model.shared",
        "model.encoder.embed_tokens",
        "model.decoder.embed_tokens",
        "lm_head",
    ):
        wanted[f"{name}.weight"] = shared
    attention = "{0}.q_proj {0}.k_proj {0}.v_proj"
    encoder = {"mixer.qkv": attention.format("self_attn"), "mixer.out": "self_attn.out_proj"}
    encoder |= {
        "mixer_norm": "self_attn_layer_norm",
        "ffn.up": "fc1",
        "ffn.down": "fc2",
        "ffn_norm": "final_layer_norm",
    }
    decoder = {
        "cross.q": "encoder_attn.q_proj",
        "cross.kv": "encoder_attn.k_proj encoder_attn.v_proj",
    }
    decoder |= {"cross.out": "encoder_attn.out_proj", "cross_norm": "encoder_attn_layer_norm"}
    wanted |= renamed(loaded, "model.", encoder, encoder | decoder)
    missing, unexpected = model.load_state_dict(wanted, strict=False)
    assert not unexpected, unexpected
    assert all("embed_positions" in name for name in missing), missing
    # Their first position is the row after the padding's number, and their sines come before their
    # cosines: take our table.
    table: torch.Tensor = loaded.model.position.table  # type: ignore[union-attr, assignment]
    for side in (model.model.encoder, model.model.decoder):
        side.embed_positions.weights = torch.cat((torch.zeros(vocab + 1, options.dim), table))
    model.eval()

    def translate(lines: list[str]) -> list[str]:
        written = []
        for ids in batches(lines, tokenizer, vocab):
            with torch.inference_mode():
                out = model.generate(
                    ids, attention_mask=(ids != vocab).long(), num_beams=beams,
                    max_new_tokens=loaded.model.limit - 1,
                    length_penalty=0.0, early_stopping=False, decoder_start_token_id=0,
                    forced_eos_token_id=None,
                )  # fmt: skip
            written += [
                tokenizer.decode([t for t in row if t not in (0, vocab)])
                for row in out[:, 1:].tolist()
            ]
        return written

    return translate


def joeynmt_peer(loaded: Loaded, tokenizer: Any, beams: int) -> Translate:
    """The same network in JoeyNMT, with the same weights, and its beam search."""
    from joeynmt.decoders import TransformerDecoder
    from joeynmt.embeddings import Embeddings
    from joeynmt.encoders import TransformerEncoder
    from joeynmt.model import Model
    from joeynmt.search import beam_search

    options: Any = loaded.spec.model
    block, state = options.encoder[0], loaded.model.state_dict()
    vocab = loaded.info.vocab_size or 0
    kinds: dict[str, Any] = {
        "hidden_size": options.dim,
        "ff_size": block.ffn.hidden,
        "num_heads": block.mixer.num_heads,
    }
    kinds |= {"layer_norm": "pre", "dropout": 0.0, "emb_dropout": 0.0}
    encoder = TransformerEncoder(num_layers=block.repeat, **kinds)
    decoder = TransformerDecoder(
        num_layers=options.decoder[0].repeat, vocab_size=vocab + 3, **kinds
    )
    table = Embeddings(
        options.dim, scale=options.scale_embeddings, vocab_size=vocab + 3, padding_idx=vocab
    )
    words = SimpleNamespace(
        pad_index=vocab,
        unk_index=vocab + 1,
        bos_index=vocab + 2,
        eos_index=0,
        sep_index=vocab + 1,
        specials=[],
        lang_tags=[],
    )
    model = Model(encoder, decoder, table, table, words, words)
    decoder.output_layer.weight = table.lut.weight
    shared = state["source_embedding.weight"]
    # It never writes the mark of the beginning, which is that of the end here: a copy of its row
    # stands for it.
    wanted = {"src_embed.lut.weight": torch.cat((shared, torch.zeros(2, options.dim), shared[:1]))}
    feed = {"ffn.up": "feed_forward.pwff_layer.0", "ffn.down": "feed_forward.pwff_layer.3"}
    sides = []
    for own, norm in (("src_src_att", "layer_norm"), ("trg_trg_att", "x_layer_norm")):
        attention = {
            "mixer.qkv": f"{own}.q_layer {own}.k_layer {own}.v_layer",
            "mixer.out": f"{own}.output_layer",
        }
        sides.append(attention | feed | {"mixer_norm": norm, "ffn_norm": "feed_forward.layer_norm"})
    sides[1] |= {
        "cross.q": "src_trg_att.q_layer",
        "cross.kv": "src_trg_att.k_layer src_trg_att.v_layer",
    }
    sides[1] |= {"cross.out": "src_trg_att.output_layer", "cross_norm": "dec_layer_norm"}
    wanted |= renamed(loaded, "", *sides)
    missing, unexpected = model.load_state_dict(wanted, strict=False)
    assert not unexpected, unexpected
    assert all(".pe" in name or "embed" in name or "output_layer" in name for name in missing), (
        missing
    )
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = block.norm.eps
    model.eval()

    def translate(lines: list[str]) -> list[str]:
        written = []
        for ids in batches(lines, tokenizer, vocab):
            mask = (ids != vocab)[:, None]
            with torch.no_grad():
                memory, _ = model.encoder(model.src_embed(ids), mask.sum(-1)[:, 0], mask)
                out, _, _ = beam_search(
                    model=model, beam_size=beams, encoder_output=memory, encoder_hidden=None,
                    src_mask=mask,
                    max_output_length=int(1.5 * ids.shape[1]), alpha=-1,  # its own default length
                )  # fmt: skip
            rows = [row[: row.index(0)] if 0 in row else row for row in out.tolist()]
            written += [tokenizer.decode([t for t in row if t < vocab]) for row in rows]
        return written

    return translate


def renamed(
    loaded: Loaded, prefix: str, encoder: dict[str, str], decoder: dict[str, str]
) -> dict[str, torch.Tensor]:
    """Both sides' layers and last norms under a peer's names: {ours: theirs} within a layer,
    several where ours is their join.
    """
    state, options = loaded.model.state_dict(), loaded.spec.model
    found: dict[str, torch.Tensor] = {}
    for side, names in (("encoder", encoder), ("decoder", decoder)):
        for kind in ("weight", "bias"):
            found[f"{prefix}{side}.layer_norm.{kind}"] = state[f"{side}_norm.{kind}"]
            for i in range(getattr(options, side)[0].repeat):
                for ours, theirs in names.items():
                    several = theirs.split()
                    parts = state[f"{side}.{i}.{ours}.{kind}"].chunk(len(several))
                    found |= {
                        f"{prefix}{side}.layers.{i}.{n}.{kind}": p
                        for n, p in zip(several, parts, strict=True)
                    }
    return found


def batches(lines: list[str], tokenizer: Any, padding: int) -> Iterator[torch.Tensor]:
    """The sentences as tokens (B, S) with their ends, padded at the right."""
    for first in range(0, len(lines), BATCH):
        rows = [
            [*tokenizer.encode(line), tokenizer.end_of_text]
            for line in lines[first : first + BATCH]
        ]
        longest = max(map(len, rows))
        yield torch.tensor([row + [padding] * (longest - len(row)) for row in rows])


PEERS = {"transformers": transformers_peer, "joeynmt": joeynmt_peer}


def main() -> None:
    """Time both, and print sentences per second and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", choices=PEERS, default="transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=1000)
    arguments = parser.parse_args()
    loaded = load_checkpoint(arguments.checkpoint, "cpu")
    tokenizer = load_tokenizer(loaded.assets)
    text = gzip.decompress(
        (arguments.data / "multi30k" / "test_2016_flickr.en.gz").read_bytes()
    ).decode()
    lines = sorted((line.strip() for line in text.splitlines()[: arguments.sentences]), key=len)
    beams = loaded.spec.task.beams  # type: ignore[union-attr]
    other = PEERS[arguments.peer](loaded, tokenizer, beams)
    ways: dict[str, Translate] = {
        "bigmodel": lambda some: [
            r["text"] for r in generate_from_source(loaded, some, Decoding(length_penalty=0.0))
        ],
        arguments.peer: other,
    }
    for way in ways.values():
        way(lines[:BATCH])  # warm
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[str]] = {}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            texts[name] = way(lines)
            seconds[name].append(time.perf_counter() - start)
            print(
                f"{name}: {len(lines) / seconds[name][-1]:.1f} sentences/s",
                file=sys.stderr,
                flush=True,
            )
    ratios = [b / a for a, b in zip(seconds["bigmodel"], seconds[arguments.peer], strict=True)]
    same = sum(a == b for a, b in zip(*texts.values(), strict=True))
    for name, taken in seconds.items():
        print(f"{name}: {len(lines) / statistics.median(taken):.1f} sentences/s, {beams} beams")
    print(
        f"ratio {statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)}); {same}"
        f" of {len(lines)} equal"
    )


if __name__ == "__main__":
    main()
