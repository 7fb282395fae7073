"""Objects in a bucket: AWS, Wasabi, or whatever else speaks S3.

An object appears complete or not at all, and its SHA-256 travels with it: what is read is compared with it.
How S3 is asked, and what becomes of its errors, is in ``s3_client``.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from shutil import copyfileobj
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO

from botocore.exceptions import ClientError

from dailies.canonical import CHUNK, Digested, canonical_json, digest, file_digest, write_atomically
from dailies.errors import BadInput, Conflict, Missing, NotConfigured, Transient
from dailies.store.interface import Artifact, Stored
from dailies.store.keys import check_key, is_key
from dailies.store.s3_client import ADDRESS, BUCKET, NO_S3, client, errors, kind, kind_of, line

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import HeadObjectOutputTypeDef

PART_SIZE = 8 << 20
MOST_PARTS = 10_000
BATCH = 1000
LONGEST_LINK_S = 7 * 24 * 3600
NOTES = ".uploads/"
CHECK_S = 4.0


@dataclass(frozen=True)
class Upload:
    """A file on its way in parts; ``sent`` are the sizes and ETags of those that are there, by number."""

    id: str
    part_size: int
    sent: Mapping[int, tuple[int, str]] = field(default_factory=dict)


class S3Store:
    """Objects of one bucket, below ``prefix`` where one is given: no key leads out of it.

    What is not an object key by our rule is never listed nor deleted: the notes of uploads that are under way lie
    under ``.uploads/``, and ``clean`` finds by them what was abandoned.
    """

    def __init__(
        self,
        bucket: str,
        *,
        endpoint_url: str | None,
        region: str,
        access_key: str,
        secret_key: str,
        prefix: str = "",
        part_size: int = PART_SIZE,
    ) -> None:
        if not bucket:
            raise NotConfigured(f"an S3 bucket needs its name: {BUCKET}")
        self.bucket = bucket
        self.prefix = f"{check_key(prefix)}/" if prefix else ""
        self.part_size = part_size
        self._where = f"bucket {bucket} at {endpoint_url or 'AWS'}"
        self._seen = False
        self._connect = partial(client, endpoint_url, region, access_key, secret_key)
        self._client = self._connect()

    def check(self) -> None:
        """``NotConfigured`` unless the bucket answers now: for whoever sets a site up, not for a run."""
        try:
            self._look(self._connect(patience_s=CHECK_S))
        except Transient as error:
            raise NotConfigured(line(str(error).removesuffix(f": {ADDRESS}"), ADDRESS)) from error

    def put(self, key: str, data: bytes) -> Artifact:
        return self._put(key, data)

    def put_new(self, key: str, data: bytes) -> Artifact:
        """``Conflict`` when the key is taken, by an object of whatever bytes; of two writers one wins."""
        check_key(key)
        if not self._is_conditional:
            raise NotConfigured(f"{self._where} ignores If-None-Match: it cannot tell which of two writers was first")
        token = uuid.uuid4().hex
        try:
            return self._put(key, data, {"token": token}, IfNoneMatch="*")
        except Conflict:
            # When an answer is lost, botocore asks again and finds what it wrote itself.
            head = self._head(key)
            if head is None or _lower(head["Metadata"]).get("token") != token:
                raise
            return Artifact(key, digest(data), len(data))

    def put_file(self, key: str, path: Path) -> Artifact:
        """Above ``part_size`` in parts; what an interrupted call has sent, of the same bytes, is not sent again."""
        artifact = Artifact(check_key(key), file_digest(path), path.stat().st_size)
        if artifact.size <= self.part_size:
            return self.put(key, path.read_bytes())
        with errors(self._where, f"put {key}"):
            size = max(self.part_size, -(-artifact.size // MOST_PARTS))
            upload = self._resumed(artifact, size) or self._started(artifact, size)
            self._send(artifact, path, upload)
        return artifact

    def put_stream(self, key: str, file: BinaryIO) -> Artifact:
        """By way of a temporary file: the digest goes ahead of the bytes, and what is sent again is read again."""
        check_key(key)
        with NamedTemporaryFile(prefix="dailies-") as whole:
            copyfileobj(file, whole, CHUNK)
            whole.flush()
            return self.put_file(key, Path(whole.name))

    def get(self, key: str) -> bytes:
        return b"".join(self._chunks(key))

    def fetch(self, key: str, path: Path) -> None:
        """The object as a file that stays, complete or not at all; makes the folders above it."""
        write_atomically(path, self._chunks(key))

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        with TemporaryDirectory(prefix="dailies-") as folder:
            path = Path(folder) / f"object{Path(check_key(key)).suffix[:16]}"
            with path.open("wb") as file:  # gone in a moment: it need not survive a power cut
                file.writelines(self._chunks(key))
            yield path

    def stat(self, key: str) -> Stored | None:
        head = self._head(key)
        return Stored(key, head["ContentLength"], head["ETag"].strip('"')) if head else None

    def list(self, prefix: str) -> Iterator[Stored]:
        check_key(prefix)
        return self._listed(prefix)

    def delete(self, prefix: str) -> int:
        found = [stored.key for stored in self.list(prefix)]
        for start in range(0, len(found), BATCH):
            self._delete(found[start : start + BATCH])
        return len(found)

    def holds(self, artifact: Artifact) -> bool:
        found = Digested(self._chunks(artifact.key, verify=False))
        try:
            for _ in found:
                pass
        except Missing:
            return False
        return (found.size, found.sha256) == (artifact.size, artifact.sha256)

    def clean(self, older_than: float) -> int:
        """Uploads in parts that nobody has gone on with: by their notes, so that nobody else's is touched."""
        removed = 0
        pages = self._client.get_paginator("list_objects_v2")
        with errors(self._where, "look for abandoned uploads"):
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._full(NOTES)):
                for found in page.get("Contents", ()):
                    if time.time() - found["LastModified"].timestamp() > older_than:
                        note = json.loads(self._client.get_object(Bucket=self.bucket, Key=found["Key"])["Body"].read())
                        self._abort(note["key"], note["upload"])
                        removed += 1
        return removed

    def presigned_get(self, key: str, seconds: int) -> str:
        """A link with which anybody may read this one object, for so long."""
        return self._link("get_object", key, seconds)

    def presigned_put(self, key: str, seconds: int) -> str:
        """A link with which anybody may write this one object, for so long."""
        return self._link("put_object", key, seconds)

    # ── one object ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None, **condition: Any) -> Artifact:
        artifact = Artifact(check_key(key), digest(data), len(data))
        with errors(self._where, f"put {key}"):
            answer = self._client.put_object(
                Bucket=self.bucket,
                Key=self._full(key),
                Body=data,
                ContentMD5=_base64_md5(data),
                Metadata={"sha256": artifact.sha256, **(metadata or {})},
                **condition,
            )
        self._expect_s3(answer)
        return artifact

    def _head(self, key: str) -> HeadObjectOutputTypeDef | None:
        check_key(key)
        try:
            with errors(self._where, f"look at {key}"):
                head = self._client.head_object(Bucket=self.bucket, Key=self._full(key))
        except Missing:
            self._see_bucket()
            return None
        self._expect_s3(head)
        return head

    def _expect_s3(self, answer: Mapping[str, Any]) -> None:
        """Many a web server says 200 to whatever it is sent, and has kept nothing of it."""
        if "ETag" not in answer:
            raise NotConfigured(line(f"{self._where} answers without an ETag", NO_S3))

    def _see_bucket(self) -> None:
        """HEAD has one answer to a missing object and to a missing bucket: once, it is asked which."""
        if not self._seen:
            self._look(self._client)
            self._seen = True

    def _look(self, client: S3Client) -> None:
        with errors(self._where, "look at the bucket"):
            client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)

    def _chunks(self, key: str, *, verify: bool = True) -> Iterator[bytes]:
        """The bytes that were put, or an error at their end."""
        check_key(key)
        with errors(self._where, f"get {key}"):
            answer = self._client.get_object(Bucket=self.bucket, Key=self._full(key))
            self._expect_s3(answer)
            with closing(answer["Body"]) as body:
                if not verify:
                    yield from body.iter_chunks(CHUNK)
                    return
                found = Digested(body.iter_chunks(CHUNK))
                yield from found
        if _lower(answer["Metadata"]).get("sha256", found.sha256) != found.sha256:
            raise Transient(f"{self._where}: {key} came with other bytes than were put")

    def _link(self, method: str, key: str, seconds: int) -> str:
        check_key(key)
        if not 0 < seconds <= LONGEST_LINK_S:
            raise BadInput(f"a link lasts from 1 to {LONGEST_LINK_S} seconds, not {seconds}")
        parameters = {"Bucket": self.bucket, "Key": self._full(key)}
        with errors(self._where, f"sign a link to {key}"):
            return self._client.generate_presigned_url(method, Params=parameters, ExpiresIn=seconds)

    @cached_property
    def _is_conditional(self) -> bool:
        """Asked once, by two writes of which the second must be refused: many servers ignore the condition."""
        for _ in range(2):
            try:
                with errors(self._where, "try a conditional write"):
                    self._client.put_object(Bucket=self.bucket, Key=self._full(".probe"), Body=b"", IfNoneMatch="*")
            except Conflict:
                return True
        return False

    # ── many objects ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _listed(self, prefix: str) -> Iterator[Stored]:
        if exact := self.stat(prefix):
            yield exact
        pages = self._client.get_paginator("list_objects_v2")
        with errors(self._where, f"list {prefix}"):
            for page in pages.paginate(Bucket=self.bucket, Prefix=f"{self._full(prefix)}/"):
                for each in page.get("Contents", ()):
                    key = each["Key"].removeprefix(self.prefix)
                    if is_key(key):
                        yield Stored(key, each["Size"], each["ETag"].strip('"'))

    def _delete(self, keys: Sequence[str]) -> None:
        objects: Any = [{"Key": self._full(key)} for key in keys]
        with errors(self._where, f"delete {keys[0]} and {len(keys) - 1} more"):
            answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
        for error in answer.get("Errors", ()):
            code = error.get("Code", "")
            raise kind(code)(line(f"{self._where}: cannot delete {error.get('Key')}: {code} {error.get('Message')}"))

    # ── a file in parts ───────────────────────────────────────────────────────────────────────────────────────────────

    def _started(self, artifact: Artifact, part_size: int) -> Upload:
        """The note is what finds it again: S3 itself keeps no digest where an unfinished upload can be asked for it."""
        metadata = {"sha256": artifact.sha256}
        answer = self._client.create_multipart_upload(
            Bucket=self.bucket, Key=self._full(artifact.key), Metadata=metadata
        )
        said = {"key": artifact.key, "part_size": part_size, "sha256": artifact.sha256, "upload": answer["UploadId"]}
        self._client.put_object(Bucket=self.bucket, Key=self._note(artifact.key), Body=canonical_json(said))
        return Upload(answer["UploadId"], part_size)

    def _resumed(self, artifact: Artifact, part_size: int) -> Upload | None:
        """The upload that was interrupted, if it was of these bytes in such parts; any other is aborted."""
        try:
            with errors(self._where, "get the note of an upload"):
                answer = self._client.get_object(Bucket=self.bucket, Key=self._note(artifact.key))
                note = json.loads(answer["Body"].read())
        except Missing:
            return None
        if (note["sha256"], note["part_size"]) != (artifact.sha256, part_size):
            self._abort(artifact.key, note["upload"])
            return None
        with suppress(self._client.exceptions.NoSuchUpload):
            return Upload(note["upload"], part_size, self._sent(artifact.key, note["upload"]))
        return None

    def _sent(self, key: str, upload: str) -> dict[int, tuple[int, str]]:
        pages = self._client.get_paginator("list_parts").paginate(
            Bucket=self.bucket, Key=self._full(key), UploadId=upload
        )
        parts = (part for page in pages for part in page.get("Parts", ()))
        return {part["PartNumber"]: (part["Size"], part["ETag"].strip('"')) for part in parts}

    def _send(self, artifact: Artifact, path: Path, upload: Upload) -> None:
        parts: Any = []
        with path.open("rb") as file:
            read = Digested(iter(lambda: file.read(upload.part_size), b""))
            for number, data in enumerate(read, start=1):
                parts.append({"PartNumber": number, "ETag": self._send_part(artifact.key, upload, number, data)})
        if read.sha256 != artifact.sha256:
            self._abort(artifact.key, upload.id)
            raise Transient(f"{path.name} changed while it was sent to {artifact.key}")
        self._complete(artifact, upload, parts)
        self._client.delete_object(Bucket=self.bucket, Key=self._note(artifact.key))

    def _send_part(self, key: str, upload: Upload, number: int, data: bytes) -> str:
        """Its ETag. A part that is there is recognised by its MD5; where a server's ETags are no MD5 it goes again."""
        if upload.sent.get(number) == (len(data), _md5(data).hexdigest()):
            return upload.sent[number][1]
        answer = self._client.upload_part(
            Bucket=self.bucket,
            Key=self._full(key),
            UploadId=upload.id,
            PartNumber=number,
            Body=data,
            ContentMD5=_base64_md5(data),
        )
        return answer["ETag"]

    def _complete(self, artifact: Artifact, upload: Upload, parts: Any) -> None:
        gone = self._client.exceptions.NoSuchUpload
        try:
            self._client.complete_multipart_upload(
                Bucket=self.bucket, Key=self._full(artifact.key), UploadId=upload.id, MultipartUpload={"Parts": parts}
            )
        except gone:
            # When an answer is lost, botocore asks again and finds the upload gone, but its object there.
            head = self._head(artifact.key)
            if head is None or _lower(head["Metadata"]).get("sha256") != artifact.sha256:
                raise
        except ClientError as error:
            if kind_of(error) is BadInput:
                self._abort(artifact.key, upload.id)
            raise

    def _abort(self, key: str, upload: str) -> None:
        with suppress(self._client.exceptions.NoSuchUpload):
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=self._full(key), UploadId=upload)
        self._client.delete_object(Bucket=self.bucket, Key=self._note(key))

    # ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _full(self, key: str) -> str:
        return f"{self.prefix}{key}"

    def _note(self, key: str) -> str:
        return self._full(f"{NOTES}{digest(key)}")


def _lower(metadata: Mapping[str, str]) -> dict[str, str]:
    """Some servers give metadata back with capitals."""
    return {name.lower(): value for name, value in metadata.items()}


def _md5(data: bytes) -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _base64_md5(data: bytes) -> str:
    return b64encode(_md5(data).digest()).decode()
