"""A training of a few iterations, which several test files run in their own process."""

from resnest_d2 import model_zoo
from resnest_d2.engine import Trainer, load_config
from resnest_d2.engine.lazy_trainer import LazyTrainer
from resnest_d2.engine.options import TrainingOptions

YAML = {
    "MODEL.DEVICE": "cpu",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "4",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.EVAL_PERIOD": "0",
    "DATASETS.TEST": "()",
}
LAZY = {
    "train.device": "cpu",
    "dataloader.train.total_batch_size": "2",
    "train.max_iter": "4",
    "train.checkpointer.period": "2",
    "train.eval_period": "0",
    "dataloader.test.dataset.names": "[]",
}


def make(folder, lazy=False, resume=False, keys=None, **options):
    """A trainer that has loaded what it starts from.

    Args:
        folder: its output folder.
        lazy: whether the config is a LazyConfig.
        resume: whether it goes on.
        keys: settings that differ from those above.
        options: fields of ``TrainingOptions``.
    """
    given = {**(LAZY if lazy else YAML), **(keys or {})}
    if lazy:
        name, kind = "lazy/mask_resnest14_digits", LazyTrainer
        opts = [f"{k}={v}" for k, v in given.items()] + [f"train.output_dir='{folder}'"]
    else:
        name, kind = "mask_resnest14_digits", Trainer
        opts = [part for pair in given.items() for part in pair] + ["OUTPUT_DIR", str(folder)]
    cfg = load_config(model_zoo.get_config_file(name), opts)
    trainer = kind(cfg, TrainingOptions(**options))
    trainer.resume_or_load(resume=resume)
    return trainer


def loop(trainer):
    """The object with Detectron2's loop: iteration, hooks, model."""
    return getattr(trainer, "loop", trainer)
