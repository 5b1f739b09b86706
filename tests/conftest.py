"""What tests share: a small demo dataset, the real images where they are, and a cache of the session's own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No test is timed: on a busy machine an example may take any time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = ["tests.fixtures"]

REPOSITORY = Path(__file__).parent.parent
RAY = {
    f"test_{name}.py"
    for name in (
        "cluster_faults",
        "sweep",
        "faults",
        "layouts",
        "notebook",
        "nodes",
        "worker_group",
        "connection",
        "trial_packing",
        "named_sweep",
        "rectangles",
        "joint",
    )
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, and begin with the files that start Ray.

    Those take the longest: at the end one process would wait for the other.
    """
    items.sort(key=lambda item: item.path.name not in RAY)
    if on_gpu := [item for item in items if item.get_closest_marker("gpu")]:
        import torch

        for item in on_gpu if not torch.cuda.is_available() else []:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep the decoded images of tests out of the user's cache, in this process and in those that it starts."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["MSAD_CACHE"] = str(cache)
    return cache


@pytest.fixture(autouse=True)
def torch_alone() -> Iterator[None]:
    """End every test as a process begins: without kernels in C, which a job loads that it trains here, none proven."""
    yield
    if native := sys.modules.get("msad.models.kernels.native"):
        native._loaded.clear()
    if kernel_check := sys.modules.get("msad.models.kernels.kernel_check"):
        kernel_check.forget()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo dataset of a few small images per category; read only."""
    from msad.data_io.demo import make_demo

    return make_demo(tmp_path_factory.mktemp("demo") / "data", seed=1, image_size=64, train=16, per_defect=3)


@pytest.fixture(scope="session")
def long(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bricks as photographs that are 2.5 times as high as wide, masks too; read only."""
    from PIL import Image

    root = tmp_path_factory.mktemp("long")
    for file in sorted((demo / "brick").rglob("*.png")):
        target = root / file.relative_to(demo)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((64, 160), Image.Resampling.NEAREST).save(target)
    return root


@pytest.fixture(scope="session")
def industrial() -> Path:
    """Real images in the MVTec AD layout with a category `bottle`: $MSAD_DATA, else a folder beside the checkout."""
    root = Path(os.environ.get("MSAD_DATA") or REPOSITORY.parent / "shared" / "data" / "industrial")
    if not (root / "bottle").is_dir():
        pytest.skip(f"no real images in {root}: set MSAD_DATA to a dataset with the category bottle")
    return root


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the import path with the files that docs/extending.md shows: `my_detector` and `my_spaces`."""
    folder = tmp_path_factory.mktemp("own")
    page = (REPOSITORY / "docs" / "extending.md").read_text()
    for name, text in re.findall(r"```python\n# file: (\S+)\n(.*?)```", page, re.DOTALL):
        (folder / name).write_text(text)
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def compiled(libraries, monkeypatch):
    """The folder of the libraries in C, which are compiled there and in use for this test."""
    from msad.models.kernels import native

    monkeypatch.setattr(native, "_loaded", {})
    if reason := native.prepare(libraries):
        pytest.skip(reason)
    return libraries
