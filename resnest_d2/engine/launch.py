"""What ``tools/train_net.py`` does, callable."""

import argparse
from typing import Any

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup, launch
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from ..commands.errors import one_line_errors
from ..config.lazy import EVALUATION_KEYS, TRAINING_KEYS, require_keys
from ..config.load import choose_device, load_config
from ..evaluation.coco import choose_implementation
from ..evaluation.evaluators import check_datasets
from . import lazy_trainer as lazy
from .evaluate import evaluate_model, get_output_dir, load_for_evaluation
from .finetune import TRAIN, VAL, register_own_data, use_own_data, wants_own_data
from .trainer import Trainer


def train_or_evaluate(args: argparse.Namespace) -> None:
    """Run the command line of ``detectron2.engine.default_argument_parser``.

    The config, YAML or a LazyConfig, the machine and the data sets are checked here, before any
    process is started or any model built.
    """
    with one_line_errors():
        choose_implementation(getattr(args, "coco_eval", None))
        cfg = load_config(args.config_file, args.opts)
        if not isinstance(cfg, CfgNode):
            require_keys(cfg, EVALUATION_KEYS if args.eval_only else TRAINING_KEYS)
        num_processes = choose_device(cfg, args.num_gpus, args.num_machines)
        if wants_own_data(args):
            _log_to(cfg)
            use_own_data(cfg, args)
        check_datasets(cfg, train=not args.eval_only)
    if isinstance(cfg, CfgNode):
        cfg.freeze()
    launch(
        run,
        num_processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(cfg, args),
    )


def run(cfg: CfgNode | DictConfig, args: argparse.Namespace) -> dict[str, Any] | None:
    """Train, or evaluate with ``args.eval_only``, in one process of the group.

    Returns:
        the evaluation's metrics by task, if there was one.
    """
    with one_line_errors():
        if wants_own_data(args) and not {TRAIN, VAL} & set(DatasetCatalog.list()):
            register_own_data(cfg, args)  # in a process that was started for one GPU of several
        default_setup(cfg, args)
    _log_to(cfg)
    if args.eval_only:
        with one_line_errors():
            model = load_for_evaluation(cfg, args.resume)
        return evaluate_model(cfg, model)
    if not isinstance(cfg, CfgNode):
        return lazy.train(cfg, args.resume)
    with one_line_errors():
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def _log_to(cfg: CfgNode | DictConfig) -> None:
    """Show this package's messages as Detectron2's are, and keep them; again does nothing."""
    setup_logger(get_output_dir(cfg), distributed_rank=comm.get_rank(), name="resnest_d2")
