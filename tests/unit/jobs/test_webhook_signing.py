"""Signatures: the published example, secrets in and out of form, rotation, and what a receiver must refuse."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import ConfigError
from stoker.jobs.signing import MAX_SIGNATURES, parse_secret, signature, verify
from stoker.jobs.webhooks import WebhookPolicy

KEY = base64.b64decode("plJ3nmyCDGBKInavdOK15jsl")
ID = "msg_loFOjxBNrRLzqYUf"
TIMESTAMP = 1731705121
BODY = b'{"event_type":"ping","data":{"success":true}}'
SIGNATURE = "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="
GOOD = base64.b64encode(bytes(range(24))).decode()
OTHER = b"another secret of 32 bytes here!"


def headers(**changed: str) -> dict[str, str]:
    written = {"webhook-id": ID, "webhook-timestamp": str(TIMESTAMP), "webhook-signature": SIGNATURE}
    return written | {f"webhook-{name}": value for name, value in changed.items()}


def test_the_published_example() -> None:
    assert signature([KEY], ID, TIMESTAMP, BODY) == SIGNATURE
    assert verify([KEY], headers(), BODY, now=TIMESTAMP)


def test_the_example_s_own_secret_is_shorter_than_the_standard_asks_for() -> None:
    with pytest.raises(ConfigError, match="18 bytes; it needs 24 to 64"):
        parse_secret("whsec_plJ3nmyCDGBKInavdOK15jsl")


def test_a_secret_may_lack_its_padding() -> None:
    key = bytes(range(32))
    text = "whsec_" + base64.b64encode(key).decode()
    assert text.endswith("=")
    assert parse_secret(text) == parse_secret(text.rstrip("=")) == parse_secret(f" {text}\n") == key


@given(st.binary(min_size=24, max_size=64))
def test_every_secret_of_a_sane_length_is_read(key: bytes) -> None:
    assert parse_secret("whsec_" + base64.b64encode(key).decode()) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        GOOD,
        f"WHSEC_{GOOD}",
        f"whpk_{GOOD}",
        f"whsec_{GOOD}A",
        f"whsec_{GOOD[:-1]}!",
        f"whsec_{GOOD[:16]} {GOOD[16:]}",
        f"whsec_{GOOD[:16]}={GOOD[16:]}",
        f"whsec_{b'x'.hex() * 12}",
        "whsec_" + base64.urlsafe_b64encode(b"\xff\xfe" * 16).decode(),
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        "whsec_ключключключключключключключ",
    ],
)
def test_nonsense_is_no_secret_and_is_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_secret(text)
    assert "openssl rand" in refused.value.message
    hidden = text.removeprefix("whsec_")
    assert not hidden or hidden not in refused.value.message


def test_rotation_signs_with_both_and_either_verifies() -> None:
    both = signature([OTHER, KEY], ID, TIMESTAMP, BODY)
    assert both.split(" ")[1] == SIGNATURE
    for accepted in (OTHER, KEY):
        assert verify([accepted], headers(signature=both), BODY, now=TIMESTAMP)
    assert verify([OTHER, KEY], headers(), BODY, now=TIMESTAMP)
    assert not verify([b"z" * 32], headers(signature=both), BODY, now=TIMESTAMP)


def test_names_of_headers_come_in_any_case() -> None:
    assert verify([KEY], {name.title(): value for name, value in headers().items()}, BODY, now=TIMESTAMP)


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "msg_other"},
        {"id": ""},
        {"id": f"{ID}.1"},
        {"timestamp": str(TIMESTAMP + 1)},
        {"timestamp": ""},
        {"timestamp": f" {TIMESTAMP}"},
        {"timestamp": f"{TIMESTAMP}.0"},
        {"timestamp": "9" * 400},
        {"timestamp": "١٧٣١٧٠٥١٢١"},
        {"signature": ""},
        {"signature": "v1,"},
        {"signature": SIGNATURE.replace("v1,", "v1a,")},
        {"signature": SIGNATURE.replace("v1,", "")},
        {"signature": SIGNATURE[:-1]},
        {"signature": SIGNATURE.replace("=", "=é")},
        {"signature": "v1,x " * MAX_SIGNATURES + SIGNATURE},
    ],
)
def test_a_changed_header_does_not_verify(changed: dict[str, str]) -> None:
    assert not verify([KEY], headers(**changed), BODY, now=TIMESTAMP)


def test_other_versions_beside_ours_do_no_harm() -> None:
    assert verify([KEY], headers(signature=f"v1a,abc {SIGNATURE} v2,x"), BODY, now=TIMESTAMP)


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_does_not_verify(missing: str) -> None:
    assert not verify([KEY], {k: v for k, v in headers().items() if k != missing}, BODY, now=TIMESTAMP)


def test_the_timestamp_must_be_near() -> None:
    for off in (-300, 300):
        assert verify([KEY], headers(), BODY, now=TIMESTAMP + off)
    for off in (-301, 301):
        assert not verify([KEY], headers(), BODY, now=TIMESTAMP + off)
    assert not verify([KEY], headers(), BODY, now=TIMESTAMP + 11, tolerance_s=10)


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 10**11))
def test_only_the_signed_body_verifies(body: bytes, other: bytes, timestamp: int) -> None:
    sent = headers(timestamp=str(timestamp), signature=signature([KEY], ID, timestamp, body))
    assert verify([KEY], sent, body, now=timestamp)
    assert verify([KEY], sent, other, now=timestamp) == (other == body)


def test_an_empty_list_of_secrets_verifies_nothing_and_signs_nothing() -> None:
    assert not verify([], headers(), BODY, now=TIMESTAMP)
    with pytest.raises(ValueError, match="signature"):
        signature([], ID, TIMESTAMP, BODY)


@pytest.mark.parametrize("message_id", ["", "a.b", "a b", "a\r\nx: y", "é", "x" * 257])
def test_an_id_that_could_be_misread_is_not_signed(message_id: str) -> None:
    with pytest.raises(ValueError, match="id"):
        signature([KEY], message_id, TIMESTAMP, BODY)


def test_a_policy_does_not_show_its_secrets() -> None:
    shown = repr(WebhookPolicy((OTHER,), 5, 1.0, 60.0, 5.0, False))
    assert "another secret" not in shown
    assert "timeout_s=5.0" in shown
