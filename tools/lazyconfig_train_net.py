#!/usr/bin/env python3
"""Train or evaluate a LazyConfig of configs/lazy/ with Detectron2's own parts.

It has the command line of Detectron2's tool of this name. What `resnest-d2 train` adds (your own
data, keeping the best, stopping on signals) is for YAML configs.
"""

import logging
from argparse import Namespace

from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
    launch,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from resnest_d2.modeling.sync_batchnorm import replace_sync_batchnorm
from resnest_d2.weights import WeightsCheckpointer, load_weights


def test(cfg: DictConfig, model) -> dict:
    """Evaluate if the config has an evaluator."""
    if "evaluator" not in cfg.dataloader:
        return {}
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results


def train(cfg: DictConfig, resume: bool) -> None:
    """Train as the config says."""
    model = instantiate(cfg.model).to(cfg.train.device)
    on_cpu = cfg.train.device == "cpu"
    if on_cpu or comm.get_world_size() == 1:
        model = replace_sync_batchnorm(model)  # PyTorch's is for several GPUs
    cfg.optimizer.params.model = model
    clipping = get_cfg()
    given = OmegaConf.to_container(cfg.train.clip_gradients)
    clipping.SOLVER.CLIP_GRADIENTS.update({key.upper(): value for key, value in given.items()})
    optimizer = maybe_add_gradient_clipping(clipping, instantiate(cfg.optimizer))
    loader = instantiate(cfg.dataloader.train)
    ddp = {**cfg.train.ddp, **({"device_ids": None} if on_cpu else {})}
    model = create_ddp_model(model, **ddp)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
    checkpointer = WeightsCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    is_main, precise_bn = comm.is_main_process(), cfg.train.precise_bn
    made = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        hooks.PreciseBN(0, model, instantiate(cfg.dataloader.train), precise_bn.num_iter)
        if precise_bn.enabled
        else None,
        hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if is_main else None,
        hooks.EvalHook(cfg.train.eval_period, lambda: test(cfg, model)),
    ]
    if is_main:
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        made.append(hooks.PeriodicWriter(writers, period=cfg.train.log_period))
    trainer.register_hooks(made)
    start = 0
    if resume and checkpointer.has_checkpoint():
        checkpointer.load(checkpointer.get_checkpoint_file())
        start = trainer.iter + 1
    else:
        checkpointer.load_to_train(cfg.train.init_checkpoint)
    trainer.train(start, cfg.train.max_iter)


def main(args: Namespace) -> None:
    """Run in each process."""
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    default_setup(cfg, args)
    logging.getLogger("resnest_d2").setLevel(logging.INFO)
    if args.eval_only:
        model = instantiate(cfg.model).to(cfg.train.device).eval()
        load_weights(model, cfg.train.init_checkpoint)
        test(cfg, model)
    else:
        train(cfg, args.resume)


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
