"""What holds for all tests."""

import pytest

#: Folders whose files take longest. They begin first, so that no worker is left alone with one at the end.
LONGEST = ("soak", "live", "security", "engine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, whatever the folders are called."""
    items.sort(key=lambda item: (*LONGEST, item.path.parent.name).index(item.path.parent.name))
