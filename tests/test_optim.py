import math

import pytest
import torch
import torch.nn.functional as F

from speedyresnet.engine.optim import ParameterGroup, mix_, muon_, nesterov_mix_, newton_schulz
from speedyresnet.engine.recipe import Muon

SHAPES = [(6, 4, 3, 3), (40, 2, 3, 3), (6, 4, 3, 3), (5, 5, 1, 1)]  # the second has more rows than columns
EXACT = Muon(newton_schulz_dtype="float64", newton_schulz_coefficients=(3.4, -4.7, 2.1), weight_decay=0.2)


def random_filters(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    return [each.to(memory_format=torch.channels_last) for each in made]


def group_of(parameters, settings):
    return ParameterGroup(parameters, 1.0, settings.weight_decay, [torch.zeros_like(each) for each in parameters])


def scalar(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def reference_newton_schulz(matrix, settings):
    """By singular values: the iteration is a polynomial of each of them."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / (values.square().sum().sqrt() + 1e-7)
    a, b, c = settings.newton_schulz_coefficients
    for _ in range(settings.newton_schulz_steps):
        values = a * values + b * values**3 + c * values**5
    return left @ torch.diag(values) @ right


def reference_step(weight, buffer, gradient, learning_rate, renormalise, settings):
    """One filter bank, as its own matrix."""
    buffer = settings.momentum * buffer + gradient
    direction = (gradient + settings.momentum * buffer).flatten(1)
    if renormalise:
        weight = weight * math.sqrt(len(weight)) / weight.norm()
    update = reference_newton_schulz(direction, settings).view(weight.shape)
    weight = weight - learning_rate * update
    return weight - learning_rate * settings.weight_decay * weight, buffer


def test_muon_is_the_reference_of_each_filter_bank_step_by_step():
    parameters = random_filters(0)
    group = group_of(parameters, EXACT)
    expected = [(each.clone(), torch.zeros_like(each)) for each in parameters]
    for step in range(6):
        gradients = random_filters(1 + step)
        rate, renormalise = 0.1 * (step + 1) * (step != 3), step % 3 == 0
        muon_(group, [each.clone() for each in gradients], scalar(rate), scalar(float(renormalise)), EXACT)
        for place, gradient in enumerate(gradients):
            expected[place] = reference_step(*expected[place], gradient, rate, renormalise, EXACT)
            torch.testing.assert_close(parameters[place], expected[place][0], rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(group.momentum_buffers[place], expected[place][1], rtol=1e-13, atol=1e-13)


def test_renormalised_filters_have_unit_rows_on_average():
    parameters = random_filters(0)
    muon_(group_of(parameters, EXACT), random_filters(1), scalar(0.0), scalar(1.0), EXACT)
    for each in parameters:
        assert float(each.square().sum()) == pytest.approx(len(each))


def test_nothing_moves_at_rate_zero_without_renormalisation():
    parameters, before = random_filters(0), random_filters(0)
    muon_(group_of(parameters, EXACT), random_filters(1), scalar(0.0), scalar(0.0), EXACT)
    for each, old in zip(parameters, before, strict=True):
        assert torch.equal(each, old)


def test_the_update_does_not_depend_on_the_scale_of_the_loss():
    updated = []
    for scale in (1.0, 1e4):
        parameters = random_filters(0)
        gradients = [each * scale for each in random_filters(1)]
        muon_(group_of(parameters, EXACT), gradients, scalar(0.1), scalar(0.0), EXACT)
        updated.append(parameters)
    for one, other in zip(*updated, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_a_gradient_of_zero_moves_nothing():
    parameters, before = random_filters(0), random_filters(0)
    settings = Muon(newton_schulz_dtype="float64")
    muon_(group_of(parameters, settings), [0 * each for each in before], scalar(0.1), scalar(0.0), settings)
    for each, old in zip(parameters, before, strict=True):
        assert torch.equal(each, old)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.04), ("float16", 0.005)])
@pytest.mark.parametrize("shape", [(3, 16, 64), (2, 64, 16)])
def test_newton_schulz_brings_singular_values_near_one(shape, dtype, bound):
    settings = Muon(newton_schulz_dtype=dtype, newton_schulz_steps=5)
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = newton_schulz(matrices, settings)
    assert (found.shape, found.dtype) == (shape, getattr(torch, dtype))
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.6
    assert values.max() < 1.3
    for each, matrix in zip(found, matrices, strict=True):
        assert (each.double() - reference_newton_schulz(matrix.double(), settings)).abs().max() < bound


def iterated(matrices, settings):
    """The iteration as it is written, with a new Gram matrix each time, in the dtype of `matrices`."""
    a, b, c = settings.newton_schulz_coefficients
    x, identity = matrices, torch.eye(matrices.shape[1], dtype=matrices.dtype)
    for _ in range(settings.newton_schulz_steps):
        gram = x @ x.mT
        x = (a * identity + b * gram + c * (gram @ gram)) @ x
    return x


SPECTRA = {
    "flat": torch.ones(64, dtype=torch.float64),
    "falling": torch.logspace(0, -4, 64, dtype=torch.float64),
    "low rank": torch.tensor([1.0] * 4 + [1e-3] * 60, dtype=torch.float64),
    "rank one": torch.tensor([1.0] + [0.0] * 63, dtype=torch.float64),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_half_precision_loses_at_most_twice_what_the_plain_iteration_loses(spectrum, dtype, steps):
    """Both against float64, on matrices of 64 x 320 as wide as they come, relative to the whole update."""
    generator = torch.Generator().manual_seed(steps)
    left, right = (torch.randn(2, 64, n, dtype=torch.float64, generator=generator) for n in (64, 320))
    matrices = torch.linalg.qr(left)[0] * SPECTRA[spectrum] @ torch.linalg.qr(right.mT)[0].mT
    matrices = matrices / torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    settings = Muon(newton_schulz_steps=steps, newton_schulz_dtype=dtype)
    exact = iterated(matrices, settings)
    found = newton_schulz(matrices.float(), settings)
    assert found.dtype == getattr(torch, dtype)
    plain = iterated(matrices.to(found.dtype), settings)
    errors = [float((each.double() - exact).norm() / exact.norm()) for each in (found, plain)]
    assert errors[0] < 2 * errors[1]
    assert errors[0] < {"float16": 0.2, "bfloat16": 1.5}[dtype]  # rank one at five steps is the worst


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5])
def test_the_gram_form_is_the_iteration(steps):
    matrices = torch.randn(3, 8, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrices = matrices / torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    settings = Muon(newton_schulz_steps=steps, newton_schulz_dtype="float64")
    found = newton_schulz(matrices, settings)
    torch.testing.assert_close(found, iterated(matrices, settings), rtol=1e-6, atol=1e-6)  # a norm of 1 + 1e-7


def test_zeros_around_a_matrix_change_nothing():
    """Muon pads its matrices to one shape."""
    matrix = torch.randn(1, 6, 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = newton_schulz(F.pad(matrix, (0, 5, 0, 3)), EXACT)
    torch.testing.assert_close(found, F.pad(newton_schulz(matrix, EXACT), (0, 5, 0, 3)), rtol=1e-13, atol=1e-15)


def test_half_precision_weights_are_rounded_once():
    """In float16 the decay would be 1 or 0.9995, and each operation would round."""
    settings = Muon(newton_schulz_dtype="float16", momentum=0.0, weight_decay=3e-3)
    weight, gradient = random_filters(0, torch.float16)[0], random_filters(1, torch.float16)[0]

    def matrix(filters):
        return filters.permute(0, 2, 3, 1).flatten(1)

    update = newton_schulz(matrix(gradient).float()[None], settings)[0].double()
    old = matrix(weight).double()
    expected = (old * math.sqrt(len(old)) / old.norm() - 0.1 * update) * (1 - 0.1 * 3e-3)
    muon_(group_of([weight], settings), [gradient], *torch.tensor([0.1, 1.0]), settings)
    assert (matrix(weight) != expected.half()).sum() <= 0.01 * weight.numel()  # ties that float32 breaks otherwise


def test_muon_is_one_graph_and_knows_no_host():
    def step(parameters, gradients, buffers, rate, renormalise):
        muon_(ParameterGroup(parameters, 1.0, 0.2, buffers), gradients, rate, renormalise, EXACT)

    parameters, buffers = random_filters(0), random_filters(2)
    other, other_buffers = random_filters(0), random_filters(2)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for renormalise in (0.0, 1.0):
        step(parameters, random_filters(1), buffers, scalar(0.1), scalar(renormalise))
        compiled(other, random_filters(1), other_buffers, scalar(0.1), scalar(renormalise))
    for one, another in zip([*parameters, *buffers], [*other, *other_buffers], strict=True):
        torch.testing.assert_close(one, another, rtol=1e-10, atol=1e-10)
    paper = [[each.to("meta") for each in random_filters(0)] for _ in range(3)]
    step(*paper, scalar(0.1).to("meta"), scalar(1.0).to("meta"))


def test_slow_weights_with_momentum_move_as_torchs_sgd_does():
    """Whose gradient is what they are ahead of the live ones; a step that is no move changes no velocity."""
    slow, theirs = random_filters(0), [each.clone().requires_grad_() for each in random_filters(0)]
    plain, velocity = random_filters(0), [torch.zeros_like(each) for each in slow]
    optimizer = torch.optim.SGD(theirs, lr=1.0, momentum=0.8, nesterov=True)
    for step in range(6):
        live, keep, before = random_filters(1 + step), 0.3 + 0.1 * step, [each.clone() for each in velocity]
        if step == 3:  # a plain copy, as where an average begins
            nesterov_mix_(slow, live, velocity, scalar(0.0), scalar(0.0), 0.8)
            with torch.no_grad():
                for value, other in zip(theirs, live, strict=True):
                    value.copy_(other)
            for mine, other, old, now in zip(slow, live, before, velocity, strict=True):
                assert torch.equal(mine, other)
                assert torch.equal(old, now)
        else:
            optimizer.param_groups[0]["lr"] = 1 - keep
            for value, other in zip(theirs, live, strict=True):
                value.grad = value.detach() - other
            optimizer.step()
            nesterov_mix_(slow, live, velocity, scalar(keep), scalar(1.0), 0.8)
        nesterov_mix_(plain, live, [torch.zeros_like(each) for each in live], scalar(keep), scalar(1.0), 0.0)
        for mine, other in zip(slow, theirs, strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-12, atol=1e-12)
    expected = random_filters(0)
    for step in range(6):
        mix_(expected, random_filters(1 + step), scalar(0.3 + 0.1 * step))
    for mine, other in zip(plain, expected, strict=True):
        assert torch.equal(mine, other)
