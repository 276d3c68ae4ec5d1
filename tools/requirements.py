"""Prints the project's dependencies, a line each, for a layer that does not change with the sources."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
sys.stdout.writelines(f"{requirement}\n" for requirement in project["dependencies"])
