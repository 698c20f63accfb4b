"""tools/train_net.py as a user runs it."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import ROOT, run_python, run_tool
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine.hooks import PreciseBN
from short_training import options, short_config

from resnest_d2 import model_zoo
from resnest_d2.commands.train import main, make_parser
from resnest_d2.config import InputError
from resnest_d2.engine import Trainer, check_datasets, load_config
from resnest_d2.engine.hooks import read_metrics
from resnest_d2.engine.launch import prepare

DIGITS = str(ROOT / "configs/mask_resnest14_digits.yaml")
TINY = options({"SOLVER.MAX_ITER": "2", "TEST.DETECTIONS_PER_IMAGE": "5"})
EVALUATED = ["DATASETS.TEST", "('digits_val',)"]


def train_net(*args, datasets, **environment):
    return run_tool("train_net.py", *args, DETECTRON2_DATASETS=str(datasets), **environment)


def refused(capsys, *args):
    """The line that a command line ends in, in this process."""
    with pytest.raises(SystemExit) as raised:
        main(list(map(str, args)))
    assert raised.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert "Model:" not in said.out
    (line,) = (line for line in said.err.splitlines() if "error: " in line)
    return line


@pytest.fixture(scope="module")
def trained(tiny_digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("out put")
    result = train_net(
        *("--config-file", DIGITS, "--num-gpus", 1, "OUTPUT_DIR", output, *TINY, *EVALUATED),
        *("MODEL.DEVICE", "cpu", "TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER"),
        *("200", "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(128,)"),
        datasets=tiny_digits,
    )
    return result, output


def test_trains_evaluates_and_saves(trained):
    result, output = trained
    assert result.returncode == 0, result.stderr
    log = (output / "log.txt").read_text() + result.stdout + result.stderr
    assert "Environment info:" in (output / "log.txt").read_text()
    assert "iter: 1 " in (output / "log.txt").read_text()
    said = result.stdout + result.stderr  # without a bar, which is for terminals
    assert re.search(r"iter 2  box \S+  mask \S+  box TTA \S+  mask TTA \S+$", said, re.MULTILINE)
    assert len(said.splitlines()) < 12, said
    assert not re.search("Namespace|Serializ|copypaste|Environment info", said)
    assert said.count("No GPU") <= 1
    assert "train:" not in result.stdout + result.stderr
    assert (output / "curves.png").is_file()
    assert (output / "model_final.pth").is_file()
    metrics = read_metrics(output / "metrics.json")
    assert {"bbox/AP", "segm/AP", "bbox_TTA/AP", "segm_TTA/AP"} <= set(metrics)
    assert metrics["total_loss"][-1][0] == 1
    assert "Running precise-BN for 2 iterations" in log
    assert (output / "inference/coco_instances_results.json").is_file()
    assert (output / "inference_TTA/coco_instances_results.json").is_file()


def test_eval_only_and_resume(trained, tiny_digits, registered_digits, tmp_path, capsys):
    """Without a config's file, of the weights that are named and of the last checkpoint."""
    _, output = trained
    for resume in ([], ["--resume"]):
        weights = [] if resume else ["MODEL.WEIGHTS", output / "model_final.pth"]
        folder = output if resume else tmp_path
        words = ["--eval-only", *resume, "OUTPUT_DIR", folder, *weights, "TEST.AUG.ENABLED", False]
        assert main([str(word) for word in words]) == 0
        said = capsys.readouterr().out
        assert f"Evaluating {output}/model_final.pth" in said
        assert re.search(r"segm on digits_val by .*\n.*AP50", said)
    args = ["--config-file", DIGITS, "--eval-only", "OUTPUT_DIR", tmp_path, *TINY, *EVALUATED]
    assert "error: MODEL.WEIGHTS is empty and leaves" in refused(capsys, *args)


