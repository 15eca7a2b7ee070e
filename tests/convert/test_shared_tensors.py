"""Rules that share a tensor of theirs."""

from __future__ import annotations

import torch

from bigmodel_cli.convert.rules import Half, Rule, check_complete, check_fit, exported

GATE, UP = torch.arange(24.0).view(2, 3, 4), -torch.arange(24.0).view(2, 3, 4)
HALVES = {
    "one after the other": (lambda t: t, 1, False, torch.cat((GATE, UP), 1)),
    "by turns": (
        lambda t: t.mT,
        2,
        True,
        torch.stack((GATE.mT, UP.mT), -1).flatten(-2),
    ),
}


def test_two_weights_in_one_tensor_of_theirs() -> None:
    for view, axis, mixed, want in HALVES.values():
        rules = [
            Rule("both", name, view, half=Half(axis, second, mixed))
            for name, second in (("gate", False), ("up", True))
        ]
        ours = {"gate": GATE, "up": UP}
        check_complete(rules, ours, ours)
        check_fit(rules, ours, {"both": want})
        assert torch.equal(dict(exported(rules, ours))["both"], want)
        empty = {name: torch.zeros(2, 3, 4) for name in ours}
        for rule in rules:
            rule.load(empty[rule.ours], want)
        assert all(torch.equal(empty[name], ours[name]) for name in ours)


def test_rows_of_several_weights_below_one_another() -> None:
    ours = {"first": torch.randn(3, 2), "second": torch.randn(5, 2)}
    rules = [Rule("both", "first"), Rule("both", "second", skip=3)]
    want = torch.cat(list(ours.values()))
    check_fit(rules, ours, {"both": want})
    assert torch.equal(dict(exported(rules, ours))["both"], want)
    found = {name: torch.zeros_like(t) for name, t in ours.items()}
    for rule in rules:
        rule.load(found[rule.ours], want)
    assert all(torch.equal(found[name], ours[name]) for name in ours)


def test_unused_first_rows_are_zeros() -> None:
    ours = {"table": torch.randn(3, 2)}
    theirs = dict(exported([Rule("theirs", "table", skip=2)], ours))["theirs"]
    assert torch.equal(theirs, torch.cat((torch.zeros(2, 2), ours["table"])))
