"""An endpoint answers, refuses, is late, breaks off or lies: what becomes of a chunk, and how often it is sent."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import threading
import time
import traceback
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from dailies.errors import BadInput, DailiesError, NotConfigured, TimedOut, Transient
from dailies.speech.audio import RATE
from dailies.speech.engine import ENGINES, SETTINGS, Word, engine
from dailies.speech.openai import LARGEST_ANSWER, TRIES, OpenAI, Pace, as_wav, retry_after, shared_pace

pytestmark = pytest.mark.unit

KEY = "sk-a-key-nobody-prints"
SECOND = np.linspace(-1, 1, RATE, dtype=np.float32)
HELLO = {
    "task": "transcribe",
    "language": "english",
    "duration": 1.0,
    "text": "Hello there.",
    "segments": [{"id": 0, "start": 0.0, "end": 1.0, "text": " Hello there.", "avg_logprob": -0.105}],
    "words": [{"word": "Hello", "start": 0.1, "end": 0.35}, {"word": "there", "start": 0.4, "end": 0.9}],
}
HEARD = [Word(100_000, 350_000, "Hello", 0.9003), Word(400_000, 900_000, "there.", 0.9003)]


@dataclass
class Reply:
    body: Any = field(default_factory=lambda: HELLO)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    drip_s: float = 0.0

    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Asked:
    path: str
    headers: Message
    form: dict[str, list[bytes]]
    file_name: str

    def one(self, name: str) -> str:
        (value,) = self.form[name]
        return value.decode()


class Endpoint:
    """Gives its replies in turn, and the last one for ever."""

    def __init__(self) -> None:
        self.replies: list[Reply] = [Reply()]
        self.asked: list[Asked] = []
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        self.asked.append(parsed(handler.path, handler.headers, body))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        self.over.wait(reply.after_s)
        data = reply.data()
        handler.send_response(reply.status)
        for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        with suppress(ConnectionError):
            for begin in range(0, len(data), 1 if reply.drip_s else max(1, len(data))):
                handler.wfile.write(data[begin : begin + 1] if reply.drip_s else data)
                self.over.wait(reply.drip_s)

    def keys(self) -> list[str]:
        return [str(one.headers["idempotency-key"]) for one in self.asked]

    def stop(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def parsed(path: str, headers: Message, body: bytes) -> Asked:
    whole = b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n" + body
    form: dict[str, list[bytes]] = {}
    file_name = ""
    for part in BytesParser(policy=HTTP).parsebytes(whole).iter_parts():
        name = part.get_param("name", header="content-disposition")
        form.setdefault(name, []).append(part.get_payload(decode=True))
        file_name = part.get_filename() or file_name
    return Asked(path, headers, form, file_name)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    yield served
    served.stop()


@pytest.fixture
def waits() -> list[float]:
    """What was waited for between two tries, without waiting for it."""
    return []


@pytest.fixture
def ears(endpoint: Endpoint, waits: list[float]) -> Iterator[OpenAI]:
    made = OpenAI(endpoint.url, KEY, "whisper-1", timeout_s=5, pace=Pace(1e6), sleep=waits.append)
    yield made
    made.close()


def refused(hears: OpenAI, kind: type[DailiesError]) -> str:
    with pytest.raises(kind) as caught:
        hears.transcribe(SECOND, RATE, None)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_words_have_the_times_that_the_endpoint_gives_them(endpoint: Endpoint, ears: OpenAI) -> None:
    assert ears.transcribe(SECOND, RATE, "de-AT") == HEARD
    (asked,) = endpoint.asked
    assert asked.path == "/v1/audio/transcriptions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert {name: asked.one(name) for name in ("model", "language", "response_format", "temperature")} == {
        "model": "whisper-1",
        "language": "de",
        "response_format": "verbose_json",
        "temperature": "0",
    }
    assert asked.form["timestamp_granularities[]"] == [b"word", b"segment"]
    assert asked.file_name == "chunk.wav"


def test_the_sound_arrives_as_it_is(endpoint: Endpoint, ears: OpenAI) -> None:
    ears.transcribe(SECOND, RATE, None)
    with wave.open(io.BytesIO(endpoint.asked[0].form["file"][0])) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        heard = np.frombuffer(file.readframes(RATE + 1), dtype="<i2") / 32767
    assert len(heard) == RATE
    assert np.abs(heard - SECOND).max() < 1 / 32767


def test_what_is_over_full_scale_is_cut_and_not_wrapped_round() -> None:
    with wave.open(io.BytesIO(as_wav(np.array([2, -2, np.nan, np.inf], dtype=np.float32), RATE))) as file:
        assert np.frombuffer(file.readframes(9), dtype="<i2").tolist() == [32767, -32767, 0, 32767]


def test_no_language_is_sent_where_none_is_known(endpoint: Endpoint, ears: OpenAI) -> None:
    for language in (None, "", "und"):
        ears.transcribe(SECOND, RATE, language)
    assert [("language" in one.form) for one in endpoint.asked] == [False, False, False]


def test_no_sound_is_no_call(endpoint: Endpoint, ears: OpenAI) -> None:
    assert ears.transcribe(SECOND[:0], RATE, None) == []
    assert endpoint.asked == []


def test_a_retried_call_is_the_same_call_and_another_one_is_not(
    endpoint: Endpoint, ears: OpenAI, waits: list[float]
) -> None:
    endpoint.replies = [Reply(status=500), Reply(status=503), Reply()]
    assert ears.transcribe(SECOND, RATE, "en") == HEARD
    assert len(endpoint.asked) == 3
    assert len(set(endpoint.keys())) == 1
    assert len(waits) == 2
    assert 0 < waits[0] <= 0.5 < waits[1] * 2 <= 2
    ears.transcribe(SECOND, RATE, "de")
    ears.transcribe(SECOND * np.float32(0.5), RATE, "en")
    other = OpenAI(endpoint.url, KEY, "another", pace=Pace(1e6))
    other.transcribe(SECOND, RATE, "en")
    other.close()
    assert len(set(endpoint.keys())) == 4
    again = OpenAI(endpoint.url, KEY, "whisper-1", pace=Pace(1e6))
    again.transcribe(SECOND, RATE, "eng")
    again.close()
    assert endpoint.keys()[-1] == endpoint.keys()[0], "the same in another process, a day later"


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_asked_again_and_in_the_end_is_said_to_be_passing(
    endpoint: Endpoint, ears: OpenAI, status: int
) -> None:
    endpoint.replies = [Reply({"error": {"message": "busy"}}, status)]
    assert refused(ears, Transient) == f"{endpoint.url} answers {status} busy"
    assert len(endpoint.asked) == TRIES


@pytest.mark.parametrize("status", [400, 413, 415, 422, 418])
def test_a_sound_that_is_refused_is_not_sent_again(endpoint: Endpoint, ears: OpenAI, status: int) -> None:
    endpoint.replies = [Reply({"error": {"message": "Audio file is too short.", "param": "file"}}, status)]
    assert "Audio file is too short." in refused(ears, BadInput)
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize(
    ("status", "names"),
    [
        (401, "set api_key"),
        (403, "set api_key"),
        (404, "set base_url"),
        (405, "set base_url"),
        (308, "set base_url"),
        (402, "buy credit"),
    ],
)
def test_what_is_set_wrong_is_said_with_what_to_set(endpoint: Endpoint, ears: OpenAI, status: int, names: str) -> None:
    endpoint.replies = [Reply({"detail": "no"}, status, {"Location": "http://127.0.0.1:9/v1"})]
    assert names in refused(ears, NotConfigured)
    assert len(endpoint.asked) == 1


def test_a_model_that_gives_no_times_is_the_fault_of_the_settings_and_not_of_every_chunk(
    endpoint: Endpoint, ears: OpenAI
) -> None:
    error = {"message": "response_format 'verbose_json' is not compatible", "param": "response_format"}
    endpoint.replies = [Reply({"error": error}, 400)]
    assert "set model to one that answers verbose_json" in refused(ears, NotConfigured)


def test_who_has_no_credit_left_is_not_asked_to_wait(endpoint: Endpoint, ears: OpenAI) -> None:
    endpoint.replies = [Reply({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, 429)]
    assert "buy credit" in refused(ears, NotConfigured)
    assert len(endpoint.asked) == 1


def test_the_endpoint_is_given_the_time_that_it_asks_for(endpoint: Endpoint, ears: OpenAI, waits: list[float]) -> None:
    endpoint.replies = [
        Reply(status=429, headers={"Retry-After": "7"}),
        Reply(status=429, headers={"Retry-After": formatdate(time.time() + 20, usegmt=True)}),
        Reply(status=503, headers={"Retry-After": "86400"}),
        Reply(status=429, headers={"Retry-After": "soon"}),
        Reply(),
    ]
    assert ears.transcribe(SECOND, RATE, None) == HEARD
    assert 7 <= waits[0] <= 7.5
    assert 18 <= waits[1] <= 20.5
    assert 60 <= waits[2] <= 60.5, "bounded"
    assert waits[3] <= 4, "unreadable: our own"


def test_a_wait_that_was_over_long_ago_is_none() -> None:
    said = ["-5", "nan", formatdate(0, usegmt=True), "inf", ""]
    assert [retry_after({"retry-after": one}) for one in said] == [0, 0, 0, 60, None]


def test_waits_differ_from_call_to_call(endpoint: Endpoint, ears: OpenAI, waits: list[float]) -> None:
    endpoint.replies = [Reply(status=500)]
    for _ in range(3):
        refused(ears, Transient)
    assert len(set(waits)) == len(waits) == 3 * (TRIES - 1)


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(endpoint: Endpoint, waits: list[float]) -> None:
    endpoint.replies = [Reply(after_s=5), Reply()]
    ears = OpenAI(endpoint.url, KEY, timeout_s=0.3, pace=Pace(1e6), sleep=waits.append)
    assert ears.transcribe(SECOND, RATE, None) == HEARD
    assert len(set(endpoint.keys())) == 1
    assert len(endpoint.asked) == 2
    endpoint.replies = [Reply(after_s=5)]
    assert "did not answer within 0.3 s" in refused(ears, TimedOut)
    ears.close()


def test_an_answer_that_comes_drop_by_drop_is_not_waited_for(endpoint: Endpoint, waits: list[float]) -> None:
    """Each drop is in time, and all of them would take a minute."""
    endpoint.replies = [Reply(drip_s=0.2), Reply()]
    ears = OpenAI(endpoint.url, KEY, timeout_s=0.5, pace=Pace(1e6), sleep=waits.append)
    assert ears.transcribe(SECOND, RATE, None) == HEARD
    assert len(endpoint.asked) == 2
    ears.close()


def test_an_endpoint_that_does_not_run_is_one_line(waits: list[float]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        ears = OpenAI(f"http://127.0.0.1:{nobody.getsockname()[1]}/v1", pace=Pace(1e6), sleep=waits.append)
        assert "cannot be reached" in refused(ears, Transient)
        ears.close()
    assert len(waits) == TRIES - 1


def test_an_answer_that_breaks_off_is_asked_for_again(endpoint: Endpoint, ears: OpenAI) -> None:
    endpoint.replies = [Reply(headers={"Content-Length": "5000", "Connection": "close"}), Reply()]
    assert ears.transcribe(SECOND, RATE, None) == HEARD


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Sign in</html>",
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        [],
        "text",
        {"ok": True},
        {"text": 5},
        {"words": [{"word": "a", "start": None, "end": 1}]},
        {"words": [{"word": "a"}], "text": ""},
    ],
    ids=lambda body: str(body)[:30],
)
def test_what_is_no_answer_is_asked_for_again_and_never_believed(endpoint: Endpoint, ears: OpenAI, body: Any) -> None:
    endpoint.replies = [Reply(body), Reply()]
    assert ears.transcribe(SECOND, RATE, None) == HEARD
    endpoint.replies = [Reply(body)]
    assert "does not answer like /audio/transcriptions" in refused(ears, Transient)
    assert len(endpoint.asked) == 2 + TRIES


def test_an_endless_answer_is_not_read_to_its_end(endpoint: Endpoint, ears: OpenAI) -> None:
    endpoint.replies = [Reply(b" " * LARGEST_ANSWER + json.dumps(HELLO).encode()), Reply()]
    assert ears.transcribe(SECOND, RATE, None) == HEARD
    assert len(endpoint.asked) == 2


NAN = float("nan")


@pytest.mark.parametrize(
    ("body", "heard"),
    [
        ({"text": ""}, []),
        ({"text": " ", "words": [], "segments": []}, []),
        ({"text": "Hello  there"}, [Word(0, 1_000_000, "Hello there")]),
        (
            {"text": "x", "segments": [{"start": 0.2, "end": 1.0, "text": " abc defgh ", "avg_logprob": -0.6931}]},
            [Word(200_000, 500_000, "abc", 0.5), Word(500_000, 1_000_000, "defgh", 0.5)],
        ),
        (
            {
                "segments": [
                    {"start": 0, "end": 1, "words": [{"word": " in", "start": 0.5, "end": 1, "probability": 0.7}]}
                ]
            },
            [Word(500_000, 1_000_000, "in", 0.7)],
        ),
        (
            {"words": [{"word": "b", "start": 0.5, "end": 0.6}, {"word": "a", "start": -0.2, "end": 0.1}]},
            [Word(0, 100_000, "a"), Word(500_000, 600_000, "b")],
        ),
        ({"words": [{"word": "back", "start": 0.5, "end": 0.2}]}, [Word(500_000, 500_000, "back")]),
        ({"words": [{"word": "late", "start": 0.5, "end": 90}]}, [Word(500_000, 1_000_000, "late")]),
        (
            {"words": [{"word": "a", "start": NAN, "end": 1}], "segments": [{"start": 0, "end": 1, "text": "a b"}]},
            [Word(0, 500_000, "a"), Word(500_000, 1_000_000, "b")],
        ),
        (
            {"words": [{"word": "a"}, {"word": "b", "start": 0.5, "end": 1}], "text": "a b"},
            [Word(0, 1_000_000, "a b")],
        ),
        ({"words": [{"word": "a", "start": 10**400, "end": 1}], "text": "a b"}, [Word(0, 1_000_000, "a b")]),
        ({"words": [{"word": "a", "start": True, "end": 2}], "text": "a b"}, [Word(0, 1_000_000, "a b")]),
        ({"words": ["a", None], "segments": {"a": 1}, "text": "a b"}, [Word(0, 1_000_000, "a b")]),
        ({"words": [{"word": "sure", "start": 0, "end": 1, "probability": 7}]}, [Word(0, 1_000_000, "sure")]),
        (
            {**HELLO, "segments": [{"start": 0, "end": 1, "text": "x", "avg_logprob": NAN}]},
            [Word(100_000, 350_000, "Hello"), Word(400_000, 900_000, "there.")],
        ),
    ],
    ids=str,
)
def test_of_a_strange_answer_as_much_as_can_be_believed(
    endpoint: Endpoint, ears: OpenAI, body: Any, heard: list[Word]
) -> None:
    endpoint.replies = [Reply(body)]
    assert ears.transcribe(SECOND, RATE, None) == heard
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize(
    ("words", "text", "shown"),
    [
        ("Yes no", " Yes, no!", "Yes, no!"),
        ("Qué tal", "¿Qué tal?", "¿Qué tal?"),
        ("well known", "well-known", "well- known"),
        ("he said yes", 'he said: "yes".', 'he said: "yes".'),
        ("one two", "one - two", "one two"),
        ("a b", "a x b", "a b"),
        ("a b", "a b c", "a b"),
        ("a b", "A b.", "a b"),
        ("in", "kind.", "in"),
        ("in", "inner", "in"),
        ("in on", "twin on", "in on"),
    ],
)
def test_commas_and_stops_come_from_the_text(
    endpoint: Endpoint, ears: OpenAI, words: str, text: str, shown: str
) -> None:
    """And a text of other words than those with times is not believed."""
    rows = [{"word": word, "start": 0.1 * place, "end": 0.1 * place + 0.1} for place, word in enumerate(words.split())]
    endpoint.replies = [Reply({"text": text, "words": rows})]
    assert " ".join(word.text for word in ears.transcribe(SECOND, RATE, None)) == shown


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lock = threading.Lock()
        self.turns: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.turns.append(seconds)


def test_calls_are_spread_over_the_minute_also_those_of_many_threads() -> None:
    clock = Clock()
    pace = Pace(120, clock, clock.sleep)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(pace.wait) for _ in range(11)]:
            done.result()
    assert sorted(clock.turns) == pytest.approx([0.5 * number for number in range(1, 11)])
    clock.now += 3600
    clock.turns.clear()
    pace.wait()
    pace.wait()
    assert clock.turns == [0.5], "an hour of silence allows no burst"


def test_every_try_waits_for_its_turn(endpoint: Endpoint, waits: list[float]) -> None:
    clock = Clock()
    ears = OpenAI(endpoint.url, KEY, pace=Pace(60, clock, clock.sleep), sleep=waits.append)
    endpoint.replies = [Reply(status=500), Reply(status=500), Reply()]
    ears.transcribe(SECOND, RATE, None)
    ears.close()
    assert clock.turns == [1.0, 2.0]


def test_engines_of_one_endpoint_and_key_share_one_pace() -> None:
    one = shared_pace("http://a/v1", "key", 10)
    assert shared_pace("http://a/v1", "key", 10) is one
    assert shared_pace("http://a/v1", "another", 10) is not one
    assert shared_pace("http://b/v1", "key", 10) is not one


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_the_key_is_in_nothing_that_is_shown(
    endpoint: Endpoint, ears: OpenAI, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Also where the endpoint says it again."""
    caplog.set_level(logging.DEBUG)
    endpoint.replies = [Reply({"error": {"message": f"Incorrect API key provided: {KEY}"}}, status)]
    try:
        ears.transcribe(SECOND, RATE, None)
    except DailiesError as error:
        shown = "".join(traceback.format_exception(error))
        assert "Incorrect API key provided: …" in shown or status == 200
    else:
        raise AssertionError("nothing was refused")
    assert KEY not in f"{shown}{caplog.text}{ears!r}{vars(ears)}{ears.version}"


