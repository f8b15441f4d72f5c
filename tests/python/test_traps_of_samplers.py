"""Random directions that other samplers draw wrong without a word; `docs/traps.md` lists whose.

Bounds are at least five standard deviations wide, and the faults that they are to find lie far outside.
"""

import math

import numpy as np
import pytest
from traps import directions

import protperf

D = 16
ROTATIONS = ("orthogonal", "simplex", "hadamard")


def blocks(count, width=D, **options):
    """So many draws of one block of directions [count,width,width], of unit length."""
    drawn = [protperf.draw_projection(width, width, stream=(0, 0, i), norm="sqrt_dim", **options) for i in range(count)]
    return np.stack(drawn) / math.sqrt(width)


def test_trap_without_the_sign_of_qr_rotations_are_not_uniform():
    rows = directions(32000, D).numpy()
    # The moment E exp(w z) = exp(|z|^2 / 2); without the sign it is 0.77 of that. One standard deviation is 0.02.
    found = np.exp(rows @ np.full(D, 0.4)).mean()
    assert abs(found / math.exp(D * 0.16 / 2) - 1) < 0.1
    entries = blocks(2000)[:, range(D), range(D)].mean(0)
    assert np.abs(entries).max() < 5.5 / math.sqrt(2000 * D)
    gaussian = np.random.default_rng(0).standard_normal((500, D, D))
    without = np.linalg.qr(gaussian)[0].swapaxes(1, 2)[:, range(D), range(D)].mean(0)
    assert np.abs(without).max() > 0.15


@pytest.mark.parametrize("sampler", ["iid", "orthogonal", "simplex"])
def test_trap_norms_depend_on_the_direction(sampler):
    squares = protperf.draw_projection(40000, 2, sampler=sampler) ** 2
    assert np.abs(squares.mean(0) - 1).max() < 5.5 * math.sqrt(2 / 40000)
    # Norms taken from the rows that the directions came from would be longest along the first axis.
    gaussian = np.random.default_rng(0).standard_normal((20000, 2, 2))
    rotation, triangle = np.linalg.qr(gaussian)
    rotation = rotation * np.sign(np.diagonal(triangle, axis1=1, axis2=2))[:, None, :]
    dependent = rotation.swapaxes(1, 2) * np.linalg.norm(gaussian, axis=2, keepdims=True)
    assert np.abs((dependent**2).mean((0, 1)) - 1).max() > 0.1


def test_trap_a_product_of_plane_rotations_is_not_orthogonal():
    for omega in blocks(50, 64):
        assert np.abs(omega @ omega.T - np.eye(64)).max() < 1e-12


def test_trap_every_block_of_a_draw_is_the_same_one():
    first, second = protperf.draw_projection(2 * D, D).reshape(2, D, D)
    assert np.abs(first - second).max() > 0.1
    streams = [protperf.draw_projection(D, D, stream=stream) for stream in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert all(np.abs(a - b).max() > 0.1 for i, a in enumerate(streams) for b in streams[:i])


def test_trap_drawing_seeds_the_generator_of_the_caller_anew():
    import torch

    np.random.seed(7)
    torch.manual_seed(7)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    protperf.draw_projection(D, D, seed=3)
    assert np.array_equal(np.random.get_state()[1], states[0])
    assert torch.equal(torch.get_rng_state(), states[1])


@pytest.mark.parametrize("sampler", ROTATIONS)
def test_trap_a_rotation_that_is_near_the_identity(sampler):
    drawn = blocks(200, 64, sampler=sampler)
    diagonal = drawn[:, range(64), range(64)].mean(0)
    assert np.abs(diagonal).max() < 5.5 / math.sqrt(200 * 64) * (2 if sampler == "hadamard" else 1)


def test_trap_a_walk_that_is_stopped_too_early_has_large_entries_and_remembers():
    drawn = blocks(50, 64)
    # Of 50 rotations about 5 entries are above 1/2; after too few steps of a walk it is 10 in each.
    assert (np.abs(drawn) > 0.5).sum() < 25
    cosines = np.abs((drawn[1:] * drawn[:-1]).sum(-1))
    # The mean of |cos| of independent directions is sqrt(2 / (64 pi)).
    assert abs(cosines.mean() - math.sqrt(2 / (64 * math.pi))) < 0.01


def test_trap_norms_of_smreg_shrink_with_the_number_of_features():
    for num_features in (64, 256, 1024):
        omega = protperf.draw_projection(num_features, 64, norm="sqrt_dim")
        assert np.abs(np.linalg.norm(omega, axis=1) - 8).max() < 1e-12
    # The map makes the norms itself, from any that omega has.
    rng = np.random.default_rng(0)
    q, k, v = 0.5 * rng.standard_normal((3, 1, 1, 20, 64))
    omega = protperf.draw_projection(64, 64)
    found = [protperf.favor_attention(q, k, v, scale * omega, feature_map="smreg") for scale in (1, 0.3)]
    assert np.abs(found[0] - found[1]).max() < 1e-12
