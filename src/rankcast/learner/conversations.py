"""Prompts with answers: what a language model is given, and what it is to say to it."""

from __future__ import annotations

from dataclasses import dataclass

ASSISTANT = "assistant"
"""Role of the messages that are answers, as chat templates have it."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and how it goes on, put together as they are.

    Attributes:
        prompt: what the model is given.
        completion: what it is to say.
    """

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        """Both together."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a chat.

    Attributes:
        role: who says it; what `assistant` says is an answer.
        content: the text.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages that the model's own chat template makes a text of.

    Attributes:
        messages: in order; the last is an answer.
    """

    messages: tuple[Message, ...]

    @property
    def text(self) -> str:
        """What is said, without the template's marks."""
        return "\n".join(message.content for message in self.messages)

    @property
    def answers(self) -> tuple[int, ...]:
        """Positions of the answers."""
        return tuple(i for i, m in enumerate(self.messages) if m.role == ASSISTANT)


Answered = Completion | Chat
"""What has answers: either form."""
