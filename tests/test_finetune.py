"""Fine-tuning from the command line on data in COCO's format."""

import contextlib
import itertools
import json
import re

import numpy as np
import pytest
import short_training
import torch
from commands import run_tool
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.structures import Boxes, Instances
from PIL import Image
from short_training import arguments, use_own_data

from resnest_d2 import model_zoo
from resnest_d2.commands.train import main
from resnest_d2.config import InputError
from resnest_d2.engine import Trainer, load_config
from resnest_d2.engine.finetune import TRAIN, VAL, mirrored_keypoints
from resnest_d2.modeling.detector import build_detector
from resnest_d2.weights import open_weights

DIGITS = model_zoo.get_config_file("mask_resnest14_digits")
TINY = short_training.options({"SOLVER.MAX_ITER": "2"})
NAMES = ["round", "straight", "bent"]


@pytest.fixture(scope="module")
def own_data(tiny_digits, tmp_path_factory):
    """The digits as somebody's own data: three classes whose ids have holes, no areas."""
    folder = tmp_path_factory.mktemp("own data")
    new_ids = {0: 90, 1: 4, 2: 25}  # contiguous: 1 straight, 2 bent, ... by id: 4, 25, 90
    for split in ("train", "val"):
        data = json.loads((tiny_digits / f"digits/annotations/digits_{split}.json").read_text())
        ids = sorted(category["id"] for category in data["categories"])
        data["categories"] = [{"id": new_ids[i], "name": name} for i, name in enumerate(NAMES)]
        for annotation in data["annotations"]:
            annotation["category_id"] = new_ids[ids.index(annotation["category_id"]) % 3]
            del annotation["area"]
        (folder / f"{split}.json").write_text(json.dumps(data))
    return {
        "folder": folder,
        "train": tiny_digits / "digits/train",
        "val": tiny_digits / "digits/val",
    }


def changed(own_data, split, folder, change):
    """Arguments that name a file of these data with other content."""
    data = json.loads((own_data["folder"] / f"{split}.json").read_text())
    change(data)
    (folder / f"{split}.json").write_text(json.dumps(data))
    return {f"{split}_json": folder / f"{split}.json", f"{split}_images": own_data[split]}


def options(files):
    return [str(w) for k, v in files.items() for w in (f"--{k.replace('_', '-')}", v)]


@pytest.fixture(scope="module")
def trained(own_data, tmp_path_factory):
    """The command's output and folder; it starts from a checkpoint of the ten digits."""
    output = tmp_path_factory.mktemp("fine tuned")
    weights = output / "ten_digits.pth"
    torch.save({"model": build_detector(load_config(DIGITS, TINY)).state_dict()}, weights)
    files = {f"{split}_json": own_data["folder"] / f"{split}.json" for split in ("train", "val")}
    files |= {f"{split}_images": own_data[split] for split in ("train", "val")}
    opts = ("OUTPUT_DIR", output, "MODEL.WEIGHTS", weights, *TINY)
    return run_tool("train_net.py", "--config-file", DIGITS, *options(files), *opts), output


def test_classes_follow_from_the_file(trained):
    result, output = trained
    assert result.returncode == 0, result.stderr
    log = (output / "log.txt").read_text()
    assert "3 classes: straight, bent, round" in result.stdout  # in the order of their ids
    assert "masks are RLE: masks are trained as bitmasks" in result.stdout
    shapes = r"cls_score.weight' .*\(11, 128\) in the checkpoint but \(4, 128\) in the model"
    assert re.search(shapes, log)
    assert "does not hold roi_heads.box_predictor, which start anew" in log
    saved = torch.load(output / "model_final.pth", weights_only=True)
    assert saved["classes"]["thing_classes"] == ["straight", "bent", "round"]
    assert saved["classes"]["thing_dataset_id_to_contiguous_id"] == {4: 0, 25: 1, 90: 2}
    assert saved["model"]["roi_heads.box_predictor.cls_score.weight"].shape[0] == 4
    completed = json.loads((output / "annotations_val.json").read_text())
    names = {c["id"]: c["name"] for c in completed["categories"]}
    assert names == {4: "straight", 25: "bent", 90: "round"}
    assert all(a["area"] > 0 for a in completed["annotations"])
    assert re.search(r"iter 2  box \d+\.\d  mask \d+\.\d", result.stdout)


