"""What the native module takes beyond the NumPy interface: states and their gradients, parameters, 16-bit tensors."""

import numpy as np
import pytest
import torch
from attention_inputs import arrays, worst

from protperf import LogLinear, _native, errors
from protperf.torch import favor_attention, favor_attention_with_state


class Pass:
    """One call forward and, when asked, backward, in float64."""

    def __init__(self, q, k, v, omega, state_in=None, **options):
        self.inputs, self.options = (q, k, v, omega), options
        b, h, length, d = q.shape
        e = v.shape[3]
        features = (d if omega is None else omega.shape[-2]) if "parameters" not in options else None
        features = len(options["parameters"][0]) if features is None else features
        self.state_in = state_in
        self.out, self.den = np.full((b, h, length, e), np.nan), np.full((b, h, length, 2), np.nan)
        self.state_out = np.full((b, h, features, 2 + e), np.nan)
        states = {"state_in": state_in, "state_out": self.state_out}
        _native.favor_forward(*self.inputs, self.out, self.den, **states, **options)

    def backward(self, grad, grad_state=None, **more):
        q, k, v, omega = self.inputs
        found = {"dq": np.empty_like(q), "dk": np.empty_like(k), "dv": np.empty_like(v)}
        domega = None if omega is None else np.full_like(omega, np.nan)
        states = {"state_in": self.state_in, "state_out": self.state_out, "grad_state": grad_state}
        dstate = None if self.state_in is None else np.full_like(self.state_in, np.nan)
        _native.favor_backward(
            *self.inputs, self.out, self.den, grad, *found.values(), domega, dstate_in=dstate, **states, **more,
            **self.options,
        )  # fmt: skip
        return found | {"domega": domega, "dstate_in": dstate}


def test_two_halves_with_the_state_between_them_are_the_whole():
    q, k, v, omega = arrays(1, 2, 100)
    rng = np.random.default_rng(1)
    grad = rng.standard_normal(v.shape)
    whole = Pass(q, k, v, omega, causal=True)
    first = Pass(q[:, :, :60], k[:, :, :60], v[:, :, :60], omega, causal=True)
    second = Pass(q[:, :, 60:], k[:, :, 60:], v[:, :, 60:], omega, first.state_out, causal=True)
    assert worst(np.concatenate([first.out, second.out], 2), whole.out) < 1e-12
    needed = whole.backward(grad)
    of_second = second.backward(grad[:, :, 60:])
    of_first = first.backward(grad[:, :, :60], of_second["dstate_in"])
    for name in ("dq", "dk", "dv"):
        assert worst(np.concatenate([of_first[name], of_second[name]], 2), needed[name]) < 1e-10, name
    assert worst(of_first["domega"] + of_second["domega"], needed["domega"]) < 1e-9


def test_gradients_of_parameters_are_those_of_omega_where_the_map_is_the_same():
    q, k, v, omega = arrays(1, 2, 70)
    grad = np.ones_like(v)
    needed = Pass(q, k, v, omega).backward(grad)
    record = LogLinear(omega, omega.copy(), np.ones(8), np.zeros(16), np.zeros(16)).as_tuple()
    gradients = tuple(np.full_like(x, np.nan) for x in record)
    found = Pass(q, k, v, None, parameters=record).backward(grad, dparameters=gradients)
    assert worst(found["dk"], needed["dk"]) < 1e-12
    assert worst(gradients[0] + gradients[1], needed["domega"]) < 1e-11
    # A constant acts through the sum of both sides, and the same for all features it does nothing.
    assert worst(gradients[3], gradients[4]) < 1e-11
    assert abs(gradients[3].sum()) < 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_widened_once_and_rounded_once(dtype):
    wide = [torch.from_numpy(x).to(dtype).float().numpy() for x in arrays(1, 2, 70, scale=0.5)[:3]]
    omega = arrays(1, 2, 70)[3]
    narrow = [torch.from_numpy(x).to(dtype).view(torch.uint16).numpy() for x in wide]
    out, den = np.empty_like(wide[0]), np.empty((1, 2, 70, 2), np.float32)
    _native.favor_forward(*wide, omega, out, den, causal=True)
    rounded, den16 = np.empty_like(narrow[0]), np.empty_like(den)
    stored = str(dtype).removeprefix("torch.")
    _native.favor_forward(*narrow, omega, rounded, den16, causal=True, stored=stored, backend="cpu")
    assert np.array_equal(rounded, torch.from_numpy(out).to(dtype).view(torch.uint16).numpy())
    assert np.array_equal(den, den16)
    gradients = [np.empty_like(x) for x in narrow]
    grad = torch.ones(1, 2, 70, 8, dtype=dtype).view(torch.uint16).numpy()
    _native.favor_backward(
        *narrow, omega, rounded, den16, grad, *gradients, None, causal=True, stored=stored, backend="cpu"
    )  # fmt: skip
    needed = [np.empty_like(x) for x in wide]
    _native.favor_backward(*wide, omega, out, den, np.ones_like(out), *needed, None, causal=True)
    for found, exact in zip(gradients, needed, strict=True):
        found = torch.from_numpy(found).view(dtype).float().numpy()
        # The saved output was rounded, and the gradient itself: a few units in the last place of the largest.
        assert worst(found, exact) < 8 * torch.finfo(dtype).eps * np.abs(exact).max()


