"""From parsed arguments to processes that train or evaluate."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import detectron2.utils.comm as comm
from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup
from detectron2.utils.logger import setup_logger

from ..config.keys import portable_config
from ..config.load import choose_device, load_config
from ..config.settings import EVALUATION_KEYS, Settings
from ..evaluation import check_datasets
from ..evaluation.coco import choose_implementation
from ..weights.stored_config import load_config_of_weights
from .evaluate import evaluate_model, load_for_evaluation
from .finetune import TRAIN, VAL, register_own_data, use_own_data, wants_own_data
from .lazy_trainer import LazyTrainer
from .trainer import Trainer


def prepare(args: argparse.Namespace) -> tuple[Settings, int]:
    """Read and check the config, the machine and the data sets, before any process is started.

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
    num_processes = choose_device(settings, args.num_gpus, args.num_machines)
    if wants_own_data(args):
        _log_to(settings)
        use_own_data(settings, args, num_processes)
    check_datasets(settings, train=not args.eval_only)
    return settings, num_processes


def set_up(settings: Settings, args: argparse.Namespace) -> Callable[[], dict[str, Any] | None]:
    """Build and load, in each process of the group, what trains or evaluates.

    Returns:
        the work itself, which returns the metrics of the last evaluation by task.

    Raises:
        InputError, OSError: the model, the data and the weights do not fit each other.
    """
    choose_implementation(args.coco_eval)
    if wants_own_data(args) and not {TRAIN, VAL} & set(DatasetCatalog.list()):
        register_own_data(settings, args)  # in a process that was started for one GPU of several
    cfg = settings.cfg
    default_setup(cfg if settings.is_lazy else portable_config(cfg), args)  # it saves the config
    _log_to(settings)
    if args.eval_only:
        return partial(evaluate_model, settings, load_for_evaluation(settings, args.resume))
    trainer = (LazyTrainer if settings.is_lazy else Trainer)(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train


def _log_to(settings: Settings) -> None:
    """Show this package's messages as Detectron2's are, and keep them; again does nothing."""
    setup_logger(settings.output_dir, distributed_rank=comm.get_rank(), name="resnest_d2")
