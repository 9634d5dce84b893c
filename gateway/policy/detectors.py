"""What the detectors look for: a table of patterns, each with the check that its hits must pass.

A pattern is RE2's syntax over UTF-8 bytes, so it needs no look-around and takes linear time. It
finds candidates; `check` decides, from the candidate and the bytes around it. What has no check
digit needs an unmistakable prefix or a word beside it: a net that cries wolf is switched off.

Sources of the key forms: the vendors' own documentation of their prefixes, and the public rules of
secret scanners for those that document none.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from gateway.domain import keys
from gateway.policy import checksums

Check = Callable[[bytes, int, int], bool]  # the whole text, where the candidate starts and ends


@dataclass(frozen=True, slots=True)
class Detector:
    """One kind of thing to look for. `patterns`: (RE2 pattern, check of a candidate)."""

    about: str
    patterns: tuple[tuple[str, Check], ...]


# --- numbers ------------------------------------------------------------------------------------

_GROUP = re.compile(rb"[0-9]+")
_LONG_GROUP = re.compile(rb"[0-9]{14,}")
_FOURS_MAX = 5  # more groups of four in a row are a table of numbers
_RUN_BYTES_MAX = 512  # as is anything longer
_LONG_GROUPS_MAX = 5_000


def _card(data: bytes, start: int, end: int) -> bool:
    """A run of digits in groups: one of them, four and more of four, or all of them if even."""
    for number, found in enumerate(_LONG_GROUP.finditer(data, start, end)):
        if number == _LONG_GROUPS_MAX:
            return True  # nobody can say
        if checksums.card(found[0].decode()) and not _decimals(data, *found.span()):
            return True
    if end - start > _RUN_BYTES_MAX:
        return False
    groups = [found.span() for found in _GROUP.finditer(data, start, end)]
    texts = [data[a:b].decode() for a, b in groups]
    fours: list[str] = []
    for text in [*texts, ""]:
        if len(text) == 4:
            fours.append(text)
            continue
        if 4 <= len(fours) <= _FOURS_MAX:
            tries = ["".join(fours[at : at + 4]) for at in range(len(fours) - 3)]
            if any(map(checksums.card, tries)) or checksums.card("".join(fours[-4:]) + text):
                return True
        fours = []
    between = {data[b:a] for (_, b), (a, _) in pairwise(groups)}
    sizes = [len(text) for text in texts]
    evenly = len(set(sizes[:-1])) == 1 and sizes[-1] <= sizes[0]
    in_fours = not any(size % 4 for size in sizes)
    if len(between) == 1 and (evenly or in_fours or sizes in ([4, 6, 5], [4, 6, 4])):
        return checksums.card("".join(texts))
    return False


def _decimals(data: bytes, start: int, end: int) -> bool:
    """Whether these digits are the fraction of a number, or have one."""
    before, after = data[max(start - 2, 0) : start], data[end : end + 2]
    return (before[-1:] == b"." and before[:1].isdigit()) or (
        after[:1] == b"." and after[1:].isdigit()
    )


def _iban(data: bytes, start: int, end: int) -> bool:
    """The candidate may have swallowed the next word: the country says how long an IBAN is."""
    left = checksums.IBAN_LENGTHS.get(data[start : start + 2].decode().upper(), 0)
    text, at = "", start
    while at < end and left:
        character = chr(data[at])
        if character.isalnum():
            text += character.upper()
            left -= 1
        at += 1
    ends = not data[at : at + 1].isalnum()
    return not left and ends and sum(c.isdigit() for c in text) >= 8 and checksums.iban(text)


def _plain(data: bytes, start: int, end: int) -> str:
    return re.sub(rb"[^0-9A-Za-z]", b"", data[start:end]).decode().upper()


def _whole(check: Callable[[str], bool], length: int) -> Check:
    """The last `length` letters and digits of the candidate; words before them are its reason."""

    def passes(data: bytes, start: int, end: int) -> bool:
        # A hyphen or a digit on either side: part of something longer.
        if re.match(rb"[-.]?[0-9A-Za-z]", data[end : end + 2]):
            return False
        if data[start : start + 1].isdigit() and data[start - 1 : start] in (b"-", b".", b"+"):
            return False
        text = _plain(data, start, end)[-length:]
        return len(text) == length and check(text)

    return passes


_COUNTRY_CODES = re.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|2[1-689][0-9]|3[578][0-9]|42[0-9]|50[0-9]|59[0-9]|6[789][0-9]|85[0-9]|88[0-9]|9[679][0-9]"
)


def _phone(data: bytes, start: int, end: int) -> bool:
    """ITU-T E.164: a country code and 8 to 15 digits in all; not a sum, not a line of a diff."""
    if data[start - 1 : start].isalnum() or data[start - 1 : start] in (b")", b"+", b"_"):
        return False
    if re.match(rb"[-.]?[0-9A-Za-z_]", data[end : end + 2]):
        return False
    digits = _plain(data, start, end)
    return (
        10 <= len(digits) <= 15
        and _COUNTRY_CODES.match(digits) is not None
        and len(set(digits)) > 2
    )


# --- addresses ----------------------------------------------------------------------------------

_NO_PEOPLE = re.compile(
    rb"(?i)(?:^|\.)(?:example|test|invalid|localhost|local|internal)(?:\.(?:com|net|org))?$"
)
_NO_DOMAIN = frozenset(
    b"png jpg jpeg gif svg webp ico css scss js jsx ts tsx mjs json html htm tar gz zip whl jar"
    b" lock toml yaml yml xml txt log cfg ini".split()
)


def _email(data: bytes, start: int, end: int) -> bool:
    """Not a reserved name (RFC 2606, 6761), not `git@host:path`, not a file's or package's name."""
    local, _, domain = data[start:end].rpartition(b"@")
    if domain.rpartition(b".")[2].lower() in _NO_DOMAIN or _NO_PEOPLE.search(domain):
        return False
    before = data[max(start - 7, 0) : start]
    if local == b"git" or local.endswith(b".") or before.endswith((b"/", b":")):
        return before.lower() == b"mailto:"
    return data[end : end + 1] != b":" or not data[end + 1 : end + 2].isalnum()


def _address(data: bytes, start: int, end: int) -> bool:
    """A public internet address: what is private says nothing of a person."""
    try:
        return ipaddress.ip_address(data[start:end].decode()).is_global
    except ValueError:
        return False


# --- secrets ------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(rb"(?i)example|your|placeholder|dummy|redacted|x{5}|\*{3}|\.\.\.|1234567")


def _secret(data: bytes, start: int, end: int) -> bool:
    """Neither a placeholder nor words: random characters mix kinds, and repeat little."""
    text = data[start:end]
    digits, upper = sum(48 <= c <= 57 for c in text), sum(65 <= c <= 90 for c in text)
    return (
        len(set(text)) >= min(12, len(text) // 2)
        and (digits >= 2 or upper >= 4)
        and not _PLACEHOLDER.search(text)
    )


# Line ends, perhaps escaped; quotes and pluses of a program; the heads of old PEM and of PGP.
_KEY_FOLLOWS = re.compile(
    rb"(?:\s|\\+[nr]|[\"'+]|[A-Z][A-Za-z-]+: [^\n\\]*(?:\n|\\+n))*[A-Za-z0-9+/=]{40}"
)


def _private_key(data: bytes, start: int, end: int) -> bool:  # noqa: ARG001
    """The line alone is in every program that reads keys; the key follows it at once."""
    return _KEY_FOLLOWS.match(data[end : end + 600]) is not None


def _weighbridge_key(data: bytes, start: int, end: int) -> bool:
    return keys.parse(data[start:end].decode()) is not None


def _jwt(data: bytes, start: int, end: int) -> bool:
    head = data[start:end].partition(b".")[0]
    try:
        return "alg" in json.loads(base64.urlsafe_b64decode(head + b"=" * (-len(head) % 4)))
    except (binascii.Error, ValueError, TypeError):
        return False


_NO_PASSWORDS = frozenset(
    b"password passwd pass pwd secret user username token changeme postgres root admin guest test"
    b" foo bar key".split()
)


def _url_credentials(data: bytes, start: int, end: int) -> bool:
    login = data[start:end].rpartition(b"@")[0].rpartition(b"//")[2]
    word = login.partition(b":")[2]
    return word.lower() not in _NO_PASSWORDS and not re.match(rb"[$<{%*\[]|x+$|\.+$", word)


# --- the table ----------------------------------------------------------------------------------

DETECTORS: Final[Mapping[str, Detector]] = {
    "card_number": Detector(
        "Payment card: issuer range, length, check digit.",
        ((r"(?:^|[^0-9])[234568](?:[ ._/-]{0,2}[0-9]){13,}", _card),),
    ),
    "iban": Detector(
        "Bank account: country, length, check digits.",
        ((r"(?i)\b[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?\b", _iban),),
    ),
    "us_ssn": Detector(
        "US social security number, written 3-2-4.",
        (
            (r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b", _whole(checksums.us_ssn, 9)),
            (
                r"(?i)\b(?:ssn|social security)[^0-9]{0,30}[0-9]{3} ?[0-9]{2} ?[0-9]{4}\b",
                _whole(checksums.us_ssn, 9),
            ),
        ),
    ),
    "uk_nino": Detector(
        "UK national insurance number.",
        (
            (
                r"(?i)\b[A-Z]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]\b",
                _whole(checksums.uk_nino, 9),
            ),
        ),
    ),
    "uk_nhs_number": Detector(
        "UK health service number, check digit; only beside the letters NHS.",
        (
            (
                r"(?i)\bnhs\b[^0-9]{0,30}[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{4}\b",
                _whole(checksums.uk_nhs, 10),
            ),
        ),
    ),
    "de_tax_id": Detector(
        "German tax identification number, check digit; in its groups, or beside its name.",
        (
            (r"\b[1-9][0-9] [0-9]{3} [0-9]{3} [0-9]{3}\b", _whole(checksums.de_tax_id, 11)),
            (
                r"(?i)\b(?:steuer|idnr|id-nr|tax.?id|tin\b)[^0-9]{0,30}[1-9](?: ?[0-9]){10}\b",
                _whole(checksums.de_tax_id, 11),
            ),
        ),
    ),
    "fr_nir": Detector(
        "French social security number, key.",
        (
            (
                r"\b[1-478] ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}\b",
                _whole(checksums.fr_nir, 15),
            ),
        ),
    ),
    "es_dni": Detector(
        "Spanish identity number of citizens and foreigners, check letter.",
        (
            (
                r"\b(?:[0-9]{8}|[XYZ]-?[0-9]{7})-?[A-HJ-NP-TV-Z]\b",
                _whole(lambda text: checksums.es_dni(text.lstrip("-")), 9),
            ),
        ),
    ),
    "it_fiscal_code": Detector(
        "Italian fiscal code, check letter.",
        (
            (
                r"(?i)\b[A-Z]{6}[0-9]{2}[ABCDEHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]\b",
                _whole(checksums.it_fiscal_code, 16),
            ),
        ),
    ),
    "email": Detector(
        "E-mail address; not those of reserved domains.",
        ((r"[0-9A-Za-z\x80-\xff._%+'-]+@(?:[0-9A-Za-z\x80-\xff-]+\.)+[A-Za-z]{2,}\b", _email),),
    ),
    "phone": Detector(
        "Telephone number in international form: + and the country code.",
        ((r"\+[1-9](?:[ ()./-]{0,3}[0-9]){7,16}", _phone),),
    ),
    "ip_address": Detector(
        "Public IPv4 or IPv6 address.",
        (
            (r"\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b", _address),
            (r"\b[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){2,7}\b", _address),
        ),
    ),
    "private_key": Detector(
        "Private key in PEM or PGP armour.",
        ((r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----", _private_key),),
    ),
    "cloud_key": Detector(
        "Access key of AWS, Google Cloud or Azure.",
        (
            (r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b", _secret),
            (r"(?i)aws.{0,20}secret[^\n]{0,20}[=: \"']{1,4}[A-Za-z0-9/+]{40}\b", _secret),
            (r"\bAIza[0-9A-Za-z_-]{35}", _secret),
            (r"\bGOCSPX-[0-9A-Za-z_-]{28}", _secret),
            (r"\bya29\.[0-9A-Za-z_-]{30,}", _secret),
            (r"\bAccountKey=[0-9A-Za-z+/]{86}==", _secret),
        ),
    ),
    "ai_key": Detector(
        "Key of a model vendor: OpenAI, Anthropic, OpenRouter, Hugging Face and their like.",
        (
            (r"\bsk-[0-9A-Za-z_-]{32,}", _secret),
            (r"\b(?:hf_|gsk_|xai-|pplx-|r8_|nvapi-)[0-9A-Za-z_-]{30,}", _secret),
        ),
    ),
    "code_host_key": Detector(
        "Token of GitHub, GitLab, npm or PyPI.",
        (
            (r"\b(?:gh[pousr]_[0-9A-Za-z]{36}|github_pat_[0-9A-Za-z_]{60,})", _secret),
            (r"\bglpat-[0-9A-Za-z_.-]{20,}", _secret),
            (r"\bnpm_[0-9A-Za-z]{36}\b", _secret),
            (r"\bpypi-AgE[0-9A-Za-z_-]{50,}", _secret),
        ),
    ),
    "chat_key": Detector(
        "Token or webhook of Slack.",
        (
            (r"\bxox[abeoprs]-[0-9A-Za-z-]{20,}", _secret),
            (r"\bxapp-[0-9]-[0-9A-Za-z-]{20,}", _secret),
            (r"hooks\.slack\.com/services/T[0-9A-Z]+/B[0-9A-Z]+/[0-9A-Za-z]{20,}", _secret),
        ),
    ),
    "payment_key": Detector(
        "Secret key of Stripe.",
        ((r"\b(?:[sr]k_(?:live|test)|whsec)_[0-9A-Za-z]{20,}", _secret),),
    ),
    "weighbridge_key": Detector(
        "A key of this gateway, check digits.",
        (
            (
                r"\bwb_[a-z]{2,8}_[0-9a-hjkmnp-tv-z]{12}_[0-9A-Za-z_-]{43}_[0-9A-Za-z]{6}",
                _weighbridge_key,
            ),
        ),
    ),
    "jwt": Detector(
        "Signed token (JSON Web Token) with a readable head.",
        ((r"\beyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{4,}\.[0-9A-Za-z_-]{16,}", _jwt),),
    ),
    "url_credentials": Detector(
        "Password in a URL or connection string.",
        (
            (
                r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'<>]*:[^\s/@\"'<>]{3,}@[0-9A-Za-z\[]",
                _url_credentials,
            ),
        ),
    ),
}
