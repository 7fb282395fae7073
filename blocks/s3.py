"""The bucket that a site keeps its objects in, in place of a local folder."""

from __future__ import annotations

from pydantic import Field, SecretStr

from blocks._part import Part
from dailies.store.interface import Store
from dailies.store.s3 import S3Store


class S3Bucket(Part):
    """Objects in a bucket of AWS, Wasabi or any other S3."""

    _block_type_name = "Dailies S3 bucket"
    _block_type_slug = "dailies-s3-bucket"

    bucket: str = Field(description="The bucket's name. It must exist: it is never made.")
    endpoint_url: str = Field(
        default="",
        description="Empty for AWS. For Wasabi, or any other S3, its address: https://s3.eu-central-1.wasabisys.com",
    )
    region: str = Field(
        default="us-east-1", description="The bucket's region, as AWS or Wasabi name it. Most other S3 take any."
    )
    access_key: SecretStr = Field(description="The access key id of a user who may list, read, write and delete here.")
    secret_key: SecretStr = Field(description="The secret that belongs to the access key.")
    prefix: str = Field(default="", description="Keep all objects under this folder of the bucket. Empty: at its root.")

    def open(self) -> Store:
        """Asks nothing of the bucket yet; ``S3Store.check`` does."""
        return S3Store(
            self.bucket,
            endpoint_url=self.endpoint_url or None,
            region=self.region,
            access_key=self.access_key.get_secret_value(),
            secret_key=self.secret_key.get_secret_value(),
            prefix=self.prefix.strip("/"),
        )
