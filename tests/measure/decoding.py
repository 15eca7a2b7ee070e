"""How fast sentences are translated by beam search, beside transformers' `generate` with the same weights.

    python tests/measure/decoding.py runs/multi30k_en_de --data DATA

The checkpoint's weights are put into transformers' M2M100 (pre-norm, sinusoidal positions, scaled shared embeddings: the same
network), and both search the same sentences with the same number of beams in batches of 32; in turns, several times. Without a
penalty of length, which the two define differently, the translations are the same but for ties of rounding. Ours is timed as
`bigmodel predict` works: text in, text out.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import M2M100Config, M2M100ForConditionalGeneration

from bigmodel_cli.data import load_tokenizer
from bigmodel_cli.loaded import Loaded, load_checkpoint
from bigmodel_cli.writing import BATCH, Decoding, write_after_reading


def theirs(loaded: Loaded) -> Any:
    """The same network in transformers, with the same weights."""
    options: Any = loaded.spec.model
    block, state = options.encoder[0], loaded.model.state_dict()
    vocab, heads = loaded.facts.vocab_size or 0, block.mixer.num_heads
    config = M2M100Config(
        vocab_size=vocab + 1, d_model=options.dim, encoder_layers=block.repeat, decoder_layers=options.decoder[0].repeat,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=block.ffn.hidden,
        decoder_ffn_dim=block.ffn.hidden, scale_embedding=options.scale_embeddings, activation_function="relu",
        max_position_embeddings=vocab + 200, pad_token_id=vocab, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    model = M2M100ForConditionalGeneration(config)
    wanted: dict[str, torch.Tensor] = {}
    shared = torch.cat((state["source_embedding.weight"], torch.zeros(1, options.dim)))
    for name in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        wanted[f"{name}.weight"] = shared
    for side, count in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for kind in ("weight", "bias"):
            wanted[f"model.{side}.layer_norm.{kind}"] = state[f"{side}_norm.{kind}"]
            for i in range(count):
                ours, layer = f"{side}.{i}", f"model.{side}.layers.{i}"
                for name, part in zip("qkv", state[f"{ours}.mixer.qkv.{kind}"].chunk(3), strict=True):
                    wanted[f"{layer}.self_attn.{name}_proj.{kind}"] = part
                pairs = {"mixer.out": "self_attn.out_proj", "mixer_norm": "self_attn_layer_norm"}
                pairs |= {"ffn.up": "fc1", "ffn.down": "fc2", "ffn_norm": "final_layer_norm"}
                if side == "decoder":
                    pairs |= {"cross.q": "encoder_attn.q_proj", "cross.out": "encoder_attn.out_proj"}
                    pairs["cross_norm"] = "encoder_attn_layer_norm"
                    for name, part in zip("kv", state[f"{ours}.cross.kv.{kind}"].chunk(2), strict=True):
                        wanted[f"{layer}.encoder_attn.{name}_proj.{kind}"] = part
                wanted |= {f"{layer}.{b}.{kind}": state[f"{ours}.{a}.{kind}"] for a, b in pairs.items()}
    missing, unexpected = model.load_state_dict(wanted, strict=False)
    assert not unexpected, unexpected
    assert all("embed_positions" in name for name in missing), missing
    # Their first position is the row after the padding's number, and their sines come before their cosines: take our table.
    table: torch.Tensor = loaded.model.position.table  # type: ignore[union-attr, assignment]
    for side in (model.model.encoder, model.model.decoder):
        side.embed_positions.weights = torch.cat((torch.zeros(vocab + 1, options.dim), table))
    return model.eval()


def translate_theirs(model: Any, loaded: Loaded, lines: list[str], beams: int, tokenizer: Any) -> list[str]:
    """Their beam search over batches of sentences of similar length, as ours."""
    end, pad = tokenizer.end_of_text, model.config.pad_token_id
    written, room = [], loaded.model.limit - 1
    for first in range(0, len(lines), BATCH):
        rows = [[*tokenizer.encode(line), end] for line in lines[first : first + BATCH]]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=(ids != pad).long(), num_beams=beams, max_new_tokens=room, length_penalty=0.0,
                early_stopping=False, decoder_start_token_id=end, eos_token_id=end, forced_eos_token_id=None,
            )  # fmt: skip
        written += [tokenizer.decode([t for t in row if t not in (end, pad)]) for row in out[:, 1:].tolist()]
    return written


def main() -> None:
    """Time both, and print sentences per second and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=1000)
    arguments = parser.parse_args()
    loaded = load_checkpoint(arguments.checkpoint, "cpu")
    tokenizer = load_tokenizer(loaded.assets)
    text = gzip.decompress((arguments.data / "multi30k" / "test_2016_flickr.en.gz").read_bytes()).decode()
    lines = sorted((line.strip() for line in text.splitlines()[: arguments.sentences]), key=len)
    beams = loaded.spec.task.beams  # type: ignore[union-attr]
    other = theirs(loaded)
    ways = {
        "bigmodel": lambda: [r["text"] for r in write_after_reading(loaded, lines, Decoding(length_penalty=0.0))],
        "transformers": lambda: translate_theirs(other, loaded, lines, beams, tokenizer),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[str]] = {}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            texts[name] = way()
            seconds[name].append(time.perf_counter() - start)
            print(f"{name}: {len(lines) / seconds[name][-1]:.1f} sentences/s", file=sys.stderr, flush=True)
    ratios = [b / a for a, b in zip(seconds["bigmodel"], seconds["transformers"], strict=True)]
    same = sum(a == b for a, b in zip(*texts.values(), strict=True))
    for name, taken in seconds.items():
        print(f"{name}: {len(lines) / statistics.median(taken):.1f} sentences/s, {beams} beams")
    print(
        f"ratio {statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)}); {same} of {len(lines)} equal"
    )


if __name__ == "__main__":
    main()
