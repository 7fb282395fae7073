"""Where the files of a Whisper model are: in a folder, in the cache of Hugging Face, or fetched into it.

The library that fetches waits for ever for a server that takes the connection and never answers. So it works in a
process of its own, which must say at once that somebody answered and then keep writing, or it is stopped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dailies.errors import DailiesError, NotConfigured, Transient

# Until somebody answers, with the start of the process; between two writes; and for all of it.
ANSWER_S, STILL_S, WHOLE_S = 6.0, 60.0, 3600.0
NEEDED = ("config.json", "model.bin", "tokenizer.json")
ANSWERED = "somebody answers"


def model_files(model: str, cache: str = "") -> Path:
    """Raises NotConfigured, in one line and within seconds, where they are nowhere and cannot be fetched."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _whole(folder)
    repository = repository_of(model)
    found = _cached(repository, cache)
    if found:
        return found
    how = how_to_get(repository, cache)
    if _offline():
        raise NotConfigured(f"the model {model!r} is not in the cache, and HF_HUB_OFFLINE is set: {how}")
    _writable(Path(cache).expanduser() if cache else _default_cache())
    _fetch(model, repository, cache, how)
    found = _cached(repository, cache)
    if not found:
        raise NotConfigured(f"{repository} is no Whisper model in the format of CTranslate2: set model to one that is")
    return found


def repository_of(model: str) -> str:
    from faster_whisper.utils import _MODELS

    if model in _MODELS:
        return str(_MODELS[model])
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.startswith("."):
        return model
    raise NotConfigured(
        f"there is no model {model!r}: set model to a folder, to a repository of Hugging Face as owner/name, "
        f"or to one of {', '.join(_MODELS)}"
    )


def how_to_get(repository: str, cache: str) -> str:
    into = f" --cache-dir {cache}" if cache else ""
    return f"run `hf download {repository}{into}` where there is a network, or set model to a folder that has it"


def _whole(folder: Path) -> Path:
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise NotConfigured(
            f"the folder {folder} has no {', '.join(missing)}: set model to a Whisper in the format of CTranslate2"
        )
    return folder


def _cached(repository: str, cache: str) -> Path | None:
    """None as well where a part is missing: it was being fetched when the process died."""
    try:
        found = Path(_download(repository, cache, local_files_only=True))
    except OSError:
        return None
    except ValueError as error:
        raise NotConfigured(f"{repository!r} cannot be the name of a model ({_line(error)}): set model") from error
    return found if all((found / name).is_file() for name in NEEDED) else None


def _download(repository: str, cache: str, *, local_files_only: bool) -> str:
    from faster_whisper.utils import download_model

    folder = str(Path(cache).expanduser()) if cache else None
    return str(download_model(repository, local_files_only=local_files_only, cache_dir=folder))


def _offline() -> bool:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def _default_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _writable(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        trial = cache / f".dailies-{os.getpid()}-{threading.get_ident()}"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise NotConfigured(
            f"the model must be fetched, and its cache {cache} cannot be written ({error.strerror}): "
            "set cache, or HF_HOME, to a folder that can"
        ) from error


def _fetch(model: str, repository: str, cache: str, how: str) -> None:
    """Stops it where it stands still. What was fetched stays, and the next try goes on from there."""
    child = subprocess.Popen(
        [sys.executable, "-m", "dailies.speech.model_files", repository, cache],
        stdin=subprocess.PIPE,  # it ends when this process does
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
        text=True,
    )
    said: list[str] = []
    assert child.stdout is not None
    listener = threading.Thread(target=_listen, args=(child.stdout, said), daemon=True)
    listener.start()
    try:
        _wait(child, said, model, how, _Growth(Path(cache).expanduser() if cache else _default_cache(), repository))
        listener.join(ANSWER_S)
        if child.returncode:
            raise _refusal(said, model, how)
    finally:
        child.kill()
        child.wait()
        listener.join(ANSWER_S)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _listen(lines: Any, said: list[str]) -> None:
    with suppress(ValueError):  # closed
        said.extend(iter(lambda: lines.readline().strip(), ""))


def _wait(child: subprocess.Popen[str], said: list[str], model: str, how: str, growth: _Growth) -> None:
    start = time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
            return
        passed = time.monotonic() - start
        if not said and passed > ANSWER_S:
            raise NotConfigured(f"the model {model!r} is not in the cache, and Hugging Face does not answer: {how}")
        if said and (growth.still_for() > STILL_S or passed > WHOLE_S):
            raise Transient(f"the model {model!r} did not come within {passed:.0f} s: the next try goes on, or {how}")


def _refusal(said: list[str], model: str, how: str) -> DailiesError:
    reason = next((line for line in reversed(said) if line != ANSWERED), "it ended without a word")
    return NotConfigured(f"the model {model!r} is not in the cache and could not be fetched ({reason}): {how}")


class _Growth:
    """For how long nothing was written below a repository's folder in the cache."""

    def __init__(self, cache: Path, repository: str) -> None:
        self.folder = cache / f"models--{repository.replace('/', '--')}"
        self.size, self.since = -1, time.monotonic()

    def still_for(self) -> float:
        size = 0
        for path in self.folder.rglob("*"):
            with suppress(OSError):
                size += path.lstat().st_size
        if size != self.size:
            self.size, self.since = size, time.monotonic()
        return time.monotonic() - self.since


def main(repository: str, cache: str) -> int:
    """Says ANSWERED as soon as the server does, and at the end why it went wrong, if it did."""
    import httpx

    threading.Thread(target=_leave_with_parent, daemon=True).start()
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        with httpx.stream("GET", f"{endpoint.rstrip('/')}/api/models/{repository}", timeout=ANSWER_S):
            answers.write(f"{ANSWERED}\n")
        _download(repository, cache, local_files_only=False)
    except Exception as error:  # noqa: BLE001 - whatever it is, it has to be said in one line
        answers.write(f"{type(error).__name__}: {_line(error)}\n")
        return 1
    return 0


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _leave_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
