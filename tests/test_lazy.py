"""LazyConfigs: the same models and recipes as the YAML files, and every command takes them."""

import json
import pickle
from contextlib import contextmanager

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from commands import ROOT, run_tool
from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from detectron2.evaluation import COCOEvaluator
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.env import seed_all_rng
from omegaconf import ListConfig, OmegaConf
from PIL import Image

from resnest_d2 import model_zoo
from resnest_d2.config import ConfigError
from resnest_d2.config.lazy import detectron2_config
from resnest_d2.config.settings import (
    DEPENDENT_TRAINING_KEYS,
    EVALUATION_KEYS,
    INFERENCE_KEYS,
    TRAINING_KEYS,
    Settings,
)
from resnest_d2.engine import Trainer, choose_device, lazy_trainer, load_config
from resnest_d2.engine.evaluate import load_for_evaluation
from resnest_d2.engine.watch import read_metrics
from resnest_d2.inference import Predictor, set_score_threshold
from resnest_d2.modeling.detector import build_detector

DIGITS = "configs/lazy/mask_resnest14_digits.py"
# As few steps as possible on the tiny data set.
TINY = ["dataloader.train.total_batch_size=2", "train.eval_period=0", "train.max_iter=2"]


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
        found[name] = (
            type(module),
            value({k: v for k, v in plain.items() if not isinstance(v, torch.nn.Module)}),
        )
        weights = found[name][1].get("loss_weight")
        if isinstance(weights, dict):  # LazyConfig spells out the default
            weights.setdefault("loss_cls", 1.0)
    return found


@pytest.fixture(params=model_zoo.names(lazy=True))
def twins(request):
    cfg = model_zoo.get_config(request.param.removeprefix("lazy/"))
    lazy_cfg = model_zoo.get_config(request.param)
    cfg.MODEL.DEVICE = lazy_cfg.train.device = "cpu"
    return cfg, lazy_cfg


@contextmanager
def no_weights(cfg, lazy_cfg):
    cfg.MODEL.DEVICE = lazy_cfg.train.device = "meta"
    with torch.device("meta"):
        yield


def test_yaml_and_lazy_build_the_same_model(twins):
    with no_weights(*twins):
        from_yaml, from_lazy = map(build_detector, twins)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (from_yaml, from_lazy)]
    assert shapes[0] == shapes[1]
    frozen = [
        {n for n, p in m.named_parameters() if not p.requires_grad} for m in (from_yaml, from_lazy)
    ]
    assert frozen[0] == frozen[1]
    expected, actual = settings(from_yaml), settings(from_lazy)
    assert list(actual) == list(expected)
    for name in expected:
        assert actual[name] == expected[name], name


@pytest.mark.parametrize("name", ["faster_resnest50", "mask_resnest50", "cascade_resnest50"])
def test_yaml_and_lazy_detect_the_same(name):
    """With the same weights; at random ones every detection is a close call."""
    cfg, lazy_cfg = model_zoo.get_config(name), model_zoo.get_config(f"lazy/{name}")
    cfg.MODEL.DEVICE = lazy_cfg.train.device = "cpu"
    cfg.MODEL.RESNETS.DEPTH = lazy_cfg.model.backbone.bottom_up.depth = 14
    from_yaml, from_lazy = build_detector(cfg).eval(), build_detector(lazy_cfg).eval()
    from_lazy.load_state_dict(from_yaml.state_dict())
    for model in (from_yaml, from_lazy):
        set_score_threshold(model, 0.0)
        model.proposal_generator.post_nms_topk[False] = 100
        for part in model.roi_heads.modules():
            if hasattr(part, "test_topk_per_image"):
                part.test_topk_per_image = 20
    image = {"image": 255 * torch.rand(3, 96, 128)}
    with torch.no_grad():
        expected, actual = from_yaml([image])[0]["instances"], from_lazy([image])[0]["instances"]
    assert len(expected) == len(actual) > 10
    for field, wanted in expected.get_fields().items():
        wanted, got = (getattr(v, "tensor", v) for v in (wanted, actual.get(field)))
        assert torch.equal(got, wanted), field
    assert cfg.MODEL.WEIGHTS == lazy_cfg.train.init_checkpoint


HYPERPARAMETERS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")


def augmentations(mapper):
    found = [value(a) for a in mapper.augmentations.augs]
    for name, plain in found:
        if name == "ResizeShortestEdge" and len(set(plain["short_edge_length"])) == 1:
            plain["short_edge_length"] = plain["short_edge_length"][:1]
            del plain["is_range"], plain["sample_style"]  # one size is all there is to draw
    return found


