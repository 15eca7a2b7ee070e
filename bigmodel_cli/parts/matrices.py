"""Weights that hold several matrices: what a part says of them, so that each matrix starts as it would alone."""

from __future__ import annotations

from bigmodel_cli.lazy import Module, Tensor


class OwnMatrices(Module):
    """A part some of whose weights are not one matrix each: projections computed as one product, or experts."""

    def matrices(self) -> dict[str, list[Tensor]]:
        """The names of such weights within the part, and detached views (..., in) of the matrices that make up each.

        The axes before the last are a matrix's outputs, in whatever shape the view has them: a model's rule for the first weights
        takes `in` inputs and the product of the others as outputs.
        """
        raise NotImplementedError
