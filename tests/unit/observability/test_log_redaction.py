"""What is blotted out, what stays, how long the worst texts take, and that no cut lets half a secret through."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import ConfigError
from stoker.observability.cards import passes_luhn
from stoker.observability.redaction import MARGIN, Redactor, cut

REDACT = Redactor()


def letters(count: int) -> str:
    """Letters and digits as in keys; put together here, so that nobody takes this file for a leak."""
    return "a1B2c3D4e5" * (count // 10) + "a1B2c3D4e5"[: count % 10]


PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n"
    + "\n".join(letters(64) for _ in range(20))
    + "\n-----END RSA PRIVATE KEY-----"
)
JWT = ".".join(
    base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
    for part in ({"alg": "HS256", "typ": "JWT"}, {"sub": "1", "admin": True}, {"x": letters(30)})
)
TOKENS = {
    "stoker": "sk-stoker-" + letters(43),
    "stoker without digits": "sk-stoker-" + "abcdefghij" * 4,
    "openai": "sk-" + letters(48),
    "openai project": "sk-proj-" + letters(60) + "-_" + letters(20),
    "anthropic": "sk-ant-api03-" + letters(80) + "-AA",
    "stripe": "sk_live_" + letters(24),
    "aws": "AKIA" + "ABCDEFGH23456789",
    "github": "ghp_" + letters(36),
    "github app": "ghs_" + letters(36),
    "github fine-grained": "github_pat_" + letters(22) + "_" + letters(59),
    "gitlab": "glpat-" + letters(20),
    "slack": "xoxb-" + "123456789012-123456789012-" + letters(24),
    "google": "AIza" + letters(35),
    "hugging face": "hf_" + letters(34),
    "npm": "npm_" + letters(36),
    "pypi": "pypi-AgEIcHlwaS5vcmc" + letters(80),
    "jwt": JWT,
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS.keys())
@pytest.mark.parametrize(
    "around", ["{}", "use {} for it", '"{}"', "key:{}.", "({})", "`{}`", "ключ {}!", "看{}吧", "a/{}/b"]
)
def test_tokens_go_wherever_they_stand(token: str, around: str) -> None:
    told = REDACT(around.format(token))
    assert token[:24] not in told
    assert token[-6:] not in told
    assert "[secret]" in told
    assert told.startswith(around.split("{", maxsplit=1)[0])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"key:\n{PEM}\nend", "key:\n[secret]\nend"),
        (PEM.replace("\n", "\\n"), "[secret]"),
        (PEM[:500], "[secret]"),
        ("Authorization: Bearer abc.def-ghi_jkl", "Authorization: Bearer [secret]"),
        ("-H 'Authorization: Basic dXNlcjpwYXNz' x", "-H 'Authorization: Basic [secret]' x"),
        ('{"authorization": "Bearer abcdefgh1"}', '{"authorization": "Bearer [secret]"}'),
        ("authorization: 0123456789abcdef", "authorization: [secret]"),
        ("curl with bearer 0123456789abcdef", "curl with bearer [secret]"),
        ("password=hunter2", "password=[secret]"),
        ("password=correct.horse!", "password=[secret]"),
        ("password: swordfish", "password: [secret]"),
        ("Password : hunter2, user bob", "Password : [secret], user bob"),
        ("PGPASSWORD='a b c' psql", "PGPASSWORD='[secret]' psql"),
        ('{"password": "p\\"w, 1", "user": "bob"}', '{"password": "[secret]", "user": "bob"}'),
        (r'"{\"password\": \"hunter2\", \"user\": \"bob\"}"', r'"{\"password\": \"[secret]\", \"user\": \"bob\"}"'),
        ("db_password => 'x1'", "db_password => '[secret]'"),
        ("passwd:=secret99", "passwd:=[secret]"),
        ("?user=bob&password=hunter2&x=1", "?user=bob&password=[secret]&x=1"),
        ("api_key=abcdef", "api_key=[secret]"),
        ("X-Api-Key: abcdef", "X-Api-Key: [secret]"),
        ("apiKey: 'zzz'", "apiKey: '[secret]'"),
        ("api key: abc123def", "api key: [secret]"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "aws_secret_access_key = [secret]"),
        ("client_secret=abcdef", "client_secret=[secret]"),
        ("access_token: ya29.abcdef", "access_token: [secret]"),
        ("token=abcdefgh", "token=[secret]"),
        ("token: abcdefgh1", "token: [secret]"),
        ('secret = "swordfish"', 'secret = "[secret]"'),
        ("пароль: солнце", "пароль: [secret]"),
        ("key: password=hunter2", "key: password=[secret]"),
        ("token: password=swordfish", "token: password=[secret]"),
        ("password=" + "x" * 10_000 + " end", "password=[secret] end"),
        ('password="' + "x y" * 1000 + '" end', 'password="[secret]" end'),
        ("postgres://bob:hunter2@db:5432/x", "postgres://[secret]@db:5432/x"),
        ("redis://:p@ss@cache/0", "redis://[secret]@cache/0"),
        ("mail alice@example.com, please", "mail [email], please"),
        ("<bob.o'neil+x@mail.example.co.uk>.", "<bob.o'[email]>."),
        ("иван@почта.рф", "[email]"),
        ("card 4111 1111 1111 1111!", "card [card]!"),
        ("4111111111111111", "[card]"),
        ("5500-0000-0000-0004 and 3782 822463 10005", "[card] and [card]"),
        ("4111 1111 1111 1111 123", "[card] 123"),
        ("room 42 4111 1111 1111 1111 12/28", "room 42 [card] 12/28"),
        ("4111111111111111 5500000000000004", "[card] [card]"),
        ("4222222222222", "[card]"),
    ],
)
def test_secrets_and_people_go_and_the_rest_stays(text: str, told: str) -> None:
    assert REDACT(text) == told
    assert REDACT(told) == told


@pytest.mark.parametrize(
    "text",
    [
        "The secret of a good soup: patience. Each token: a piece of a word. My password is long.",
        "Tokens per second: 120; max_tokens=128, token_count: 12, tokens: 48",
        "password = getpass.getpass()\ntoken = next(stream)\nsecret = os.environ.get(name)",
        "def login(user: str, password: str, token: Token | None = None) -> None:",
        "class Config:\n    api_key: SecretStr\n    password: Optional[str] = None",
        'the key = "value" of a map, and sort(key=len), key: value',
        '{"token": " the", "logprob": -0.12}',
        "Bearer certificates and bearer instruments; the bearer understands.",
        "An authorization: the act of letting somebody do something.",
        "sk-learn-contributions and task-management-for-everybody-else",
        "https://example.com:8080/a?b=c#d and ssh://host:22/x and http://[::1]:80/",
        "@app.route('/x') and a @ b and foo@bar and x@y.z",
        f"{uuid.UUID(int=0x12345678123442348234123456789012)}",
        "0.4532015112830366 3.4111111111111111 and 1,4111111111111111",
        "1700000000000 1700000000000000 1700000000000000000 and +4111111111111111",
        "4111 1111 1111 1112 and 123456789012 and 41111111111111111111111111",
        "order 4111111111111111-AB and X4111111111111111 and 4111111111111111x",
        "for (let i = 0; i < 4000; i++) { total += row[i] * 1e-3; } // 4000 6000 8000",
        hashlib.sha256(b"x").hexdigest(),
        "sha512-" + base64.b64encode(hashlib.sha512(b"x").digest()).decode(),
        "AKIAmatsu and AKIAABCDEFGH234567890000 and hf_tokenizer_from_pretrained",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "",
    ],
)
def test_prose_code_numbers_and_hashes_stay(text: str) -> None:
    assert REDACT(text) == text


def test_uuids_and_hashes_stay() -> None:
    for _ in range(2000):
        text = f"{uuid.uuid4()} {secrets.token_hex(32)}"
        assert REDACT(text) == text


def test_the_check_digit() -> None:
    assert passes_luhn("79927398713")
    assert [passes_luhn(f"7992739871{digit}") for digit in range(10)].count(True) == 1


@given(st.text(alphabet="ab1 @.:/=-\"'\\\nsk", max_size=200), st.sampled_from([*TOKENS.values(), "x@y.zz", "pwd=a"]))
def test_nothing_around_a_secret_breaks_anything(noise: str, token: str) -> None:
    once = REDACT(f"{noise} {token} {noise}")
    assert token not in once


PIECES = [
    *(chr(code) for code in range(33, 127)),
    " ",
    "\n",
    "é",
    "看",
    "a@",
    "a@b.",
    "x@y.zz ",
    "eyJ",
    "sk-",
    "://",
    "://a:",
]
PIECES += [
    "-----BEGIN PRIVATE KEY-----",
    "password\\",
    "password",
    "token: ",
    'api_key="',
    "authorization: ",
    "bearer ",
]
PIECES += ["1 ", '"\\', "444 "]
HOSTILE = [piece * ((64 << 10) // len(piece)) for piece in PIECES] + [piece * (1 << 20) for piece in 'a1= -@\\"p']


def test_no_text_takes_long() -> None:
    """By the processor's time; texts on which patterns backtrack would take hours."""
    for text in HOSTILE:
        began = time.thread_time()
        REDACT(text)
        assert time.thread_time() - began < 10, text[:30]


