"""Putting an adapter on a model: its weights are frozen, and those that it means are adapted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from bigmodel_cli.adapters.base import Factors, LowRankOptions
from bigmodel_cli.adapters.four_bits import is_quantized, library, values
from bigmodel_cli.adapters.product import LowRank, adapted, summed
from bigmodel_cli.adapters.targets import WHOLE, Target, chosen, grouped, targets, unmatched
from bigmodel_cli.errors import under
from bigmodel_cli.lazy import F, Module, Tensor, nn, torch
from bigmodel_cli.names import matches
from bigmodel_cli.roles import ORIGINAL, PARAMETRIZED, plain_name


class Adapter(Module):
    """(M, ...) -> (M, ...)   the frozen weight -> the adapted one; `parts` have factors each.

    The result is not computed before something needs it: see `product`.
    """

    def __init__(
        self, options: LowRankOptions, target: Target, parts: Mapping[str, Factors]
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.rows = {name: target.parts[name] for name in parts}
        self.dropout, self.lookup = options.dropout, target.lookup

    def forward(self, weight: Tensor) -> Tensor:
        """The factors of all parts side by side: each part's B has rows of its own."""
        count = weight.shape[0]
        a, b, gains = [], [], []
        for name, part in self.factors().items():
            first, rows = self.rows[name]
            stacked = part.role.stacked
            narrow, wide = part.factors()
            gain = None
            if part.magnitudes() is not None:
                matrix = values(weight)
                gain = part.gain(matrix if stacked else matrix[first : first + rows].flatten(1))
            if not stacked and rows < count:
                wide = F.pad(wide, (0, 0, first, count - first - rows))
                if gain is not None:
                    gain = F.pad(gain - 1, (first, count - first - rows)) + 1
            a.append(narrow)
            b.append(wide)
            gains += [] if gain is None else [gain]
        gain = torch.stack(gains).prod(0) if len(gains) > 1 else gains[0] if gains else None
        value = LowRank(
            weight,
            torch.cat(a, -2) if len(a) > 1 else a[0],
            torch.cat(b, -1) if len(b) > 1 else b[0],
            None if self.lookup else gain,
            gain if self.lookup else None,
            self.dropout if self.training else 0.0,
        )
        return adapted(value)

    def factors(self) -> dict[str, Factors]:
        """The factors of each part, by its name."""
        return {name: part for name, part in self.parts.items() if isinstance(part, Factors)}


def attach(
    model: Module,
    options: LowRankOptions,
    *,
    fill: bool,
    measured: Mapping[str, Tensor] = MappingProxyType({}),
) -> list[str]:
    """Freeze the model, adapt the weights that the options mean, and train only the adapter and
    `modules_to_save`.

    With `fill` the factors get their first values, from the weights; else they are zeros until a
    checkpoint's are loaded; `measured` is what they need of those that are in 4 bits. Returns the
    names of what is not adapted, since it has less than the rank. Raises `OptionError` for a
    pattern that means nothing, or nothing of this rank.
    """
    if options.base is not None:
        library()
    there = targets(model)
    with under("adapter"):
        wanted, small = chosen(there, options)
        whole = _whole(model, options.modules_to_save, wanted)
    for p in model.parameters():
        p.requires_grad_(any(p is kept for kept in whole))
    for target in there:
        if target.name not in wanted:
            continue
        parts = {}
        for name in wanted[target.name]:
            own = options.of(target.called(name))
            parts[name] = own.build(target.shape(name), target.role, target.lookup)
            if fill and is_quantized(target.tensor):
                first, count = target.parts[name]
                found = measured.get(target.name)
                gone = torch.empty(target.shape(name), device="meta")
                parts[name].fill(gone, None if found is None else found[first : first + count])
            elif fill:
                parts[name].fill(target.matrix(name))
        adapter = Adapter(options, target, parts).to(target.tensor.device)
        for owner, name in target.owners:  # of a tied weight: one adapter for all
            nn.utils.parametrize.register_parametrization(owner, name, adapter, unsafe=True)
    return small


def _whole(model: Module, patterns: Sequence[str], wanted: Mapping[str, list[str]]) -> list[Tensor]:
    """The weights that are trained whole."""
    named = dict(model.named_parameters(remove_duplicate=False))
    found: list[Tensor] = []
    for pattern in patterns:
        meant = [name for name in named if matches(name, pattern)]
        if not meant:
            raise ValueError(f"modules_to_save: {unmatched(pattern, list(named))}")
        tensors = [named[name] for name in meant]
        for name in wanted:
            if any(named[name] is tensor for tensor in tensors):
                raise ValueError(
                    f"modules_to_save: {pattern!r} means {name} too, which"
                    " adapter.targets adapts; leave it out of one of them"
                )
        found += tensors
    return found


def adapters(model: Module) -> dict[str, Adapter]:
    """The adapters of a model by the names that their weights have without them."""
    found: dict[str, Adapter] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Adapter) and all(module is not known for known in found.values()):
            owner, _, rest = path.rpartition("parametrizations.")
            found[owner + rest.rpartition(".")[0]] = module
    return found


def count_trained(model: Module, kind: str) -> list[str]:
    """What is trained, part by part, one line each."""
    numbers: dict[str, int] = {}
    for name, adapter in adapters(model).items():
        for part, factors in adapter.factors().items():
            called = name if part == WHOLE else f"{name.removesuffix('.weight')}.{part}"
            numbers[called] = sum(p.numel() for p in factors.parameters())
    for name, p in model.named_parameters():
        if p.requires_grad and PARAMETRIZED not in f".{name}":
            numbers[f"{name} (whole)"] = p.numel()
    every, trained = sum(p.numel() for p in model.parameters()), sum(numbers.values())
    share = f"{trained:,} of {every:,} parameters are trained ({100 * trained / every:.2f} %)"
    lines = [f"{kind}: {share}"]
    for general, names in grouped(list(numbers)).items():
        sizes = [numbers[name] for name in names]
        times = f"{len(names)} x " if len(names) > 1 else ""
        lines.append(f"{general}: {times}{sum(sizes) // len(sizes):,}")
    return lines


def merged(model: Module) -> dict[str, Tensor]:
    """The weights of the same model without the adapter, by their names there: sums in fp32."""
    found: dict[str, Tensor] = {}
    sums: dict[int, Tensor] = {}
    training = model.training
    model.eval()  # drops nothing
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if PARAMETRIZED not in f".{name}":
                found[name] = values(tensor.detach())
            elif name.endswith(ORIGINAL):
                module, _, own = plain_name(name).rpartition(".")
                if id(tensor) not in sums:  # a tied weight once
                    sums[id(tensor)] = summed(getattr(model.get_submodule(module), own))
                found[plain_name(name)] = sums[id(tensor)]
    model.train(training)
    return found
