"""From parsed arguments to processes that train or evaluate."""

import argparse
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import detectron2.utils.comm as comm
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.engine.launch import DEFAULT_TIMEOUT, launch
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import ProcessExitedException

from ..config import InputError
from ..config.keys import portable_config
from ..config.load import choose_device, config_dir, load_config
from ..evaluation import check_datasets
from ..files import hold_folder, make_folder
from ..weights import Checkpoint, open_weights
from ..weights.stored_config import config_to_use
from .checkpoint import last_checkpoint
from .data_folder import expand
from .finetune import ANNOTATIONS, Data, fit_config, read_own_data, register, wants_own_data
from .hooks import receiving_signals
from .options import TrainingOptions
from .terminal import set_up_log
from .trainer import Trainer, evaluate_model, load_for_evaluation

logger = logging.getLogger(__name__)
T = TypeVar("T")

SHARED_MEMORY = "/dev/shm"
LEAST_SHARED = 256 << 20  # bytes; a container has 64 MB, where nothing else is asked for
WAIT = 20  # seconds for a process that is about to end, as where torchrun was killed
# The zoo's recipes for COCO are for so many GPUs, with two images each.
RECIPE_GPUS, RECIPE_BATCH = 8, 16
SCHEDULE_KEYS = ("IMS_PER_BATCH", "BASE_LR", "STEPS", "MAX_ITER", "REFERENCE_WORLD_SIZE")


@dataclass
class Job:
    """The values that each process of a training or an evaluation needs; they can be pickled."""

    cfg: CfgNode
    args: argparse.Namespace
    data: Data = (None, None)
    """The user's own data, if there are any."""
    checkpoint: Checkpoint | None = None
    """The weights to evaluate."""
    why: str = ""
    """What ``--auto`` has set, and why."""


def prepare(args: argparse.Namespace) -> tuple[Job, int]:
    """Read and check config, machine, weights and data before processes start; join torchrun's.

    Returns:
        the job, and how many processes to start on this machine.

    Raises:
        InputError: an argument, a setting or a file is wrong.
    """
    expand(args)
    # A checkpoint that is evaluated, or that holds the config of the training.
    checkpoint = None if args.config_file and not args.eval_only else _weights_of(args)
    cfg = config_to_use(args.config_file, args.opts, checkpoint)
    required = "MODEL.DEVICE" in args.opts[::2]
    num_processes = choose_device(cfg, args.num_gpus, args.num_processes, required=required)
    joined = join_torchrun(cfg.MODEL.DEVICE)
    world = comm.get_world_size() if joined else num_processes * args.num_machines
    job = Job(cfg, args, checkpoint=checkpoint if args.eval_only else None)
    if wants_own_data(args):
        classes = checkpoint.classes if checkpoint and args.eval_only else {}
        job.data = once(lambda: read_own_data(cfg, args, classes))
        job.why = fit_config(cfg, args, job.data, world, checkpoint)
        register(job.data, cfg.OUTPUT_DIR)
    else:
        check_datasets(cfg, train=not args.eval_only)
    if _is_recipe(cfg, args):
        cfg.SOLVER.REFERENCE_WORLD_SIZE = RECIPE_GPUS
    if cfg.DATALOADER.NUM_WORKERS and not args.eval_only and os.path.isdir(SHARED_MEMORY):
        _warn_of_shared_memory(shutil.disk_usage(SHARED_MEMORY).free)
    return job, num_processes


def _warn_of_shared_memory(free: int) -> None:
    """Warn where there are few bytes of the memory that loaders hand pictures over in."""
    if free < LEAST_SHARED:
        message = "%s has %d MB; where pictures need more, training ends or hangs: give the "
        message += "container more (docker run --shm-size 2g), or set DATALOADER.NUM_WORKERS 0"
        logger.warning(message, SHARED_MEMORY, free >> 20)


