"""Images of any size, tile by tile: the scores are those of the whole image, and no part is larger
than the tile.
"""

import pytest
import torch
from conftest import PADS, STRIDES, lively, small
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fcn import cross_entropy
from support.inference.predictor import halo_for, predict_image, tiled
from support.labels import IGNORE


@settings(max_examples=4)
@given(
    more=st.integers(1, 150),
    width=st.integers(600, 800),
    tile=st.integers(640, 720),
    pad=PADS,
    stride=STRIDES,
)
@example(more=1, width=3000, tile=544, pad=1, stride=8)  # a strip of a hundred rows
@example(more=150, width=721, tile=720, pad=1, stride=8)  # seams in both directions
@example(more=150, width=721, tile=720, pad=100, stride=8)
def test_an_image_in_tiles_has_the_scores_of_the_whole_image(more, width, tile, pad, stride):
    net = lively(pad, stride)
    height = tile * tile // width + more  # a little more than fits
    image = torch.randn(1, 3, height, width)
    whole, pieces = net(image), torch.full((1, 2, height, width), torch.nan)
    parts = 0
    for rows, columns, scores in tiled(net, image, net.reach, tile):
        assert pieces[:, :, rows, columns].isnan().all(), "the parts must not overlap"
        pieces[:, :, rows, columns] = scores
        parts += 1
    assert parts > 1
    assert whole.std() > 1e-3 * whole.abs().max(), "scores that are all alike would prove nothing"
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5 * whole.abs().max().item())


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), tile=st.integers(608, 2000))
def test_no_part_of_a_tiled_image_is_larger_than_the_tile(height, width, tile):
    def compute(part):
        assert part.shape[2] * part.shape[3] <= tile * tile
        return part[:, :1]

    covered = torch.zeros(1, dtype=torch.long)
    image = torch.zeros(1, 1, 1, 1).expand(1, 3, height, width)
    for rows, columns, _ in tiled(compute, image, 245, tile):
        covered += (rows.stop - rows.start) * (columns.stop - columns.start)
    assert covered == height * width


@pytest.mark.parametrize("pad", [1, 100])
@pytest.mark.parametrize("stride, reach", [(8, 245), (16, 241), (32, 233)])
def test_a_pixel_changes_the_scores_as_far_as_the_reach_and_no_farther(pad, stride, reach):
    net = small(pad=pad, stride=stride, width=1 / 64, fc_channels=1).double().eval()
    for name, p in net.named_parameters():
        if "upscore" not in name:
            p.data.fill_(0.5)  # all positive: no influence cancels, no ReLU closes
    assert net.reach == reach and halo_for(net.reach) == 256
    image = torch.zeros(1, 3, 640, 64, dtype=torch.double)  # narrow: rows will do
    before, farthest = net(image), 0
    for pixel in range(288, 320):  # each place that a pixel can have in a cell of 32
        image[..., pixel, 32] = 1.0
        rows = (net(image) != before).any(1).any(2)[0].nonzero().flatten()
        image[..., pixel, 32] = 0.0
        farthest = max(farthest, pixel - rows[0].item(), rows[-1].item() - pixel)
    assert reach - 1 <= farthest <= reach


def test_a_tile_of_nothing_but_halo_is_refused():
    with pytest.raises(ValueError, match="at least 544"):
        next(tiled(None, torch.zeros(1, 3, 600, 600), 245, 543))


def test_classes_confidence_and_loss_of_a_tiled_image_are_those_of_its_scores():
    net = lively(1, 8)
    image, labels = torch.randn(1, 3, 700, 580), torch.randint(0, 2, (1, 700, 580))
    labels[:, :90] = IGNORE
    assert len(list(tiled(net, image, net.reach, 600))) > 1
    classes, (other, confidence), value = predict_image(
        net, image, net.reach, 600, sought=(0, 1), labels=labels
    )
    scores = net(image)
    assert (classes != scores[0].argmax(0)).sum() <= 3  # a tie may fall either way
    assert (confidence - 255 * scores[0].softmax(0)[1]).abs().max() <= 0.5 + 1e-4
    assert (other - 255 * scores[0].softmax(0)[0]).abs().max() <= 0.5 + 1e-4
    assert value.item() == pytest.approx(cross_entropy(scores, labels).item(), rel=1e-5)


def test_an_image_that_fits_the_tile_is_computed_in_one_piece():
    parts = list(tiled(lambda image: image, torch.zeros(1, 3, 600, 600), 245, 600))
    assert [(rows, columns) for rows, columns, _ in parts] == [(slice(0, 600), slice(0, 600))]
