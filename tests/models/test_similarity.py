from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data
from skimage.metrics import structural_similarity
from skimage.transform import rescale

from msad.models.similarity import gradient_similarity, gradient_similarity_map, ms_ssim, ssim_map

FUNCTIONS = pytest.mark.parametrize("function", [ssim_map, ms_ssim, gradient_similarity_map])


@pytest.fixture(scope="module")
def pair():
    """A photograph and a blurred, noisy copy, 1×3×128×112."""
    image = rescale(data.astronaut()[:512, :448] / 255, 0.25, anti_aliasing=True, channel_axis=2)
    noise = np.random.default_rng(0).normal(0, 0.03, image.shape)
    other = np.clip(ndimage.gaussian_filter(image, (1, 1, 0)) + noise, 0, 1)
    return tuple(torch.from_numpy(a).permute(2, 0, 1)[None].float().contiguous() for a in (image, other))


def test_ssim_map_against_scikit_image(pair):
    first, second = pair
    _, expected = structural_similarity(
        first[0].double().numpy(),
        second[0].double().numpy(),
        channel_axis=0,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    inside = (..., slice(6, -6), slice(6, -6))  # the borders are mirrored in another way
    np.testing.assert_allclose(ssim_map(first, second)[0].numpy()[inside], expected[inside], atol=1e-4)


def test_gradient_similarity_map_one_scale_against_scipy(pair):
    magnitudes = []
    for image in pair:
        grey = image[0].double().mean(0).numpy()
        magnitudes.append(
            np.hypot(ndimage.prewitt(grey, 0, mode="nearest"), ndimage.prewitt(grey, 1, mode="nearest")) / 3
        )
    first, second = magnitudes
    expected = (2 * first * second + 170 / 255**2) / (first**2 + second**2 + 170 / 255**2)
    np.testing.assert_allclose(gradient_similarity_map(*pair, scales=1)[0, 0].numpy(), expected, atol=1e-4)


@FUNCTIONS
def test_similarity_of_equal_images_is_one(function, pair):
    same = function(pair[0], pair[0])
    torch.testing.assert_close(same, torch.ones_like(same), atol=5e-5, rtol=0)


@FUNCTIONS
def test_similarity_is_symmetric(function, pair):
    torch.testing.assert_close(function(*pair), function(*reversed(pair)), atol=1e-5, rtol=1e-5)


@FUNCTIONS
def test_similarity_falls_with_noise(function, pair):
    image, noise = pair[0], torch.randn(pair[0].shape, generator=torch.Generator().manual_seed(0))
    means = [function(image, (image + s * noise).clamp(0, 1)).mean().item() for s in (0.02, 0.05, 0.1, 0.2)]
    assert means == sorted(means, reverse=True) and means[0] - means[-1] > 0.05


@FUNCTIONS
def test_similarity_gradient_raises_it(function, pair):
    moving = pair[1].clone().requires_grad_()
    before = function(moving, pair[0]).mean()
    before.backward()
    assert torch.isfinite(moving.grad).all()
    step = 0.05 / moving.grad.norm()
    assert function((moving + step * moving.grad).detach(), pair[0]).mean() > before


@FUNCTIONS
def test_similarity_gradient_of_flat_images_is_finite(function):
    flat = torch.full((1, 3, 32, 32), 0.5, requires_grad=True)
    function(flat, torch.full((1, 3, 32, 32), 0.5)).mean().backward()
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("function", [ssim_map, gradient_similarity_map, gradient_similarity])
def test_similarity_gradient_against_finite_differences(function):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(1, 1, 16, 16, generator=generator) for _ in range(2))
    first.requires_grad_()
    function(first, second).mean().backward()
    for row, column in ((0, 0), (7, 8), (15, 3)):
        nudge = torch.zeros_like(first)
        nudge[..., row, column] = 1e-2
        with torch.no_grad():
            slope = (
                function(first + nudge, second).double().mean() - function(first - nudge, second).double().mean()
            ) / 2e-2
        assert first.grad[0, 0, row, column].item() == pytest.approx(slope.item(), rel=0.1, abs=2e-5)


@FUNCTIONS
def test_similarity_under_autocast_is_float32(function, pair):
    expected = function(*pair)
    with torch.autocast("cpu", torch.bfloat16):
        result = function(*pair)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (176, 200)])
def test_similarity_of_small_and_odd_sizes(size):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(2, 3, *size, generator=generator) for _ in range(2))
    assert ssim_map(first, second).shape == (2, 3, *size)
    assert gradient_similarity_map(first, second).shape == (2, 1, *size)
    assert ms_ssim(first, second).shape == (2,)
    assert torch.isfinite(ms_ssim(first, second)).all()


def test_ssim_map_after_a_prediction_in_the_same_process_can_be_trained():
    image_BCHW = torch.rand(1, 1, 53, 59, generator=torch.Generator().manual_seed(0))  # a size that no other test has
    with torch.inference_mode():
        ssim_map(image_BCHW, image_BCHW)
    made_BCHW = (image_BCHW * 0.9).requires_grad_()
    ssim_map(made_BCHW, image_BCHW).mean().backward()
    assert made_BCHW.grad.abs().sum() > 0


def test_gradient_similarity_map_sees_a_defect_where_it_is(pair):
    image = pair[0]
    defect = image.clone()
    defect[..., 40:60, 40:60] = 1 - defect[..., 40:60, 40:60]
    distance = 1 - gradient_similarity_map(image, defect)[0, 0]
    assert distance[36:64, 36:64].mean() > 20 * distance[90:, 90:].mean()


@pytest.mark.parametrize("size", [(32, 48), (256, 64)])
def test_gradient_similarity_is_the_mean_of_its_map(size):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(2, 3, *size, generator=generator) for _ in range(2))
    wanted = gradient_similarity_map(first, second).mean()
    torch.testing.assert_close(gradient_similarity(first, second), wanted, rtol=1e-5, atol=0)
