"""Mutated folders in Hugging Face's layout through predict, finetune, import and export.

    python tests/measure/fuzz_folders.py [--count 5000] [--first SEED] [--seeds SEED ...]

Their files are changed as bytes, as trees (JSON, headers of tensors) and in their place (folders,
pipes, links). What must show: status 4, or 0 where the change does no harm; 2 and 3 only where
config.json or the tokenizer now ask for something else; at most 5 s and 500 MiB. An audit hook
notes every file, program, socket and module that a run of the undamaged folder does not open too.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from damage import KINDS
from fuzzing import Campaign, Trial, main, quiet
from watching import DECLARED, Watch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "convert"))

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SIZES = {"vocab_size": 259, "max_position_embeddings": 24}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 12, "n_head": 3,
        "n_layer": 2, "n_positions": 24, "vocab_size": 259, "eos_token_id": 256,
    },
    "bert": {
        "model_type": "bert", "architectures": ["BertForSequenceClassification"],
        "hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2,
        "intermediate_size": 20, **SIZES, "id2label": {"0": "no", "1": "yes"},
        "eos_token_id": 256, "bos_token_id": 256,
    },
    "whisper": {
        "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"],
        "d_model": 12, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 3,
        "decoder_attention_heads": 3, "encoder_ffn_dim": 20, "decoder_ffn_dim": 16,
        "num_mel_bins": 8, "max_source_positions": 50, "max_target_positions": 24,
        "vocab_size": 259, "eos_token_id": 256, "decoder_start_token_id": 257,
        "is_encoder_decoder": True, "suppress_tokens": [40], "begin_suppress_tokens": [32, 256],
    },
}  # fmt: skip
EXTRACTOR = {"feature_size": 8, "chunk_length": 1, "sampling_rate": 16000, "n_fft": 400}
HEARD = {
    "eos_token_id": 256, "decoder_start_token_id": 257, "lang_to_id": {"<|en|>": 258},
    "forced_decoder_ids": [[1, None], [2, 257]], "begin_suppress_tokens": [32, 256],
    "suppress_tokens": [40, 41],
}  # fmt: skip
INPUTS = {"whisper": "a.wav"}
"""What is predicted from, of families that read no texts."""
FOLDER = Path("case/folder")
ON = ["--device", "cpu"]
OPERATIONS = {
    "predict": ["predict", str(FOLDER), "abba", *ON],
    "import": ["import", str(FOLDER)],
    "export": ["export", str(FOLDER), "case/out"],
    "finetune": ["finetune", "--from", str(FOLDER), "FAMILY.yaml", "--out", "case/run", *ON],
}
DATA: dict[str, Any] = {
    "bert": {
        "type": "table",
        "train": ["rows.csv"],
        "text": [0],
        "label": 1,
        "context": 12,
        "tokenizer": "bytes",
    },
    "whisper": {
        "type": "audio",
        "files": ["a.wav", "b.wav", "c.wav"],
        "transcripts": ["said.txt"],
        "prompt": "<|en|>",
    },
    "": {"type": "text", "files": ["corpus.txt"], "context": 12},
}


class Folders:
    """Cases of mutated folders."""

    def __init__(self, folder: Path, families: Sequence[str]) -> None:
        from folders import drawn_folder, llama_folder

        self.folder, self.families = folder, [*families]
        self.known: list[str] = []
        self.watch: Watch | None = None
        outside = folder.parent / "outside"
        outside.mkdir(exist_ok=True)
        (outside / "secret.json").write_text("{}")
        (folder / "base").mkdir()
        llama_folder(folder / "base" / "llama", shards=3)
        for name in self.families[1:]:
            drawn_folder(folder / "base" / name, CONFIGS[name])
        (folder / "corpus.txt").write_text("abba and the others\n" * 40)
        (folder / "rows.csv").write_text("the good,yes\nthe bad,no\n" * 20)
        for name in ("a", "b", "c"):
            write_sound(folder / f"{name}.wav")
        (folder / "said.txt").write_text("a\tyes\nb\tno\nc\tyes\n")
        self.trees: list[Any] = []
        for path in sorted((folder / "base").iterdir()):
            self.beside(path)
            train = {"steps": 1, "batch_size": 2, "precision": "fp32"}
            spec = {"data": DATA.get(path.name, DATA[""]), "train": train}
            (folder / f"{path.name}.yaml").write_text(yaml.safe_dump(spec))
            self.trees += [json.loads(f.read_bytes()) for f in sorted(path.glob("*config.json"))]

    def beside(self, path: Path) -> None:
        """The small files of a folder."""
        (path / "generation_config.json").write_text('{"eos_token_id": [256], "top_k": 5}')
        (path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
        (path / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
        (path / "chat_template.jinja").write_text(TEMPLATE)
        (path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
        if path.name == "whisper":
            (path / "preprocessor_config.json").write_text(json.dumps(EXTRACTOR))
            (path / "generation_config.json").write_text(json.dumps(HEARD))
            tokenizer = json.loads((path / "tokenizer.json").read_bytes())
            for number, text in ((257, "<|start|>"), (258, "<|en|>")):
                mark = {**tokenizer["added_tokens"][0], "id": number, "content": text}
                tokenizer["added_tokens"].append(mark)
            (path / "tokenizer.json").write_text(json.dumps(tokenizer))

    def words(self, family: str, operation: str) -> list[str]:
        """The command line of a case."""
        given = INPUTS.get(family, "abba")
        words = [given if word == "abba" else word for word in OPERATIONS[operation]]
        return [word.replace("FAMILY", family) for word in words]

    def clean(self) -> None:
        """Run what the cases run on folders as they are: it must succeed, and what is opened then
        is known.
        """
        from bigmodel_cli.__main__ import run

        self.watch = self.watcher()
        for family in self.families:
            for operation in OPERATIONS:
                for _ in range(2 if operation == "finetune" else 1):  # the cache is full then
                    self.copied(family)
                    self.watch.begin()
                    assert run(self.words(family, operation)) == 0, (family, operation)
                    self.known += self.watch.found()

    def watcher(self) -> Watch:
        """Allowed are the case, the data and the cache."""
        return Watch([self.folder], [self.folder.parent / "outside"], self.known)

    def copied(self, family: str) -> None:
        """A copy of a folder in the case's."""
        shutil.rmtree("case", ignore_errors=True)
        shutil.copytree(f"base/{family}", FOLDER, symlinks=True)

    def case(self, seed: int) -> Trial:
        """The case of a seed."""
        rng = random.Random(seed)
        family = rng.choice(self.families)
        operation = rng.choice(list(OPERATIONS))
        self.copied(family)
        name = rng.choice(sorted(p.name for p in FOLDER.iterdir()))
        kind, change = rng.choice(KINDS)
        change(rng, FOLDER / name, self.trees)
        allowed = {0, 4}
        if name.endswith(".json") and "index" not in name:
            allowed |= {2, 3}
        if name.endswith(".safetensors"):
            allowed |= {6}  # weights of another size make a loss that is not finite
        if kind == "place":
            allowed |= {2}  # not a folder at all

        def call() -> int:
            from bigmodel_cli.__main__ import run

            self.watch = self.watch or self.watcher()
            self.watch.begin()
            try:
                return run(self.words(family, operation))
            finally:
                self.watch.on = False

        def check(status: int, written: str) -> str:
            assert self.watch is not None
            found = self.watch.found()
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            return f"{found[0]}{more}" if found else ""

        return Trial(f"{operation} {kind}", call, sorted(allowed), check)