def test_own_patterns() -> None:
    redact = Redactor([r"\bproject-\w+", "(?i)acme"])
    assert redact("ACME runs project-zeus") == "[redacted] runs [redacted]"


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "[z-a]", "x*", "", "a|"])
def test_a_wrong_pattern_is_named(pattern: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(pattern))) as raised:
        Redactor(["fine", pattern])
    assert raised.value.param == "log.redact_patterns"


@pytest.mark.parametrize("secret", [TOKENS["openai"], JWT, PEM, "password=hunter2hunter2", "4111 1111 1111 1111"])
@pytest.mark.parametrize("before", [60, 90, 99, 100])
def test_no_cut_lets_a_part_of_a_secret_through(secret: str, before: int) -> None:
    text = "x" * (before - 1) + " " + secret + " and more" * 2000
    told = REDACT.shorten(text, 100)
    shown, _, rest = told.partition("...(+")
    assert re.fullmatch(r"[0-9]+ chars\)", rest)
    assert secret[9:17] not in told
    assert REDACT(text).startswith(shown)
    assert len(shown) == 100


def test_what_shrinks_lets_no_half_secret_in_from_behind() -> None:
    for tail in range(MARGIN - 60, MARGIN + 60):
        text = PEM + "y" * (100 + tail - len(PEM)) + TOKENS["openai"] * 3
        told = REDACT.shorten(text, 100)
        assert "sk-" not in told


def test_lengths_are_told() -> None:
    assert REDACT.shorten("z" * 100, 100) == "z" * 100
    assert REDACT.shorten("z" * 101, 100) == "z" * 100 + "...(+1 chars)"
    assert REDACT.shorten("z" * 1_000_000, 100) == "z" * 100 + "...(+999900 chars)"
    assert cut("abc", 2) == "ab...(+1 chars)"
    assert cut("abc", 3) == "abc"
