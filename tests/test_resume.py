"""``--resume``: what the config says now holds, and what was learned is kept."""

import logging

import pytest
import torch
from detectron2.config import LazyCall
from detectron2.engine import HookBase

from resnest_d2 import model_zoo
from resnest_d2.config import InputError
from resnest_d2.engine import Trainer, load_config
from resnest_d2.engine.lazy_trainer import LazyTrainer

START = 4
TINY = [
    *("SOLVER.MAX_ITER", "40", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "10"),
    *("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(30,)"),
    *("MODEL.DEVICE", "cpu", "DATASETS.TEST", "()", "MODEL.RESNETS.NORM", "FrozenBN"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)"),
]
LAZY_TINY = [
    *("train.max_iter=40", "dataloader.train.total_batch_size=2", "train.device=cpu"),
    *("dataloader.test.dataset.names=[]", "lr_multiplier.warmup_length=0.25"),
]


class Recorder(HookBase):
    """Keeps the optimizer's settings of the first iteration, and its momentum before."""

    def before_step(self):
        optimizer = self.trainer.optimizer
        self.groups = [{k: g[k] for k in g.keys() - {"params"}} for g in optimizer.param_groups]
        states = list(optimizer.state.values())
        self.momentum = [s["momentum_buffer"].clone() for s in states if "momentum_buffer" in s]
        raise StopIteration


def make(folder, options, lazy=False):
    name = "mask_resnest14_digits"
    if lazy:
        file = model_zoo.get_config_file(f"lazy/{name}")
        cfg = load_config(file, [*LAZY_TINY, f"train.output_dir='{folder}'", *options])
        return LazyTrainer(cfg)
    options = [*TINY, "OUTPUT_DIR", str(folder), *options]
    return Trainer(load_config(model_zoo.get_config_file(name), options))


def first_step(trainer):
    """What the first iteration would be done with."""
    recorder = Recorder()
    getattr(trainer, "loop", trainer).register_hooks([recorder])
    with pytest.raises(StopIteration):
        trainer.train()
    return recorder


def run_to(trainer, iteration):
    """Count a fresh run's iterations without computing them, and begin the next one."""
    loop = getattr(trainer, "loop", trainer)
    trainer.start_iter = iteration
    if hasattr(loop, "scheduler"):
        for _ in range(iteration):
            trainer.scheduler.step()
    else:
        for group in loop.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return first_step(trainer).groups


@pytest.fixture
def save(registered_digits, tmp_path):
    """Leave a checkpoint as after some iterations, with momentum in it."""

    def save(lazy=False, iteration=START, options=()):
        trainer = make(tmp_path, options, lazy)
        loop = trainer.loop if lazy else trainer
        for index, parameter in enumerate(p for p in trainer.model.parameters() if p.requires_grad):
            parameter.grad = torch.full_like(parameter, index + 1.0)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        for _ in range(iteration):
            loop.optimizer.step()
            if not lazy:
                trainer.scheduler.step()
        for old, parameter in zip(before, trainer.model.parameters(), strict=True):
            parameter.data = old
        loop.iter = iteration - 1
        trainer.checkpointer.save(f"model_{iteration - 1:07d}", iteration=iteration - 1)
        return list(loop.optimizer.state.values())

    return save


