"""Several processes, one run: torchrun --nproc_per_node=2 train.py --data DIR --batch-size 2

PyTorch does the work: torchrun starts the processes, torch.distributed carries numbers between
them, and DistributedDataParallel averages the gradients while they are still being computed. Here
is what else the processes of one run have to agree on. Each batch is divided among them, so the
steps are those of one process with the same batch, except for the masks of dropout. The images of
an evaluation are divided too, and the counts are added up. The first process (rank 0) reports and
writes.

Without torchrun there is one process, and every method here does nothing.
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

from support.console import one_line

# How long a process waits for the others. While they set up, one may have weights to download and
# many files to read, and their shares of an evaluation may take them different times. But in a
# training step all are together, and if one does not come, its machine is lost.
PATIENT, PROMPT = timedelta(hours=6), timedelta(minutes=10)


class Ranks:
    """The processes of this run.

    rank     this process: 0 ... size - 1
    size     how many there are
    local    the number of this process on its machine, which is also the number of its GPU
    first    whether this is rank 0
    """

    def __init__(self):
        self.rank, self.size, self.local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        self.first = self.rank == 0
        self.patient = self.prompt = None  # two groups of all processes
        if self.size > 1:
            nccl = torch.cuda.is_available() and dist.is_nccl_available()  # not on Windows
            # What the GPUs exchange has the long time: NCCL would abort the process. `largest`, in
            # every step, notices first.
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=PATIENT if nccl else PROMPT
            )
            self.patient = dist.new_group(backend="gloo", timeout=PATIENT)
            self.prompt = dist.new_group(backend="gloo", timeout=PROMPT)

    def silence_others(self):
        """From here on the first process alone prints on standard output."""
        if not self.first:
            sys.stdout = open(os.devnull, "w")

    def wait_for_first(self):
        """All processes but the first wait here until it calls `let_others_in`.

        So the first process alone says what is wrong with the input. If it ends, the others end
        too, and say nothing.
        """
        if self.size > 1 and not self.first:
            try:
                dist.barrier(self.patient)
            except RuntimeError:
                self.end()
                raise SystemExit(2) from None

    def let_others_in(self):
        """The first process is ready: the others go on."""
        if self.size > 1 and self.first:
            dist.barrier(self.patient)

    def leave(self):
        """Part from the others, together."""
        with suppress(RuntimeError):  # the others are gone
            self.largest(0)  # all have come so far: nothing is under way any more
        self.end()

    def end(self):
        """Part from the others without waiting for them. Gloo's threads would abort Python if they
        outlived the group.
        """
        if self.size > 1 and dist.is_initialized():
            gc.collect()  # the parallel network, which holds the group
            self.patient = self.prompt = None
            dist.destroy_process_group()

    def lost(self, error: Exception) -> str:
        """One line if an error means that another process has ended; that one says why. "" for any
        other error.
        """
        return (
            f"process {self.rank} lost the others ({one_line(error)})"
            if self.size > 1
            and re.search(
                "gloo|NCCL|ProcessGroup|[Cc]onnection|TCPStore|recvValue|sendBytes", str(error)
            )
            else ""
        )

    def share(self, items: list) -> list:
        """This process's part of a list: every size-th item."""
        return items[self.rank :: self.size]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place. A GPU is not waited for."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers. The numbers go by the CPU, so a GPU is not waited
        for.
        """
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.prompt)
        return int(tensor)

    def spread(self, net: torch.nn.Module):
        """Give all processes the first one's weights."""
        if self.size > 1:
            for tensor in net.parameters():
                dist.broadcast(tensor.detach(), 0)

    def gather(self, item) -> list:
        """The items of all processes, by rank. Tensors in them must not be on a GPU."""
        items = [item] * self.size
        if self.size > 1:
            dist.all_gather_object(items, item, group=self.patient)
        return items
