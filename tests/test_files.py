"""Files that are read whole or refused by name, and that run nothing."""

import pytest
import torch

from support.checkpoint import read_tensors
from support.console import InputError


class Attack:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 cut", b"\x80\x8a foreign bytes", "pickle", "list"]
)
def test_a_file_that_is_no_state_dict_is_one_line_and_runs_nothing(tmp_path, content, capsys):
    file = tmp_path / "w.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(Attack() if content == "pickle" else [1, 2], file)
    with pytest.raises(InputError) as error:
        read_tensors(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert "must not run" not in capsys.readouterr().out


def test_a_missing_file_is_said_by_name(tmp_path):
    with pytest.raises(InputError, match="none.pth"):
        read_tensors(tmp_path / "none.pth")
