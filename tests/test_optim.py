"""Our optimizers equal PyTorch's; schedules have the shape that they are called by."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigmodel_cli.optim import AdamWOptions, MuonOptions, Schedule, SGDOptions, orthogonal, total_norm


def pair(seed: int) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in ((5, 7), (7,), (3, 2, 3, 3), ())]
    return [torch.nn.Parameter(t.clone()) for t in tensors], [torch.nn.Parameter(t.clone()) for t in tensors]


CASES: list[tuple[Any, Any, dict[str, Any]]] = [
    (AdamWOptions(weight_decay=0.1), torch.optim.AdamW, {"weight_decay": 0.1}),
    (AdamWOptions(betas=[0.8, 0.95], eps=1e-6), torch.optim.AdamW, {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0}),
    (AdamWOptions(weight_decay=0.0), torch.optim.Adam, {}),
    (SGDOptions(momentum=0.9, nesterov=True, weight_decay=0.01), torch.optim.SGD,
     {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (SGDOptions(momentum=0.5, nesterov=False, weight_decay=0.0), torch.optim.SGD, {"momentum": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "reference", "keywords"), CASES)
def test_an_optimizer_equals_pytorchs(options: Any, reference: Any, keywords: dict[str, Any]) -> None:
    ours, theirs = pair(0)
    optimizer = options.build((f"p{i}", p) for i, p in enumerate(ours))
    decay = keywords.pop("weight_decay", 0.0) if "weight_decay" in keywords else 0.0
    groups = [
        {"params": [p for p in theirs if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in theirs if p.dim() < 2], "weight_decay": 0.0},
    ]
    expected = reference(groups, lr=1e-2, **keywords)
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        for a, b in zip(ours, theirs, strict=True):
            gradient = torch.randn(a.shape, generator=generator)
            a.grad, b.grad = 6.0 * gradient, gradient.clone()
        lr = 1e-2 / (1 + step)
        optimizer.step(lr, divisor=6.0)  # sums over six targets, divided once
        for group in expected.param_groups:
            group["lr"] = lr
        expected.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [AdamWOptions(weight_decay=0.1), SGDOptions(), MuonOptions()])
def test_the_state_of_an_optimizer_goes_on_where_it_was(options: Any) -> None:
    def run(optimizer: Any, parameters: list[torch.nn.Parameter], steps: range) -> None:
        for step in steps:
            for index, p in enumerate(parameters):
                p.grad = torch.full_like(p, 0.1 * (step + 1) * (index - 1.5))
            optimizer.step(1e-2, 1.0)

    whole, parted = pair(3)
    first = options.build((f"p{i}", p) for i, p in enumerate(whole))
    run(first, whole, range(6))
    second = options.build((f"p{i}", p) for i, p in enumerate(parted))
    run(second, parted, range(3))
    third = options.build((f"p{i}", p) for i, p in enumerate(parted))
    third.load_state_dict(second.state_dict(), second.steps)
    run(third, parted, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, parted, strict=True))


def test_a_frozen_parameter_has_no_state() -> None:
    ours, _ = pair(0)
    ours[0].requires_grad_(False)
    optimizer = AdamWOptions().build((f"p{i}", p) for i, p in enumerate(ours))
    assert optimizer.names == ["p1", "p2", "p3"]
    assert "exp_avg.p0" not in optimizer.state_dict()


def test_the_norm_of_all_gradients() -> None:
    tensors = [torch.randn(3, 4), torch.randn(5)]
    expected = torch.cat([t.flatten() for t in tensors]).norm()
    torch.testing.assert_close(total_norm(tensors), expected)
    assert float(total_norm([])) == 0


def test_schedules() -> None:
    constant = Schedule(type="constant", warmup=4)
    assert [round(constant.factor(s, 100), 3) for s in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    linear = Schedule(type="linear", warmup=0, final=0.5)
    assert [linear.factor(s, 10) for s in (0, 5, 10)] == [1.0, 0.75, 0.5]
    cosine = Schedule(type="cosine", warmup=10, final=0.1)
    assert cosine.factor(10, 110) == 1.0
    assert cosine.factor(60, 110) == pytest.approx(0.55)
    assert cosine.factor(110, 110) == pytest.approx(0.1)
    values = [cosine.factor(s, 110) for s in range(10, 111)]
    assert values == sorted(values, reverse=True)


def test_muon_equals_pytorchs_for_matrices_and_adamw_for_the_rest() -> None:
    shapes = {
        "blocks.0.mixer.qkv.weight": (24, 8),
        "blocks.0.ffn.down.weight": (8, 24),
        "embedding.weight": (9, 8),
        "norm.weight": (8,),
    }
    generator = torch.Generator().manual_seed(0)
    start = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    ours, theirs = ({name: torch.nn.Parameter(t.clone()) for name, t in start.items()} for _ in range(2))
    options = MuonOptions(lr=0.02, weight_decay=0.1, rest=AdamWOptions(lr=1e-3, weight_decay=0.05))
    optimizer = options.build(ours.items())
    matrices, rest = list(theirs)[:2], list(theirs)[2:]
    muon = torch.optim.Muon([theirs[n] for n in matrices], lr=0.02, weight_decay=0.1, momentum=0.95)
    groups = [{"params": [theirs[n]], "weight_decay": 0.05 if theirs[n].dim() > 1 else 0.0} for n in rest]
    adamw = torch.optim.AdamW(groups, lr=1e-3)
    for _ in range(5):
        for name in shapes:
            gradient = torch.randn(shapes[name], generator=generator)
            ours[name].grad, theirs[name].grad = 3.0 * gradient, gradient.clone()
        optimizer.step(0.02, divisor=3.0)
        muon.step()
        adamw.step()
    for name in rest:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    for name in matrices:  # PyTorch's iterates in bf16
        moved, wanted = ours[name] - start[name], theirs[name] - start[name]
        assert float((moved - wanted).norm() / wanted.norm()) < 0.02


def test_an_orthogonal_update_has_singular_values_of_about_one_and_the_same_vectors() -> None:
    for shape in ((6, 20), (20, 6), (3, 8, 8)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.transpose(-1, -2) @ orthogonal(matrix, 5) @ vt.transpose(-1, -2)
        diagonal = inner.diagonal(dim1=-2, dim2=-1)
        assert bool(((diagonal > 0.3) & (diagonal < 1.3)).all())
        assert float((inner - torch.diag_embed(diagonal)).abs().max()) < 1e-3


def test_the_schedules_of_the_transformer_and_warm_up_stable_decay() -> None:
    noam = Schedule(type="inverse_sqrt", warmup=100)
    assert noam.factor(100, 1000) == 1.0
    assert noam.factor(400, 1000) == pytest.approx(0.5)
    assert noam.factor(49, 1000) == pytest.approx(50 / 101)
    wsd = Schedule(type="wsd", warmup=10, decay=0.2, final=0.1)
    assert [wsd.factor(s, 100) for s in (10, 50, 80)] == [1.0, 1.0, 1.0]
    assert wsd.factor(90, 100) == pytest.approx(0.1 + 0.9 * 0.5)
    assert wsd.factor(100, 100) == pytest.approx(0.1)
