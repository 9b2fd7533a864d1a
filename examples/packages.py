"""Texts inside packages: wheels in a folder are read as they are, nothing is installed or run."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path


def files(folder: Path, pattern: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield package, name and content of the files in wheels whose names match."""
    if not folder.is_dir():
        raise FileNotFoundError(2, "no such folder", str(folder))
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if re.search(pattern, name):
                    yield wheel.name.split("-")[0], name, archive.read(name)
