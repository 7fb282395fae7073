"""The machine: what is installed, what the media libraries can do, and where things are kept."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dailies.home import home
from services.doctor.finding import Finding, Visit, last_line, one_line

GB = 1e9
LITTLE_GB, TOO_LITTLE_GB = 10.0, 1.0
CODECS = {"h264": "video", "vp9": "video", "aac": "audio"}


def versions(_visit: Visit) -> Iterator[Finding]:
    yield Finding("versions", "python", f"{platform.python_version()} ({sys.executable})")
    for package in ("dailies", "prefect", "av"):
        try:
            yield Finding("versions", package, version(package))
        except PackageNotFoundError:
            yield Finding("versions", package, "not installed", False, f"pip install {package}")
    yield Finding("versions", "sqlite", sqlite3.sqlite_version)
    yield Finding("versions", "platform", platform.platform())
    import av

    libraries = " · ".join(f"{name} {'.'.join(map(str, number))}" for name, number in av.library_versions.items())
    yield Finding("versions", "ffmpeg", libraries)


def media(_visit: Visit) -> Iterator[Finding]:
    for codec, kind in CODECS.items():
        yield codec_finding(codec, kind)
    from PIL import features

    freetype = features.version("freetype2")
    fix = "" if freetype else "install a Pillow with FreeType: pip install --force-reinstall pillow"
    yield Finding(
        "media", "pillow", f"FreeType {freetype}" if freetype else "without FreeType", freetype is not None, fix
    )


def codec_finding(codec: str, kind: str) -> Finding:
    """Really encodes and decodes: a codec can be listed and not work."""
    try:
        decoded = decode(encode(codec, kind))
    except (ValueError, OSError) as error:
        fix = "install the PyAV wheel, which brings FFmpeg: pip install --force-reinstall --only-binary :all: av"
        return Finding("media", codec, one_line(error), False, fix)
    return Finding("media", codec, "encodes and decodes", decoded > 0)


def encode(codec: str, kind: str) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream: Any = output.add_stream(codec, rate=25 if kind == "video" else 48000)
        if kind == "video":
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(5):
            output.mux(stream.encode(picture() if kind == "video" else silence(number)))
        output.mux(stream.encode(None))
    return file.getvalue()


def picture() -> Any:
    import av
    import numpy as np

    return av.VideoFrame.from_ndarray(np.zeros((96, 64), np.uint8), format="yuv420p")


def silence(number: int) -> Any:
    import av
    import numpy as np

    frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
    frame.sample_rate, frame.pts = 48000, number * 1024
    return frame


def decode(data: bytes) -> int:
    import av

    with av.open(io.BytesIO(data), "r") as source:
        frames = list(source.decode(source.streams[0]))
    return len(frames)


def gpu(_visit: Visit) -> Iterator[Finding]:
    yield Finding("gpu", "nvidia", nvidia())
    if importlib.util.find_spec("onnxruntime"):
        onnxruntime = importlib.import_module("onnxruntime")
        yield Finding("gpu", "onnxruntime", ", ".join(onnxruntime.get_available_providers()))
    else:
        yield Finding("gpu", "onnxruntime", "not installed")


def nvidia() -> str:
    if not shutil.which("nvidia-smi"):
        return "none found (CPU is used)"
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=False)
    if done.returncode != 0:
        return f"none usable (CPU is used): nvidia-smi says {last_line(done.stdout + done.stderr)}"
    return " · ".join(done.stdout.strip().splitlines())


def paths(_visit: Visit) -> Iterator[Finding]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    models = Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()
    yield from folder("DAILIES_HOME", home(), "DAILIES_HOME", needed=True)
    yield from folder("media", home() / "media", "DAILIES_HOME")
    yield from folder("logs", home() / "logs", "DAILIES_HOME")
    yield from folder("caches", cache, "XDG_CACHE_HOME")
    yield from folder("model caches", models, "HF_HOME")


def folder(name: str, path: Path, variable: str, needed: bool = False) -> Iterator[Finding]:
    ground = existing(path)
    if not ground.is_dir():
        fix = f"{ground} is a file: move it away, or set {variable} to another folder"
        yield Finding("paths", name, f"{path} cannot be created", False, fix)
        return
    if not os.access(ground, os.W_OK | os.X_OK):
        state = "is not writable" if ground == path else "cannot be created"
        fix = f"make {ground} writable for this user, or set {variable} to another folder"
        yield Finding("paths", name, f"{path} {state}", False, fix)
        return
    free = shutil.disk_usage(ground).free / GB
    state = "writable" if ground == path else "not there yet, can be created"
    ok, fix = room(free, variable) if needed else (True, "")
    yield Finding("paths", name, f"{path} ({state}, {free:.1f} GB free)", ok, fix)


def existing(path: Path) -> Path:
    """The path, or what exists of the way to it. os.access, because it answers where Path.exists() raises."""
    while not os.access(path, os.F_OK) and path != path.parent:
        path = path.parent
    return path


def room(free: float, variable: str) -> tuple[bool | None, str]:
    if free >= LITTLE_GB:
        return True, ""
    fix = f"free some space (under {LITTLE_GB:.0f} GB is little for media), or set {variable} to another disk"
    return (None if free >= TOO_LITTLE_GB else False), fix
