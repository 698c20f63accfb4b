"""From parsed arguments to processes that train or evaluate."""

import argparse
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils.logger import setup_logger

from ..config import InputError
from ..config.keys import portable_config
from ..config.load import choose_device, config_dir, load_config
from ..evaluation import check_datasets
from ..files import hold_folder
from ..weights import Checkpoint, open_weights
from ..weights.stored_config import config_to_use
from .checkpoint import last_checkpoint
from .evaluate import evaluate_model, load_for_evaluation
from .finetune import (
    SCHEDULE_KEYS,
    Data,
    fit_config,
    read_own_data,
    register,
    wants_own_data,
    write_annotations,
)
from .options import TrainingOptions
from .processes import join_torchrun, once
from .trainer import Trainer

logger = logging.getLogger(__name__)

WAIT = 20  # seconds for a process that is about to end, as where torchrun was killed
# The zoo's recipes for COCO are for so many GPUs, with two images each.
RECIPE_GPUS, RECIPE_BATCH = 8, 16


@dataclass
class Job:
    """The values that each process of a training or an evaluation needs; they can be pickled."""

    cfg: CfgNode
    args: argparse.Namespace
    data: Data = (None, None)
    """The user's own data, if there are any."""
    checkpoint: Checkpoint | None = None
    """The weights to evaluate."""


def prepare(args: argparse.Namespace) -> tuple[Job, int]:
    """Read and check the config, the machine, the weights and the data, before processes start.

    A process that torchrun started joins the others.

    Args:
        args: of the parser of ``resnest_d2.commands.train``.

    Returns:
        the job, and how many processes to start on this machine.

    Raises:
        InputError: an argument, a setting or a file is wrong.
    """
    checkpoint = None
    if args.eval_only:
        checkpoint = _weights_to_evaluate(args)
        cfg = config_to_use(args.config_file, args.opts, checkpoint)
    else:
        cfg = load_config(args.config_file, args.opts)
    required = "MODEL.DEVICE" in args.opts[::2]
    num_processes = choose_device(cfg, args.num_gpus, args.num_processes, required=required)
    joined = join_torchrun(cfg.MODEL.DEVICE)
    world = comm.get_world_size() if joined else num_processes * args.num_machines
    job = Job(cfg, args, checkpoint=checkpoint)
    if wants_own_data(args):
        classes = checkpoint.classes if checkpoint else {}
        job.data = once(lambda: read_own_data(cfg, args, classes))
        fit_config(cfg, args, job.data, world)
        register(job.data, cfg.OUTPUT_DIR)
    if _is_recipe(cfg, args):
        cfg.SOLVER.REFERENCE_WORLD_SIZE = RECIPE_GPUS
    reference, batch = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if reference and batch % reference:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {batch} must be a multiple of SOLVER.REFERENCE_WORLD_SIZE "
            f"{reference}, the number of processes that it is meant for; with 0 nothing is scaled"
        )
    if not any(job.data):
        check_datasets(cfg, train=not args.eval_only)
    if not args.eval_only:
        TrainingOptions.of(args).check(cfg)
    return job, num_processes


def _is_recipe(cfg: CfgNode, args: argparse.Namespace) -> bool:
    """Whether a schedule is that of one of the zoo's recipes, as it stands."""
    in_zoo = config_dir() in Path(args.config_file).resolve().parents
    named = (SCHEDULE_KEYS | {"SOLVER.REFERENCE_WORLD_SIZE"}) & set(args.opts[::2])
    is_set = named or args.auto or cfg.SOLVER.REFERENCE_WORLD_SIZE
    return in_zoo and not is_set and cfg.SOLVER.IMS_PER_BATCH == RECIPE_BATCH


def _weights_to_evaluate(args: argparse.Namespace) -> Checkpoint | None:
    """The weights that options or config name or, with ``--resume``, the last in the folder."""
    named = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    cfg = load_config(args.config_file, args.opts) if args.config_file else None
    folder = cfg.OUTPUT_DIR if cfg else named.get("OUTPUT_DIR", "./output")
    path = cfg.MODEL.WEIGHTS if cfg else named.get("MODEL.WEIGHTS", "")
    path = (last_checkpoint(folder) if args.resume else None) or path
    if not path:
        return None
    logger.info("Evaluating %s", path)
    return open_weights(path)


def work(job: Job) -> None:
    """Train or evaluate, in each process of the group.

    Raises:
        InputError: the model, the data and the weights do not fit each other, or another process
            trains in the output folder.
        SystemExit: a signal stopped training.
    """
    cfg, args = job.cfg, job.args
    if any(job.data):
        register(job.data, cfg.OUTPUT_DIR)  # in a process that was started for one of several
    if args.eval_only:
        _log(cfg, args)
        once(lambda: write_annotations(job.data, cfg.OUTPUT_DIR))
        evaluate_model(cfg, load_for_evaluation(cfg, job.checkpoint or ""))
        return
    # torchrun starts processes again with the command line they had.
    is_restart = os.getenv("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    held: list[IO[str]] = []

    def begin() -> None:
        held.append(hold_folder(Path(cfg.OUTPUT_DIR), WAIT))
        for torn in Path(cfg.OUTPUT_DIR).glob(".model_*.pth.*.part"):  # of a run that was killed
            torn.unlink()
        write_annotations(job.data, cfg.OUTPUT_DIR)

    once(begin)
    try:
        _log(cfg, args)
        trainer = Trainer(cfg, TrainingOptions.of(args))
        trainer.resume_or_load(resume=args.resume or is_restart)
        trainer.train()
    finally:
        for stream in held:
            stream.close()


def _log(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Log as Detectron2 does, which also saves the config; this package's messages likewise."""
    default_setup(portable_config(cfg), args)
    rank, is_shown = comm.get_rank(), bool(logging.getLogger("resnest_d2").handlers)
    setup_logger(cfg.OUTPUT_DIR, rank, name="resnest_d2", configure_stdout=not is_shown)
