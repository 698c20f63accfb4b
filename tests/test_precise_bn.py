"""Precise BN: how many passes, and that they give the mean of the statistics of the batches."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine.hooks import PreciseBN
from short_training import make, short_config

from resnest_d2.engine import Trainer

BN = {"TEST.PRECISE_BN.ENABLED": "True", "MODEL.BACKBONE.FREEZE_AT": "0"}


@pytest.fixture
def many_digits(registered_digits):
    """Ninety entries of the six pictures."""
    entries = DatasetCatalog.get("digits_train")
    DatasetCatalog.register("many_digits", lambda: entries * 15)
    MetadataCatalog.get("many_digits").set(thing_classes=[str(n) for n in range(10)])
    yield "many_digits"
    DatasetCatalog.remove("many_digits")
    MetadataCatalog.remove("many_digits")


@pytest.mark.parametrize(
    ("batch", "num_iter", "max_iter", "passes"),
    [(2, 200, 900, 45), (4, 200, 900, 22), (2, 3, 900, 3), (2, 200, 2, 2)],
)
@pytest.mark.parametrize("grouping", ["True", "False"])
def test_passes(tmp_path, many_digits, batch, num_iter, max_iter, passes, grouping):
    """As many as the data have batches or the run has iterations, and no more than asked for."""
    keys = {**BN, "DATASETS.TRAIN": f"('{many_digits}',)", "SOLVER.IMS_PER_BATCH": str(batch)}
    keys |= {"SOLVER.MAX_ITER": str(max_iter), "TEST.PRECISE_BN.NUM_ITER": str(num_iter)}
    keys |= {"DATALOADER.ASPECT_RATIO_GROUPING": grouping, "SOLVER.STEPS": "()"}
    cfg = short_config(tmp_path, keys)
    trainer = Trainer(cfg)
    (hook,) = (hook for hook in trainer._hooks if isinstance(hook, PreciseBN))
    assert hook._num_iter == passes
    assert cfg.TEST.PRECISE_BN.NUM_ITER == num_iter  # the config, and the checkpoint's, stays
    assert f"NUM_ITER: {num_iter}" in trainer.checkpointer._config


def test_statistics_are_the_mean_over_the_batches(tmp_path, registered_digits):
    trainer = make(tmp_path, keys={**BN, "SOLVER.IMS_PER_BATCH": "3"})
    norm = trainer.model.backbone.bottom_up.stem.conv1_1.norm
    means = []
    norm.register_forward_pre_hook(lambda layer, x: means.append(x[0].mean(dim=(0, 2, 3))))
    (hook,) = (hook for hook in trainer._hooks if isinstance(hook, PreciseBN))
    hook.update_stats()
    assert len(means) == 2
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
