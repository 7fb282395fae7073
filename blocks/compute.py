"""Where a site's heavy work runs: processes of this machine, or functions on Modal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from blocks._part import Part
from blocks.s3 import S3Bucket
from dailies.compute.interface import Compute
from dailies.compute.local import LocalCompute as Processes
from dailies.compute.modal import ModalCompute as ModalFunctions
from dailies.errors import NotConfigured
from dailies.home import home
from dailies.store.local import LocalFolder as FolderStore


class LocalCompute(Part):
    """Heavy work in processes of this machine. Each has a folder, and outlives the flow that started it."""

    _block_type_name = "Dailies local compute"
    _block_type_slug = "dailies-local-compute"

    path: str = Field(default="", description="The folder of the calls. Empty: calls/ in DAILIES_HOME.")

    def open(self, store: Block | None = None) -> Compute:
        """``store``: the block of the store that the work reads and writes; None: the local folder's default."""
        return Processes(Path(self.path) if self.path else home() / "calls", store_settings(store))


class ModalCompute(Part):
    """Heavy work on GPUs of Modal, in an app that was deployed there. Needs a bucket as the site's store."""

    _block_type_name = "Dailies Modal compute"
    _block_type_slug = "dailies-modal-compute"

    app_name: str = Field(
        default="dailies", description="The deployed app: `modal deploy -m deployments.modal_app` makes it."
    )
    environment: str = Field(
        default="", description="The Modal environment that the app is deployed in. Empty: the workspace's default."
    )
    token_id: SecretStr = Field(
        default=SecretStr(""),
        description="The token's id, ak-…. Empty, with the secret: what `modal token new` has set on this machine.",
    )
    token_secret: SecretStr = Field(default=SecretStr(""), description="The secret that belongs to the id, as-….")
    answer_s: float = Field(
        default=4.0, gt=0, description="Seconds to wait for an answer of Modal itself, not of the work."
    )

    def open(self, store: Block | None = None) -> Compute:
        """Asks nothing of Modal yet. There the work finds its store by the Modal secret ``dailies-store``."""
        if "folder" in store_settings(store) and store is not None:
            raise NotConfigured("a machine of Modal cannot reach a local folder: give the site a 'Dailies S3 bucket'")
        return ModalFunctions(
            self.app_name,
            self.environment,
            self.token_id.get_secret_value(),
            self.token_secret.get_secret_value(),
            answer_s=self.answer_s,
        )


def store_settings(store: Block | None) -> dict[str, Any]:
    """A store block as ``dailies.remote.store_of`` takes it in another process."""
    if store is None:
        return {"folder": str(home() / "media")}
    if isinstance(store, S3Bucket):
        return {
            "access_key": store.access_key.get_secret_value(),
            "bucket": store.bucket,
            "endpoint_url": store.endpoint_url,
            "prefix": store.prefix,
            "region": store.region,
            "secret_key": store.secret_key.get_secret_value(),
        }
    opened = getattr(store, "open", lambda: None)()
    if isinstance(opened, FolderStore):
        return {"folder": str(opened.root)}
    raise NotConfigured(f"work elsewhere cannot open a store of type {type(store).__name__}")
