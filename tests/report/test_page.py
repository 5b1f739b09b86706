"""The report page of a real store, as text and in a real browser."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import re

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from PIL import Image
from rich.console import Console

from msad.bundle.evaluation import evaluate, save_tables
from msad.errors import TrackingError
from msad.pictures.gallery import save_evaluation
from msad.report.live import LiveView
from msad.report.page import write_report
from msad.report.region_table import OUTCOMES
from msad.report.reporter import Reporter
from msad.report.study_runs import StudyRuns
from msad.search.study import Study
from msad.tracking import store as tracking_store
from msad.tracking.model_store import deliver_files
from msad.tracking.tracker import Tracker
from msad.training.job_config import JobConfig
from msad.workspace import Workspace

KNOWN = {"count": 5, "share": 1 / 3, "taught": 0, "types": {"dent": 5}}
RESULT = {"epoch": 2, "threshold": 0.5, "parameters": 9e5, "score": 0.8, "image_auroc": 0.9, "pixel_ap": 0.4}
SPACE = {
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "model/base_width": CategoricalDistribution((16, 32)),
}
STRANGE = "nut <b>&co"
REASON = "all 2 trials failed, the first one so: <script>alert(1)</script>"


def make_study(category, architecture, values):
    """A study whose trials ended with these values; None is a failure."""
    storage = optuna.storages.InMemoryStorage()
    study = Study(JobConfig(category=category, architecture=architecture), SPACE, len(values), storage, "none")
    for value in values:
        study.tell(study.ask()[0], value=value, failure="diverged" if value is None else None)
    return study


@pytest.fixture(scope="module")
def store(tmp_path_factory, bundle, demo, category):
    """A sweep as its own parts deliver it: a winner with everything, a weaker one, a failed and an unfinished study."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = tmp_path_factory.mktemp("report")
    uri, workspace = f"sqlite:///{folder / 'mlflow.db'}", Workspace(folder / "sweeps" / "first")
    client = tracking_store.connect(uri, create=True)
    experiment = tracking_store.open_experiment(client, "first", uri, "a")
    tracker = Tracker(client, experiment, print, deliver_files)
    evaluation = evaluate(bundle, demo, category, None)
    studies = {
        "winner": make_study(STRANGE, "multiscale", [0.5, 0.6, None, 0.9, 0.7]),
        "weaker": make_study(STRANGE, "baseline", [0.4, 0.45]),
        "failed": make_study("brick", "baseline", [None, None]),
        "unfinished": make_study("brick", "multiscale", [0.3, 0.2]),
    }
    view = LiveView(list(studies.values()), 1, Console(file=io.StringIO()))
    runs = StudyRuns(workspace, tracker, lambda job: {"msad.identity": "i"})
    reporter = Reporter(workspace, view, runs)
    for place, record in enumerate(studies["winner"].records()):
        if record.state == "complete":
            trial = {"score": record.value, "latency_ms": 40.0 - place}
            workspace.job(record.job_id).write("result", RESULT | trial)
    for study in studies.values():
        runs.catch_up(study)
    for name in ("winner", "weaker"):
        final = workspace.final(studies[name].id)
        final.write("result", RESULT | {"score": studies[name].best().value, "known_defects": KNOWN})
        final.write("test", evaluation.metrics)
        if name == "winner":
            save_evaluation(dataclasses.replace(evaluation, category=STRANGE), final.path / "pictures")
        reporter.finals.ended(studies[name])
    for place, record in enumerate(studies["winner"].records()):
        if record.state == "complete":
            workspace.job(record.job_id).write("test_report", {**evaluation.metrics, "image_auroc": 0.8 + place / 50})
    reporter.selection.concluded(studies["winner"])
    reporter.finals.failed(studies["failed"], REASON)
    assert tracker.close() == 0
    save_tables(evaluation, folder)
    for name in ("per_defect_type.csv", "regions.csv"):
        client.log_artifact(tracker.run_id(f"{STRANGE}-multiscale"), str(folder / name), "test")
    return uri, tracker.run_id(f"{STRANGE}-multiscale"), evaluation


@pytest.fixture(scope="module")
def page(store, tmp_path_factory):
    return write_report("first", store[0], tmp_path_factory.mktemp("page") / "new" / "report.html")


@pytest.fixture(scope="module")
def text(page):
    return page.read_text()


