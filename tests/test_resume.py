"""``--resume``: PyTorch's own restore; what the config says otherwise now is changed and named."""

import logging

import pytest
import torch
from detectron2.engine import HookBase
from short_training import make
from torch.optim import lr_scheduler

from resnest_d2.config import InputError
from resnest_d2.engine import Trainer
from resnest_d2.engine.watch import read_metrics

START = 4
TINY = {
    **{"SOLVER.MAX_ITER": "40", "SOLVER.WARMUP_ITERS": "10", "SOLVER.STEPS": "(30,)"},
    **{"SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR", "MODEL.RESNETS.NORM": "FrozenBN"},
}


class Recorder(HookBase):
    """Keeps the optimizer's settings of the first iteration, and its momentum before."""

    def before_step(self):
        optimizer = self.trainer.optimizer
        self.groups = [{k: g[k] for k in g.keys() - {"params"}} for g in optimizer.param_groups]
        states = list(optimizer.state.values())
        self.momentum = [s["momentum_buffer"].clone() for s in states if "momentum_buffer" in s]
        raise StopIteration


def first_step(trainer):
    """What the first iteration would be done with."""
    recorder = Recorder()
    trainer.register_hooks([recorder])
    with pytest.raises(StopIteration):
        trainer.train()
    return recorder


def count(trainer, iterations, learn=False):
    """Move a trainer's schedule on, without computing anything."""
    for _ in range(iterations):
        if learn:
            trainer.optimizer.step()
        trainer.scheduler.step()


def settings(folder, options, iteration, kind=Trainer):
    """Of a fresh run that has come to an iteration."""
    trainer = make(folder, keys={**TINY, **options}, kind=kind)
    count(trainer, iteration)
    trainer.start_iter = iteration
    return first_step(trainer).groups


@pytest.fixture
def save(registered_digits, tmp_path):
    """Leave a checkpoint as after some iterations, with momentum in it."""

    def save(iteration=START, kind=Trainer, **more):
        trainer = make(tmp_path, keys=TINY, kind=kind)
        for index, parameter in enumerate(p for p in trainer.model.parameters() if p.requires_grad):
            parameter.grad = torch.full_like(parameter, index + 1.0)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        count(trainer, iteration, learn=True)
        for old, parameter in zip(before, trainer.model.parameters(), strict=True):
            parameter.data = old
        trainer.iter = iteration - 1
        trainer.checkpointer.save(f"model_{iteration - 1:07d}", iteration=iteration - 1, **more)
        return [state["momentum_buffer"] for state in trainer.optimizer.state.values()]

    return save


@pytest.mark.parametrize(
    ("iteration", "options"),
    [
        (START, {}),
        (START, {"SOLVER.BASE_LR": "0.01"}),  # in warm-up
        (START, {"SOLVER.MAX_ITER": "20", "SOLVER.STEPS": "()"}),
        (20, {"SOLVER.BASE_LR": "0.01", "SOLVER.STEPS": "(15,)"}),  # after a step
        (20, {"SOLVER.GAMMA": "0.5", "SOLVER.STEPS": "(5, 12)"}),
        (20, {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"}),
        (20, {"SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR", "SOLVER.POLY_LR_POWER": "0.8"}),
        (START, {"SOLVER.WEIGHT_DECAY": "0.3", "SOLVER.MOMENTUM": "0.5"}),
        (START, {"SOLVER.WEIGHT_DECAY_NORM": "0.2", "SOLVER.NESTEROV": "False"}),
        (START, {"SOLVER.BACKBONE_MULTIPLIER": "1.0", "SOLVER.BASE_LR": "0.0"}),
    ],
)
def test_the_settings_are_those_of_a_fresh_run(save, tmp_path, iteration, options):
    momentum = save(iteration)
    trainer = make(tmp_path, resume=True, keys={**TINY, **options})
    assert trainer.start_iter == iteration
    found = first_step(trainer)
    expected = settings(tmp_path / "fresh", options, iteration)
    for ours, fresh in zip(found.groups, expected, strict=True):
        assert ours == pytest.approx(fresh)
    assert len(found.momentum) == len(momentum) > 50
    assert all(map(torch.equal, found.momentum, momentum))


def test_the_power_of_a_polynomial_schedule_follows(save, tmp_path, monkeypatch):
    """PyTorch keeps it in the schedule's state."""
    monkeypatch.setitem(TINY, "SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR")
    save(20)
    options = {"SOLVER.POLY_LR_POWER": "0.5"}
    found = first_step(make(tmp_path, resume=True, keys={**TINY, **options})).groups
    expected = settings(tmp_path / "fresh", options, 20)
    assert [g["lr"] for g in found] == pytest.approx([g["lr"] for g in expected])


def one_cycle(optimizer):
    return lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=40)


SCHEDULES = {
    "steps": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [3, 30], 0.1),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 40),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda n: 0.9**n),
    "one cycle": one_cycle,
    "both": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 40)],
        [2],
    ),
}


