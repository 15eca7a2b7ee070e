"""`bench --plan`: the operations of a step on paper against those of a real one, rates that are
interpolated, and what devices send and keep, by hand.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result

from bigmodel_cli.bench import calibrating, plan
from bigmodel_cli.bench.calibrating import network
from bigmodel_cli.bench.clusters import CARDS, FULL_NAMES, Cluster, cluster
from bigmodel_cli.bench.doing import Opened, warm
from bigmodel_cli.bench.paper import calls_of, on_paper
from bigmodel_cli.bench.plan import planned
from bigmodel_cli.bench.rates import FLOOR, Host, Rates, Sample, host_of, merged
from bigmodel_cli.bench.roof import Peaks
from bigmodel_cli.bench.training import Training
from bigmodel_cli.bench.watching import Call, seen
from bigmodel_cli.errors import SpecError

Cli = Callable[..., Result]
Values = dict[str, Any]
CPU = torch.device("cpu")
ATTENTION = {"type": "attention", "num_heads": 3, "kv_heads": 1, "position": {"type": "rotary"}}
DENSE = {"repeat": 2, "mixer": ATTENTION, "ffn": "swiglu"}
IMAGES = {"image_shape": (2, 20, 14), "mean": (0.5,) * 2, "std": (0.2,) * 2, "classes": ("a", "b")}


def text(*blocks: Values, batch: int = 5, context: int = 26) -> Values:
    """A decoder of width 24."""
    return {
        "model": {"type": "decoder", "dim": 24, "blocks": list(blocks)},
        "task": {"type": "causal_lm"},
        "info": {"vocab_size": 53, "context": context},
        "batch": batch,
    }


def images(model: Values) -> Values:
    """A classifier."""
    return {"model": model, "task": {"type": "classification"}, "info": IMAGES, "batch": 6}


LAYERS = [
    {"type": "conv", "channels": 6, "kernel": 3, "norm": "batch"},
    {"type": "pool", "kind": "max", "kernel": 2},
    {"type": "flatten"},
    {"type": "dense", "units": "classes"},
]
NETWORKS = {
    "decoder": text(DENSE),
    "a long stack": text({**DENSE, "repeat": 19}),
    "two long stacks": text(
        {**DENSE, "repeat": 18}, {"repeat": 17, "mixer": {**ATTENTION, "window": 5}, "ffn": "relu"}
    ),
    "latent": text({"mixer": calibrating.MLA, "ffn": "gelu"}),
    "cnn": images({"type": "cnn", "layers": LAYERS}),
    "vit": images(
        {"type": "vit", "dim": 18, "patch": 2, "blocks": [{"mixer": ATTENTION, "ffn": "gelu"}]}
    ),
}


def counted(calls: Counter[Call]) -> Counter[tuple[Any, ...]]:
    """Products, convolutions and attention by their form, sizes and precision."""
    found: Counter[tuple[Any, ...]] = Counter()
    for call, count in calls.items():
        if call.flops:
            found[call.form, call.sizes, call.kind, call.flops, call.bytes] += count
    return +found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_operations_on_paper_are_those_of_a_real_step(name: str, precision: str) -> None:
    spec, info = network(NETWORKS[name], precision, "contiguous")
    training = Training(Opened((name,), spec, info, None), CPU)
    warm(training, 1)
    real, _ = seen(training.once(), CPU, 1)
    training.close()
    paper = on_paper(spec, info, precision, "contiguous", spec.train.batch_size)
    foreseen = calls_of(paper, 1)
    assert counted(foreseen) == counted(Counter(real))
    moved = sum(count * call.bytes for call, count in foreseen.items())
    assert moved == pytest.approx(sum(call.bytes for call in real), rel=0.03)


def test_experts_have_as_many_rows_each_on_paper() -> None:
    experts = {"type": "moe", "experts": 4, "top_k": 1, "hidden": 44}
    spec, info = network(text({"mixer": ATTENTION, "ffn": experts}), "fp32", "contiguous")
    calls = calls_of(on_paper(spec, info, "fp32", "contiguous", 2), 1)
    up = [c for c in calls if c.form == "product nt" and c.sizes[2:] == (24, 44)]
    assert [(c.sizes, calls[c]) for c in up] == [((1, 13, 24, 44), 8)]  # gate and up of 4 experts


def test_activations_that_are_computed_again_are_so_on_paper() -> None:
    spec, info = network(NETWORKS["decoder"], "fp32", "contiguous")
    again = spec.model_copy(
        update={"train": spec.train.model_copy(update={"checkpointing": "blocks"})}
    )
    plain, less = (on_paper(s, info, "fp32", "contiguous", 5) for s in (spec, again))
    assert less.peaks[0] < 0.7 * plain.peaks[0]
    flops = [sum(n * c.flops for c, n in calls_of(p, 1).items()) for p in (plain, less)]
    assert 1.1 * flops[0] < flops[1] < 1.35 * flops[0]


def test_memory_of_passes_on_paper_is_that_of_the_dry_run() -> None:
    from bigmodel_cli.assemble import outline
    from bigmodel_cli.train.plan import memory_of

    spec, info = network(NETWORKS["a long stack"], "fp32", "contiguous")
    memory = memory_of(spec, info, outline(spec, info), (26,))
    peaks = on_paper(spec, info, "fp32", "contiguous", 5).peaks
    # without storage the gradient of SiLU is made of several operations, which hold more
    assert max(peaks[1:]) - memory.gradients == pytest.approx(memory.activations, rel=0.12)


def sample(seconds: float, flops: float = 1e6, form: str = "product nt", rows: int = 8) -> Sample:
    return Sample(form, "float32", flops, 1e3, (1, rows, 10, 10), seconds)


def call(flops: float, form: str = "product nt", rows: int = 8) -> Call:
    return Call("linear", flops, 1e3, torch.float32, 0.0, form, (1, rows, 10, 10))


def test_rates_are_those_measured_where_they_were_and_lie_between() -> None:
    known = [sample(4e-5, 1e6), sample(9e-5, 1e7, rows=80)]
    rates = Rates(known, {"float32": 1e11}, 1e10)
    at_peaks = FLOOR + 1e6 / 1e11
    assert rates.at_peaks(known[0]) == pytest.approx(at_peaks)
    assert Rates(known[:1], {"float32": 1e11}, 1e10).seconds(call(1e6)) == pytest.approx(4e-5)
    ratios = [own.seconds / rates.at_peaks(own) for own in known]
    between = rates.seconds(call(3e6, rows=25)) / rates.at_peaks(Sample.of(call(3e6, rows=25)))
    assert min(ratios) < between < max(ratios)
    assert rates.seconds(call(1e6, "never seen")) == pytest.approx(rates.seconds(call(1e6)), rel=1)
    again = Rates.from_json(json.dumps(rates.to_json()))
    assert again.seconds(call(3e6)) == rates.seconds(call(3e6))


def test_equal_operations_are_one_sample_of_their_median_time() -> None:
    calls = [
        Call("linear", 5.0, 7.0, torch.float32, seconds, "product nn", (1, 2, 3, 4))
        for seconds in (3.0, 1.0, 2.0)
    ]
    assert merged(calls) == [Sample("product nn", "float32", 5.0, 7.0, (1, 2, 3, 4), 2.0)]


def test_what_the_host_takes_is_found_again() -> None:
    steps = [
        (inside + 3e-4 + 2e-6 * calls + 1e-5 * weights, inside, calls, weights)
        for inside, calls, weights in (
            (1e-3, 90.0, 10.0), (9e-3, 400.0, 30.0), (2e-3, 1000.0, 80.0), (0.1, 200.0, 5.0),
            (3e-4, 50.0, 40.0),
        )
    ]  # fmt: skip
    found = host_of(steps)
    for step, *own in steps:
        assert found.seconds(*own) == pytest.approx(step, rel=0.04)


def test_gradients_are_summed_over_devices_where_all_fits_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, info = network(text(DENSE, batch=12), "bf16", "contiguous")
    opened = Opened(("x",), spec, info, None)
    found = planned("x", opened, Cluster(4, "a100"), "cpu")
    count = sum(p.numel() for p in plan.outline(spec, info).tensors)
    assert (found.how, found.share.rows, found.share.passes) == (plan.WHOLE, 3, 1)
    assert found.sent == pytest.approx(2 * 3 / 4 * 4 * count)
    assert found.memory.kept == pytest.approx(16 * count, rel=0.01)
    assert found.communication == pytest.approx(found.sent / (0.8 * 300e9) + 2 * 2e-5)
    assert found.step == pytest.approx(math.fsum(found.parts.values()))
    assert 0 < found.mfu < 1
    # on a small device the state is split among all
    small = {**CARDS, "a100": plan.replace(CARDS["a100"], memory=9.0 * count)}
    monkeypatch.setattr("bigmodel_cli.bench.clusters.CARDS", small)
    split = planned("x", opened, Cluster(4, "a100"), "cpu")
    assert split.how == plan.SPLIT
    # blocks' weights twice, the others' once, gradients once, all in fp32 and in 4 equal parts
    outer = sum(
        w.tensor.numel()
        for w in plan.outline(spec, info).weights
        if not w.name.startswith("blocks.")
    )
    assert split.sent == pytest.approx(3 / 4 * 4 * (3 * count - outer), rel=0.01)
    assert split.memory.kept < found.memory.kept / 2


def test_more_devices_than_samples_and_precisions_that_are_lacking_are_refused() -> None:
    spec, info = network(text(DENSE, batch=3), "bf16", "contiguous")
    opened = Opened(("x",), spec, info, None)
    with pytest.raises(SpecError, match=r"3 samples of a batch are too few for 8 devices; set"):
        planned("x", opened, Cluster(8, "h100"), "cpu")
    with pytest.raises(SpecError, match="v100 has no bf16"):
        planned("x", opened, Cluster(1, "v100"), "cpu")


BAD = {
    "8h100": "write NxNAME",
    "0xh100": "1 to 1,048,576 devices",
    "8xh10": "h10 is not one of this, h100",
    "8x": "write NxNAME",
}


@pytest.mark.parametrize("given", BAD)
def test_devices_that_are_none_are_refused(given: str, cli: Cli) -> None:
    result = cli("bench", "--plan", given)
    assert result.status == 2
    assert f"--plan {given}" in result.err
    assert BAD[given] in result.err


def test_each_device_has_a_name_for_people_and_a_ring_is_as_fast_as_its_slowest_link() -> None:
    assert set(FULL_NAMES) == set(CARDS)
    assert cluster("8xH100").bandwidth == pytest.approx(0.8 * 450e9)
    assert cluster("64xh100").bandwidth == pytest.approx(0.8 * 400e9)
    assert cluster("16xt4").bandwidth == pytest.approx(0.8 * 16e9)


def test_a_plan_has_no_measuring_beside_it(cli: Cli, decoder_spec: Path) -> None:
    assert decoder_spec.exists()
    for more in (["--sweep", "train.batch_size=1,2"], ["--seconds", "2"], ["--learn"]):
        result = cli("bench", "decoder.yaml", "--plan", "1xh100", *more)
        assert result.status == 2, more
    both = cli("bench", "decoder.yaml", "--plan", "1xh100", "--compile", "both")
    assert both.status == 2


LARGE = """\
model:
  type: decoder
  dim: 8192
  norm: {type: rmsnorm}
  tie_embeddings: false
  vocab_size: 128256
  blocks:
    - repeat: 80
      mixer: {type: attention, num_heads: 64, kv_heads: 8, bias: false}
      ffn: {type: swiglu, hidden: 28672, bias: false}
      norm: {type: rmsnorm}
