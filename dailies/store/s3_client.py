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
from botocore.parsers import ResponseParserError

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
# Only of one object can it be said that it is not there: where the rest answers 404, it is no S3.
ABOUT_AN_OBJECT = {"GetObject", "HeadObject"}

# What to set, by the server's word for what is wrong.
ACCESS = "set access_key and secret_key of a user who may list, read, write and delete in this bucket"
BUCKET = "set bucket to one that exists"
REGION = "set region to the bucket's own, and see that the key has not expired"
ADDRESS = "is endpoint_url right, and does the server run?"
NO_S3 = "what answers there is no S3: set endpoint_url"
REMEDIES = {
    "301": REGION,
    "400": REGION,
    "403": ACCESS,
    "AccessDenied": ACCESS,
    "AuthorizationHeaderMalformed": REGION,
    "ExpiredToken": ACCESS,
    "InvalidAccessKeyId": ACCESS,
    "InvalidBucketName": BUCKET,
    "InvalidToken": ACCESS,
    "NoSuchBucket": BUCKET,
    "NotImplemented": "",  # an S3, of fewer words
    "PermanentRedirect": REGION,
    "SignatureDoesNotMatch": ACCESS,
}


def client(
    endpoint_url: str | None, region: str, access_key: str, secret_key: str, patience_s: float = 0.0
) -> S3Client:
    """Checksums are sent where S3 requires them, and no others: not every server knows the newer ones.

    With ``patience_s`` it asks once, and waits no longer than that.
    """
    if not access_key or not secret_key:
        raise NotConfigured(
            "an S3 bucket needs an access key and its secret, none is looked for elsewhere: "
            "set access_key and secret_key"
        )
    config = Config(
        signature_version="s3v4",
        connect_timeout=patience_s or CONNECT_S,
        read_timeout=patience_s or ANSWER_S,
        retries={"mode": "standard", "total_max_attempts": 1 if patience_s else ATTEMPTS},
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
        raise NotConfigured(line(f"no S3 at {endpoint_url or 'AWS'}: {error}", "set endpoint_url")) from error


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
        raise kind_of(error)(line(text, remedy(error))) from error
    except (BotoCoreError, ResponseParserError) as error:
        raise kind_of(error)(line(f"{where}: cannot {what}: {error}", remedy(error))) from error


def remedy(error: Exception) -> str:
    """What the reader of the line can do about it; empty where there is nothing but to wait."""
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        return REMEDIES.get(code, NO_S3 if kind_of(error) is NotConfigured else "")
    return ADDRESS if kind_of(error) in (Transient, TimedOut) else ""


def kind_of(error: Exception) -> type[DailiesError]:
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        found = kind(error.response.get("Error", {}).get("Code", ""), status)
        return NotConfigured if found is Missing and error.operation_name not in ABOUT_AN_OBJECT else found
    if isinstance(error, ReadTimeoutError):
        return TimedOut
    # What cannot be read may have been damaged on its way.
    passing = isinstance(error, (ConnectionError, HTTPClientError, IncompleteReadError, ResponseParserError))
    return Transient if passing else NotConfigured


def kind(code: str, status: int = 0) -> type[DailiesError]:
    if code in REFUSED or status in (301, 307, 401, 403):
        return NotConfigured
    if code in PASSING or status == 429 or status >= 500:
        return Transient
    if status == 404:
        return Missing
    return Conflict if status in (409, 412) else BadInput


def line(text: str, remedy: str = "") -> str:
    """What to do about it stands at the end, whatever else is too long."""
    ending = f": {remedy}" if remedy else ""
    return " ".join(text.split())[: LONGEST_LINE - len(ending)] + ending
