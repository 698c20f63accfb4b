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
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic_separated
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from panopticapi.utils import id2rgb
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
        self.images = folder / "images"
        self.images.mkdir()
        self.json = folder / "instances.json"
        self.objects, images, annotations = [], [], []
        for image in range(6):
            Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(self.images / f"{image}.png")
            images.append(
                {"id": image + 1, "file_name": f"{image}.png", "height": SIZE, "width": SIZE}
            )
            for _ in range(4):
                x, y = generator.integers(0, 24, 2).tolist()
                w, h = generator.integers(12, 40, 2).tolist()
                label = len(annotations) % 2
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": image + 1, "iscrowd": 0}
                    | {"category_id": label + 1, "bbox": [x, y, w, h], "area": w * h}
                    | {"segmentation": [polygon]}
                )
                self.objects.append([image, label, x, y, x + w, y + h])
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
        content = {"info": {}, "images": images, "annotations": annotations}
        self.json.write_text(json.dumps(content | {"categories": categories}))

    def checkpoint(self, file: Path, name: str, opts: list[str], objects: list) -> Path:
        cfg = model_zoo.get_config(name)
        cfg.merge_from_list(opts)
        state = build_model(cfg).state_dict()
        state["roi_heads.objects"][: len(objects)] = torch.tensor(objects, dtype=torch.float)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": state}, file)
        return file

    def expected(self, objects: list) -> dict[str, float]:
        """AP by pycocotools alone, from the same detections written as COCO's results."""
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(self.json))
            detections = [
                {"image_id": image + 1, "category_id": label + 1, "score": 1.0}
                | {"bbox": [x1, y1, x2 - x1, y2 - y1]}
                | {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
                for image, label, x1, y1, x2, y2 in objects
            ]
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
    def publish(name, metrics, file="the_model.pth"):
        row = Publication(file, metrics)
        monkeypatch.setitem(PUBLICATIONS, name, row)

    return publish


def run(tmp_path, *models, args=()):
    argv = ["--models", *models, "--output", str(tmp_path / "out")]
    argv += ["--weights-dir", str(tmp_path / "weights"), *args, "--opts", *OPTS]
    return tool.main(argv)


def report(tmp_path):
    """The rows by their metric."""
    rows = json.loads((tmp_path / "out/results.json").read_text())
    return {row["metric"]: row for row in rows}


def test_ground_truth_replayed_gives_100(replay, publish, tmp_path, capsys):
    publish("mask_resnest50", {"bbox/AP": 100.0, "segm/AP": 99.95})
    weights = tmp_path / "weights/mask_resnest50.pth"
    replay.checkpoint(weights, "mask_resnest50", OPTS, replay.objects)
    assert run(tmp_path, "mask_resnest50", args=["--any-dataset"]) == 0
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
    publish("mask_resnest50", expected)
    replay.checkpoint(tmp_path / "weights/mask_resnest50.pth", "mask_resnest50", OPTS, half)
    exact = ["--any-dataset", "--tolerance", "1e-6"]
    assert run(tmp_path, "mask_resnest50", args=exact) == 0

    # Published otherwise, the same figure is outside.
    publish("mask_resnest50", {**expected, "segm/AP": expected["segm/AP"] + 0.2})
    assert run(tmp_path, "mask_resnest50", args=["--any-dataset"]) == 1
    row = report(tmp_path)["segm/AP"]
    assert row["measured"] - row["published"] == pytest.approx(-0.2)


def test_what_was_measured_is_written_before_another_fails(replay, publish, tmp_path, capsys):
    publish("faster_resnest50", {"bbox/AP": 100.0})
    publish("mask_resnest50", {"bbox/AP": 100.0})
    weights = tmp_path / "weights/mask_resnest50.pth"
    replay.checkpoint(weights, "mask_resnest50", OPTS, replay.objects)
    with pytest.raises(SystemExit) as end:
        run(tmp_path, "mask_resnest50", "faster_resnest50", args=["--any-dataset"])
    assert end.value.code == 2
    assert "error: --weights-dir: there is neither" in capsys.readouterr().err
    assert (
        "| mask_resnest50 | bbox/AP | 100.00 | 100.00 |"
        in (tmp_path / "out/results.md").read_text()
    )


def test_a_figure_that_was_not_measured(replay, publish, tmp_path, capsys):
    publish("mask_resnest50", {"bbox/AP": 100.0, "panoptic_seg/PQ": 50.0})
    weights = tmp_path / "weights/mask_resnest50.pth"
    replay.checkpoint(weights, "mask_resnest50", OPTS, replay.objects)
    with pytest.raises(SystemExit):
        run(tmp_path, "mask_resnest50", args=["--any-dataset"])
    assert "was published with panoptic_seg/PQ, which was not measured" in capsys.readouterr().err


def test_data_that_are_not_val2017_are_refused(replay, publish, tmp_path, monkeypatch, capsys):
    publish("mask_resnest50", {"bbox/AP": 100.0})
    weights = tmp_path / "weights/mask_resnest50.pth"
    replay.checkpoint(weights, "mask_resnest50", OPTS, replay.objects)
    with pytest.raises(SystemExit) as end:
        run(tmp_path, "mask_resnest50")
    assert end.value.code == 2
    message = f"{replay.json} of data set 'replay_val' is not COCO's instances_val2017.json"
    assert message in capsys.readouterr().err
    digest = hashlib.sha256(replay.json.read_bytes()).hexdigest()
    monkeypatch.setattr(tool, "VAL2017_SHA256", digest)
    assert run(tmp_path, "mask_resnest50") == 0


@META_ARCH_REGISTRY.register()
class ReplayPanoptic(nn.Module):
    """Puts out the maps that its checkpoint holds."""

    def __init__(self, cfg):
        super().__init__()
        self.register_buffer("segments", torch.zeros(2, SIZE, SIZE, dtype=torch.int32))
        self.image = -1

    def forward(self, inputs):
        self.image += 1
        segments = self.segments[self.image]  # 0 sky (stuff), 1 and 2 things
        infos = [{"id": 1, "isthing": False, "category_id": 1, "area": 1}]
        instances = Instances((SIZE, SIZE))
        masks = torch.stack([segments == i for i in (1, 2)])
        boxes = [[m.nonzero()[:, 1].min(), m.nonzero()[:, 0].min()] for m in masks]
        ends = [[m.nonzero()[:, 1].max() + 1, m.nonzero()[:, 0].max() + 1] for m in masks]
        instances.pred_boxes = Boxes(
            torch.tensor([b + e for b, e in zip(boxes, ends, strict=True)])
        )
        instances.scores, instances.pred_classes = torch.ones(2), torch.tensor([0, 1])
        instances.pred_masks = masks
        infos += [
            {"id": i + 1, "isthing": True, "category_id": i - 1, "score": 1.0} for i in (1, 2)
        ]
        semantic = torch.stack([segments > 0, segments == 0]).float()
        return [
            {"instances": instances, "sem_seg": semantic, "panoptic_seg": (segments + 1, infos)}
        ]


def test_panoptic_models_too(publish, tmp_path):
    """Three figures of one model, from the ground truth of a tiny panoptic set."""
    folders = {name: tmp_path / name for name in ("images", "panoptic", "semantic")}
    for folder in folders.values():
        folder.mkdir()
    maps = torch.zeros(2, SIZE, SIZE, dtype=torch.int32)
    maps[0, 4:20, 4:20], maps[0, 30:60, 30:50] = 1, 2
    maps[1, 10:50, 10:20], maps[1, 2:30, 40:64] = 1, 2
    images, annotations, instances = [], [], []
    for index, segments in enumerate(maps.numpy()):
        name = f"{index}.png"
        Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(
            folders["images"] / f"{index}.jpg"
        )
        Image.fromarray(id2rgb(segments + 1)).save(folders["panoptic"] / name)
        Image.fromarray((segments == 0).astype(np.uint8)).save(folders["semantic"] / name)
        image = {"id": index + 1, "file_name": f"{index}.jpg", "height": SIZE, "width": SIZE}
        images.append(image)
        infos = []
        for label, category in ((0, 92), (1, 1), (2, 2)):
            ys, xs = np.nonzero(segments == label)
            box = [int(v) for v in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)]
            infos.append(
                {
                    "id": label + 1,
                    "category_id": category,
                    "area": len(xs),
                    "bbox": box,
                    "iscrowd": 0,
                }
            )
            if label:
                x, y, w, h = box
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                instances.append(
                    {**infos[-1], "id": len(instances) + 1, "image_id": index + 1}
                    | {"segmentation": [polygon]}
                )
        annotations.append({"image_id": index + 1, "file_name": name, "segments_info": infos})
    things = [{"id": i + 1, "name": n, "isthing": 1} for i, n in enumerate(CLASSES)]
    stuff = [{"id": 92, "name": "sky", "isthing": 0}]
    panoptic = {"images": images, "annotations": annotations, "categories": things + stuff}
    (tmp_path / "panoptic.json").write_text(json.dumps(panoptic))
    detection = {"images": images, "annotations": instances, "categories": things}
    (tmp_path / "instances.json").write_text(json.dumps(detection))
    register_coco_panoptic_separated(
        "replay_panoptic",
        {
            "thing_dataset_id_to_contiguous_id": {1: 0, 2: 1},
            "stuff_dataset_id_to_contiguous_id": {1: 0, 92: 1},
            "stuff_classes": ["things", "sky"],
            "thing_classes": CLASSES,
        },
        str(folders["images"]),
        str(folders["panoptic"]),
        str(tmp_path / "panoptic.json"),
        str(folders["semantic"]),
        str(tmp_path / "instances.json"),
    )
    name = "panoptic_resnest200_3x"
    publish(name, {"bbox/AP": 100.0, "segm/AP": 100.0, "panoptic_seg/PQ": 100.0})
    (tmp_path / "weights").mkdir()
    torch.save({"model": {"segments": maps}}, tmp_path / f"weights/{name}.pth")
    argv = ["--models", name, "--output", str(tmp_path / "out"), "--any-dataset"]
    argv += ["--weights-dir", str(tmp_path / "weights"), "--opts", "MODEL.DEVICE", "cpu"]
    argv += ["MODEL.META_ARCHITECTURE", "ReplayPanoptic", "DATALOADER.NUM_WORKERS", "0"]
    argv += ["DATASETS.TEST", "('replay_panoptic_separated',)"]
    assert tool.main(argv) == 0
    assert report(tmp_path)["panoptic_seg/PQ"]["measured"] == pytest.approx(100)


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
    publish("mask_resnest50", {"bbox/AP": 1.0}, file.name)
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
