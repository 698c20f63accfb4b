"""A loss that is not finite stops training before the weights learn from it."""

import json

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.modeling.proposal_generator import rpn
from short_training import loop, make

from resnest_d2.engine.loop import NonFiniteError

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
