"""Reading configs: no YAML runs code, and wrong files and options are named."""

from pathlib import Path

import detectron2
import pytest
import yaml
from detectron2.config import LazyConfig, get_cfg
from server import Server, content

from resnest_d2 import model_zoo
from resnest_d2.config import ConfigError, InputError, MissingFileError, import_extra, keys
from resnest_d2.config.load import (
    PLAIN_BUILDERS,
    choose_device,
    config_dir,
    load_config,
    parse_config,
)
from resnest_d2.engine import Trainer
from resnest_d2.inference import Predictor
from resnest_d2.modeling.detector import build_detector

DETECTRON2_CONFIGS = Path(detectron2.__file__).parent / "model_zoo/configs"
CODE = [
    'OUTPUT_DIR: !!python/object/apply:os.system ["touch ran"]',
    "OUTPUT_DIR: !!python/name:os.system",
    "MODEL: {WEIGHTS: !!python/object/new:subprocess.run [[touch, ran]]}",
]


@pytest.mark.parametrize("text", CODE)
def test_yaml_that_would_run_code_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile.yaml").write_text(text)
    (tmp_path / "good.yaml").write_text("VERSION: 2\n")
    (tmp_path / "base.yaml").write_text("_BASE_: hostile.yaml\n")
    (tmp_path / "list.yaml").write_text("_BASE_: [good.yaml, hostile.yaml]\n")
    for name in ("hostile", "base", "list"):
        with pytest.raises(
            ConfigError, match=f"{name}.yaml: could not .*the tag .*python/.*line 1"
        ):
            load_config(f"{name}.yaml")
    with pytest.raises(ConfigError, match="the checkpoint's: could not .*the tag"):
        parse_config(text, "the checkpoint's")
    assert not (tmp_path / "ran").exists()


def test_a_saved_lazy_config_calls_nothing(tmp_path):
    """Its targets could be any function, of this package's dependencies too."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    call = {"_target_": "detectron2.config.LazyConfig.load", "filename": str(tmp_path / "evil.py")}
    hostile = {"model": {"_target_": "torch.nn.Identity", "x": call}}
    LazyConfig.save(LazyConfig.load(lazy("mask_resnest14_digits")), str(tmp_path / "saved.yaml"))
    (tmp_path / "hostile.yaml").write_text(yaml.safe_dump(hostile))
    for file in ("hostile.yaml", "saved.yaml"):
        with pytest.raises(ConfigError, match="constructor for the tag|Non-existent config key"):
            load_config(str(tmp_path / file))
    with pytest.raises(ConfigError, match="LazyConfigs"):
        load_config(lazy("mask_resnest14_digits"))
    assert not (tmp_path / "ran").exists()


def lazy(name: str) -> str:
    return str(config_dir() / f"lazy/{name}.py")


@pytest.mark.parametrize("file", sorted(DETECTRON2_CONFIGS.rglob("*.yaml")), ids=lambda f: f.name)
def test_detectron2s_own_configs_load_as_detectron2_loads_them(file):
    expected = get_cfg()
    expected.merge_from_file(str(file))
    found = keys.portable_config(load_config(str(file)))
    assert yaml.safe_load(found.dump()) == yaml.safe_load(expected.dump())


def test_a_base_at_an_address(tmp_path, monkeypatch):
    """Relative to it, as Detectron2 reads it."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    with Server().running() as server:
        server.answers = {
            "a/leaf.yaml": content(b"_BASE_: b/base.yaml\nSOLVER: {MAX_ITER: 7}\n"),
            "a/b/base.yaml": content(b"SOLVER: {BASE_LR: 0.5, MAX_ITER: 5}\nVERSION: 2\n"),
        }
        (tmp_path / "mine.yaml").write_text(f"_BASE_: {server.url}a/leaf.yaml\n")
        solver = load_config(str(tmp_path / "mine.yaml")).SOLVER
        assert (solver.BASE_LR, solver.MAX_ITER) == (0.5, 7)
        (tmp_path / "mine.yaml").write_text(f"_BASE_: {server.url}none.yaml\n")
        with pytest.raises(OSError, match=r"mine.yaml: its _BASE_ cannot be read: .*404"):
            load_config(str(tmp_path / "mine.yaml"))


