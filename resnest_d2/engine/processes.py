"""Processes that train together: those of torchrun, or of Detectron2's launcher."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from types import FrameType
from typing import Any, TypeVar

import detectron2.utils.comm as comm
import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT, launch
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import ProcessExitedException

from ..config import InputError

T = TypeVar("T")


def join_torchrun(device: str) -> bool:
    """Join the group of processes that torchrun, or a launcher with its variables, started.

    Args:
        device: of the model; GPUs talk by NCCL, CPUs by Gloo.

    Returns:
        whether there is such a group, of one process or more.
    """
    if dist.is_initialized():
        return True
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return False
    use_gpu = device.startswith("cuda") and torch.cuda.is_available()
    store, rank, world_size = next(rendezvous("env://"))
    # torchrun on one machine keeps its store over restarts, with the addresses of processes that
    # have ended. On several machines each counts its own restarts.
    if os.getenv("LOCAL_WORLD_SIZE") == str(world_size):
        store = dist.PrefixStore(os.getenv("TORCHELASTIC_RESTART_COUNT", "0"), store)
    group = {"store": store, "rank": rank, "world_size": world_size, "timeout": DEFAULT_TIMEOUT}
    dist.init_process_group("nccl" if use_gpu else "gloo", **group)
    if use_gpu:
        # Launchers that name no local rank start one process a machine, or count over its GPUs.
        torch.cuda.set_device(int(os.getenv("LOCAL_RANK", rank % torch.cuda.device_count())))
    comm.create_local_process_group(int(os.getenv("LOCAL_WORLD_SIZE", "1")))
    comm.synchronize()
    return True


def once(work: Callable[[], T]) -> T:
    """Do some work in the first process, and hand its result to all of the group.

    Raises:
        InputError: the work raises it, in all processes.
    """
    if comm.get_world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if comm.is_main_process():
        try:
            outcome[0] = work()
        except InputError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, device=torch.device("cpu") if _is_gloo() else None)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def _is_gloo() -> bool:
    return dist.get_backend() == "gloo"


def start_processes(
    work: Callable[..., None],
    args: tuple,
    num_processes: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
) -> int:
    """Do some work in several processes, in this one if it is one of a group already or alone.

    A signal that this process gets is handed to those that it has started.

    Args:
        work: a function of a module, which the processes import.
        args: its arguments.
        num_processes, num_machines, machine_rank, dist_url: as Detectron2's ``launch`` takes them.

    Returns:
        the exit code of a process that failed, else 0; 128 and its number if a signal ended it.

    Raises:
        InputError: several machines without an address.
    """
    if dist.is_initialized() or num_processes * num_machines == 1:
        work(*args)
        return 0
    if num_machines > 1 and not dist_url.startswith("tcp://"):
        raise InputError(f"--dist-url must be tcp://HOST:PORT for several machines: {dist_url}")
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    try:
        with _signals_to_children():
            everything = (work, args, threads)
            launch(_begin, num_processes, num_machines, machine_rank, dist_url, everything)
    except ProcessExitedException as error:
        return error.exit_code if error.exit_code >= 0 else 128 - error.exit_code
    return 0


def _begin(work: Callable[..., None], args: tuple, threads: int) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)  # the processes of a machine share its cores
    work(*args)
    dist.destroy_process_group()


@contextmanager
def _signals_to_children() -> Iterator[None]:
    """Have the processes that were started end as they do on SIGTERM; they save before."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        if not active_children():
            sys.exit(128 + number)
        for child in active_children():
            os.kill(child.pid, signal.SIGTERM)  # a second SIGINT would cut them short

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
