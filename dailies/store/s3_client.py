"""How S3 is asked, and what becomes of its errors.

Only botocore retries, and only what is transient; what it gives up on ends as one of our errors, in one line.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
)

from dailies.errors import BadInput, Conflict, DailiesError, Missing, NotConfigured, TimedOut, Transient

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

CONNECT_S = 5
ANSWER_S = 30
ATTEMPTS = 4
LONGEST_LINE = 300
MAKING = threading.Lock()  # a session is not for several threads at once; clients are

PASSING = {
    "BadDigest",  # damaged on its way
    "ConditionalRequestConflict",
    "InternalError",
    "NoSuchUpload",  # ended by somebody else; the next try starts anew
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
}
REFUSED = {
    "400",  # all that HEAD says about a wrong region or an expired token
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidBucketName",
    "InvalidToken",
    "NoSuchBucket",
    "NotImplemented",
}


def client(endpoint_url: str | None, region: str, access_key: str, secret_key: str) -> S3Client:
    """Checksums are sent where S3 requires them, and no others: not every server knows the newer ones."""
    if not access_key or not secret_key:
        raise NotConfigured("an S3 bucket needs an access key and its secret: none is looked for elsewhere")
    config = Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_S,
        read_timeout=ANSWER_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        with MAKING:
            return _session().client(
                "s3",
                endpoint_url=endpoint_url,
                region_name=region,
                aws_access_key_id=access_key,
                aws_secret_access_key=secret_key,
                config=config,
            )
    except (BotoCoreError, ValueError) as error:
        raise NotConfigured(line(f"no S3 at {endpoint_url or 'AWS'}: {error}")) from error


@cache
def _session() -> Session:
    """One for all stores: reading botocore's description of S3 takes ten times as long as making a client of it."""
    return Session()


@contextmanager
def errors(where: str, what: str) -> Iterator[None]:
    """Whatever goes wrong in here ends as one of our errors, in one line that holds no secret."""
    try:
        yield
    except ClientError as error:
        said = error.response.get("Error", {})
        text = f"{where}: cannot {what}: {said.get('Code')} {said.get('Message', '')}"
        raise kind_of(error)(line(text)) from error
    except BotoCoreError as error:
        raise kind_of(error)(line(f"{where}: cannot {what}: {error}")) from error


def kind_of(error: Exception) -> type[DailiesError]:
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return kind(error.response.get("Error", {}).get("Code", ""), status)
    if isinstance(error, ReadTimeoutError):
        return TimedOut
    passing = isinstance(error, (ConnectionError, HTTPClientError, IncompleteReadError))
    return Transient if passing else NotConfigured


def kind(code: str, status: int = 0) -> type[DailiesError]:
    if code in REFUSED or status in (301, 307, 401, 403):
        return NotConfigured
    if code in PASSING or status == 429 or status >= 500:
        return Transient
    if status == 404:
        return Missing
    return Conflict if status in (409, 412) else BadInput


def line(text: str) -> str:
    return " ".join(text.split())[:LONGEST_LINE]