def test_a_data_set_that_is_not_there_is_one_line(tmp_path):
    file = "coco/annotations/instances_train2017.json"
    result = train_net("--config-file", "configs/cascade_resnest101.yaml", datasets=tmp_path)
    assert result.returncode == 2
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error"))
    assert line == (
        f"error: DATASETS.TRAIN: data set 'coco_2017_train' needs {tmp_path}/{file}, which does "
        f"not exist; DETECTRON2_DATASETS is '{tmp_path}'"
    )
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DATASETS.TRAIN", "('digit_train',)"], "'digit_train' is not .* did you mean digits_tr"),
        (["SOLVER.IMS_PER_BATCH", "1"], "batch norm cannot be trained on one image a process"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "5"], "NUM_CLASSES is 5, but data set .* has 10 classes"),
        (["MODEL.WEIGHTS", __file__], f"{__file__} is no checkpoint, or a damaged one"),
        (["MODEL.DEVICE", "cuda"], "device 'cuda' was asked for, and no GPU was found"),
    ],
)
def test_wrong_settings_are_one_line(registered_digits, tmp_path, capsys, opts, message):
    line = refused(capsys, "--config-file", DIGITS, *TINY, "OUTPUT_DIR", tmp_path, *opts)
    assert re.search(f"error: .*{message}", line), line


def test_augmentation_at_the_end_is_tried_at_the_start(registered_digits, tmp_path):
    keys = {"MODEL.META_ARCHITECTURE": "ProposalNetwork", "TEST.AUG.ENABLED": "True"}
    with pytest.raises(InputError, match="TEST.AUG.ENABLED: Detectron2 has no augmentation"):
        Trainer(short_config(tmp_path, keys))


@pytest.mark.parametrize(
    ("batch", "num_iter", "max_iter", "passes"),
    [(2, 200, 900, 3), (4, 200, 900, 1), (2, 2, 900, 2), (2, 200, 1, 1)],
)
@pytest.mark.parametrize("grouping", ["True", "False"])
def test_passes_of_precise_bn(
    registered_digits, tmp_path, batch, num_iter, max_iter, passes, grouping
):
    """As many as six pictures have batches or the run has iterations, and no more than asked."""
    keys = {"TEST.PRECISE_BN.ENABLED": "True", "TEST.PRECISE_BN.NUM_ITER": str(num_iter)}
    keys |= {"SOLVER.IMS_PER_BATCH": str(batch), "SOLVER.MAX_ITER": str(max_iter)}
    keys |= {"DATALOADER.ASPECT_RATIO_GROUPING": grouping, "SOLVER.STEPS": "()"}
    cfg = short_config(tmp_path, keys)
    trainer = Trainer(cfg)
    (hook,) = (hook for hook in trainer._hooks if isinstance(hook, PreciseBN))
    assert hook._num_iter == passes
    assert cfg.TEST.PRECISE_BN.NUM_ITER == num_iter  # the config, and the checkpoint's, stays
    assert f"NUM_ITER: {num_iter}" in trainer.checkpointer._config


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_picture_that_fails_in_training_is_one_line(tmp_path, num_workers):
    shutil.copytree(ROOT / "examples/nuclei", tmp_path / "nuclei")
    for file in (tmp_path / "nuclei/images").iterdir():
        file.write_bytes(file.read_bytes()[:4000])
    data = ("--train-json", "nuclei/train.json", "--train-images", "nuclei/images")
    opts = ("DATALOADER.NUM_WORKERS", num_workers, "OUTPUT_DIR", "out", *TINY)
    result = run_tool("train_net.py", "--config-file", DIGITS, *data, *opts, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = (line for line in result.stderr.splitlines() if "error" in line)
    assert re.match(
        r"error: nuclei/images/\w+.png cannot be read as a picture: .*truncated",
        line,
    )
    assert result.stderr.endswith(f"{line}\n")
    assert "Traceback" not in result.stdout + result.stderr
    assert "Traceback" in (tmp_path / "out/log.txt").read_text()


def settings(*args):
    """What ``resnest-d2 train`` makes of a command line."""
    return prepare(make_parser().parse_args(list(map(str, args))))[0].cfg


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
    opts = ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path]
    cfg = settings("--eval-only", "--config-file", *args, *opts)
    assert cfg.SOLVER.REFERENCE_WORLD_SIZE == expected
    assert load_config(args[0]).SOLVER.REFERENCE_WORLD_SIZE == 0


