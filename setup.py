"""Put the folder configs/ into the wheel as ``resnest_d2/configs``; pyproject.toml has the rest."""

from setuptools import find_namespace_packages, find_packages, setup

configs = ["configs", *(f"configs.{name}" for name in find_namespace_packages("configs"))]
config_packages = [f"resnest_d2.{name}" for name in configs]

setup(
    packages=[*find_packages(include=["resnest_d2*"]), *config_packages],
    py_modules=["resnest_d2_cli"],
    package_dir={"resnest_d2.configs": "configs"},
    package_data={
        "resnest_d2": ["py.typed"],
        **{name: ["*.yaml", "*.py"] for name in config_packages},
    },
)
