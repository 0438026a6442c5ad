"""What is masked in texts: values that are known, in every form, and what gives itself away."""

from __future__ import annotations

import base64
import io
import json
import logging
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rl_isolation.describe import message_of, shown
from rl_secrets.redaction import (
    SHORTEST,
    MaskedText,
    copy_masked,
    forget_secrets,
    hide_known,
    hide_secrets,
    mask_known,
    mask_names,
    masked_error,
    redact,
    remember_secrets,
)

SECRETS = st.text(min_size=SHORTEST, max_size=60).filter(lambda text: len(text.strip("*").strip()) >= SHORTEST)
FORMS = {
    "as it is": lambda text: text,
    "in JSON": json.dumps,
    "in JSON with all characters": lambda text: json.dumps(text, ensure_ascii=False),
    "as Python shows it": repr,
    "in an address": lambda text: quote(text.encode("utf-8", "surrogatepass"), safe=""),
    "in a form": lambda text: quote_plus(text.encode("utf-8", "surrogatepass")),
}


@pytest.fixture(autouse=True)
def nothing_known():
    forget_secrets()


@pytest.mark.parametrize("form", FORMS)
@given(secret=SECRETS, before=st.text(max_size=20), after=st.text(max_size=20))
def test_no_form_of_a_known_secret_is_left_in_a_text(form, secret, before, after):
    forget_secrets()
    remember_secrets([secret])
    masked = hide_known(before + FORMS[form](secret) + after)
    assert secret not in masked
    assert FORMS[form](secret).strip("\"'") not in masked
    assert "***" in masked


@given(secret=st.binary(min_size=9, max_size=40), offset=st.integers(0, 5), urlsafe=st.booleans())
def test_base64_of_a_known_secret_is_masked_wherever_it_begins(secret, offset, urlsafe):
    """As in ``Authorization: Basic``, which encodes the user's name before the password."""
    text = secret.hex()
    forget_secrets()
    remember_secrets([text])
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    encoded = encode(b"u" * offset + text.encode() + b":x").decode()
    masked = hide_known(f"Basic {encoded}")
    left = masked.removeprefix("Basic ").split("***")
    assert len(left) == 2
    assert all(len(part) <= 4 * (offset + 3) / 3 + 2 for part in left)  # at most what is not the secret's


@given(secrets=st.lists(SECRETS, min_size=2, max_size=4), glue=st.text(alphabet="*ab", max_size=3))
def test_secrets_that_touch_or_hold_one_another_are_all_masked(secrets, glue):
    forget_secrets()
    remember_secrets([*secrets, secrets[0] + secrets[1][:2]])
    masked = hide_known(glue.join(secrets) + secrets[0][:-1] + secrets[1])
    assert [secret for secret in secrets if secret in masked] == []


@given(text=st.text(), secret=SECRETS)
def test_a_text_without_the_secret_is_unchanged(text, secret):
    forget_secrets()
    remember_secrets([secret])
    assume(not any(len(part) >= SHORTEST and part in text for part in (secret, secret.strip())))
    assume("\\" not in text and "%" not in text and "+" not in text)
    assert hide_known(text) == text


