"""What an error says of a word that nobody knows."""

from __future__ import annotations

from msad.models.errors import did_you_mean


def test_word_close_to_a_known_one_is_answered_by_that_one_alone():
    assert did_you_mean("lerning_rate", ["epochs", "learning_rate"]) == "; did you mean 'learning_rate'?"


def test_word_close_to_none_is_answered_by_all():
    assert did_you_mean("zzz", iter(["one", "two"])) == "; known are one, two"
    assert did_you_mean("zzz", []) == "; known are none"
