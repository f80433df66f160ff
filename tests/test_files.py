"""Files are read whole or refused by name, and never run code."""

import os
import pickle
import zipfile

import pytest
import torch
from conftest import saved, small

from fcn import FCN8s
from support.checkpoint import read_checkpoint, read_tensors
from support.console import InputError
from support.files import write_csv
from support.training.initialise import read_weights


class Attack:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 cut", pickle.dumps(Attack()), Attack(), [1, 2]]
)
def test_a_file_without_a_state_dict_is_refused_and_runs_nothing(tmp_path, content, capsys):
    """Neither for predict.py and --resume, nor for --weights."""
    file = tmp_path / "w.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    for read in (read_checkpoint, read_weights):
        with pytest.raises(InputError) as error:
            read(file)
        assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert "must not run" not in capsys.readouterr().out


def test_a_compressed_file_is_refused_before_it_fills_memory(tmp_path):
    """torch.save does not compress, so it never writes 1 MB of zeros as 10 kB."""
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"zeros": torch.zeros(250_000)}, plain)
    with zipfile.ZipFile(plain) as a, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as b:
        for name in a.namelist():
            b.writestr(name, a.read(name))
    assert len(read_tensors(plain)["zeros"]) == 250_000
    with pytest.raises(InputError, match="packed.pt: is damaged"):
        read_tensors(packed)


def test_only_a_regular_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path):
        with pytest.raises(InputError, match="written .it is not a regular file.; choose"):
            write_csv(path, [{"a": 1}])
    assert (tmp_path / "pipe.csv").is_fifo()


def test_a_file_name_may_be_as_long_as_the_system_allows(tmp_path):
    write_csv(tmp_path / ("ä" * 125 + ".csv"), [{"a": 1}])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "entry, value",
    [
        ("format", 0),
        ("classes", ["sky", "\x1b[2J"]),
        ("config", {"num_classes": 2}),  # of a wider network
        ("model", {"score_fr.bias": torch.full((2,), torch.nan)}),
    ],
)
def test_an_unusable_checkpoint_is_refused_in_one_line(tmp_path, entry, value):
    path = saved(tmp_path / "best.pt", small(), ["sky", "road"])
    torch.save({**read_tensors(path), entry: value}, path)
    with pytest.raises(InputError, match="best.pt: ") as error:
        FCN8s.load(path)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)
