"""The model card says what a bundle holds, and of what it does not hold that it is missing."""

from __future__ import annotations

import json

import pytest

from msad.bundle.bundle_files import CARD_FILE, DESCRIPTION_FILE
from msad.bundle.model_card import shorten, write_card

SECTIONS = [
    "Model details", "Intended use", "Limits", "Training data", "How it was selected", "Results on the test split",
    "Threshold", "Use it", "Training configuration",
]  # fmt: skip
KNOWN = {
    "identity": {"digest": "fp12"},
    "images": {"train": 30, "validation": 12, "synthetic": 216},
    "validation": {
        "score": 0.71,
        "image_auroc": 0.76,
        "pixel_ap": 0.5,
        "chance": 0.41,
        "per_group": {
            f"{family}/{grade}": {"image_auroc": value, "pixel_ap": 0.1}
            for family in ("scratch", "warp")
            for grade, value in (("faint", 0.625), ("plain", 1.0))
            if (family, grade) != ("scratch", "plain")
        },
    },
    "false_alarms": {"target": 0.01, "held_out": 12, "smallest": 1 / 13, "expected": 1 / 13, "at_most": 0.221},
    "false_regions": {"target": 0.1, "held_out": 12, "regions": 0, "expected": 1 / 13},
    "test": {
        "image_auroc": 0.9, "image_auroc_low": 0.812, "image_auroc_high": 0.987, "image_prauc": 0.92,
        "image_prevalence": 0.6, "false_positives": 1.0, "good_images": 12.0, "misses": 3.0, "defective_images": 18.0,
        "aupro_30": None, "latency_ms": 5.25, "false_regions": 0.25, "defect_regions": 20.0, "found_regions": 16.0,
        "per_defect_type": {
            "stain": {
                "images": 6, "image_auroc": 0.875, "misses": 2, "pixel_prauc": None,
                "recall": 0.667, "recall_low": 0.3, "recall_high": 0.9,
            }
        },
    },
    "test_over_seeds": {"seeds": 3.0, "image_auroc_mean": 0.89, "image_auroc_sd": 0.021},
}  # fmt: skip


@pytest.fixture
def description(bundle, tmp_path):
    bundle.save(tmp_path / "bundle")
    return json.loads((tmp_path / "bundle" / DESCRIPTION_FILE).read_text())


def with_provenance(description, **values):
    return {**description, "provenance": description["provenance"] | values}


def section(card, name):
    return card.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def test_card_of_a_fresh_bundle_has_every_section_and_says_what_is_missing(description, bundle, tmp_path):
    card = write_card(description)
    assert (tmp_path / "bundle" / CARD_FILE).read_text() == card
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == SECTIONS
    assert "Not measured." in section(card, "Results on the test split")
    assert "Identity: not recorded" in section(card, "Training data")
    assert "pixel AP not defined" in section(card, "How it was selected")
    assert f"{bundle.threshold:.6g}: a higher score" in section(card, "Threshold")
    assert section(card, "Threshold").count("promise: not recorded") == 1
    assert "plain statistics" not in card
    known = with_provenance(description, held_out={"score": [1.0]})
    assert "`msad predict` says when what it sees has left them" in section(write_card(known), "Threshold")
    assert f"{bundle.pixel_threshold:.6g}: pixels of a map above it" in section(card, "Threshold")
    older = write_card({name: value for name, value in description.items() if name != "pixel_threshold"})
    assert "no pixel threshold is recorded" in section(older, "Threshold")
    assert "Trained by others: none" in card and "None" not in card and "nan" not in card
    without = {name: value for name, value in description.items() if name != "pretrained"}
    assert "Trained by others: not recorded" in write_card(without)
    code = section(card, "Training configuration").partition("```json\n")[2].partition("```")[0]
    assert json.loads(code) == bundle.job.to_dict()


