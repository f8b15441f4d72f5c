"""What is done to queries and keys before attention: norms, which decide how well features estimate, and rotations."""

from __future__ import annotations

import torch

from protperf.errors import ConfigError

__all__ = ["QKNorm", "Rotary", "rotate", "rotations"]


class QKNorm(torch.nn.Module):
    """Queries and keys of one norm, so that logits are a learned temperature times a cosine.

    The scaled inputs q D^-1/4 and k D^-1/4 get the squared norm `temperature` of their head: logits are at most that,
    and E|x + y|^2 is about twice it. Features estimate well up to about 2; see `protperf.torch.regime`.

    Args:
        head_dim: D.
        num_heads: H, a temperature for each.
        temperature: where it starts.
        epsilon: added to norms, for rows of zeros.

    Shapes: forward takes and returns q [B,H,L,D] and k [B,Hk,S,D]; keys share the temperature of the first query head
    of their group.
    """

    def __init__(self, head_dim: int, num_heads: int, *, temperature: float = 1.0, epsilon: float = 1e-6) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature}; it must be above 0")
        self.head_dim, self.epsilon = head_dim, epsilon
        start = torch.full((num_heads,), float(temperature)).log()
        self.log_temperature = torch.nn.Parameter(start)

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Only products of a query and a key count, so the query carries what groups of heads do not share.
        log_q = self.log_temperature
        log_k = log_q.view(k.shape[1], -1)[:, 0]
        group = q.shape[1] // k.shape[1]
        return self._scaled(q, log_q - 0.5 * log_k.repeat_interleave(group)), self._scaled(k, 0.5 * log_k)

    def _scaled(self, x: torch.Tensor, log_norm: torch.Tensor) -> torch.Tensor:
        unit = x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + self.epsilon)
        return unit * (log_norm.exp() * self.head_dim**0.25).to(x.dtype)[:, None, None]


class Rotary(torch.nn.Module):
    """Rotary positions: the pairs (x[i], x[i + D/2]) turned by their position's angle.

    Norms stay, and so does what features estimate well. Angles are computed in float64, for those of far positions
    have no correct digits in float32.

    Args:
        head_dim: D, even.
        base: of the geometric series of wavelengths.

    Source: Su et al. 2021, arXiv:2104.09864.
    """

    def __init__(self, head_dim: int, *, base: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ConfigError(f"head_dim is {head_dim}; rotary positions need an even number")
        self.head_dim, self.base = head_dim, base

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys [..,L,D] of positions [L], by default from 0."""
        return self.rotate(q, positions), self.rotate(k, positions)

    def rotate(self, x: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Rows [..,L,D] turned by the angles of their positions [L]."""
        if positions is None:
            positions = torch.arange(x.shape[-2], device=x.device)
        return rotate(x, rotations(positions, self.head_dim, x.dtype, self.base))


def rotations(
    positions: torch.Tensor, head_dim: int, dtype: torch.dtype, base: float = 10000.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [L,D/2] of the angles of positions [L], on their device."""
    # MPS has no float64.
    device = torch.device("cpu") if positions.device.type == "mps" else positions.device
    rates = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim)
    angles = positions.to(device, torch.float64)[:, None] * rates
    return angles.cos().to(positions.device, dtype), angles.sin().to(positions.device, dtype)


def rotate(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The pairs (x[i], x[i + D/2]) of rows x [..,L,D] turned by the angles of these cosines and sines."""
    cosines, sines = rotary
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, first * sines + second * cosines], -1)
