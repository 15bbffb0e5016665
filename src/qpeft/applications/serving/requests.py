"""Requests of clients, in the format of OpenAI's API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qpeft.training.data.examples import Message

_NO_MATTER = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Turn(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    def message(self) -> Message:
        """The turn as training knows it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class _StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """Supported fields of an OpenAI chat request. Other fields are refused, unless they cannot change the answer."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[_Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Literal[1] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    def unsupported(self) -> list[str]:
        """Names of fields that ask for something this server does not do."""
        extra = self.model_extra or {}
        return [name for name, value in extra.items() if value and name not in _NO_MATTER and value not in _DEFAULTS.get(name, ())]


class AdapterRequest(BaseModel):
    """An adapter to load: the name to ask it by, and its run's folder relative to the server's."""

    name: Annotated[str, Field(pattern=r"^[\w.:-]{1,100}$")]
    run: str
