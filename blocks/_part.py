"""What the parts of a site have in common."""

from __future__ import annotations

from typing import Any

from prefect.blocks.core import Block
from pydantic import ConfigDict, model_validator


class Part(Block):
    """Takes no field that it does not know.

    A site that was put together in the UI refers to its parts, and comes back without a word about their types: which
    one it is, pydantic can only tell by the fields. One that ignores strange fields would stand in for any other.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def is_this_type(cls, values: Any) -> Any:
        """One that was saved from Python does say its type, which is no field."""
        if not isinstance(values, dict):
            return values
        if values.get("block_type_slug", cls.get_block_type_slug()) != cls.get_block_type_slug():
            raise ValueError(f"this is no {cls.get_block_type_name()}")
        return {name: value for name, value in values.items() if name != "block_type_slug"}
