"""tools/train_net.py as a user runs it."""

import re
import shutil
import sys

import numpy as np
import pytest
import torch
from commands import ROOT, run_python, run_tool
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOPanopticEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)

from resnest_d2 import model_zoo
from resnest_d2.commands.train import main, make_parser
from resnest_d2.config import InputError
from resnest_d2.engine import (
    Trainer,
    build_evaluator,
    check_datasets,
    choose_device,
    load_config,
)
from resnest_d2.engine.hooks import read_metrics
from resnest_d2.engine.launch import prepare
from resnest_d2.evaluation import CocoEvaluator

DIGITS = "configs/mask_resnest14_digits.yaml"
# Small enough for seconds: the tiny data set, few proposals, few steps.
TINY = [
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "TEST.EVAL_PERIOD", "0"),
    *("SOLVER.CHECKPOINT_PERIOD", "1", "TEST.DETECTIONS_PER_IMAGE", "5"),
]


def train_net(*args, datasets, **environment):
    return run_tool("train_net.py", *args, DETECTRON2_DATASETS=str(datasets), **environment)


@pytest.fixture(scope="module")
def trained(tiny_digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("out put")
    result = train_net(
        *("--config-file", DIGITS, "OUTPUT_DIR", output, *TINY, "TEST.PRECISE_BN.ENABLED", "True"),
        *("TEST.PRECISE_BN.NUM_ITER", "200", "TEST.AUG.ENABLED", "True"),
        *("TEST.AUG.MIN_SIZES", "(128,)"),
        datasets=tiny_digits,
    )
    return result, output


def test_trains_evaluates_and_saves(trained):
    result, output = trained
    assert result.returncode == 0, result.stderr
    log = (output / "log.txt").read_text() + result.stdout + result.stderr
    everything = result.stdout + result.stderr
    assert "Environment info:" in (output / "log.txt").read_text()
    assert "Environment info:" not in result.stdout
    assert everything.count("No GPU: running on the CPU.") == 1
    assert (output / "model_final.pth").is_file()
    metrics = read_metrics(output / "metrics.json")
    assert {"bbox/AP", "segm/AP", "bbox_TTA/AP", "segm_TTA/AP"} <= set(metrics)
    assert metrics["total_loss"][-1][0] == 1
    assert "Running precise-BN for 2 iterations" in log
    assert (output / "inference/coco_instances_results.json").is_file()
    assert (output / "inference_TTA/coco_instances_results.json").is_file()


def test_resumes(trained, tiny_digits):
    _, output = trained
    result = train_net(
        *("--config-file", DIGITS, "--resume", "OUTPUT_DIR", output, *TINY, "SOLVER.MAX_ITER", "3"),
        datasets=tiny_digits,
    )
    assert result.returncode == 0, result.stderr
    assert "Starting training from iteration 2" in result.stdout


def test_eval_only(trained, tiny_digits, tmp_path):
    _, output = trained
    weights = output / "model_final.pth"
    args = ["--config-file", DIGITS, "--eval-only", "OUTPUT_DIR", tmp_path, *TINY]
    result = train_net(*args, "MODEL.WEIGHTS", weights, datasets=tiny_digits)
    assert result.returncode == 0, result.stderr
    assert "Evaluation results for digits_val in csv format" in result.stdout

    same = ["--config-file", DIGITS, "--eval-only", "--resume", "OUTPUT_DIR", output, *TINY]
    resumed = train_net(*same, datasets=tiny_digits)
    assert resumed.returncode == 0, resumed.stderr
    assert f"Evaluating {output}/model_" in resumed.stdout

    result = train_net(*args, datasets=tiny_digits)
    assert result.returncode == 2
    assert "error: MODEL.WEIGHTS is empty and leaves" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--config-file", "configs/cascade_resnest101.yaml"],
            "error: DATASETS.TRAIN: data set 'coco_2017_train' needs {data}/coco/annotations/"
            "instances_train2017.json, which does not exist; set the environment variable "
            "DETECTRON2_DATASETS (now '{data}') to the folder that holds "
            "coco/annotations/instances_train2017.json and coco/train2017/",
        ),
        (
            ["--config-file", "configs/faster_resnest50.yaml", "--eval-only", "MODEL.WEIGHTS", ""],
            "error: DATASETS.TEST: data set 'coco_2017_val' needs {data}/coco/annotations/"
            "instances_val2017.json, which does not exist; set the environment variable "
            "DETECTRON2_DATASETS (now '{data}') to the folder that holds "
            "coco/annotations/instances_val2017.json and coco/val2017/",
        ),
        (
            ["--config-file", DIGITS, "DATASETS.TRAIN", "('digit_train',)"],
            "error: DATASETS.TRAIN: data set 'digit_train' is not registered; "
            "did you mean digits_train",
        ),
        (
            ["--config-file", DIGITS, "MODEL.RESNETS.RADII", "2"],
            "error: the command line: Non-existent key: MODEL.RESNETS.RADII",
        ),
        (
            ["--config-file", DIGITS, "MODEL.RESNETS.RADIX"],
            "error: options must be pairs of KEY and VALUE, got 'MODEL.RESNETS.RADIX'",
        ),
        (
            ["--config-file", DIGITS, "SOLVER.MAX_ITER", "2", "--num-gpus", "2"],
            "error: --num-gpus must stand before the config's own options: SOLVER.MAX_ITER 2 --num",
        ),
        (
            ["--config-file", "configs/cascade_resnet101.yaml"],
            "error: --config-file: there is no file 'configs/cascade_resnet101.yaml'; did you mean "
            "configs/cascade_resnest101.yaml",
        ),
    ],
)
def test_wrong_input_is_one_line(tmp_path, args, message):
    result = train_net(*args, datasets=tmp_path)
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert lines[0].startswith(message.format(data=tmp_path))
    assert "Traceback" not in result.stdout + result.stderr
    assert "Model:" not in result.stdout


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.RESNETS.RADIX", "3"],
            "error: res2: in_channels 32 must be a multiple of MODEL.RESNETS.NUM_GROUPS * MODEL."
            "RESNETS.RADIX = 1 * 3",
        ),
        (
            ["SOLVER.IMS_PER_BATCH", "1"],
            "error: SyncBatchNorm cannot be trained on one value per channel: ",
        ),
        (
            ["MODEL.ROI_HEADS.NUM_CLASSES", "5"],
            "error: MODEL.ROI_HEADS.NUM_CLASSES is 5, but data set 'digits_train' has 10 classes",
        ),
        (["MODEL.WEIGHTS", __file__], f"error: {__file__} is a text, not weights"),
        (
            ["MODEL.META_ARCHITECTURE", "ProposalNetwork", "TEST.AUG.ENABLED", "True"],
            "error: TEST.AUG.ENABLED: Detectron2 has no augmentation for this model",
        ),
        (
            ["DATASETS.TRAIN", "('no_objects',)"],
            "error: DATASETS.TRAIN: data set 'no_objects' is not registered",
        ),
    ],
)
def test_wrong_settings_are_one_line(tiny_digits, tmp_path, opts, message):
    args = ["--config-file", DIGITS, "OUTPUT_DIR", tmp_path, *opts]
    result = train_net(*args, datasets=tiny_digits)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_picture_that_fails_in_training_is_one_line(tmp_path, num_workers):
    shutil.copytree(ROOT / "examples/nuclei", tmp_path / "nuclei")
    for file in (tmp_path / "nuclei/images").iterdir():
        file.write_bytes(file.read_bytes()[:4000])
    data = ("--train-json", "nuclei/train.json", "--train-images", "nuclei/images")
    opts = ("DATALOADER.NUM_WORKERS", num_workers, "OUTPUT_DIR", "out", *TINY)
    result = run_tool("train_net.py", "--config-file", ROOT / DIGITS, *data, *opts, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = (line for line in result.stderr.splitlines() if "error" in line)
    assert re.match(
        r"error: nuclei/images/\w+.png cannot be read as a picture: .*truncated",
        line,
    )
    assert result.stderr.endswith(f"{line}\n")
    assert "Traceback" not in result.stdout + result.stderr
    assert "Traceback" in (tmp_path / "out/log.txt").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: [", "{file} is no YAML: while parsing a flow node"),
        (
            "MODEL:\n  RESNETS:\n    RADIX: two",
            "{file}: Type mismatch .* for config key: MODEL.RESNETS.RADIX",
        ),
        ('_BASE_: "absent.yaml"', "{file}: its _BASE_ {file.parent}/absent.yaml is not there"),
    ],
)
def test_broken_config_files_are_named(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message.format(file=file)):
        load_config(str(file))


