from __future__ import annotations

import pytest
import torch

from msad.models.registry import architecture, build
from msad.models.segmentation import dice_loss, focal_loss

SMALL = {"base_width": 8, "segment_width": 8, "depth": 2}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def squares(count, seed):
    """Smooth ramps, half of them with a square of noise, and where it is."""
    generator = torch.Generator().manual_seed(seed)
    ramp_W = torch.linspace(0.2, 0.8, 32)
    clean_BCHW = (ramp_W * ramp_W.view(-1, 1)).expand(count, 3, 32, 32).contiguous()
    mask_B1HW = torch.zeros(count, 1, 32, 32)
    for index in range(0, count, 2):
        top, left = torch.randint(2, 22, (2,), generator=generator).tolist()
        mask_B1HW[index, :, top : top + 8, left : left + 8] = 1
    noise_BCHW = torch.rand(count, 3, 32, 32, generator=generator)
    return clean_BCHW, torch.where(mask_B1HW > 0, noise_BCHW, clean_BCHW), mask_B1HW


def test_mask_map_finds_squares_it_has_not_seen():
    torch.manual_seed(0)
    model = build("multiscale_segmenter", **SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=80)
    for step in range(80):
        terms = model.losses(*squares(8, step), terms=model.default_loss_weights)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        schedule.step()
    _, image_BCHW, mask_B1HW = squares(8, 1000)
    map_B1HW = model.eval().anomaly_maps(image_BCHW)["mask"]
    peaks = map_B1HW.amax(dim=(1, 2, 3))
    assert peaks[::2].min() > 2 * peaks[1::2].max()  # of the images with a square, and of those without
    assert map_B1HW[mask_B1HW > 0].mean() > 5 > map_B1HW[mask_B1HW == 0].mean()  # 5 is a chance of a half


def test_mask_map_still_ranks_where_a_probability_is_one():
    model = build("multiscale_segmenter", **SMALL).eval()
    image_BCHW = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        model.segmenter.head.bias.fill_(40.0)
        sure = model.anomaly_maps(image_BCHW)["mask"]
        model.segmenter.head.bias.fill_(41.0)
        surer = model.anomaly_maps(image_BCHW)["mask"]
    assert (surer > sure + 0.9).all()


def test_losses_mask_terms_reach_the_reconstruction():
    model = build("multiscale_segmenter", **SMALL)
    sum(model.losses(*squares(2, 0), terms=["focal", "dice"]).values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.network.head.parameters())


def test_losses_reconstruction_terms_leave_the_segmenter_alone():
    model = build("multiscale_segmenter", **SMALL)
    terms = model.losses(*squares(2, 0), terms=["ssim", "l1"])
    sum(terms.values()).backward()
    assert tuple(terms) == ("l1", "ssim")
    assert all(parameter.grad is None for parameter in model.segmenter.parameters())


def test_losses_come_in_the_order_of_the_terms():
    model = build("multiscale_segmenter", **SMALL)
    assert tuple(model.losses(*squares(2, 0), terms=["dice", "l1", "focal"])) == ("l1", "focal", "dice")


def test_training_defaults_are_settings_of_a_job():
    from msad.training.job_config import JobConfig

    for name in ("baseline", "multiscale", "multiscale_segmenter"):
        JobConfig(category="any", architecture=name, **getattr(architecture(name), "training_defaults", {}))


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_mask_losses_perfect_and_opposite_logits(loss):
    mask_B1HW = torch.zeros(2, 1, 8, 8)
    mask_B1HW[0, :, 2:5, 2:6] = 1
    perfect_B1HW = (mask_B1HW * 2 - 1) * 100
    assert loss(perfect_B1HW, mask_B1HW) < 1e-6 < 0.8 < loss(-perfect_B1HW, mask_B1HW)
    assert loss(perfect_B1HW * 0 - 100, mask_B1HW * 0) < 1e-6  # nothing to find, nothing found


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
@pytest.mark.parametrize("size", [1e4, 0.0])
def test_mask_losses_extreme_logits_in_bfloat16(loss, size):
    logit_B1HW = torch.tensor([-size, size]).bfloat16().view(1, 1, 1, 2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logit_B1HW, torch.tensor([1.0, 0.0]).view(1, 1, 1, 2))
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and logit_B1HW.grad.isfinite().all()


def test_focal_loss_is_the_papers_formula():
    generator = torch.Generator().manual_seed(0)
    logit_B1HW = torch.randn(1, 1, 4, 4, generator=generator)
    mask_B1HW = (torch.rand(1, 1, 4, 4, generator=generator) < 0.3).float()
    chance = torch.where(mask_B1HW > 0, torch.sigmoid(logit_B1HW), 1 - torch.sigmoid(logit_B1HW))
    torch.testing.assert_close(focal_loss(logit_B1HW, mask_B1HW), (-((1 - chance) ** 2) * chance.log()).mean())


def test_dice_loss_of_half_an_overlap():
    mask_B1HW, found_B1HW = torch.zeros(1, 1, 100, 100), torch.full((1, 1, 100, 100), -100.0)
    mask_B1HW[..., :50], found_B1HW[..., 25:75] = 1, 100
    assert dice_loss(found_B1HW, mask_B1HW).item() == pytest.approx(0.5, abs=1e-3)