@pytest.mark.parametrize("resume", [False, True])
def test_evaluation_counts_in_the_classes_of_the_checkpoint(
    trained, own_data, tmp_path, capsys, resume
):
    """A validation file with one of the classes; its own order would give it another number."""

    def only_one(data):
        data["categories"] = [c for c in data["categories"] if c["id"] == 90]
        data["annotations"] = [a for a in data["annotations"] if a["category_id"] == 90]

    files = options(changed(own_data, "val", tmp_path, only_one))
    folder = trained[1] if resume else tmp_path / "out"
    args = ["--config-file", DIGITS, "--eval-only", *["--resume"][: int(resume)], *files, *TINY]
    weights = [] if resume else ["MODEL.WEIGHTS", str(trained[1] / "model_final.pth")]
    assert main([*args, "OUTPUT_DIR", str(folder), *weights]) == 0
    assert f"bbox on {VAL} by " in capsys.readouterr().out
    completed = json.loads((folder / "annotations_val.json").read_text())
    assert [c["id"] for c in completed["categories"]] == [4, 25, 90]
    assert {a["category_id"] for a in completed["annotations"]} == {90}


def test_names_are_enough_for_the_order_of_classes(trained, own_data, tmp_path):
    """Data sets that are registered in Python have names without ids; val has another order."""
    classes = open_weights(trained[1] / "model_final.pth").classes
    del classes["thing_dataset_id_to_contiguous_id"]

    def reverse(data):
        for category in data["categories"]:
            category["id"] = 100 - category["id"]
        for annotation in data["annotations"]:
            annotation["category_id"] = 100 - annotation["category_id"]

    files = changed(own_data, "val", tmp_path, reverse)
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.OUTPUT_DIR = str(tmp_path)
    use_own_data(cfg, arguments(eval_only=True, **files), classes=classes)
    assert MetadataCatalog.get(VAL).thing_classes == ["straight", "bent", "round"]


def test_odd_categories_are_evaluated(own_data, tmp_path):
    """Roboflow's supercategory of the others, which is no class, and one that is listed twice.

    AP is computed on annotations_val.json, which has each class once.
    """

    def add(data):
        others = [{**one, "supercategory": "things"} for one in data["categories"]]
        data["categories"] = [{"id": 0, "name": "things", "supercategory": "none"}, *others]
        data["categories"].append(others[0])

    files = changed(own_data, "train", tmp_path, add) | changed(own_data, "val", tmp_path, add)
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.OUTPUT_DIR = str(tmp_path)
    use_own_data(cfg, arguments(**files))
    assert sorted(MetadataCatalog.get(TRAIN).thing_classes) == sorted(NAMES)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert MetadataCatalog.get(VAL).json_file == str(tmp_path / "annotations_val.json")
    written = json.loads((tmp_path / "annotations_val.json").read_text())
    order = [4, 25, 90]
    assert [c["id"] for c in written["categories"]] == order
    evaluator = Trainer.build_evaluator(cfg, VAL)
    evaluator.reset()
    for image in written["images"]:
        found = [a for a in written["annotations"] if a["image_id"] == image["id"]]
        instances = Instances((image["height"], image["width"]))
        boxes = torch.tensor([a["bbox"] for a in found], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes, instances.scores = Boxes(boxes), torch.ones(len(found))
        instances.pred_classes = torch.tensor([order.index(a["category_id"]) for a in found])
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def rename(data):
    for category in data["categories"]:
        category["name"] += "!"


def widen(data):
    data["annotations"][3]["bbox"] = "wide"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"was trained on the classes \['straight', 'bent', 'round'\], the data have"),
        (widen, r"\nannotation \d+: 'bbox' must be four numbers"),
    ],
)
def test_wrong_data_end_in_one_line(trained, own_data, tmp_path, capsys, change, message):
    """And other classes are not resumed."""
    files = options(changed(own_data, "train", tmp_path, change))
    args = ["--config-file", DIGITS, "--resume", *files, *TINY, "OUTPUT_DIR", str(trained[1])]
    with pytest.raises(SystemExit) as raised:
        main(args)
    assert raised.value.code == 2
    said = capsys.readouterr()
    assert re.search(message, said.err)
    assert "Traceback" not in said.err + said.out


@pytest.fixture
def train_files(own_data):
    return {"train_json": own_data["folder"] / "train.json", "train_images": own_data["train"]}


@pytest.mark.parametrize(
    "name", ["retinanet_resnest50", "pointrend_resnest50", "cascade_resnest50", "faster_resnest50"]
)
def test_heads_of_every_kind_get_the_number_of_classes(train_files, name):
    cfg = model_zoo.get_config(name)
    use_own_data(cfg, arguments(**train_files))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_detector(cfg)
    assert getattr(model, "roi_heads", model).num_classes == 3
    if name.startswith("pointrend"):
        assert model.roi_heads.mask_head.point_head.predictor.out_channels == 3
    assert cfg.DATASETS.TRAIN == (TRAIN,)
    assert cfg.DATASETS.TEST == ()
    has_masks = cfg.MODEL.MASK_ON
    entry = next(iter(build_detection_train_loader(cfg_small(cfg))))[0]
    assert entry["instances"].has("gt_masks") == has_masks


def cfg_small(cfg):
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 1
    return cfg


