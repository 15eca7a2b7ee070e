"""What FSDP2 remembers of forward passes, by which a backward pass gathers weights ahead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def forget_passes(modules: Iterable[Any]) -> None:
    """Forget the passes before a step: of a validation each process took others, and would gather
    weights that no other one does, which wait for ever.
    """
    for module in modules:
        state = module._get_fsdp_state()
        state._comm_ctx.post_forward_order.clear()
        # one of them in torch 2.11
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
        for group in groups:
            if group is not None:
                group._post_forward_indices.clear()
