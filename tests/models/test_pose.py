from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from msad.models.errors import ModelError
from msad.models.pose import Pose
from msad.models.registry import build
from tests.bolts import SIDE, bolts


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


ANY_ANGLE = np.linspace(0, 345, 24)


@pytest.fixture(scope="module")
def pose():
    found = Pose(32)
    found.learn(bolts(ANY_ANGLE))
    return found


def test_parts_at_any_angle_become_one_image_head_first(pose):
    cut, _ = pose.straighten(tensor(bolts(ANY_ANGLE + 7)))
    assert pose.cutout is not None and pose.cutout[1] > 1.5 * pose.cutout[0]
    assert all(side % 32 == 0 for side in pose.cutout)
    assert 0.5 * SIDE**2 < math.prod(pose.cutout) < 1.5 * SIDE**2
    uncut = tensor(bolts(ANY_ANGLE + 7))
    apart = [(images - images.median(dim=0).values).abs().mean() for images in (cut, uncut)]
    assert apart[0] < 0.02 and apart[0] < 0.4 * apart[1]


def test_map_of_a_cut_out_returns_to_where_its_pixels_were(pose):
    images = tensor(bolts([10, 100, 215, 300]))
    cut, back = pose.straighten(images)
    returned = pose.put_back(cut[:, :1], back)
    inside = pose.put_back(torch.ones_like(cut[:, :1]), back) > 0.99
    assert returned.shape == (4, 1, SIDE, SIDE)
    assert (returned - images[:, :1])[inside].abs().mean() < 0.02
    product = images[:, :1] < 0.55
    assert inside[product].float().mean() > 0.98  # the box holds the parts


@pytest.mark.parametrize("light", [-40, 30])
def test_another_light_does_not_turn_a_part(pose, light):
    angles = [20, 110, 250]
    usual, _ = pose.straighten(tensor(bolts(angles)))
    other, _ = pose.straighten(tensor(bolts(angles, light=light)) - light / 255)
    assert (usual - other).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("why", "images"),
    [
        ("round", bolts(ANY_ANGLE, long=5)),
        ("always at the same angle", bolts(np.full(24, 30.0))),
        ("no empty background", np.random.default_rng(1).integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8)),
        ("longer than the image", bolts(ANY_ANGLE, long=120)),
        ("nothing there", np.full((8, SIDE, SIDE, 3), 200, np.uint8)),
    ],
)
def test_pose_without_long_parts_at_any_angle_leaves_images_as_they_are(why, images):
    pose = Pose(32)
    pose.learn(images)
    assert pose.cutout is None, why


def test_pose_that_is_learnt_anew_forgets_the_old_one(pose):
    other = Pose(32)
    other.load_state_dict(pose.state_dict())
    assert other.cutout == pose.cutout
    other.learn(np.full((8, SIDE, SIDE, 3), 200, np.uint8))
    assert other.cutout is None


@pytest.mark.parametrize("side", [-32.0, 1e9])
def test_cut_out_of_a_size_that_no_image_has_is_refused(pose, side):
    state = {name: tensor.clone() for name, tensor in pose.state_dict().items()}
    state["found_7"][4] = side
    with pytest.raises(ModelError, match="which no image has; do not use this model"):
        Pose(32).load_state_dict(state)


def test_image_without_a_part_has_a_finite_cut_out(pose):
    cut, back = pose.straighten(torch.full((2, 3, SIDE, SIDE), 0.7))
    assert cut.isfinite().all() and back.isfinite().all() and pose.put_back(cut[:, :1], back).isfinite().all()


@pytest.mark.parametrize("finest_stride", [8, 16])
def test_detector_that_straightens_finds_a_spot_where_it_is(finest_stride):
    model = build("feature_memory", rows=400, finest_stride=finest_stride).eval()
    good = bolts(np.linspace(0, 352, 45))
    model.meet(good)
    model.adapt(model.encode(tensor(images)) for images in np.split(good, 9))
    angles = [15.0, 130.0, 280.0]
    usual, bad = bolts(angles), bolts(angles)
    centres = []
    for image, angle, shift in zip(bad, angles, np.random.default_rng(0).integers(-6, 7, (3, 2)), strict=True):
        u, v = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        x, y = (round(SIDE / 2 + s + 15 * d) for s, d in zip(shift, (u, v), strict=True))
        image[y - 4 : y + 4, x - 4 : x + 4] = (20, 60, 20)
        centres.append((y, x))
    maps, of_good = model.anomaly_maps(tensor(bad)), model.anomaly_maps(tensor(usual))
    assert maps["memory"].shape == (3, 1, SIDE, SIDE)
    assert maps["memory"].amax(dim=(1, 2, 3)).min() > of_good["memory"].amax(dim=(1, 2, 3)).max()
    for heat, (y, x) in zip(maps["memory"][:, 0], centres, strict=True):
        top = divmod(int(heat.argmax()), SIDE)
        assert math.dist(top, (y, x)) < 3 * finest_stride
    copy = build("feature_memory", rows=400, finest_stride=finest_stride).eval()
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy.anomaly_maps(tensor(bad))["memory"], maps["memory"])
    assert copy.fixed_scoring["calibration"] == "none"  # a position says nothing where parts lie anywhere
    assert build("feature_memory").fixed_scoring["calibration"] == "position"
    kept = model.anomaly_maps(model.encode(tensor(bad)))  # as a job keeps it
    assert torch.equal(kept["memory"], maps["memory"])


def test_unknown_pose_is_refused_with_the_known_ones():
    with pytest.raises(ModelError, match=r"pose is 'straight'.*straightened"):
        build("feature_memory", pose="straight")
