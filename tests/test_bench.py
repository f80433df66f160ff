"""tools/bench.py: what its table says follows from the rounds."""

import pytest

from tools import bench


def test_ratios_and_shares_are_medians_over_rounds_in_which_the_cases_took_turns():
    cases = ["prediction: published", "prediction: bf16"]
    about = {
        "ceiling": {"machine": "a machine", "what": "a product"},
        cases[0]: {"flop": 8e9, "images": 1},
        cases[1]: {"flop": 2e9, "images": 8},
    }

    def measured(slowness, published, ours):
        """A round in which all took so much longer; the ceiling of bf16 is 4 GFLOP/s, of fp32 2."""
        return {
            "ceiling": {"fp32": 2e9 / slowness, "bf16": 4e9 / slowness, "seconds": 0},
            cases[0]: {"seconds": published * slowness, "memory": 3 * 2**30},
            cases[1]: {"seconds": ours * slowness, "memory": 2**30},
        }

    lines = bench.table(
        cases, about, [measured(1, 8, 2), measured(5, 8, 2), measured(1, 8, 100)]
    ).splitlines()
    assert lines[0] == "a machine" and "fp32 2 GFLOP/s, bf16 4 GFLOP/s" in lines[1]
    published, ours = (line.split() for line in lines[-2:])
    assert published[:2] == ["prediction:", "published"] and published[-4:] == [
        "50%",
        "3.00",
        "GiB",
        "1.00x",
    ]
    assert ours[:2] == ["prediction:", "bf16"] and ours[-4:] == ["25%", "1.00", "GiB", "4.00x"]
    assert float(ours[6]) == pytest.approx(0.8)  # images/s: 8 in 10 seconds
    assert float(ours[2]) == pytest.approx(10) and ours[3:6] == [
        "(2",
        "to",
        "100)",
    ]  # seconds: median, fastest to slowest
