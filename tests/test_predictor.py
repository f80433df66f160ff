"""Labels and confidences of a picture: the same with tiles as without, at every size, and
averaged over views.
"""

import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PADS, STRIDES, exact_confidences, lively, small
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn import cross_entropy
from support.device import as_batch
from support.inference.predictor import (
    MIN_TILE,
    TTA,
    Predictor,
    confidence,
    prepare,
    stretch,
    tiled,
)
from support.labels import IGNORE
from vgg import normalise


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def scores_of(net, picture, size=None):
    """Scores [C, H, W] of a picture, computed in one piece at `size` and interpolated back."""
    height, width = size or picture.shape[:2]
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    with torch.no_grad():
        scores = net(normalise(as_batch(np.asarray(resized))))
    return F.interpolate(scores, size=picture.shape[:2], mode="bilinear")[0]


def assert_alike(prediction, probabilities):
    """Assert that the prediction has the confidences of these probabilities float64 [C, H, W] and
    the most probable class.
    """
    assert np.abs(prediction.confidences - exact_confidences(probabilities)).max() <= 0.6
    sure = probabilities.topk(2, 0).values.diff(dim=0)[0].abs() > 1e-3
    assert sure.float().mean() > 0.5
    assert np.array_equal(prediction.labels[sure], probabilities.argmax(0).byte()[sure])
    assert prediction.labels.dtype == np.uint8


@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=6), st.data())
def test_a_confidence_follows_the_log_odds(scores, data):
    c = data.draw(st.integers(0, len(scores) - 1))
    weights = np.exp(np.array(scores, np.longdouble))
    odds = weights[c] / np.delete(weights, c).sum()
    found = confidence(torch.tensor(scores)[:, None, None], [c])
    assert found.dtype == torch.uint8 and found.shape == (1, 1, 1)
    assert abs(found.item() - 255 / (1 + odds**-0.25)) < 0.51


def test_confidences_tell_apart_pixels_that_are_almost_certain():
    scores = torch.tensor([[[0, 8, 12, 16, 20]], [[0, 0, 0, 0, 0]], [[-99, 0, 0, 0, 0]]]).float()
    assert (255 * scores.softmax(0)[0]).round()[0, 1:].unique().numel() == 1
    (found,) = confidence(scores, [0])
    assert found.int().diff().gt(0).all()
    assert found[0, 0] == 128  # two classes are equally probable


def test_a_single_class_is_certain_and_huge_scores_saturate():
    assert confidence(torch.randn(1, 2, 3), [0]).eq(255).all()
    huge = torch.tensor([3e4, -3e4, 0.0])[:, None, None]
    assert confidence(huge, [0, 1, 2]).flatten().tolist() == [255, 0, 0]


# ---- tiles ----


def assert_tiles_match(net, image, tile):
    """Assert that the tiles of an image cover it once, with the scores of the whole image."""
    with torch.no_grad():
        whole = net(image)
        parts = list(tiled(net, image, tile))
    assert len(parts) > 1
    found = torch.full_like(whole, torch.nan)
    for rows, columns, scores in parts:
        assert found[:, :, rows, columns].isnan().all(), "parts overlap"
        found[:, :, rows, columns] = scores
    assert whole.std() > 1e-3 * whole.abs().max(), "scores that are all alike prove nothing"
    assert (found - whole).abs().max() < 1e-3 * whole.abs().max()


@settings(max_examples=4)
@given(
    long=st.integers(1157, 1900),  # a tile is 1156 long if it is so thin
    thin=st.integers(1, 80),
    upright=st.booleans(),
    pad=PADS,
    stride=STRIDES,
)
@example(long=3000, thin=100, upright=False, pad=1, stride=8)
@example(long=1300, thin=30, upright=True, pad=100, stride=8)
def test_tiles_of_a_strip_have_the_scores_of_the_whole_picture(long, thin, upright, pad, stride):
    size = (long, thin) if upright else (thin, long)
    assert_tiles_match(lively(pad, stride), torch.randn(1, 3, *size), MIN_TILE)


def test_tiles_in_both_directions_have_the_scores_of_the_whole_picture():
    assert_tiles_match(lively(1, 8), torch.randn(1, 3, 801, 801), 800)


@given(height=st.integers(1, 2500), width=st.integers(1, 2500), tile=st.integers(MIN_TILE, 1600))
@example(height=40, width=20000, tile=MIN_TILE)
def test_no_tile_exceeds_the_pixel_limit(height, width, tile):
    largest, covered = 0, 0

    def compute(image):
        nonlocal largest
        largest = max(largest, max(image.shape[2], 256) * max(image.shape[3], 256))
        return image[:, :1]

    for _, _, scores in tiled(compute, torch.empty(1, 1, 1, 1).expand(1, 3, height, width), tile):
        covered += scores.shape[2] * scores.shape[3]
    assert covered == height * width and largest <= tile * tile


def test_tiling_keeps_labels_confidences_and_loss():
    net, picture = lively(1, 8), noise(60, 1500)
    truth = torch.randint(0, 2, (60, 1500), dtype=torch.uint8)
    truth[:, :600] = IGNORE
    found = Predictor(net, tile=MIN_TILE)(
        picture, confidences_of=[0, 1], truth=truth, criterion=cross_entropy
    )
    scores = scores_of(net, picture)
    assert_alike(found, scores.double().softmax(0))
    torch.testing.assert_close(found.loss, cross_entropy(scores[None], truth[None].long()))


def test_a_tile_that_is_too_small_for_its_halo_is_refused():
    with pytest.raises(ValueError, match="tile is 543: it must be at least 544"):
        Predictor(small(), tile=543)


