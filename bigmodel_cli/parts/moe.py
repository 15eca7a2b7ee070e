"""Mixture of experts: a router sends each token through a few feed-forward networks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, Natural, NonNegative, Positive
from bigmodel_cli.draw import drawing
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import AnyFFNOptions
from bigmodel_cli.parts.experts import Experts
from bigmodel_cli.parts.ffn import ClampOptions, FeedForward
from bigmodel_cli.parts.precise import in_full_precision
from bigmodel_cli.parts.watched import RoutingCall, RoutingWatcher
from bigmodel_cli.roles import EXPERTS, OUTER, Role
from bigmodel_cli.shares import WHOLE, Shares, own_of

MOST_EXPERTS = 1 << 16
"""Each is initialised by itself, so a huge number, surely a typing error, would take minutes."""


class MoEOptions(AnyFFNOptions):
    """Dropless mixture of SwiGLU experts (Shazeer et al. 2017; Mixtral 2024; DeepSeek-V3 2024)."""

    type: Literal["moe"] = "moe"
    experts: Annotated[int, Field(gt=0, le=MOST_EXPERTS)] = Field(description="experts (E)")
    top_k: Count = Field(2, description="experts that each token passes through")
    hidden: Count | None = Field(
        None, description="width of an expert's hidden layer; 8/3 x dim / top_k when left out"
    )
    shared: Natural = Field(0, description="experts that every token passes through (DeepSeek)")
    shared_hidden: Count | None = Field(
        None, description="width of a shared expert's hidden layer; as hidden when left out"
    )
    shared_gate: bool = Field(
        False,
        description="shared experts are multiplied by a learned sigmoid of the token (Qwen2-MoE)",
    )
    bias: bool = Field(False, description="learn biases in the router and the experts (gpt-oss)")
    clamp: ClampOptions | None = Field(
        None, description="the experts' SwiGLU has bounds (gpt-oss); left out: none"
    )
    router: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="scores over all experts together, or each by itself (DeepSeek-V3)"
    )
    normalize: bool = Field(True, description="the chosen experts' scores sum to 1")
    groups: Count = Field(
        1,
        description=(
            "groups of neighbouring experts; a token's are chosen within those top_groups whose"
            " best two score most (DeepSeek-V3)"
        ),
    )
    top_groups: Count = Field(1, description="groups that a token's experts are chosen from")
    scale: Positive = Field(1.0, description="what the routed experts' sum is multiplied by")
    balance: Literal["loss", "bias", "none"] = Field(
        "loss",
        description=(
            "loss: as in Switch, over all tokens of a step (micro-batches pass once more, to be"
            " counted); bias: added to the scores for choosing alone, moved towards equal load"
        ),
    )
    balance_weight: NonNegative = Field(
        0.01, description="weight of that loss, or the bias's step (DeepSeek-V3: 0.001)"
    )

    @model_validator(mode="after")
    def _enough(self) -> MoEOptions:
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than experts {self.experts}")
        if self.experts % self.groups or self.top_groups > self.groups:
            raise ValueError(
                f"groups: {self.experts} experts are not {self.groups} equal groups, of which to"
                f" take {self.top_groups}"
            )
        size = self.experts // self.groups
        if self.top_k > self.top_groups * size:
            raise ValueError(f"top_k {self.top_k} is more than top_groups {self.top_groups} hold")
        if self.top_groups < self.groups and size < 2:
            raise ValueError("groups: a group is judged by its best two experts, and has one")
        if not self.shared and (self.shared_gate or self.shared_hidden is not None):
            raise ValueError("shared: there is none for shared_gate or shared_hidden")
        return self

    def width(self, dim: int) -> int:
        """The width of an expert's hidden layer."""
        return self.hidden or max(8, 8 * dim // (3 * self.top_k) // 8 * 8)

    def settled(self, dim: int) -> dict[str, Any]:
        shared = {"shared_hidden": self.shared_hidden or self.width(dim)} if self.shared else {}
        return {"hidden": self.width(dim), **shared}

    def build(self, layer: LayerContext) -> MixtureOfExperts:
        return MixtureOfExperts(self, layer.dim)


class MixtureOfExperts(Experts):
    """(B, T, C) -> (B, T, C)   sum over the top k of score_e(x) * expert_e(x), plus shared experts.

    An expert is down(silu(gate(x)) * up(x)) (Shazeer 2020), or with `clamp` as `ClampOptions` says.

    Load-balance loss: E * sum_e fraction_e * mean score_e (Fedus et al. 2021, Switch Transformer,
    equation 4), with the fraction of the N * k choices, so that even load gives 1 for every k
    (transformers' Mixtral: k times as much), of all tokens of a step. Balancing by bias: after each
    step an expert's bias goes up where it had less than its share, down where more (Wang et al.
    2024; DeepSeek-V3). Neither counts padding, nor anything outside training.

    Each expert's matrices are initialised by the model's rule as those of a dense network of that
    width, the router's as any other.
    """

    context_fault = ""
    bias: Tensor
    load: Tensor  # tokens of each expert since the last step
    auxiliary: Tensor | None = None
    routing_watcher: RoutingWatcher | None = None

    def __init__(self, options: MoEOptions, dim: int) -> None:
        super().__init__()
        self.options = options
        self.first, self.count, self.top_k = 0, options.experts, options.top_k
        self.clamp = options.clamp
        hidden = options.width(dim)
        self.router = nn.Linear(dim, options.experts, bias=options.bias)
        self.shared_gate = nn.Linear(dim, 1, bias=False) if options.shared_gate else None
        self.gate = nn.Parameter(torch.empty(options.experts, hidden, dim))
        self.up = nn.Parameter(torch.empty(options.experts, hidden, dim))
        self.down = nn.Parameter(torch.empty(options.experts, dim, hidden))
        for weights in self.matrices().values():  # as nn.Linear, until the model initialises them
            for weight in () if self.gate.is_meta else weights:
                nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)

        def biases(width: int) -> nn.Parameter | None:
            return nn.Parameter(torch.zeros(options.experts, width)) if options.bias else None

        self.gate_bias, self.up_bias, self.down_bias = biases(hidden), biases(hidden), biases(dim)
        width = options.shared * (options.shared_hidden or hidden)
        self.shared = (
            FeedForward(dim, width, options.bias, 0.0, "swiglu", gated=True) if width else None
        )
        self.register_buffer("bias", torch.zeros(options.experts))
        self.register_buffer("load", torch.zeros(options.experts), persistent=False)
        self.needs_counts = options.balance == "loss" and options.balance_weight > 0
        self.foreseen: Tensor | None = None  # (E,): the load of the whole step

    def weight_roles(self) -> dict[str, Role]:
        """Each expert has matrices of its own; the router is an output layer, as is a gate."""
        roles = {"router.weight": OUTER, "gate": EXPERTS, "up": EXPERTS, "down": EXPERTS}
        return {**roles, "shared_gate.weight": OUTER} if self.options.shared_gate else roles

    def shares(self) -> Shares:
        """By experts, or by their hidden units; every process routes, and counts the loads."""
        names = "router.weight", "router.bias", "shared_gate.weight", "bias", "load"
        return own_of(self, {**dict.fromkeys(names, WHOLE), **self.shares_of_experts()})

    def forward(self, x: Tensor, sequence: SequenceInfo = SINGLE_DOCUMENT) -> Tensor:
        """Route each position."""
        tokens, real = x.flatten(0, -2), sequence.real  # (N, C)
        scores, chosen = self.route(tokens, None if real is None else real.flatten())  # (N, k)
        if self.routing_watcher is not None:
            a, b = (t.detach().view(*x.shape[:-1], -1) for t in (chosen, scores))
            own = self.options
            other = self.routing_watcher(RoutingCall(a, b, own.experts, own.shared, real=real))
            scores = scores if other is None else other.view_as(scores)
        entered, shares = self.team.enter(tokens), self.team.enter(scores.to(x.dtype))
        with drawing(None):  # experts take tokens, not rows
            y = self.team.summed(self.compute(entered, shares, chosen)).view_as(x)
        if self.shared is None:
            return y
        shared: Tensor = self.shared(x)
        return y + (shared if self.shared_gate is None else self.shared_gate(x).sigmoid() * shared)

    def taken(self, tokens: int) -> dict[str, float]:
        """The part of each weight of the experts that so many tokens read, each of which chooses by
        itself, any as often.
        """
        part = 1 - (1 - self.options.top_k / self.options.experts) ** tokens
        names = "gate", "up", "down", "gate_bias", "up_bias", "down_bias"
        return {name: part for name in names if getattr(self, name) is not None}

    def route(self, tokens: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores and indices (N, k) of each token's experts; only tokens `real` (N,) count."""
        options = self.options
        logits = in_full_precision(self.router, tokens)  # (N, E): close scores decide
        scores = logits.softmax(-1) if options.router == "softmax" else logits.sigmoid()  # (N, E)
        chosen = self.within_groups(scores.detach() + self.bias).topk(options.top_k, -1).indices
        if self.training:
            counted = scores.new_ones(len(scores)) if real is None else real.to(scores.dtype)
            load = scores.new_zeros(options.experts).index_add_(
                0, chosen.flatten(), counted.repeat_interleave(options.top_k)
            )
            self.load += load
            if options.balance == "loss":
                shares = (scores / scores.sum(-1, keepdim=True)) * counted[:, None]  # (N, E)
                whole = load if self.foreseen is None else self.foreseen
                fraction = whole / whole.sum().clamp(min=1)
                mean = shares.sum(0) / (whole.sum() / options.top_k).clamp(min=1)
                self.auxiliary = options.balance_weight * options.experts * (fraction * mean).sum()
        picked = scores.gather(1, chosen)
        if options.normalize:
            picked = picked / picked.sum(-1, keepdim=True)
        return picked * options.scale, chosen

    def within_groups(self, scores: Tensor) -> Tensor:
        """(N, E) -> (N, E)   -inf for experts outside a token's best groups."""
        options = self.options
        if options.top_groups == options.groups:
            return scores
        grouped: Tensor = scores.unflatten(-1, (options.groups, -1))  # (N, groups, E / groups)
        best = grouped.topk(2, -1).values.sum(-1).topk(options.top_groups, -1).indices
        taken = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(-1, best, True)
        return grouped.masked_fill(~taken[..., None], -torch.inf).flatten(-2)

    def after_step(self) -> None:
        """Update the bias (where balancing is by bias) and reset the load."""
        if self.options.balance == "bias":
            self.bias += self.options.balance_weight * (self.load.mean() - self.load).sign()
        self.forget_step()

    def forget_step(self) -> None:
        """Reset the load and leave the bias."""
        self.load.zero_()
        self.auxiliary = self.foreseen = None

    def counts(self) -> Tensor:
        """(E,)   the load."""
        return self.load.clone()

    def count_all(self, counts: Tensor) -> None:
        """The load is this one, (E,), of all processes."""
        self.load.copy_(counts)

    def foresee(self, counts: Tensor) -> None:
        """The balance loss is of this load, (E,)."""
        self.foreseen = counts

    def statistics(self) -> dict[str, float]:
        """The busiest expert's load as a multiple of its share, and the share of idle experts."""
        return {
            "experts.load_max": float(self.load.max()) / max(1e-9, float(self.load.mean())),
            "experts.idle": float((self.load == 0).float().mean()),
        }
