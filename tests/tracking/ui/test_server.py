"""`msad ui` on a store that a sweep wrote: what a person finds in a real browser, on this machine only."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import entry_points

import pytest
from mlflow import MlflowClient

from msad.leaderboard_columns import View, shown_in
from msad.tracking.store import connect
from msad.tracking.ui.pages import PARAMS
from msad.tracking.ui.server import APP, browse
from tests.faults.breakable import free_port

# The test figures point the other way than the validation scores do.
FIGURES = {
    ("brick", "baseline"): (0.5, 0.99),
    ("brick", "multiscale"): (0.7, 0.98),
    ("gear", "baseline"): (0.55, 0.85),
    ("gear", "multiscale"): (0.6, 0.75),
}
BY_VALIDATION = ["★ brick / multiscale", "★ gear / multiscale", "gear / baseline", "brick / baseline"]
SECONDS = 60  # for a page to show what it should: a slow machine, a large page
COLUMNS = [*(f"params.`{name}`" for name in PARAMS), *(f"metrics.`{one.run_metric}`" for one in shown_in(View.UI))]


@pytest.fixture(scope="module")
def store(record_sweep, tmp_path_factory, bundle):
    """A folder with the store that a sweep of two categories and two architectures wrote."""
    folder = tmp_path_factory.mktemp("swept")
    assert record_sweep(folder, FIGURES, bundle)[1] is None
    return folder


@pytest.fixture(scope="module")
def ui(store):
    """`msad ui` on the store: its address, and the lines that it printed."""
    port = free_port()
    log = store / "ui.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "msad", "ui", "--port", str(port)],
            cwd=store,
            env={name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        fetch(f"http://127.0.0.1:{port}/", process)
        yield f"http://127.0.0.1:{port}", log.read_text().splitlines()
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
        deadline = time.monotonic() + 30
        while listens(port):  # MLflow's own processes end a moment later
            assert time.monotonic() < deadline
            time.sleep(0.2)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def window(browser):
    """The browser with a window of a laptop's size; pages that a test opens are closed at its end."""
    size = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    first = browser.current_window_handle
    yield browser
    for handle in browser.window_handles:
        if handle != first:
            browser.switch_to.window(handle)
            browser.close()
    browser.switch_to.window(first)
    browser.get("about:blank")