def test_contradictions_are_refused_by_name():
    q, k, v, omega = arrays(1, 2, 6)
    call = Pass(q, k, v, omega)
    grad, state = np.ones_like(v), call.state_out
    call.state_out = None
    with pytest.raises(errors.ConfigError, match="grad_state needs state_out"):
        call.backward(grad, state)
    with pytest.raises(errors.ConfigError, match="domega cannot be given together with dparameters"):
        call.backward(grad, dparameters=(omega, None, None, None, None))
    with pytest.raises(errors.ConfigError, match="omega cannot be given together with parameters"):
        Pass(q, k, v, omega, parameters=(omega, None, None, None, None))
    with pytest.raises(errors.DtypeError, match='stored is "int8"'):
        _native.favor_forward(q, k, v, omega, call.out, call.den, stored="int8")
    with pytest.raises(errors.DtypeError, match=r"q: .*not compatible with u16"):
        _native.favor_forward(q, k, v, omega, call.out, call.den, stored="bfloat16")
    with pytest.raises(errors.ShapeError, match="state_in has"):
        Pass(q, k, v, omega, np.zeros((1, 2, 3, 10)))


@pytest.mark.parametrize("feature_map", ["positive", "relu", "trigonometric"])
def test_short_segments_read_their_keys_or_their_state_with_the_same_numbers(feature_map):
    differs = {}
    for length in (1, 15, 16, 17, 63, 64, 65):
        tensors = [torch.from_numpy(x) for x in arrays(1, 2, length, d=32, e=32, m=64, scale=0.5)]
        options = {"feature_map": feature_map, "causal": False}
        # Where the state is wanted it is what is read.
        by_state, _ = favor_attention_with_state(*tensors, **options)
        found = favor_attention(*tensors, **options)
        assert worst(found, by_state) < 1e-12
        differs[length] = not torch.equal(found, by_state)
    # By cost: both forms were taken.
    assert differs[15]
    assert not differs[65]


@pytest.mark.parametrize("feature_map", ["positive", "relu", "trigonometric"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (15, 15), (64, 17), (3, 64), (65, 65)])
def test_short_segments_have_gradients_of_the_other_side_or_its_state_with_the_same_numbers(feature_map, queries, keys):
    options = {"feature_map": feature_map, "causal": False}
    q, _, _, omega = (torch.from_numpy(x) for x in arrays(1, 2, queries, d=32, e=32, m=64, scale=0.5))
    _, k, v, _ = (torch.from_numpy(x) for x in arrays(1, 2, keys, d=32, e=32, m=64, scale=0.5))
    _, empty = favor_attention_with_state(*(x[:, :, :0] for x in (q, k, v)), omega, **options)
    weight = torch.randn(empty[..., 1:].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    # After a first state, though no key is in it, states are what is read.
    def gradients(first, of_state):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, omega)]
        out, last = favor_attention_with_state(*leaves, first, **options)
        loss = out.square().sum() + of_state * (last[..., 1:] * weight).sum()
        return torch.autograd.grad(loss, leaves)

    for of_state in (0, 1):
        found, by_states = gradients(None, of_state), gradients(empty, of_state)
        assert all(worst(a, b) < 1e-12 for a, b in zip(found, by_states, strict=True))
        differs = any(not torch.equal(a, b) for a, b in zip(found, by_states, strict=True))
        # By cost: both forms were taken.
        assert differs == (keys < 65)
