"""Let words look at a picture: cross-attention between a caption and image patches.

    python fusion.py
    python fusion.py beach.jpg --caption "white sand, a blue sea, a red boat and green palms"

The two sides differ in number and in width: words are vectors of all-MiniLM-L6-v2, of length 384;
patches have 10 features: the means and the spreads of three colour coordinates (OKLab), edges
across and down, and their position. Nothing is trained on pictures. The weights come from the 949
colour names of the xkcd survey, which matplotlib has with their colours: the query projection is
the linear map, found by ridge regression, from the vector of a name to its colour; the key
projection takes the mean colour of a patch. A word whose meaning has a colour attends to the
patches of that colour; other words spread their weight. The output of the attention is the weighted
mean of colour, texture and position.

The picture shows patches with more weight brighter. Without a file it is the
portrait of Grace Hopper, of the US Navy and in the public domain, that comes with matplotlib.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from minilm import Array, MiniLM, Tokenizer, embed, find_model

from attnfast.layers import Linear, MultiHeadAttention, Projections

CAPTION = (
    "a smiling woman in a black uniform and a white shirt, pink skin and gray hair, a blue wall "
    "like the sky, red stripes and a golden cord"
)
PHOTO = "grace_hopper.jpg"
SHOWN = 7  # words that are drawn
FEATURES = 10
DARK, LIT = 0.16, 0.98  # brightness of a patch without weight; the quantile that is fully lit
INK = "#262626"
NO_WORDS = {"a", "an", "and", "in", "of", "on", "the", "with"}

# From linear RGB to the responses of the eye's three cones, and from their cube roots to OKLab.
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


# ---- Colours and patches ----


def oklab(rgb: Array) -> Array:
    """Turn sRGB values from 0 to 1 into lightness, green to red and blue to yellow."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ TO_CONES.T) @ TO_OKLAB.T


