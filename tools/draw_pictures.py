"""Draw the pictures of the documentation again: those of two pages and those of the examples.

    python tools/draw_pictures.py

Runs the code of docs/looking.md and docs/family.md, and the examples that draw. Needs
attnfast[plot] and the model of the examples. Each picture is reduced to a palette and written to
docs/pictures. Times are not measured again: the pictures show those that the pages state. speed.png
is drawn by `attnfast bench --from docs/figures/growth.json --plot docs/pictures/speed.png`.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("looking.md", "family.md")
EXAMPLES = ("align.py", "summarise.py", "long_document.py")
COLORS = 256  # of a palette
PHOTOGRAPHS = ("fusion.png",)  # whose palettes are chosen by median cut, not for flat colours


def run(page: Path) -> None:
    """Run the code of a page in the working folder, with the times that the page states."""
    text = page.read_text(encoding="utf-8")
    stated = {name: float(ms) for name, ms in re.findall(r"^ {4}(.+): ([\d.]+) ms$", text, re.M)}
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code.replace("range(50)", "range(1)"), names)
        if "fastest" in names:
            names["fastest"] = {name: stated[name] for name in names["fastest"]}


def reduce(picture: Path, target: Path) -> None:
    """Write a picture with a palette, which takes a third of the room."""
    photograph = target.name in PHOTOGRAPHS
    method = Image.Quantize.MEDIANCUT if photograph else Image.Quantize.MAXCOVERAGE
    with Image.open(picture) as image:
        small = image.convert("RGB").quantize(COLORS, method, dither=0)
    small.save(target, optimize=True)


def main() -> None:
    """Draw all pictures of the pages and the examples."""
    sys.path.insert(0, str(ROOT / "examples"))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for page in PAGES:
            run(ROOT / "docs" / page)
        for example in EXAMPLES:
            script = ROOT / "examples" / example
            subprocess.run([sys.executable, script], check=True, stdout=subprocess.DEVNULL)
        for picture in sorted(Path(folder).glob("*.png")):
            reduce(picture, ROOT / "docs" / "pictures" / picture.name)
            print(f"written: docs/pictures/{picture.name}")
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