# ---- sizes ----


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.lists(st.integers(1, 20), min_size=1, max_size=3),
    st.integers(1, 600),
    st.integers(1, 60),
)
def test_stretching_scores_by_parts_matches_the_whole(rows, columns, tall, wide):
    height, width = sum(rows), sum(columns)
    scores = torch.randn(1, 3, height, width)

    def slices(lengths):
        ends = np.cumsum(lengths)
        return [slice(int(end) - n, int(end)) for end, n in zip(ends, lengths, strict=True)]

    parts = [(r, c, scores[:, :, r, c]) for r in slices(rows) for c in slices(columns)]
    found = list(stretch(iter(parts), height, width, (tall, wide)))
    assert [row for r, _, _ in found for row in range(r.start, r.stop)] == list(range(tall))
    wanted = F.interpolate(scores, size=(tall, wide), mode="bilinear")
    found = torch.cat([part for _, _, part in found], 2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def storages(least):
    """The addresses of all storages of `least` bytes or more."""
    tensors = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.layout == torch.strided]
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr() for storage in found if storage.nbytes() >= least}


def test_stretching_holds_only_one_row_of_parts_in_memory():
    band = 100 * 100 * 3 * 4  # bytes
    computed, before = [], storages(band)

    def parts():
        for top in range(0, 400, 100):
            for left in (0, 50):
                computed.append(top)
                yield slice(top, top + 100), slice(left, left + 50), torch.zeros(1, 3, 100, 50)

    for rows, _, _ in stretch(parts(), 400, 100, (600, 15)):
        assert max(computed) < rows.stop * 400 / 600 + 1  # no part is computed early
        assert len(storages(band) - before) == 1


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.05, 3))
def test_a_picture_is_resized_by_the_resize_factor(height, width, factor):
    net, picture = small(), np.full((height, width, 3), 77, np.uint8)
    net.resize_factor = factor
    size = max(1, int(height * factor)), max(1, int(width * factor))
    for predictor in (Predictor(net), Predictor(small(), resize=factor)):
        ((view, flipped),) = predictor.views(picture)
        assert view.shape == (1, 3, *size) and (view == 77).all() and not flipped


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 900))
def test_the_longer_side_gets_exactly_the_length_asked_for(height, width, longer):
    ((view, _),) = Predictor(small(), longer=longer).views(np.zeros((height, width, 3), np.uint8))
    assert max(view.shape[2:]) == longer


def test_a_view_that_would_fill_memory_is_refused():
    for how in ({"resize": 200}, {"longer": 20000}, {"resize": 10, "tta": TTA((1, 20))}):
        with pytest.raises(ValueError, match="at most 268,435,456 pixels"):
            Predictor(small(), **how).views(noise(100, 100))


# ---- test-time augmentation ----


@settings(max_examples=10)
@given(
    factors=st.lists(st.floats(0.4, 2), min_size=1, max_size=3),
    flip=st.booleans(),
    height=st.integers(20, 60),
    width=st.integers(20, 60),
)
def test_tta_averages_the_probabilities_of_all_views(factors, flip, height, width):
    net, picture = lively(1, 8), noise(height, width)
    views = []
    for factor in factors:
        size = max(1, round(height * factor)), max(1, round(width * factor))
        views.append(scores_of(net, picture, size).double().softmax(0))
        if flip:
            resized = Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR)
            with torch.no_grad():
                scores = net(normalise(as_batch(np.asarray(resized)[:, ::-1])))
            scores = F.interpolate(scores, size=(height, width), mode="bilinear")
            views.append(scores[0].double().softmax(0).flip(2))
    tta = TTA(tuple(factors), flip)
    found = Predictor(net, tta=tta)(picture, confidences_of=[0, 1])
    assert_alike(found, torch.stack(views).mean(0))


def test_tta_with_extreme_scores_is_finite():
    net = lively(1, 8)
    net.score_fr.bias.data[1] = 1000  # the probability of class 0 is 0 in float32
    assert (Predictor(net, tta=TTA(flip=True))(noise(40, 50)).labels == 1).all()


def test_tta_is_refused_if_its_mean_would_fill_memory():
    picture = np.broadcast_to(np.uint8(0), (2**15, 2**13, 3))
    with pytest.raises(ValueError, match="would take 5 GiB"):
        Predictor(small(5), tta=TTA(flip=True)).views(picture)


def test_tta_in_tiles_matches_whole_pictures():
    net, picture = lively(1, 8), noise(60, 1500)
    whole, tiles = (
        Predictor(net, tile=tile, tta=TTA(flip=True))(picture, confidences_of=[1])
        for tile in (1536, MIN_TILE)
    )
    assert (whole.labels != tiles.labels).sum() <= 3
    assert np.abs(whole.confidences - tiles.confidences.astype(int)).max() <= 1


# ---- number formats and layout ----


@pytest.mark.parametrize("amp, resize", [("off", 1.0), ("bf16", 1.5)])
def test_every_map_of_a_prediction_is_channels_last(amp, resize):
    """Convolutions and pools are fastest in this layout; strides show it."""
    net, maps = prepare(small(3, width=1 / 16), amp, torch.device("cpu")), {}
    for name, layer in net.vgg.named_children():
        layer.register_forward_hook(
            lambda layer, inputs, output, name=name: maps.update({name: output})
        )
    Predictor(net, amp, resize=resize)(noise(90, 130))
    assert len(maps) == 20
    for name, output in maps.items():
        assert min(output.shape[1:]) > 1, "of one channel or row the strides say nothing"
        assert output.is_contiguous(memory_format=torch.channels_last), name
        assert output.dtype == (torch.bfloat16 if amp == "bf16" else torch.float32)