def write_sound(path: Path) -> None:
    """A second of a tone that gets louder."""
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        loud = [int(i * math.sin(i / 9)) for i in range(8000)]
        file.writeframes(b"".join(n.to_bytes(2, "little", signed=True) for n in loud))


def watched(folders: Folders) -> Campaign:
    """The cases, once a process of its own has found out what clean runs open: an audit hook stays
    in a process.
    """
    folder = folders.folder
    os.chdir(folder)
    pid = os.fork()
    if pid == 0:
        try:
            with quiet(folder / "clean.log"):
                folders.clean()
            (folder / "known.json").write_text(json.dumps(sorted(set(folders.known))))
        except BaseException:
            with open(folder / "clean.log", "a") as log:
                log.write(traceback.format_exc())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert (folder / "known.json").exists(), (folder / "clean.log").read_text()
    folders.known = json.loads((folder / "known.json").read_text())
    return Campaign(folders.case, folder)


def campaign(folder: Path, families: Sequence[str] = ("llama", *CONFIGS)) -> Campaign:
    """Make the folders, Llama's first, and cases of them."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.chdir(folder)
    for name in sorted(DECLARED):
        __import__(name)
    return watched(Folders(folder, families))


if __name__ == "__main__":
    main(str(__doc__), 5_000, campaign)