def settings(*args):
    """What ``resnest-d2 train`` makes of a command line."""
    return prepare(make_parser().parse_args(["--eval-only", *map(str, args)]))[0].cfg


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["configs/mask_resnest50.yaml"], 8),
        (["configs/mask_resnest50.yaml", "SOLVER.IMS_PER_BATCH", "8"], 0),
        (["configs/mask_resnest50.yaml", "SOLVER.MAX_ITER", "90"], 0),
        (["configs/mask_resnest50.yaml", "SOLVER.REFERENCE_WORLD_SIZE", "0"], 0),
        ([DIGITS], 0),
    ],
)
def test_recipes_for_eight_gpus_are_scaled(
    tmp_path, monkeypatch, registered_digits, args, expected
):
    """The zoo's own, as they stand; in a stock trainer they mean what they say."""
    monkeypatch.setattr("resnest_d2.engine.launch.check_datasets", lambda *_, **__: None)
    weights = tmp_path / "x.pth"
    torch.save({"model": {"x": torch.zeros(1)}}, weights)
    cfg = settings("--config-file", *args, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path)
    assert cfg.SOLVER.REFERENCE_WORLD_SIZE == expected
    assert load_config(args[0]).SOLVER.REFERENCE_WORLD_SIZE == 0


def test_a_batch_that_the_reference_does_not_divide(tmp_path, registered_digits):
    args = ["--config-file", DIGITS, "SOLVER.REFERENCE_WORLD_SIZE", "8"]
    with pytest.raises(InputError, match="SOLVER.IMS_PER_BATCH 2 must be a multiple of SOLVER.REF"):
        prepare(make_parser().parse_args([*args, *TINY]))