def test_a_key_that_no_header_can_carry_is_refused_without_saying_it() -> None:
    for key in ("sk-schlüssel", "sk-a\nb"):
        with pytest.raises(NotConfigured, match="set it to the key alone") as caught:
            OpenAI("http://127.0.0.1:9", key)
        assert key not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "api.example.com"},
        {"base_url": "ftp://127.0.0.1"},
        {"base_url": "http://127.0.0.1:port"},
        {"base_url": "http://[::1"},
        {"base_url": "http://127.0.0.1/v1?a=b"},
        {"base_url": "http://127.0.0.1/v 1"},
        {"per_minute": 0},
        {"per_minute": "many"},
        {"per_minute": float("nan")},
        {"timeout_s": -1},
        {"api_key": "", "base_url": ""},
        {"nonsense": 1},
    ],
    ids=str,
)
def test_wrong_settings_are_one_line_that_says_what_to_set(wrong: dict[str, Any]) -> None:
    with pytest.raises(NotConfigured, match=r"set|it takes") as caught:
        engine("openai", {"base_url": "http://127.0.0.1:9/v1", "api_key": "k", **wrong})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://user:hush@127.0.0.1/v1", "http://hush@127.0.0.1/v1"])
def test_a_password_in_the_address_is_not_said(url: str) -> None:
    with pytest.raises(NotConfigured) as caught:
        OpenAI(url)
    assert "hush" not in str(caught.value)


