"""Weights that hold several matrices, each initialised and trained as if it were alone."""

from __future__ import annotations

from bigmodel_cli.lazy import Module, Tensor
from bigmodel_cli.roles import Role


class OwnMatrices(Module):
    """A part with weights of several matrices each: fused projections, or experts."""

    def weight_roles(self) -> dict[str, Role]:
        """Roles of such weights by name within the part: `fused(rows, ...)` or `EXPERTS`."""
        raise NotImplementedError

    def matrices(self) -> dict[str, list[Tensor]]:
        """For each such weight, by name, detached views (..., in) of its matrices.

        The axes before the last are a matrix's outputs, in whatever shape: initialisation takes
        `in` as fan-in and the product of the others as fan-out.
        """
        found = {}
        for name, role in self.weight_roles().items():
            tensor = self.get_parameter(name).detach()
            if role.stacked:
                found[name] = list(tensor)
            elif role.rows:
                found[name] = list(tensor.split(list(role.rows)))
        return found


def own_matrices(module: Module) -> dict[str, list[Tensor]]:
    """Those weights of a module that hold several matrices."""
    return module.matrices() if isinstance(module, OwnMatrices) else {}
