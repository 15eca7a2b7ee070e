"""What FSDP2 sums gradients in, and where the parts of weights lie."""

from __future__ import annotations

from typing import Any

from bigmodel_cli.lazy import torch


def policies(reduce: str, offload: bool) -> dict[str, Any]:
    """FSDP2's arguments: gradients are summed in the dtype `reduce`, "fp32" or "bf16"; with
    `offload` the parts lie in the CPU's memory.

    Weights are gathered as they are: in bf16 also those would be rounded that layers compute with
    in fp32, such as norms' and routers'.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    made: dict[str, Any] = {}
    if reduce == "bf16":
        made["mp_policy"] = MixedPrecisionPolicy(
            reduce_dtype=torch.bfloat16, cast_forward_inputs=False
        )
    if offload:
        made["offload_policy"] = CPUOffloadPolicy()
    return made
