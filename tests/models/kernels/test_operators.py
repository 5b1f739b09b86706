"""Every kernel is an operator of torch: what differentiates, compiles, exports or maps it need not look inside."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from msad.models import similarity
from msad.models.kernels.enlarge import doubled, enlarge, enlarge_backward
from msad.models.kernels.feature_distance import both_distances, both_distances_backward, feature_distances
from msad.models.kernels.norm_relu import NormReLU, norm_relu, norm_relu_backward
from msad.models.kernels.ssim import ssim, ssim_backward
from msad.models.similarity import ssim_map

FEATURE, CHANNELS, IMAGE = (2, 5, 6, 4), (5,), (2, 3, 12, 10)
WINDOW, CONSTANTS = similarity._window().float(), (similarity.C1, similarity.C2)

# By name: the operator, the shapes of its tensors that want a gradient, those of the others, and what follows.
OPERATORS = {
    "norm_relu": (norm_relu, [FEATURE, CHANNELS, CHANNELS], [], [1e-5]),
    "norm_relu_backward": (norm_relu_backward, [], [FEATURE, *[CHANNELS] * 4, FEATURE], []),
    "ssim": (ssim, [IMAGE], [IMAGE], [WINDOW, *CONSTANTS]),
    "ssim_backward": (ssim_backward, [], [IMAGE, IMAGE, (3, *IMAGE), IMAGE], [WINDOW]),
    "feature_distances": (both_distances, [FEATURE], [FEATURE], []),
    "feature_distances_backward": (both_distances_backward, [], [FEATURE, FEATURE, (2, 2, 6, 4), (), ()], []),
    "enlarge": (enlarge, [FEATURE], [], []),
    "enlarge_backward": (enlarge_backward, [], [FEATURE], []),
}


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_operator_is_registered_as_torch_wants_it(name, interleaved, compiled):
    operator, trained, others, rest = OPERATORS[name]
    given = drawn(*trained, *others)
    if interleaved:
        given = [one.to(memory_format=torch.channels_last) if one.ndim == 4 else one for one in given]
    for one in given[: len(trained)]:
        one.requires_grad_()
    torch.library.opcheck(operator, (*given, *rest))


class Step(nn.Module):
    """Calls every kernel, as a training step does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), NormReLU(5), nn.Conv2d(5, 3, 1))

    def forward(self, image, goal):
        made = self.layers(image)
        cosine, squared = feature_distances(doubled(made), doubled(goal))
        return ssim_map(made, goal).mean() + cosine + squared


@pytest.fixture
def step(compiled):
    torch.manual_seed(0)
    return Step().train(), drawn(IMAGE, IMAGE)


def operators(program):
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    targets = (str(node.target) for graph in graphs for node in graph.nodes)
    return {target.split(".")[1] for target in targets if target.startswith("msad")}


def test_step_is_compiled_whole(step):
    model, given = step
    plain = copy.deepcopy(model)
    plain(*given).backward()
    torch.compile(model, backend="aot_eager", fullgraph=True)(*given).backward()
    for (name, one), (_, other) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for (name, one), (_, other) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize("strict", [False, True])
def test_step_is_exported_with_the_operators_in_it(step, strict):
    model, given = step
    program = torch.export.export(copy.deepcopy(model), tuple(given), strict=strict)
    assert operators(program) == {"norm_relu", "ssim", "feature_distances", "enlarge"}
    torch.testing.assert_close(program.module()(*given), model(*given))


def test_steps_of_several_models_are_mapped(step):
    model, given = step
    models = [model, Step().train()]
    parameters, buffers = torch.func.stack_module_state(models)

    def run(parameters, buffers):
        return torch.func.functional_call(model, (parameters, buffers), tuple(given))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one model after the other there
        losses = torch.vmap(run)(parameters, buffers)
    losses.sum().backward()
    for number, one in enumerate(models):
        loss = one(*given)
        loss.backward()
        torch.testing.assert_close(losses[number], loss)
        for name, parameter in one.named_parameters():
            torch.testing.assert_close(parameters[name].grad[number], parameter.grad)
