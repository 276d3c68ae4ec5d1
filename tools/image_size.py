"""Adds up what the container image weighs, compressed, without building it.

    python tools/image_size.py [--limit 4.0]

A wheel is a zip, so its size is about that of its files in a compressed layer. `uv` resolves the wheels for the image's
platform; where the package index does not tell a size in its listing, a download is begun with pip, which announces it,
and ended there. The base image's own layers cannot be asked for here: their size is the one written below.
"""

import argparse
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON, PLATFORM = "3.11", "x86_64-manylinux_2_28"
_TAGS = ["manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(17, 29))]
#: python:3.11-slim-bookworm for linux/amd64 on its registry, rounded up; in bytes.
BASE = 50_000_000
#: gcc and libc6-dev with what they need, by the sizes of Debian's packages.
COMPILER = 50_000_000
#: Python's compiled files, which are in no wheel; seen in an environment with the CPU build of torch, where the other
#: files weighed 252 MB compressed, and their wheels 265 MB.
COMPILED = 90_000_000
_UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def wheels() -> dict[str, float]:
    """The size in bytes of every wheel that the image installs, by name and version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with tempfile.TemporaryDirectory() as folder:
        wanted, locked = Path(folder, "requirements.txt"), Path(folder, "pylock.toml")
        wanted.write_text("\n".join(project["dependencies"]))
        options = ["--python-version", PYTHON, "--python-platform", PLATFORM, "--only-binary", ":all:"]
        command = ["uv", "pip", "compile", "--quiet", "--system-certs", *options, "--output-file", str(locked)]
        subprocess.run([*command, "--format", "pylock.toml", str(wanted)], check=True)
        packages = tomllib.loads(locked.read_text())["packages"]
        return {
            f"{package['name']}=={package['version']}": package["wheels"][0].get("size")
            or announced(f"{package['name']}=={package['version']}", folder)
            for package in packages
        }


def announced(requirement: str, folder: str) -> float:
    """What pip says that it is about to download, in bytes, and is not let do; or what it had at hand already."""
    place = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary", ":all:"]
    options = ["--python-version", PYTHON, *(option for tag in _TAGS for option in ("--platform", tag))]
    with subprocess.Popen(
        [*command, *options, "--progress-bar", "off", "--dest", str(place), requirement],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"\(([\d.]+) (bytes|kB|MB|GB)\)", line)
            if found and line.lstrip().startswith("Downloading"):
                process.terminate()
                return float(found[1]) * _UNITS[found[2]]
    for wheel in place.glob("*.whl"):
        return wheel.stat().st_size
    raise SystemExit(f"image_size: the index does not say how large {requirement} is")


def own() -> int:
    """Our sources and the embedded model, compressed as a layer is."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = ["src", *(line[1:] for line in lines if line.startswith("!weights/"))]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as layer:
        for name in sent:
            layer.add(ROOT / name, name)
    return len(packed.getvalue())


def main() -> None:
    """Prints the parts, the largest first, and their sum; fails if that is over the limit."""
    parser = argparse.ArgumentParser(description="What the container image weighs, compressed.")
    parser.add_argument("--limit", type=float, default=4.0, help="gigabytes (10^9 bytes) that it may weigh")
    limit = parser.parse_args().limit * 1e9
    sizes = wheels()
    parts = sizes | {"compiled Python": COMPILED, "base image": BASE, "C compiler": COMPILER, "Daguerre": own()}
    for name, size in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"{size / 1e6:10.1f} MB  {name}")
    total = sum(parts.values())
    print(f"{total / 1e6:10.1f} MB  in all")
    if total > limit:
        raise SystemExit(f"image_size: more than {limit / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
