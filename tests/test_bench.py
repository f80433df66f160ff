"""tools/bench.py counts operations, and computes its table from the rounds."""

import pytest

from tools.bench import operations, table


@pytest.mark.parametrize("case, gflop", [("published", 618.7), ("fp32", 398.7)])
def test_a_kitti_image_takes_the_operations_that_the_docs_give(case, gflop):
    """docs/network.md gives these numbers."""
    assert operations("prediction", case, 1, 375, 1242) == pytest.approx(1e9 * gflop, abs=5e7)


def test_ratios_and_shares_are_medians_over_the_rounds():
    """A round in which all cases take five times as long changes neither."""
    published, bf16 = ("prediction", "published"), ("prediction", "bf16")
    rounds = [
        {
            "fp32": 2e9 / slow,
            "bf16": 4e9 / slow,
            published: (8 * slow, 3 * 2**30),
            bf16: (ours * slow, 2**30),
        }
        for slow, ours in ((1, 2), (5, 1), (1, 100))
    ]
    lines = table({published: 8e9, bf16: 2e9}, 8, rounds).splitlines()
    assert "fp32 2 GFLOP/s, bf16 4 GFLOP/s" in lines[0]
    published, ours = (line.split() for line in lines[-2:])
    assert published[-4:] == ["50%", "3.00", "GiB", "1.00x"]
    assert ours[2:6] == ["5", "(2", "to", "100)"]  # seconds: median, fastest to slowest
    assert ours[6:] == ["1.6", "25%", "1.00", "GiB", "4.00x"]  # 8 images in 5 seconds
