"""The functions of ``dailies.remote`` as an app on Modal: ``modal deploy -m deployments.modal_app``.

Safe to deploy again. It needs a Modal secret ``dailies-store`` with one variable, ``DAILIES_STORE``: the JSON that
``dailies.remote.store_of`` takes, naming the same bucket that the site's store block does.
``DAILIES_MODAL_APP`` deploys under another name than ``dailies``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import modal

from dailies.remote import FUNCTIONS, Function, execute

NAME = os.environ.get("DAILIES_MODAL_APP", "dailies")
SECRET = "dailies-store"
NEEDED = ("av", "pillow", "numpy", "boto3", "opencv-python-headless", "rapidocr")
CUDA = ("nvidia-cublas-cu12", "nvidia-cudnn-cu12>=9,<10")
SITE_PACKAGES = "/usr/local/lib/python3.11/site-packages"
CUDA_LIBRARIES = f"{SITE_PACKAGES}/nvidia/cublas/lib:{SITE_PACKAGES}/nvidia/cudnn/lib"
MODELS = "/models"
ON_CPU, ON_GPU = "onnxruntime", "onnxruntime-gpu>=1.20"


def pinned(names: Sequence[str] = NEEDED) -> list[str]:
    """The versions that the tests ran with. On the machine itself the image is there already, and the file is not."""
    if os.environ.get("MODAL_IS_REMOTE") == "1":
        return []
    lines = Path(__file__).resolve().parent.parent.joinpath("constraints.txt").read_text().splitlines()
    return [line for line in lines if line.partition("==")[0] in names]


def image_for(function: Function) -> modal.Image:
    """The GPU runtime of ONNX only where there is a GPU: it is a gigabyte, and takes the place of the other."""
    runtime = [ON_GPU] if function.gpu else pinned([ON_CPU])
    image = modal.Image.debian_slim(python_version="3.11").pip_install(*pinned(), *runtime, *pinned(function.needs))
    if "faster-whisper" in function.needs:  # its runtime brings no CUDA libraries, and looks for them by this path
        image = image.pip_install(*CUDA).env({"HF_HOME": MODELS, "LD_LIBRARY_PATH": CUDA_LIBRARIES})
    return image.add_local_python_source("dailies")


def volumes_for(function: Function) -> dict[str | PurePosixPath, modal.Volume | modal.CloudBucketMount]:
    """A model is fetched once, and not by every machine."""
    if "faster-whisper" not in function.needs:
        return {}
    return {MODELS: modal.Volume.from_name("dailies-models", create_if_missing=True)}


def wrapped(name: str, function: Function) -> Any:
    def run(payload: Mapping[str, Any], unit: str) -> dict[str, Any]:
        # An input that is started again on another machine keeps its call's id: it is the same holder of its claim.
        return execute(name, payload, unit, call=modal.current_function_call_id() or "")

    # The machine looks the function up by this name in this module.
    run.__name__ = run.__qualname__ = name
    return app.function(
        name=name,
        image=image_for(function),
        gpu=function.gpu,
        timeout=round(function.timeout),
        retries=function.retries,
        secrets=[modal.Secret.from_name(SECRET)],
        volumes=volumes_for(function),
    )(run)


app = modal.App(NAME)
globals().update({name: wrapped(name, function) for name, function in FUNCTIONS.items()})
