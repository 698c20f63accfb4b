"""Precise BN: how many passes, and that they give the mean of the statistics of the batches."""

import pytest
import torch
from detectron2.data import MapDataset, build_batch_data_loader
from detectron2.data.samplers import TrainingSampler
from torch import nn

from resnest_d2.engine.precise_bn import PreciseBN


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, inputs):
        return self.norm(torch.stack([item["image"] for item in inputs]))


def make(images, batch, num_iter, max_iter, grouping=True):
    entries = [
        {"image": torch.full((1, 4, 4), float(i)), "width": 4, "height": 4} for i in range(images)
    ]
    data = MapDataset(entries, dict)
    loader = build_batch_data_loader(
        data, TrainingSampler(images), batch, aspect_ratio_grouping=grouping, num_workers=0
    )
    return PreciseBN(0, Model().train(), loader, num_iter, batch=batch, max_iter=max_iter)


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
