"""Every vendor's way to count tokens, read into classes that share none.

The blocks are in the vendors' own words, their numbers chosen so that reading one class for
another gives another result. What each field holds is from the vendors' pages and from
bug reports of tools that read it otherwise.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcbridge.providers.usage import (
    ANTHROPIC_MESSAGES,
    GEMINI_GENERATE,
    OPENAI_CHAT,
    anthropic_usage,
    gemini_usage,
    openai_usage,
)
from qcnode.money import TokenUsage

READ = {
    # OpenAI: what is cached is within the prompt, and pictures are not told apart.
    "openai, a picture": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 1117,
            "completion_tokens": 46,
            "total_tokens": 1163,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        TokenUsage(unknown=1117, output=46),
    ),
    "openai, cached and reasoned": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920},
            "completion_tokens_details": {"reasoning_tokens": 256},
        },
        TokenUsage(unknown=86, cache_read=1920, output=44, reasoning=256),
    ),
    "openai, read from and written to a cache": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 4000,
            "completion_tokens": 10,
            "total_tokens": 4010,
            "prompt_tokens_details": {
                "cached_tokens": 1024,
                "cache_write_tokens": 2048,
                "text_tokens": 4000,
            },
        },
        TokenUsage(text=928, cache_read=1024, cache_write=2048, output=10),
    ),
    "openai, a small picture billed as a large one": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 2880,
            "completion_tokens": 9,
            "total_tokens": 2889,
            "prompt_tokens_details": {"image_tokens": 2833},
        },
        TokenUsage(text=47, image=2833, output=9),
    ),
    "openai, cached text and picture told apart": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 1500,
            "completion_tokens": 20,
            "total_tokens": 1520,
            "prompt_tokens_details": {
                "text_tokens": 700,
                "image_tokens": 800,
                "cached_tokens": 900,
                "cached_tokens_details": {"text_tokens": 640, "image_tokens": 260},
            },
        },
        TokenUsage(text=60, image=540, cache_read=900, output=20),
    ),
    # DeepSeek: hits and misses make up the prompt.
    "deepseek": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 1000,
            "completion_tokens": 256,
            "total_tokens": 1256,
            "prompt_cache_hit_tokens": 768,
            "prompt_cache_miss_tokens": 232,
            "completion_tokens_details": {"reasoning_tokens": 200},
        },
        TokenUsage(unknown=232, cache_read=768, output=56, reasoning=200),
    ),
    "deepseek, both words for a hit": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 1000,
            "completion_tokens": 1,
            "total_tokens": 1001,
            "prompt_cache_hit_tokens": 768,
            "prompt_cache_miss_tokens": 232,
            "prompt_tokens_details": {"cached_tokens": 768},
        },
        TokenUsage(unknown=232, cache_read=768, output=1),
    ),
    # DashScope: text and picture make up the prompt; thinking is within the completion.
    "dashscope": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 1960,
            "prompt_tokens_details": {
                "cached_tokens": 0,
                "image_tokens": 1902,
                "text_tokens": 58,
            },
            "completion_tokens": 78,
            "completion_tokens_details": {"reasoning_tokens": 61},
            "total_tokens": 2038,
        },
        TokenUsage(text=58, image=1902, output=17, reasoning=61),
    ),
    "dashscope, cached without saying what": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 1960,
            "completion_tokens": 5,
            "total_tokens": 1965,
            "prompt_tokens_details": {
                "cached_tokens": 256,
                "image_tokens": 1902,
                "text_tokens": 58,
            },
        },
        # At least 1,646 uncached tokens are picture; of the other 58 nobody can tell.
        TokenUsage(image=1646, unknown=58, cache_read=256, output=5),
    ),
    "dashscope, an explicit cache made": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 1600,
            "completion_tokens": 7,
            "total_tokens": 1607,
            "prompt_tokens_details": {
                "cached_tokens": 0,
                "cache_creation_input_tokens": 1500,
                "cache_creation": {"ephemeral_5m_input_tokens": 1500},
                "cache_type": "ephemeral",
            },
        },
        TokenUsage(unknown=100, cache_write=1500, output=7),
    ),
    # xAI: reasoning stands beside the completion, and its total says so.
    "xai": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 135,
            "prompt_tokens_details": {
                "text_tokens": 32,
                "audio_tokens": 0,
                "image_tokens": 0,
                "cached_tokens": 6,
            },
            "completion_tokens_details": {"reasoning_tokens": 94, "audio_tokens": 0},
            "num_sources_used": 0,
            "cost_in_usd_ticks": 1285000,
        },
        TokenUsage(text=26, cache_read=6, output=9, reasoning=94),
    ),
    "a gateway before a thinking model that said nothing": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 21,
            "completion_tokens": 0,
            "total_tokens": 81,
            "completion_tokens_details": {"reasoning_tokens": 60},
        },
        TokenUsage(unknown=21, reasoning=60),
    ),
    "moonshot": (
        OPENAI_CHAT,
        {"prompt_tokens": 700, "completion_tokens": 3, "total_tokens": 703, "cached_tokens": 512},
        TokenUsage(unknown=188, cache_read=512, output=3),
    ),
    "mistral": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 700,
            "completion_tokens": 3,
            "total_tokens": 703,
            "num_cached_tokens": 64,
        },
        TokenUsage(unknown=636, cache_read=64, output=3),
    ),
    "openrouter": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 194,
            "completion_tokens": 2,
            "total_tokens": 196,
            "cost": 0.00095,
            "is_byok": False,
            "prompt_tokens_details": {
                "cached_tokens": 0,
                "cache_write_tokens": 100,
                "audio_tokens": 0,
                "video_tokens": 0,
            },
            "completion_tokens_details": {"reasoning_tokens": 0, "image_tokens": 0},
            "cost_details": {"upstream_inference_cost": None},
        },
        TokenUsage(unknown=94, cache_write=100, output=2),
    ),
    "litellm before anthropic, the same said twice": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 1004,
            "completion_tokens": 5,
            "total_tokens": 1009,
            "prompt_tokens_details": {"cached_tokens": 900, "cache_creation_tokens": 100},
            "cache_read_input_tokens": 900,
            "cache_creation_input_tokens": 100,
        },
        TokenUsage(unknown=4, cache_read=900, cache_write=100, output=5),
    ),
    "vllm, with nothing but totals": (
        OPENAI_CHAT,
        {
            "prompt_tokens": 300,
            "total_tokens": 312,
            "completion_tokens": 12,
            "prompt_tokens_details": None,
        },
        TokenUsage(unknown=300, output=12),
    ),
    "groq, with times between the counts": (
        OPENAI_CHAT,
        {
            "queue_time": "0.037",
            "prompt_tokens": 18,
            "prompt_time": "0.0006",
            "completion_tokens": 556,
            "total_tokens": 574,
        },
        TokenUsage(unknown=18, output=556),
    ),
    # Anthropic: what is cached is beside the input, and the two lives have two prices.
    "anthropic": (
        ANTHROPIC_MESSAGES,
        {
            "input_tokens": 2095,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 503,
            "service_tier": "standard",
        },
        TokenUsage(unknown=2095, output=503),
    ),
    "anthropic, all at once": (
        ANTHROPIC_MESSAGES,
        {
            "input_tokens": 17,
            "cache_read_input_tokens": 34565,
            "cache_creation_input_tokens": 17474,
            "cache_creation": {
                "ephemeral_5m_input_tokens": 7474,
                "ephemeral_1h_input_tokens": 10000,
            },
            "output_tokens": 490,
            "output_tokens_details": {"thinking_tokens": 400},
            "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
        },
        TokenUsage(
            unknown=17,
            cache_read=34565,
            cache_write=7474,
            cache_write_1h=10000,
            output=90,
            reasoning=400,
        ),
    ),
    "anthropic, as it was before caches lived for an hour": (
        ANTHROPIC_MESSAGES,
        {
            "input_tokens": 25,
            "cache_creation_input_tokens": 4,
            "cache_read_input_tokens": 100,
            "output_tokens": 15,
        },
        TokenUsage(unknown=25, cache_read=100, cache_write=4, output=15),
    ),
    "anthropic, nothing cached": (
        ANTHROPIC_MESSAGES,
        {
            "input_tokens": 21,
            "cache_creation_input_tokens": None,
            "cache_read_input_tokens": None,
            "cache_creation": None,
            "output_tokens": 393,
        },
        TokenUsage(unknown=21, output=393),
    ),
    # Gemini: cached within the prompt, thoughts beside the candidates, zeros left out.
    "gemini, a picture": (
        GEMINI_GENERATE,
        {
            "promptTokenCount": 264,
            "candidatesTokenCount": 31,
            "totalTokenCount": 295,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 6},
                {"modality": "IMAGE", "tokenCount": 258},
            ],
            "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 31}],
        },
        TokenUsage(text=6, image=258, output=31),
    ),
    "gemini, cached by modality": (
        GEMINI_GENERATE,
        {
            "promptTokenCount": 9660,
            "candidatesTokenCount": 7,
            "totalTokenCount": 9667,
            "cachedContentTokenCount": 9600,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 9402},
                {"modality": "IMAGE", "tokenCount": 258},
            ],
            "cacheTokensDetails": [
                {"modality": "TEXT", "tokenCount": 9393},
                {"modality": "IMAGE", "tokenCount": 207},
            ],
        },
        TokenUsage(text=9, image=51, cache_read=9600, output=7),
    ),
    "gemini, cached without saying what": (
        GEMINI_GENERATE,
        {
            "promptTokenCount": 600,
            "candidatesTokenCount": 7,
            "totalTokenCount": 607,
            "cachedContentTokenCount": 256,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 342},
                {"modality": "IMAGE", "tokenCount": 258},
            ],
        },
        TokenUsage(text=86, image=2, unknown=256, cache_read=256, output=7),
    ),
    "gemini, thoughts beside the answer": (
        GEMINI_GENERATE,
        {
            "promptTokenCount": 20,
            "candidatesTokenCount": 198,
            "thoughtsTokenCount": 405,
            "totalTokenCount": 623,
        },
        TokenUsage(unknown=20, output=198, reasoning=405),
    ),
    "gemini, a prompt that was blocked": (
        GEMINI_GENERATE,
        {
            "promptTokenCount": 264,
            "totalTokenCount": 264,
            "promptTokensDetails": [
                {"modality": "IMAGE", "tokenCount": 258},
                {"modality": "TEXT", "tokenCount": 6},
            ],
        },
        TokenUsage(text=6, image=258),
    ),
    "gemini, a tool's prompt": (
        GEMINI_GENERATE,
        {
            "promptTokenCount": 100,
            "toolUsePromptTokenCount": 50,
            "candidatesTokenCount": 10,
            "totalTokenCount": 160,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 100}],
        },
        TokenUsage(text=100, unknown=50, output=10),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_each_vendors_block_is_read_into_the_classes_it_means(name):
    shape, block, classes = READ[name]

    assert shape.read(json.loads(json.dumps(block))) == classes


USAGE = {"prompt_tokens": 900, "completion_tokens": 50, "total_tokens": 950}
ANTHROPIC = {"input_tokens": 900, "output_tokens": 50}
GEMINI = {"promptTokenCount": 900, "candidatesTokenCount": 50, "totalTokenCount": 950}


@pytest.mark.parametrize(
    ("shape", "raw"),
    [
        (OPENAI_CHAT, None),
        (OPENAI_CHAT, []),
        (OPENAI_CHAT, {}),
        (OPENAI_CHAT, {"prompt_tokens": 900}),
        (OPENAI_CHAT, {"total_tokens": 950}),  # as one vendor had it once
        (OPENAI_CHAT, USAGE | {"prompt_tokens": -1}),
        (OPENAI_CHAT, USAGE | {"prompt_tokens": "900"}),
        (OPENAI_CHAT, USAGE | {"prompt_tokens": 900.0}),
        (OPENAI_CHAT, USAGE | {"completion_tokens": True}),
        (OPENAI_CHAT, USAGE | {"total_tokens": 951}),
        (OPENAI_CHAT, USAGE | {"prompt_tokens_details": [1]}),
        (OPENAI_CHAT, USAGE | {"prompt_tokens_details": {"cached_tokens": 901}}),
        (OPENAI_CHAT, USAGE | {"prompt_tokens_details": {"image_tokens": -1}}),
        (OPENAI_CHAT, USAGE | {"prompt_tokens_details": {"image_tokens": 901}}),
        (
            OPENAI_CHAT,
            USAGE | {"prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 301}},
        ),
        (
            OPENAI_CHAT,
            USAGE | {"prompt_tokens_details": {"cached_tokens": 5}, "prompt_cache_hit_tokens": 6},
        ),
        (OPENAI_CHAT, USAGE | {"prompt_cache_hit_tokens": 640, "prompt_cache_miss_tokens": 261}),
        (OPENAI_CHAT, USAGE | {"prompt_tokens_details": {"text_tokens": 1, "image_tokens": 1}}),
        (OPENAI_CHAT, USAGE | {"prompt_tokens_details": {"audio_tokens": 1}}),  # we sent no sound
        # Within the prompt or beside it? Gateways do both.
        (OPENAI_CHAT, USAGE | {"cache_read_input_tokens": 100}),
        (OPENAI_CHAT, USAGE | {"cache_creation_input_tokens": 100}),
        # More reasoning than output, and a total that does not count it beside.
        (OPENAI_CHAT, USAGE | {"completion_tokens_details": {"reasoning_tokens": 51}}),
        # A total with something in it that is not named: thoughts, at some gateways.
        (OPENAI_CHAT, USAGE | {"total_tokens": 1500}),
        (
            OPENAI_CHAT,
            USAGE
            | {
                "prompt_tokens_details": {
                    "text_tokens": 300,
                    "image_tokens": 600,
                    "cached_tokens": 400,
                    "cached_tokens_details": {"text_tokens": 301, "image_tokens": 99},
                }
            },
        ),
        (
            OPENAI_CHAT,
            USAGE
            | {
                "prompt_tokens_details": {
                    "text_tokens": 300,
                    "image_tokens": 600,
                    "cached_tokens": 400,
                    "cached_tokens_details": {"text_tokens": 100, "image_tokens": 100},
                }
            },
        ),
        (ANTHROPIC_MESSAGES, None),
        (ANTHROPIC_MESSAGES, {"output_tokens": 15}),  # the last event of a stream
        (ANTHROPIC_MESSAGES, ANTHROPIC | {"cache_read_input_tokens": -1}),
        (ANTHROPIC_MESSAGES, ANTHROPIC | {"cache_read_input_tokens": "7"}),
        (ANTHROPIC_MESSAGES, ANTHROPIC | {"output_tokens_details": {"thinking_tokens": 51}}),
        (
            ANTHROPIC_MESSAGES,
            ANTHROPIC
            | {
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 10},
            },
        ),
        (GEMINI_GENERATE, None),
        (GEMINI_GENERATE, {"promptTokenCount": 900}),
        (GEMINI_GENERATE, GEMINI | {"totalTokenCount": 949}),
        (GEMINI_GENERATE, GEMINI | {"thoughtsTokenCount": 1}),
        (GEMINI_GENERATE, GEMINI | {"cachedContentTokenCount": 901}),
        (GEMINI_GENERATE, GEMINI | {"promptTokensDetails": {"TEXT": 900}}),
        (GEMINI_GENERATE, GEMINI | {"promptTokensDetails": ["TEXT"]}),
        (
            GEMINI_GENERATE,
            GEMINI | {"promptTokensDetails": [{"modality": "TEXT", "tokenCount": 899}]},
        ),
        (
            GEMINI_GENERATE,
            GEMINI | {"promptTokensDetails": [{"modality": "VIDEO", "tokenCount": 900}]},
        ),
        (
            GEMINI_GENERATE,
            GEMINI
            | {
                "cachedContentTokenCount": 10,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 900}],
                "cacheTokensDetails": [{"modality": "IMAGE", "tokenCount": 10}],
            },
        ),
    ],
)
def test_a_block_that_is_absent_or_does_not_add_up_is_no_usage(shape, raw):
    with pytest.raises(ValueError, match=r".") as refused:
        shape.read(raw)
    assert "\n" not in str(refused.value)


tokens = st.integers(min_value=0, max_value=1_000_000)


@given(tokens, tokens, tokens, tokens)
def test_b1_cached_tokens_are_counted_once_whether_a_vendor_counts_them_in_or_beside(
    plain, read, written, output
):
    beside = anthropic_usage(
        {
            "input_tokens": plain,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "output_tokens": output,
        }
    )
    within = openai_usage(
        {
            "prompt_tokens": plain + read + written,
            "completion_tokens": output,
            "total_tokens": plain + read + written + output,
            "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        }
    )

    assert beside == within
    assert within.input_tokens == plain + read + written
    assert within.unknown == plain


@given(minutes=tokens, hour=tokens, plain=tokens)
def test_b2_a_cache_of_an_hour_is_not_a_cache_of_five_minutes(minutes, hour, plain):
    usage = anthropic_usage(
        {
            "input_tokens": plain,
            "cache_creation_input_tokens": minutes + hour,
            "cache_creation": {
                "ephemeral_5m_input_tokens": minutes,
                "ephemeral_1h_input_tokens": hour,
            },
            "output_tokens": 1,
        }
    )

    assert (usage.cache_write, usage.cache_write_1h) == (minutes, hour)
    assert usage.input_tokens == plain + minutes + hour


@given(said=tokens, thought=tokens)
def test_b3_reasoning_is_output_once_whether_a_vendor_counts_it_in_or_beside(said, thought):
    within = {
        "prompt_tokens": 10,
        "completion_tokens": said + thought,
        "total_tokens": 10 + said + thought,
        "completion_tokens_details": {"reasoning_tokens": thought},
    }
    beside = within | {"completion_tokens": said}
    gemini = {
        "promptTokenCount": 10,
        "candidatesTokenCount": said,
        "thoughtsTokenCount": thought,
        "totalTokenCount": 10 + said + thought,
    }

    assert openai_usage(within) == openai_usage(beside) == gemini_usage(gemini)
    assert openai_usage(within).output_tokens == said + thought


@given(text=tokens, image=tokens, data=st.data())
def test_b4_a_picture_is_counted_as_a_picture_and_never_as_more_than_was_sent(text, image, data):
    cached_text = data.draw(st.integers(0, text))
    cached_image = data.draw(st.integers(0, image))
    details = {
        "text_tokens": text,
        "image_tokens": image,
        "cached_tokens": cached_text + cached_image,
    }
    block = {
        "prompt_tokens": text + image,
        "completion_tokens": 1,
        "total_tokens": text + image + 1,
        "prompt_tokens_details": details,
    }

    vague = openai_usage(block)
    details["cached_tokens_details"] = {"text_tokens": cached_text, "image_tokens": cached_image}
    told = openai_usage(block)

    assert (told.text, told.image, told.unknown) == (text - cached_text, image - cached_image, 0)
    assert vague.text <= told.text
    assert vague.image <= told.image
    assert vague.input_tokens == told.input_tokens == text + image


@given(
    field=st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens"]),
    by=st.integers(-200, 200).filter(bool),
)
def test_a_count_that_is_changed_no_longer_adds_up(field, by):
    block = {
        "prompt_tokens": 1000,
        "completion_tokens": 500,
        "total_tokens": 1500,
        "prompt_tokens_details": {"text_tokens": 400, "image_tokens": 600},
        "completion_tokens_details": {"reasoning_tokens": 201},
    }
    openai_usage(block)

    with pytest.raises(ValueError, match=r"."):
        openai_usage(block | {field: block[field] + by})