def srgb(lab: Array) -> Array:
    """Turn OKLab back into sRGB values from 0 to 1."""
    cones = (lab @ np.linalg.inv(TO_OKLAB).T) ** 3
    linear = np.clip(cones @ np.linalg.inv(TO_CONES).T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def cut(image: Array, size: int) -> Array:
    """Return the patches of an image, ``(rows, columns, size, size, 3)``."""
    rows, columns = image.shape[0] // size, image.shape[1] // size
    whole = image[: rows * size, : columns * size]
    return whole.reshape(rows, size, columns, size, 3).swapaxes(1, 2)


def describe(patches: Array) -> Array:
    """Return the features of patches, ``(rows * columns, 10)``."""
    rows, columns = patches.shape[:2]
    lab = oklab(patches)
    light = lab[..., 0]
    across = np.abs(np.diff(light, axis=3)).mean(axis=(2, 3))
    down = np.abs(np.diff(light, axis=2)).mean(axis=(2, 3))
    y, x = np.mgrid[:rows, :columns] + 0.5
    parts = [
        *np.moveaxis(lab.mean(axis=(2, 3)), -1, 0),
        *np.moveaxis(lab.std(axis=(2, 3)), -1, 0),
        *(across, down, x / columns, y / rows),
    ]
    return np.stack(parts, axis=-1).reshape(rows * columns, FEATURES).astype(np.float32)


# ---- From words to colours ----


def color_names() -> tuple[list[str], Array]:
    """Return the names of the xkcd survey and their colours in OKLab."""
    from matplotlib.colors import XKCD_COLORS, to_rgb

    names = [name.removeprefix("xkcd:") for name in XKCD_COLORS]
    return names, oklab(np.array([to_rgb(color) for color in XKCD_COLORS.values()]))


def fit(vectors: Array, targets: Array, ridge: float = 1.0) -> tuple[Array, Array]:
    """Return the matrix and the bias of the ridge regression from vectors to targets."""
    mean, middle = vectors.mean(axis=0), targets.mean(axis=0)
    centred = (vectors - mean).astype(np.float64)
    gram = centred.T @ centred + ridge * np.eye(centred.shape[1])
    matrix = np.linalg.solve(gram, centred.T @ (targets - middle))
    return matrix, middle - mean @ matrix


def held_out(vectors: Array, targets: Array) -> float:
    """Return the share of the variance that a fit explains of names that it has not seen."""
    new = np.arange(len(vectors)) % 5 == 0
    matrix, bias = fit(vectors[~new], targets[~new])
    missed = np.square(vectors[new] @ matrix + bias - targets[new]).sum()
    return float(1 - missed / np.square(targets[new] - targets[~new].mean(axis=0)).sum())


def build(vectors: Array, colors: Array) -> MultiHeadAttention:
    """Return the layer whose queries are words and whose keys are patches.

    Colours are centred and scaled on both sides, so that a query's direction says which colour and
    its length how surely.
    """
    mean, spread = colors.mean(axis=0), colors.std(axis=0)
    matrix, bias = fit(vectors, (colors - mean) / spread)
    key, same = np.zeros((FEATURES, 3)), np.eye(FEATURES, dtype=np.float32)
    key[:3] = np.diag(1 / spread)
    arrays = [array.astype(np.float32) for array in (matrix, bias, key, -mean / spread)]
    return MultiHeadAttention.from_projections(
        Projections(
            Linear(arrays[0], arrays[1]),
            Linear(arrays[2], arrays[3]),
            Linear(same),
            Linear(same),
            1,
            1,
        )
    )


# ---- The picture ----


def read_image(path: Path | None) -> Array:
    """Return an image as RGB values from 0 to 1; without a path, a portrait."""
    from PIL import Image

    if path is None:
        from matplotlib.cbook import get_sample_data

        path = get_sample_data(PHOTO, asfileobj=False)
    with Image.open(path) as image:
        image.thumbnail((1024, 1024))
        return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def draw(
    image: Array, words: list[str], weights: Array, seen: Array, size: int, path: Path
) -> None:
    """Draw the image, and once more for each word in the light of the word's weights."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    patches = cut(image, size)
    rows, columns = patches.shape[:2]
    whole = patches.swapaxes(1, 2).reshape(rows * size, columns * size, 3)
    wide = -(-(len(words) + 1) // 2)
    height = 2.2 * rows / columns + 0.45
    figure = Figure(figsize=(2.2 * max(wide, 2), 2 * height + 1.5), layout="constrained")
    figure.suptitle("Where words look in a photograph", color=INK, fontsize=13)
    axes = figure.subplots(2, wide, squeeze=False).ravel()
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    axes[0].imshow(whole)
    axes[0].set_title("the photograph", fontsize=11, color=INK)
    for axis in axes[len(words) + 1 :]:
        axis.remove()
    grey = DARK * whole.mean(axis=-1, keepdims=True) + 0.02
    for axis, word, weight, colour in zip(
        axes[1:], words, weights, srgb(seen[:, :3]), strict=False
    ):
        light = np.minimum(weight / np.quantile(weight, LIT), 1).reshape(rows, columns, 1)
        light = light.repeat(size, axis=0).repeat(size, axis=1)
        axis.imshow(grey + (whole - grey) * light)
        axis.set_title(word, fontsize=11, color=INK)
        bar = Rectangle((0, -0.065), 1, 0.05, transform=axis.transAxes, color=colour, linewidth=0)
        axis.add_artist(bar).set_clip_on(False)
    lights = LinearSegmentedColormap.from_list("light", [(DARK,) * 3, (1.0,) * 3])
    scale = figure.colorbar(
        ScalarMappable(cmap=lights), ax=axes[: len(words) + 1].tolist(),
        location="bottom", aspect=40, shrink=0.5, pad=0.02,
    )  # fmt: skip
    scale.set_label(
        "light of a patch: its weight\n"
        "(1: that of the word's heaviest 2 % of patches)\n"
        "bar below a panel: the colour seen on average",
        color=INK,
        fontsize=9,
    )
    scale.ax.tick_params(labelsize=8, labelcolor=INK, length=2)
    scale.outline.set_visible(False)
    figure.savefig(path, dpi=95)


def main() -> None:
    """Read the command line, learn colours, look, draw."""
    sys.stdout.reconfigure(errors="replace")  # for terminals that lack a character
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("picture", nargs="?", type=Path, help="an image file (default: a portrait)")
    add("--caption", default=CAPTION, metavar="TEXT", help="the words that look")
    add("--patch", type=int, default=16, metavar="N", help="pixels along a patch, 4 to 64")
    add("--sharpness", type=float, default=3.0, metavar="X", help="factor of the scores")
    add("--plot", type=Path, default=Path("fusion.png"), metavar="FILE", help="where to draw")
    options = parser.parse_args()
    if not 4 <= options.patch <= 64 or not 0 < options.sharpness < 1000:
        parser.error("--patch must be 4 to 64, --sharpness above 0 and below 1000")
    try:
        image = read_image(options.picture)
    except OSError as error:
        parser.error(str(error))
    if min(image.shape[:2]) < options.patch:
        parser.error(f"the picture is smaller than a patch of {options.patch} pixels")
    features = describe(cut(image, options.patch))

    folder = find_model()
    tokenizer, model = Tokenizer(folder / "vocab.txt"), MiniLM(folder)
    words = [w for w in dict.fromkeys(tokenizer.words(options.caption)) if w.isalpha()]
    words = [w for w in words if w not in NO_WORDS]
    if not words:
        parser.error("the caption has no words that could be seen")
    names, colors = color_names()
    (vectors,) = embed([model], [tokenizer.encode(text) for text in (*names, *words)], batch=128)
    known, asked = vectors[: len(names)], vectors[len(names) :]
    explained = held_out(known, colors)
    layer = build(known, colors)
    began = time.perf_counter()
    seen, weights = layer(asked, features, return_weights="mean", scale=options.sharpness)
    seconds = time.perf_counter() - began

    print(
        f"{len(names)} colour names: embedding {model.seconds:.2f} s; "
        f"the fit explains {explained:.0%} of colours it has not seen"
    )
    print(f"{len(words)} words look at {len(features)} patches: {1e3 * seconds:.2f} ms\n")
    print("word          half of its weight on   centre (x, y)   colour seen")
    halves = half_on(weights)
    for word, half, row in zip(words, halves, seen, strict=True):
        red, green, blue = (255 * srgb(row[:3])).round().astype(int)
        place = f"({row[8]:.2f}, {row[9]:.2f})"
        print(f"{word:14}{half:6.1%} of patches    {place:16}#{red:02x}{green:02x}{blue:02x}")
    shown = sorted(np.argsort(halves, kind="stable")[:SHOWN])
    draw(image, [words[i] for i in shown], weights[shown], seen[shown], options.patch, options.plot)
    print(f"\nwritten: {options.plot}")


def half_on(weights: Array) -> Array:
    """Return, for each row of weights, the share of keys that together hold half of it."""
    heaviest = -np.sort(-weights, axis=-1)
    return ((heaviest.cumsum(axis=-1) < 0.5).sum(axis=-1) + 1) / weights.shape[-1]


if __name__ == "__main__":
    main()