def test_page_loads_nothing_and_runs_nothing(text):
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)""", text)
    assert addresses
    assert all(source.startswith(("data:image/", "#")) for pair in addresses for source in pair if source)
    words = re.sub(r"data:image/[^\"')]*", "", text)  # a picture written in base 64 may hold any letters
    assert "<script" not in words and "<link" not in words and "@import" not in words and "http" not in words


def test_page_escapes_what_others_have_named(text):
    assert "nut &lt;b&gt;&amp;co" in text and "<b>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_page_shows_the_winners_pictures_and_those_of_its_search(text):
    images = re.findall(
        r'<img src="data:image/(?:webp|png);base64,([^"]+)" width="(\d+)" height="(\d+)" alt="([^"]+)"', text
    )
    for data, width, height, _ in images:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.size == (int(width), int(height))
    # Of all worth against time; of the winner the examples, the gallery, two curves, and four of its search; three of
    # two other searches each.
    assert len(images) == 1 + 2 + 2 + 4 + 3 + 3
    alts = " ".join(alt for *_, alt in images)
    assert "5 trials in order: 4 complete, 1 failed. Trial 3 was chosen, at 0.900." in alts
    assert f"against latency of 4 trials. Best: {html.escape(STRANGE)} 37.0 ms, 0.900." in alts
    assert "Their Spearman correlation is 0.80" in alts


def test_page_tells_ranges_defaults_and_what_was_chosen(text):
    row = re.search(r"<code>learning_rate</code></th>(.*?)</tr>", text).group(1)
    assert re.findall(r"<td[^>]*>(?:<strong>)?([^<]*)", row)[:2] == ["0.0001 to 0.01, logarithmic", "0.001"]
    assert "16, 32" in text


def test_page_tells_how_many_known_defects_had_a_say(text):
    assert " ".join(text.split()).count("5 known defects helped to choose: 33 % of the validation score</small>") == 1


def test_page_tells_errors_intervals_chance_and_defect_types(store, text):
    metrics, table = store[2].metrics, store[2].per_defect_type
    low, high = metrics["image_auroc_low"], metrics["image_auroc_high"]
    assert f"95 %: {low:.3f} to {high:.3f}" in text
    assert f"{metrics['misses']:.0f} <small>of {metrics['defective_images']:.0f} defective images" in text
    assert f"chance {metrics['image_prevalence']:.3f}" in text
    for name, values in table.iterrows():
        row = re.search(rf'<th scope="row">{name}</th>(.*?)</tr>', text).group(1)
        assert row.startswith(f"<td>{values['images']:.0f}</td><td>{values['misses']:.0f}</td>")
        interval = f"{values['image_auroc_low']:.3f} to {values['image_auroc_high']:.3f}"
        assert f"<td>{values['image_auroc']:.3f}<small>{interval}</small></td>" in row


def test_page_lists_the_regions_of_the_winners_test_images(store, text):
    evaluation = store[2]
    table = text.partition('aria-label="Regions of nut')[2].partition("</table>")[0]
    rows = re.findall(r'<th scope="row">([^<]+)</th><td class="text">([^<]+)</td><td>(\d+), (\d+)</td>', table)
    first = evaluation.regions.iloc[0]
    wanted = (f"{first['defect_type']}/{first['path'].rpartition('/')[2]}", first["outcome"], first["x"], first["y"])
    assert tuple(map(str, wanted)) in rows and len(rows) == len(evaluation.regions.query("region <= 3"))
    outcomes = [outcome for _, outcome, *_ in rows]
    assert outcomes == sorted(outcomes, key=OUTCOMES.index)
    found, defects = (f"{evaluation.metrics[name]:.0f}" for name in ("found_regions", "defect_regions"))
    assert f"{evaluation.metrics['false_regions']:.2f} per good image; {found} of {defects} regions of the" in text


def test_page_names_failed_and_unfinished_studies(text):
    assert re.search(r"brick / baseline</strong> <span class=\"bad\">failed</span>: all 2 trials failed", text)
    assert re.search(r"brick / multiscale</strong> <span class=\"bad\">unfinished</span>", text)
    assert "No study of this category has a result." in text


def test_page_says_how_the_choice_was_made_and_how_to_pull(store, text):
    assert "Nothing was selected on test labels." in text
    assert f"msad pull {store[1]} --to model" in text


def test_sweep_without_studies_makes_no_page_and_one_without_pictures_does(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = tracking_store.connect(uri, create=True)
    experiment = client.create_experiment("bare", tags={"msad.sweep": "bare"})
    with pytest.raises(TrackingError, match="has no study yet"):
        write_report("bare", uri, tmp_path / "a.html")
    tags = {"msad.kind": "study", "msad.category": "c", "msad.architecture": "a", "msad.status": "complete"}
    run = client.create_run(experiment, tags=tags | {"msad.study": "c/a"}).info.run_id
    client.log_metric(run, "validation_score", 0.5)
    text = write_report(None, uri, tmp_path / "b.html").read_text()
    assert "<img" not in text and f"msad pull {run} --to model" in text and "was not measured" in text
    assert "No figures of test images. Validation score 0.500." in text


def test_store_that_is_not_there_is_a_tracking_error_and_leaves_no_page(tmp_path):
    with pytest.raises(TrackingError, match="no such database"):
        write_report("first", f"sqlite:///{tmp_path / 'none.db'}", tmp_path / "report.html")
    with pytest.raises(TrackingError, match="cannot be reached"):
        write_report("first", "http://127.0.0.1:9", tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def show(browser, page, width, scheme="light", media="screen"):
    """Open the page at a width in pixels, as a phone or a printer would."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.get(page.as_uri())
    for details in browser.find_elements("css selector", "details"):
        browser.execute_script("arguments[0].open = true", details)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light")])
def test_page_passes_axe(browser, page, width, scheme):
    from axe_core_python.selenium import Axe

    show(browser, page, width, scheme)
    found = Axe().run(browser)
    problems = [
        f"{problem['id']}: {problem['help']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for problem in found["violations"]
        for node in problem["nodes"]
    ]
    assert not problems, "\n".join(problems)
    assert {"color-contrast", "image-alt", "document-title", "html-has-lang"} <= {
        rule["id"] for rule in found["passes"]
    }


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_page_never_scrolls_sideways_and_wide_tables_scroll_in_their_box(browser, page, width):
    show(browser, page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    if width == 360:
        board = browser.find_element("css selector", "[aria-label=Leaderboard]")
        assert browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", board)


def test_page_prints_every_study_within_the_paper(browser, page):
    show(browser, page, 718, media="print")  # A4 less the margins
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 718
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert printed.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", printed)) >= 4
