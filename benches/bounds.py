"""The least arithmetic that a task needs; over the rates that `report.ceilings` measures it is a bound on its time."""

CHUNK = 64
"""Positions of the causal form that are multiplied with each other rather than through the state."""


def favor_flops(num_features: int, head_dim: int, *, causal: bool, backward: bool) -> int:
    """Multiplications and additions of FAVOR+ per token and head; the backward pass computes the features again."""
    m, d = num_features, head_dim
    flops = (26 if causal else 24) * m * d if backward else 8 * m * d
    return flops + (4 if backward else 1) * CHUNK * (m + d) * causal


def favor_exps(num_features: int, *, backward: bool) -> int:
    """Exponentials of FAVOR+ with an exponential map, per token and head."""
    return (4 if backward else 2) * num_features


def training_flops(num_parameters: int, num_heads: int, num_features: int, head_dim: int) -> int:
    """Multiplications and additions of a causal training step per token.

    Each weight is used once forward and twice backward, two operations each: 6 per parameter.

    Args:
        num_parameters: those that tokens are multiplied with; the embedding counts, being the output as well.
        num_heads: of all layers together.
    """
    return 6 * num_parameters + num_heads * favor_flops(num_features, head_dim, causal=True, backward=True)