def _is_recipe(cfg: CfgNode, args: argparse.Namespace) -> bool:
    """Whether a schedule is that of one of the zoo's recipes, as it stands."""
    in_zoo = config_dir() in Path(args.config_file).resolve().parents
    named = {f"SOLVER.{key}" for key in SCHEDULE_KEYS} & set(args.opts[::2])
    is_set = named or args.auto or cfg.SOLVER.REFERENCE_WORLD_SIZE
    return in_zoo and not is_set and cfg.SOLVER.IMS_PER_BATCH == RECIPE_BATCH


def _weights_of(args: argparse.Namespace) -> Checkpoint | None:
    """The weights that options or config name or, with ``--resume``, the last in the folder."""
    if args.config_file:
        cfg = load_config(args.config_file, args.opts)
        folder, path = cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS
    else:
        given = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
        folder, path = given.get("OUTPUT_DIR", "./output"), given.get("MODEL.WEIGHTS", "")
    path = (last_checkpoint(folder) if args.resume else None) or path
    if not path:
        return None
    if args.eval_only:
        logger.info("Evaluating %s", path)
    return open_weights(path)


def work(job: Job) -> None:
    """Train or evaluate, in each process of the group.

    Raises:
        InputError: the model, the data and the weights do not fit each other, or another process
            trains in the output folder.
        SystemExit: a signal stopped training.
    """
    cfg, args, folder = job.cfg, job.args, Path(job.cfg.OUTPUT_DIR)
    register(job.data, cfg.OUTPUT_DIR)  # in a process that was started for one of several
    with ExitStack() as held:

        def begin() -> None:
            make_folder(folder)
            if not args.eval_only:
                held.enter_context(hold_folder(folder, WAIT))
                for torn in folder.glob(".model_*.part"):  # of a run that was killed
                    torn.unlink()
            if val := job.data[1]:
                val.write(folder / ANNOTATIONS)  # as it was read and repaired

        once(begin)
        set_up_log(cfg.OUTPUT_DIR, args.eval_only)
        default_setup(portable_config(cfg), args)
        if job.why:
            logger.debug("--auto set, where the command line does not:\n%s", job.why)
        if args.eval_only:
            evaluate_model(cfg, load_for_evaluation(cfg, job.checkpoint or ""))
            return
        trainer = Trainer(cfg, TrainingOptions.of(args))
        trainer.resume_or_load(resume=args.resume or _is_restart())
        trainer.train()


def _is_restart() -> bool:
    """Whether torchrun has started processes again, which it does with the command line they had.

    Each machine counts its own restarts.
    """
    return any(
        count != "0" for count in comm.all_gather(os.getenv("TORCHELASTIC_RESTART_COUNT", "0"))
    )


def join_torchrun(device: str) -> bool:
    """Join the group of processes that torchrun, or a launcher with its variables, started.

    The model's device decides how they talk, GPUs by NCCL and CPUs by Gloo. Return whether there is
    such a group, of one process or more.
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
    outcome: Any = None
    if comm.is_main_process():
        try:
            outcome = work()
        except InputError as error:
            outcome = error
    outcome = comm.all_gather(outcome)[0]
    if isinstance(outcome, InputError):
        raise outcome
    return outcome


def start_processes(
    work: Callable[..., None],
    args: tuple,
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> int:
    """Do some work in several processes, in this one if it is one of a group already or alone.

    A signal that this process gets is handed to those that it has started. The arguments are those
    of Detectron2's ``launch``.

    Returns:
        the exit code of a process that failed, else 0; 128 and its number if a signal ended it.
    """
    if dist.is_initialized() or num_processes * num_machines == 1:
        work(*args)
        return 0
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    try:
        with receiving_signals(_end_children):
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


def _end_children(number: int, frame: FrameType | None) -> None:
    """Have the processes that were started end as they do on SIGTERM; they save before."""
    children = active_children()
    for child in children:
        child.terminate()  # a second SIGINT would cut it short
    if not children:
        raise SystemExit(128 + number)
