"""From parsed arguments to processes that train or evaluate."""

import argparse
import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import detectron2.utils.comm as comm
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup
from detectron2.utils.logger import setup_logger

from ..config import InputError
from ..config.keys import portable_config
from ..config.load import choose_device, load_config
from ..config.settings import EVALUATION_KEYS, Settings
from ..evaluation import check_datasets
from ..evaluation.coco import choose_implementation
from ..files import hold_folder, write_text
from ..processes import describe_processes, in_first_process, join_processes, launchers
from ..weights.stored_config import load_config_of_weights
from .evaluate import evaluate_model, load_for_evaluation
from .finetune import TRAIN, VAL, register_own_data, use_own_data, wants_own_data
from .lazy_trainer import LazyTrainer
from .options import TrainingOptions
from .trainer import Trainer

logger = logging.getLogger(__name__)

WAIT = 20  # seconds for a process that is about to end, as where torchrun was killed


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option that Detectron2 has for GPUs alone."""
    text = "processes to start on the CPUs of this machine, which share each batch (default: 1)"
    parser.add_argument("--num-processes", type=int, metavar="N", help=text)


def prepare(args: argparse.Namespace) -> tuple[Settings, int]:
    """Read and check the config, the machine and the data sets, before any process is started.

    A process that torchrun started joins the others.

    Args:
        args: of the parser of ``resnest_d2.commands.train_net``.

    Returns:
        the config's settings, and how many processes to start on this machine.

    Raises:
        InputError, OSError: an argument, a setting or a file is wrong.
    """
    choose_implementation(args.coco_eval)
    if args.eval_only:
        cfg = load_config_of_weights(args.config_file, args.opts, args.resume)
    else:
        cfg = load_config(args.config_file, args.opts)
    settings = Settings.of(cfg)
    settings.require(EVALUATION_KEYS) if args.eval_only else settings.require_for_training()
    options = TrainingOptions.of(args)
    options.check(settings)
    if options.deterministic:
        _make_deterministic(settings)
    num_processes = choose_device(settings, args.num_gpus, args.num_processes)
    joined = join_processes(settings.device, args.num_machines)
    if wants_own_data(args):
        _log_to(settings)
        number = comm.get_world_size() if joined else num_processes * args.num_machines
        use_own_data(settings, args, number)
    check_datasets(settings, train=not args.eval_only)
    return settings, num_processes


def set_up(settings: Settings, args: argparse.Namespace) -> Callable[[], dict[str, Any] | None]:
    """Build and load, in each process of the group, what trains or evaluates.

    Returns:
        the work itself, which returns the metrics of the last evaluation by task.

    Raises:
        InputError, OSError: the model, the data and the weights do not fit each other, or another
            process trains in the output folder.
    """
    choose_implementation(args.coco_eval)
    if wants_own_data(args) and not {TRAIN, VAL} & set(DatasetCatalog.list()):
        register_own_data(settings, args)  # in a process that was started for one GPU of several
    options = TrainingOptions.of(args)
    if not args.eval_only:
        held = hold_output(settings)
    if options.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    cfg = settings.cfg
    default_setup(cfg if settings.is_lazy else portable_config(cfg), args)  # it saves the config
    _log_to(settings)
    logger.info("Started as %s", describe_processes())
    if args.eval_only:
        return partial(evaluate_model, settings, load_for_evaluation(settings, args.resume))
    resume, scaled_to = continued(settings.output_dir, args.resume)
    if resume and not args.resume:
        logger.info("torchrun started the processes again: going on from the last checkpoint")
    options.scaled_to = scaled_to
    trainer = (LazyTrainer if settings.is_lazy else Trainer)(cfg, options)
    trainer.resume_or_load(resume=resume)
    trainer.held = held  # as long as it trains
    return trainer.train


def _make_deterministic(settings: Settings) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS needs for it
    if settings.seed < 0:
        settings.seed = 0
        logger.info("--deterministic: %s is 0", settings.key("seed"))


def hold_output(settings: Settings) -> IO[str] | None:
    """Hold the output folder, in the first process.

    Raises:
        InputError: another process trains in it.
        OSError: nothing can be written to it.
    """
    folder = Path(settings.output_dir)

    def hold() -> IO[str]:
        try:
            held = hold_folder(folder, WAIT)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: {error.strerror}; wait for its end, or choose another "
                f"{settings.key('output_dir')}"
            ) from error
        for torn in folder.glob(".*.part"):  # of a process that died while it wrote
            torn.unlink()
        return held

    return in_first_process(hold)


def continued(output_dir: str, resume: bool) -> tuple[bool, int]:
    """Whether to go on from the last checkpoint, and the number of processes it was begun with.

    torchrun starts processes again with the command line they had. They go on if one of the
    torchruns has started the run before, and has left a checkpoint since.

    Args:
        output_dir: the output folder, in which the launch is noted.
        resume: whether the command line says so.
    """
    file, tag = Path(output_dir) / ".launch.json", Path(output_dir) / "last_checkpoint"
    agents, world = launchers(), comm.get_world_size()
    found = {"launchers": agents, "before": None, "world_size": world}
    if comm.is_main_process():
        tagged = tag.stat().st_mtime_ns if tag.is_file() else None
        try:
            earlier = json.loads(file.read_text())
            again = {*earlier["launchers"]} & {*agents} and earlier["before"] != tagged
        except (OSError, ValueError, KeyError, TypeError):
            earlier, again = found, False
        if tagged and (resume or again):
            found = {**earlier, "launchers": sorted({*earlier["launchers"], *agents})}
            resume = True
        else:
            found["before"] = tagged
    in_first_process(lambda: write_text(file, json.dumps(found)))
    resume, begun_with = comm.all_gather((resume, found["world_size"]))[0]
    return resume, begun_with if begun_with != world else 0


def _log_to(settings: Settings) -> None:
    """Show this package's messages as Detectron2's are, and keep them; again does nothing."""
    setup_logger(settings.output_dir, distributed_rank=comm.get_rank(), name="resnest_d2")
