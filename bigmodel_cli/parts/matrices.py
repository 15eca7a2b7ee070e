"""Weights that hold several matrices: what a part says of them, so that each matrix starts and is
trained as it would alone.
"""

from __future__ import annotations

from bigmodel_cli.lazy import Module, Tensor
from bigmodel_cli.roles import Role


class OwnMatrices(Module):
    """A part some of whose weights are not one matrix each: projections computed as one product, or
    experts.
    """

    def weight_roles(self) -> dict[str, Role]:
        """The roles of such weights, by their names within the part: `fused(rows, ...)` or
        `EXPERTS`.
        """
        raise NotImplementedError

    def matrices(self) -> dict[str, list[Tensor]]:
        """The names of such weights, and detached views (..., in) of the matrices that make up
        each: those that the roles name.

        The axes before the last are a matrix's outputs, in whatever shape the view has them: a
        model's rule for the first weights takes `in` inputs and the product of the others as
        outputs.
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
    """Those weights of a part that hold several matrices."""
    return module.matrices() if isinstance(module, OwnMatrices) else {}
