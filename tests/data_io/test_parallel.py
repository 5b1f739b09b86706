from __future__ import annotations

from msad.data_io.parallel import map_in_threads


def test_map_in_threads_keeps_the_order():
    assert list(map_in_threads(lambda number: number**2, range(300))) == [number**2 for number in range(300)]


def test_map_in_threads_does_not_run_far_ahead_of_a_slow_reader():
    begun = []
    results = map_in_threads(lambda number: begun.append(number) or number, range(10_000))
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(begun) < 200
    results.close()
