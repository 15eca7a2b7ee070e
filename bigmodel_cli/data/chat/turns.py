"""Conversations as tokens, and which of them are learnt: the answers, up to what ends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bigmodel_cli.data.chat.messages import Conversation
from bigmodel_cli.data.chat.template import Message, Template
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.errors import DataError


@dataclass
class Sample:
    """Tokens (N) of a conversation, and which of them are learnt (N)."""

    tokens: list[int] = field(default_factory=list)
    learnt: list[bool] = field(default_factory=list)


class Turns:
    """Conversations to samples.

    A template says nothing about which part of its text is whose, so that is found by rendering: a
    conversation up to an answer, as generation would be asked for it, must be the beginning of the
    same with the answer, and what follows is the answer. It is learnt up to its first special
    token, which ends it in generation too.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.special = tokenizer.special
        self.ends: set[int] = set()
        self.divided = 0  # conversations whose earlier turns are rendered differently later on

    def __call__(self, conversation: Conversation) -> list[Sample]:
        """The samples of a conversation: one, or where the template changes earlier turns when
        more follow (it leaves out their reasoning), one for each answer.

        Raises `DataError` where the template does not render it, or an answer has no end.
        """
        place, messages = conversation.place, conversation.messages
        for message in messages:
            self.check(message["content"], place)
        samples: list[Sample] = []
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt, answer = self.parts(messages[: index + 1], place)
            if samples and prompt.startswith(done):
                sample, given = samples[-1], prompt[len(done) :]
            else:
                sample, given = Sample(), prompt
                samples.append(sample)
            self.add(sample, given, place)
            self.add_answer(sample, answer, place)
            done = prompt + answer
        self.divided += len(samples) > 1
        return samples

    def last_answer(self, conversation: Conversation) -> Sample:
        """A conversation of which only the last answer is learnt. Raises `DataError`."""
        place, messages, sample = conversation.place, conversation.messages, Sample()
        for message in messages:
            self.check(message["content"], place)
        prompt, answer = self.parts(messages, place)
        self.add(sample, prompt, place)
        self.add_answer(sample, answer, place)
        return sample

    def parts(self, messages: Sequence[Message], place: str) -> tuple[str, str]:
        """(the text up to the last answer, as generation is asked for it; the answer)."""
        try:
            prompt = self.template.render(messages[:-1], prompt=True)
            whole = self.template.render(messages, prompt=False)
        except self.template.fault as error:
            raise DataError(f"{place}: {error}") from None
        if not whole.startswith(prompt):
            raise DataError(
                f"{place}: {self.template.name}: a conversation does not begin with what generation"
                " is asked with before its last answer, so that the answer cannot be found; use"
                " another template (data.template)"
            )
        return prompt, whole[len(prompt) :]

    def prompt(self, messages: Sequence[Message], place: str) -> list[int]:
        """The tokens that generation is asked with. Raises `DataError`."""
        for message in messages:
            self.check(message["content"], place)
        try:
            text = self.template.render(messages, prompt=True)
        except self.template.fault as error:
            raise DataError(f"{place}: {error}") from None
        return self.tokenizer.encode_marked(text)

    def end(self) -> int:
        """The token that ends an answer. Raises `DataError` where the template has none."""
        asked = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
        self.add_answer(Sample(), self.parts(asked, self.template.name)[1], self.template.name)
        return next(iter(self.ends))

    def add(self, sample: Sample, text: str, place: str) -> list[int]:
        """Append the tokens of a text, not learnt, and return them."""
        try:
            tokens = self.tokenizer.encode_marked(text)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        sample.tokens += tokens
        sample.learnt += [False] * len(tokens)
        return tokens

    def add_answer(self, sample: Sample, text: str, place: str) -> None:
        """Append an answer, learnt up to its end.

        It is tokenized by itself, since generation begins after the tokens of the prompt.
        """
        first = len(sample.tokens)
        tokens = self.add(sample, text, place)
        end = next((i for i, token in enumerate(tokens) if token in self.special), None)
        if end is None:
            raise DataError(
                f"{place}: {self.template.name}: no special token ends an answer, so that generated"
                " answers would never end; use another template (data.template)"
            )
        self.ends.add(tokens[end])
        sample.learnt[first : first + end + 1] = [True] * (end + 1)

    def check(self, content: str, place: str) -> None:
        """Raise `DataError` where a message spells a special token: it would be one."""
        for text in self.special.values():
            if text and text in content:
                raise DataError(
                    f"{place}: a message has {text} in it, which is a special token, not text; is"
                    " the template's text in the messages already? Take it out"
                )


def shown(sample: Sample, tokenizer: Tokenizer, most: int = 200) -> str:
    """The text of a sample, what is learnt of it between » and «; long parts are shortened."""
    parts: list[str] = []
    first, learnt = 0, sample.learnt
    for index in range(1, len(learnt) + 1):
        if index == len(learnt) or learnt[index] != learnt[first]:
            text = tokenizer.decode_marked(sample.tokens[first:index])
            if len(text) > most:
                text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
            parts.append(f"»{text}«" if learnt[first] else text)
            first = index
    return "".join(parts)