@pytest.mark.parametrize("options", [{}, {"SOLVER.BASE_LR": "0.01"}])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_schedule_of_pytorch_goes_on(save, tmp_path, schedule, options):
    """Of a trainer that has its own, with the rate of the checkpoint or with another one."""

    class Own(Trainer):
        @classmethod
        def build_lr_scheduler(cls, cfg, optimizer):
            return SCHEDULES[schedule](optimizer)

    save(7, Own)
    trainer = make(tmp_path, resume=True, keys={**TINY, **options}, kind=Own)
    fresh = make(tmp_path / "fresh", keys={**TINY, **options}, kind=Own)
    count(fresh, 7)
    for _ in range(10):
        rates = [[g["lr"] for g in t.optimizer.param_groups] for t in (trainer, fresh)]
        assert rates[0] == pytest.approx(rates[1], rel=1e-6)
        count(trainer, 1)
        count(fresh, 1)
    if schedule == "steps" and not options:
        assert rates[0][0] == pytest.approx(0.1 * float(trainer.cfg.SOLVER.BASE_LR))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"SOLVER.BASE_LR": "0.01", "SOLVER.STEPS": "(5, 12)", "DATALOADER.NUM_WORKERS": "1"},
            "SOLVER.BASE_LR 0.12 -> 0.01; SOLVER.STEPS [30] -> [5, 12]",
        ),
        ({"MODEL.WEIGHTS": "x.pth"}, None),
    ],
)
def test_one_line_lists_what_changed(save, tmp_path, caplog, options, message):
    save()
    caplog.set_level(logging.INFO)
    make(tmp_path, resume=True, keys={**TINY, **options})
    found = [line for line in caplog.messages if "other settings" in line]
    assert found == ([f"Resuming {tmp_path} with other settings: {message}"] if message else [])


def test_a_run_that_is_longer_than_asked_for(save, tmp_path):
    save(20)
    words = r"--resume: the checkpoint has done 20 iterations, .*SOLVER.MAX_ITER is 15"
    with pytest.raises(InputError, match=words):
        make(tmp_path, True, {**TINY, "SOLVER.MAX_ITER": "15", "SOLVER.STEPS": "(9,)"})


@pytest.mark.parametrize("average", ["ema_state", "model_ema"])
def test_an_average_of_weights_is_not_what_goes_on(save, tmp_path, average):
    """Model, iteration and optimizer do; other projects save the average beside them."""
    momentum = save(**{average: {"weight": torch.zeros(1)}})
    file = tmp_path / f"model_{START - 1:07d}.pth"
    content = torch.load(file, weights_only=True)
    content[average] = {name: value * 0 for name, value in content["model"].items()}
    torch.save(content, file)
    trainer = make(tmp_path, resume=True, keys=TINY)
    assert trainer.start_iter == START
    states = trainer.model.state_dict()
    assert all(torch.equal(states[name], value) for name, value in content["model"].items())
    assert all(map(torch.equal, first_step(trainer).momentum, momentum))


class Scaled(Trainer):
    """A trainer whose loop has a scaler, as Detectron2's has with AMP, which needs a GPU."""

    def __init__(self, *args):
        super().__init__(*args)
        loop = self._trainer
        loop.grad_scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
        save, load = loop.state_dict, loop.load_state_dict

        def load_both(state):
            load(state)
            loop.grad_scaler.load_state_dict(state["grad_scaler"])

        loop.state_dict = lambda: {**save(), "grad_scaler": loop.grad_scaler.state_dict()}
        loop.load_state_dict = load_both


def test_mixed_precision_may_be_newly_on_or_off(save, tmp_path):
    save()
    trainer = make(tmp_path, resume=True, keys=TINY, kind=Scaled)
    assert trainer.start_iter == START
    assert trainer._trainer.grad_scaler.get_scale() == 512
    scaler = trainer._trainer.grad_scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 64.0})
    trainer.checkpointer.save("model_0000003", iteration=START - 1)
    again = make(tmp_path, resume=True, keys=TINY, kind=Scaled)
    assert again._trainer.grad_scaler.get_scale() == 64
    assert make(tmp_path, resume=True, keys=TINY).start_iter == START


def test_a_run_that_dies_early_does_not_go_on_from_an_older_one(tmp_path, registered_digits):
    keys = {"SOLVER.MAX_ITER": "2"}
    make(tmp_path, keys=keys).train()
    (tmp_path / "model_best.json").write_text('{"metric": "x", "value": 1, "iteration": 1}')
    make(tmp_path, keys=keys)  # dies before its first checkpoint
    assert (tmp_path / "model_final.pth").is_file()
    assert not (tmp_path / "model_best.json").exists()
    trainer = make(tmp_path, resume=True, keys=keys)
    assert trainer.start_iter == 0


def test_metrics_go_on(tmp_path, registered_digits):
    make(tmp_path).train()
    make(tmp_path, resume=True, keys={"SOLVER.MAX_ITER": "6"}).train()
    assert [i for i, _ in read_metrics(tmp_path / "metrics.json")["total_loss"]] == [3, 5]
