"""Several processes, one run: torchrun --nproc_per_node=2 train.py --data DIR --batch-size 2

torchrun starts the processes, torch.distributed connects them, and DistributedDataParallel averages
the gradients during the backward pass. This file does the rest. Each batch is sharded, so the steps
are those of one process with the same batch, up to rounding and dropout masks. The images of an
evaluation are sharded too, and the counts are added up. Only the first process (rank 0) reports and
writes.

Without torchrun there is one process, and nothing here communicates.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import warnings
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from support.console import one_line

# How long a process waits for the others. In set-up, the first may download weights and read many
# files; shards of an evaluation may take different times. In a training step, a process this late
# is lost.
SET_UP_TIMEOUT, STEP_TIMEOUT = timedelta(hours=6), timedelta(minutes=10)


class Ranks:
    """The processes of this run.

    rank     this process: 0 ... size - 1
    size     number of processes
    local    index of this process on its machine, and of its GPU
    first    whether this is rank 0
    """

    def __init__(self):
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.local = int(os.environ.get("LOCAL_RANK", 0))
        self.first = self.rank == 0
        self.patient = self.prompt = None  # two groups of all processes, by timeout
        if self.size > 1:
            nccl = torch.cuda.is_available() and dist.is_nccl_available()  # not on Windows
            # NCCL aborts the process after its timeout, so it gets the long one. `max` uses gloo on
            # the CPU: it notices a lost process earlier, and raises an error.
            backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
            dist.init_process_group(backend, timeout=SET_UP_TIMEOUT if nccl else STEP_TIMEOUT)
            # For a weight with sizes of 1, such as a score layer's [C, I, 1, 1], the gradient may
            # have other strides. DistributedDataParallel then warns of a copy, which is small.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            self.patient = dist.new_group(backend="gloo", timeout=SET_UP_TIMEOUT)
            self.prompt = dist.new_group(backend="gloo", timeout=STEP_TIMEOUT)

    def wait_for_first(self):
        """Wait for the first process; returns the value that it passes to `let_others_in`.

        So only the first process checks the input and reports errors; if it ends, the others end
        silently. In the first process, returns None at once.
        """
        if self.first:
            return None
        sys.stdout = open(os.devnull, "w")  # only the first process reports
        passed = [None]
        try:
            dist.broadcast_object_list(passed, 0, group=self.patient)
        except RuntimeError:
            self.end()
            raise SystemExit(2) from None
        return passed[0]

    def let_others_in(self, passed):
        """In the first process, pass a value to the others, which then go on."""
        if self.size > 1 and self.first:
            dist.broadcast_object_list([passed], 0, group=self.patient)

    def leave(self):
        """Leave the group once all processes have come this far."""
        with suppress(RuntimeError):  # the others are gone
            self.max(0)  # waits for all, so that no operation is left unfinished
        self.end()

    def end(self):
        """Leave the group without waiting for the others."""
        if self.size > 1 and dist.is_initialized():
            gc.collect()  # frees the parallel network, which holds the group
            self.patient = self.prompt = None
            # Gloo's threads would abort Python if they outlived the group.
            dist.destroy_process_group()

    def lost(self, error: Exception) -> str:
        """One line if the error means that another process has ended; "" for any other error."""
        said = "gloo|NCCL|ProcessGroup|[Cc]onnection|TCPStore|recvValue|sendBytes"
        if self.size == 1 or not re.search(said, str(error)):
            return ""
        return f"process {self.rank} lost the others ({one_line(error)}); continue with --resume"

    def shard(self, items: list) -> list:
        """This process's part of a list: every size-th item."""
        return items[self.rank :: self.size]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes, in place, without waiting for a GPU."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max(self, number: int) -> int:
        """The maximum over all processes, computed on the CPU without waiting for a GPU."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.prompt)
        return int(tensor)

    def broadcast(self, net: torch.nn.Module):
        """Copy the weights of the first process to all others."""
        if self.size > 1:
            for tensor in net.parameters():
                dist.broadcast(tensor.detach(), 0)

    def gather(self, item) -> list:
        """The items of all processes, by rank. Tensors in them must be on the CPU."""
        items = [item] * self.size
        if self.size > 1:
            dist.all_gather_object(items, item, group=self.patient)
        return items