def test_card_gives_figures_with_intervals_chance_levels_and_counts(description):
    card = write_card(with_provenance(description, **KNOWN))
    results = section(card, "Results on the test split")
    for row in (
        "| Image AUROC | 0.900 | 0.812 to 0.987 | 0.500 |",
        "| Image PRAUC | 0.920 |  | 0.600 |",
        "| AU-PRO up to 30 % false positives | not defined |  | 0.150 |",
        "| False alarms at the threshold | 1 of 12 | | |",
        "| Defects missed at the threshold | 3 of 18 | | |",
        "| Regions of the ground truth that a region of the map touches | 16 of 20 | | |",
        "| Regions in a good image, on average | 0.250 | | |",
        "| stain | 6 | 2 | 0.875 | 0.667 (0.300 to 0.900) | not defined |",
    ):
        assert row in results.splitlines()
    assert "12 good and 18 defective images" in results
    assert "Over 3 trainings with other seeds (mean ± sample sd): Image AUROC 0.890 ± 0.021." in results
    selection = section(card, "How it was selected").splitlines()
    assert "| warp | 0.625 | 1.000 |" in selection and "|  | faint | plain |" in selection
    assert "| scratch | 0.625 | not defined |" in selection  # drawn, but nowhere plainly
    assert "Not drawn, because this product would show nothing of it: blend, blur, fade, missing." in selection
    assert "guessing has 0.410" in section(card, "How it was selected")
    assert "30 to train on, 12 held out" in card and "below 1 in 13" in card and "216 copies" in card
    assert "the 12 held-out ones have 0 in all, which promises that on average at most 7.7% of the good images" in card
    assert "promise at most 7.7% on average, and for 95 of 100 models made like this one at most 22.1%" in section(
        card, "Threshold"
    )


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"kind": "study", "trials": 8}, "The winner of a search over 8 configurations"),
        ({"kind": "study", "trials": 0}, "A fixed configuration, trained without a search."),
        ({"kind": "trial", "trials": 0}, "One trial of a search; it need not be the winner."),
        ({}, "Of which search: not recorded."),
    ],
)
def test_card_says_where_the_model_came_from(description, selection, words):
    assert section(write_card(with_provenance(description, selection=selection)), "How it was selected")[1:].startswith(
        words
    )


def test_card_says_what_each_map_counts_in_the_score_and_in_the_anomaly_map(description):
    scoring = description["scoring"] | {"weights": {"memory": 3.0, "mask": 1.0, "cosine": 0.0}}
    details = section(write_card({**description, "scoring": scoring}), "Model details")
    assert "memory (3), mask (1)" in details and "in the anomaly map" not in details
    scoring["calibration"] = {"memory": "position", "mask": "none", "cosine": "none"}
    scoring["map_weights"] = {"memory": 5.0, "mask": 4.0}
    details = section(write_card({**description, "scoring": scoring}), "Model details")
    assert "memory (3), mask (1) (in the anomaly map memory (5), mask (4))" in details
    assert "calibration `position` (memory), `none` (mask), reduced by" in details


def test_card_of_a_dataset_without_test_images_says_so(description):
    results = section(write_card(with_provenance(description, test={})), "Results on the test split")
    assert "The dataset has no test images. So nothing is known about real defects" in results


def test_shortened_card_keeps_whole_sections_and_says_so(description):
    card = write_card(with_provenance(description, **KNOWN))
    assert shorten(card, len(card)) == card
    short = shorten(card, 3000)
    assert len(short) <= 3000 and short.endswith("The rest is in MODEL_CARD.md of the bundle.\n")
    assert card.startswith(short.removesuffix("\n\nThe rest is in MODEL_CARD.md of the bundle.\n"))
    kept = [line[3:] for line in short.splitlines() if line.startswith("## ")]
    assert kept == SECTIONS[: len(kept)] and len(kept) > 2
    assert shorten("word " * 100, 50) == ("word " * 100)[:50]


def test_card_says_how_many_known_defects_had_a_say_and_what_they_counted(description):
    known = {"count": 5, "types": {"dent": 5}, "share": 1 / 3, "taught": 2}
    groups = KNOWN["validation"]["per_group"] | {"known/dent": {"image_auroc": 0.912, "images": 5}}
    validation = KNOWN["validation"] | {"per_group": groups}
    card = section(
        write_card(with_provenance(description, **KNOWN, known_defects=known) | {}).replace("\n\n", "\n"),
        "How it was selected",
    )
    assert "5 known defects counted 33% of it, the synthetic ones the rest; 2 others were trained on." in card
    card = write_card(with_provenance(description, **{**KNOWN, "validation": validation, "known_defects": known}))
    assert "Image AUROC per type of known defect (images): dent 0.912 (5)." in card and "| known |" not in card
    assert "known defect" not in write_card(with_provenance(description, **KNOWN))
