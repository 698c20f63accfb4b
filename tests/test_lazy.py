"""LazyConfigs: the models and settings of their YAML twins, and the tool that trains them."""

import json

import pytest
import torch
from commands import run_command, run_tool
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetMapper
from detectron2.solver import build_optimizer
from omegaconf import ListConfig

from resnest_d2 import model_zoo
from resnest_d2.config.load import config_dir
from resnest_d2.modeling.detector import build_detector

NAMES = sorted(path.stem for path in (config_dir() / "lazy").glob("*.py"))
DIGITS = "mask_resnest14_digits"


def value(thing):
    """What a setting amounts to, whichever way it was written down."""
    if isinstance(thing, (list, tuple, ListConfig)):
        return [value(x) for x in thing]
    if isinstance(thing, dict):
        return {k: value(v) for k, v in thing.items()}
    if isinstance(thing, torch.Tensor):
        return thing.shape
    if isinstance(thing, torch.nn.Module):
        return type(thing)
    if type(thing).__module__.startswith("detectron2"):
        return type(thing).__name__, value(vars(thing))
    return thing


def settings(model):
    """Class and plain attributes of every module, by its name."""
    found = {}
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        plain = {k: v for k, v in plain.items() if not isinstance(v, torch.nn.Module)}
        found[name] = (type(module), value(plain))
        weights = found[name][1].get("loss_weight")
        if isinstance(weights, dict):  # LazyConfig spells out the default
            weights.setdefault("loss_cls", 1.0)
    return found


@pytest.fixture(params=NAMES)
def twins(request):
    lazy_cfg = LazyConfig.load(str(config_dir() / f"lazy/{request.param}.py"))
    return model_zoo.get_config(request.param), lazy_cfg


def test_there_is_a_yaml_twin_of_each():
    heads = {f"{head}_resnest{d}" for head in ("faster", "mask", "cascade") for d in (50, 101)}
    assert set(NAMES) == heads | {DIGITS}
    assert set(NAMES) <= set(model_zoo.names())


def test_the_models_are_equal(twins):
    cfg, lazy_cfg = twins
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        models = build_detector(cfg), instantiate(lazy_cfg.model)
    expected, actual = map(settings, models)
    assert list(actual) == list(expected)
    for name in expected:
        assert actual[name] == expected[name], name
    shapes = [{k: (v.shape, v.requires_grad) for k, v in m.named_parameters()} for m in models]
    assert shapes[0] == shapes[1]


def augmentations(mapper):
    found = [value(a) for a in mapper.augmentations.augs]
    for name, plain in found:
        if name == "ResizeShortestEdge" and len(set(plain["short_edge_length"])) == 1:
            plain["short_edge_length"] = plain["short_edge_length"][:1]
            del plain["is_range"], plain["sample_style"]  # one size is all there is to draw
    return found


def test_the_recipes_are_equal(twins):
    cfg, lazy_cfg = twins
    for is_train, split in ((True, "train"), (False, "test")):
        expected = DatasetMapper(cfg, is_train)
        found = instantiate(lazy_cfg.dataloader[split].mapper)
        assert augmentations(found) == augmentations(expected)
        masks = ("use_instance_mask", "instance_mask_format") if is_train else ()
        for attribute in ("image_format", *masks):
            assert getattr(found, attribute) == getattr(expected, attribute), attribute
        names = lazy_cfg.dataloader[split].dataset.names
        assert value([names] if isinstance(names, str) else names) == list(
            cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
        )
    solver, train = cfg.SOLVER, lazy_cfg.train
    assert lazy_cfg.dataloader.train.total_batch_size == solver.IMS_PER_BATCH
    assert (train.max_iter, train.eval_period) == (solver.MAX_ITER, cfg.TEST.EVAL_PERIOD)
    assert train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert train.precise_bn.enabled == cfg.TEST.PRECISE_BN.ENABLED
    assert train.clip_gradients.enabled == solver.CLIP_GRADIENTS.ENABLED
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3))
    lazy_cfg.optimizer.params.model = model
    groups = [build_optimizer(cfg, model), instantiate(lazy_cfg.optimizer)]
    for one, other in zip(*(optimizer.param_groups for optimizer in groups), strict=True):
        for key in ("lr", "momentum", "weight_decay", "nesterov"):
            assert one[key] == other[key], key


def test_the_tool_trains_the_digits_beside_the_yaml_twin(tiny_digits, tmp_path):
    """Two iterations each, on the same images."""
    yaml_opts = ["SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "OUTPUT_DIR", tmp_path / "yaml"]
    yaml_opts += ["SOLVER.REFERENCE_WORLD_SIZE", 0, "TEST.EVAL_PERIOD", 0, "MODEL.DEVICE", "cpu"]
    yaml_opts += ["SEED", 1, "DATALOADER.NUM_WORKERS", 0]
    data = {"DETECTRON2_DATASETS": str(tiny_digits)}
    file = model_zoo.get_config_file(DIGITS)
    result = run_command("train", "--config-file", file, *yaml_opts, **data)
    assert result.returncode == 0, result.stderr
    lazy_opts = ["train.max_iter=2", "dataloader.train.total_batch_size=2", "train.eval_period=2"]
    lazy_opts += [f"train.output_dir={tmp_path / 'lazy'}", "train.device=cpu", "train.log_period=1"]
    tool = ["lazyconfig_train_net.py", "--config-file", config_dir() / f"lazy/{DIGITS}.py"]
    result = run_tool(*tool, *lazy_opts, **data)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "lazy/metrics.json").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [entry["iteration"] for entry in found if "total_loss" in entry] == [0, 1]
    assert any("bbox/AP" in entry for entry in found)
    shapes = []
    for folder in ("yaml", "lazy"):
        weights = torch.load(tmp_path / folder / "model_final.pth", weights_only=True)["model"]
        shapes.append([(key, value.shape) for key, value in weights.items()])
    assert shapes[0] == shapes[1]
    # From its checkpoint it goes on, and evaluates.
    for options in (["--resume"], ["--eval-only"]):
        more = ["train.max_iter=3", f"train.init_checkpoint={tmp_path / 'lazy/model_final.pth'}"]
        result = run_tool(*tool, *options, *lazy_opts, *more, **data)
        assert result.returncode == 0, result.stderr
    assert "Starting training from iteration 2" in (tmp_path / "lazy/log.txt").read_text()
