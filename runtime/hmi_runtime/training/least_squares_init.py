"""Initial gates and positions of a Domain's layers, found by least squares.

The layers start as the base's own, run on windows. The weight of each neighbour's part and the vector of each
position follow in closed form from a few batches: for each dimension, the weights of the three parts that
come nearest to the base's states at the split, and the mean residual at each position. Adam would need dozens
of steps, since it moves a weight by little more than the learning rate at each step.
"""

import torch
from torch import Tensor

from hmi_runtime.models.windows import contributions

_RIDGE = 1e-3
"""Ridge penalty on the gates, as a share of the parts' mean square; correlated parts share the weight."""
_FEW = 8.0
"""Weight, in tokens, of the mean over all positions: a position with few tokens stays near it."""


class LeastSquaresInit:
    """Accumulates the normal equations over batches, in float64; memory does not grow.

    With x_n (D, 3) the ungated parts of token n, t_n (D,) its teacher's state and p(n) its position, it
    minimises the sum over n of (t_n - g . x_n - b_p(n))^2 in each of the D dimensions alone.
    """

    def __init__(self, positions: int, width: int) -> None:
        """Start empty; ``positions`` is P, the layers' number of positions, and ``width`` D."""
        double = torch.float64
        self._count = torch.zeros(positions, dtype=double)  # (P,)
        self._parts = torch.zeros(positions, width, 3, dtype=double)  # (P, D, 3), sums of x by position
        self._target = torch.zeros(positions, width, dtype=double)  # (P, D), sums of t by position
        self._squares = torch.zeros(width, 3, 3, dtype=double)  # (D, 3, 3), sum of x x'
        self._products = torch.zeros(width, 3, dtype=double)  # (D, 3), sum of x t

    def add(self, parts: Tensor, teacher: Tensor, mask: Tensor) -> None:
        """Add a batch.

        ``parts`` (B, T, 3, D), ungated; ``teacher`` (N, D), of the real tokens; ``mask`` (B, T) bool.
        """
        x = contributions(parts)[mask].transpose(1, 2).double()  # (N, D, 3)
        t = teacher.double()  # (N, D)
        position = torch.arange(mask.shape[1]).expand(mask.shape)[mask]  # (N,)
        self._count.index_add_(0, position, torch.ones(len(position), dtype=torch.float64))
        self._parts.index_add_(0, position, x)
        self._target.index_add_(0, position, t)
        self._squares += torch.einsum("ndi,ndj->dij", x, x)
        self._products += torch.einsum("ndi,nd->di", x, t)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return the gates (3, D) and the positions' vectors (P, D), float32; needs at least one batch."""
        seen = self._count.clamp_min(1.0)  # (P,)
        squares = self._squares - torch.einsum("pdi,pdj,p->dij", self._parts, self._parts, 1 / seen)
        products = self._products - torch.einsum("pdi,pd,p->di", self._parts, self._target, 1 / seen)
        size = squares.diagonal(dim1=1, dim2=2).mean(dim=1)  # (D,)
        ridge = (_RIDGE * size + 1e-12)[:, None, None] * torch.eye(3, dtype=torch.float64)  # (D, 3, 3)
        gates = torch.linalg.solve(squares + ridge, products)  # (D, 3)
        left_over = self._target - torch.einsum("pdi,di->pd", self._parts, gates)  # (P, D), sums
        mean = left_over.sum(dim=0) / self._count.sum()  # (D,)
        positions = (left_over + _FEW * mean) / (self._count + _FEW)[:, None]  # (P, D)
        return gates.T.float(), positions.float()
