"""Files are read whole or refused by name, and never run code."""

import contextlib
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from conftest import picture, saved, small
from hypothesis import given, settings
from hypothesis import strategies as st

import predict
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
    for read in (read_checkpoint, lambda path: read_weights(path, "auto")):
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


# ---- untrusted checkpoints ----

SIZES = dict.fromkeys(("smallest", "median", "largest"), (20, 30))
SETTINGS = dict(task="road", classes="all", images="auto", masks="auto", split_seed=0, flip="yes")
STRANGE = [
    *(None, True, -1, 0, 7, 2**70, 1.5, float("nan"), float("inf"), "text", "\x1b[2J", b"bytes"),
    *([], {}, (1, 2), [1, None], {"a": {}}, {1: 2}),
    *(torch.ones(2), torch.ones(2, 2, device="meta"), torch.eye(2).to_sparse(), torch.ones(())),
    *(torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.int8), torch.empty(0)),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a.png, and the content of a checkpoint as train.py writes it."""
    folder = tmp_path_factory.mktemp("run")
    picture(folder / "a.png", np.zeros((8, 9, 3)))
    content = read_tensors(saved(folder / "best.pt", small(), ["sky", "road"]))
    about = {"settings": SETTINGS, "images": [["a.png"], ["b.png"]], "sizes": SIZES}
    return folder, {**content, **about}


def places(value, path=()):
    """The path of each entry of a nested dictionary or list."""
    if isinstance(value, (dict, list, tuple)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, name)
            yield from places(inner, (*path, name))


def changed(content, place, value):
    """A copy in which the entry at this place has another value."""
    name, *inner = place
    value = changed(content[name], inner, value) if inner else value
    if isinstance(content, dict):
        return {**content, name: value}
    return type(content)(value if i == name else old for i, old in enumerate(content))


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
    "place, value",
    [
        (("format",), torch.ones(2)),
        (("classes", 0), 7),
        (("classes", 0), "\x1b[2J"),
        (("resize_factor",), float("nan")),
        (("resize_factor",), -1.0),
        (("sizes", "median"), (20,)),
        (("settings", "images"), 5),
        (("config", "pad"), True),
        (("config", "stride"), 8.0),
        (("config", "dropout"), 7.0),
        (("config", "width"), 2.0**62),
        (("model", "score_fr.bias"), None),
    ],
)
def test_a_wrong_checkpoint_entry_is_refused_in_one_line(run, place, value):
    folder, content = run
    torch.save(changed(content, place, value), folder / "best.pt")
    with pytest.raises(InputError, match="best.pt: ") as error:
        FCN8s.load(folder / "best.pt")
    assert "\n" not in str(error.value)


@settings(max_examples=60)
@given(data=st.data(), value=st.sampled_from(STRANGE))
def test_a_strange_checkpoint_entry_predicts_or_is_refused(run, data, value):
    folder, content = run
    entry = data.draw(st.sampled_from(list(content)))
    inner = data.draw(st.sampled_from([(), *places(content[entry])]))
    photo, path = folder / "a.png", folder / "best.pt"
    torch.save(changed(content, (entry, *inner), value), path)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = predict.main([str(path), str(photo), "--only", "none"])
    assert status in (0, 2) and "\x1b" not in said.getvalue()
    if status == 2:
        error = said.getvalue()
        assert error.startswith(f"predict.py: error: {path}") and error.count("\n") == 1
