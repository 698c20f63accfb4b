"""Reading configs: no YAML runs code, each file is read once, both kinds answer alike."""

from pathlib import Path

import detectron2
import pytest
import yaml
from detectron2.config import LazyConfig, get_cfg

from resnest_d2 import model_zoo
from resnest_d2.config import ConfigError, keys
from resnest_d2.config.load import choose_device, load_config
from resnest_d2.config.settings import Settings
from resnest_d2.engine import load_config as public_load_config
from resnest_d2.modeling.detector import build_detector

DETECTRON2_CONFIGS = Path(detectron2.__file__).parent / "model_zoo/configs"
CODE = [
    'OUTPUT_DIR: !!python/object/apply:os.system ["touch ran"]',
    'OUTPUT_DIR: !!python/object/new:os.system ["touch ran"]',
    "OUTPUT_DIR: !!python/object/apply:eval [\"open('ran', 'w')\"]",
    "OUTPUT_DIR: !!python/name:os.system",
    "OUTPUT_DIR: !!python/module:antigravity",
    "OUTPUT_DIR: !!python/object:os.PathLike {}",
    "MODEL: {WEIGHTS: !!python/object/apply:subprocess.run [[touch, ran]]}",
]


@pytest.mark.parametrize("text", CODE)
@pytest.mark.parametrize("place", ["the file", "its base", "a base of a list"])
def test_yaml_that_would_run_code_is_refused_by_name(text, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile.yaml").write_text(text)
    (tmp_path / "good.yaml").write_text("VERSION: 2\n")
    (tmp_path / "base.yaml").write_text("_BASE_: hostile.yaml\n")
    (tmp_path / "list.yaml").write_text("_BASE_: [good.yaml, hostile.yaml]\n")
    name = {"the file": "hostile", "its base": "base", "a base of a list": "list"}[place]
    with pytest.raises(ConfigError, match=r"hostile.yaml: line 1: the tag !!python/\S+ would run"):
        load_config(f"{name}.yaml")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target", ["os.system", "detectron2.utils.env.os.system", "builtins.eval", "nothing.there"]
)
def test_a_saved_lazy_config_calls_known_packages_only(target, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"model:\n  _target_: {target}\n  command: touch ran\n")
    with pytest.raises(ConfigError, match=f"config.yaml calls {target}, which is none of"):
        load_config(str(file))


def test_a_saved_lazy_config_is_read_again(tmp_path):
    cfg = model_zoo.get_config("lazy/mask_resnest14_digits")
    cfg.train.device = "cpu"
    file = tmp_path / "config.yaml"
    LazyConfig.save(cfg, str(file))
    again = load_config(str(file), ["train.max_iter=5"])
    assert again.train.max_iter == 5
    states = [build_detector(one).state_dict() for one in (again, cfg)]
    assert [(k, v.shape) for k, v in states[0].items()] == [
        (k, v.shape) for k, v in states[1].items()
    ]


@pytest.mark.parametrize("file", sorted(DETECTRON2_CONFIGS.rglob("*.yaml")), ids=lambda f: f.name)
def test_detectron2s_own_configs_load_as_detectron2_loads_them(file):
    expected = get_cfg()
    expected.merge_from_file(str(file))
    assert yaml.safe_load(keys.portable_config(load_config(str(file))).dump()) == yaml.safe_load(
        expected.dump()
    )


def test_each_file_is_read_once(monkeypatch):
    read = []
    original = keys.PathManager.open

    def spy(path, *args, **kwargs):
        read.append(Path(path).name)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(keys.PathManager, "open", spy)
    load_config(model_zoo.get_config_file("mask_resnest50"), ["SOLVER.MAX_ITER", "5"])
    assert read.count("mask_resnest50.yaml") == 1
    assert len(read) == len(set(read))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: config.yaml", " is its own _BASE_$"),
        ("- a\n- b", ": it is no config but holds a list$"),
        ("a: [", " is no YAML: while parsing a flow node expected the node content"),
        (
            "MODEL:\n  RESNETS:\n    RADUX: 2",
            ": .* key: MODEL.RESNETS.RADUX; did you mean .*RADIX",
        ),
        ("VERSION: 9", ": VERSION is 9, this Detectron2's is 2$"),
    ],
)
def test_wrong_files_are_named(text, message, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"{file}{message}"):
        load_config(str(file))


@pytest.mark.parametrize("name", ["mask_resnest50", "lazy/mask_resnest50"])
def test_settings_of_both_kinds(name):
    settings = Settings.of(public_load_config(model_zoo.get_config_file(name)))
    assert Settings.of(settings) is settings
    assert settings.input_format == "RGB"
    assert settings.images_per_batch == 16
    assert settings.datasets("test")[1] == ["coco_2017_val"]
    assert settings.learns() == (True, False)
    settings.device = "cuda"
    settings.amp = True
    assert choose_device(settings) == 1
    assert (settings.device, settings.amp) == ("cpu", False)
    copy = settings.copy()
    copy.set_num_classes(3)
    copy.set_datasets("train", ["a", "b"])
    assert copy.get(copy.num_classes_key) == 3
    assert copy.datasets("train")[1] == ["a", "b"]
    assert settings.get(settings.num_classes_key) == 80