@pytest.mark.parametrize(
    ("free", "loaders", "is_warned"), [(64, 4, True), (64, 0, False), (512, 4, False)]
)
def test_little_shared_memory_is_warned_of(
    registered_digits, monkeypatch, caplog, free, loaders, is_warned
):
    """A container's 64 MB."""
    usage = SimpleNamespace(free=free << 20)
    monkeypatch.setattr("resnest_d2.engine.launch.shutil.disk_usage", lambda _: usage)
    settings("--config-file", DIGITS, "DATALOADER.NUM_WORKERS", loaders)
    assert ("/dev/shm has 64 MB; where pictures need more, training" in caplog.text) == is_warned


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
    opts = ("OUTPUT_DIR", tmp_path, *TINY)
    result = run_python(code, *opts, DETECTRON2_DATASETS=str(tiny_digits))
    assert result.returncode == 0, result.stderr
    said = result.stdout + result.stderr
    for line in ("Starting training from iteration 0", "iter: 1 ", "Saving checkpoint to"):
        assert said.count(line) >= 1, said
    assert said.count("Starting training from iteration 0") == 1


@pytest.mark.parametrize(
    ("place", "defect"),
    [
        ("resnest_d2.engine.launch.config_to_use", lambda *_: np.zeros(2) + np.zeros(3)),
        ("resnest_d2.engine.Trainer.train", lambda *_: int("a defect")),
    ],
)
def test_a_defect_keeps_its_traceback(tmp_path, registered_digits, monkeypatch, place, defect):
    """It is no wrong input, which ends in one line."""
    monkeypatch.setattr(place, defect)
    with pytest.raises(ValueError, match="operands could not be broadcast|'a defect'"):
        main(["--config-file", DIGITS, *TINY, "OUTPUT_DIR", str(tmp_path)])


def test_a_config_or_a_folder_is_required(capsys):
    line = refused(capsys)
    assert "--data DIR, or --config-file such as configs/cascade_resnest101.yaml, is needed" in line


@pytest.fixture
def dataset():
    """A config that evaluates on a registered name, and the metadata of that."""
    name = "made_up"
    DatasetCatalog.register(name, lambda: [])
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.DATASETS.TEST = (name,)
    yield cfg, MetadataCatalog.get(name).set(thing_classes=["a"])
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("metadata", [{"evaluator_type": "ade"}, {}])
def test_unknown_evaluator_type(dataset, metadata):
    dataset[1].set(**metadata)
    message = "'made_up' has evaluator_type ('ade'|None) in its metadata; known are coco, "
    with pytest.raises(InputError, match=message):
        check_datasets(dataset[0])


def test_files_of_own_data_are_looked_for(dataset, tmp_path):
    dataset, metadata = dataset
    file, images = tmp_path / "mine.json", tmp_path / "images"
    metadata.set(evaluator_type="coco", json_file=str(file), image_root=str(images))
    content = {"images": [], "annotations": [{"id": 0}], "categories": []}
    for step, message in (
        (lambda: None, f"'made_up' needs {file}, which does not exist"),
        (lambda: file.write_text('{"a": [1, 2'), f"needs {images}, which does not exist"),
        (images.mkdir, f"{file} is no JSON: EOF"),
        (lambda: file.write_text(json.dumps(content)), "'image_id' of annotations number 1"),
    ):
        step()
        with pytest.raises(InputError, match=message):
            check_datasets(dataset, train=False)
    file.write_text(json.dumps({**content, "annotations": []}))
    check_datasets(dataset, train=False)


def test_panopticapi_is_looked_for_before_training(dataset, monkeypatch):
    dataset, metadata = dataset
    metadata.set(evaluator_type="coco_panoptic_seg")
    check_datasets(dataset, train=False)
    monkeypatch.setitem(sys.modules, "panopticapi", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="not installed: pip install --no-deps panopticapi-lite"):
        check_datasets(dataset, train=False)


def test_a_config_without_data_sets():
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    for train in (True, False):
        split = "TRAIN" if train else "TEST"
        with pytest.raises(InputError, match=f"DATASETS.{split} is empty; it must name at least"):
            check_datasets(cfg, train=train)