data: {type: text, files: [none.txt], context: 2048, tokenizer: {type: bytes}}
task: {type: causal_lm}
train: {steps: 1, batch_size: 64}
"""


def test_seventy_billion_weights_are_planned_without_any(tmp_path: Path) -> None:
    from bigmodel_cli.config import DatasetInfo
    from bigmodel_cli.spec import load

    path = tmp_path / "large.yaml"
    path.write_text(LARGE)
    spec = load(path)
    opened = Opened(("large",), spec, DatasetInfo(vocab_size=128256, context=2048), None)
    found = planned("large", opened, Cluster(64, "h100"), "cpu")
    assert found.how == plan.SPLIT
    assert found.useful > 64 * 2048 * 6 * 68e9
    assert 0.3 < found.mfu < 0.8
    assert found.memory.kept > 16 * 70e9 / 64


def test_this_machine_is_planned_by_what_was_learnt(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, decoder_spec: Path
) -> None:
    assert decoder_spec.exists()
    known = Rates([sample(4e-5)], {"float32": 1e11, "bfloat16": 2e11}, 1e10, Host(1.1, 1e-4))
    monkeypatch.setattr(plan, "rates", lambda device, precision: known)
    result = cli("bench", "decoder.yaml", "--plan", "1xthis", "--json", "--device", "cpu")
    assert result.status == 0, result.err
    (found,) = json.loads(result.out)["plans"]
    assert found["devices"] == "1xthis"
    assert found["step_s"] == pytest.approx(sum(found["parts_s"].values()))
    text = cli("bench", "decoder.yaml", "--plan", "1xthis,2xh100", "--device", "cpu").out
    assert "training steps on paper" in text
    assert "data parallel" in text


def test_this_machine_is_learnt_from_networks_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibrating, "peaks", lambda device, precision: PEAKS)
    monkeypatch.setattr(calibrating, "works", lambda device: iter(()))
    monkeypatch.setattr(calibrating, "NETWORKS", calibrating.NETWORKS[:1])
    found = calibrating.rates(CPU, "fp32")
    assert len(found.samples) > 20
    assert found.host.times > 0
    monkeypatch.setattr(calibrating, "measured", None)
    assert calibrating.rates(CPU, "fp32").to_json() == found.to_json()


PEAKS = Peaks(1e11, 1e10, (2, 2, 2), "fp32", 1, 0.0)


def test_a_batch_that_does_not_fill_the_devices_is_not_said_to(
    cli: Cli, decoder_spec: Path
) -> None:
    """Of 5 samples one of two devices has 3, the other 2."""
    assert decoder_spec.exists()
    for batch, shown in ((5, "5 in 2 x 1 x 3"), (6, "6 = 2 x 1 x 3")):
        given = f"train.batch_size={batch}"
        found = cli("bench", "decoder.yaml", "--plan", "2xh100", "--set", given)
        assert shown in found.out, found.err
