"""The chat API as the real `openai` client sees it, over a real socket."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn

from qpeft.applications.serving.adapters import Adapters
from qpeft.applications.serving.server import create_app, serve
from qpeft.errors import ModelError, RunError
from qpeft.evaluation.generate import Generated, encode_messages, generate
from qpeft.training.data.examples import Message
from qpeft.training.loop.loaded_run import load_run

ASKED = [{"role": "user", "content": "Is this patient ill?"}]


@pytest.fixture(scope="module")
def runs(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three runs on one base: `first` whose adapter is a loud LoRA, `second` a QTHA, and `other` on another model."""
    import torch
    from peft import LoraConfig, get_peft_model

    from qpeft.training.model import loading

    root = tmp_path_factory.mktemp("runs")
    for name in ("first", "second", "other"):
        shutil.copytree(run, root / name)
    config, _, _ = load_run(run)
    torch.manual_seed(0)
    loud = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], init_lora_weights=False)
    shutil.rmtree(root / "first" / "adapter")
    get_peft_model(loading.load_model(config.model), loud).save_pretrained(str(root / "first" / "adapter"))
    recipe = root / "other" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("dtype: float32", "dtype: bfloat16"))
    return root


@pytest.fixture(scope="module")
def adapters(runs: Path) -> Adapters:
    return Adapters(runs / "first")


def listening(app: object) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(adapters: Adapters) -> Iterator[str]:
    yield from listening(create_app(adapters))


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address, api_key="unused", max_retries=0) as client:
        yield client


def test_an_answer_is_that_of_chat(client: openai.OpenAI, runs: Path) -> None:
    _, model, tokenizer = load_run(runs / "first")
    prompt = encode_messages([Message("user", ASKED[0]["content"])], tokenizer)
    expected = generate(model, tokenizer, [prompt], max_new_tokens=12)[0].text
    made = client.chat.completions.create(model="first", messages=ASKED, max_tokens=12, temperature=0)  # type: ignore[arg-type]
    assert made.choices[0].message.content == expected
    assert expected
    assert made.usage is not None
    assert 0 < made.usage.completion_tokens <= 12
    assert made.choices[0].finish_reason == ("length" if made.usage.completion_tokens == 12 else "stop")
    base = client.chat.completions.create(model="base", messages=ASKED, max_tokens=12, temperature=0)  # type: ignore[arg-type]
    assert base.choices[0].message.content == generate(model.unload(), tokenizer, [prompt], max_new_tokens=12)[0].text


def test_a_stream_adds_up_to_the_answer(client: openai.OpenAI) -> None:
    given = {"model": "first", "messages": ASKED, "max_completion_tokens": 24, "temperature": 1.5, "seed": 1}
    whole = client.chat.completions.create(**given)  # type: ignore[call-overload]
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert len(set("".join(texts))) > 2
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_sampling_is_repeatable_by_seed(client: openai.OpenAI) -> None:
    def say(seed: int) -> str | None:
        made = client.chat.completions.create(model="first", messages=ASKED, max_tokens=12, temperature=1.5, seed=seed)  # type: ignore[arg-type]
        return made.choices[0].message.content

    assert say(3) == say(3)
    assert len({say(seed) for seed in range(4)}) > 1


def test_adapters_come_and_go(client: openai.OpenAI, address: str, adapters: Adapters) -> None:
    assert [model.id for model in client.models.list()] == ["base", "first"]
    with httpx.Client(base_url=address) as http:
        assert http.post("/adapters", json={"name": "second", "run": "second"}).status_code == 201
        assert [model.id for model in client.models.list()] == ["base", "first", "second"]
        given = {"messages": ASKED, "max_tokens": 12, "temperature": 0}
        answers = {
            n: client.chat.completions.create(model=n, **given).choices[0].message.content for n in ("base", "first", "second")
        }  # type: ignore[call-overload]
        assert answers["second"] != answers["first"] != answers["base"]
        assert http.post("/adapters", json={"name": "second", "run": "second"}).status_code == 400  # taken
        assert "another base model" in http.post("/adapters", json={"name": "x", "run": "other"}).json()["error"]["message"]
        for place in ("../../somewhere", "/etc", "nothing"):
            assert http.post("/adapters", json={"name": "x", "run": place}).status_code == 400
        assert http.delete("/adapters/second").json()["deleted"] is True
        assert http.delete("/adapters/base").status_code == 400
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.chat.completions.create(model="second", **given)  # type: ignore[call-overload]
    again = client.chat.completions.create(model="first", **given)  # type: ignore[call-overload]
    assert again.choices[0].message.content == answers["first"]
    base, first = adapters.get("base").model, adapters.get("first").model
    pointers = {p.data_ptr() for p in base.parameters() if p.dim() > 1}
    shared = {p.data_ptr() for n, p in first.named_parameters() if p.dim() > 1}
    assert pointers <= shared  # one base in memory


