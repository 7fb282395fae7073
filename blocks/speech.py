"""What hears speech for a site: an endpoint that is asked, or Whisper on the site's own machines."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SecretStr

from blocks._part import Part
from dailies.speech.openai import MODEL, OPENAI, PER_MINUTE, TIMEOUT_S


class SpeechEndpoint(Part):
    """An endpoint that answers like OpenAI's `/audio/transcriptions`. For the engine `openai`."""

    _block_type_name = "Dailies speech endpoint"
    _block_type_slug = "dailies-speech-endpoint"

    base_url: str = Field(
        default=OPENAI, description="The endpoint's address up to /v1: OpenAI's, or that of a server of your own."
    )
    api_key: SecretStr = Field(
        default=SecretStr(""), description="The key that pays. Empty for a server of your own that wants none."
    )
    model: str = Field(
        default=MODEL, description="A model that answers verbose_json with the times of words, as whisper-1 does."
    )
    per_minute: float = Field(
        default=PER_MINUTE, gt=0, description="At most so many calls a minute, from each process that transcribes."
    )
    timeout_s: float = Field(default=TIMEOUT_S, gt=0, description="Seconds to wait for one answer.")

    def settings(self) -> dict[str, Any]:
        """As `dailies.speech.engine` takes them, with the key: they go to where the work is done, and nowhere else."""
        return {
            "api_key": self.api_key.get_secret_value(),
            "base_url": self.base_url,
            "model": self.model,
            "per_minute": self.per_minute,
            "timeout_s": self.timeout_s,
        }


class WhisperModel(Part):
    """Whisper by faster-whisper, where the work is done. For the engine `whisper`."""

    _block_type_name = "Dailies Whisper"
    _block_type_slug = "dailies-whisper"

    model: str = Field(
        default="base",
        description="tiny, base, small, medium, large-v3 or turbo, a repository of Hugging Face as owner/name, or a "
        "folder. What is not in the cache is fetched.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one.")
    compute_type: str = Field(
        default="auto",
        description="How exactly it counts: int8, float16 or float32, for example. auto: float16 on a GPU, else int8.",
    )
    cache: str = Field(default="", description="The folder that models are kept in. Empty: that of Hugging Face.")

    def settings(self) -> dict[str, Any]:
        return {"cache": self.cache, "compute_type": self.compute_type, "device": self.device, "model": self.model}
