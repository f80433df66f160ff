"""tools/gpu.py runs every part even if another one fails, and reports the failures."""

from tools import gpu


def test_parts_that_fail_are_reported_and_the_others_run(monkeypatch, capfd):
    parts = {
        "good": (60, "-c print('all_is_well')"),
        "bad": (60, "-c import_sys"),
        "slow": (0.1, "-c while(True):pass"),
        "last": (60, "-c print('the_end')"),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    assert gpu.main() == 1
    said = capfd.readouterr().out
    assert "all_is_well\n\n[good: done" in said and "[bad: FAILED: " in said
    assert said.index("[slow: FAILED") < said.index("the_end\n\n[last: done")
    assert said.endswith("failed: bad, slow\n")
