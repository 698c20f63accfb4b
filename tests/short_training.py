"""A training of a few iterations, which several test files run in their own process."""

import argparse
from pathlib import Path

from detectron2.engine import HookBase

from resnest_d2 import model_zoo
from resnest_d2.engine import Trainer, TrainingOptions, load_config
from resnest_d2.engine.finetune import ANNOTATIONS, fit_config, read_own_data, register

KEYS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "8",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "32",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "50",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "20",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "16",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "4",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.EVAL_PERIOD": "0",
    "DATASETS.TEST": "()",
    "DATALOADER.NUM_WORKERS": "0",
}


def options(keys=None):
    """These settings over those above, as on a command line."""
    return [part for pair in {**KEYS, **(keys or {})}.items() for part in pair]


def short_config(folder, keys=None):
    """The digits' config with these settings over those above."""
    file = model_zoo.get_config_file("mask_resnest14_digits")
    return load_config(file, [*options(keys), "OUTPUT_DIR", str(folder)])


def make(folder, resume=False, keys=None, kind=Trainer, **more):
    """A trainer that has loaded what it starts from.

    Args:
        folder: its output folder.
        resume: whether it goes on.
        keys: settings that differ from those above.
        kind: its class.
        more: fields of ``TrainingOptions``.
    """
    trainer = kind(short_config(folder, keys), TrainingOptions(**more))
    trainer.resume_or_load(resume=resume)
    return trainer


class At(HookBase):
    """Does something behind an iteration."""

    def __init__(self, iteration, act):
        self.iteration, self.act = iteration, act

    def after_step(self):
        if self.trainer.iter == self.iteration:
            self.act()


def arguments(eval_only=False, auto=False, opts=(), config_file="", **files):
    """What the command line of a training with one's own data says."""
    names = ("train_json", "train_images", "val_json", "val_images")
    given = {name: str(files[name]) if name in files else None for name in names}
    flags = {"eval_only": eval_only, "auto": auto, "resume": False, "config_file": config_file}
    folder = dict.fromkeys(("data", "model", "output"), "")
    return argparse.Namespace(opts=list(opts), **flags, **folder, **given)


def use_own_data(cfg, args, num_processes=1, classes=None):
    """Read, fit and register, as ``resnest-d2 train`` does."""
    data = read_own_data(cfg, args, classes or {})
    fit_config(cfg, args, data, num_processes)
    register(data, cfg.OUTPUT_DIR)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    if data[1]:
        data[1].write(Path(cfg.OUTPUT_DIR) / ANNOTATIONS)
    return data
