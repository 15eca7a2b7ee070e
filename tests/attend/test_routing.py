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


def test_equal_scores_keep_the_order_in_which_they_were_chosen() -> None:
    """A router of zeros: all scores are equal, and so are the weights."""
    part = experts(top_k=3, router="sigmoid")
    with torch.no_grad():
        part.router.weight.zero_()
        part.bias += torch.tensor([0.0, 0.5, 0.1, 0.0, 0.3])  # left from training: chooses alone
        with watch_routing(part) as calls:
            part(torch.randn(1, 4, 6))
    record = record_of("ffn", calls[0][1])
    assert record["chosen"] == [[1, 4, 2]] * 4
    assert record["weights"] == [pytest.approx([1 / 3] * 3)] * 4
    assert record["load"] == pytest.approx([0, 1 / 3, 1 / 3, 0, 1 / 3])
    assert record["idle"] == 2


def test_experts_of_chosen_groups_alone_with_padding_on_the_left() -> None:
    torch.manual_seed(5)
    options = {"experts": 6, "hidden": 4, "groups": 3, "top_groups": 2, "shared": 2, "top_k": 2}
    part = MoEOptions.model_validate(options).build(LayerContext(6, 16)).eval()
    x, real = torch.randn(1, 9, 6), torch.arange(9)[None] >= 4
    with watch_routing(part) as calls, torch.no_grad():
        part(x, SequenceInfo(real=real))
    record = record_of("ffn", calls[0][1])
    assert (record["tokens"], record["shared"], len(record["chosen"])) == (5, 2, 5)
    for token, chosen, weights in zip(x[0, 4:], record["chosen"], record["weights"], strict=True):
        logits = (part.router.weight @ token).tolist()
        scores = [math.exp(v) / sum(map(math.exp, logits)) for v in logits]
        sums = [scores[2 * g] + scores[2 * g + 1] for g in range(3)]
        allowed = sorted(range(3), key=lambda g: -sums[g])[:2]
        ranked = sorted((e for e in range(6) if e // 2 in allowed), key=lambda e: -scores[e])[:2]
        assert chosen == ranked
        total = sum(scores[e] for e in ranked)
        assert weights == pytest.approx([scores[e] / total for e in ranked], abs=1e-5)


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
