"""Which experts tokens took, against a routing computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bigmodel_cli.attend.routing import record_of, routing_table, shown, watch_routing
from bigmodel_cli.parts.context import LayerContext, SequenceInfo
from bigmodel_cli.parts.moe import MixtureOfExperts, MoEOptions


def experts(**options: object) -> MixtureOfExperts:
    torch.manual_seed(2)
    part = MoEOptions.model_validate({"experts": 5, "hidden": 4, **options})
    return part.build(LayerContext(6, 16)).eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"normalize": False, "top_k": 3}, {"router": "sigmoid", "scale": 2.5, "shared": 1}],
)
def test_record_is_the_routing_by_hand(options: dict[str, object]) -> None:
    part = experts(**options)
    part.bias += torch.tensor([0.0, 0.3, 0.0, -0.2, 0.0])  # for choosing alone
    x = torch.randn(2, 7, 6)
    real = torch.ones(2, 7, dtype=torch.bool)
    real[0, 5:] = False
    with watch_routing(part) as calls, torch.no_grad():
        part(x, SequenceInfo(real=real))
    record = routing_table(calls)["routing"][0]
    k = part.options.top_k
    chosen, weights, counts, sums = [], [], [0] * 5, [0.0] * 5
    for token in x[0, :5]:
        logits = [float(token @ w) for w in part.router.weight.detach()]
        if part.options.router == "softmax":
            scores = [math.exp(v) / sum(map(math.exp, logits)) for v in logits]
        else:
            scores = [1 / (1 + math.exp(-v)) for v in logits]
        ranked = sorted(range(5), key=lambda e: -(scores[e] + float(part.bias[e])))[:k]
        total = sum(scores[e] for e in ranked) if part.options.normalize else 1.0
        own = sorted(((scores[e] / total * part.options.scale, e) for e in ranked), reverse=True)
        chosen.append([e for _, e in own])
        weights.append([w for w, _ in own])
        for w, e in own:
            counts[e] += 1
            sums[e] += w
    assert record["chosen"] == chosen
    assert torch.tensor(record["weights"]).allclose(torch.tensor(weights), atol=1e-5)
    load = [count / (5 * k) for count in counts]
    assert record["load"] == pytest.approx(load)
    assert record["weight"] == pytest.approx([s / sum(sums) for s in sums], abs=1e-5)
    entropy = -sum(share * math.log(share) for share in load if share)
    assert record["balance"] == pytest.approx(entropy / math.log(5))
    assert record["busiest"] == pytest.approx(5 * max(load))
    assert record["idle"] == counts.count(0)
    assert (record["tokens"], record["dropped"], record["even"]) == (5, 0, 0.2)
    assert record["shared"] == part.options.shared


def test_watching_ends_and_changes_nothing() -> None:
    part, x = experts(), torch.randn(1, 4, 6)
    with torch.no_grad():
        plain = part(x)
        with watch_routing(part) as calls:
            assert torch.equal(part(x), plain)
        part(x)
    assert len(calls) == 1
    assert part.routing_watcher is None
    assert routing_table([]) == {}


@pytest.mark.parametrize("count", [5, 300])
def test_text_fits_its_columns_and_lines(count: int) -> None:
    part, x = experts(experts=count), torch.randn(1, 9, 6)
    with watch_routing(part) as calls, torch.no_grad():
        part(x)
    records = [{**record_of(f"blocks.{n}.ffn", calls[0][1])} for n in range(20)]
    lines = shown(records, ["a", "cat\x1b"], 80, 12, plain=True)
    assert len(lines) <= 12
    assert all(len(line) <= 80 and line.isascii() and line.isprintable() for line in lines)
    assert "9 further layers" in lines[-1] or "10 further layers" in lines[-1]
