"""What ``tools/train_net.py`` does, callable."""

import argparse
from typing import Any

import detectron2.utils.comm as comm
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from ..weights import load_weights
from . import lazy
from .errors import one_line_errors
from .evaluation import check_datasets
from .finetune import TRAIN, VAL, register_own_data, use_own_data, wants_own_data
from .setup import choose_device, load_config
from .trainer import Trainer


def train_or_evaluate(args: argparse.Namespace) -> None:
    """Run the command line of ``detectron2.engine.default_argument_parser``.

    The config, YAML or a LazyConfig, the machine and the data sets are checked here, before any
    process is started or any model built.
    """
    with one_line_errors():
        cfg = load_config(args.config_file, args.opts)
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
    is_yaml = isinstance(cfg, CfgNode)
    if args.eval_only:
        return evaluate(cfg, args.resume) if is_yaml else lazy.evaluate(cfg, args.resume)
    if not is_yaml:
        return lazy.train(cfg, args.resume)
    with one_line_errors():
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def _log_to(cfg: CfgNode | DictConfig) -> None:
    """Show this package's messages as Detectron2's are, and keep them; again does nothing."""
    output = cfg.OUTPUT_DIR if isinstance(cfg, CfgNode) else cfg.train.output_dir
    setup_logger(output, distributed_rank=comm.get_rank(), name="resnest_d2")


def evaluate(cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
    """Evaluate on ``DATASETS.TEST``, and again with TTA if it is enabled.

    Args:
        cfg: the config; ``MODEL.WEIGHTS`` is evaluated.
        resume: evaluate the last checkpoint in ``OUTPUT_DIR`` instead, if there is one.

    Returns:
        metrics by task.
    """
    with one_line_errors():
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR)
        last = resume and checkpointer.has_checkpoint()
        load_weights(model, checkpointer.get_checkpoint_file() if last else cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
