"""A Whisper of a few megabytes in the format of the real ones: what it says is written into its weights.

The decoder looks at the position alone, and at each the token that stands there in the script has the best score. So
all of the real code runs (files, tokenizer, features, beam search, alignment), with a known answer and no download.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# As in every multilingual model: 50,257 pieces of text, then these.
TEXT = 50_257
LANGUAGES = 99
WIDTH, MELS, PAST, FUTURE = 64, 80, 1500, 448
# A word lasts so many of the encoder's frames of 20 ms: the decoder looks there, and nowhere else, while it says it.
FRAMES = 15


def write_model(folder: Path, text: str, *, until: str = "<|1.00|>", multilingual: bool = True) -> Path:
    """`text` is plain ASCII, and said from the first moment on, up to the time `until`."""
    from ctranslate2.specs import WhisperSpec
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    # By its last piece, which is empty, a multilingual model is known.
    known = [*letters, *sorted({f"Ġ{word}" for word in text.split()})]
    pieces = [*known, *(f"piece{number}" for number in range(TEXT - len(known) - 1)), "" if multilingual else "last"]
    tokens = [*pieces, *_special()]
    folder.mkdir(parents=True, exist_ok=True)
    reader = Tokenizer(BPE(vocab={token: place for place, token in enumerate(pieces)}, merges=[]))
    reader.pre_tokenizer = ByteLevel(add_prefix_space=False)
    reader.decoder = Decoder()
    reader.add_special_tokens(tokens[TEXT : tokens.index("<|0.00|>")])
    reader.save(str(folder / "tokenizer.json"))
    script = ["<|0.00|>", *(f"Ġ{word}" for word in text.split()), until, until, "<|endoftext|>"]
    spec = WhisperSpec(1, 1, 1, 1)
    # <|startoftranscript|>, and then <|en|><|transcribe|>
    _fill(spec, tokens, script, prompt=3 if multilingual else 1)
    spec.register_vocabulary(tokens)
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = []
    spec.config.lang_ids = list(range(TEXT + 2, TEXT + 2 + LANGUAGES))
    spec.config.alignment_heads = [(0, 0)]
    spec.validate()
    spec.save(str(folder))
    return folder


def _special() -> Iterator[str]:
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    yield from ("<|endoftext|>", "<|startoftranscript|>")
    yield from (f"<|{code}|>" for code in ["en", *(code for code in _LANGUAGE_CODES if code != "en")][:LANGUAGES])
    yield from ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>")
    yield "<|notimestamps|>"
    yield from (f"<|{number * 0.02:.2f}|>" for number in range(1501))


def _fill(spec: Any, tokens: list[str], script: list[str], prompt: int) -> None:
    encoder, decoder = spec.encoder, spec.decoder
    encoder.conv1.weight, encoder.conv1.bias = _zeros(WIDTH, MELS, 3), _zeros(WIDTH)
    encoder.conv2.weight, encoder.conv2.bias = _zeros(WIDTH, WIDTH, 3), _zeros(WIDTH)
    decoder.embeddings.weight = _zeros(len(tokens), WIDTH)
    places = np.random.default_rng(1).choice([-1.0, 1.0], (FUTURE, WIDTH)).astype(np.float32)
    decoder.position_encodings.encodings = places
    encoder.position_encodings.encodings = places[prompt + np.arange(PAST) // FRAMES]
    scores = _zeros(len(tokens), WIDTH)
    scores[tokens.index("<|en|>")] = places[0]
    for place, token in enumerate(script):
        scores[tokens.index(token)] += places[prompt - 1 + place]
    decoder.projection.weight = scores
    for half in (encoder, decoder):
        _norm(half.layer_norm)
        for layer in half.layer:
            _norm(layer.self_attention.layer_norm)
            _norm(layer.ffn.layer_norm)
            _linear(layer.self_attention.linear[0], 3 * WIDTH, WIDTH)
            _linear(layer.self_attention.linear[1], WIDTH, WIDTH)
            _linear(layer.ffn.linear_0, 4 * WIDTH, WIDTH)
            _linear(layer.ffn.linear_1, WIDTH, 4 * WIDTH)
    for layer in decoder.layer:
        _norm(layer.attention.layer_norm)
        _linear(layer.attention.linear[0], WIDTH, WIDTH)
        _linear(layer.attention.linear[1], 2 * WIDTH, WIDTH)
        layer.attention.linear[0].weight += np.eye(WIDTH, dtype=np.float32)
        layer.attention.linear[1].weight += np.eye(2 * WIDTH, WIDTH, dtype=np.float32)
        _linear(layer.attention.linear[2], WIDTH, WIDTH)


def _zeros(*shape: int) -> Any:
    return np.zeros(shape, dtype=np.float32)


def _norm(spec: Any) -> None:
    spec.gamma, spec.beta = _zeros(WIDTH) + 1, _zeros(WIDTH)


def _linear(spec: Any, out: int, into: int) -> None:
    spec.weight, spec.bias = _zeros(out, into), _zeros(out)
