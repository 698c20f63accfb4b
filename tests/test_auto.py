"""Settings that follow from the data: by the rules, and never over the command line's."""

import json
import re
import shlex

import pytest
from commands import ROOT, run_command
from PIL import Image
from short_training import arguments

from resnest_d2 import model_zoo
from resnest_d2.engine import load_config
from resnest_d2.engine.finetune import fit_config, read_own_data


def own(json_file, images):
    return {"train_json": json_file, "train_images": images}


@pytest.fixture
def make(tmp_path):
    """Write a data set of squares and return the arguments that train on it."""

    def write(number, width, height, side, objects):
        Image.new("RGB", (width, height)).save(tmp_path / "a.png")
        for index in range(number):
            (tmp_path / f"{index}.png").write_bytes((tmp_path / "a.png").read_bytes())
        data = {
            "images": [{"id": i, "file_name": f"{i}.png"} for i in range(number)],
            "categories": [{"id": 1, "name": "square"}],
            "annotations": [
                {"image_id": i, "category_id": 1, "bbox": [j % 9, j // 9, side, side]}
                for i in range(number)
                for j in range(objects)
            ],
        }
        (tmp_path / "data.json").write_text(json.dumps(data))
        return own(tmp_path / "data.json", tmp_path)

    return write


def automatic(name, files, *opts, num_processes=1):
    cfg = load_config(model_zoo.get_config_file(name), opts)
    cfg.MODEL.DEVICE = "cpu"
    file = model_zoo.get_config_file(name)
    args = arguments(auto=True, opts=opts, config_file=file, **files)
    data = read_own_data(cfg, args, {})
    cfg.WHY = fit_config(cfg, args, data, num_processes)
    return cfg


def test_few_small_images_of_small_objects(make):
    cfg = automatic("faster_resnest50", make(10, 256, 256, 6, 20))
    # Objects of 6 pixels have 9 where images are half as large again; anchors begin at 8.
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TRAIN) == (384, (320, 384))
    assert cfg.INPUT.MAX_SIZE_TEST == cfg.INPUT.MAX_SIZE_TRAIN == 448
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[8], [16], [32], [64], [128]]
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100
    # 1,500 images, with 20 objects each, in batches of 4, at a quarter of the rate for 16.
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (4, 0.02 / 4)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (375, (250, 333))
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.TEST.EVAL_PERIOD) == (37, 75)
    assert automatic("faster_resnest50", make(10, 256, 256, 6, 9)).SOLVER.MAX_ITER == 500
    assert automatic("faster_resnest50", make(40, 256, 256, 6, 90)).SOLVER.MAX_ITER == 200
    assert cfg.SOLVER.REFERENCE_WORLD_SIZE == 0
    # A backbone that knows ImageNet keeps its norms.
    assert cfg.TEST.PRECISE_BN.ENABLED
    assert cfg.MODEL.RESNETS.NORM == cfg.MODEL.FPN.NORM == cfg.MODEL.ROI_BOX_HEAD.NORM == "SyncBN"


@pytest.mark.parametrize(
    ("size", "opts", "norm"),
    [
        (256, [], "GN"),
        (128, [], "SyncBN"),  # batches of 8
        (256, ["MODEL.RESNETS.BOTTLENECK_WIDTH", "40"], "SyncBN"),  # 32 do not divide 20 channels
        (256, ["MODEL.ROI_BOX_HEAD.CONV_DIM", "40"], "SyncBN"),
    ],
)
def test_small_batches_from_random_weights_take_group_norm(make, size, opts, norm):
    files = make(10, size, size, 40, 1)
    cfg = automatic("mask_resnest14_digits", files, "MODEL.MASK_ON", "False", *opts)
    parts = (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.ROI_BOX_HEAD)
    assert [part.NORM for part in parts] == [norm] * 3
    assert cfg.TEST.PRECISE_BN.ENABLED == (norm == "SyncBN")


@pytest.mark.parametrize(
    ("objects", "regions"), [(1, 32), (7, 32), (20, 64), (36, 128), (300, 512)]
)
def test_samples(make, objects, regions):
    """A small config learns from four regions an object, and from pictures of all shapes."""
    cfg = automatic(
        "mask_resnest14_digits", make(3, 256, 256, 12, objects), "MODEL.MASK_ON", "False"
    )
    assert cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == regions
    assert not cfg.DATALOADER.ASPECT_RATIO_GROUPING
    assert cfg.INPUT.RANDOM_FLIP == "horizontal"
    opts = ["MODEL.MASK_ON", "False", "INPUT.RANDOM_FLIP", "none"]
    assert (
        automatic("mask_resnest14_digits", make(3, 64, 64, 9, 1), *opts).INPUT.RANDOM_FLIP == "none"
    )
    published = automatic("faster_resnest50", make(3, 256, 256, 12, objects))
    assert published.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == 512


