"""What a job sees is one value: equal where the images, their order, their cut and all that draws from them are."""

from __future__ import annotations

import ast
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from msad.code_version import FOLDERS
from msad.training.identity import DRAWN_BY, Identity, identify, versions

REPOSITORY = Path(__file__).parents[2]
# Versions of what is no part of what a job sees.
# The demo's images, and what a bundle is told of its good images beside training and scores.
OF_OTHERS = {"msad.data_io.demo:_VERSION", "msad.data_io.image_statistics:VERSION"}


@pytest.fixture
def root(demo, category, tmp_path):
    """A copy of one category that a test may change."""
    shutil.copytree(demo / category / "train", tmp_path / "data" / category / "train")
    return tmp_path / "data"


@pytest.fixture
def good(root, category):
    """Its good images by name."""
    return sorted((root / category / "train" / "good").iterdir())


@pytest.fixture
def look(category, own_cache):
    """Return a function that identifies the category below a root."""

    def look(root, **settings):
        return identify(root, category, **{"seed": 0, "image_size": 64, "cache": own_cache} | settings)

    return look


def test_every_version_constant_is_part_of_the_identity():
    found = set()
    for folder in FOLDERS:
        for path in (REPOSITORY / folder).rglob("*.py"):
            module = ".".join(("msad", *path.relative_to(REPOSITORY).with_suffix("").parts))
            module = module.replace(".orchestrator", "")
            for node in ast.parse(path.read_text()).body:
                for target in node.targets if isinstance(node, ast.Assign) else ():
                    if isinstance(target, ast.Name) and target.id.endswith("VERSION"):
                        found.add(f"{module}:{target.id}")
    assert found - OF_OTHERS == set(DRAWN_BY.values())
    assert versions().keys() == DRAWN_BY.keys() and all(isinstance(number, int) for number in versions().values())


def test_identity_comes_back_from_json_and_names_each_image(demo, look, category):
    identity = look(demo)
    kept = json.loads(json.dumps(identity.to_dict(), sort_keys=True))
    back = Identity.from_dict(kept)
    assert back == identity and back.digest == identity.digest == kept["digest"] and len(identity.digest) == 64
    assert back.train_names == identity.train_names
    assert kept["train"][0] == f"{identity.train[0]}  {category}/train/good/{Path(identity.train_names[0]).name}"
    assert identity.layout == "mvtec_ad" and len(identity.train) + len(identity.validation) == 16


def test_identity_of_a_copy_under_names_of_the_same_order_is_the_same(demo, root, good, look):
    for path in good:
        path.rename(path.with_name(f"part {path.name}"))
    moved = look(root)
    assert moved == look(demo) and moved.digest == look(demo).digest and moved.train_names != look(demo).train_names
    assert moved.changes_from(look(demo)) == []


def test_identity_of_images_renamed_into_another_order_differs(demo, root, good, look):
    names = [path.name for path in good]
    for path in good:
        path.rename(path.with_suffix(".moved"))
    for path, name in zip(good, reversed(names), strict=True):
        path.with_suffix(".moved").rename(path.with_name(name))
    assert look(root).digest != look(demo).digest
    assert look(root).changes_from(look(demo))[0].startswith("16 images changed: ")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": 1}, "seed 1 instead of 0"),
        ({"image_size": 32}, "image_size 32 instead of 64"),
        ({"view_size": 32}, "view_size 32 instead of 64"),
        ({"layout": "folder"}, "layout folder instead of mvtec_ad"),
    ],
)
def test_identity_differs_with_each_setting_and_says_so(demo, look, settings, words):
    # A root is rarely in two layouts.
    other = dataclasses.replace(look(demo), **settings) if "layout" in settings else look(demo, **settings)
    assert other.digest != look(demo).digest and words in other.changes_from(look(demo))


def test_identity_differs_with_each_version_and_says_so(demo, look):
    before = look(demo)
    for name, number in before.versions.items():
        after = dataclasses.replace(before, versions={**before.versions, name: number + 1})
        assert after.digest != before.digest
        assert after.changes_from(before) == [f"{name} of version {number + 1} instead of {number}"]


def test_changes_name_the_first_files_of_each_kind(root, good, look, category):
    before = look(root)
    for path in good[:5]:
        path.unlink()
    good[5].write_bytes(good[6].read_bytes())
    (good[0].parent / "new.png").write_bytes(good[7].read_bytes() + b"\0")
    good[8].rename(good[8].with_name("renamed.png"))
    lines = look(root).changes_from(before)
    folder = f"{category}/train/good"
    assert lines == [
        f"1 image changed: {folder}/{good[5].name}",
        f"5 images removed: {', '.join(f'{folder}/{path.name}' for path in good[:3])}, ...",
        f"1 image added: {folder}/new.png",
        f"1 image renamed: {folder}/{good[8].name}",
    ]


def test_changes_of_the_cut_alone_are_told(demo, look):
    before = look(demo)
    after = dataclasses.replace(
        before,
        train=before.validation,
        train_names=before.validation_names,
        validation=before.train,
        validation_names=before.train_names,
    )
    assert after.changes_from(before) == [
        "the same images in another order, or divided otherwise into training and validation"
    ]


def test_known_defects_are_part_of_what_a_job_sees_with_their_masks_and_types(
    demo, with_known, look, category, tmp_path
):
    shutil.copytree(with_known, root := tmp_path / "data")
    validation = root / category / "validation"
    before = look(root)
    back = Identity.from_dict(json.loads(json.dumps(before.to_dict())))
    assert back == before and back.known_names == before.known_names and len(before.known) == len(before.truth) > 2
    image = min(path for path in validation.rglob("*.png") if "ground_truth" not in path.parts)
    mask = validation / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
    mask.unlink()
    assert look(root).changes_from(before) == ["known defects have other masks or types"]
    image.unlink()
    assert look(root).changes_from(before)[0] == f"1 image removed: {image.relative_to(root)}"
    taught = look(with_known, train_on_defects=True)
    assert sorted((*taught.known, *taught.taught)) == sorted(before.known) and taught.digest != before.digest


def test_identity_imports_neither_torch_nor_ray_nor_mlflow():
    code = "import sys, msad.training.identity; assert not {'torch', 'ray', 'mlflow', 'optuna'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
