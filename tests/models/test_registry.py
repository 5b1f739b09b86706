"""One matrix over every architecture: what holds for each is tested here, once."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from msad.models import registry
from msad.models.errors import ModelError
from msad.models.plugins import named_entry_points
from msad.models.registry import architecture, architectures, build, count_parameters, default_parameters, register

SMALL = {"base_width": 4, "depth": 2}
SMALLEST = dict.fromkeys(architectures(), SMALL) | {
    "feature_ensemble": {"width": 8, "bottleneck_channels": 4, "rows": 20, "coarsest_stride": 16},
    "feature_memory": {"rows": 20, "coarsest_stride": 16},
    "feature_pyramid": {"width": 8, "bottleneck_channels": 4},
}
VARIANTS = [
    *SMALLEST.items(),
    ("feature_memory", {"rows": 20, "finest_stride": 4, "coarsest_stride": 16, "neighbourhood": 1, "neighbours": 3}),
    *(
        ("multiscale", {**SMALL, "skip": skip, "skip_dropout": 0.0, "first_skip": 0})
        for skip in ("concat", "add", "none")
    ),
    ("multiscale", {**SMALL, "skip": "concat", "skip_dropout": 0.3, "first_skip": 0}),
    ("multiscale", {**SMALL, "bottleneck_channels": 5, "norm": "group"}),
    ("baseline", {**SMALL, "bottleneck_channels": 5, "norm": "group"}),
    ("multiscale_segmenter", {**SMALL, "segment_width": 4, "skip": "gated", "first_skip": 1, "norm": "group"}),
]
EVERY_VARIANT = pytest.mark.parametrize(("name", "parameters"), VARIANTS, ids=str)
STEPPING = [(name, parameters) for name, parameters in VARIANTS if architecture(name).loss_terms]
EVERY_STEPPING_VARIANT = pytest.mark.parametrize(("name", "parameters"), STEPPING, ids=str)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(height=32, width=48, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean_BCHW = torch.rand(count, 3, height, width, generator=generator)
    mask_B1HW = torch.zeros(count, 1, height, width)
    mask_B1HW[..., 8:16, 8:24] = 1
    return clean_BCHW, torch.where(mask_B1HW > 0, 1 - clean_BCHW, clean_BCHW), mask_B1HW


def test_architectures_are_the_registered_ones():
    names = ("baseline", "feature_ensemble", "feature_memory", "feature_pyramid", "multiscale", "multiscale_segmenter")
    assert architectures() == names


@EVERY_STEPPING_VARIANT
def test_losses_backward_reaches_every_parameter(name, parameters):
    torch.manual_seed(0)
    model = build(name, **parameters)
    terms = model.losses(*batch())
    assert set(terms) == set(model.loss_terms) - set(model.costly_terms)
    assert all(value.shape == () and value.dtype == torch.float32 and value > 0 for value in terms.values())
    sum(terms.values()).backward()
    for path, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert path.startswith("backbone."), path
            continue
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), path


@EVERY_VARIANT
def test_anomaly_maps_non_square_input(name, parameters):
    model = build(name, **parameters).eval()
    image_BCHW, _, _ = batch()
    maps = model.anomaly_maps(image_BCHW)
    assert tuple(maps) == model.map_names
    for map_B1HW in maps.values():
        assert map_B1HW.shape == (2, 1, 32, 48) and map_B1HW.dtype == torch.float32 and not map_B1HW.requires_grad
        assert torch.isfinite(map_B1HW).all() and map_B1HW.min() >= 0


@EVERY_VARIANT
def test_anomaly_maps_do_not_depend_on_the_rest_of_the_batch(name, parameters):
    model = build(name, **parameters).eval()
    image_BCHW, _, _ = batch(count=3)
    together, alone = model.anomaly_maps(image_BCHW), model.anomaly_maps(image_BCHW[1:2])
    for key in together:
        torch.testing.assert_close(together[key][1:2], alone[key], atol=1e-5, rtol=1e-4)


@EVERY_VARIANT
def test_anomaly_maps_under_somebodys_autocast_are_those_without(name, parameters):
    model = build(name, **parameters).eval()
    image_BCHW, _, _ = batch()
    expected = model.anomaly_maps(image_BCHW)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.anomaly_maps(image_BCHW)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@EVERY_VARIANT
def test_state_dict_round_trip(name, parameters):
    torch.manual_seed(1)
    first, second = build(name, **parameters), build(name, **parameters)
    first.adapt([first.encode(batch()[0])])
    if first.loss_terms:
        first.losses(*batch())  # moves the running statistics
    second.load_state_dict(first.state_dict())
    image_BCHW, _, _ = batch(seed=3)
    for key, map_B1HW in first.eval().anomaly_maps(image_BCHW).items():
        assert torch.equal(map_B1HW, second.eval().anomaly_maps(image_BCHW)[key])


@EVERY_STEPPING_VARIANT
def test_training_lowers_the_loss_and_finds_the_change(name, parameters):
    torch.manual_seed(0)
    model = build(name, **parameters)
    weights = model.default_loss_weights
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # The step falls to 0, for the running statistics to catch up with the weights.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=80)
    ramp_W = torch.linspace(0.2, 0.8, 32)
    clean_BCHW = (ramp_W * ramp_W.view(-1, 1)).expand(4, 3, 32, 32).contiguous()
    corrupted_BCHW, mask_B1HW = clean_BCHW.clone(), torch.zeros(4, 1, 32, 32)
    corrupted_BCHW[:2, :, 8:16, 8:16], mask_B1HW[:2, :, 8:16, 8:16] = 1.0, 1.0
    model.adapt([model.encode(clean_BCHW)])
    history = []
    for _ in range(80):
        terms = model.losses(clean_BCHW, corrupted_BCHW, mask_B1HW, terms=weights)
        loss = sum(weights[term] * value for term, value in terms.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        history.append(loss.item())
    assert history[-1] < history[0] / 2
    residual = "squared" if name.startswith("feature_") else "l1"
    map_B1HW = model.eval().anomaly_maps(corrupted_BCHW)[residual]
    assert map_B1HW[:2, :, 8:16, 8:16].mean() > 2 * map_B1HW[2:].mean()


@pytest.mark.parametrize("name", architectures())
def test_default_loss_weights_name_known_terms(name):
    model = architecture(name)
    assert set(model.default_loss_weights) <= set(model.loss_terms)
    assert set(model.costly_terms) <= set(model.loss_terms) - set(model.default_loss_weights)


@pytest.mark.parametrize(
    ("name", "parameters", "count"),
    [
        ("baseline", {}, 1_733_539),
        ("multiscale", {}, 1_774_691),
        ("multiscale", {"skip": "concat", "first_skip": 0}, 1_927_075),
        ("multiscale", {"skip": "concat", "first_skip": 0, "depth": 4}, 7_763_107),
        ("multiscale", {"skip": "none"}, 1_733_539),
        ("multiscale", {"skip": "add"}, 1_733_539),
        ("feature_ensemble", {}, 747_601),
        ("feature_memory", {}, 0),
        ("feature_pyramid", {}, 1_529_257),
        ("multiscale_segmenter", {}, 14_743_652),
        ("multiscale_segmenter", {"depth": 3}, 3_661_412),
    ],
)
def test_count_parameters_default_and_plain_sizes(name, parameters, count):
    assert count_parameters(build(name, **parameters)) == count


# Means of the maps of one fixed image by a freshly drawn network: they change exactly when the arithmetic does.
GOLDEN = {
    "baseline": {"l1": 0.272632, "ssim": 0.38682, "msgms": 0.680992},
    "feature_ensemble": {"memory": 10.2806, "cosine": 0.957641, "squared": 116.027, "mask": 0.971009},
    "feature_memory": {"memory": 10.2806},
    "feature_pyramid": {"cosine": 1.03275, "squared": 116.476, "mask": 0.922216},
    "multiscale": {"l1": 0.264439, "ssim": 0.385303, "msgms": 0.682998},
    "multiscale_segmenter": {"mask": 0.915682, "l1": 0.272632, "ssim": 0.38682, "msgms": 0.680992},
}


@pytest.mark.parametrize("name", architectures())
def test_anomaly_maps_golden_values(name):
    torch.manual_seed(0)
    model = build(name, **SMALLEST[name]).eval()
    ramp = torch.linspace(0, 1, 32)
    image_BCHW = torch.stack([ramp.expand(32, 32), ramp.view(-1, 1).expand(32, 32), ramp * ramp.view(-1, 1)])[None]
    means = {key: map_B1HW.mean().item() for key, map_B1HW in model.anomaly_maps(image_BCHW).items()}
    assert means == pytest.approx(GOLDEN[name], rel=1e-4)


@pytest.mark.parametrize("name", dict(STEPPING))
def test_losses_under_bfloat16_autocast_stay_close_to_float32(name):
    torch.manual_seed(0)
    model = build(name, **SMALLEST[name])
    model.adapt([model.encode(batch()[0])])
    exact = model.losses(*batch())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.losses(*batch())
    for term, value in exact.items():
        assert mixed[term].dtype == torch.float32
        assert math.isclose(mixed[term].item(), value.item(), rel_tol=0.05)


def test_losses_only_asked_terms():
    model = build("baseline", **SMALL)
    assert tuple(model.losses(*batch(), terms=["gms", "l1"])) == ("l1", "gms")


def test_losses_unknown_term_names_nearest():
    with pytest.raises(ModelError, match="unknown loss term 'sim'; did you mean 'ssim'"):
        build("baseline", **SMALL).losses(*batch(), terms=["sim"])


def test_losses_no_term():
    with pytest.raises(ModelError, match="no loss term"):
        build("baseline", **SMALL).losses(*batch(), terms=[])


def test_anomaly_maps_size_that_does_not_fit():
    with pytest.raises(ModelError, match=r"30×48 pixels do not fit Multiscale.*divisible by 4"):
        build("multiscale", **SMALL).anomaly_maps(torch.rand(1, 3, 30, 48))


def test_anomaly_maps_grey_image():
    with pytest.raises(ModelError, match="B×3×H×W"):
        build("multiscale", **SMALL).anomaly_maps(torch.rand(1, 1, 32, 32))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("multiscal", {}, "unknown architecture 'multiscal'; did you mean 'multiscale'"),
        ("multiscale", {"base_widht": 8}, "unknown parameter 'base_widht' of 'multiscale'; did you mean 'base_width'"),
        ("baseline", {"skip": "add"}, "unknown parameter 'skip' of 'baseline'"),
        ("multiscale", {"skip": "gate"}, "skip is 'gate'; did you mean 'gated'"),
        ("multiscale", {"depth": 0}, "depth is 0; it must be a whole number of at least 1"),
        ("multiscale", {"bottleneck_channels": -4}, "bottleneck_channels is -4"),
        ("multiscale", {"bottleneck_channels": 2.5}, "bottleneck_channels is 2.5"),
        ("multiscale", {"skip_dropout": 1.0}, "skip_dropout is 1.0"),
        ("multiscale", {"first_skip": -1}, "first_skip is -1"),
        ("baseline", {"norm": "layer"}, "norm is 'layer'"),
    ],
)
def test_build_bad_input(name, parameters, message):
    with pytest.raises(ModelError) as caught:
        build(name, **parameters)
    assert message in str(caught.value)


def test_register_same_name_twice():
    with pytest.raises(ModelError, match="registered twice"):
        register("baseline")(architecture("multiscale"))


def test_default_parameters_build_the_default():
    assert default_parameters("multiscale")["skip"] == "gated"
    assert default_parameters("baseline")["bottleneck_channels"] is None


MINE = "my_detector:MyDetector"


@pytest.fixture
def package(tmp_path, monkeypatch, own):
    """A function that installs a package of the given entry points, as pip leaves it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_OWN", {})

    def install(name="my-detectors", **points):
        folder = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [f"{point} = {value}" for point, value in points.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[msad.architectures]", *lines]))
        named_entry_points.cache_clear()

    yield install
    named_entry_points.cache_clear()


def test_architecture_of_a_python_path_is_imported_only_where_somebody_allowed_it(own, monkeypatch):
    monkeypatch.setattr(registry, "_OWN", {})
    monkeypatch.delitem(sys.modules, "my_detector", raising=False)
    with pytest.raises(ModelError, match=f"nobody has allowed .* set MSAD_ARCHITECTURES={MINE}"):
        build(MINE)
    assert "my_detector" not in sys.modules
    monkeypatch.setenv("MSAD_ARCHITECTURES", f"other:Other, {MINE}")
    assert type(build(MINE)).__name__ == "MyDetector"


def test_use_allows_a_python_path(own, monkeypatch):
    monkeypatch.setattr(registry, "_OWN", {})
    found = registry.use(MINE)
    assert architecture(MINE) is found
    assert default_parameters(MINE) == {"width": 32, "narrowest": 16}
    assert registry.is_own(MINE) and not registry.is_own("baseline")
    assert registry.use("baseline") is architecture("baseline")


def test_architecture_of_an_entry_point_needs_no_permission(package):
    package(my_detector=MINE)
    assert "my_detector" in architectures()
    assert build("my_detector", width=8).map_names == ("difference",)
    assert registry.provider("my_detector") == ("my-detectors", "1.2")
    assert registry.provider("baseline") is None


@pytest.mark.parametrize(
    ("points", "name", "message"),
    [
        ({"baseline": MINE}, "baseline", r"claimed by msad itself and by my-detectors 1.2 \(my_detector:MyDetector\)"),
        ({"gone": "gone:Mine"}, "gone", r"the entry point 'gone' of my-detectors 1.2 .* no module 'gone'"),
        ({"my-detector": MINE}, "my-detector", "letters, digits and '_'"),
        ({"path": "pathlib:Path"}, "path", "not a class derived from msad.models.base.AnomalyModel"),
        ({"part": "msad.models.reconstruction:ReconstructionModel"}, "part", "lacks reconstruct"),
    ],
)
def test_architecture_of_an_entry_point_that_is_wrong(package, points, name, message):
    package(**points)
    with pytest.raises(ModelError, match=message):
        architecture(name)


def test_architecture_claimed_by_two_packages(package):
    package("first", mine=MINE)
    package("second", mine="my_detector:layer")
    with pytest.raises(ModelError, match=r"claimed by first 1.2 .* and by second 1.2"):
        architecture("mine")
