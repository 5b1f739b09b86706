"""Detectors of anomalib as architectures: real ones, small, with random weights; skipped where anomalib is missing."""

from __future__ import annotations

import importlib.util
import inspect

import numpy as np
import pytest
import torch

from msad.models.backbones import load_backbone, untrained
from msad.models.errors import ModelError
from msad.models.registry import architecture, build, default_parameters, provider, use
from msad.models.scorer import IMAGE_SCORE

SIZE = 64
needs_anomalib = pytest.mark.skipif(
    importlib.util.find_spec("anomalib") is None, reason="anomalib is not installed: pip install 'msad[peers]'"
)


@pytest.fixture(scope="module")
def images():
    """Six nearly equal good images, uint8 6×64×64×3."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(SIZE), 2 * np.arange(SIZE))[None, :, :, None]
    return (40 + ramp / 2 + rng.integers(-4, 4, (6, SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)


def tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.skipif(importlib.util.find_spec("anomalib") is not None, reason="anomalib is installed")
def test_peer_without_anomalib_says_how_to_get_it():
    with pytest.raises(ModelError, match=r"anomalib:Patchcore needs anomalib.*pip install 'msad\[peers\]'"):
        use("anomalib:Patchcore")


@needs_anomalib
def test_peer_has_the_parameters_of_anomalibs_class_and_needs_no_permission():
    parameters = default_parameters("anomalib:Patchcore")
    assert parameters["coreset_sampling_ratio"] == 0.1 and parameters["image_size"] == 256
    assert not {"pre_processor", "post_processor", "evaluator", "visualizer"} & set(parameters)
    assert inspect.signature(architecture("anomalib:Patchcore")).parameters["pre_trained"].default is True
    assert architecture("anomalib:Patchcore") is use("anomalib:Patchcore")
    assert provider("anomalib:Patchcore")[0] == "anomalib"
    assert architecture("anomalib:Patchcore").training_defaults["epochs"] == 1


@needs_anomalib
def test_peer_on_the_default_backbone_has_the_weights_of_its_package():
    layers, image = ["blocks.2", "blocks.4"], torch.rand(1, 3, 96, 64)
    model = build("anomalib:Patchcore", backbone="tf_efficientnet_lite0", layers=layers, image_size="96x64")
    found = model.network.feature_extractor(model.transform(image)).values()
    for ours, theirs in zip(load_backbone(strides=(8, 16))(image), found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@needs_anomalib
def test_peer_that_is_not_there_names_the_nearest():
    with pytest.raises(ModelError, match=r"has no detector 'PatchCore'; did you mean 'Patchcore'\?"):
        architecture("anomalib:PatchCore")


@needs_anomalib
def test_peer_parameter_that_is_not_there_names_the_nearest():
    with pytest.raises(ModelError, match=r"unknown parameter 'corset_sampling_ratio'.*'coreset_sampling_ratio'"):
        build("anomalib:Patchcore", corset_sampling_ratio=0.1)


@needs_anomalib
def test_peer_that_cannot_be_built_says_why_and_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    import timm

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError, match=r"anomalib:Stfpm: OSError: no route to host; .*model/pre_trained=false"):
        build("anomalib:Stfpm")


@needs_anomalib
@pytest.mark.parametrize(
    ("name", "parameters", "epochs"),
    [
        ("Patchcore", {"backbone": "resnet18", "layers": ["layer2"], "num_neighbors": 3}, 1),
        ("Padim", {"n_features": 20}, 1),
        ("Stfpm", {}, 3),
        ("Dfkde", {"n_pca_components": 3}, 1),
    ],
)
def test_peer_trains_itself_and_its_state_alone_restores_it(images, name, parameters, epochs):
    torch.manual_seed(0)
    settings = {"image_size": SIZE, "pre_trained": False, **parameters}
    model, heard = build(f"anomalib:{name}", **settings), []
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def after_epoch(epoch, metrics):
        model.eval()
        model.anomaly_maps(tensor(images[:1]))
        heard.append(epoch)
        return epoch < 2

    model.fit(images, epochs=epochs, batch_size=3, seed=0, after_epoch=after_epoch)
    assert heard == ([1, 2] if epochs == 3 else [])
    state = model.state_dict()
    assert any(key not in before or not torch.equal(before[key], state[key]) for key in state)

    odd = images[:2].copy()
    odd[1, 16:32, 16:32] = 255 - odd[1, 16:32, 16:32]
    maps = model.eval().anomaly_maps(tensor(odd))
    assert set(maps) == ({IMAGE_SCORE} if name == "Dfkde" else {"anomaly_map", IMAGE_SCORE})
    assert all(m.shape == (2, 1, SIZE, SIZE) and m.isfinite().all() for m in maps.values())
    assert (maps[IMAGE_SCORE] == maps[IMAGE_SCORE][:, :, :1, :1]).all()

    with untrained():  # as a bundle is loaded: nothing may be downloaded
        again = build(f"anomalib:{name}", **{**settings, "pre_trained": True})
    again.load_state_dict(state)
    for key, map_B1HW in again.eval().anomaly_maps(tensor(odd)).items():
        torch.testing.assert_close(map_B1HW, maps[key], atol=1e-4, rtol=1e-3)


@needs_anomalib
def test_peer_with_a_centre_crop_has_its_map_where_it_belongs():
    from torchvision.transforms.v2 import CenterCrop, Compose, Resize

    from msad.models.anomalib_peer import _placed

    seen_B1HW = torch.zeros(1, 1, 8, 8)  # of the middle half of 128×128 pixels
    seen_B1HW[..., 0, 0] = 1
    placed_B1HW = _placed(seen_B1HW, Compose([Resize(128), CenterCrop(64)]), torch.Size([64, 64]))
    assert placed_B1HW.shape == (1, 1, 64, 64)
    assert placed_B1HW[0, 0, 17, 17] > 0.5 and placed_B1HW[0, 0, 40, 40] == 0
