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

    def add(self, tokens: Sequence[int], learnt: int = 0) -> None:
        """Append some tokens, of which the first few are learnt."""
        self.tokens += tokens
        self.learnt += [i < learnt for i in range(len(tokens))]


class Turns:
    """Conversations to samples.

    A template says nothing about which part of its text is whose, so that is found by rendering: a
    conversation up to an answer, as generation would be asked for it, must be the beginning of the
    same with the answer, and what follows is the answer. It is learnt up to the first special token
    after its content, which ends it in generation too.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.special = tokenizer.special
        self.ends: set[int] = set()
        self.roles: dict[str, bool] = {}  # whether the template writes their messages
        self.divided = 0  # conversations whose earlier turns are other tokens later on

    def __call__(self, conversation: Conversation) -> list[Sample]:
        """The samples of a conversation: one, or where the text or tokens of earlier turns change
        when more follow (the template leaves out their reasoning), one for each answer.

        Raises `DataError` where the template does not render it, or an answer has no end.
        """
        place, messages = conversation.place, conversation.messages
        self.check_all(messages, place)
        samples: list[Sample] = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            learnt = index not in conversation.passed
            sample = self.to(messages[: index + 1], place, samples[-1:], learnt)
            if not samples or sample is not samples[-1]:
                samples.append(sample)
        self.divided += len(samples) > 1
        return [sample for sample in samples if any(sample.learnt)]

    def last_answer(self, conversation: Conversation) -> Sample:
        """A conversation of which only the last answer is learnt. Raises `DataError`."""
        place, messages = conversation.place, conversation.messages
        self.check_all(messages, place)
        return self.to(messages, place, [], True)

    def to(
        self, messages: Sequence[Message], place: str, before: Sequence[Sample], learnt: bool
    ) -> Sample:
        """The sample up to the last of the messages, an answer.

        It is the one `before`, if any, with more at its end, where its tokens are the beginning of
        those that generation is asked with here.
        """
        prompt, answer = self.parts(messages, place)
        asked = self.tokens(prompt, place)
        sample = next((s for s in before if asked[: len(s.tokens)] == s.tokens), Sample())
        sample.add(asked[len(sample.tokens) :])
        whole = self.tokens(prompt + answer, place)
        # where the answer's first token would be one with the prompt's last, it is another one,
        # since generation begins after the tokens of the prompt
        apart = whole[: len(asked)] != asked
        tokens = self.tokens(answer, place) if apart else whole[len(asked) :]
        end = self.place_of_end(tokens, answer, messages[-1]["content"].strip(), place)
        sample.add(tokens, end + 1 if learnt else 0)
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
            self.check(message, place)
        try:
            text = self.template.render(messages, prompt=True)
        except self.template.fault as error:
            raise DataError(f"{place}: {error}") from None
        return self.tokens(text, place)

    def end(self) -> int:
        """The token that ends an answer. Raises `DataError` where the template has none."""
        asked = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
        self.to(asked, self.template.name, [], True)
        return next(iter(self.ends))

    def tokens(self, text: str, place: str) -> list[int]:
        """The tokens of a rendered text. Raises `DataError`."""
        try:
            return self.tokenizer.encode_marked(text)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None

    def place_of_end(self, tokens: Sequence[int], answer: str, content: str, place: str) -> int:
        """Where the first special token after an answer's content is.

        Special tokens before the content, such as a channel's name, do not end it. Where the
        template does not write the content as it is, that is the first token that ends generation,
        else the first special one. Raises `DataError` where there is none.
        """
        special = [i for i, token in enumerate(tokens) if token in self.special]
        at = answer.rfind(content) if content else -1
        if at >= 0:
            before = self.tokens(answer[: at + len(content)], place)
            special = special[sum(token in self.special for token in before) :]
        else:
            stops = [i for i in special if tokens[i] in self.tokenizer.stops]
            special = stops or special
        if not special:
            raise DataError(
                f"{place}: {self.template.name}: no special token ends an answer, so that generated"
                " answers would never end; use another template (data.template)"
            )
        self.ends.add(tokens[special[0]])
        return special[0]

    def check_all(self, messages: Sequence[Message], place: str) -> None:
        """Check the messages of a conversation, and the first ones of each role that asks: whether
        the template writes them at all. Raises `DataError` where it leaves out questions.
        """
        for message in messages:
            self.check(message, place)
        for role in {message["role"] for message in messages} - {"assistant", *self.roles}:
            other = [
                {**m, "content": f"{m['content']} again"} if m["role"] == role else m
                for m in messages
            ]
            try:
                both = {self.parts(asked, place)[0] for asked in (messages, other)}
            except DataError:  # it reads more of the message, or says its fault when it is rendered
                continue
            self.roles[role] = len(both) > 1
        if not self.roles.get("user", True):
            raise DataError(
                f"{place}: {self.template.name}: the question is not in the text that it writes, so"
                " that answers would be learnt without it; use another template (data.template)"
            )

    def check(self, message: Message, place: str) -> None:
        """Raise `DataError` where a message spells a special token: it would be one."""
        for text in self.special.values():
            if text and any(text in value for value in message.values()):
                raise DataError(
                    f"{place}: a message has {text} in it, which is a special token, not text; is"
                    " the template's text in the messages already? Take it out"
                )