def test_yaml_and_lazy_have_the_same_recipe(twins, monkeypatch):
    cfg, lazy_cfg = twins
    for is_train, split in ((True, "train"), (False, "test")):
        from_yaml = DatasetMapper(cfg, is_train)
        from_lazy = instantiate(lazy_cfg.dataloader[split].mapper)
        assert augmentations(from_lazy) == augmentations(from_yaml)
        for key in ("is_train", "image_format", "use_instance_mask", "instance_mask_format"):
            if is_train or key == "image_format":
                assert getattr(from_lazy, key) == getattr(from_yaml, key), key
        names = cfg.DATASETS[split.upper()]
        assert (lazy_cfg.dataloader[split].dataset.names,) == names
    loader = lazy_cfg.dataloader.train
    assert loader.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert loader.num_workers == cfg.DATALOADER.NUM_WORKERS
    assert lazy_cfg.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy_cfg.train.checkpointer.period == cfg.SOLVER.CHECKPOINT_PERIOD
    assert lazy_cfg.train.eval_period == cfg.TEST.EVAL_PERIOD
    assert lazy_cfg.train.reference_world_size == cfg.SOLVER.REFERENCE_WORLD_SIZE
    assert lazy_cfg.train.precise_bn.enabled == cfg.TEST.PRECISE_BN.ENABLED
    assert lazy_cfg.train.precise_bn.num_iter == cfg.TEST.PRECISE_BN.NUM_ITER
    assert lazy_cfg.train.seed == cfg.SEED
    for key, wanted in lazy_cfg.train.clip_gradients.items():
        assert cfg.SOLVER.CLIP_GRADIENTS[key.upper()] == wanted

    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    from_yaml = build_optimizer(cfg, model)
    lazy_cfg.optimizer.params.model = model
    from_lazy = instantiate(lazy_cfg.optimizer)
    groups = [
        [{k: v for k, v in g.items() if k in HYPERPARAMETERS} for g in o.param_groups]
        for o in (from_yaml, from_lazy)
    ]
    assert groups[0] == groups[1]
    scheduler = build_lr_scheduler(cfg, from_yaml)._multiplier
    multiplier = instantiate(lazy_cfg.lr_multiplier)
    for where in np.linspace(0, 0.9999, 200):
        assert multiplier(where) == pytest.approx(scheduler(where), rel=1e-9)


def test_yaml_and_lazy_train_alike(registered_digits, tmp_path):
    """Three steps from one seed give the same losses at the same rates."""
    cfg = load_config(str(ROOT / DIGITS.replace("lazy/", "").replace(".py", ".yaml")))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "yaml")])
    cfg.merge_from_list(["SOLVER.MAX_ITER", 3, "SOLVER.IMS_PER_BATCH", 2, "TEST.EVAL_PERIOD", 0])
    cfg.merge_from_list(["SOLVER.WARMUP_ITERS", 0])
    lazy_cfg = load_config(str(ROOT / DIGITS), [*TINY, f"train.output_dir='{tmp_path / 'lazy'}'"])
    lazy_cfg.train.update(max_iter=3, device="cpu")
    lazy_cfg.lr_multiplier.warmup_length = 0.0
    (tmp_path / "yaml").mkdir()
    (tmp_path / "lazy").mkdir()
    seed_all_rng(1)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    seed_all_rng(1)
    lazy = lazy_trainer.LazyTrainer(lazy_cfg)
    lazy.resume_or_load()
    results = lazy.train()
    metrics = [read_metrics(tmp_path / kind / "metrics.json") for kind in ("yaml", "lazy")]
    for name in ("total_loss", "loss_mask", "loss_rpn_cls", "lr"):
        assert dict(metrics[1][name]) == pytest.approx(dict(metrics[0][name]), rel=1e-5), name
    assert results["bbox"] == pytest.approx(trainer._last_eval_results["bbox"], nan_ok=True)
    saved = torch.load(tmp_path / "lazy/model_final.pth", weights_only=True)
    assert saved["classes"]["thing_classes"] == [str(d) for d in range(10)]


