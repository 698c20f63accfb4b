"""The 1x schedule: 90,000 iterations, a tenth of the rate at 60,000 and at 80,000."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[60000, 80000], num_updates=90000
    ),
    warmup_factor=0.001,
    warmup_length=1000 / 90000,
    warmup_method="linear",
)
