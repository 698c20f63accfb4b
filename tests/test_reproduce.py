"""resnest-d2 reproduce, end to end: planted checkpoints whose AP is known beforehand."""

import contextlib
import copy
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from resnest_d2 import model_zoo
from resnest_d2.commands import reproduce as tool
from resnest_d2.commands.reproduce import choose_models, find_checkpoint
from resnest_d2.config import InputError
from resnest_d2.model_zoo.published import PUBLICATIONS, Publication

SIZE, MOST = 64, 64
CLASSES = ["square", "bar"]


@ROI_HEADS_REGISTRY.register()
class ReplayHeads(nn.Module):
    """Detects what its checkpoint holds: image (in the loader's order), class, box of objects."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.register_buffer("objects", torch.full((MOST, 6), -1.0))
        self.image = -1

    def forward(self, images, features, proposals, targets=None):
        results = []
        for size in images.image_sizes:
            self.image += 1
            mine = self.objects[self.objects[:, 0] == self.image]
            instances = Instances(size)
            instances.pred_boxes = Boxes(mine[:, 2:])
            instances.scores = torch.ones(len(mine))
            instances.pred_classes = mine[:, 1].long()
            instances.pred_masks = torch.ones(len(mine), 1, 28, 28)  # pasted, they fill the boxes
            results.append(instances)
        return results, {}


class Replay:
    """A tiny COCO-format set of rectangles, and checkpoints that know it."""

    def __init__(self, folder: Path) -> None:
        generator = np.random.default_rng(0)
        self.folder, self.images = folder, folder / "images"
        self.images.mkdir()
        self.json = folder / "instances.json"
        self.objects, images, annotations = [], [], []
        for image in range(6):
            Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(self.images / f"{image}.png")
            size = {"height": SIZE, "width": SIZE}
            images.append({"id": image + 1, "file_name": f"{image}.png", **size})
            for _ in range(4):
                x, y = generator.integers(0, 24, 2).tolist()
                w, h = generator.integers(12, 40, 2).tolist()
                self.objects.append([image, len(annotations) % 2, x, y, x + w, y + h])
                annotations.append(
                    {"id": len(annotations) + 1, "iscrowd": 0, "area": w * h}
                    | self._annotation(*self.objects[-1])
                )
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
        content = {"info": {}, "images": images, "annotations": annotations}
        self.json.write_text(json.dumps(content | {"categories": categories}))

    @staticmethod
    def _annotation(image: int, label: int, x1: int, y1: int, x2: int, y2: int) -> dict:
        polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [polygon]}
        return {"image_id": image + 1, "category_id": label + 1, **box}

    def save(self, objects: list, name: str = "mask_resnest50") -> None:
        """The checkpoint of a model that detects these."""
        cfg = model_zoo.get_config(name)
        cfg.merge_from_list(OPTS)
        state = build_model(cfg).state_dict()
        state["roi_heads.objects"][: len(objects)] = torch.tensor(objects, dtype=torch.float)
        (self.folder / "weights").mkdir(exist_ok=True)
        torch.save({"model": state}, self.folder / f"weights/{name}.pth")

    def expected(self, objects: list) -> dict[str, float]:
        """AP by pycocotools alone, from the same detections written as COCO's results."""
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(self.json))
            detections = [{"score": 1.0, **self._annotation(*one)} for one in objects]
            metrics = {}
            for task in ("bbox", "segm"):
                evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), task)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                metrics[f"{task}/AP"] = 100 * float(evaluation.stats[0])
        return metrics


DATA = "replay_val"
OPTS = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "14", "MODEL.ROI_HEADS.NAME", "ReplayHeads"),
    *("DATASETS.TEST", f"('{DATA}',)", "INPUT.MIN_SIZE_TEST", str(SIZE)),
    *("DATALOADER.NUM_WORKERS", "0", "MODEL.RPN.POST_NMS_TOPK_TEST", "5"),
]


@pytest.fixture
def replay(tmp_path):
    data = Replay(tmp_path)
    register_coco_instances(DATA, {}, str(data.json), str(data.images))
    yield data
    DatasetCatalog.remove(DATA)
    MetadataCatalog.remove(DATA)


@pytest.fixture
def publish(monkeypatch):
    def publish(metrics, name="mask_resnest50", file="the_model.pth"):
        monkeypatch.setitem(PUBLICATIONS, name, Publication(file, metrics))

    return publish


def run(tmp_path, *models, args=("--any-dataset",)):
    argv = ["--models", *(models or ["mask_resnest50"]), "--output", str(tmp_path / "out")]
    argv += ["--weights-dir", str(tmp_path / "weights"), *args, "--opts", *OPTS]
    return tool.main(argv)


def fails(capsys, *arguments, **options):
    with pytest.raises(SystemExit) as end:
        run(*arguments, **options)
    assert end.value.code == 2
    return capsys.readouterr().err


def report(tmp_path):
    """The rows by their metric."""
    rows = json.loads((tmp_path / "out/results.json").read_text())
    return {row["metric"]: row for row in rows}


