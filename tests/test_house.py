"""The promises that the code makes about itself."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

import daguerre
from daguerre import errors
from daguerre.http.problems import STATUSES
from daguerre.http.routes import ROUTES
from daguerre.settings import Settings
from daguerre.telemetry.counters import Counters
from daguerre.telemetry.metrics import Metrics

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "daguerre").rglob("*.py"))


def _leaves(kind: type[errors.DaguerreError]) -> list[type[errors.DaguerreError]]:
    children = kind.__subclasses__()
    return [kind] if not children else [leaf for child in children for leaf in _leaves(child)]


def test_every_error_that_a_client_can_meet_has_a_status_and_a_line_in_the_docs() -> None:
    """A new leaf of the error tree cannot be forgotten at the wire."""
    documented = (ROOT / "docs" / "api.md").read_text()
    for leaf in _leaves(errors.DaguerreError):
        if leaf in (errors.SettingsError, errors.BackupFailed, errors.DataInUse):  # told on the terminal
            continue
        assert leaf in STATUSES, leaf
        assert f"`{leaf.code}`" in documented, leaf


def test_the_error_tree_is_drawn_as_it_is() -> None:
    """The tree at the top of errors.py names every class."""
    drawn = errors.__doc__ or ""
    for leaf in _leaves(errors.DaguerreError):
        assert leaf.__name__ in drawn


def test_every_route_is_documented() -> None:
    """docs/api.md names each path; the aliases under /api/v1 are one sentence there."""
    documented = (ROOT / "docs" / "api.md").read_text()
    for route in ROUTES:
        path = getattr(route, "path", "")
        if not path.startswith("/api/"):
            assert f"`{path}`" in documented or path in documented, path


def test_every_setting_is_documented() -> None:
    """docs/settings.md has a row for each key."""
    documented = (ROOT / "docs" / "settings.md").read_text()
    for name in Settings.__struct_fields__:
        assert f"| `{name}` |" in documented, name


def test_every_metric_is_documented_and_every_documented_one_is_there() -> None:
    """docs/metrics.md has a row for each that is exported, with its type and its labels, and none beside."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+)(?:; ([^|]*))? \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE
    )
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(documented) == len(rows)
    metrics = Metrics(Counters())
    labels = {
        collector._name: set(collector._labelnames)
        for collector in metrics.registry._collector_to_names
        if isinstance(collector, MetricWrapperBase)
    }
    exported = {}
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        sampled = {label for sample in family.samples for label in sample.labels} - {"le"}
        exported[name] = (family.type, labels.get(family.name, sampled))
    assert documented == exported


def test_every_error_has_its_row() -> None:
    """docs/errors.md tells of each code, with the status that it is answered with."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE))
    for leaf in _leaves(errors.DaguerreError):
        assert leaf.code in rows, leaf
        if leaf in STATUSES and leaf is not errors.NoPicture:  # which has the code of what ended the job
            assert int(rows[leaf.code]) == STATUSES[leaf][0], leaf


def test_the_page_of_commands_is_up_to_date() -> None:
    """docs/cli.md is what ``python tools/cli_reference.py`` writes now."""
    code = "import sys; sys.path.insert(0, 'tools'); import cli_reference; sys.stdout.write(cli_reference.page())"
    page = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "cli.md").read_text() == page


def test_the_tests_that_security_md_names_are_there() -> None:
    """A defence without its test is none."""
    for name in re.findall(r"`(tests/[\w/.]+)`", (ROOT / "SECURITY.md").read_text()):
        assert (ROOT / name).exists(), name


def test_every_file_has_its_sentence() -> None:
    """docs/structures.md names each source file, and each begins by saying what it owns."""
    documented = (ROOT / "docs" / "structures.md").read_text()
    for path in SOURCES:
        inside = path.relative_to(ROOT / "src" / "daguerre")
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc, inside
        if inside.name not in ("__init__.py", "__main__.py") and inside.parts[0] != "demo":
            assert doc.startswith("Owns "), inside
            assert f"`{inside}`" in documented, inside


def test_broad_excepts_stand_at_the_boundaries_only() -> None:
    """``except Exception``: around a run, its second decode, its unwinding, a forward, a model made ready, threads.

    ``BaseException``: where something half written is taken back.
    """
    found = [
        (path.name, node.lineno)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
    ]
    allowed = {
        "engine.py": 1,
        "painter.py": 3,
        "faults.py": 1,
        "residency.py": 2,
        "adapter_cache.py": 1,
        "files.py": 1,
        "service.py": 1,
    }
    allowed |= {"inspection.py": 1}
    for name in {name for name, _ in found}:
        assert sum(place == name for place, _ in found) <= allowed.get(name, 0), found


def test_public_names() -> None:
    """``from daguerre import …`` has exactly these, sorted, and each can be had."""
    assert daguerre.__all__ == sorted(daguerre.__all__)
    for name in daguerre.__all__:
        assert getattr(daguerre, name)


def test_the_port_can_open_before_torch_is_loaded() -> None:
    """Importing the whole server loads none of the heavy libraries."""
    code = "import sys, daguerre.app, daguerre.cli, daguerre.http.server; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "diffusers", "transformers", "compel", "accelerate"} & set(loaded)