def test_norms_of_heads_follow_and_others_stay(make):
    """Mask heads have norms too; frozen and given ones stay, as do those of other backbones."""
    files, off = make(10, 256, 256, 40, 1), ["MODEL.MASK_ON", "False", "MODEL.WEIGHTS", ""]
    cfg = automatic("mask_resnest50", files, *off)
    assert cfg.MODEL.ROI_MASK_HEAD.NORM == cfg.MODEL.RESNETS.NORM == "GN"
    cfg = automatic("mask_resnest50", files, *off, "MODEL.RESNETS.NORM", "BN")
    assert cfg.MODEL.RESNETS.NORM == "BN"
    assert cfg.MODEL.FPN.NORM == "SyncBN"
    assert cfg.TEST.PRECISE_BN.ENABLED
    cfg = automatic("baselines/mask_resnet50", files, *off)
    assert "GN" not in (cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM)


def test_large_images_of_many_objects(make):
    cfg = automatic("retinanet_resnest50", make(200, 1600, 1200, 200, 300))
    assert cfg.INPUT.MIN_SIZE_TEST == 384
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[0][0] == 32  # 64 pixels: the config's own are right
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 450
    assert cfg.SOLVER.MAX_ITER == 1000  # batches of 4, 20 times 200
    cfg = automatic("faster_resnest50", make(2, 1600, 1200, 200, 700))
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 2 * cfg.TEST.DETECTIONS_PER_IMAGE == 2100
    assert cfg.MODEL.RPN.PRE_NMS_TOPK_TEST == 4200


def test_the_command_line_counts(make):
    opts = ["SOLVER.MAX_ITER", "7", "INPUT.MIN_SIZE_TEST", "99"]
    cfg = automatic("faster_resnest50", make(10, 256, 256, 12, 20), *opts)
    assert (cfg.SOLVER.MAX_ITER, cfg.INPUT.MIN_SIZE_TEST) == (7, 99)
    assert (cfg.TEST.EVAL_PERIOD, cfg.SOLVER.STEPS) == (2, (4, 6))  # what follows from it follows
    assert cfg.INPUT.MIN_SIZE_TRAIN == (64, 96)
    for line in ("SOLVER.MAX_ITER", "INPUT.MIN_SIZE_TEST"):
        (row,) = (row for row in cfg.WHY.splitlines() if row.startswith(f"{line} "))
        assert row.endswith("given on the command line")
    assert re.search("SOLVER.BASE_LR .* the config's 0.00125 for each image of a batch", cfg.WHY)


def test_the_rate_follows_from_a_batch_on_the_command_line(make):
    cfg = automatic("faster_resnest50", make(3, 64, 64, 12, 2), "SOLVER.IMS_PER_BATCH", "4")
    assert cfg.SOLVER.BASE_LR == 4 * 0.02 / 16


@pytest.mark.parametrize(("processes", "batch"), [(2, 4), (3, 6), (6, 6)])
def test_batches_are_shared_by_the_processes(make, processes, batch):
    files = make(5, 256, 256, 6, 20)
    cfg = automatic("faster_resnest50", files, num_processes=processes)
    assert cfg.SOLVER.IMS_PER_BATCH == batch
    assert cfg.SOLVER.BASE_LR == pytest.approx(0.02 / 16 * batch)


def test_objects_without_an_area(make):
    files = make(3, 64, 64, 12, 2)
    data = json.loads(files["train_json"].read_text())
    thin = [[10, 10, 30, 10, 30, 10.01, 10, 10.01]]  # covers no pixel
    for annotation in data["annotations"]:
        annotation.update(bbox=[10, 10, 20, 0.01], segmentation=thin)
    files["train_json"].write_text(json.dumps(data))
    cfg = automatic("mask_resnest50", files)
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[0] == [8]


def test_ranges_of_sizes(make):
    files = make(3, 640, 480, 50, 2)
    sizes = automatic("cascade_resnest200_3x", files, "MODEL.MASK_ON", "False").INPUT
    assert sizes.MIN_SIZE_TRAIN == (320, 384)


@pytest.mark.parametrize(
    ("page", "command"), [("README.md", "--data .*"), ("docs/own_data.md", ".* --auto .*")]
)
def test_the_commands_of_the_pages(page, command, tmp_path):
    """They run as they stand, on real pictures, but for the number of steps."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    (line,) = re.findall(rf"^resnest-d2 train {command}$", text, re.MULTILINE)
    _, *words = shlex.split(line.replace(" OUTPUT_DIR output/nuclei", ""))
    short = ("OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", "2", "TEST.DETECTIONS_PER_IMAGE", "20")
    result = run_command(*words, *short)
    assert result.returncode == 0, result.stderr
    assert "--auto: 2 iterations of 4 images of 384 pixels" in result.stdout
    assert re.search(r"^SOLVER.BASE_LR .* the config's", (tmp_path / "log.txt").read_text(), re.M)
    assert re.search(r"iter 2  box \d+\.\d  mask \d+\.\d", result.stdout)
    assert (tmp_path / "model_final.pth").is_file()