@pytest.mark.parametrize("processes", [1, 2, 8, 16])
def test_scaling_to_the_number_of_processes(processes):
    cfg = model_zoo.get_config("lazy/mask_resnest50")
    lazy_trainer.scale_to_world_size(cfg, processes)
    assert cfg.dataloader.train.total_batch_size == 2 * processes
    assert cfg.optimizer.lr == pytest.approx(0.0025 * processes)
    assert cfg.train.max_iter == 720000 // processes
    cfg = model_zoo.get_config("lazy/mask_resnest50")
    cfg.dataloader.train.total_batch_size = 4
    if processes != 8:
        with pytest.raises(ValueError, match="total_batch_size 4 must be a multiple of .* 8"):
            lazy_trainer.scale_to_world_size(cfg, processes)


def run(tool, *args, datasets):
    return run_tool(tool, *args, DETECTRON2_DATASETS=str(datasets))


def test_the_commands(tiny_digits, tmp_path):
    """Train with one tool, evaluate with the other, draw with the third."""
    output = [*TINY, f"train.output_dir={tmp_path}/out"]
    trained = run("lazyconfig_train_net.py", "--config-file", DIGITS, *output, datasets=tiny_digits)
    assert trained.returncode == 0, trained.stderr
    assert "No GPU was found" in trained.stdout + trained.stderr
    weights = tmp_path / "out/model_final.pth"

    resumed = [*output, "train.max_iter=3"]
    result = run(
        *("lazyconfig_train_net.py", "--resume", "--config-file", DIGITS, *resumed),
        datasets=tiny_digits,
    )
    assert result.returncode == 0, result.stderr
    assert "Starting training from iteration 2" in result.stdout

    checkpoint = f"train.init_checkpoint={weights}"
    result = run(
        *("train_net.py", "--eval-only", "--config-file", DIGITS, *output, checkpoint),
        datasets=tiny_digits,
    )
    assert result.returncode == 0, result.stderr
    assert "copypaste: Task: segm" in result.stdout

    result = run(
        "train_net.py", "--eval-only", "--config-file", DIGITS, *output, datasets=tiny_digits
    )
    assert result.returncode == 2
    assert 'error: MODEL.WEIGHTS is "" leaves' in result.stderr

    Image.fromarray(np.full((64, 64, 3), 100, np.uint8)).save(tmp_path / "x.png")
    result = run(
        *("predict.py", "--config-file", DIGITS, "--input", tmp_path / "x.png"),
        *("--output", tmp_path / "drawn", "--opts", checkpoint),
        datasets=tiny_digits,
    )
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "drawn/x.png").size == (64, 64)

    result = run("lazyconfig_train_net.py", "--config-file", "x.yaml", datasets=tiny_digits)
    assert result.returncode == 2
    assert "--config-file is required, e.g. configs/lazy/cascade_resnest101.py" in result.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.init_checkpont=x", "no key 'train.init_checkpont' .*did you mean train.init_check"),
        ("SOLVER.MAX_ITER", "have the form key=value .*got 'SOLVER.MAX_ITER'"),
        (
            "model.backbone.bottom_up.radius=2",
            "no key 'model.backbone.bottom_up.radius' .*did you mean .*norm",
        ),
        ("train.max_iter=0", "train.max_iter must be at least 1, got 0"),
        ("train.log_period=0", "train.log_period must be at least 1, got 0"),
        ("train.checkpointer.period=0", "train.checkpointer.period must be at least 1, got 0"),
        (
            "dataloader.train.total_batch_size=0",
            "dataloader.train.total_batch_size must be at least 1, got 0",
        ),
        ("train.device=gpu7", "train.device 'gpu7' is no device of PyTorch"),
        (
            "train.max_iter.x=2",
            "no key 'train.max_iter.x' in the config; did you mean train.max_iter",
        ),
        ("train.output_dir=/a b/=c", "option 'train.output_dir=/a b/=c': mismatched input '='"),
    ],
)
def test_wrong_overrides(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(str(ROOT / DIGITS), [override])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("model = Mask()", "name 'Mask' is not defined"),
        ("model = (", "Config file .*config.py has syntax error!"),
    ],
)
def test_broken_config_files_are_named(tmp_path, code, message):
    file = tmp_path / "config.py"
    file.write_text(f"{code}\n")
    with pytest.raises(ValueError, match=f"{file}: {message}"):
        load_config(str(file))


def test_an_argument_that_the_call_takes_can_be_added():
    cfg = load_config(str(ROOT / DIGITS), ["model.backbone.bottom_up.radix=4"])
    assert build_detector(choose_cpu(cfg)).backbone.bottom_up.res2[0].conv2.radix == 4