def test_training_in_python_says_what_it_does(tiny_digits, tmp_path):
    code = """
import sys
from resnest_d2 import model_zoo
from resnest_d2.engine import Trainer
cfg = model_zoo.get_config("mask_resnest14_digits")
cfg.merge_from_list(sys.argv[1:])
trainer = Trainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
"""
    opts = ("OUTPUT_DIR", tmp_path, "MODEL.DEVICE", "cpu", "DATASETS.TEST", "()", *TINY)
    result = run_python(code, *opts, DETECTRON2_DATASETS=str(tiny_digits))
    assert result.returncode == 0, result.stderr
    said = result.stdout + result.stderr
    for line in ("Starting training from iteration 0", "iter: 1 ", "Saving checkpoint to"):
        assert said.count(line) >= 1, said
    assert said.count("Starting training from iteration 0") == 1


def test_a_gpu_that_is_asked_for_and_not_there(tiny_digits, tmp_path):
    args = ["--config-file", DIGITS, "OUTPUT_DIR", tmp_path, *TINY, "MODEL.DEVICE", "cuda"]
    result = train_net(*args, datasets=tiny_digits, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert "error: device 'cuda' was asked for, and no GPU was found" in result.stderr


def test_a_defect_of_numpy_keeps_its_traceback(tmp_path, registered_digits, monkeypatch):
    def read(*_):
        return np.zeros(2) + np.zeros(3)

    monkeypatch.setattr("resnest_d2.engine.launch.load_config", read)
    with pytest.raises(ValueError, match="operands could not be broadcast"):
        main(["--config-file", DIGITS, "OUTPUT_DIR", str(tmp_path), *TINY])


def test_config_file_is_required(tmp_path):
    result = train_net(datasets=tmp_path)
    assert result.returncode == 2
    assert "error: --config-file is required, e.g. configs/cascade_resnest101.yaml" in result.stderr


def test_device_choice(monkeypatch, caplog):
    cfg = load_config(str(ROOT / DIGITS), ["SOLVER.AMP.ENABLED", "True"])
    assert choose_device(cfg, num_gpus=8) == 1
    assert (cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED) == ("cpu", False)
    assert caplog.messages == ["No GPU: running on the CPU without SOLVER.AMP."]
    assert choose_device(cfg) == 1  # asked for a CPU: nothing to say
    assert len(caplog.messages) == 1
    cfg.SOLVER.AMP.ENABLED = True
    assert choose_device(cfg) == 1  # Detectron2's AMPTrainer fails on a CPU
    assert not cfg.SOLVER.AMP.ENABLED
    assert caplog.messages[1:] == ["SOLVER.AMP needs a GPU: running on cpu without it."]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    cfg = load_config(str(ROOT / DIGITS))
    assert choose_device(cfg, num_gpus=2) == 2
    assert cfg.MODEL.DEVICE == "cuda"
    with pytest.raises(ValueError, match="--num-gpus is 8, but this machine has 2 GPUs"):
        choose_device(cfg, num_gpus=8)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="--num-processes must be at least 1, got 0"):
        choose_device(cfg, num_processes=0)


