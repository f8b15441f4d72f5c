"""Directions that are drawn anew in whole models: by the step alone, the same on every rank, inside of a graph too."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_inputs import same_bits, tensors

import protperf
from protperf.torch.nn import FavorAttention, FittedAttention, redraw_attention


def test_a_model_is_redrawn_by_the_step_alone():
    def layers():
        favor = FavorAttention(8, 16, num_heads=2, layer=1, seed=3)
        fitted = FittedAttention(8, 16, num_heads=2, layer=2, seed=3)
        return torch.nn.ModuleList([favor, fitted, torch.nn.Linear(2, 2)])

    one, resumed = layers(), layers()
    first = [x.clone() for x in one.buffers()]
    for step in range(25):
        assert redraw_attention(one, step, 10) == step // 10
        if step < 10:
            assert all(torch.equal(a, b) for a, b in zip(one.buffers(), first, strict=True))
    assert not torch.equal(one[0].omega, first[0])
    resumed.load_state_dict(one.state_dict())
    versions = one[0].omega._version
    for model in (one, resumed):
        redraw_attention(model, 25, 10)
    assert one[0].omega._version == versions
    assert redraw_attention(resumed, 30, 10) == redraw_attention(one, 30, 10) == 3
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), resumed.buffers(), strict=True))
    assert redraw_attention(one, 99, 0) == 0
    assert torch.equal(one[0].omega, resumed[0].omega)
    with pytest.raises(protperf.Error, match="step is -1"):
        redraw_attention(one, -1, 10)


def test_modules_in_evaluation_keep_their_directions():
    model = torch.nn.ModuleList([FavorAttention(8, 16), FittedAttention(8, 16, layer=1)])
    start = [module.omega.clone() for module in favors(model)]
    model.eval()
    # The number is that of the step, which no module has taken.
    assert redraw_attention(model, 25, 10) == 2
    assert all(torch.equal(module.omega, omega) for module, omega in zip(favors(model), start, strict=True))
    assert [module.draw for module in favors(model)] == [0, 0]
    model[0].train()
    assert redraw_attention(model, 25, 10) == 2
    assert [module.draw for module in favors(model)] == [2, 0]
    model.train()
    assert redraw_attention(model, 26, 10) == 2
    assert [module.draw for module in favors(model)] == [2, 2]


def favors(model):
    return [module for module in model.modules() if isinstance(module, FavorAttention)]


def test_a_step_that_redraws_is_one_graph_for_every_step():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def model():
        torch.manual_seed(0)
        return torch.nn.ModuleList(
            [
                torch.nn.Linear(8, 8),
                FavorAttention(8, 16, num_heads=2, seed=3),
                FavorAttention(8, 16, layer=1, causal=True),
            ]
        )

    def training_step(model, x, step):
        draw = redraw_attention(model, step, 2)
        q, first, second = model[0](x), model[1], model[2]
        return draw, second(q, first(q, q, q), x).square().sum()

    x = torch.randn(1, 2, 9, 8)
    eager, compiled = model(), model()
    graph = torch.compile(training_step, fullgraph=True, backend=backend)
    for step in (0, 1, 2, 3, 8, 2):
        number, loss = training_step(eager, x, step)
        found, other = graph(compiled, x, torch.tensor(step))
        assert found == number == step // 2
        loss.backward()
        other.backward()
        assert torch.equal(loss, other)
        for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
            assert same_bits(a.grad, b.grad)
        assert all(torch.equal(a, b) for a, b in zip(eager.buffers(), compiled.buffers(), strict=True))
    assert len(graphs) == 1
    # What was drawn in the graph is known outside of it.
    compiled[1].check_omega()
    assert compiled[1].draw == 1


def test_a_compiler_that_forbids_changes_in_place_redraws_too():
    module = FavorAttention(8, 16, num_heads=2, seed=3)
    q, k, v, _ = tensors(1, 2, 9, dtype=torch.float32)

    def drawn(step):
        redraw_attention(module, step, 1)
        return module(q, k, v)

    compiled = torch.compile(drawn, fullgraph=True, backend="aot_eager")
    outs = [compiled(torch.tensor(step)) for step in range(4)]
    for step, out in enumerate(outs):
        module.redraw(step)
        assert same_bits(out, module(q, k, v))


def test_opcheck_of_a_redraw():
    for heads in (None, 2):
        module = FavorAttention(8, 16, num_heads=heads)
        torch.library.opcheck(
            torch.ops.protperf.redraw_.default, (module.omega, module.draw_key, torch.tensor(7), 2, "iid", "chi")
        )


def test_a_step_as_a_tensor_is_judged_as_a_number_is():
    module = FavorAttention(8, 16)
    for step, message in (
        (torch.tensor([1]), r"step is a tensor of shape \[1\]"),
        (torch.tensor(1.0), "type torch.float32; give one integer"),
        (torch.tensor(-1), "step is -1"),
        (torch.tensor(2**40), "step is 1099511627776"),
    ):
        with pytest.raises(protperf.Error, match=message):
            redraw_attention(module, step, 10)
    assert redraw_attention(module, torch.tensor(5), 0) == 0
    assert redraw_attention(module.eval(), torch.tensor(25), 10) == 2
    module.check_omega()
    assert module.draw == 0
    module.train().draw_key[0] += 1
    with pytest.raises(protperf.Error, match="directions that it did not draw"):
        torch.ops.protperf.redraw_(module.omega, module.draw_key, torch.tensor(5), 1, "iid", "chi")


def drawn_by_a_rank(rank):
    """A digest of all directions of a model on one rank; every rank has another state of torch's generator."""
    torch.manual_seed(rank)
    model = torch.nn.ModuleList(
        FavorAttention(8, 33, num_heads=2, layer=layer, seed=5, sampler=sampler)
        for layer, sampler in enumerate(("orthogonal", "iid"))
    )
    digests = []
    for step in (0, 7, 20):
        torch.rand(rank + step)
        redraw_attention(model, step, 5)
        digests += [hashlib.sha256(module.omega.numpy().tobytes()).hexdigest() for module in favors(model)]
    return digests


def test_every_rank_draws_the_same_bits():
    program = "import test_redraw; print(*test_redraw.drawn_by_a_rank(1))"
    settings = {"PYTHONPATH": str(Path(__file__).parent), "PROTPERF_NUM_THREADS": "3", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", program]
    other = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
    found = drawn_by_a_rank(0)
    assert other.stdout.split() == found
    assert len(set(found)) == 6
