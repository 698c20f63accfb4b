"""A loss that is not finite stops training before the weights learn from it."""

import itertools
import json

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.modeling.proposal_generator import rpn
from short_training import loop, make

from resnest_d2.engine.loop import NonFiniteError
from resnest_d2.engine.precise_bn import PreciseBN

pytestmark = pytest.mark.usefixtures("registered_digits")

KEYS = {"SOLVER.MAX_ITER": "6"}
LAZY_KEYS = {"train.max_iter": "6"}


def spoil(trainer, iterations, value=float("nan")):
    """Make a loss of these iterations another value."""
    inner = getattr(loop(trainer), "_trainer", loop(trainer))
    model, real = inner.model, inner.model.forward

    def forward(data):
        losses = real(data)
        if inner.iter in iterations:
            losses["loss_cls"] = losses["loss_cls"] * value
        return losses

    model.forward = forward
    return model


def reports(folder):
    file = folder / "non_finite_losses.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("lazy", [False, True])
def test_it_is_named_and_nothing_is_learned(tmp_path, lazy, value):
    trainer = make(tmp_path, lazy, keys=LAZY_KEYS if lazy else KEYS)
    model = spoil(trainer, {3}, value)
    message = r"iteration 3 has no finite loss \(loss_cls -?(nan|inf)\) at the rate .*, on .*png"
    with pytest.raises(NonFiniteError, match=message):
        trainer.train()
    assert all(p.isfinite().all() for p in model.parameters())
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    (report,) = reports(tmp_path)
    assert report["iteration"] == 3
    (process,) = report["processes"]
    assert len(process["files"]) == 2
    assert process["losses"]["loss_cls"] in ("nan", "inf", "-inf")
    assert isinstance(process["losses"]["loss_mask"], float)


def test_bad_batches_are_left_out(tmp_path, caplog):
    trainer = make(tmp_path, keys=KEYS, skip_bad_batches=2)
    model = spoil(trainer, {1, 3})
    trainer.train()
    assert all(p.isfinite().all() for p in model.parameters())
    assert "batch 1 of 2 left out" in caplog.text
    assert "batch 2 of 2 left out" in caplog.text
    assert [r["iteration"] for r in reports(tmp_path)] == [1, 3]


def test_a_batch_that_is_left_out_changes_nothing(tmp_path):
    """The optimizer's momentum neither: weights before and after are the same."""
    trainer = make(tmp_path, keys=KEYS, skip_bad_batches=1)
    model = spoil(trainer, {2})
    seen = {}

    class Watch(HookBase):
        def before_step(self):
            seen[self.trainer.iter] = [p.detach().clone() for p in model.parameters()]

    trainer.register_hooks([Watch()])
    trainer.train()
    assert all(map(torch.equal, seen[2], seen[3]))
    assert not all(map(torch.equal, seen[1], seen[2]))


def test_too_many_stop_it(tmp_path):
    trainer = make(tmp_path, keys=KEYS, skip_bad_batches=1)
    spoil(trainer, {1, 3})
    with pytest.raises(NonFiniteError, match="iteration 3 has no finite loss"):
        trainer.train()


def test_proposals_that_are_not_finite(tmp_path, monkeypatch):
    """Detectron2 raises an error of its own in the middle of the model."""
    real, calls = rpn.find_top_rpn_proposals, []

    def find(proposals, *args):
        calls.append(0)
        if len(calls) == 3:
            proposals = [p * torch.nan for p in proposals]
        return real(proposals, *args)

    monkeypatch.setattr(rpn, "find_top_rpn_proposals", find)
    trainer = make(tmp_path, keys=KEYS)
    with pytest.raises(NonFiniteError, match=r"iteration 2 .*proposals nan.* on .*png"):
        trainer.train()


def test_spoilt_weights_are_told_apart(tmp_path):
    trainer = make(tmp_path, keys=KEYS)
    with torch.no_grad():
        trainer.model.roi_heads.box_predictor.cls_score.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="The weights are not finite any more: lower the rate"):
        trainer.train()


PRECISE = {
    **{"TEST.PRECISE_BN.ENABLED": "True", "TEST.PRECISE_BN.NUM_ITER": "3"},
    **{"TEST.EVAL_PERIOD": "2", "DATASETS.TEST": "('digits_val',)"},
}


@pytest.mark.parametrize("where", ["losses", "proposals"])
def test_passes_of_precise_bn_learn_nothing_and_end_nothing(tmp_path, monkeypatch, caplog, where):
    trainer = make(tmp_path, keys=PRECISE)
    for hook in trainer._hooks:
        if type(hook).__name__ == "EvalHook":
            hook._func = dict
    real, passing = rpn.find_top_rpn_proposals, []

    def proposals(*args, **options):
        if passing[-1] and where == "proposals":
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
        return real(*args, **options)

    monkeypatch.setattr(rpn, "find_top_rpn_proposals", proposals)
    forward = trainer.model.forward

    def spoilt(data):
        passing.append(not torch.is_grad_enabled())
        losses = forward(data)
        return {k: v * torch.nan for k, v in losses.items()} if passing[-1] else losses

    trainer.model.forward = spoilt
    trainer.train()
    assert (tmp_path / "model_final.pth").is_file()
    assert sum(passing) == 6
    assert not (tmp_path / "non_finite_losses.jsonl").exists()
    left_out = caplog.text.count("A batch is left out of precise BN: Predicted boxes")
    assert left_out == (6 if where == "proposals" else 0)


def test_statistics_that_are_not_finite_are_not_taken(tmp_path, caplog):
    trainer = make(tmp_path, keys=PRECISE)
    (hook,) = (hook for hook in trainer._hooks if isinstance(hook, PreciseBN))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items() if "running" in k}
    batch = next(hook._batches)
    for image in batch:
        image["image"] = image["image"].float() * torch.inf
    hook._batches = itertools.repeat(batch)
    trainer.model.train()
    hook.update_stats()
    assert "statistics that are not finite: those of training stay" in caplog.text
    after = trainer.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
