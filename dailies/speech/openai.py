"""Any endpoint that answers like OpenAI's `/audio/transcriptions`: theirs, or a server of one's own.

hears = OpenAI(base_url="http://127.0.0.1:8000/v1", model="whisper-1")
words = hears.transcribe(chunk.samples, RATE, language="de")

A call costs money, so the same sound asked for again carries the same `Idempotency-Key`: an endpoint that knows the
header answers with what it has, and one that does not is asked no oftener than it must.
"""

from __future__ import annotations

import io
import json
import math
import random
import re
import threading
import time
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_before_delay

from dailies.canonical import digest
from dailies.errors import BadInput, NotConfigured, TimedOut, Transient
from dailies.speech.answer import Garbage, words_of
from dailies.speech.audio import Samples
from dailies.speech.engine import Engine, Word
from dailies.speech.language import short

OPENAI = "https://api.openai.com/v1"
MODEL = "whisper-1"
PER_MINUTE, TIMEOUT_S, CONNECT_S = 300.0, 120.0, 10.0
TRIES, WHOLE_S = 5, 300.0
# What an endpoint may make us wait for at most, and the first of our own waits, which double.
LONGEST_WAIT_S, FIRST_WAIT_S = 60.0, 0.5
LARGEST_ANSWER = 16 << 20
# 409: the same call, with the same key, is still being worked on.
PASSING = {408, 409, 425, 429}
THIS_SOUND = {400, 413, 415, 422}
# What is wrong is then not the sound: it would be so for every chunk.
OUR_PARAMETERS = {"model", "response_format", "timestamp_granularities", "timestamp_granularities[]"}


