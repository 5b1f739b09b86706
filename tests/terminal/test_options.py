"""The options that several commands share."""

from __future__ import annotations

from msad.data_io.wide import BIT_DEPTHS
from msad.terminal.options import bit_depth_option


def test_bit_depths_offered_are_those_that_images_may_have():
    command = bit_depth_option(lambda: None)
    (option,) = command.__click_params__
    assert tuple(map(int, option.type.choices)) == BIT_DEPTHS
