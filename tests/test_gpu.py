"""tools/gpu.py: a part that fails does not keep the others from running, and the report says so."""

import pytest
import torch

from tools.gpu import Report, main


def test_parts_that_fail_are_reported_and_the_others_run(tmp_path):
    report = Report(tmp_path / "new/report.txt")
    report.run("good", 60, "-c", "print('all is well')")
    report.run("bad", 60, "-c", "import sys; sys.exit('no such thing')")
    report.run("slow", 0.1, "-c", "while True: pass")
    report.run("impossible", 60, "-c", "null byte: \0")
    report.run("last", 60, "-c", "print('the end')")
    said = (tmp_path / "new/report.txt").read_text()
    assert report.failed == ["bad", "slow", "impossible"]
    assert "all is well\n\n[good: done" in said and "no such thing\n\n[bad: FAILED: " in said
    assert said.index("[slow: FAILED") < said.index("the end\n\n[last: done")


def test_nothing_is_begun_without_a_gpu_or_an_empty_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "mine").write_text("mine")
    for out, reason in ((tmp_path, "is not empty"), (tmp_path / "new", "finds no CUDA GPU")):
        with pytest.raises(SystemExit):
            main(["--out", str(out)])
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
