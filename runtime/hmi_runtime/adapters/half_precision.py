"""Half precision: how an adapter's matrices are stored in float16, and which are not.

float16 has 11 significant bits, bfloat16 8; but float16 has no values above 65,504 and fewer bits below 6e-5.
So a matrix is stored in float16 only if each of its rows keeps its values there, else in float32. Factors of
a LoRA that do not fit are scaled against each other first: ``b @ a`` stays the same. Vectors (biases, norms)
stay float32: they are a few per cent of an adapter, and would cause most of the error, since a norm's weight
multiplies every state.
"""

import torch
from torch import Tensor

LARGEST_ERROR = 2.0**-10
"""Largest norm of a row's error, relative to the row's own; rounding to 11 bits gives at most half of it."""


def halved(matrix: Tensor) -> Tensor:
    """Return ``matrix`` (n, m) in float16 in host memory; in float32 if a row would lose more than rounding.

    A row that is not finite is kept as it is.
    """
    return _halved(matrix, dim=1)


def halved_factors(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors ``a`` (r, d_in) and ``b`` (d_out, r) in float16, each in float32 if it would lose more.

    If one would, then each row of ``a`` and its column of ``b`` are scaled by a power of two and its inverse,
    so that their largest values are about equal. That changes no digit of ``b @ a``. Factors that are in
    float16 already are not scaled, so that a stored adapter is stored again unchanged.
    """
    found = _halved(a, dim=1), _halved(b, dim=0)
    if torch.float16 in (a.dtype, b.dtype) or all(factor.dtype == torch.float16 for factor in found):
        return found
    balanced_a, balanced_b = _balanced(a.detach().float(), b.detach().float())
    scaled = _halved(balanced_a, dim=1), _halved(balanced_b, dim=0)
    return scaled if all(factor.dtype == torch.float16 for factor in scaled) else found


def _halved(matrix: Tensor, dim: int) -> Tensor:
    """Return ``matrix`` in float16 if that keeps each of its vectors along ``dim``, else in float32."""
    matrix = matrix.detach().cpu().contiguous()
    if matrix.dtype == torch.float16:
        return matrix
    whole = matrix.float()
    half = whole.half()
    norm, error = (  # in float64, where no square of a float32 value overflows
        torch.linalg.vector_norm(values, dim=dim, dtype=torch.float64) for values in (whole, half - whole)
    )
    kept = error <= LARGEST_ERROR * norm  # False for NaN
    return half if bool(kept.all()) else whole


def _balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``a`` (r, d_in) and ``b`` (d_out, r), each direction's largest values within a factor of 4."""
    _, of_a = torch.frexp(a.abs().amax(1))  # (r,) exponents
    _, of_b = torch.frexp(b.abs().amax(0))  # (r,)
    shift = torch.div(of_b - of_a, 2, rounding_mode="floor")  # (r,)
    return torch.ldexp(a, shift[:, None]), torch.ldexp(b, -shift)