# Each line holds the one before it twice.
BOMB = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: config.yaml", ": it is its own _BASE_, or"),
        ("_BASE_: absent.yaml", ": its _BASE_ cannot be read: .*/absent.yaml"),
        ("- a\n- b", ": a config is keys and values, not a list$"),
        ("a: [", ": while parsing a flow node expected the node content"),
        ("MODEL: {RESNETS: {RADUX: 2}}", ": .* key: MODEL.RESNETS.RADUX; did you mean .*RADIX"),
        ("VERSION: 9", ": VERSION must be 2, got 9"),
        ("", ": it is not keys and values: "),
        ("MODEL: {RESNETS: {RADIX: ~}}", ": MODEL.RESNETS.RADIX has no value"),
        ("a: &x {b: *x}", ": it is nested without end"),
        (BOMB, ": it is nested without end"),
        ("a: " + "[" * 3000 + "]" * 3000, ": it is its own _BASE_, or nested too deep"),
        ("MODEL: 5", ": Type mismatch .* vs. 5. for config key: MODEL$"),
    ],
)
def test_wrong_files_are_named(text, message, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=f"^{file}{message}") as error:
        load_config(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.BASE_LR"], "odd length: .'SOLVER.BASE_LR'.; it must be a list of pairs"),
        (["MODEL.RESNETS.RADUX", "2"], "key: MODEL.RESNETS.RADUX; did you mean MODEL.RESNETS.RADI"),
        (["SOLVER.MAXITER", "9"], "key: SOLVER.MAXITER; did you mean SOLVER.MAX_ITER"),
        (["--resume", "1"], "--resume must stand before the config's own options"),
        (["MODEL.MASK_ON.X", "1"], "the command line: it is not keys and values: "),
        (["MODEL.WEIGHTS", "None"], "the command line: MODEL.WEIGHTS has no value"),
        (["SOLVER.MAX_ITER", "many"], "the command line: Type mismatch .* SOLVER.MAX_ITER$"),
    ],
)
def test_wrong_options_are_named(opts, message):
    """On the command line, and in Python over a config that is there."""
    with pytest.raises(ConfigError, match=message):
        load_config(model_zoo.get_config_file("mask_resnest50"), opts)
    with pytest.raises(ConfigError, match=message):
        Predictor(model_zoo.get_config("mask_resnest14_digits"), options=opts)


def test_a_file_that_is_not_there(tmp_path):
    for wrong in ("x" * 300 + ".yaml", "a\0b.yaml", str(tmp_path)):
        with pytest.raises(MissingFileError, match="--config-file: there is no file"):
            load_config(wrong)
    with pytest.raises(MissingFileError, match="no file 'mask_resnest5.yaml'; did you mean config"):
        load_config("mask_resnest5.yaml")


@pytest.mark.parametrize(
    "key", ["MODEL.POINT_HEAD.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS"]
)
def test_keys_of_detectron2s_projects_are_added_where_they_are_named(key):
    assert key not in set(keys.flat_keys(parse_config("VERSION: 2", "a text")))
    assert key in set(keys.flat_keys(parse_config("VERSION: 2", "a text", [key, "3"])))


def test_a_gpu_is_replaced_unless_it_was_asked_for(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = get_cfg()
    cfg.SOLVER.AMP.ENABLED = True
    assert choose_device(cfg, num_processes=2) == 2
    assert (cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED) == ("cpu", False)
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(ConfigError, match="device 'cuda' was asked for, and no GPU was found"):
        choose_device(cfg, required=True)
    for device in ("cuda:x", "gpu", "xpu:0"):
        cfg.MODEL.DEVICE = device
        with pytest.raises(ConfigError, match=f"device '{device}' is no device"):
            choose_device(cfg)


def test_gpus_that_are_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    cfg = get_cfg()
    assert choose_device(cfg, 2) == 2
    assert cfg.MODEL.DEVICE == "cuda"
    with pytest.raises(ConfigError, match="--num-gpus is 4, but this machine has 2 GPUs"):
        choose_device(cfg, 4)
    with pytest.raises(ConfigError, match="--num-processes is for CPUs"):
        choose_device(cfg, 1, 2)


def test_extras_are_named_where_they_are_missing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_module.py").write_text("import something_absent\n")
    message = r"^drawing needs absent_package, .*: pip install 'resnest_d2\[draw\]'"
    with pytest.raises(ImportError, match=message):
        import_extra("absent_package.part", "draw", "drawing")
    with pytest.raises(ModuleNotFoundError, match="No module named 'something_absent'"):
        import_extra("broken_module", "draw", "drawing")  # it is there: a defect of another kind


@pytest.mark.parametrize("builder", PLAIN_BUILDERS)
@pytest.mark.parametrize(
    ("setting", "refused"),
    [
        ("RADIX: 2", "RADIX 2"),
        ("AVD: True", "AVD True"),
        ("DEEP_STEM: True", "DEEP_STEM True"),
        ("AVD: False, DEEP_STEM: False, AVG_DOWN: False, RADIX: 1, DEPTH: 101", None),
    ],
)
def test_a_plain_builder_with_settings_of_a_resnest(tmp_path, builder, setting, refused):
    """As ResNeSt's fork of Detectron2 spells it, where this builder makes a ResNeSt."""
    file = tmp_path / "config.yaml"
    (tmp_path / "base.yaml").write_text(f"MODEL: {{RESNETS: {{{setting}}}}}\nVERSION: 2")
    file.write_text(f"_BASE_: base.yaml\nMODEL: {{BACKBONE: {{NAME: {builder}}}}}\nVERSION: 2")
    if refused is None:
        assert load_config(str(file)).MODEL.BACKBONE.NAME == builder
        return
    with pytest.raises(ConfigError) as error:
        load_config(str(file))
    assert f"MODEL.RESNETS.{refused} is a ResNeSt's" in str(error.value)
    right = builder.replace("resnet", "resnest")
    assert f"write {right!r}" in str(error.value)
    assert load_config(str(file), ["MODEL.BACKBONE.NAME", right])


def test_a_builder_that_does_not_exist():
    cfg = model_zoo.get_config("mask_resnest14_digits")
    cfg.MODEL.BACKBONE.NAME = "build_resnst_fpn_backbone"
    for build in (build_detector, Trainer.build_model):
        with pytest.raises(
            ConfigError,
            match="MODEL.BACKBONE.NAME: no builder is called 'build_resnst_fpn_backbone'; did you "
            "mean .*build_resnest_fpn_backbone",
        ):
            build(cfg)
