"""Written text: a prompt is read (prefill), then one token after the other is added (decode)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from bigmodel_cli.assemble import outline
from bigmodel_cli.bench.doing import Opened
from bigmodel_cli.bench.laps import Laps
from bigmodel_cli.bench.result import Facts, Work
from bigmodel_cli.bench.using import used
from bigmodel_cli.bench.work import read_by_decoding, work_of
from bigmodel_cli.data import random_batch
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import Unfit
from bigmodel_cli.generation.sampling import generate
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import Generator, Model
from bigmodel_cli.models.describe import useful_flops
from bigmodel_cli.models.init import Cache
from bigmodel_cli.models.stacks import extended
from bigmodel_cli.parts.contract import tensors_of

PROMPT, ADDED = 128, 64
"""Most tokens of the prompt, and tokens that are added: half of the context each where it is
shorter.
"""


class Watched(Generator):
    """A decoder whose last cache is kept."""

    def __init__(self, model: Generator) -> None:
        self.model, self.limit = model, model.limit
        self.cache: Cache | None = None

    def eval(self) -> object:
        return self.model.eval()

    def new_cache(self, batch: int, max_len: int | None = None) -> Cache:
        self.cache = self.model.new_cache(batch, max_len)
        return self.cache

    def __call__(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        segments: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        return self.model(tokens, cache, segments, last)


class Generation:
    """Greedy texts of one length after drawn prompts; of an encoder-decoder after a drawn source,
    which is read in the prefill. No token ends a text.
    """

    def __init__(self, opened: Opened, device: torch.device) -> None:
        """Raises `Unfit` for a model that does not write."""
        self.device, self.rows = device, opened.spec.train.batch_size
        self.used = used(opened, device, self.rows)
        model, info = self.used.model, self.used.info
        if not model.can_generate or info.vocab_size is None:
            raise Unfit(
                f"--doing generation: {opened.places[0]}: this network writes no text (task.type:"
                f" {self.used.task.name})"
            )
        longest = min(model.limit, model.max_len, info.text_context or info.context or model.limit)
        self.added = max(1, min(ADDED, longest // 2))
        self.source: dict[str, Tensor] | None = None
        if model.is_encoder_decoder:
            self.source = random_batch(info, self.used.task.reads, self.rows, device)
            self.prompt = torch.zeros((self.rows, 1), dtype=torch.long, device=device)
        else:
            length = max(1, min(PROMPT, longest - self.added))
            self.prompt = torch.randint(info.vocab_size, (self.rows, length), device=device)
        self.cache_bytes = 0
        self.first: list[float] = []

    @property
    def read(self) -> int:
        """Tokens (or frames) of each row that the prefill reads."""
        if self.source is None:
            return int(self.prompt.shape[1])
        return int(self.used.model.source(self.source)[0].shape[1]) + 1

    def facts(self) -> Facts:
        facts = self.used.facts("generation", self.rows, self.rows * self.added, "random")
        told = {
            "prompt_tokens": float(self.read),
            "new_tokens": float(self.added),
            "cache_bytes": float(self.cache_bytes),
            "first_token_s": statistics.median(self.first),
        }
        return replace(facts, unit="tokens", told=told)

    def step(self, marked: bool = True) -> Mapping[str, float]:
        laps = Laps(self.device, ("prefill", "decode"), marked)
        self._written(laps)
        found = laps.done()
        if marked:
            self.first.append(found["prefill"])
        return found

    def _written(self, laps: Any) -> None:
        model = self.used.model
        with torch.no_grad(), autocast(self.device, self.used.precision):
            source = () if self.source is None else model.source(self.source)
            watched = Watched(model.generator(*source))
            steps = generate(watched, self.prompt, max_new_tokens=self.added)
            next(steps)
            laps("prefill")
            for _ in steps:
                pass
            laps("decode")
        assert watched.cache is not None
        self.cache_bytes = bytes_of(watched.cache)

    def work(self) -> Work | None:
        """FLOPs of the prefill, whose last logits alone are needed, and of each step after it.

        Each step of decoding reads the weights and what is in the cache: on average half of the
        added tokens, and all that came before.
        """
        filled = (self.read + self.added / 2) / (self.read + self.added)
        once = read_by_decoding(self.used.model, self.rows, self.cache_bytes * filled)
        return work_of(
            self.step,
            self._run,
            self.rows * self.flops_of_a_text(),
            self.device,
            self.used.precision,
            compiled=self.used.spec.train.compile == "on",
            must_read=once * (self.added - 1) or None,
        )

    def flops_of_a_text(self) -> int:
        """FLOPs of one row, counted step by step: each attends to what is in the cache by then."""
        found = outline(self.used.spec, self.used.info)
        first, *rest = [useful_flops(partial(self._written_on_meta, m)) for m in found.measured]
        return extended(found.stacks, first, rest)

    def _written_on_meta(self, model: Model) -> None:
        source = () if self.source is None else model.source(self.source)
        model.eval()
        writer = model.generator(*(tensor[:1].to("meta") for tensor in source))
        cache = writer.new_cache(1, self.prompt.shape[1] + self.added)
        writer(self.prompt[:1].to("meta"), cache, last=True)
        for _ in range(self.added - 1):
            writer(self.prompt[:1, -1:].to("meta"), cache, last=True)

    def _run(self) -> None:
        self._written(lambda part: None)

    def peak_tensors(self) -> int:
        return self.used.peak(self._run)

    def close(self) -> None:
        """Nothing was started."""


def bytes_of(cache: Cache) -> int:
    """Bytes of all tensors of a cache, each storage once."""
    kept = [cache.segments, cache.memory.memory, cache.memory.memory_mask]
    tensors = [t for t in kept if t is not None]
    tensors += [t for block in cache.blocks for slot in block.values() for t in tensors_of(slot)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
