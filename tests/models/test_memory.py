from __future__ import annotations

import pytest
import torch

from msad.models import memory
from msad.models.memory import Memory, Sample, coreset, nearest


@pytest.fixture
def rows():
    return torch.randn(300, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("at_once", [1, 37, 300])
def test_sample_is_bounded_uniform_and_does_not_depend_on_the_parts(rows, at_once):
    whole, parts = Sample(50), Sample(50)
    whole.add(rows, torch.arange(300))
    for part, source in zip(rows.split(at_once), torch.arange(300).split(at_once), strict=True):
        parts.add(part, source)
    assert torch.equal(parts.rows, rows[parts.sources].half().float())
    assert parts.rows.shape == (50, 7) and torch.equal(parts.rows, whole.rows)
    taken = (rows.half().float().unsqueeze(1) == parts.rows).all(dim=2).any(dim=1)
    assert taken.sum() == 50 and 5 < taken[:100].sum() < 30 and 5 < taken[200:].sum() < 30


def test_sample_of_fewer_rows_than_it_may_keep(rows):
    sample = Sample(500)
    sample.add(rows, torch.arange(300))
    assert torch.equal(sample.rows, rows.half())


def test_coreset_covers_better_than_chance():
    generator = torch.Generator().manual_seed(0)
    crowd, rare = torch.randn(2000, 6, generator=generator) * 0.1, torch.eye(6).repeat(2, 1) * 5
    rows = torch.cat([crowd, rare])
    chosen = coreset(rows, 20)
    assert len(set(chosen.tolist())) == 20
    assert nearest(rows, rows[chosen]).max() < nearest(rows, rows[torch.randperm(2012, generator=generator)[:20]]).max()
    assert set(range(2000, 2006)) <= {min(at, at - 6 * (at >= 2006)) for at in chosen.tolist() if at >= 2000}


@pytest.mark.parametrize("looked_at", [1, 5, 64, 900])
def test_coreset_is_the_farthest_row_each_time(looked_at, monkeypatch):
    monkeypatch.setattr(memory, "_LOOKED_AT", looked_at)
    rows = torch.randn(800, 6, generator=torch.Generator().manual_seed(0)) ** 3
    chosen = coreset(rows, 300).tolist()
    assert len(chosen) == len(set(chosen)) == 300
    pairs = torch.cdist(rows.double(), rows.double())
    distance = pairs[chosen[0]].clone()
    for at in chosen[1:]:
        assert distance[at] == pytest.approx(distance.max().item(), rel=1e-4)
        distance = torch.minimum(distance, pairs[at])


def test_coreset_of_all_rows_and_of_rows_that_are_alike(rows):
    assert torch.equal(coreset(rows, 300), torch.arange(300))
    assert coreset(torch.ones(9, 40), 4).shape == (4,)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_nearest_equals_the_distances_of_all_pairs(rows, neighbours, monkeypatch):
    monkeypatch.setattr(memory, "_AT_ONCE", 10_000)  # in three parts
    places = torch.randn(90, 7, generator=torch.Generator().manual_seed(1)) * 3
    wanted = torch.cdist(places.double(), rows.double()).sort(dim=1).values[:, :neighbours].mean(dim=1)
    torch.testing.assert_close(nearest(places, rows, neighbours), wanted.float(), atol=1e-5, rtol=1e-5)


def test_nearest_of_a_row_itself_is_exactly_zero(rows):
    assert nearest(rows * 100, rows * 100).max() == 0


def test_nearest_of_more_neighbours_than_rows(rows):
    assert torch.isfinite(nearest(rows, rows[:2], 9)).all()


def test_memory_of_fewer_places_than_rows_keeps_some_twice(rows):
    memory = Memory([3, 4], rows=400)
    memory.learn(rows)
    assert memory.bank_RC.shape == (400, 7) and memory.bank_RC.dtype == torch.float16
    assert torch.equal(memory.bank_RC[:300], rows.half()) and torch.equal(memory.bank_RC[300:], rows[:100].half())


def test_memory_joins_the_stages_with_equal_say():
    features = torch.ones(1, 4, 6, 6), torch.ones(1, 100, 3, 3)
    places = Memory([4, 100], rows=1).places(features)
    assert places.shape == (1, 6, 6, 104)
    torch.testing.assert_close(places[..., :4].square().sum(dim=-1), places[..., 4:].square().sum(dim=-1))


def test_share_of_a_stage_scales_its_distances():
    features = torch.ones(1, 4, 6, 6), torch.ones(1, 100, 3, 3)
    whole, half = (Memory([4, 100], rows=1, shares=shares).places(features) for shares in (None, (1.0, 0.5)))
    assert torch.equal(half[..., :4], whole[..., :4])
    torch.testing.assert_close(half[..., 4:], whole[..., 4:] / 2)


def as_features(places):
    """Return 500 places of 20 channels as the features of an image; the memory takes means over channels."""
    return [places.T.reshape(1, 20, 25, 20) * 20**0.5]


@pytest.fixture
def large(monkeypatch):
    """A memory that is searched along its axes, of places that mostly vary along few directions, and other places."""
    monkeypatch.setattr(memory, "EXACT", 300)
    monkeypatch.setattr(memory, "_AXES", 8)
    generator = torch.Generator().manual_seed(0)
    spread = torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q * 0.7 ** torch.arange(20)
    rows, places = (torch.randn(count, 20, generator=generator) @ spread.T for count in (4000, 500))
    found = Memory([20], rows=1501, neighbourhood=1)  # 16 parts are not alike
    found.learn(rows)
    return found, places


def test_large_memory_finds_nearly_the_nearest_of_all_rows_and_never_a_nearer_one(large):
    found, places = large
    distance = found(as_features(places)).flatten()
    exact = torch.cdist(places.double(), found.bank_RC.double()).amin(dim=1).float()
    assert (distance - exact).min() > -1e-4
    assert (distance - exact < 1e-4).float().mean() > 0.9 and (distance / exact).mean() < 1.01
    none_like_it = torch.linalg.qr(torch.randn(20, 8, generator=torch.Generator().manual_seed(1))).Q
    other = memory.nearly_nearest(places, found.bank_RC.float(), none_like_it, found.bank_RC.float() @ none_like_it)
    assert other.mean() > distance.mean(), "principal axes are the ones to look along"


def test_large_memory_searched_part_by_part_says_the_same(large, monkeypatch):
    found, places = large
    features = as_features(places)
    whole = found(features)
    monkeypatch.setattr(memory, "_AT_ONCE", 100_000)  # in eight parts
    torch.testing.assert_close(found(features), whole)


def test_large_memory_that_was_kept_without_its_axes_is_loaded_with_them(large):
    found, places = large
    state = {name: value for name, value in found.state_dict().items() if name == "bank_RC"}
    other = Memory([20], rows=1501, neighbourhood=1)
    other.load_state_dict(state)
    features = as_features(places)
    torch.testing.assert_close(other(features), found(features))
    with pytest.raises(RuntimeError, match="bank_RC"):
        other.load_state_dict({})


def test_large_memory_of_several_neighbours_is_searched_exactly(large):
    _, places = large
    several = Memory([20], rows=400, neighbourhood=1, neighbours=3)
    several.learn(places)
    wanted = nearest(places, several.bank_RC.float(), 3)
    torch.testing.assert_close(several(as_features(places)).flatten(), wanted)


def test_large_memory_is_exported_with_any_number_of_images(large):
    found, places = large
    features = as_features(places)[0].view(20, 2, 10, 25).transpose(0, 1).contiguous()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(found, ([features],), dynamic_shapes=([{0: batch}],)).module()
    for images in (features, features[:1]):
        torch.testing.assert_close(exported([images]), found([images]))