@pytest.fixture
def dataset(request):
    """A registered name whose metadata is the test's parameter."""
    name = "made_up"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(thing_classes=["a"], **request.param)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("dataset", [{"evaluator_type": "ade"}, {}], indirect=True)
def test_unknown_evaluator_type(dataset, tmp_path):
    with pytest.raises(
        ValueError,
        match="'made_up' has evaluator_type ('ade'|None) in its metadata; known are coco, ",
    ):
        build_evaluator(dataset, str(tmp_path))
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.DATASETS.TEST = (dataset,)
    with pytest.raises(
        ValueError,
        match="'made_up' has evaluator_type ('ade'|None) in its metadata; known are coco, ",
    ):
        check_datasets(cfg)


@pytest.mark.parametrize("dataset", [{"evaluator_type": "coco"}], indirect=True)
def test_files_of_own_data_are_looked_for(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.DATASETS.TEST = (dataset,)
    file, images = tmp_path / "mine.json", tmp_path / "images"
    MetadataCatalog.get(dataset).set(json_file=str(file), image_root=str(images))
    for path, make in ((file, lambda: file.write_text('{"a": [1, 2')), (images, images.mkdir)):
        with pytest.raises(
            FileNotFoundError, match=f"'made_up' needs {path}, which does not exist$"
        ):
            check_datasets(cfg, train=False)
        make()
        if path == file:
            with pytest.raises(ValueError, match=f"{file} of data set 'made_up' is truncated"):
                check_datasets(cfg, train=False)
            file.write_text('{"a": [1, 2]}\n')
    check_datasets(cfg, train=False)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({"evaluator_type": "coco"}, [CocoEvaluator]),
        ({"evaluator_type": "sem_seg"}, [SemSegEvaluator]),
        (
            {"evaluator_type": "coco_panoptic_seg", "thing_dataset_id_to_contiguous_id": {}},
            [SemSegEvaluator, CocoEvaluator, COCOPanopticEvaluator],
        ),
    ],
    indirect=["dataset"],
)
def test_evaluators_by_type(tmp_path, tiny_digits, dataset, expected):
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.OUTPUT_DIR = str(tmp_path)
    MetadataCatalog.get(dataset).set(
        json_file=str(tiny_digits / "digits/annotations/digits_val.json"),
        stuff_classes=["b"],
        ignore_label=255,
        stuff_dataset_id_to_contiguous_id={},
    )
    evaluator = Trainer.build_evaluator(cfg, dataset)
    parts = evaluator._evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    assert [type(part) for part in parts] == expected


@pytest.mark.parametrize("dataset", [{"evaluator_type": "coco_panoptic_seg"}], indirect=True)
def test_panopticapi_is_looked_for_before_training(dataset, monkeypatch):
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.DATASETS.TEST = (dataset,)
    check_datasets(cfg, train=False)
    monkeypatch.setitem(sys.modules, "panopticapi", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="not installed: pip install --no-deps panopticapi-lite"):
        check_datasets(cfg, train=False)


def test_check_datasets_accepts_what_is_there(tiny_digits):
    cfg = model_zoo.get_config("mask_resnest14_digits")
    check_datasets(cfg)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(
        ValueError, match="DATASETS.TRAIN is empty; it must name at least one data set"
    ):
        check_datasets(cfg)
    check_datasets(cfg, train=False)
    cfg.DATASETS.TEST = ()
    with pytest.raises(
        ValueError, match="DATASETS.TEST is empty; it must name at least one data set"
    ):
        check_datasets(cfg, train=False)


def test_checkpoints_that_nobody_makes():
    keys = ["MODEL.RESNETS.GRAD_CHECKPOINT", "True", "MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""]
    with pytest.raises(ValueError, match="GRAD_CHECKPOINT saves nothing with .*'build_resnet_fpn"):
        Trainer.build_model(load_config(str(ROOT / "configs/baselines/mask_resnet50.yaml"), keys))
    Trainer.build_model(load_config(str(ROOT / "configs/mask_resnest50.yaml"), keys))


def test_a_defect_in_training_keeps_its_traceback(tmp_path, registered_digits, monkeypatch):
    """It is no wrong input, which ends in one line."""

    def train(self):
        raise ValueError("a defect")

    monkeypatch.setattr(Trainer, "train", train)
    with pytest.raises(ValueError, match="a defect"):
        main(["--config-file", DIGITS, "OUTPUT_DIR", str(tmp_path), *TINY])