def test_what_it_cannot_do_is_refused(client: openai.OpenAI) -> None:
    refused = [{"stop": ["x"]}, {"logprobs": True}, {"n": 2}, {"temperature": 3}, {"max_tokens": 0}, {"frequency_penalty": 0.5}]
    refused += [{"extra_body": {"top_k": 5}}, {"response_format": {"type": "json_object"}}]
    for more in refused:
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="first", messages=ASKED, **more)  # type: ignore[call-overload]
    with pytest.raises(openai.BadRequestError, match="tokens"):
        client.chat.completions.create(model="first", messages=[{"role": "user", "content": "x" * 5000}])


def test_what_says_nothing_of_the_answer_is_taken(client: openai.OpenAI) -> None:
    more = {"user": "me", "frequency_penalty": 0, "tool_choice": "none", "response_format": {"type": "text"}, "max_tokens": 1}
    assert client.chat.completions.create(model="first", messages=ASKED, **more).usage  # type: ignore[call-overload]


def test_every_answer_has_openai_s_form(address: str) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/chat/completions", 405), ("POST", "/chat/completions", 400)):
        answer = httpx.request(method, f"{address}{path}", content=b"{}" if method == "POST" else None)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
    told = httpx.post(f"{address}/chat/completions", json={"model": 1, "messages": []}).json()["error"]["message"]
    assert "model: " in told
    assert "messages: " in told  # all that is wrong at once


def test_health_limits_and_the_queue(adapters: Adapters) -> None:
    for url in listening(create_app(adapters, api_key="right", max_body=1000, max_waiting=2)):
        health = url.replace("/v1", "/health")
        assert httpx.get(health).json() == {"status": "ok", "models": len(adapters.names()), "waiting": 0, "max_waiting": 2}
        key = {"authorization": "Bearer right"}
        large = {"model": "first", "messages": [{"role": "user", "content": "x" * 2000}]}
        assert httpx.post(f"{url}/chat/completions", json=large, headers=key).status_code == 413
        parts = iter([b" " * 600, b" " * 600])  # no length is told
        assert httpx.post(f"{url}/chat/completions", content=parts, headers=key).status_code == 413
        with openai.OpenAI(base_url=url, api_key="right", max_retries=0) as client:
            given = {"model": "first", "messages": ASKED, "temperature": 1.0, "max_tokens": 1900, "stream": True}
            streams = [client.chat.completions.create(**given) for _ in range(2)]  # type: ignore[call-overload]
            with pytest.raises(openai.RateLimitError, match="2 answers are waiting already"):
                client.chat.completions.create(**given)  # type: ignore[call-overload]
            assert httpx.get(health).json()["waiting"] == 2
            for stream in streams:
                stream.close()
            began = time.monotonic()
            while httpx.get(health).json()["waiting"] and time.monotonic() - began < 60:
                time.sleep(0.1)
            assert client.chat.completions.create(model="first", messages=ASKED, max_tokens=1).usage  # type: ignore[call-overload]


@pytest.mark.parametrize("leaves", ["in a stream", "waiting"])
def test_a_client_that_leaves_frees_the_model(
    leaves: str, client: openai.OpenAI, adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, answer = [], adapters.answer

    def noting(*args: object, **options: object) -> Generated:
        made.append(answer(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(adapters, "answer", noting)
    given = {"model": "first", "messages": ASKED, "temperature": 1.0, "seed": 1}
    if leaves == "in a stream":
        with client.chat.completions.create(**given, max_tokens=1900, stream=True) as stream:  # type: ignore[call-overload]
            next(iter(stream))
    else:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**given, max_tokens=1900, timeout=0.3)  # type: ignore[call-overload]
    client.chat.completions.create(**given, max_tokens=1)  # type: ignore[call-overload]
    began = time.monotonic()
    while len(made) < 2 and time.monotonic() - began < 60:
        time.sleep(0.05)
    assert len(made) == 2
    assert max(told.completion_tokens for told in made) < 1900


def test_twenty_clients_at_once_get_the_answers_they_would_get_alone(client: openai.OpenAI) -> None:
    def say(number: int) -> str | None:
        asked = [{"role": "user", "content": f"Is patient {number % 5} ill?"}]
        given = {"model": ("base", "first")[number % 2], "messages": asked, "max_tokens": 8, "temperature": 0}
        if number % 3:
            return client.chat.completions.create(**given).choices[0].message.content  # type: ignore[call-overload]
        chunks = client.chat.completions.create(**given, stream=True)  # type: ignore[call-overload]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    alone = [say(number) for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(say, range(20))) == alone


def test_keys_and_hosts(adapters: Adapters, address: str) -> None:
    assert httpx.get(f"{address}/models", headers={"host": "evil.example"}).status_code == 400
    for url in listening(create_app(adapters, api_key="right")):
        with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with openai.OpenAI(base_url=url, api_key="right", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["base", "first"]
    with pytest.raises(RunError, match="beyond this machine"):
        serve(adapters, host="0.0.0.0", port=1, api_key=None)


def test_unfinished_runs_and_taken_names(adapters: Adapters, tmp_path: Path, runs: Path) -> None:
    with pytest.raises(RunError, match="not a finished run"):
        Adapters(tmp_path)
    with pytest.raises(ModelError, match="taken"):
        adapters.load("first", runs / "first", inside=False)
