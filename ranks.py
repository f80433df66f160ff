"""Several processes, one run: torchrun --nproc_per_node=2 train.py --data DIR --batch-size 2

The engine is PyTorch's: torchrun starts the processes, torch.distributed carries numbers between them, and
DistributedDataParallel averages the gradients while they are still being computed. Here is what else one run in several
processes has to agree on. A batch is divided among them, so that the steps are those of one process with the same
batch, but for the masks of dropout; images of an evaluation are divided too, and their counts added up. The first process
(rank 0) reports and writes.
Without torchrun there is one process, and all of this comes to nothing.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist


class Ranks:
    """The processes of this run. `rank` 0 ... `size` - 1 is this one, `first` whether it is rank 0, `local` its number on
    its machine, which is also that of its GPU."""

    def __init__(self):
        self.rank, self.size, self.local = (int(os.environ.get(name, default)) for name, default in
                                            (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        self.first = self.rank == 0

    def join(self, first: bool):
        """Meet the others: called by all, once with first=False before setting up and once with first=True after it.

        The first process joins at the second call, the others wait for it at the first one. So they begin when it is
        through with all that can go wrong, or are ended by torchrun when it was not, and such errors are said once.
        """
        if self.size == 1 or first != self.first:
            return
        if not first:
            sys.stdout = open(os.devnull, "w")
        nccl = torch.cuda.is_available() and dist.is_nccl_available()  # not on Windows
        # Hours, since the first may have weights to download and many files to read.
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=timedelta(hours=6))

    def leave(self):
        """Part from the others. Threads of gloo that outlive the group would abort Python at its end."""
        if self.size > 1:
            with suppress(RuntimeError):  # the others are gone
                self.largest(0)           # all have come so far: nothing is under way any more
            gc.collect()                  # the parallel network, which holds the group
            dist.destroy_process_group()

    def lost(self, error: Exception) -> str:
        """One line where an error is that another process has ended, "" of any other. That one says why."""
        text = (str(error).splitlines() or [""])[0]
        return f"process {self.rank} lost the others ({text})" if self.size > 1 and re.search(
            "gloo|NCCL|ProcessGroup|[Cc]onnection|TCPStore|recvValue|sendBytes", str(error)) else ""

    def share(self, items: list) -> list:
        """This process's part of a list: every size-th item."""
        return items[self.rank::self.size]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place. On a GPU nobody waits for it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers. It goes by the processors: the GPU is not waited for."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def spread(self, net: torch.nn.Module):
        """Give all processes the first one's weights."""
        if self.size > 1:
            for tensor in net.state_dict().values():
                dist.broadcast(tensor, 0)

    def gather(self, item) -> list:
        """The items of all processes, by rank. Tensors in them must not be on a GPU."""
        items = [item] * self.size
        if self.size > 1:
            dist.all_gather_object(items, item)
        return items