ORDINARY = [
    "step 4/200  loss 0.1234  tokens/s 12.3k",
    "max_new_tokens=512 pad_token='<pad>' eos_token: <eos> stop_token_ids=[1, 2]",
    "loggers.0.api_key: a secret is typed into the config\n    write api_key: ${secret:NAME} or ${env:NAME}",
    "loggers.0.headers.Authorization: needs the key 'x'",
    "    client = Client(api_key=config.api_key, token=self.token)",
    "see https://docs.example.org/a/b?page=2&lang=en#top and s3://bucket/model-7b@main",
    "ssh://git@github.com/org/repo.git at 127.0.0.1:8080",
    "meta-llama/Llama-3.1-8B-Instruct at revision main, from /data/models/qwen2.5-0.5b",
    "Basic training failed: Bearer authentication is needed",
    "token: missing, password: None, secret=True, api_key=null",
    "Token indices sequence length is longer than the specified maximum (600 > 512)",
    "KeyError: 'token' in {'tokens': [1, 2, 3], 'token': 5}",
    "rank 0: built rl_backend_fsdp2.backend:Fsdp2Backend (rank 0 of 2), pid 4242 on node-3",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_texts_are_unchanged(text):
    assert hide_secrets(text) == text


@given(st.lists(st.sampled_from(ORDINARY)).map(" ".join))
def test_ordinary_texts_are_unchanged_together(text):
    assert hide_secrets(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://tok3n@host/x", "https://***@host/x"),
        ("https://me:p@ss@host/x", "https://me:***@host/x"),
        ("https://tok3n:x-oauth-basic@github.com", "https://***:***@github.com"),
        ("redis://:hunter2@host", "redis://:***@host"),
        ("GET /v1?x=1&api_key=hunter2&y=2", "GET /v1?x=1&api_key=***&y=2"),
        ("https://h/x?X-Amz-Signature=abc123&v=1", "https://h/x?X-Amz-Signature=***&v=1"),
        ("{'Authorization': 'Bearer abc123def456'}", "{'Authorization': 'Bearer ***'}"),
        ("curl -H 'authorization: Basic dXNlcjpwYXNz'", "curl -H 'authorization: Basic ***'"),
        ("tool --api-key hunter22 --verbose", "tool --api-key *** --verbose"),
        ("tool --password=hunter22", "tool --password=***"),
        ('{"client_secret": "hunter22", "n": 1}', '{"client_secret": "***", "n": 1}'),
        ("api_key='hunter22' and passphrase = \"a b c d\"", "api_key='***' and passphrase = \"***\""),
        ("using hf_AbCdEfGhIjKlMnOpQr now", "using *** now"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----", None),
        (
            "https://${env:ME}:${env:PASSWORD}@host/?token=${secret:X}",
            "https://${env:ME}:${env:PASSWORD}@host/?token=${secret:X}",
        ),
    ],
)
def test_secrets_that_nobody_told_of_are_masked_by_their_form(text, masked):
    if masked is None:
        masked = "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----"
    assert hide_secrets(text) == masked


LONG = [
    "\n",
    "a.",
    "eyJ-",
    "x://",
    "a=",
    "a='",
    '"a":"',
    "-----BEGIN PRIVATE KEY-----",
    "--a ",
    "Bearer ",
    "?a=",
    "${",
    " ",
]


@pytest.mark.parametrize("part", LONG)
def test_long_texts_of_any_form_are_masked_in_seconds(part):
    """What a model wrote may stand in a message."""
    text = part * (200_000 // len(part)) + "\ntoken=hunter22"
    started = time.process_time()
    assert "hunter22" not in hide_secrets(text)
    assert time.process_time() - started < 2


def test_a_key_of_several_lines_is_masked_line_by_line():
    remember_secrets(["-----BEGIN PRIVATE KEY-----\nMIIEvplantedKey0123456789\nabcdefPlantedKeyLine2==\n"])
    assert hide_known("a: MIIEvplantedKey0123456789\nb: abcdefPlantedKeyLine2==") == "a: ***\nb: ***"


def test_values_of_plain_data_are_masked_by_the_name_beside_them():
    document = {
        "headers": [{"name": "Authorization", "value": "hunter22"}, {"name": "Accept", "value": "json"}],
        "command": ["serve", "--api-key", "hunter22", "--port", "80"],
        "password": 123456,
        "tokens": ["<think>", "hunter22"],
        "run": {"secrets": {"HUB_TOKEN": {"file": "/a/b", "keyring": "service"}}},
    }
    assert redact(document) == {
        "headers": [{"name": "Authorization", "value": "***"}, {"name": "Accept", "value": "json"}],
        "command": ["serve", "--api-key", "***", "--port", "80"],
        "password": "***",
        "tokens": ["<think>", "***"],
        "run": {"secrets": {"HUB_TOKEN": {"file": "/a/b", "keyring": "service"}}},
    }


def test_rows_are_masked_and_keep_their_types():
    remember_secrets(["hunter22"])
    assert mask_known({"a": "x hunter22", "b": [1, None, ("hunter22",)]}) == {"a": "x ***", "b": [1, None, ["***"]]}


class OddError(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)


class SilentError(Exception):
    def __str__(self):
        return "hunter22 is wrong"


def test_an_error_is_given_to_plugins_without_the_secret():
    remember_secrets(["hunter22"])
    try:
        try:
            raise KeyError("hunter22")
        except KeyError as cause:
            raise OddError(401, "not hunter22") from cause
    except OddError as error:
        masked = masked_error(error)
    assert (type(masked), masked.args) == (OddError, (401, "not ***"))
    assert masked.__traceback__ is not None
    assert masked.__cause__.args == ("***",)
    assert str(masked_error(SilentError())) == "SilentError: *** is wrong"
    plain = ValueError("nothing")
    assert masked_error(plain) is plain


LONG = "eyJhbGciOiJub25lIn0." + "Qm9keVBsYW50ZWQx" * 20 + ".c2lnbmF0dXJlUGxhbnRlZA"


def in_a_table(text):
    shown = io.StringIO()
    table = Table()
    table.add_column("detail", overflow="fold")
    table.add_row(text)
    Console(file=shown, width=40).print(table)
    return shown.getvalue()


@pytest.mark.parametrize(
    ("written", "masked"),
    [
        (message_of(ValueError("x" * 1985 + LONG)), "x" * 1985 + "***…"),
        (shown(KeyError(f"Bearer {LONG}")), "KeyError('Bearer ***...***')"),
        (f"401: {LONG[:12]}\n", "401: ***\n"),
        (f"{LONG[-12:]} is refused", "*** is refused"),
        (f"401: {LONG[:12]} and {LONG[5:17]} and x{LONG[-12:]}", None),
        (f"401: {LONG[:9]}…", None),
    ],
)
def test_the_beginning_and_the_end_of_a_secret_are_masked_where_it_was_cut(written, masked):
    remember_secrets([LONG])
    assert hide_known(written) == (written if masked is None else masked)


def test_a_secret_that_a_table_breaks_into_two_lines_is_masked():
    secret = "pL4ntedSecretOf-50-characters-that-no-line-has-room"
    remember_secrets([secret])
    assert secret[-10:] in in_a_table(secret)
    assert hide_known(in_a_table(secret)).count("***") == 2


@pytest.mark.parametrize("form", [repr, ascii, lambda text: repr(text.encode()), str])
def test_a_password_of_an_address_is_masked_decoded_too(form):
    remember_secrets([quote("pä/ss w@rd", safe="")])
    masked = hide_known(f"login {form('pä/ss w@rd')} failed")
    assert masked.replace("b'", "'").replace("'", "") == "login *** failed"


def test_notes_groups_and_all_causes_of_errors_are_masked():
    remember_secrets(["hunter22"])
    error = ValueError("a")
    error.add_note("for hunter22")
    error.__cause__, error.__context__ = KeyError("b"), OSError("hunter22")
    masked = masked_error(error)
    assert (type(masked), masked.__notes__, masked.__context__.args) == (ValueError, ["for ***"], ("***",))
    assert error.__notes__ == ["for hunter22"]
    assert "hunter22" not in repr(masked_error(ExceptionGroup("two", [error, ValueError("hunter22")])))


def test_names_of_metrics_are_masked():
    remember_secrets(["hunter22"])
    metrics = {"train/loss": 1.0, "rollout/hunter22": 2.0}
    assert mask_names(metrics) == {"train/loss": 1.0, "rollout/***": 2.0}
    assert mask_known({"hunter22": ["hunter22"]}) == {"***": ["***"]}


def test_streams_and_copies_of_files_are_masked():
    remember_secrets(["hunter22"])
    raw = io.BytesIO()
    stream = MaskedText(raw, encoding="utf-8", write_through=True)
    print("a hunter22 b", file=stream)
    logging.StreamHandler(stream).emit(logging.LogRecord("x", 30, "", 1, "c %s", ("hunter22",), None))
    assert raw.getvalue() == b"a *** b\nc ***\n"
    copied = io.BytesIO()
    copy_masked(io.BytesIO(b"x hunter22\r\n\xff\xfe hunter22"), copied)
    assert copied.getvalue() == b"x ***\r\n\xff\xfe ***"
