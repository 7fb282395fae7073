"""What we connect to, as Prefect blocks: settings with descriptions, and ``open()``, which gives the thing itself.

`prefect block register -m blocks` puts them all into the UI.
"""

from blocks.compute import LocalCompute, ModalCompute
from blocks.redis import RedisStream
from blocks.s3 import S3Bucket
from blocks.site import LocalFolder, PrefectEvents, Site, SqliteLedger
from blocks.speech import SpeechEndpoint, WhisperModel
from blocks.supabase import SupabaseLedger

__all__ = [
    "LocalCompute",
    "LocalFolder",
    "ModalCompute",
    "PrefectEvents",
    "RedisStream",
    "S3Bucket",
    "Site",
    "SpeechEndpoint",
    "SqliteLedger",
    "SupabaseLedger",
    "WhisperModel",
]
