"""Our optimizers equal PyTorch's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from bigmodel_cli.errors import SpecError
from bigmodel_cli.optim import AdamWOptions, MuonOptions, SGDOptions, orthogonal, total_norm
from bigmodel_cli.roles import EXPERTS, GAIN, MATRIX, OUTER, Role, Weight, fused


def pair(seed: int) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(shape, generator=generator) for shape in ((5, 7), (7,), (3, 2, 3, 3), ())
    ]
    return [torch.nn.Parameter(t.clone()) for t in tensors], [
        torch.nn.Parameter(t.clone()) for t in tensors
    ]


def weights(parameters: list[torch.nn.Parameter]) -> list[Weight]:
    """The parameters as weights: those of two or more axes decay."""
    return [Weight(f"p{i}", p, MATRIX if p.dim() >= 2 else GAIN) for i, p in enumerate(parameters)]


CASES: list[tuple[Any, Any, dict[str, Any]]] = [
    (AdamWOptions(weight_decay=0.1), torch.optim.AdamW, {"weight_decay": 0.1}),
    (AdamWOptions(betas=[0.8, 0.95], eps=1e-6), torch.optim.AdamW,
     {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0}),
    (AdamWOptions(weight_decay=0.0), torch.optim.Adam, {}),
    (SGDOptions(momentum=0.9, nesterov=True, weight_decay=0.01), torch.optim.SGD,
     {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (SGDOptions(momentum=0.5, nesterov=False, weight_decay=0.0), torch.optim.SGD,
     {"momentum": 0.5}),
    (SGDOptions(momentum=0.0, weight_decay=0.02), torch.optim.SGD, {"weight_decay": 0.02}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "reference", "keywords"), CASES)
@pytest.mark.parametrize("last", [False, True])
def test_an_optimizer_equals_pytorchs(
    options: Any, reference: Any, keywords: dict[str, Any], last: bool
) -> None:
    ours, theirs = pair(0)
    keywords = dict(keywords)
    if last:  # a kernel that lies channels last, and whose gradient may lie otherwise
        ours[2].data = ours[2].data.contiguous(memory_format=torch.channels_last)
    optimizer = options.build(weights(ours))
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
        if last and step % 3:
            ours[2].grad = ours[2].grad.contiguous(memory_format=torch.channels_last)
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
    first = options.build(weights(whole))
    run(first, whole, range(6))
    second = options.build(weights(parted))
    run(second, parted, range(3))
    third = options.build(weights(parted))
    third.load_state_dict(second.state_dict(), second.steps)
    run(third, parted, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, parted, strict=True))


def test_a_frozen_parameter_has_no_state() -> None:
    ours, _ = pair(0)
    ours[0].requires_grad_(False)
    optimizer = AdamWOptions().build(weights(ours))
    assert optimizer.names == ["p1", "p2", "p3"]
    assert "exp_avg.p0" not in optimizer.state_dict()


def test_the_norm_of_all_gradients() -> None:
    tensors = [torch.randn(3, 4), torch.randn(5)]
    expected = torch.cat([t.flatten() for t in tensors]).norm()
    torch.testing.assert_close(total_norm(tensors), expected)
    assert float(total_norm([])) == 0


MUON: dict[str, tuple[tuple[int, ...], Role]] = {
    "dense": ((8, 24), MATRIX),
    "kernel": ((6, 4, 3, 3), MATRIX),
    "conv1d": ((10, 3, 5), MATRIX),
    "qkv": ((14, 8), fused(6, 4, 4)),
    "kv": ((10, 7), fused(5, 5)),
    "grouped": ((6, 2, 3, 3), fused(3, 3)),
    "experts": ((3, 9, 5), EXPERTS),
    "embedding": ((9, 8), OUTER),
    "cls": ((1, 1, 8), GAIN),
    "norm": ((8,), GAIN),
}


def matrices_of(name: str, p: torch.Tensor) -> list[torch.Tensor]:
    """Each matrix that Muon orthogonalises by itself, by hand."""
    if name == "experts":
        return [p[0], p[1], p[2]]
    cuts = {"qkv": (0, 6, 10, 14), "kv": (0, 5, 10), "grouped": (0, 3, 6)}.get(name, (0, len(p)))
    return [p[a:b].reshape(b - a, -1) for a, b in itertools.pairwise(cuts)]


@pytest.mark.parametrize("channels_last", [False, True])
def test_muon_equals_pytorchs_for_each_matrix_and_adamw_for_the_rest(channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    start = {name: torch.randn(shape, generator=generator) for name, (shape, _) in MUON.items()}
    if channels_last:
        start["kernel"] = start["kernel"].contiguous(memory_format=torch.channels_last)
    ours = {name: torch.nn.Parameter(t.clone()) for name, t in start.items()}
    hidden = [name for name in MUON if MUON[name][1].matrix]
    theirs = {
        name: [torch.nn.Parameter(m.clone()) for m in matrices_of(name, start[name])]
        for name in hidden
    }
    rest = {name: torch.nn.Parameter(start[name].clone()) for name in MUON if name not in hidden}
    options = MuonOptions(lr=0.02, weight_decay=0.1, rest=AdamWOptions(lr=1e-3, weight_decay=0.05))
    optimizer = options.build([Weight(name, ours[name], role) for name, (_, role) in MUON.items()])
    muon = torch.optim.Muon(
        [m for ms in theirs.values() for m in ms], lr=0.02, weight_decay=0.1, momentum=0.95
    )
    decays = {"embedding": 0.05, "cls": 0.0, "norm": 0.0}
    adamw = torch.optim.AdamW(
        [{"params": [p], "weight_decay": decays[n]} for n, p in rest.items()], lr=1e-3
    )
    for _ in range(5):
        for name, (shape, _) in MUON.items():
            gradient = torch.randn(shape, generator=generator)
            ours[name].grad = 3.0 * gradient
            if name in rest:
                rest[name].grad = gradient.clone()
            else:
                for m, g in zip(theirs[name], matrices_of(name, gradient), strict=True):
                    m.grad = g.clone()
        optimizer.step(0.02, divisor=3.0)
        muon.step()
        adamw.step()
    for name in rest:
        torch.testing.assert_close(ours[name], rest[name], rtol=1e-5, atol=1e-6)
    for name in hidden:  # PyTorch's iterates in bf16
        pairs = zip(
            matrices_of(name, ours[name]), theirs[name], matrices_of(name, start[name]), strict=True
        )
        for mine, other, before in pairs:
            moved, wanted = mine.detach() - before, other.detach() - before
            assert float((moved - wanted).norm() / wanted.norm()) < 0.02, name


def test_an_orthogonal_update_has_singular_values_of_about_one_and_the_same_vectors() -> None:
    for shape in ((6, 20), (20, 6), (3, 8, 8)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.transpose(-1, -2) @ orthogonal(matrix, 5) @ vt.transpose(-1, -2)
        diagonal = inner.diagonal(dim1=-2, dim2=-1)
        assert bool(((diagonal > 0.3) & (diagonal < 1.3)).all())
        assert float((inner - torch.diag_embed(diagonal)).abs().max()) < 1e-3


@pytest.mark.parametrize("options", [AdamWOptions(), SGDOptions(), MuonOptions()])
def test_a_weight_with_gaps_is_refused_by_name(options: Any) -> None:
    gaps = torch.nn.Parameter(torch.zeros(6, 8)[:, ::2])
    with pytest.raises(SpecError, match=r"^part\.w: its numbers do not lie side by side"):
        options.build([Weight("part.w", gaps, MATRIX)])
    dense = torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last)
    for tensor in (dense, torch.zeros(5, 7).T, torch.zeros(1, 6)[:, :], torch.zeros(0, 3)):
        options.build([Weight("w", torch.nn.Parameter(tensor), MATRIX)])
