"""What OpenAI's own client gets is what the model says when it is called."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any, get_type_hints

import httpx
import numpy as np
import openai
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from peers import PATIENCE, client_of

PROMPT = "The future of the union"
CHAT: list[Any] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Call me"}]


def test_models_are_listed_and_told_with_their_task_and_context(client: openai.OpenAI) -> None:
    found = {model.id: model.to_dict() for model in client.models.list()}
    assert list(found) == ["gpt", "long", "spam", "vectors"]
    assert (found["spam"]["task"], found["gpt"]["context_length"]) == ("text-classification", 64)
    assert client.models.retrieve("gpt").to_dict() == found["gpt"]


def test_a_completion_is_what_the_model_says_with_true_counts(client: openai.OpenAI, gpt: Any) -> None:
    answer = client.completions.create(model="gpt", prompt=PROMPT, max_tokens=20, temperature=0)
    expected = gpt(PROMPT, max_new_tokens=20)
    assert answer.choices[0].text == expected.text
    assert answer.usage is not None
    counted = answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens
    made = len(expected.token_ids)
    assert counted == (expected.prompt_tokens, made, expected.prompt_tokens + made)
    assert (answer.choices[0].finish_reason, answer.object, answer.model) == ("length", "text_completion", "gpt")


def test_token_ids_are_a_prompt_and_a_list_of_prompts_is_answered_in_order(client: openai.OpenAI, gpt: Any) -> None:
    ids = gpt.tokenizer.ids(PROMPT)
    for prompt in (ids, [ids, ids[:3]], [PROMPT, "Call me"]):
        answer = client.completions.create(model="gpt", prompt=prompt, max_tokens=8, temperature=0)
        given: Any = prompt if isinstance(prompt[0], list | str) else [prompt]
        assert [one.text for one in answer.choices] == [one.text for one in gpt(given, max_new_tokens=8)]
        assert [one.index for one in answer.choices] == list(range(len(given)))


@pytest.mark.parametrize("seed", [3, 2**63, -1])
def test_a_seed_gives_the_same_texts_and_n_different_ones(client: openai.OpenAI, seed: int) -> None:
    def ask(seed: int) -> list[str]:
        answer = client.completions.create(model="gpt", prompt=PROMPT, n=3, seed=seed, max_tokens=12, top_p=0.9)
        return [one.text for one in answer.choices]

    assert ask(seed) == ask(seed) != ask(seed + 1)
    assert len(set(ask(seed))) == 3


def test_the_draws_of_a_seed_are_those_of_the_library(client: openai.OpenAI, gpt: Any) -> None:
    settings: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 5}
    answer = client.completions.create(model="gpt", prompt=PROMPT, n=2, max_tokens=12, **settings)
    expected = gpt(PROMPT, max_new_tokens=12, num_return_sequences=2, **settings)
    assert [one.text for one in answer.choices] == [one.text for one in expected]
    assert client.completions.create(model="gpt", prompt=PROMPT, temperature=0, n=2, max_tokens=4).choices[1].text


def test_best_of_gives_the_likeliest_of_those_that_it_makes(client: openai.OpenAI, gpt: Any) -> None:
    answer = client.completions.create(model="gpt", prompt=PROMPT, n=2, best_of=5, max_tokens=6, seed=1)
    made = gpt(PROMPT, max_new_tokens=6, num_return_sequences=5, do_sample=True, seed=1, logprobs=0)
    best = sorted(made, key=lambda one: -np.mean(one.logprobs))[:2]
    assert [one.text for one in answer.choices] == [one.text for one in best]
    assert answer.usage is not None and answer.usage.completion_tokens == sum(len(one.token_ids) for one in made)


def test_echo_begins_with_the_prompt(client: openai.OpenAI, gpt: Any) -> None:
    settings: dict[str, Any] = {"model": "gpt", "max_tokens": 5, "temperature": 0, "echo": True}
    expected = PROMPT + gpt(PROMPT, max_new_tokens=5).text
    assert client.completions.create(prompt=PROMPT, **settings).choices[0].text == expected
    assert client.completions.create(prompt=gpt.tokenizer.ids(PROMPT), **settings).choices[0].text == expected
    chunks = client.completions.create(prompt=PROMPT, stream=True, **settings)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    none = client.completions.create(prompt=PROMPT, **settings | {"max_tokens": 0})
    assert (none.choices[0].text, none.choices[0].finish_reason) == (PROMPT, "length")


def test_a_text_ends_before_a_stop_string_and_at_an_end_token(client: openai.OpenAI, gpt: Any) -> None:
    text = gpt(PROMPT, max_new_tokens=20).text
    stop = text[8:10]
    answer = client.completions.create(model="gpt", prompt=PROMPT, max_tokens=20, temperature=0, stop=[stop, "zzz"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text[: text.index(stop)], "stop")
    answer = client.completions.create(
        model="gpt", prompt=PROMPT, max_tokens=20, temperature=0, logit_bias={"0": 100}, logprobs=1
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage is not None and answer.usage.completion_tokens == 1  # the end token was computed, too
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.tokens == []


def test_penalties_biases_and_settings_of_torchless_change_the_text_as_they_do_in_a_call(
    client: openai.OpenAI, gpt: Any
) -> None:
    for given, own in (
        ({"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
        ({"frequency_penalty": -2}, {"frequency_penalty": -2.0}),
        ({"logit_bias": {"40": 9, "41": -100}}, {"logit_bias": {40: 9.0, 41: -100.0}}),
        ({"extra_body": {"repetition_penalty": 1.5}}, {"repetition_penalty": 1.5}),
        ({"extra_body": {"choices": [" strong", " weak"]}}, {"choices": [" strong", " weak"]}),
    ):
        answer = client.completions.create(model="gpt", prompt=PROMPT, max_tokens=16, temperature=0, **given)  # type: ignore[call-overload]
        assert answer.choices[0].text == gpt(PROMPT, max_new_tokens=16, **own).text, given
    assert answer.choices[0].text in (" strong", " weak")
    likeliest = client.completions.create(model="gpt", prompt=PROMPT, max_tokens=16, top_p=0)
    assert likeliest.choices[0].text == gpt(PROMPT, max_new_tokens=16).text


def test_a_stream_is_the_same_text_in_pieces_and_tells_its_usage_when_asked(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "gpt", "prompt": [PROMPT, "Käse"], "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**settings)
    chunks = list(client.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    for index in (0, 1):
        own = [chunk.choices[0] for chunk in pieces if chunk.choices[0].index == index]
        assert "".join(one.text for one in own) == whole.choices[index].text
        assert [one.finish_reason for one in own] == [None] * (len(own) - 1) + ["length"]
        assert len(own) > 5
    assert (last.choices, last.usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in pieces) and len({chunk.id for chunk in chunks}) == 1


def test_logprobs_are_the_models_own(client: openai.OpenAI, gpt: Any) -> None:
    settings: dict[str, Any] = {"model": "gpt", "prompt": PROMPT, "max_tokens": 6, "temperature": 0, "logprobs": 3}
    expected = gpt(PROMPT, max_new_tokens=6, logprobs=3)
    told = client.completions.create(**settings).choices[0].logprobs
    assert told is not None and told.top_logprobs is not None and told.tokens is not None
    np.testing.assert_allclose(told.token_logprobs, expected.logprobs, atol=1e-6)  # type: ignore[arg-type]
    texts = [gpt.tokenizer.token(token) for token in expected.token_ids]
    halves = {token: "bytes:\\x" for token in texts if "\ufffd" in token}
    assert all(one.startswith(halves.get(text, text)) for one, text in zip(told.tokens, texts, strict=True))
    assert told.text_offset == [sum(map(len, texts[:i])) for i in range(6)]
    for top, own in zip(told.top_logprobs, expected.top_logprobs, strict=True):
        assert sorted(top.values()) == pytest.approx(sorted(log for _, log in own), abs=1e-6)
    streamed = [chunk.choices[0].logprobs for chunk in client.completions.create(**settings, stream=True)]
    assert [token for one in streamed if one for token in one.tokens or []] == told.tokens
    assert [at for one in streamed if one for at in one.text_offset or []] == told.text_offset


def test_a_chat_is_what_the_model_says(client: openai.OpenAI, gpt: Any) -> None:
    answer = client.chat.completions.create(model="gpt", messages=CHAT, max_completion_tokens=10, temperature=0)
    expected = gpt.chat(CHAT, max_new_tokens=10)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (expected.prompt_tokens, 10)
    parts = [CHAT[0] | {"role": "developer"}, {"role": "user", "content": [{"type": "text", "text": "Call me"}]}]
    again = client.chat.completions.create(model="gpt", messages=parts, max_tokens=10, temperature=0)
    assert again.choices[0].message.content == expected.text


def test_an_answer_can_be_sent_back_as_the_client_has_it(client: openai.OpenAI) -> None:
    first = (
        client.chat.completions.create(model="gpt", messages=CHAT, max_tokens=3, temperature=0).choices[0].message
    )
    more: list[Any] = [*CHAT, first, {"role": "user", "content": "Go on"}]
    assert (
        client.chat.completions.create(model="gpt", messages=more, max_tokens=3, temperature=0)
        .choices[0]
        .message.content
    )


def test_a_chat_streams_a_role_then_words_then_a_reason(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "gpt", "messages": CHAT, "max_tokens": 12, "temperature": 0}
    settings |= {"logprobs": True, "top_logprobs": 2, "n": 2}
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage
    for index, choice in enumerate(whole.choices):
        own = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant" and own[-1].finish_reason == choice.finish_reason == "length"
        assert "".join(one.delta.content or "" for one in own) == choice.message.content
        told = [token for one in own if one.logprobs for token in one.logprobs.content or []]
        assert choice.logprobs is not None and told == choice.logprobs.content
        assert b"".join(bytes(token.bytes or []) for token in told).decode("utf-8", "replace").lstrip() == (
            choice.message.content
        )
        assert all(len(token.top_logprobs) == 2 for token in told)


def test_a_response_format_gives_json_of_the_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"strong": {"type": "boolean"}}, "required": ["strong"]}
    schema |= {"additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = client.chat.completions.create(model="gpt", messages=CHAT, response_format=form, temperature=0)
    assert set(json.loads(answer.choices[0].message.content or "")) == {"strong"}
    assert answer.choices[0].finish_reason == "stop"
    started = client.chat.completions.create(
        model="gpt", messages=CHAT, response_format={"type": "json_object"}, max_tokens=3, temperature=0
    )
    assert (started.choices[0].message.content or "").startswith("{")


def test_embeddings_are_the_models_in_base64_and_in_numbers(
    client: openai.OpenAI, http: httpx.Client, embedding: Any
) -> None:
    texts = ["The union is strong.", "A whale-ship was my college", "now"]
    answer = client.embeddings.create(model="vectors", input=texts)  # the client asks for base64, and decodes it
    np.testing.assert_array_equal(np.array([one.embedding for one in answer.data], np.float32), embedding(texts))
    raw = http.post("/v1/embeddings", json={"model": "vectors", "input": texts, "encoding_format": "base64"}).json()
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(raw["data"][1]["embedding"]), "<f4"), embedding(texts)[1]
    )
    one = client.embeddings.create(model="vectors", input=texts[0], encoding_format="float", dimensions=5)
    np.testing.assert_allclose(one.data[0].embedding, embedding(texts[0], truncate_dim=5), atol=1e-6)
    tokens = sum(len(embedding.tokenizer.encode(text).ids) for text in texts)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    assert answer.data[2].index == 2


def test_classifications_are_the_models(http: httpx.Client, classifier: Any) -> None:
    texts: list[Any] = ["You have won a prize!", ["the union", "is strong"], "free money " * 40]
    asked = {"model": "spam", "input": texts, "truncation": True}
    answer = http.post("/v1/classifications", json=asked).json()
    expected = classifier([texts[0], tuple(texts[1]), texts[2]], truncation=True)
    for told, own in zip(answer["data"], expected, strict=True):
        assert (told["label"], told["object"]) == (own.label, "classification")
        assert told["scores"] == pytest.approx(own.scores) and told["score"] == pytest.approx(own.score)
    refused = http.post("/v1/classifications", json=asked | {"truncation": False})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"


def test_many_at_once_get_what_each_would_get_alone(running: Any, long_gpt: Any) -> None:
    prompts = [f"{'the union ' * (i % 9) ** 2}whale {i}" for i in range(40)]  # the cache has to grow meanwhile
    lengths = [1 + i % 17 for i in range(40)]

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:

            async def one(prompt: str, length: int, streams: bool) -> str:
                settings: dict[str, Any] = {
                    "model": "long",
                    "prompt": prompt,
                    "max_tokens": length,
                    "temperature": 0,
                }
                await asyncio.sleep(length * 0.002)
                if not streams:
                    return (await client.completions.create(**settings)).choices[0].text
                chunks = await client.completions.create(**settings, stream=True)
                return "".join([chunk.choices[0].text async for chunk in chunks])

            return await asyncio.gather(*(one(p, n, i % 2 > 0) for i, (p, n) in enumerate(zip(prompts, lengths))))

    expected = [long_gpt(prompt, max_new_tokens=n).text for prompt, n in zip(prompts, lengths, strict=True)]
    assert asyncio.run(ask()) == expected


def test_errors_are_the_clients_own_and_name_the_parameter(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'nope'") as caught:
        client.completions.create(model="nope", prompt="a")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    for settings, param in (
        ({"max_tokens": 65}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"prompt": "the union " * 50}, "prompt"),
        ({"temperature": 2.5}, "temperature"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"n": 100}, "n"),
        ({"extra_body": {"regex": "("}}, "regex"),
        ({"extra_body": {"top_k": -1}}, "top_k"),
        ({"extra_body": {"new_one": 1}}, "new_one"),
        ({"stream": True, "best_of": 2}, "best_of"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(**{"model": "gpt", "prompt": "a"} | settings)  # type: ignore[call-overload]
        assert refused.value.param == param, (settings, refused.value.message)
    with pytest.raises(openai.BadRequestError, match="is for text-classification") as other:
        client.embeddings.create(model="spam", input="a")
    assert other.value.param == "model"


@pytest.mark.parametrize(
    ("path", "kinds", "given"),
    [
        (
            "completions", (completion_create_params.CompletionCreateParamsNonStreaming,),
            {"model": "gpt", "prompt": "a"},
        ),
        (
            "chat/completions", (chat_create_params.CompletionCreateParamsNonStreaming,),
            {"model": "gpt", "messages": CHAT},
        ),
        ("embeddings", (embedding_create_params.EmbeddingCreateParams,), {"model": "vectors", "input": "a"}),
    ],
)  # fmt: skip
def test_no_field_of_openais_is_ignored_in_silence(
    http: httpx.Client, path: str, kinds: tuple[type, ...], given: dict[str, Any]
) -> None:
    names = {name for kind in kinds for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
    names |= {name for kind in kinds for name in get_type_hints(kind)}
    assert len(names) > 4
    for name in names:
        answer = http.post(f"/v1/{path}", json=given | {name: {"nonsense": 1}})
        assert answer.status_code == 400, name
        assert answer.json()["error"]["param"].split(".")[0] == name, answer.text


def test_a_key_is_asked_for_where_there_is_one(serve: Any) -> None:
    running = serve(api_key="right")
    assert client_of(running, api_key="right").models.list().data
    for wrong in ("wrong", "righ", "rightt"):
        with pytest.raises(openai.AuthenticationError, match="key is another"):
            client_of(running, api_key=wrong).models.list()
    with httpx.Client(base_url=running.url, timeout=PATIENCE) as http:
        assert http.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert http.get("/health").status_code == 200
