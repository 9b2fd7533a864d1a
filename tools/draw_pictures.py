"""Draw the pictures of the documentation again: those of two pages and those of the examples.

    python tools/draw_pictures.py
    python tools/draw_pictures.py --examples long_train.py --models FOLDER

Runs the code of docs/looking.md and docs/family.md, and the examples that draw, or only those that
are named. Needs attnfast[bench] and the model of the examples. Two examples train, for a minute or
two; with --models they draw those that a training has saved in a folder. Those that train in
PyTorch are run only if they are named, with their data in the folder of the project or in its
package. Each picture is reduced to a palette and written to docs/pictures. Times of calls are not
measured again: the pictures show those that the pages state. speed.png is drawn by `attnfast bench
--from docs/figures/growth.json --plot docs/pictures/speed.png`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("looking.md", "family.md")
EXAMPLES = ("align.py", "summarise.py", "long_document.py", "transformer_numpy.py", "long_train.py")
IN_TORCH = {
    "classify.py": ["--data", ROOT / "vaderSentiment-3.3.2.tar.gz"],
    "classify_keras.py": ["--data", ROOT / "vaderSentiment-3.3.2.tar.gz"],
    "translate.py": ["--data", ROOT / "catalogues"],
    "summarise_trained.py": ["--data", ROOT / "docstrings"],
    "answer.py": [],
}
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


def command(example: str, models: Path | None) -> list[str | Path]:
    """Return how to run an example: with the models of an earlier training, if they are there."""
    start: list[str | Path] = [sys.executable, ROOT / "examples" / example]
    start += IN_TORCH.get(example, [])
    suffix = ".pt" if example in IN_TORCH else ".npz"
    suffix = "" if example == "classify_keras.py" else suffix  # a folder
    saved = models and (models / example).with_suffix(suffix).resolve()
    return [*start, "--load", saved, "--epochs", "0"] if saved and saved.exists() else start


def main() -> None:
    """Draw the pictures of the pages and the examples, or of some examples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--examples", nargs="+", choices=[*EXAMPLES, *IN_TORCH], help="only those of these"
    )
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="of the files of trainings")
    options = parser.parse_args()
    commands = [command(example, options.models) for example in options.examples or EXAMPLES]
    sys.path.insert(0, str(ROOT / "examples"))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for page in () if options.examples else PAGES:
            run(ROOT / "docs" / page)
        for line in commands:
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        for picture in sorted(Path(folder).glob("*.png")):
            reduce(picture, ROOT / "docs" / "pictures" / picture.name)
            print(f"written: docs/pictures/{picture.name}")
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
