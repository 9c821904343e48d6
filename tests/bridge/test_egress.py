from datetime import date

import httpx2
import pytest

from qcbridge.egress import EgressRule, Permit, refusal, same_origin

TODAY = date(2026, 11, 22)
RULE = EgressRule(regions=frozenset({"cn"}), data_class="part-image")
PERMIT = {
    "provider": "acme",
    "base_url": "https://api.acme.example/v1",
    "region": "cn",
    "entity": "Acme Ltd.",
    "filing": "F-1",
    "data_classes": ("part-image",),
}


def refused(rule=RULE, **changes):
    return refusal(Permit(**PERMIT | changes), rule, today=TODAY)


def test_what_is_allowed_in_every_respect_may_be_sent():
    assert refused() is None
    assert refused(until=TODAY) is None
    assert Permit(**PERMIT).words() == ("part-image to Acme Ltd. in cn, filing F-1, until changed")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"region": ""}, "its region is not stated"),
        ({"entity": ""}, "its entity is not stated"),
        ({"filing": ""}, 'provider.filing, or "none"'),
        ({"data_classes": ()}, "may not be sent part-image"),
        ({"data_classes": ("telemetry",)}, "may not be sent part-image"),
        ({"region": "us"}, "nothing may go to region 'us'"),
        ({"until": date(2026, 11, 21)}, "its leave ended on 2026-11-21"),
    ],
)
def test_whatever_is_not_said_is_not_allowed(changes, words):
    said = refused(**changes)

    assert said.startswith("nothing is sent to acme: ")
    assert words in said
    assert "\n" not in said


def test_with_no_region_nothing_leaves_this_machine_and_those_on_it_are_asked():
    nowhere = EgressRule()

    assert refused(nowhere) is not None
    for here in ("http://127.0.0.1:11434/v1", "http://localhost:8000", "http://[::1]:8080/v1"):
        alone = Permit(provider="local", base_url=here)
        assert refusal(alone, nowhere, today=TODAY) is None
        assert alone.words() == "on this machine: nothing leaves"


@pytest.mark.parametrize(
    "host", ["127.0.0.1.acme.example", "localhost.acme.example", "10.0.0.7", "192.0.2.1"]
)
def test_an_address_that_only_looks_like_this_machine_is_not(host):
    assert refusal(Permit(provider="x", base_url=f"https://{host}/v1"), RULE, today=TODAY)


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("https://api.acme.example/v1/chat/completions", True),
        ("https://api.acme.example:443/v1", True),
        ("https://API.acme.example/v1", True),
        ("http://api.acme.example/v1", False),
        ("https://api.acme.example:8443/v1", False),
        ("https://api.acme.example.evil.example/v1", False),
        ("https://evil.example/https://api.acme.example/v1", False),
    ],
)
def test_a_request_goes_to_the_providers_own_scheme_host_and_port(url, same):
    assert same_origin(PERMIT["base_url"], httpx2.URL(url)) is same