@pytest.mark.parametrize(
    ("iteration", "options"),
    [
        (START, []),
        (START, ["SOLVER.BASE_LR", "0.01"]),  # in warm-up
        (START, ["SOLVER.MAX_ITER", "20", "SOLVER.STEPS", "()"]),
        (20, ["SOLVER.BASE_LR", "0.01", "SOLVER.STEPS", "(15,)"]),  # after a step
        (20, ["SOLVER.GAMMA", "0.5", "SOLVER.STEPS", "(5, 12)"]),
        (20, ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"]),
        (20, ["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.POLY_LR_POWER", "0.8"]),
        (START, ["SOLVER.WEIGHT_DECAY", "0.3", "SOLVER.MOMENTUM", "0.5"]),
        (START, ["SOLVER.WEIGHT_DECAY_NORM", "0.2", "SOLVER.NESTEROV", "False"]),
    ],
)
def test_the_settings_are_those_of_a_fresh_run(save, tmp_path, iteration, options):
    momentum = [state["momentum_buffer"] for state in save(iteration=iteration)]
    trainer = make(tmp_path, options)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == iteration
    found = first_step(trainer)
    expected = run_to(make(tmp_path, options), iteration)
    for ours, fresh in zip(found.groups, expected, strict=True):
        assert ours == pytest.approx(fresh)
    assert len(found.momentum) == len(momentum) > 50
    assert all(map(torch.equal, found.momentum, momentum))


def test_the_weights_decay_of_norms_is_among_them(save, tmp_path):
    save()
    trainer = make(tmp_path, ["SOLVER.WEIGHT_DECAY_NORM", "0.2", "MODEL.FPN.NORM", "BN"])
    trainer.resume_or_load(resume=True)
    assert 0.2 in [group["weight_decay"] for group in first_step(trainer).groups]


@pytest.mark.parametrize("iteration", [START, 20])
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["optimizer.lr=0.01", "optimizer.weight_decay=0.3"],
        ["optimizer.momentum=0.5", "optimizer.params.weight_decay_norm=0.2"],
        ["lr_multiplier.warmup_length=0.5", "train.max_iter=60"],
        ["lr_multiplier.scheduler.end_value=0.7"],
    ],
)
def test_lazy_configs_too(save, tmp_path, iteration, options):
    momentum = [state["momentum_buffer"] for state in save(lazy=True, iteration=iteration)]
    trainer = make(tmp_path, options, lazy=True)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == iteration
    found = first_step(trainer)
    expected = run_to(make(tmp_path, options, lazy=True), iteration)
    for ours, fresh in zip(found.groups, expected, strict=True):
        assert ours == pytest.approx(fresh)
    assert all(map(torch.equal, found.momentum, momentum))


@pytest.mark.parametrize(
    ("lazy", "options", "message"),
    [
        (
            False,
            ["SOLVER.BASE_LR", "0.01", "SOLVER.STEPS", "(5, 12)", "DATALOADER.NUM_WORKERS", "1"],
            "SOLVER.BASE_LR 0.12 -> 0.01; SOLVER.STEPS [30] -> [5, 12]",
        ),
        (
            True,
            ["optimizer.lr=0.01", "dataloader.train.num_workers=1"],
            "optimizer.lr 0.12 -> 0.01",
        ),
        (False, ["MODEL.WEIGHTS", "x.pth"], None),
        (True, [], None),
    ],
)
def test_one_line_lists_what_changed(save, tmp_path, caplog, lazy, options, message):
    save(lazy)
    caplog.set_level(logging.INFO)
    make(tmp_path, options, lazy).resume_or_load(resume=True)
    found = [line for line in caplog.messages if "other settings" in line]
    start = f"Resuming {tmp_path} with other settings, which hold from now on: "
    assert found == ([start + message] if message else [])


@pytest.mark.parametrize("lazy", [False, True])
def test_a_run_that_is_longer_than_asked_for(save, tmp_path, lazy):
    save(lazy, iteration=20)
    options = ["train.max_iter=15"] if lazy else ["SOLVER.MAX_ITER", "15", "SOLVER.STEPS", "(9,)"]
    words = r"--resume: the checkpoint has done 20 iterations, .* asks for 15 \(SOLVER.MAX_ITER, tr"
    with pytest.raises(InputError, match=words):
        make(tmp_path, options, lazy).resume_or_load(resume=True)


def test_parameters_that_are_grouped_otherwise(save, tmp_path):
    save()
    trainer = make(tmp_path, ["SOLVER.WEIGHT_DECAY_BIAS", "0.1"])
    with pytest.raises(InputError, match=r"--resume: .*SOLVER.WEIGHT_DECAY_BIAS\) cannot change"):
        trainer.resume_or_load(resume=True)


def test_another_optimizer_is_refused(save, tmp_path):
    """Adam's state is nothing that SGD could go on with."""
    save(lazy=True)
    options = [*LAZY_TINY, f"train.output_dir='{tmp_path}'"]
    cfg = load_config(model_zoo.get_config_file("lazy/mask_resnest14_digits"), options)
    cfg.optimizer = LazyCall(torch.optim.AdamW)(params=cfg.optimizer.params, lr=0.001)
    message = "checkpoint's optimizer has momentum, that of the config has betas"
    with pytest.raises(InputError, match=message):
        LazyTrainer(cfg).resume_or_load(resume=True)
