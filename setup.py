"""Packaging of resnest_d2; the configs/ folder travels in the wheel as ``resnest_d2/configs``."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

HERE = Path(__file__).parent


def read_version() -> str:
    # Read, not imported: importing the package needs Detectron2.
    text = (HERE / "resnest_d2" / "__init__.py").read_text()
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


packages = find_packages(include=["resnest_d2", "resnest_d2.*"])
config_packages = ["resnest_d2.configs"] + [
    f"resnest_d2.configs.{name}" for name in find_namespace_packages("configs")
]

setup(
    name="resnest_d2",
    version=read_version(),
    description="ResNeSt (split-attention) backbones for Detectron2",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=packages + config_packages,
    package_dir={"resnest_d2": "resnest_d2", "resnest_d2.configs": "configs"},
    package_data={
        "resnest_d2": ["py.typed"],
        **{package: ["*.yaml", "*.py"] for package in config_packages},
    },
    entry_points={"console_scripts": ["resnest-d2 = resnest_d2.__main__:main"]},
    # Importing, building and training need these, with Detectron2's Python alone: Detectron2 is not
    # on PyPI under its name; importing without it says how to install it.
    install_requires=[
        *("torch>=2.4", "torchvision", "fvcore", "omegaconf", "hydra-core", "cloudpickle"),
        *("pycocotools", "tensorboard", "tqdm"),
    ],
    extras_require={
        "dev": [
            "hotcoco",
            "opencv-python-headless",
            "huggingface_hub",
            "hypothesis",
            "pytest",
            "resnest==0.0.6b20230402",  # the reference
            "ruff",
            "safetensors",
            "scikit-image",
            "scikit-learn",
            "timm",
        ],
        # timm:// names, and files ending in .safetensors
        "hub": ["huggingface_hub", "safetensors"],
        # COCO's metrics in a fraction of pycocotools' time
        "fast-eval": ["hotcoco"],
        # pictures and videos of detections
        "draw": ["matplotlib", "opencv-python-headless"],
        "demo": ["hotcoco", "matplotlib", "opencv-python-headless", "scikit-image", "scikit-learn"],
    },
)