def test_settings_come_from_the_environment_where_nobody_gives_any(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"BASE_URL": f"{endpoint.url}/", "API_KEY": KEY, "MODEL": "theirs"}.items():
        monkeypatch.setenv(f"OPENAI_{name}", value)
    made = engine("openai")
    assert made.name == "openai"
    assert made.version == f"theirs at {endpoint.url}, 1"
    assert made.transcribe(SECOND, RATE, None) == HEARD
    assert endpoint.asked[0].headers["authorization"] == f"Bearer {KEY}"
    given = engine("openai", {"base_url": "http://127.0.0.1:9/v1"})
    assert given.version == "whisper-1 at http://127.0.0.1:9/v1, 1", "the environment says nothing where somebody did"


def test_an_endpoint_of_ones_own_is_sent_no_key(endpoint: Endpoint) -> None:
    engine("openai", {"base_url": endpoint.url, "per_minute": 6000}).transcribe(SECOND, RATE, None)
    assert endpoint.asked[0].headers["authorization"] is None


def test_what_is_set_to_nothing_was_not_set(endpoint: Endpoint) -> None:
    """As a form that was left empty has it, and a variable that is there without a value."""
    made = engine("openai", {"base_url": endpoint.url, "model": "", "per_minute": None, "timeout_s": ""})
    assert made.version == f"whisper-1 at {endpoint.url}, 1"


