"""Training follows the reference: the same losses to the last bit, on real pictures."""

import json

import pytest
import torch
from commands import ROOT, run_python

from resnest_d2 import build_detector, model_zoo

pytestmark = pytest.mark.slow

NUCLEI = ROOT / "examples/nuclei"
ITERATIONS = 10
SMALL = {
    "DATASETS.TRAIN": ["nuclei"],
    "DATASETS.TEST": [],
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": [64, 96],
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MASK_FORMAT": "bitmask",
    "MODEL.DEVICE": "cpu",
    "MODEL.ROI_HEADS.NUM_CLASSES": 1,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "SEED": 7,
    "SOLVER.BASE_LR": 0.005,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": ITERATIONS,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "TEST.PRECISE_BN.ENABLED": False,
}
# In a process each: a registry holds one builder of a name.
TRAIN = """
import json, os, sys
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_setup, default_argument_parser
from detectron2.utils.env import seed_all_rng

whose, name, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
nuclei, output = sys.argv[4:]
register_coco_instances("nuclei", {}, f"{nuclei}/train.json", f"{nuclei}/images")
if whose == "reference":
    import resnest.d2
    from detectron2.engine import DefaultTrainer as Trainer
    cfg = get_cfg()
    resnest.d2.add_resnest_config(cfg)
else:
    import resnest_d2
    from resnest_d2.engine import Trainer
    cfg = resnest_d2.model_zoo.get_config(name)
for key, value in settings.items():
    cfg.merge_from_list([key, value])
os.makedirs(cfg.OUTPUT_DIR)
default_setup(cfg, default_argument_parser().parse_args([]))
trainer = Trainer(cfg)
trainer.resume_or_load()
seed_all_rng(7)  # drawing the weights that were replaced took different numbers
trainer.train()
losses = {
    key: [value.hex() for value, _ in history.values()]
    for key, history in trainer.storage.histories().items()
    if "loss" in key
}
json.dump(losses, open(output, "w"))
"""


@pytest.mark.parametrize("name", ["mask_resnest50", "cascade_resnest50"])
def test_losses_are_the_references_to_the_last_bit(reference, tmp_path, name):
    """The reference's builder and published settings in Detectron2's trainer, and ours."""
    published = json.loads((ROOT / "tests/data/zoo_settings.json").read_text())[name]
    # The reference cannot train SyncBN on a CPU; a process alone trains BN in its place.
    published |= {key: "BN" for key, value in published.items() if value == "SyncBN"}
    cfg = model_zoo.get_config(name)
    for key in ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.DEVICE"):
        cfg.merge_from_list([key, SMALL[key]])
    weights = tmp_path / "weights.pth"
    torch.save({"model": build_detector(cfg).state_dict()}, weights)
    losses = {}
    for whose, settings in (("reference", published), ("ours", {})):
        output = tmp_path / f"{whose}.json"
        settings = {**settings, **SMALL, "MODEL.WEIGHTS": str(weights)}
        settings["OUTPUT_DIR"] = str(tmp_path / whose)
        result = run_python(TRAIN, whose, name, json.dumps(settings), NUCLEI, output)
        assert result.returncode == 0, result.stderr
        losses[whose] = json.loads(output.read_text())
    assert len(losses["ours"]["total_loss"]) == ITERATIONS
    assert len(set(losses["ours"]["total_loss"])) == ITERATIONS  # it learns
    assert losses["ours"] == losses["reference"]
