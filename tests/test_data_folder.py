"""Training on a folder: which model is chosen, what is set aside, and what is left at the end."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from commands import ROOT, run_command
from detectron2.config import get_cfg
from PIL import Image

from resnest_d2.commands.train import make_parser, summarize
from resnest_d2.config import InputError
from resnest_d2.config.load import load_config
from resnest_d2.data.coco_json import CocoData
from resnest_d2.engine import data_folder
from resnest_d2.engine.data_folder import expand, set_aside
from resnest_d2.engine.launch import Job
from resnest_d2.weights.fetch import FetchError

SQUARE = [[2, 2, 20, 2, 20, 20, 2, 20]]


@pytest.fixture
def folder(tmp_path):
    """Five pictures with a square each, in Roboflow's layout without a validation part."""
    train = tmp_path / "squares/train"
    train.mkdir(parents=True)
    annotation = {"bbox": [2, 2, 18, 18], "segmentation": SQUARE, "category_id": 1, "area": 324}
    data = {"categories": [{"id": 1, "name": "square"}], "images": [], "annotations": []}
    for number in range(5):
        name = f"{number}.png"
        picture = Image.new("RGB", (64, 48))
        picture.paste("white", (2, 2, 20, 20))
        picture.save(train / name)
        data["images"].append({"id": number, "file_name": name, "width": 64, "height": 48})
        own = {"id": number + 1, "image_id": number, "iscrowd": 0}
        data["annotations"].append(annotation | own)
    (train / "_annotations.coco.json").write_text(json.dumps(data))
    return tmp_path / "squares"


def without_masks(folder):
    file = folder / "train/_annotations.coco.json"
    data = json.loads(file.read_text())
    for annotation in data["annotations"]:
        annotation["segmentation"] = []
    file.write_text(json.dumps(data))


