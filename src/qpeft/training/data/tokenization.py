"""Examples as token ids with labels: the loss is on what the assistant says and on the token that ends its turn."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qpeft.errors import DataError
from qpeft.training.data.examples import Completion, Conversation, Example, Message, Text

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label of a token without loss, the default `ignore_index` of torch's cross-entropy."""

Span = tuple[int, int]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Tokenized:
    """`rows` are dicts of `input_ids` and `labels` (equal length, unpadded), fit for transformers.Trainer as they are.

    `longest` is the length of the longest example, in tokens, before anything was cut. `cut_prompts` rows lost tokens from the
    middle of their prompt, `cut_ends` rows lost their last tokens (a row may be among both).
    """

    rows: list[dict[str, list[int]]]
    longest: int
    cut_prompts: int
    cut_ends: int


def tokenize(example: Example, tokenizer: Any, max_length: int) -> dict[str, list[int]]:
    """`input_ids` and `labels` of one example, at most `max_length` tokens; labels are -100 where there is no loss.

    A conversation goes through the tokenizer's chat template; a turn is learned from the end of the generation prompt, so
    that what some templates write before the content (an empty thought) is learned with it. Without a template (base models)
    it is its messages, each user and system message followed by a blank line and each assistant message by the
    end-of-sequence token. A completion is prompt + completion + end-of-sequence, text is text + end-of-sequence. Where no
    template is used, the begin-of-sequence token comes first if the tokenizer adds one.

    A longer example is cut as `shorten` says.

    Raises DataError if the template refuses the conversation, or if the assistant's turns cannot be found in what it makes.
    """
    ids, labels, _ = shorten(*_Encoder(tokenizer).encode(example), max_length)
    return {"input_ids": ids, "labels": labels}


def shorten(ids: list[int], labels: list[int], max_length: int) -> tuple[list[int], list[int], tuple[bool, bool]]:
    """Cut an example to `max_length` tokens.

    The prompt (all before the first learned token) may fill half of the room, and what the rest of the example leaves of the
    other half. What it has beyond that is cut out of its middle, so that it keeps the instruction and what stands right before
    the answer. The end is cut to what is left.

    Args:
        ids: token ids.
        labels: the label of each token, `IGNORED` where it is not learned.
        max_length: the most tokens, at least 1.

    Returns:
        Ids and labels of at most `max_length` tokens, and whether the prompt and the end were cut.
    """
    if len(ids) <= max_length:
        return ids, labels, (False, False)
    prompt = next((at for at, label in enumerate(labels) if label != IGNORED), 0)
    room = max(max_length - (len(ids) - prompt), max_length // 2)
    if prompt > room:
        head, tail = (room + 1) // 2, prompt - room // 2
        ids, labels = ids[:head] + ids[tail:], labels[:head] + labels[tail:]
    return ids[:max_length], labels[:max_length], (prompt > room, len(ids) > max_length)


def tokenize_all(examples: Sequence[Example], tokenizer: Any, max_length: int) -> Tokenized:
    """All examples, longer ones cut as `shorten` says, with one warning that counts them.

    Args:
        examples: the rows.
        tokenizer: the base model's tokenizer.
        max_length: the most tokens of a row.

    Raises:
        DataError: a row without a token to learn: its answer is empty, or `max_length` is below 2.
    """
    encoder = _Encoder(tokenizer)
    rows, longest, cut = [], 0, list[tuple[bool, bool]]()
    for example in examples:
        whole = encoder.encode(example)
        longest = max(longest, len(whole[0]))
        ids, labels, lost = shorten(*whole, max_length)
        if all(label == IGNORED for label in labels[1:]):  # the first token is never predicted
            raise DataError(
                f"no token to learn within {max_length} tokens",
                file=example.place,
                field="data.max_length",
                expected="room for the prompt and an answer",
                hint="raise data.max_length, or take out rows without an answer",
            )
        rows.append({"input_ids": ids, "labels": labels})
        cut.append(lost)
    prompts, ends = (sum(lost[side] for lost in cut) for side in (0, 1))
    if prompts or ends:
        logger.warning(
            "%d of %d rows are longer than data.max_length = %d tokens: %d lost the middle of the prompt, %d the end. "
            "data.max_length: %d keeps all",
            sum(map(any, cut)),
            len(examples),
            max_length,
            prompts,
            ends,
            longest,
        )
    return Tokenized(rows, longest, prompts, ends)


def encode_prompt(example: Example, tokenizer: Any) -> tuple[list[int], str]:
    """The prompt of an example and its answer, for generation.

    Args:
        example: a conversation, or a prompt with its completion.
        tokenizer: its tokenizer, with a chat template for conversations.

    Returns:
        Token ids up to where the last answer begins, and that answer.

    Raises:
        DataError: plain text, which has no prompt.
    """
    encoder = _Encoder(tokenizer)
    match example:
        case Conversation(messages):
            last = max(index for index, message in enumerate(messages) if message.role == "assistant")
            return encoder.prompt(example, last), messages[last].content
        case Completion(prompt, completion):
            return encoder.bos + encoder.ids(prompt), completion
        case Text():
            raise DataError(
                "plain text has no prompt", file=example.place, expected="a conversation or a prompt with its completion"
            )


def collator(tokenizer: Any) -> Any:
    """A transformers.DataCollatorForSeq2Seq: pads a batch on the right to its longest row, labels with -100.

    Sets the tokenizer's padding token to its end-of-sequence token if it has none; padded positions are masked.
    """
    from transformers import DataCollatorForSeq2Seq

    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise DataError("the tokenizer has neither a padding nor an end-of-sequence token", expected="one of them")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=IGNORED)


