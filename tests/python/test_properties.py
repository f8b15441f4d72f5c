"""Properties of the NumPy interface over generated shapes, options and texts; what fails is shrunk by Hypothesis."""

import itertools

import numpy as np
import pytest
import torch
from attention_inputs import ACTIVATION, MAPS, same_bits, worst
from hypothesis import given, settings
from hypothesis import strategies as st

import protperf
from protperf import io
from protperf.errors import FastaError
from protperf.torch import reference

settings.register_profile("seeded", max_examples=250, deadline=None, derandomize=True)
settings.load_profile("seeded")

LETTERS = "ACDEFGHIKLMNPQRSTVWYUO"


@st.composite
def calls(draw, kinds=("plain", "mask", "segments")):
    """q, k, v in float64, omega, and options of a call that is right."""
    kind, causal, feature_map = draw(st.sampled_from(kinds)), draw(st.booleans()), draw(st.sampled_from(MAPS))
    b = 1 if kind == "segments" else draw(st.integers(1, 2))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    q_len = draw(st.integers(0, 70))
    kv_len = q_len if causal or kind == "segments" else draw(st.integers(0, 70))
    d, e, m = draw(st.integers(1, 20)), draw(st.integers(0, 20)), draw(st.integers(1, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = 0.5 if feature_map == "trigonometric" else draw(st.sampled_from([1e-3, 0.3, 1.0, 2.0]))
    q = scale * rng.standard_normal((b, kv_heads * group, q_len, d))
    k = scale * rng.standard_normal((b, kv_heads, kv_len, d))
    v = rng.standard_normal((b, kv_heads, kv_len, e))
    options = {"causal": causal}
    if kind == "mask":
        options["key_padding_mask"] = rng.random((b, kv_len)) < 0.3
    if kind == "segments":
        cuts = sorted(draw(st.lists(st.integers(0, q_len), max_size=3)))
        options["cu_seqlens"] = np.array([0, *cuts, q_len])
    omega = None if feature_map in ACTIVATION and draw(st.booleans()) else rng.standard_normal((m, d))
    return (q, k, v, omega), {**options, "feature_map": feature_map}


def as_tensors(values):
    return [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in values]


def favor(tensors, options):
    return protperf.favor_attention(*tensors, **options)


def plainly(attention, tensors, options):
    """What the plain form in torch gives for arrays."""
    return attention(*as_tensors(tensors), **dict(zip(options, as_tensors(options.values()), strict=True)))


@given(calls())
def test_favor_attention_is_its_definition(call):
    tensors, options = call
    plain = reference.favor_attention(
        *as_tensors(tensors), **dict(zip(options, as_tensors(options.values()), strict=True))
    )
    found = favor(tensors, options)
    assert found.shape == tuple(plain.shape)
    # The trigonometric estimate divides by sums that may come near to zero.
    tolerance = 1e-6 if options["feature_map"] == "trigonometric" else 1e-10
    assert worst(found, plain) <= tolerance * max(1.0, float(plain.abs().max() if plain.numel() else 0))


@given(calls())
def test_softmax_attention_is_its_definition(call):
    (*tensors, _), options = call
    del options["feature_map"]
    plain = plainly(reference.softmax_attention, tensors, options)
    assert worst(protperf.softmax_attention(*tensors, **options), plain) <= 1e-12


@given(calls(kinds=("segments",)))
def test_a_segment_is_a_call_of_its_own(call):
    (q, k, v, omega), options = call
    borders = options.pop("cu_seqlens")
    packed = favor((q, k, v, omega), {**options, "cu_seqlens": borders})
    for a, z in itertools.pairwise(borders):
        assert same_bits(packed[:, :, a:z], favor((q[:, :, a:z], k[:, :, a:z], v[:, :, a:z], omega), options))


@given(calls(), st.integers(-8, 8))
def test_values_times_a_power_of_two_give_the_output_times_it(call, power):
    (q, k, v, omega), options = call
    assert same_bits(favor((q, k, v * 2.0**power, omega), options), favor((q, k, v, omega), options) * 2.0**power)


@given(calls())
def test_equal_values_are_their_own_mean(call):
    (q, k, v, omega), options = call
    if options["feature_map"] == "trigonometric":
        return
    out = favor((q, k, np.full_like(v, 0.75), omega), options)
    # A row that sees no key gives 0, and so does one whose features are all 0.
    off = np.minimum(abs(out - 0.75), abs(out))
    assert off.max(initial=0.0) <= 1e-12


@given(st.integers(1, 90), st.integers(1, 40), st.integers(0, 2**64 - 1), st.sampled_from(["chi", "sqrt_dim"]))
def test_rows_of_a_block_of_directions_are_orthogonal(num_features, head_dim, seed, norm):
    omega = protperf.draw_projection(num_features, head_dim, norm=norm, seed=seed)
    assert omega.shape == (num_features, head_dim)
    assert same_bits(omega, protperf.draw_projection(num_features, head_dim, norm=norm, seed=seed))
    for start in range(0, num_features, head_dim):
        block = omega[start : start + head_dim]
        lengths = np.linalg.norm(block, axis=1)
        cosines = (block @ block.T) / np.outer(lengths, lengths)
        assert worst(cosines, np.eye(len(block))) <= 1e-13
        if norm == "sqrt_dim":
            assert worst(lengths, np.full(len(block), head_dim**0.5)) <= 1e-13 * head_dim


@given(st.text(LETTERS + LETTERS.lower() + "BZJX*-. \r", max_size=80))
def test_what_encode_mends_is_flagged_and_nothing_else_changes(text):
    tokens, flags = io.encode(text)
    kept = "".join(text.split()).upper().replace("-", "").replace(".", "")
    body = kept.rstrip("*") if kept.endswith("*") else kept
    names = io.flag_names(flags)
    decoded = io.decode(tokens)
    assert decoded in {body.replace("*", "X"), kept[:-1].replace("*", "X") if kept.endswith("*") else None}
    assert ("gaps" in names) == ("-" in text or "." in text)
    assert ("lower_case" in names) == any(c.islower() for c in text)
    assert ("empty" in names) == (not decoded)


@given(st.text(max_size=40))
def test_any_text_is_residues_or_a_fault_with_its_column(text):
    fault = None
    try:
        assert set(io.decode(io.encode(text)[0])) <= set(LETTERS + "BZJX")
    except FastaError as error:
        fault = error
    if fault is not None:
        assert fault.line >= 1
        assert 1 <= fault.column <= len(text.encode("utf-8", "surrogatepass")) + 1


@pytest.mark.parametrize("residues", ["map", "strict", "skip"])
@given(data=st.data())
def test_a_file_and_its_sequences_read_alike(residues, tmp_path_factory, data):
    text = st.text(LETTERS + "acgxBJ*-", min_size=1, max_size=30)
    sequences = data.draw(st.lists(text, min_size=1, max_size=5))
    path = tmp_path_factory.getbasetemp() / f"{residues}.fasta"
    path.write_text("".join(f">s{i}\n{x}\n" for i, x in enumerate(sequences)))
    expected, fault = [], False
    for i, x in enumerate(sequences):
        try:
            tokens, flags = io.encode(x, residues=residues)
        except FastaError:
            if residues != "skip":
                fault = True
                break
            continue
        expected.append((i, tokens.tobytes(), flags))
    found = []
    try:
        found.extend((r.n, r.tokens.tobytes(), r.flags) for r in io.scan(path, residues=residues))
    except FastaError:
        assert fault
        return
    assert not fault
    assert found == expected
