"""environment.yml asks conda for what pyproject.toml asks pip for: the same packages in the same
ranges.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "playwright": "playwright-python",
    "ray": "ray-core",
}


def ranges(requirements):
    """{name: version range} of requirements such as `numpy>=2.0,<3`."""
    return dict(
        re.fullmatch(r"([\w-]+)\s*(.*)", requirement).groups() for requirement in requirements
    )


def test_conda_environment_matches_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = ranges(project["dependencies"] + project["optional-dependencies"]["test"])
    wanted = {CONDA_NAMES.get(name, name): versions for name, versions in wanted.items()}
    wanted |= {"python": project["requires-python"], "pip": ""}

    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = environment["dependencies"]
    assert ranges(packages) == wanted
    assert pip == {"pip": ["--editable ."]}  # the package itself and nothing else
    assert environment["channels"] == ["conda-forge", "nodefaults"]


def test_what_takes_long_to_load_is_loaded_where_it_is_used():
    """A new kernel is ready at once: plots are drawn with what matplotlib and plotly bring."""
    heavy = ("scipy.stats", "scipy.optimize", "sklearn", "transformers", "numba", "ray", "httpx")
    code = (
        f"import sys, softar_lab, softar_lab.plots; print([m for m in {heavy} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
