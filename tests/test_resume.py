"""``--resume``: PyTorch's own restore; what the config says otherwise now is changed and named."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from short_training import make, short_config
from torch.optim import lr_scheduler

from resnest_d2.config import InputError
from resnest_d2.engine import Trainer
from resnest_d2.engine.hooks import read_metrics

START = 4
TINY = {
    **{"SOLVER.MAX_ITER": "40", "SOLVER.WARMUP_ITERS": "10", "SOLVER.STEPS": "(30,)"},
    **{"SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR", "MODEL.RESNETS.NORM": "FrozenBN"},
}


def groups(optimizer):
    return [{k: g[k] for k in g.keys() - {"params"}} for g in optimizer.param_groups]


def momentum(trainer):
    states = trainer.optimizer.state.values()
    return [s["momentum_buffer"] for s in states if "momentum_buffer" in s]


def assert_momentum(trainer, iteration):
    """See that it is what the checkpoint holds."""
    file = Path(trainer.cfg.OUTPUT_DIR, f"model_{iteration - 1:07d}.pth")
    held = torch.load(file, weights_only=True)["trainer"]["_trainer"]["optimizer"]["state"]
    expected = [state["momentum_buffer"] for state in held.values()]
    assert len(expected) > 50
    assert all(map(torch.equal, momentum(trainer), expected))


def fresh_run(trainer, iteration):
    """The optimizer and the schedule that the trainer's config gives, moved on to an iteration."""
    optimizer = trainer.build_optimizer(trainer.cfg, trainer.model)
    schedule = trainer.build_lr_scheduler(trainer.cfg, optimizer)
    for _ in range(iteration):
        schedule.step()
    return optimizer, schedule


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders with a checkpoint as after some iterations, with momentum in it."""
    folders = {}

    def save(iteration, kind, keys):
        key = (iteration, kind, tuple(keys.items()))
        if key in folders:
            return folders[key]
        folder = folders[key] = tmp_path_factory.mktemp("saved")
        trainer = make(folder, keys={**TINY, **keys}, kind=kind)
        for index, parameter in enumerate(p for p in trainer.model.parameters() if p.requires_grad):
            parameter.grad = torch.full_like(parameter, index + 1.0)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        for _ in range(iteration):
            trainer.optimizer.step()
            trainer.scheduler.step()
        for old, parameter in zip(before, trainer.model.parameters(), strict=True):
            parameter.data = old
        trainer.iter = iteration - 1
        trainer.checkpointer.save(f"model_{iteration - 1:07d}", iteration=iteration - 1)
        return folder

    return save


@pytest.fixture
def resume(registered_digits, tmp_path, saved):
    """Leave such a checkpoint, and go on from it."""

    def resume(iteration=START, keys=None, kind=Trainer, before=None, change=None):
        shutil.copytree(saved(iteration, kind, before or {}), tmp_path, dirs_exist_ok=True)
        if change:
            file = tmp_path / f"model_{iteration - 1:07d}.pth"
            content = torch.load(file, weights_only=True)
            change(content)
            torch.save(content, file)
        return make(
            tmp_path, resume=True, keys={**TINY, **(before or {}), **(keys or {})}, kind=kind
        )

    return resume


POLYNOMIAL = {"SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR", "SOLVER.POLY_LR_POWER": "0.9"}


@pytest.mark.parametrize(
    ("iteration", "options", "before"),
    [
        (START, {}, {}),
        (START, {"SOLVER.BASE_LR": "0.01", "SOLVER.WEIGHT_DECAY": "0.3"}, {}),  # in warm-up
        (20, {"SOLVER.BASE_LR": "0.01", "SOLVER.STEPS": "(15,)"}, {}),  # after a step
        (20, {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"}, {}),
        (20, {"SOLVER.POLY_LR_POWER": "0.5"}, POLYNOMIAL),  # PyTorch keeps it in its state
        (START, {"SOLVER.MOMENTUM": "0.5", "SOLVER.NESTEROV": "False"}, {}),
        (START, {"SOLVER.WEIGHT_DECAY_NORM": "0.2", "SOLVER.BASE_LR": "0.0"}, {}),
    ],
)
def test_the_settings_are_those_of_a_fresh_run(resume, iteration, options, before):
    trainer = resume(iteration, options, before=before)
    assert trainer.start_iter == iteration
    optimizer, _ = fresh_run(trainer, iteration)
    for ours, fresh in zip(groups(trainer.optimizer), groups(optimizer), strict=True):
        assert ours == pytest.approx(fresh)
    assert_momentum(trainer, iteration)


SCHEDULES = {
    "steps": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [3, 30], 0.1),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, optimizer.param_groups[0]["lr"], total_steps=40
    ),
    "both": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 40)],
        [2],
    ),
}


class Steps(Trainer):
    schedule = "steps"

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return SCHEDULES[cls.schedule](optimizer)


OWN = {name: type(name, (Steps,), {"schedule": name}) for name in SCHEDULES}


@pytest.mark.parametrize("options", [{}, {"SOLVER.BASE_LR": "0.01"}])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_schedule_of_pytorch_goes_on(resume, schedule, options):
    """Of a trainer that has its own, with the rate of the checkpoint or with another one."""
    trainer = resume(7, options, kind=OWN[schedule])
    optimizer, fresh = fresh_run(trainer, 7)
    for _ in range(10):
        rates = [[g["lr"] for g in o.param_groups] for o in (trainer.optimizer, optimizer)]
        assert rates[0] == pytest.approx(rates[1], rel=1e-6)
        trainer.scheduler.step()
        fresh.step()
    if schedule == "steps":
        assert rates[0][0] == pytest.approx(0.1 * trainer.cfg.SOLVER.BASE_LR)


def test_one_line_lists_what_changed(resume, tmp_path, caplog):
    """But what tells of a machine and its folders."""
    caplog.set_level(logging.INFO)
    keys = {"SOLVER.BASE_LR": "0.01", "SOLVER.STEPS": "(5, 12)", "DATALOADER.NUM_WORKERS": "1"}
    resume(keys={**keys, "MODEL.WEIGHTS": "x.pth"})
    (found,) = [line for line in caplog.messages if "other settings" in line]
    message = "SOLVER.BASE_LR 0.12 -> 0.01; SOLVER.STEPS [30] -> [5, 12]"
    assert found == f"Resuming {tmp_path} with other settings: {message}"


def test_a_checkpoint_of_weights_alone_is_refused(resume):
    message = "--resume: .*model_0000003.pth has no trainer to go on from, only weights"
    with pytest.raises(InputError, match=message):
        resume(change=lambda content: content.pop("trainer"))


def test_other_groups_of_parameters_are_refused(resume):
    """What is frozen now has momentum in the checkpoint."""
    words = (
        "the optimizer has groups of .* by other settings .*MODEL.BACKBONE.FREEZE_AT.*new folder"
    )
    with pytest.raises(InputError, match=words):
        resume(keys={"MODEL.BACKBONE.FREEZE_AT": "2"})


def test_group_norm_is_no_batch_norm(resume):
    """Their parameters have one shape, and would load into each other without a word."""
    for before, after in (("SyncBN", "GN"), ("GN", "SyncBN")):
        widths = {"MODEL.RESNETS.WIDTH_PER_GROUP": "32", "MODEL.RESNETS.RES2_OUT_CHANNELS": "32"}
        norms = [{**widths, "MODEL.RESNETS.NORM": norm} for norm in (before, after)]
        message = (
            f"batch norms of .*model_0000003.pth .*MODEL.RESNETS.NORM '?{before}'? -> '?{after}"
        )
        with pytest.raises(InputError, match=message):
            resume(before=norms[0], keys=norms[1])


def test_one_batch_norm_goes_on_as_another(resume):
    """As on another number of GPUs."""
    norms = [{"MODEL.RESNETS.NORM": norm} for norm in ("SyncBN", "BN")]
    assert resume(before=norms[0], keys=norms[1]).start_iter == START


def test_keys_of_a_users_own_trainer_go_on(tmp_path, registered_digits):
    """They are in the checkpoint's config, and nobody else knows them."""
    for value in (1, 2):
        cfg = short_config(tmp_path, TINY)
        cfg.OWN = CfgNode({"KEY": value})
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=value == 2)
        trainer.iter = START
        trainer.checkpointer.save(f"model_{START:07d}", iteration=START)
    assert trainer.start_iter == START + 1
    assert trainer.checkpointer.changes == {"OWN.KEY": "1 -> 2"}


