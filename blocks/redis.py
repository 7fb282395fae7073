"""The Redis stream that a site sends its events to, beside Prefect."""

from __future__ import annotations

from pydantic import Field, SecretStr

from blocks._part import Part
from dailies.events.redis_stream import MAX_LENGTH, STREAM
from dailies.events.redis_stream import RedisStream as StreamOfRedis


class RedisStream(Part):
    """Events to a stream of a Redis 5 or newer, for whoever reads it with a consumer group."""

    _block_type_name = "Dailies Redis stream"
    _block_type_slug = "dailies-redis-stream"

    url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description="redis://host:port/0, or rediss:// for TLS. A user other than the default one: redis://user@host.",
    )
    password: SecretStr | None = Field(default=None, description="The password, where the server asks for one.")
    stream: str = Field(default=STREAM, min_length=1, description="The stream's key. It is made with the first event.")
    max_length: int = Field(
        default=MAX_LENGTH,
        ge=1,
        description="About how many events the stream keeps. A consumer that is further behind than that misses some.",
    )

    def open(self) -> StreamOfRedis:
        """Asks nothing of the server yet; ``check`` of what it returns does."""
        password = self.password.get_secret_value() if self.password else None
        return StreamOfRedis(self.url, password, stream=self.stream, max_length=self.max_length)
