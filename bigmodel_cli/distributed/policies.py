"""What FSDP2 sends weights and gradients in, and where their parts lie."""

from __future__ import annotations

from typing import Any

from bigmodel_cli.lazy import torch


def policies(gather: str, reduce: str, offload: bool) -> dict[str, Any]:
    """FSDP2's arguments: weights are gathered in the dtype `gather`, gradients summed in `reduce`,
    each "fp32" or "bf16"; with `offload` the parts lie in the CPU's memory.

    What layers are given stays in the dtype it has: autocast rounds it where it multiplies.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    made: dict[str, Any] = {}
    if "bf16" in (gather, reduce):
        made["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if gather == "bf16" else None,
            reduce_dtype=torch.bfloat16 if reduce == "bf16" else torch.float32,
            cast_forward_inputs=False,
        )
    if offload:
        made["offload_policy"] = CPUOffloadPolicy()
    return made