def test_ground_truth_replayed_gives_100(replay, publish, tmp_path, capsys):
    publish({"bbox/AP": 100.0, "segm/AP": 99.95})
    replay.save(replay.objects)
    assert run(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "| mask_resnest50 | bbox/AP | 100.00 | 100.00 | +0.00 | yes |" in printed
    assert "| mask_resnest50 | segm/AP | 99.95 | 100.00 | +0.05 | yes |" in printed
    assert "No hash shows these checkpoints to be the published ones: mask_resnest50." in printed
    assert (tmp_path / "out/results.md").read_text().count("| mask_resnest50 |") == 2
    row = report(tmp_path)["segm/AP"]
    assert row["measured"] == pytest.approx(100)
    assert (row["published"], row["verified"]) == (99.95, False)


def test_half_of_it_gives_what_pycocotools_gives(replay, publish, tmp_path):
    """Every other pair is missing; the figure is pycocotools' own, the tolerance a millionth."""
    half = [o for index, o in enumerate(replay.objects) if index % 4 < 2]
    expected = replay.expected(half)
    assert 0 < expected["bbox/AP"] < 60
    publish(expected)
    replay.save(half)
    assert run(tmp_path, args=["--any-dataset", "--tolerance", "1e-6"]) == 0
    # Published otherwise, the same figure is outside.
    publish({**expected, "segm/AP": expected["segm/AP"] + 0.2})
    assert run(tmp_path) == 1
    row = report(tmp_path)["segm/AP"]
    assert row["measured"] - row["published"] == pytest.approx(-0.2)


def test_what_was_measured_is_written_before_another_fails(replay, publish, tmp_path, capsys):
    for name in ("faster_resnest50", "mask_resnest50"):
        publish({"bbox/AP": 100.0}, name)
    replay.save(replay.objects)
    printed = fails(capsys, tmp_path, "mask_resnest50", "faster_resnest50")
    assert "error: --weights-dir: there is neither" in printed
    written = (tmp_path / "out/results.md").read_text()
    assert "| mask_resnest50 | bbox/AP | 100.00 | 100.00 |" in written
    publish({"bbox/AP": 100.0, "panoptic_seg/PQ": 50.0})
    printed = fails(capsys, tmp_path)
    assert "was published with panoptic_seg/PQ, which was not measured" in printed


def test_data_that_are_not_val2017_are_refused(replay, publish, tmp_path, monkeypatch, capsys):
    publish({"bbox/AP": 100.0})
    replay.save(replay.objects)
    message = f"{replay.json} of data set 'replay_val' is not COCO's instances_val2017.json"
    assert message in fails(capsys, tmp_path, args=())
    digest = hashlib.sha256(replay.json.read_bytes()).hexdigest()
    monkeypatch.setattr(tool, "VAL2017_SHA256", digest)
    assert run(tmp_path, args=()) == 0


def test_models_to_choose():
    everything = choose_models(["all"])
    assert len(everything) == 21 + 8
    assert "cascade_resnest101" in everything
    assert "cascade_resnest200_dcn_3x_ms" not in everything
    assert choose_models(["mask_resnest50.yaml", "mask_resnest50"]) == ["mask_resnest50"]
    for names, message in (
        (["all", "mask_resnest50"], "no model 'all'"),
        (["mask_resnest269"], "'mask_resnest269' cannot be compared: .* published on no data set"),
        (["mask_resnet50"], "no model 'mask_resnet50'; did you mean baselines/mask_resnet50"),
        (["cascade_resnest200_dcn_3x_ms"], "is published on coco_2017_test-dev"),
    ):
        with pytest.raises(InputError, match=message):
            choose_models(names)


def test_published_checkpoints_are_known_by_their_hash(tmp_path, publish):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    file = tmp_path / f"the_model-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    publish({"bbox/AP": 1.0}, file=file.name)
    file.write_bytes(content)
    checkpoint, is_verified = find_checkpoint("mask_resnest50", tmp_path)
    assert (checkpoint.name, is_verified) == (str(file), True)
    file.write_bytes(content + b"!")
    with pytest.raises(InputError, match=f"{file.name} is not what was published"):
        find_checkpoint("mask_resnest50", tmp_path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--models", "mask_resnet50"], "error: no model 'mask_resnet50'; did you mean"),
        (["--models", "all", "--tolerance", "-1"], "error: --tolerance must be between 0 and 100"),
        (
            ["--models", "all", "--opts", "MODEL.X", "1"],
            "error: the command line: Non-existent key",
        ),
        (["--models", "all"], "error: DATASETS.TEST: data set 'coco_2017_val' needs"),
    ],
)
def test_wrong_arguments(args, message, tmp_path, capsys, monkeypatch):
    """Before any weights are asked for."""
    monkeypatch.setattr(tool, "open_weights", lambda path: 1 / 0)
    with pytest.raises(SystemExit) as end:
        tool.main([*args[:2], "--output", str(tmp_path / "out"), *args[2:]])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