class _Encoder:
    """Tokenization settings shared by all examples of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.template = tokenizer.get_chat_template() if getattr(tokenizer, "chat_template", None) else None
        self.eos = tokenizer.eos_token or ""
        first = tokenizer("")["input_ids"][:1]
        self.bos: list[int] = list(first) if first and first[0] == tokenizer.bos_token_id else []
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= set(tokenizer.all_special_tokens)
        self.special = re.compile("|".join(map(re.escape, sorted(filter(None, special), key=len, reverse=True))) or r"(?!)")

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode(self, example: Example) -> tuple[list[int], list[int]]:
        """Token ids and labels, whole."""
        match example:
            case Conversation(messages, context):
                if self.template is None:
                    text, spans = self.joined(messages, context)
                elif _GENERATION.search(self.template):
                    return self.by_mask(example)
                else:
                    text, spans = self.templated(example)
                    return self.labelled(text, spans)
            case Completion(prompt, completion):
                text = prompt + completion + self.eos
                spans = [(len(prompt), len(text))]
            case Text(plain):
                text = plain + self.eos
                spans = [(0, len(text))]
        ids, labels = self.labelled(text, spans)
        return self.bos + ids, [IGNORED] * len(self.bos) + labels

    def labelled(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
        """Ids of a text, and as labels those that overlap a span of characters."""
        if not self.tokenizer.is_fast:  # no offsets: encode the pieces between span borders each by itself
            borders = sorted({0, len(text), *(border for span in spans for border in span)})
            ids, labels = [], []
            for start, end in itertools.pairwise(borders):
                piece = self.ids(text[start:end])
                ids += piece
                labels += piece if (start, end) in spans else [IGNORED] * len(piece)
            return ids, labels
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = list(encoded["input_ids"])
        labels = [IGNORED] * len(ids)
        remaining = iter(spans)
        span = next(remaining, None)
        for index, (start, end) in enumerate(encoded["offset_mapping"]):
            while span is not None and start >= span[1]:
                span = next(remaining, None)
            if span is not None and end > span[0]:
                labels[index] = ids[index]
        return ids, labels

    def joined(self, messages: Sequence[Message], context: int) -> tuple[str, list[Span]]:
        text, spans = "", []
        for index, message in enumerate(messages):
            start = len(text)
            text += message.content + (self.eos if message.role == "assistant" else "\n\n")
            if message.role == "assistant" and index >= context:
                spans.append((start, len(text)))
        return text, spans

    def prompt(self, example: Conversation, last: int) -> list[int]:
        messages = example.messages[:last]
        if self.template is None:
            return self.bos + self.ids(self.joined(messages, 0)[0])
        return self.ids(self.render(messages, example.place, generate=True))

    def render(self, messages: Iterable[Message], place: str, *, generate: bool = False) -> str:
        import jinja2

        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate))
        except jinja2.TemplateError as error:
            hint = "leave out the system message" if "system" in str(error).lower() else None
            raise DataError(f"the chat template refuses the conversation: {error}", file=place, hint=hint) from error

    def by_mask(self, example: Conversation) -> tuple[list[int], list[int]]:
        """The template itself marks what the assistant says, in {% generation %} blocks."""
        self.render(example.messages, example.place)  # for its errors
        turns = [{"role": message.role, "content": message.content} for message in example.messages]
        encoded = self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
        skip = sum(message.role == "assistant" for message in example.messages[: example.context])
        labels, run = [], 0
        for index, (token, spoken) in enumerate(zip(ids, mask, strict=True)):
            run += bool(spoken and (index == 0 or not mask[index - 1]))
            labels.append(token if spoken and run > skip else IGNORED)
        if run != sum(message.role == "assistant" for message in example.messages):
            raise self.not_found(example)
        return ids, labels

    def not_found(self, example: Conversation) -> DataError:
        return DataError(
            "the assistant's turns cannot be found in what the chat template makes of the conversation",
            file=example.place,
            expected="a template that renders a conversation so far as the beginning of the whole",
            hint="mark them with {% generation %} in the template, or give one row an assistant turn, or prompt and completion",
        )

    def templated(self, example: Conversation) -> tuple[str, list[Span]]:
        """The rendered text and the spans of the learned assistant turns."""
        text = self.render(example.messages, example.place)
        spans = self.by_prefix(example, text) or self.by_marks(example, text)
        if not spans:
            raise self.not_found(example)
        return text, spans

    def by_prefix(self, example: Conversation, text: str) -> list[Span] | None:
        """A turn spans from the conversation before it, with the generation prompt, to the conversation with it.

        None if one of those is not the beginning of the whole, as with templates that rewrite earlier turns.
        """
        spans = []
        for index, message in enumerate(example.messages):
            if message.role == "assistant" and index >= example.context:
                before = self.render(example.messages[:index], example.place, generate=True)
                after = self.render(example.messages[: index + 1], example.place)
                if not text.startswith(after) or not after.startswith(before):
                    return None
                content = message.content.strip()
                found = after.find(content, len(before))
                spans.append((len(before), self.turn_end(after, found + len(content)) if found >= 0 else len(after.rstrip())))
        return spans

    def by_marks(self, example: Conversation, text: str) -> list[Span] | None:
        """Render with a mark in place of each content to learn what the template puts between them, and find that in the text."""
        marks = [f"\ue000{index}\ue001" for index in range(len(example.messages))]
        rendered = self.render((Message(m.role, k) for m, k in zip(example.messages, marks, strict=True)), example.place)
        glue = re.split("|".join(marks), rendered)
        if re.findall("|".join(marks), rendered) != marks or not text.startswith(glue[0]):
            return None
        question = example.messages[: [message.role for message in example.messages].index("assistant")]
        asked, unasked = (self.render(question, example.place, generate=generate) for generate in (True, False))
        header = asked.removeprefix(unasked) if asked.startswith(unasked) else ""
        position, spans = len(glue[0]), []
        for index, message in enumerate(example.messages):
            contents = (message.content, message.content.strip())
            content = next((c for c in contents if text.startswith(c + glue[index + 1], position)), None)
            if content is None:
                return None
            end = position + len(content)
            if message.role == "assistant" and index >= example.context:
                head = text.rfind(header, position - len(glue[index]), position)
                start = head + len(header) if head >= 0 else position
                spans.append((start, self.turn_end(text[: end + len(glue[index + 1])], end)))
            position = end + len(glue[index + 1])
        return spans if position == len(text) else None

    def turn_end(self, text: str, content_end: int) -> int:
        """The end of the first special token after the content, or of the text without trailing space if there is none."""
        token = self.special.search(text, content_end)
        return token.end() if token else max(content_end, len(text.rstrip()))
