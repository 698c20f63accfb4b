"""Precise BN: how many passes, and that they give the mean of the statistics of the batches."""

import pytest
import torch
from detectron2.data import MapDataset, build_batch_data_loader
from detectron2.data.samplers import TrainingSampler
from torch import nn

from resnest_d2.engine.loop import NonFiniteError
from resnest_d2.engine.precise_bn import PreciseBN


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, inputs):
        return self.norm(torch.stack([item["image"] for item in inputs]))


class Halting(Model):
    """A model of which a part is never reached, as by Detectron2 if proposals are not finite."""

    def __init__(self):
        super().__init__()
        self.behind = nn.BatchNorm2d(1)

    def forward(self, inputs):
        super().forward(inputs)
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN")


def make(images, batch, num_iter, max_iter, grouping=True, model=Model):
    entries = [
        {"image": torch.full((1, 4, 4), float(i)), "width": 4, "height": 4} for i in range(images)
    ]
    data = MapDataset(entries, dict)
    loader = build_batch_data_loader(
        data, TrainingSampler(images), batch, aspect_ratio_grouping=grouping, num_workers=0
    )
    return PreciseBN(0, model().train(), loader, num_iter, batch=batch, max_iter=max_iter)


@pytest.mark.parametrize(
    ("images", "batch", "num_iter", "max_iter", "passes"),
    [(90, 2, 200, 900, 45), (9, 2, 200, 900, 10), (9, 2, 3, 900, 3), (9, 2, 200, 2, 2)],
)
@pytest.mark.parametrize("grouping", [True, False])
def test_passes(images, batch, num_iter, max_iter, passes, grouping):
    assert make(images, batch, num_iter, max_iter, grouping).passes == passes


def test_statistics_are_of_all_images_with_a_progress_bar(capfd):
    hook = make(8, 2, 200, 4)
    hook.update_stats()
    assert hook._model.norm.running_mean.item() == pytest.approx(3.5)
    assert "4/4" in capfd.readouterr().err


def test_norms_that_no_pass_reaches_keep_their_statistics():
    hook = make(8, 2, 200, 4, model=Halting)
    hook.update_stats()
    assert hook._model.norm.running_mean.item() == pytest.approx(3.5)
    assert hook._model.behind.running_var.item() == 1


def test_passes_that_other_processes_wait_for(monkeypatch):
    monkeypatch.setattr("resnest_d2.engine.precise_bn.others_wait", lambda model: True)
    with pytest.raises(NonFiniteError, match="a pass of precise BN is not finite: Predicted box"):
        make(8, 2, 200, 4, model=Halting).update_stats()
