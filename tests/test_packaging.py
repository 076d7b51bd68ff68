"""The wheel holds every file that the packages read: templates, styles and scripts beside the modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("archive", "model", "tasks", "flows")
# What `pip wheel` would copy, without building one: setuptools in a process of its own, since it changes a lot.
ASKED = """
from setuptools import Distribution
found = Distribution()
found.parse_config_files(["pyproject.toml"])
found.script_name = "setup.py"
found.include_package_data = False  # no manifest: what package-data names has to be enough
command = found.get_command_obj("build_py")
command.ensure_finalized()
for package, folder, _, names in command.data_files:
    for name in names:
        print(f"{folder}/{name}")
for package, module, path in command.find_all_modules():
    print(path)
"""


def test_the_wheel_holds_all_that_lies_in_the_packages():
    done = subprocess.run([sys.executable, "-c", ASKED], cwd=ROOT, capture_output=True, text=True, check=True)
    shipped = {str(Path(line)) for line in done.stdout.splitlines() if "/" in line}
    ours = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert {f"flows/{name}" for name in ("report.html.j2", "report.js", "view.html.j2", "view.css", "view.js")} <= ours
    assert ours - shipped == set()
    assert not [path for path in shipped if not path.startswith(tuple(f"{name}/" for name in PACKAGES))]
