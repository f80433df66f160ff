"""make gpu: one part that fails does not keep the others from running, and the report says so. Its
parts run here in small.
"""

import subprocess

import pytest
from conftest import log_of

from tools import gpu
from tools.gpu import Report, killed

TINY = [
    "--width",
    "0.0625",
    "--fc-channels",
    "16",
    "--crop",
    "32x64",
    "--weights",
    "none",
    "--workers",
    "1",
    "--device",
    "cpu",
    "--amp",
    "off",
]


def test_every_part_runs_and_the_report_and_the_status_say_which_failed(
    tmp_path, monkeypatch, capsys
):
    done = []

    def run(self, *command, limit):
        done.append(command)
        if command[0] == "-m":
            raise subprocess.TimeoutExpired(command, limit)

    monkeypatch.setattr(Report, "run", run)
    monkeypatch.setattr(
        gpu, "trained", lambda report, out, *options, limit: done.append(("trained", *options))
    )
    monkeypatch.setattr(
        gpu, "killed", lambda report, out, *options: done.append(("killed", *options))
    )
    assert (
        gpu.main(["--device", "cpu", "--out", str(tmp_path / "out"), "--data", "camvid", "--small"])
        == 1
    )
    said = (tmp_path / "out/report.txt").read_text()
    assert said == capsys.readouterr().out and said.endswith("failed: tests\n")
    assert [command[0] for command in done] == ["-m", "trained", "trained", "killed"]
    assert "--data" in done[2] and all("cpu" in command for command in done[1:])
    assert "fc6 as one matrix product" in said and "each by itself" in said


def test_a_run_is_killed_and_resumed_and_ends_like_one_that_was_not(scenes, tmp_path, capsys):
    killed(Report(tmp_path / "report.txt"), tmp_path, "--data", str(scenes), *TINY)
    assert (
        log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
        and len(log_of(tmp_path / "whole")) == 4
    )
    assert "going on after step" in (tmp_path / "report.txt").read_text()


def test_without_a_gpu_or_an_empty_folder_nothing_is_begun(tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path), "--device", "cpu"])
    assert "is not empty" in capsys.readouterr().err
    assert gpu.main(["--out", str(tmp_path / "new"), "--device", "tpu"]) == 2
    assert "--device tpu" in capsys.readouterr().err and not (tmp_path / "new").exists()
