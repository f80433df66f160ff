"""Reading safetensors files, the format in which many weights are published, without a package for
it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from support.console import InputError

# I64 is no weight, but networks with batch normalisation count in it: they shall fail by name, not
# by number format.
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
SAFETENSORS_HEADER = 100_000_000  # bytes; the format allows no longer one


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a safetensors file: 8 bytes of header length (little-endian), the header
    (JSON), numbers.

    As in the format's description (github.com/huggingface/safetensors), the tensors tile the rest
    of the file without gap or overlap; so a file cannot claim more memory than its size. Raises
    InputError for any file that is not so, for tensors of other types than SAFETENSORS_DTYPES, and
    for empty tensors.
    """

    def broken(why: str) -> InputError:
        return InputError(f"{path}: damaged, or not a safetensors file ({why})")

    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, SAFETENSORS_HEADER):
            raise broken(f"a header of {length} bytes in a file of {size}")
        entries = []
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
                if dtype not in SAFETENSORS_DTYPES:
                    raise InputError(
                        f"{path}: {name!r:.80} holds {dtype!r:.20}, not {' or '.join(SAFETENSORS_DTYPES)}"
                    )
                # type() and not isinstance(): True is an int, but no size
                if (
                    not all(type(n) is int for n in (*shape, begin, end))
                    or any(n < 1 for n in shape)
                    or len(shape) > 8
                ):
                    raise broken(f"the sizes of {name!r:.80} make no sense")
                if end - begin != math.prod(shape) * SAFETENSORS_DTYPES[dtype].itemsize:
                    raise broken(f"{name!r:.80} has the wrong number of bytes")
                entries.append((begin, end, name, dtype, tuple(shape)))
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
        ):  # other JSON, or none
            raise broken("the header makes no sense") from None

        entries.sort()
        if [0, *(end for _, end, *_ in entries)] != [
            *(begin for begin, *_ in entries),
            size - 8 - length,
        ]:
            raise broken("the tensors do not fill it exactly")
        tensors = {}
        for begin, end, name, dtype, shape in entries:
            numbers = bytearray(end - begin)
            file.readinto(numbers)
            tensors[name] = torch.frombuffer(numbers, dtype=SAFETENSORS_DTYPES[dtype]).reshape(
                shape
            )
    return tensors