@pytest.mark.parametrize("average", ["ema_state", "model_ema"])
def test_an_average_of_weights_is_not_what_goes_on(resume, average):
    """Model, iteration and optimizer do; other projects save the average beside them."""
    weights = {}

    def add(content):
        weights.update(content["model"])
        content[average] = {name: value * 0 for name, value in weights.items()}

    trainer = resume(change=add)
    assert trainer.start_iter == START
    states = trainer.model.state_dict()
    assert all(torch.equal(states[name], value) for name, value in weights.items())
    assert_momentum(trainer, START)


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


def test_mixed_precision_may_be_newly_on_or_off(resume, tmp_path):
    trainer = resume(
        change=lambda content: content["trainer"]["_trainer"].pop("grad_scaler", 0), kind=Scaled
    )
    assert trainer.start_iter == START
    scaler = trainer._trainer.grad_scaler
    assert scaler.get_scale() == 512
    scaler.load_state_dict({**scaler.state_dict(), "scale": 64.0})
    trainer.checkpointer.save("model_0000003", iteration=START - 1)
    again = make(tmp_path, resume=True, keys=TINY, kind=Scaled)
    assert again._trainer.grad_scaler.get_scale() == 64
    assert make(tmp_path, resume=True, keys=TINY).start_iter == START


def test_metrics_go_on_and_a_run_that_dies_early_leaves_no_tag(tmp_path, registered_digits):
    """The run behind it begins anew."""
    keys = {"SOLVER.MAX_ITER": "2"}
    make(tmp_path, keys=keys).train()
    make(tmp_path, resume=True, keys={"SOLVER.MAX_ITER": "3"}).train()
    assert [i for i, _ in read_metrics(tmp_path / "metrics.json")["total_loss"]] == [1, 2]
    (tmp_path / "model_best.json").write_text('{"metric": "x", "value": 1, "iteration": 1}')
    make(tmp_path, keys=keys)  # dies before its first checkpoint
    assert (tmp_path / "model_final.pth").is_file()
    assert not (tmp_path / "model_best.json").exists()
    assert make(tmp_path, resume=True, keys=keys).start_iter == 0
