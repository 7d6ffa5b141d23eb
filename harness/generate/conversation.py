"""Owns a conversation with one model: its messages so far, and the prompts that they were made of."""

from __future__ import annotations

from typing import Literal

from harness.generate.method import Answer, Ask
from harness.generate.prompts import Prompt
from harness.llm.client import Message

NOTHING = "(no answer)"  # stands for an empty answer, since no protocol takes an empty message

Role = Literal["think", "translate"]


class Conversation:
    """Questions and answers in turn; begins with a question."""

    def __init__(self, first: Prompt, role: Role = "think") -> None:
        self._messages = [Message("user", first.text)]
        self._hashes = dict(first.hashes)
        self._role: Role = role

    def ask(self, stage: str) -> Ask:
        """The question that the conversation ends with."""
        return Ask(stage, tuple(self._messages), dict(self._hashes), self._role)

    def heard(self, answer: Answer) -> Answer:
        """Keep the answer, and give it back."""
        self._messages.append(Message("assistant", answer.text.strip() or NOTHING))
        return answer

    def tell(self, prompt: Prompt) -> None:
        """The next question."""
        self._messages.append(Message("user", prompt.text))
        self._hashes.update(prompt.hashes)

    @property
    def answers(self) -> int:
        """How many there were."""
        return sum(m.role == "assistant" for m in self._messages)
