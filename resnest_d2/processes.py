"""Processes that work together: joined if torchrun started them, else started by its engine.

Detectron2's options of several machines keep their meaning; PyTorch's elastic launcher starts and
watches the processes, on CPUs as on GPUs.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import detectron2.utils.comm as comm
import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.rendezvous import rendezvous

from .config import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

RUN_ID = "resnest_d2"
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
# Launchers that start several processes and leave it to these to find each other, by the variable
# that tells how many.
OTHER_LAUNCHERS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun"}
OTHER_LAUNCHERS |= {"PMI_SIZE": "mpirun"}


class ProcessError(RuntimeError):
    """A process that was started has failed; it has said why.

    Attributes:
        exit_code: of the process that failed; 128 and the signal's number if one ended it.
    """

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code if exit_code >= 0 else 128 - exit_code
        super().__init__(f"a process of the group ended with exit code {self.exit_code}")


def in_first_process(work: Callable[[], T]) -> T | None:
    """Do some work in the first process; this is called in all of the group at once.

    Returns:
        what the work returns; None in the other processes.

    Raises:
        OSError, ValueError: what the work raises, in all processes.
    """
    result = error = None
    if comm.is_main_process():
        try:
            result = work()
        except (OSError, ValueError) as raised:
            error = raised
    if error := comm.all_gather(error)[0]:
        raise error
    return result


@contextmanager
def kept_handlers(*numbers: int) -> Iterator[None]:
    """Have signals do afterwards what they did before."""
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # one that C code has set
                    signal.signal(number, handler)


def require_alone() -> None:
    """See that no launcher started this process together with others.

    Raises:
        InputError: a launcher did, and no process would know of the others.
    """
    if dist.is_initialized():
        return
    if (world_size := int(os.getenv("WORLD_SIZE", "1"))) > 1:
        raise InputError(
            f"this is process {os.getenv('RANK')} of {world_size} that torchrun started, "
            "and works as if it were alone: start it without torchrun, or let it join the others "
            "by resnest_d2.processes.join_processes(device)"
        )
    for variable, launcher in OTHER_LAUNCHERS.items():
        number = os.getenv(variable, "1")
        if number.isdigit() and int(number) > 1:
            raise InputError(
                f"{launcher} started {number} processes that do not know of each other; start one "
                f"a machine: {launcher} ... torchrun --nnodes ... --nproc_per_node ..."
            )


def join_processes(device: str, num_machines: int = 1) -> bool:
    """Join the group of processes that torchrun, or a launcher with its variables, started.

    Args:
        device: of the model; GPUs talk by NCCL, CPUs by Gloo.
        num_machines: that the command line names, whose processes will find each other.

    Returns:
        whether there is such a group, of one process or more.

    Raises:
        InputError: a launcher started several processes without telling them of each other.
    """
    if dist.is_initialized():
        return True
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        if num_machines == 1:
            require_alone()
        return False
    use_gpu = device.startswith("cuda") and torch.cuda.is_available()
    store, rank, world_size = next(rendezvous("env://"))
    if os.getenv("LOCAL_WORLD_SIZE") == str(world_size):
        # torchrun's default rendezvous keeps its store over restarts, with the addresses in it. On
        # several machines each has its own count of restarts.
        store = dist.PrefixStore(os.getenv("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(
        "nccl" if use_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=DEFAULT_TIMEOUT,
    )
    if use_gpu:
        # Launchers that name no local rank start one process a machine, or count over its GPUs.
        torch.cuda.set_device(int(os.getenv("LOCAL_RANK", rank % torch.cuda.device_count())))
    comm.create_local_process_group(int(os.getenv("LOCAL_WORLD_SIZE", "1")))
    comm.synchronize()
    return True


def describe_processes() -> str:
    """How many processes work together, who started them and how they talk, in one line."""
    if not dist.is_initialized():
        return "one process"
    number, here = dist.get_world_size(), comm.get_local_size()
    text = f"{number} process{'es' * (number > 1)}, {here} on this machine, by "
    run_id = os.getenv("TORCHELASTIC_RUN_ID")
    if run_id == RUN_ID:
        text += "this command"
    else:
        text += "the launcher" if run_id is None else "torchrun"
    if job := os.getenv("SLURM_JOB_ID"):
        text += f" in Slurm's job {job}"
    restarts = os.getenv("TORCHELASTIC_RESTART_COUNT", "0")
    text += f", restart {restarts}" if restarts != "0" else ""
    return f"{text}, over {dist.get_backend()}"


def launchers() -> list[str]:
    """The torchruns that started the group, one a machine, in all processes at once."""
    if not dist.is_torchelastic_launched():
        return []
    run_id = os.getenv("TORCHELASTIC_RUN_ID")
    status = Path(f"/proc/{os.getppid()}/stat")  # of containers, names and numbers repeat
    begun = status.read_text().rpartition(")")[2].split()[19] if status.is_file() else ""
    return sorted(set(comm.all_gather(f"{run_id} {socket.gethostname()} {os.getppid()} {begun}")))


def start_processes(
    work: Callable[..., Any],
    args: tuple,
    device: str,
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> None:
    """Do some work in several processes, in this one if it is one of a group already or alone.

    Args:
        work: a function of a module, which the processes import.
        args: its arguments.
        device: of the model.
        num_processes: on this machine.
        num_machines: on each of which this is called.
        machine_rank: the number of this one.
        dist_url: where the processes of several machines meet, "tcp://HOST:PORT".

    Raises:
        InputError: several machines without an address.
        ProcessError: a process failed.
        SystemExit: a signal ended all; the exit code is 128 and its number.
    """
    if dist.is_initialized() or num_processes * num_machines == 1:
        work(*args)
        return
    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    if num_machines > 1:
        address = urlparse(dist_url)
        if address.scheme != "tcp" or not address.port:
            raise InputError(f"--dist-url must be tcp://HOST:PORT for several machines: {dist_url}")
        place = {"rdzv_backend": "static", "rdzv_endpoint": address.netloc}
        place["rdzv_configs"] = {"rank": machine_rank}
    config = LaunchConfig(
        min_nodes=num_machines,
        max_nodes=num_machines,
        nproc_per_node=num_processes,
        run_id=RUN_ID,
        max_restarts=0,
        **place,
    )
    if hasattr(config, "signals_to_handle"):  # of newer PyTorch
        config.signals_to_handle += ",SIGUSR1"
    logger.info("Starting %d processes on %d machine(s)", num_processes, num_machines)
    level = logging.getLogger("torch.distributed.elastic").level
    # The process that fails says why; the launcher would say the same in forty lines.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        with kept_handlers(*HANDLED):  # by the launcher
            elastic_launch(config, _join_and_work)(work, args, device)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        # Processes that lose the one that failed end with 1, or by the launcher's SIGTERM.
        causes = [code for code in codes if code not in (1, -signal.SIGTERM)]
        raise ProcessError((causes or codes)[0]) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    finally:
        logging.getLogger("torch.distributed.elastic").setLevel(level)


def _join_and_work(work: Callable[..., Any], args: tuple, device: str) -> None:
    join_processes(device)
    work(*args)
    dist.destroy_process_group()
