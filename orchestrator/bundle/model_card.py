"""The model card of a bundle: what `bundle.json` holds, for people, and what follows from it.

The sections are those of Mitchell et al., "Model cards for model reporting", FAT* 2019, arXiv 1810.03993, in the order
of Hugging Face's template. A value that the bundle does not hold is said to be missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msad.data_io.decode import height_width
from msad.models.synthesis.synthetic_defects import FAMILIES, GRADES

Values = Mapping[str, Any]

# Test figures by name: what they are called, and their chance level or the name of the figure that holds it.
_FIGURES = {
    "image_auroc": ("Image AUROC", 0.5),
    "image_prauc": ("Image PRAUC", "image_prevalence"),
    "pixel_auroc": ("Pixel AUROC", 0.5),
    "pixel_prauc": ("Pixel PRAUC", "pixel_prevalence"),
    "aupro_30": ("AU-PRO up to 30 % false positives", 0.15),
    "aupro_05": ("AU-PRO up to 5 % false positives", 0.025),
    "f1": ("F1 at the threshold", None),
    "recall": ("Recall at the threshold", None),
    "false_alarm_rate": ("False-alarm rate at the threshold", None),
    "recall_at_fpr": ("Recall where the false-positive rate is the one aimed at", None),
}
# Counts at the threshold: what they are called, and the name of the figure that they are of.
_COUNTS = {
    "false_positives": ("False alarms at the threshold", "good_images"),
    "misses": ("Defects missed at the threshold", "defective_images"),
    "found_regions": ("Regions of the ground truth that a region of the map touches", "defect_regions"),
}
_ABSENT = "not recorded"
_CHOSEN = "chosen on the validation images"
_FIXED = "the same for every model of this architecture"


def write_card(description: Values) -> str:
    """Return the model card, Markdown.

    Parameters
    ----------
    description
        The content of `bundle.json`.
    """
    sections = {
        "Model details": _details,
        "Intended use": _use,
        "Limits": _limits,
        "Training data": _data,
        "How it was selected": _selection,
        "Results on the test split": _results,
        "Threshold": _threshold,
        "Use it": _loading,
        "Training configuration": _configuration,
    }
    title = f"# Defect detector of `{description['category']}` ({description['architecture']})"
    return "\n\n".join([title, *(f"## {name}\n\n{write(description)}" for name, write in sections.items())]) + "\n"


def shorten(card: str, limit: int = 5000) -> str:
    """Cut a card to so many characters (of a description in MLflow), whole sections from the end."""
    end = "\n\nThe rest is in MODEL_CARD.md of the bundle.\n"
    while len(card) > limit:
        start = card.rpartition("\n\n## ")[0]
        if not start:
            return card[:limit]
        card = start.removesuffix(end) + end
    return card


def _details(d: Values) -> str:
    known, scoring = d["provenance"], d["scoring"]
    maps = _shares(scoring["weights"])
    if scoring.get("map_weights"):
        maps += f" (in the anomaly map {_shares(scoring['map_weights'])})"
    pretrained = _ABSENT
    if "pretrained" in d:
        pretrained = "; ".join(f"`{name}`, {terms}" for name, terms in d["pretrained"].items()) or "none"
    versions = ", ".join(f"{name} {number}" for name, number in known.get("versions", {}).items())
    return _list(
        f"Reads an RGB photograph, resized to {_size(d)} pixels; gives a score (higher: more "
        "anomalous), a verdict and an anomaly map.",
        f"Run {_code(known.get('run_id'))}, sweep {_code(known.get('sweep'))}, epoch {known.get('epoch', _ABSENT)}, "
        f"code {_code(known.get('code_version'))}.",
        *_roi(d),
        f"Score: maps {maps}, smoothed with a sigma of {scoring['smoothing']:g} px, calibration {_calibration(d)}, "
        f"reduced by `{scoring['reduction']}`; {_CHOSEN if d.get('scoring_chosen', True) else _FIXED}.",
        f"Weights: trained on the images below, whose terms they share. Trained by others: {pretrained}.",
        f"Versions: {versions or _ABSENT}; trained on {known.get('device') or _ABSENT}.",
    )


def _calibration(d: Values) -> str:
    """Say how each map that counts is calibrated, once where all are alike."""
    kinds, weights = d["scoring"]["calibration"], d["scoring"]["weights"]
    if isinstance(kinds, str):
        return f"`{kinds}`"
    return ", ".join(f"`{kinds[name]}` ({name})" for name, share in weights.items() if share)


def _shares(of_maps: Mapping[str, float]) -> str:
    return ", ".join(f"{name} ({share:g})" for name, share in of_maps.items() if share)


def _roi(d: Values) -> list[str]:
    """Say which part of an image is looked at, where that is not all of it."""
    share = d.get("roi_share")
    return [] if share is None else [f"Looks at a region of interest alone, {share:.0%} of each image: `roi.png`."]


def _use(d: Values) -> str:
    return (
        f"To tell photographs of a good `{d['category']}` from such of one with a visible defect, and to show where, "
        "under the camera, light and pose of the training images. It was shown good parts only, so it marks whatever "
        "differs from them, and does not name the kind of defect."
    )


def _limits(d: Values) -> str:
    size, count = _size(d), d["provenance"].get("images", {}).get("validation")
    few = f": {count} held-out ones can promise no rate of false alarms below 1 in {count + 1}" if count else ""
    return _list(
        "Another product, camera, light or pose: train anew. A batch of parts that looks different is anomalous to it.",
        f"What is smaller than some pixels of the {size} image cannot be seen.",
        "Scores compare only with scores of this very model.",
        f"The threshold rests on few images{few}. Watch the false alarms of the first days.",
        "Where a missed defect can hurt someone, it is not the only inspection.",
    )


def _data(d: Values) -> str:
    known = d["provenance"]
    images, identity = known.get("images"), _code(known.get("identity", {}).get("digest"))
    counts = f"{images['train']} to train on, {images['validation']} held out for validation" if images else _ABSENT
    lines = [
        f"Good images only, of `{d['category']}`: {counts}; divided at random by seed {d['job']['seed']}.",
        f"Identity: {identity}. Models with the same one saw the same images, divided and drawn from in the same way.",
    ]
    if joint := d["job"].get("joint"):
        lines.append(
            f"One network for several products: it was trained on images of {_named(joint)} together. Held-out images, "
            f"scoring, thresholds and results are those of `{d['category']}` alone."
        )
    if suspects := known.get("suspects"):
        listed = _named(suspects[:10]) + (", ..." if len(suspects) > 10 else "")
        lines.append(f"Unlike the others, and perhaps no good ones: {len(suspects)} of them ({listed}).")
    return _list(*lines)


def _selection(d: Values) -> str:
    known = d["provenance"]
    validation, chosen = known.get("validation", {}), known.get("selection", {})
    match chosen:
        case {"kind": "study", "trials": 0}:
            origin = "A fixed configuration, trained without a search."
        case {"kind": "study", "trials": trials}:
            trained = "as its trial left it" if known.get("trial") else "trained once more to the end"
            origin = f"The winner of a search over {trials} configurations, {trained}."
        case {"kind": "trial"}:
            origin = "One trial of a search; it need not be the winner."
        case _:
            origin = f"Of which search: {_ABSENT}."
    if d["job"].get("joint"):
        origin += " Configuration and epoch were chosen by the mean over all its products."
    count = known.get("images", {}).get("synthetic")
    copies = f"{count} copies of them" if count else "copies of them"
    lines = [
        f"{origin} Configuration, epoch and scoring are those with the highest `{d['job']['objective']}`: the held-out "
        f"good images against {copies} with synthetic defects, "
        f"of kinds that training does not use.{_known(known)} **No test image had a say.**",
        f"Validation score {_number(validation.get('score'))} (image AUROC {_number(validation.get('image_auroc'))}, "
        f"pixel AP {_number(validation.get('pixel_ap'))}); guessing has {_number(validation.get('chance'))}. Epoch and "
        "scoring were chosen on one half of these images and the score was read on the other, both ways; the trial was "
        "chosen by that score, which flatters the best of many a little. It ranks models on these images, and "
        "forecasts nothing for real defects.",
    ]
    if per_group := validation.get("per_group"):
        real = {name.partition("/")[2]: group for name, group in per_group.items() if name.startswith("known/")}
        groups = {name: group for name, group in per_group.items() if not name.startswith("known/")}
        lines.append("Image AUROC per kind of synthetic defect:\n\n" + _group_table(groups))
        if unseen := [name for name in FAMILIES if not any(key.startswith(f"{name}/") for key in groups)]:
            lines.append(f"Not drawn, because this product would show nothing of it: {', '.join(unseen)}.")
        if real:
            listed = (f"{name} {_number(group['image_auroc'])} ({group['images']})" for name, group in real.items())
            lines.append(f"Image AUROC per type of known defect (images): {', '.join(listed)}.")
    return "\n\n".join(lines)


def _known(provenance: Values) -> str:
    """Say how many known defects had a say, and what they counted; empty where there were none."""
    known = provenance.get("known_defects") or {}
    if not known.get("count"):
        return ""
    taught = f"; {known['taught']} others were trained on" if known.get("taught") else ""
    return f" {known['count']} known defects counted {known['share']:.0%} of it, the synthetic ones the rest{taught}."


def _results(d: Values) -> str:
    test, seeds = d["provenance"].get("test"), d["provenance"].get("test_over_seeds")
    if not test:
        why = "Not measured." if test is None else "The dataset has no test images."
        if test is None and (reason := d["provenance"].get("unmeasured")):
            why = f"Not measured: {reason}."
        return f"{why} So nothing is known about real defects; measure it with `msad evaluate BUNDLE DATASET`."
    lines = [
        f"Measured once, after the selection, on {_count(test.get('good_images'))} good and "
        f"{_count(test.get('defective_images'))} defective images that nothing was chosen by.",
        "\n".join(["| figure | value | 95 % interval | chance |", "|---|---|---|---|", *_figure_rows(test)]),
    ]
    if per_type := test.get("per_defect_type"):
        pixels = any("pixel_prauc" in row for row in per_type.values())
        head = "| defect | images | missed | image AUROC | recall |" + (" pixel PRAUC |" if pixels else "")
        rows = (
            f"| {name} | {_count(row.get('images'))} | {_count(row.get('misses'))} | {_spread(row, 'image_auroc')} | "
            f"{_spread(row, 'recall')} |" + (f" {_number(row.get('pixel_prauc'))} |" if pixels else "")
            for name, row in per_type.items()
        )
        lines.append("\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows]))
    if remarks := test.get("remarks"):
        lines.append(_list(*(f"{remark[0].upper()}{remark[1:]}." for remark in remarks)))
    if seeds:
        means = ", ".join(
            f"{title} {_number(seeds[f'{name}_mean'])} ± {_number(seeds.get(f'{name}_sd'))}"
            for name, (title, _) in _FIGURES.items()
            if f"{name}_mean" in seeds
        )
        lines.append(f"Over {_count(seeds.get('seeds'))} trainings with other seeds (mean ± sample sd): {means}.")
    return "\n\n".join(lines)


def _figure_rows(test: Values) -> Iterator[str]:
    for name, (title, chance) in _FIGURES.items():
        if name in test:
            level = test.get(chance) if isinstance(chance, str) else chance
            cells = (title, _number(test[name]), _interval(test, name), "" if level is None else _number(level))
            yield f"| {' | '.join(cells)} |"
    for name, (title, total) in _COUNTS.items():
        if name in test:
            yield f"| {title} | {_count(test[name])} of {_count(test.get(total))} | | |"
    if "false_regions" in test:
        yield f"| Regions in a good image, on average | {_number(test['false_regions'])} | | |"
    if "latency_ms" in test:
        yield f"| Time per image, one at a time | {test['latency_ms']:.1f} ms | | |"


def _threshold(d: Values) -> str:
    rate, promised = d["job"]["false_positive_rate"], d["provenance"].get("false_alarms")
    kept = f"What so many held-out images can promise: {_ABSENT}."
    if promised:
        names = ("held_out", "smallest", "expected", "at_most")
        count, smallest, expected, at_most = (promised[name] for name in names)
        kept = (
            f"{count} held-out images, each scored without what the scorer learned from it, promise at most "
            f"{expected:.1%} on average, and for 95 of 100 models made like this one at most {at_most:.1%}, as long as "
            f"good parts look as they did; no rate below {smallest:.1%} can be certified by so many."
        )
    return (
        f"{d['threshold']:.6g}: a higher score is called anomalous. False alarms aimed at: {rate:.3g} of the good "
        f"images. {kept} Where plain synthetic defects leave a gap above the good images, the threshold is the middle "
        "of that gap. Another one is a matter of `msad predict --threshold`.\n\n"
        f"{_pixel_threshold(d)} Another one is a matter of `msad predict --pixel-threshold`.{_held_out(d)}"
    )


def _held_out(d: Values) -> str:
    if not d["provenance"].get("held_out"):
        return ""
    kept = "Scores and plain statistics of the held-out images are kept here"
    return f"\n\n{kept}; `msad predict` says when what it sees has left them, as thresholds then may have too."


def _pixel_threshold(d: Values) -> str:
    if d.get("pixel_threshold") is None:
        return "Regions of a map: no pixel threshold is recorded; they are cut at the threshold, but at least at 3."
    kept = f"What it promises: {_ABSENT}."
    if promised := d["provenance"].get("false_regions"):
        kept = (
            f"Aimed at were at most {promised['target']:.3g} regions in a good image; the maps of the "
            f"{promised['held_out']} held-out ones have {promised['regions']} in all, which promises that on average "
            f"at most {promised['expected']:.1%} of the good images show one."
        )
    return f"{d['pixel_threshold']:.6g}: pixels of a map above it, where they are connected, are a region. {kept}"


def _loading(d: Values) -> str:
    return "\n".join(
        [
            "```python",
            "import msad",
            "",
            'prediction = msad.load("FOLDER").predict("photograph.png")',
            "print(prediction.score, prediction.is_anomalous, prediction.anomaly_map.shape)",
            "```",
            "",
            "Without msad: `msad export FOLDER --to FILE.onnx` writes a file that onnxruntime alone can run.",
        ]
    )


def _configuration(d: Values) -> str:
    return f"```json\n{json.dumps(d['job'], indent=2)}\n```"


def _group_table(groups: Mapping[str, Values]) -> str:
    """Return family × grade as a table; a key is `family/grade`."""
    grades = [grade for grade in GRADES if any(key.endswith(f"/{grade}") for key in groups)]
    families = list(dict.fromkeys(key.rpartition("/")[0] for key in groups))
    rows = [
        [family, *(_number(groups.get(f"{family}/{grade}", {}).get("image_auroc")) for grade in grades)]
        for family in families
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (["", *grades], ["---"] * (len(grades) + 1), *rows))


def _interval(figures: Values, name: str) -> str:
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    return "" if low is None or high is None else f"{_number(low)} to {_number(high)}"


def _spread(figures: Values, name: str) -> str:
    interval = _interval(figures, name)
    return _number(figures.get(name)) + (f" ({interval})" if interval else "")


def _size(d: Values) -> str:
    height, width = height_width(d["image_size"])
    return f"{height}×{width}" if height == width else f"{height}×{width} (height × width)"


def _list(*lines: str) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _code(text: str | None) -> str:
    return f"`{text}`" if text else _ABSENT


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _count(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.0f}"