class Again(Exception):
    """Worth another try, after the wait that the endpoint asks for, if it does. `error` is what it is if none helps."""

    def __init__(self, error: Transient, after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_s = after_s


@dataclass(frozen=True)
class Secret:
    """Nothing that prints an engine prints this."""

    value: str = field(repr=False)


class Pace:
    """At most so many calls a minute, evenly: who comes too early waits for his turn."""

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.apart = 60.0 / per_minute
        self._clock, self._sleep = clock, sleep
        self._next = float("-inf")
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self.apart
        if turn > now:
            self._sleep(turn - now)


_PACES: dict[tuple[str, str, float], Pace] = {}
_PACES_LOCK = threading.Lock()


def shared_pace(base_url: str, key: str, per_minute: float) -> Pace:
    """One for all engines of this process that ask the same endpoint in the same name: it counts them together."""
    with _PACES_LOCK:
        return _PACES.setdefault((base_url, digest(key.encode()), per_minute), Pace(per_minute))


class OpenAI(Engine):
    name = "openai"

    def __init__(
        self,
        base_url: str = "",
        api_key: str = "",
        model: str = MODEL,
        per_minute: float = PER_MINUTE,
        timeout_s: float = TIMEOUT_S,
        *,
        pace: Pace | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Asks nothing yet. An endpoint of one's own may want no key; OpenAI's does."""
        self.base_url = address(base_url or OPENAI)
        key = _key(api_key)
        if not key and self.base_url == OPENAI:
            raise NotConfigured(
                "the engine openai has no key: set OPENAI_API_KEY, or OPENAI_BASE_URL to an endpoint of your own"
            )
        self.model = str(model)
        self.version = f"{self.model} at {self.base_url}, 1"
        self.timeout_s = _positive("timeout_s", timeout_s)
        self._pace = pace or shared_pace(self.base_url, key, _positive("per_minute", per_minute))
        self._sleep = sleep
        self._secret = Secret(key)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, CONNECT_S)),
            follow_redirects=False,
        )

    def transcribe(self, samples: Samples, rate: int, language: str | None = None) -> list[Word]:
        if not len(samples):
            return []
        sound, code = as_wav(samples, rate), short(language)
        key = digest({"language": code, "model": self.model, "sound": digest(sound)})
        length_us = len(samples) * 1_000_000 // rate
        # The turn of the first try may be far off when many wait for theirs: that is no failure of the endpoint.
        self._pace.wait()
        retrying = Retrying(
            retry=retry_if_exception_type(Again),
            stop=stop_after_attempt(TRIES) | stop_before_delay(WHOLE_S),
            wait=_how_long,
            sleep=self._sleep_and_wait,
            reraise=True,
        )
        try:
            return retrying(self._once, sound, code, key, length_us)
        except Again as again:
            raise again.error from None

    def close(self) -> None:
        self._client.close()

    def _sleep_and_wait(self, seconds: float) -> None:
        self._sleep(seconds)
        self._pace.wait()

    def _once(self, sound: bytes, language: str | None, key: str, length_us: int) -> list[Word]:
        status, headers, body = self._ask(sound, language, key)
        if status != 200:
            raise self._refusal(status, headers, body)
        try:
            return words_of(json.loads(body), length_us)
        except (ValueError, RecursionError, Garbage) as error:
            wrong = f"{self.base_url} does not answer like /audio/transcriptions ({self._clean(str(error))})"
            raise Again(Transient(f"{wrong}: if it goes on, set base_url to an endpoint that does")) from None

    def _ask(self, sound: bytes, language: str | None, key: str) -> tuple[int, httpx.Headers, bytes]:
        form: dict[str, Any] = {
            "model": self.model,
            "response_format": "verbose_json",
            "temperature": "0",
            "timestamp_granularities[]": ["word", "segment"],
        }
        if language:
            form["language"] = language
        try:
            with self._client.stream(
                "POST",
                f"{self.base_url}/audio/transcriptions",
                headers={"Idempotency-Key": key},
                data=form,
                files={"file": ("chunk.wav", sound, "audio/wav")},
            ) as answer:
                return answer.status_code, answer.headers, _read(answer, time.monotonic() + self.timeout_s)
        except httpx.TimeoutException:
            raise Again(TimedOut(f"{self.base_url} did not answer within {self.timeout_s:g} s")) from None
        except httpx.TransportError as error:
            said = self._clean(str(error)) or type(error).__name__
            wrong = f"{self.base_url} cannot be reached ({said}): is base_url right, and does it run?"
            raise Again(Transient(wrong)) from None
        except httpx.HTTPError as error:
            raise Again(Transient(f"{self.base_url} answers what cannot be read ({type(error).__name__})")) from None

    def _refusal(self, status: int, headers: httpx.Headers, body: bytes) -> Exception:
        about, told = _told(body)
        said = f"{self.base_url} answers {status} {self._clean(told)}".strip()
        if status in THIS_SOUND and about.get("param") in OUR_PARAMETERS:
            return NotConfigured(f"{said}: set model to one that answers verbose_json with the times of words")
        if status in THIS_SOUND:
            return BadInput(said)
        if status in (401, 403):
            return NotConfigured(f"{said}: set api_key (OPENAI_API_KEY) to a key that may transcribe")
        if status in (404, 405, 410) or 300 <= status < 400:
            return NotConfigured(f"{said}: set base_url (OPENAI_BASE_URL) to its address up to /v1, and model")
        if status == 402 or (status == 429 and about.get("code") == "insufficient_quota"):
            return NotConfigured(f"{said}: buy credit, or set api_key and base_url to another endpoint")
        if status in PASSING or status >= 500:
            return Again(Transient(said), retry_after(headers))
        return BadInput(said)

    def _clean(self, text: str) -> str:
        """One line without the key, which some endpoints say again when they do not like it."""
        line = " ".join(text.split())
        if self._secret.value:
            line = line.replace(self._secret.value, "…")
        return line[:300]


def as_wav(samples: Samples, rate: int) -> bytes:
    """16 bits, one channel: what is over full scale is cut and not wrapped round."""
    whole = np.nan_to_num(np.asarray(samples, dtype=np.float64), nan=0.0, posinf=1.0, neginf=-1.0)
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.clip(whole, -1, 1) * 32767).astype("<i2").tobytes())
    return data.getvalue()


def address(base_url: str) -> str:
    """Refused before anything is sent: httpx has an error of its own for each way to be wrong."""
    url = str(base_url).strip().rstrip("/")
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        named, parts = None, urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise NotConfigured("base_url holds a name or a password: set it without them, and api_key to the key")
    if not named or parts.query or parts.fragment or re.search(r"\s", url):
        raise NotConfigured(f"{url!r} is no address of an endpoint: set base_url to something like {OPENAI}")
    return url


def retry_after(headers: Mapping[str, str]) -> float | None:
    """In seconds, or as a date; bounded, and None where it cannot be read."""
    said = headers.get("retry-after", "").strip()
    if not said:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return None
    # Neither below nor above, and so not for NaN.
    return min(seconds, LONGEST_WAIT_S) if seconds >= 0 else 0.0


def _how_long(state: RetryCallState) -> float:
    """What the endpoint asks for and a little more; else twice as long each time. Always by chance: who failed
    together must not come back together."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.after_s if isinstance(error, Again) else None
    if asked is not None:
        return asked + random.uniform(0, FIRST_WAIT_S)
    return random.uniform(0.5, 1) * min(LONGEST_WAIT_S, math.ldexp(FIRST_WAIT_S, state.attempt_number - 1))


def _read(answer: httpx.Response, until: float) -> bytes:
    """Not for ever, and not all of whatever comes: each piece of it may be in time."""
    body = bytearray()
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > LARGEST_ANSWER:
            raise httpx.DecodingError("the answer is too large")
        if time.monotonic() > until:
            raise httpx.ReadTimeout("the answer does not end")
    return bytes(body)


def _told(body: bytes) -> tuple[Mapping[str, Any], str]:
    """What OpenAI, FastAPI or anybody else puts into an error, and its text."""
    text = body[:2000].decode(errors="replace")
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}, text
    about = said.get("error", said) if isinstance(said, dict) else {}
    if not isinstance(about, dict):
        return {}, str(about)
    return about, str(about.get("message") or about.get("detail") or text)


def _key(api_key: str) -> str:
    key = str(api_key).strip()
    if not (key.isascii() and key.isprintable()):
        raise NotConfigured("api_key holds what no key does: set it to the key alone")
    return key


def _positive(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 < number < float("inf"):
        raise NotConfigured(f"{name} cannot be {value!r}: set it to a number above 0")
    return number
