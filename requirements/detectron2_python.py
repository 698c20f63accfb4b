"""Build a wheel of the Python part of the Detectron2 checkout in the current folder.

Detectron2's own setup.py says which packages, projects and configs belong to it; only its
extension, which needs a compiler, is left out.
"""

import runpy
import sys

import setuptools

_setup = setuptools.setup
setuptools.setup = lambda **keywords: _setup(**keywords | {"ext_modules": [], "cmdclass": {}})
sys.argv = ["setup.py", "--quiet", "bdist_wheel"]
runpy.run_path("setup.py", run_name="__main__")