def expanded(*words):
    args = make_parser().parse_args(list(map(str, words)))
    expand(args)
    return args, load_config(args.config_file, args.opts) if args.config_file else None


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("model", ["", "mask", "faster", "cascade"])
def test_the_model_on_a_cpu(folder, masks, model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if not masks:
        without_masks(folder)
    args, cfg = expanded("--data", folder, *(["--model", model] if model else []))
    assert args.train_json == str(folder / "train/_annotations.coco.json")
    assert args.train_images == str(folder / "train")
    assert (args.val_json, args.auto, args.keep_last) == (None, True, 1)
    assert args.config_file.endswith("mask_resnest14_digits.yaml")
    assert cfg.MODEL.MASK_ON == (masks and model != "faster")
    assert cfg.MODEL.ROI_HEADS.NAME == f"{'Cascade' if model == 'cascade' else 'Standard'}ROIHeads"
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.FREEZE_AT) == ("", 0)
    assert cfg.OUTPUT_DIR == "output/squares"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("mask", "mmdet/mask_resnest50"),
        ("faster", "mmdet/faster_resnest50"),
        ("cascade", "mmdet/cascade_resnest50"),
    ],
)
def test_the_best_weights_that_can_be_had(folder, model, name, monkeypatch):
    """On a GPU the trained model, else the backbone, else none, which leaves nothing frozen."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    dead: set[str] = set()

    def local_path(weights):
        if weights in dead:
            raise FetchError(f"cannot get {weights}")

    monkeypatch.setattr(data_folder, "local_path", local_path)
    trained, backbone = f"resnest://COCO/{name}", "resnest://ImageNet/resnest50"
    for expected in (trained, backbone, ""):
        _, cfg = expanded("--data", folder, "--model", model)
        plain = load_config(expanded("--data", folder, "--model", model)[0].config_file)
        assert cfg.MODEL.WEIGHTS == expected
        assert cfg.MODEL.BACKBONE.FREEZE_AT == (plain.MODEL.BACKBONE.FREEZE_AT if expected else 0)
        assert cfg.MODEL.META_ARCHITECTURE == plain.MODEL.META_ARCHITECTURE
        dead.add(expected)


def test_the_command_line_counts_over_the_choice(folder):
    args, cfg = expanded(
        *("--data", folder, "--output", "here", "--keep-last", 3, "--model", "mask"),
        *("MODEL.DEVICE", "cpu", "MODEL.MASK_ON", "False", "MODEL.WEIGHTS", "mine.pth"),
    )
    assert (cfg.OUTPUT_DIR, args.keep_last, cfg.MODEL.MASK_ON) == ("here", 3, False)
    assert cfg.MODEL.WEIGHTS == "mine.pth"
    args, _ = expanded("--data", folder, "--model", "own.pth", "SOLVER.MAX_ITER", 5)
    assert not args.config_file
    assert args.opts[:2] == ["MODEL.WEIGHTS", "own.pth"]
    assert args.opts[-2:] == ["SOLVER.MAX_ITER", "5"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "mask", "--config-file", "x.yaml"], "--model and --config-file are two ways"),
        (["--train-json", "x.json"], "--data finds annotations and pictures: leave out --train-j"),
        (["--model", "mask_resnest5"], "no model 'mask_resnest5'; did you mean"),
        (["--eval-only"], "--eval-only: --data holds no validation part"),
        (["--model", "mmdet/mask_resnet50"], "no model .*; did you mean .*mmdet/mask_resnest50"),
    ],
)
def test_what_contradicts_itself(folder, words, message):
    with pytest.raises(InputError, match=f"^{message}"):
        expanded("--data", folder, *words)


def data_of(names):
    images = [{"id": n, "file_name": f"p/{name}"} for n, name in enumerate(names)]
    annotations = [{"image_id": n // 2} for n in range(2 * len(names))]
    return CocoData(None, None, {1: "a"}, images, annotations)


@pytest.mark.parametrize("number", [2, 3, 5, 24, 1000])
def test_a_fifth_is_set_aside_and_always_the_same(number):
    names = [f"{n}.png" for n in range(number)]
    train, val = set_aside(data_of(names))
    assert len(val.images) == max(1, round(0.2 * number))
    for part in (train, val):
        inside = Counter(a["image_id"] for a in part.annotations)
        assert inside == {image["id"]: 2 for image in part.images}
    assert {i["id"] for i in train.images} ^ {i["id"] for i in val.images} == set(range(number))
    again = set_aside(data_of(names[::-1]))[1]
    assert {i["file_name"] for i in again.images} == {i["file_name"] for i in val.images}


def test_copies_of_a_picture_stay_together():
    names = [f"{n}_jpg.rf.{copy:032x}.jpg" for n in range(10) for copy in range(3)]
    train, val = (
        {image["file_name"].partition("_")[0] for image in part.images}
        for part in set_aside(data_of(names))
    )
    assert len(val) == 2
    assert not train & val
    with pytest.raises(InputError, match="has one picture, and none to evaluate on"):
        set_aside(data_of(names[:3]))


def test_a_folder_becomes_a_model_that_one_can_look_at(folder, tmp_path):
    """The command's last lines name the files, and the command that they tell to type runs."""
    words = ["SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2, "SOLVER.IMS_PER_BATCH", 2]
    done = run_command("train", "--data", folder, *words, cwd=tmp_path)
    printed = done.stdout
    assert done.returncode == 0, done.stderr
    output = tmp_path / "output/squares"
    assert "4 of 5 pictures" not in printed
    assert "1 of 5 pictures are set aside" in printed
    assert "The best evaluation was that of iteration" in printed
    for name in ("predictions.png", "curves.png", "report.pdf", "model_best.pth"):
        assert (output / name).is_file()
        assert f"output/squares/{name}" in printed
    assert len(list(output.glob("model_0*.pth"))) == 1
    last = printed.strip().splitlines()[-1].split()
    assert last[:2] == ["resnest-d2", "predict"]
    done = run_command(*last[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5 of 5 inputs drawn to output/squares/drawn" in done.stdout


@pytest.mark.parametrize(
    "words",
    [["OUTPUT_DIR", "mine"], ["--output", "mine"], ["--output", "x", "OUTPUT_DIR", "mine"]],
)
def test_the_folder_that_is_named_counts(folder, words):
    assert expanded("--data", folder, *words)[1].OUTPUT_DIR == "mine"


def test_a_model_that_is_evaluated(folder):
    """A checkpoint holds its config; a name of the zoo has its weights."""
    (folder / "valid").symlink_to(folder / "train")
    for model, config in (("own.pth", ""), ("mask_resnest14_digits", "mask_resnest14_digits.yaml")):
        args, _ = expanded("--data", folder, "--eval-only", "--model", model)
        assert args.val_json == str(folder / "valid/_annotations.coco.json")
        assert args.config_file.endswith(config)
        weights = dict(zip(args.opts[::2], args.opts[1::2], strict=True))["MODEL.WEIGHTS"]
        assert weights == ("" if config else "own.pth")
    with pytest.raises(InputError, match="--model is trained on --data or --train-json"):
        expand(make_parser().parse_args(["--model", "mask_resnest50"]))


@pytest.mark.slow
def test_processes_of_torchrun_summarize_together(folder, tmp_path):
    """The best evaluation is not the last: nothing is learned, and an equal AP is no gain."""
    words = ["SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "1", "SOLVER.IMS_PER_BATCH", "4"]
    words += ["SOLVER.BASE_LR", "1e-12", "TEST.PRECISE_BN.ENABLED", "False"]
    command = [*(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2")]
    command += ["-m", "resnest_d2", "train", "--data", str(folder), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "check": False, "timeout": 300}
    done = subprocess.run(command, cwd=tmp_path, env=environment, **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The best evaluation was that of iteration 1:") == 1
    for name in ("predictions.png", "report.pdf"):
        assert (tmp_path / "output/squares" / name).is_file()


def test_a_training_without_an_ap_says_so(tmp_path, capsys):
    """As where nothing was found, or there was nothing to find."""
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    summarize(Job(cfg, None))
    assert f"{tmp_path}/model_final.pth holds the last weights" in capsys.readouterr().out
