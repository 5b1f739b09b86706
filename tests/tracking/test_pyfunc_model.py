"""The logged model as MLflow loads and serves it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from msad.bundle.bundles import Bundle
from tests.faults.breakable import free_port


@pytest.fixture(scope="module")
def logged(client, log, uri):
    """The address of a logged model, in the store that MLflow looks at."""
    run_id, _ = log("brick", 0.7)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield f"runs:/{run_id}/model"
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def photographs(demo, category):
    return sorted((demo / category / "test" / "good").iterdir())[:2]


@pytest.mark.parametrize("address", ["of the run", "models:/msad-brick@champion"])
def test_logged_model_scores_files_and_paths_as_the_bundle_does(logged, address, bundle, photographs):
    model = mlflow.pyfunc.load_model(logged if address == "of the run" else address)
    expected = bundle.predict(photographs)
    for column, values in (("path", [str(p) for p in photographs]), ("image", [p.read_bytes() for p in photographs])):
        table = model.predict(pd.DataFrame({column: values}))
        assert table["score"].tolist() == pytest.approx([one.score for one in expected], rel=1e-5)
        assert table["is_anomalous"].tolist() == [one.is_anomalous for one in expected]
        assert table["threshold"].tolist() == [bundle.threshold] * 2
        assert table["regions"].tolist() == [[region.to_dict() for region in one.regions()] for one in expected]


def test_logged_model_gives_its_bundle_for_arrays_and_maps(logged):
    bundle = mlflow.pyfunc.load_model(logged).get_raw_model()
    assert isinstance(bundle, Bundle)
    assert bundle.predict(np.zeros((48, 40, 3), np.uint8)).anomaly_map.shape == (48, 40)


def test_logged_model_has_a_signature_and_an_example_that_it_can_score(logged):
    information = mlflow.models.get_model_info(logged)
    assert [(one.name, one.type.name, one.required) for one in information.signature.inputs] == [
        ("image", "binary", False),
        ("path", "string", False),
    ]
    assert information.signature.outputs.input_names() == ["score", "threshold", "is_anomalous", "regions"]
    model = mlflow.pyfunc.load_model(logged)
    example = model.input_example
    assert Image.open(io.BytesIO(example["image"][0])).size == (32, 32)
    assert np.isfinite(model.predict(example)["score"]).all()


def test_row_without_an_image_is_refused(logged):
    with pytest.raises(ValueError, match="row 0 has neither an `image`"):
        mlflow.pyfunc.load_model(logged).predict(pd.DataFrame({"path": [None]}))


@pytest.fixture(scope="module")
def served(logged, uri, tmp_path_factory):
    """The address of a server of the logged model, as the command in docs/deploying.md starts it."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", logged, "--env-manager", "local"]
    # MLflow starts its server by name, as it finds it in an activated environment.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            env={**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": path},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                assert server.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"{address}/ping", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            else:
                pytest.fail(f"the server did not start:\n{log.read_text()}")
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)


def invoke(address, values):
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(values).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["predictions"]


def test_served_model_answers_a_request_with_photographs(served, bundle, photographs, tmp_path):
    Image.open(photographs[1]).save(tmp_path / "second.jpg")
    files = [photographs[0], tmp_path / "second.jpg"]
    images = [[base64.b64encode(file.read_bytes()).decode()] for file in files]
    answers = invoke(served, {"dataframe_split": {"columns": ["image"], "data": images}})
    for answer, expected in zip(answers, bundle.predict(files), strict=True):
        assert answer["score"] == pytest.approx(expected.score, rel=1e-5)
        assert answer["is_anomalous"] == expected.is_anomalous and answer["threshold"] == bundle.threshold


def test_served_model_refuses_what_is_no_image_with_a_reason(served):
    with pytest.raises(urllib.error.HTTPError) as error:
        invoke(served, {"dataframe_records": [{"image": base64.b64encode(b"no image").decode()}]})
    assert error.value.code == 400 and "cannot be decoded" in error.value.read().decode()