def test_keypoints(tmp_path, caplog):
    names = ["nose", "left_ear", "right_ear"]
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 30, 30]}
    annotation |= {"keypoints": [5, 5, 2, 9, 9, 2, 20, 9, 2], "num_keypoints": 3}
    category = {"id": 1, "name": "cat", "keypoints": names, "skeleton": [[1, 2], [1, 3]]}
    image = {"id": 1, "file_name": "a.png", "height": 40, "width": 40}
    data = {"images": [image], "annotations": [annotation], "categories": [category]}
    (tmp_path / "data.json").write_text(json.dumps(data))
    cfg = model_zoo.get_config("keypoint_resnest50")
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    files = {f"{s}_json": tmp_path / "data.json" for s in ("train", "val")}
    files |= {f"{s}_images": tmp_path for s in ("train", "val")}
    use_own_data(cfg, arguments(**files))
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 3
    assert cfg.TEST.KEYPOINT_OKS_SIGMAS == [0.05] * 3
    assert MetadataCatalog.get(TRAIN).keypoint_flip_map == [("left_ear", "right_ear")]
    assert MetadataCatalog.get(TRAIN).keypoint_connection_rules[1][:2] == ("nose", "right_ear")
    data["categories"][0]["keypoints"] = names[::-1]
    (tmp_path / "other.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="other.json: 1 error:\nits keypoints .* are not those"):
        use_own_data(cfg.clone(), arguments(**files | {"val_json": tmp_path / "other.json"}))
    use_own_data(cfg, arguments(**files))
    assert "No keypoint is named as left or right" not in caplog.text
    # Flipped, the ears change their names.
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    noses = set()
    for batch in itertools.islice(build_detection_train_loader(cfg_small(cfg)), 20):
        (keypoints,) = batch[0]["instances"].gt_keypoints.tensor
        assert keypoints[1, 0] < keypoints[2, 0]
        noses.add(bool(keypoints[0, 0] < keypoints[1, 0]))
    assert noses == {True, False}  # both kinds were drawn


@pytest.mark.parametrize(
    "names",
    [
        ("left_eye", "right_eye"),
        ("Left Eye", "Right Eye"),
        ("eyeLeft", "eyeRight"),
        ("LEFT", "RIGHT"),
    ],
)
def test_keypoints_change_places_in_a_mirror_by_their_names(names):
    others = ["nose", "tail", "left_alone", "shoulder blade", "All", "light"]
    assert mirrored_keypoints([*names, *others]) == [names]
    assert mirrored_keypoints([*others, *names[::-1]]) == [names]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"train_json": "x"}, "--train-json and --train-images belong together"),
        ({"val_json": "x", "val_images": "x"}, "--val-json alone is for --eval-only"),
        (
            {"train_json": "x", "train_images": "x", "eval_only": True},
            "--eval-only needs --val-json",
        ),
        ({"auto": True}, "training needs --train-json"),
        (
            {"val_json": "x", "val_images": "x", "eval_only": True, "auto": True},
            "--auto is for training",
        ),
    ],
)
def test_wrong_options(args, message):
    with pytest.raises(ValueError, match=message):
        use_own_data(model_zoo.get_config("mask_resnest50"), arguments(**args))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mask_resnest50", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("retinanet_resnest50", "MODEL.RETINANET.NUM_CLASSES"),
    ],
)
def test_a_number_of_classes_that_the_data_do_not_have(train_files, name, key):
    opts = [key, "5"]
    cfg = load_config(model_zoo.get_config_file(name), opts)
    with pytest.raises(InputError, match=f"{key} is 5 on the command line, but the data have 3"):
        use_own_data(cfg, arguments(opts=opts, **train_files))


def without_masks(data):
    for annotation in data["annotations"]:
        annotation.pop("segmentation", None)


def without_annotations(data):
    data["annotations"] = []


@pytest.mark.parametrize(
    ("name", "split", "change", "message"),
    [
        ("panoptic_resnest50", "train", None, "META_ARCHITECTURE PanopticFPN learns from maps"),
        ("deeplabv3plus_resnest50", "train", None, "SemanticSegmentor learns from maps"),
        ("keypoint_resnest50", "train", None, "train.json has no keypoints, which this config"),
        ("mask_resnest50", "train", without_masks, "train.json has no masks, which this config"),
        ("mask_resnest50", "val", without_masks, "val.json has no masks, which this config"),
        ("faster_resnest50", "train", without_annotations, "no annotation that can be learned"),
        ("cascade_box_resnest50", "train", without_masks, None),
    ],
)
def test_what_a_model_cannot_learn(train_files, own_data, tmp_path, name, split, change, message):
    files = changed(own_data, split, tmp_path, change or (lambda data: None))
    with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
        use_own_data(model_zoo.get_config(name), arguments(**train_files | files))


@pytest.fixture(autouse=True)
def _forget():
    yield
    for name in (TRAIN, VAL):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