def test_openai_itself_wants_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in SETTINGS["openai"].values():
        monkeypatch.delenv(variable or "UNSET", raising=False)
    with pytest.raises(NotConfigured, match="set OPENAI_API_KEY"):
        engine("openai")
    assert engine("openai", {"api_key": KEY}).version == "whisper-1 at https://api.openai.com/v1, 1"


def test_every_engine_is_told_only_what_it_knows() -> None:
    for name in ENGINES:
        with pytest.raises(NotConfigured, match=re.escape(f"the engine {name} has no setting colour")):
            engine(name, {"colour": "blue"})
    assert engine("dtmf", {}).name == "dtmf"


def test_settings_are_plain_and_travel(endpoint: Endpoint) -> None:
    settings = json.loads(json.dumps({"base_url": endpoint.url, "api_key": KEY, "per_minute": 6000, "timeout_s": 3}))
    assert engine("openai", settings).transcribe(SECOND, RATE, None) == HEARD


def test_the_endpoint_of_these_tests_can_tell_forms_apart() -> None:
    """One that took everything for the same would prove nothing."""
    headers = Message()
    headers["content-type"] = "multipart/form-data; boundary=b"
    one = parsed("/", headers, b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nx\r\n--b--\r\n')
    assert one.form == {"model": [b"x"]}
