"""Names of secrets, and texts that look like one."""

from __future__ import annotations

import functools
import os
import re

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")
_SECRET = re.compile(
    r"(^|_)(secrets?|passwords?|passwd|pass_?phrases?|api_?keys?|access_?keys?|private_?keys?|signing_?keys?"
    r"|encryption_?keys?|account_?keys?|shared_?keys?|deploy_?keys?|ssh_?keys?|master_?keys?|authorization|bearer"
    r"|credentials?|cookies?|webhook_?urls?|sas_?tokens?)(_|$)"
)
_NUMERIC = re.compile(r"(^|_)(secrets?|passwords?|passwd|pass_?phrases?)(_|$)")
_ABOUT_ONE = re.compile(
    r"files?|path|dir|folder|env|var|variable|names?|ids?|count|length|limit|size|type|field|column|ur[li]|ttl|timeout"
)
"""Last words of names that tell where a secret is, or something about it: ``token_file``, ``api_key_env``."""
_TOKENS_OF_TEXT = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "stop", "end", "start", "special", "image", "new"}
_TOKENS_OF_SERVICES = re.compile(
    r"access|api|auth|bearer|bot|csrf|deploy|github|gitlab|hf|hub|id|jwt|oauth|personal|refresh|secret|security|service"
    r"|session|slack|user"
)
_PUBLIC_KEYS = {"PUBLIC", "GPG", "PUB", "SORT", "PRIMARY", "FOREIGN", "CACHE", "HOST"}
_SPECIAL_TOKEN = re.compile(r"<[^<>]*>|\[[A-Za-z_ ]+\]|<\|.*\|>|</?\w+>")

KNOWN_FORM = re.compile(
    r"(?<![\w-])(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    r"|glpat-[A-Za-z0-9_-]{16,}|xox[abeoprs]-[A-Za-z0-9-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}"
    r"|ya29\.[A-Za-z0-9_-]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{30,}|dop_v1_[a-f0-9]{40,}"
    r"|nvapi-[A-Za-z0-9_-]{20,}|r8_[A-Za-z0-9]{30,}|gsk_[A-Za-z0-9]{20,}|wandb_v\d_[A-Za-z0-9_]{16,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)"
)
"""Keys and tokens that their issuers mark: Hugging Face, OpenAI, Anthropic, GitHub, AWS, Google, JWT and others."""

_RUN = re.compile(r"[A-Za-z0-9+/_-]{20,}")
_UUID = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CHANGES = re.compile(r"(?<=[a-z])[^a-z]|(?<=[A-Z])[^A-Z]|(?<=[0-9])[^0-9]")
_SHARE_OF_CHANGES = 0.3
"""Between lower case, upper case and digits: random hex has 0.47 a character, base64 0.6, names of models 0.2."""


@functools.lru_cache(4096)
def is_secret(key: str) -> bool:
    """Whether a key (or an environment variable) by this name holds a secret.

    True for names with words such as ``password``, ``secret``, ``api_key``, ``authorization`` or ``private_key``, and
    for those that end in ``token``. A tokenizer's ``pad_token`` and counts such as ``max_new_tokens`` are none, nor
    are names that tell where a secret is: ``token_file``, ``api_key_env``.
    """
    words = [word.lower() for word in _WORDS.findall(key)]
    if not words:
        return False
    joined = "_".join(words)
    if re.search(r"(^|_)webhook_urls?$", joined):
        return True
    if len(words) > 1 and _ABOUT_ONE.fullmatch(words[-1]):
        return False
    if _SECRET.search(joined) or (words[-1] in ("pwd", "pw") and len(words) > 1):
        return True
    if words[-1] == "token":
        return len(words) == 1 or words[-2] not in _TOKENS_OF_TEXT
    return words[-1] == "tokens" and (len(words) == 1 or _TOKENS_OF_SERVICES.fullmatch(words[-2]) is not None)


@functools.lru_cache(4096)
def is_secret_variable(name: str) -> bool:
    """Whether an environment variable by this name holds a secret: also ``OPENAI_KEY``, as keys of configs do not."""
    words = name.upper().split("_")
    return is_secret(name) or (words[-1] == "KEY" and len(words) > 1 and words[-2] not in _PUBLIC_KEYS)


def holds_secret(key: str, value: object) -> bool:
    """Whether ``value``, found under the secret name ``key``, is one: text, and numbers where it is a password.

    Special tokens of a tokenizer (``<think>``) and paths of files that exist are none.
    """
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return _NUMERIC.search("_".join(w.lower() for w in _WORDS.findall(key))) is not None
    return isinstance(value, str) and bool(value) and not _SPECIAL_TOKEN.fullmatch(value) and not is_path(value)


def is_path(text: str) -> bool:
    """Whether ``text`` is the absolute path of something that exists."""
    try:
        return text.startswith("/") and os.path.exists(text)
    except ValueError:  # a NUL character
        return False


def looks_like_credential(text: str) -> bool:
    """Whether a text of no known meaning is probably a credential: of a known form, or 20 random characters or more."""
    if KNOWN_FORM.search(text) or "PRIVATE KEY-----" in text:
        return True
    return not is_path(text) and any(_is_random(run) for run in _RUN.findall(_UUID.sub("", text)))


def _is_random(text: str) -> bool:
    plain = re.sub(r"[^A-Za-z0-9]", "", text)
    mixed = any(c.isdigit() for c in plain) and any(c.isalpha() for c in plain)
    return mixed and len(_CHANGES.findall(plain)) >= _SHARE_OF_CHANGES * len(plain)