def fetch(address: str, process: subprocess.Popen) -> str:
    """Read a page, waiting for the server to come up."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None and time.monotonic() < deadline, "the UI did not come up"
            time.sleep(0.5)


def wait(window, condition, what: str):
    """Wait until `condition(window)` is true, and return its value."""
    from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = (StaleElementReferenceException, WebDriverException)
    return WebDriverWait(window, SECONDS, 0.2, ignored).until(condition, f"not found in {SECONDS} s: {what}")


def column(window, name: str) -> list[str]:
    """Return the texts of a column of the table of runs, from top to bottom."""
    script = """
        const cells = [...document.querySelectorAll(".ag-row .ag-cell")]
        const mine = cells.filter(cell => cell.getAttribute("col-id") === arguments[0])
        const row = cell => Number(cell.closest(".ag-row").getAttribute("row-index"))
        const text = cell => (cell.querySelector("a") ?? cell).innerText.trim()
        return mine.sort((a, b) => row(a) - row(b)).map(text)"""
    return window.execute_script(script, name)


def names(window) -> list[str]:
    return column(window, "attributes.`Run Name`")


def click(window, selector: str, how: str = "css selector") -> None:
    wait(window, lambda window: window.find_element(how, selector).click() or True, selector)


def press(window, text: str) -> None:
    click(window, f"//button[normalize-space()='{text}']", "xpath")


def follow(window, text: str) -> None:
    """Click a link of a description, which opens a page of its own."""
    before = set(window.window_handles)
    click(window, text, "link text")
    wait(window, lambda window: set(window.window_handles) - before, f"the page of {text}")
    window.switch_to.window((set(window.window_handles) - before).pop())


def leaderboard(lines: list[str]) -> str:
    return next(line for line in lines if line.startswith("Leaderboard")).split(": ", 1)[1]


def test_ui_serves_the_default_store_on_the_loopback_address(ui):
    address, lines = ui
    with urllib.request.urlopen(f"{address}/", timeout=30) as answer:
        assert "<title>MLflow</title>" in answer.read().decode()
    name = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=first"
    with urllib.request.urlopen(name, timeout=30) as answer:
        experiment = json.loads(answer.read())["experiment"]
    assert experiment["name"] == "first"
    assert lines[0].startswith(f"MLflow UI: {address} ")
    assert leaderboard(lines).startswith(f"{address}/#/experiments/{experiment['experiment_id']}/runs?")
    listening = subprocess.run(["ss", "-ltn"], capture_output=True, text=True).stdout if has_ss() else ""
    assert f"0.0.0.0:{address.rpartition(':')[2]}" not in listening


def test_sweep_that_ends_says_how_to_browse(store, ui):
    assert browse("first", f"sqlite:///{store / 'mlflow.db'}") == "msad ui"
    assert browse("first", ui[0]) == leaderboard(ui[1])


@pytest.mark.skipif(
    not any(point.name == APP for point in entry_points(group="mlflow.app")),
    reason="this environment was made before msad extended MLflow's server: install it again",
)
def test_first_visitor_finds_the_sweep_first_in_the_table_of_runs(ui, window):
    window.get(f"{ui[0]}/#/experiments")
    click(window, "first", "link text")
    wait(window, lambda window: len(names(window)) == 1 + len(FIGURES), "the runs")
    assert "workflowType=machine_learning" in window.current_url
    assert names(window)[0] == "SWEEP leaderboard"
    assert "MLflow Assistant" not in window.find_element("tag name", "body").text
    press(window, "Views")
    click(
        window,
        "//*[@role='menuitem' or @role='option' or @role='menuitemcheckbox'][contains(., 'Leaderboard')]",
        "xpath",
    )
    wait(window, lambda window: names(window) == BY_VALIDATION, "the view of that name")


def test_leaderboard_shows_its_columns_and_sorts_by_each(ui, window):
    window.get(leaderboard(ui[1]))
    wait(window, lambda window: names(window) == BY_VALIDATION, "the studies by validation score")
    cells = window.find_elements("css selector", ".ag-header-cell")
    shown = [cell.get_attribute("col-id") for cell in sorted(cells, key=lambda cell: cell.location["x"])]
    shown = [name for name in shown if name in COLUMNS]
    assert len(shown) >= 6 and shown == COLUMNS[: len(shown)]  # the others are further right
    assert column(window, "params.`category`") == ["brick", "gear", "gear", "brick"]
    figures = [float(text.rstrip("…")) for text in column(window, "metrics.`test_image_auroc`")]
    assert figures == [0.98, 0.75, 0.85, 0.99]
    for header, expected in (
        ("params.`category`", ["brick", "brick", "gear", "gear"]),
        ("params.`architecture`", ["baseline", "baseline", "multiscale", "multiscale"]),
        ("metrics.`test_image_auroc`", ["0.75", "0.85", "0.98", "0.99"]),
    ):
        click(window, f".ag-header-cell[col-id='{header}'] span")
        ways = (expected, expected[::-1])
        wait(window, lambda window, header=header, ways=ways: column(window, header) in ways, f"sorted by {header}")
        assert f"orderByKey={header}".replace("`", "%60") in window.current_url


def test_two_studies_are_compared_by_parameters_and_metrics(ui, window):
    window.get(leaderboard(ui[1]))
    wait(window, lambda window: names(window) == BY_VALIDATION, "the studies")
    for index in (0, 1):
        click(window, f".ag-row[row-index='{index}'] .ag-checkbox-input")
    press(window, "Compare")
    text = wait(window, lambda window: re.search(r"Comparing 2 Runs", body(window)) and body(window), "the comparison")
    wait(window, lambda window: "test_image_auroc" in body(window) and "learning_rate" in body(window), "the figures")
    assert "0.98" in body(window) and "0.75" in body(window), text


def test_study_leads_to_its_pictures_and_its_model(ui, window):
    window.get(leaderboard(ui[1]))
    click(window, "★ brick / multiscale", "link text")
    study = window.current_window_handle
    follow(window, "gallery")
    width = "return [...document.images].find(image => image.naturalWidth === 60)?.naturalHeight"
    assert wait(window, lambda window: window.execute_script(width), "the gallery") == 40
    window.switch_to.window(study)
    follow(window, "registered model")
    wait(window, lambda window: "msad-brick" in body(window) and "@ champion" in body(window), "the model's versions")


def test_sweeps_run_shows_leaderboard_and_report(ui, window):
    window.get(leaderboard(ui[1]))
    follow(window, "the sweep's run")
    wait(window, lambda window: "SWEEP leaderboard" in body(window), "the sweep's run")
    press(window, "Show more")
    wait(window, lambda window: "gear / baseline" in body(window), "the leaderboard")
    follow(window, "Report")
    wait(
        window, lambda window: window.switch_to.frame(window.find_element("css selector", "iframe")) or True, "a frame"
    )
    wait(window, lambda window: window.find_element("css selector", "h1").text == "Sweep first", "the report")
    window.switch_to.default_content()


def test_ui_of_an_empty_store_names_no_leaderboard(tmp_path, monkeypatch, capsys):
    from msad.tracking.ui import server

    commands = []
    monkeypatch.setattr(server, "_run", lambda command, _: commands.append(command) or 0)
    connect(f"sqlite:///{tmp_path / 'mlflow.db'}", create=True)
    assert server.serve_ui(5001, f"sqlite:///{tmp_path / 'mlflow.db'}") == 0
    assert capsys.readouterr().out == "MLflow UI: http://127.0.0.1:5001 (it takes some seconds; stop it with Ctrl-C)\n"
    assert commands[0][commands[0].index("--host") + 1] == "127.0.0.1"
    assert not MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_registered_models()


def body(window) -> str:
    return window.find_element("css selector", "body").text


def has_ss() -> bool:
    return subprocess.run(["which", "ss"], capture_output=True).returncode == 0
