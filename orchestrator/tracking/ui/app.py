"""MLflow's server application, as `msad ui` runs it: what a first visitor's browser begins with.

MLflow 3.17 opens every experiment on its pages for language models until a visitor has found the switch `Model
training`, and covers a quarter of the window with an assistant. Both are settings that its pages keep in the browser;
this application is MLflow's, with one script on its start page that sets them where the browser has none yet. A version
that keeps them elsewhere looks as it always does.

Registered as `msad` in the entry point group `mlflow.app`, MLflow's own way to extend its server.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from flask import Response

SETTINGS = {
    "mlflow.workflowType_v1": "machine_learning",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,  # as if it had been opened, and closed
}
SCRIPT = f"""<script>
for (const [key, value] of Object.entries({json.dumps(SETTINGS)}))
  if (localStorage.getItem(key) === null) localStorage.setItem(key, JSON.stringify(value));
</script>"""


def create_app() -> FastAPI:
    """Return MLflow's application with the script on its start page."""
    from mlflow.server import app
    from mlflow.server.fastapi_app import create_fastapi_app

    app.after_request(_with_script)
    return create_fastapi_app(app)


def _with_script(response: Response) -> Response:
    from flask import request

    if request.endpoint == "serve" and response.mimetype == "text/html" and response.status_code == 200:
        response.direct_passthrough = False
        response.set_data(response.get_data(as_text=True).replace("<head>", f"<head>{SCRIPT}", 1))
        response.headers.pop("ETag", None)  # the file's, not this page's
    return response