def choose_cpu(cfg):
    choose_device(cfg)
    assert cfg.train.device == "cpu"
    return cfg


def test_wrong_files(tmp_path):
    file = tmp_path / "config.py"
    file.write_text("x = 1\n")
    with pytest.raises(ValueError, match="config.py defines no 'model'"):
        load_config(str(file))
    with pytest.raises(
        FileNotFoundError, match="this Detectron2 came without its config .*absent.py"
    ):
        detectron2_config("absent.py")


@pytest.mark.parametrize(
    ("tool", "args", "missing"),
    [
        ("train_net.py", [], "dataloader.train, lr_multiplier, optimizer.params, train.init_check"),
        (
            "train_net.py",
            ["--eval-only"],
            "dataloader.test, dataloader.evaluator, train.init_checkp",
        ),
        (
            "predict.py",
            ["--input", __file__, "--output", "{}"],
            "train.init_checkpoint, model.input",
        ),
    ],
)
def test_what_a_config_lacks_is_named(tool, args, missing, tmp_path):
    file = tmp_path / "config.py"
    file.write_text("model = dict()\ntrain = dict()\n")
    args = [arg.format(tmp_path / "out") for arg in args]
    result = run(tool, "--config-file", file, *args, datasets=tmp_path)
    assert result.returncode == 2
    assert f"error: the .py config lacks {missing}" in result.stderr
    assert "Traceback" not in result.stderr


NEEDED = [*TRAINING_KEYS, *DEPENDENT_TRAINING_KEYS.values()]


@pytest.mark.parametrize(
    ("keys", "start"),
    [
        (NEEDED, lambda cfg: lazy_trainer.LazyTrainer(cfg)),
        (NEEDED, lambda cfg: Settings.of(cfg).require_for_training()),
        (EVALUATION_KEYS, lambda cfg: load_for_evaluation(cfg)),
        (INFERENCE_KEYS, lambda cfg: Predictor(cfg)),
    ],
    ids=["LazyTrainer", "train", "evaluate", "predict"],
)
def test_each_key_that_is_read_is_asked_for(keys, start):
    for key in keys:
        cfg = load_config(str(ROOT / DIGITS), ["train.reference_world_size=1"])
        cfg.train.precise_bn.enabled = True
        parent, _, name = key.rpartition(".")
        del OmegaConf.select(cfg, parent, default=cfg)[name]
        with pytest.raises(ConfigError, match=f"the .py config lacks .*{key}"):
            start(cfg)


def test_keys_with_defaults_can_be_left_out(registered_digits, tmp_path):
    """The defaults of Detectron2 and PyTorch apply."""
    cfg = load_config(str(ROOT / DIGITS), [*TINY, f"train.output_dir='{tmp_path}'"])
    del cfg.train.amp, cfg.train.seed, cfg.train.reference_world_size
    del cfg.train.precise_bn.num_iter, cfg.optimizer.lr, cfg.train.clip_gradients.clip_type
    cfg.train.update(device="cpu", max_iter=1)
    cfg.train.clip_gradients.enabled = True
    cfg.dataloader.test.dataset.names = []
    del cfg.dataloader.evaluator
    lazy_trainer.LazyTrainer(cfg).train()
    assert (tmp_path / "model_final.pth").is_file()


def test_data_that_no_loader_would_read():
    cfg = load_config(str(ROOT / DIGITS))
    del cfg.dataloader.test
    with pytest.raises(ConfigError, match="the .py config lacks dataloader.test.dataset"):
        Settings.of(cfg).set_datasets("test", ["mine"])
    Settings.of(cfg).set_datasets("test", [])
    Settings.of(cfg).require_for_training()


def test_configs_can_go_to_other_processes():
    cfg = load_config(model_zoo.get_config_file("lazy/cascade_resnest50"))
    again = pickle.loads(pickle.dumps(cfg))
    with no_weights(model_zoo.get_config("mask_resnest50"), cfg):
        again.train.device = "meta"
        assert settings(build_detector(again)).keys() == settings(build_detector(cfg)).keys()


def test_evaluator_and_augmentation_classes(registered_digits):
    cfg = model_zoo.get_config("lazy/mask_resnest14_digits")
    assert isinstance(instantiate(cfg.dataloader.evaluator), COCOEvaluator)
    (resize,) = cfg.dataloader.test.mapper.augmentations
    assert isinstance(instantiate(resize), T.ResizeShortestEdge)
    assert json.dumps(dict(cfg.train.amp)) == '{"enabled": false}'
