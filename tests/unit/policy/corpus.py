"""Synthetic text for the detectors, made from a seed: nothing in here belongs to anybody.

`findable(name, number)` gives texts that hold one thing that the detector must find, in the forms
people write it; `clean(number)` code, prose and data that look alike and hold none. `disguised()`
is how one hides a card number: what is found, and what is known to slip through.
"""

from __future__ import annotations

import base64
import json
import random
import string
import uuid
from collections.abc import Callable, Iterator

from gateway.domain import keys
from gateway.policy import checksums

Random = random.Random


def findable(name: str, number: int, seed: int = 7) -> Iterator[str]:
    rnd = Random(f"{name} {seed}")
    for _ in range(number):
        yield rnd.choice(CARRIERS)(MAKERS[name](rnd), rnd)


def _digits(rnd: Random, number: int) -> str:
    return "".join(rnd.choice(string.digits) for _ in range(number))


def _alnum(rnd: Random, number: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(rnd.choice(alphabet) for _ in range(number))


def _until(check: Callable[[str], bool], make: Callable[[], str]) -> str:
    while not check(text := make()):
        pass
    return text


def _grouped(text: str, rnd: Random, *sizes: int, gaps: str = " -") -> str:
    gap, out = rnd.choice(gaps), []
    for size in sizes:
        out.append(text[:size])
        text = text[size:]
    return gap.join([*out, text] if text else out)


# --- what must be found -------------------------------------------------------------------------

_STARTS = ("4", "51", "55", "2221", "2720", "34", "37", "6011", "65", "3530", "36", "62", "2200")


def _card(rnd: Random) -> str:
    start = rnd.choice(_STARTS)
    length = {"34": 15, "37": 15, "36": 14}.get(start, 16)
    text = _until(checksums.card, lambda: start + _digits(rnd, length - len(start)))
    if rnd.random() < 0.4:
        return text
    return _grouped(text, rnd, *((4, 6) if length < 16 else (4, 4, 4)))


def _iban(rnd: Random) -> str:
    country = rnd.choice(("DE", "AT", "FR", "GB", "NL", "ES", "IT", "CH", "NO", "PL", "BE", "SE"))
    size = checksums.IBAN_LENGTHS[country] - 4
    body = _digits(rnd, size)
    if country in ("GB", "NL"):
        body = _alnum(rnd, 4, string.ascii_uppercase) + body[4:]
    rest = int("".join(str(int(c, 36)) for c in body + country)) * 100 % 97
    text = f"{country}{98 - rest:02}{body}"
    assert checksums.iban(text)
    if rnd.random() < 0.5:
        text = " ".join(text[at : at + 4] for at in range(0, len(text), 4))
    return text.lower() if rnd.random() < 0.1 else text


def _email(rnd: Random) -> str:
    name = rnd.choice(("anna", "b.meier", "o'neil", "x+shop", "max_m", "jürgen", "c-d"))
    host = rnd.choice(("firma", "mail.uni-ulm", "acme", "sub.shop-24", "müller"))
    return f"{name}{rnd.randrange(100)}@{host}.{rnd.choice(('de', 'com', 'co.uk', 'io', 'museum'))}"


def _phone(rnd: Random) -> str:
    code, size = rnd.choice((("49", 10), ("44", 10), ("1", 10), ("33", 9), ("353", 9), ("420", 9)))
    body = _until(lambda t: t[0] != "0" and len(set(t)) > 2, lambda: _digits(rnd, size))
    if rnd.random() < 0.3:
        return f"+{code}{body}"
    return f"+{code} " + _grouped(body, rnd, 3, 3, gaps=" -.")


def _ssn(rnd: Random) -> str:
    return _grouped(_until(checksums.us_ssn, lambda: _digits(rnd, 9)), rnd, 3, 2, gaps="-")


def _nino(rnd: Random) -> str:
    letters = string.ascii_uppercase
    text = _until(
        checksums.uk_nino,
        lambda: _alnum(rnd, 2, letters) + _digits(rnd, 6) + rnd.choice("ABCD"),
    )
    return text if rnd.random() < 0.5 else _grouped(text, rnd, 2, 2, 2, 2, gaps=" ")


def _nhs(rnd: Random) -> str:
    text = _until(checksums.uk_nhs, lambda: _digits(rnd, 10))
    return rnd.choice(("NHS number ", "NHS: ", "nhs no. ")) + _grouped(text, rnd, 3, 3)


def _tax_id(rnd: Random) -> str:
    text = _until(checksums.de_tax_id, lambda: _digits(rnd, 11))
    if rnd.random() < 0.5:
        return _grouped(text, rnd, 2, 3, 3, gaps=" ")
    return rnd.choice(("Steuer-ID: ", "IdNr. ", "Steueridentifikationsnummer ")) + text


def _nir(rnd: Random) -> str:
    month, department = rnd.randrange(1, 13), rnd.choice(("75", "2A", "2B", "13", "59"))
    body = f"{rnd.choice('12')}{_digits(rnd, 2)}{month:02}{department}{_digits(rnd, 6)}"
    number = int(body.replace("2A", "19").replace("2B", "18"))
    text = f"{body}{97 - number % 97:02}"
    return text if rnd.random() < 0.5 else _grouped(text, rnd, 1, 2, 2, 2, 3, 3, gaps=" ")


def _dni(rnd: Random) -> str:
    letters = "TRWAGMYFPDXBNJZSQVHLCKE"
    text = rnd.choice("XYZ0123456789") + _digits(rnd, 7)
    return _until(checksums.es_dni, lambda: text + rnd.choice(letters))


def _fiscal_code(rnd: Random) -> str:
    def make() -> str:
        upper = string.ascii_uppercase
        day = f"{_digits(rnd, 2)}{rnd.choice('ABCDEHLMPRST')}{rnd.randrange(1, 32):02}"
        return (
            _alnum(rnd, 6, upper)
            + day
            + _alnum(rnd, 1, upper)
            + _digits(rnd, 3)
            + rnd.choice(upper)
        )

    return _until(checksums.it_fiscal_code, make)


def _address(rnd: Random) -> str:
    if rnd.random() < 0.3:
        return f"2a00:1450:4001:{rnd.randrange(16, 65536):x}::{rnd.randrange(16, 65536):x}"
    return f"{rnd.choice((8, 52, 93, 185))}.{rnd.randrange(256)}.{rnd.randrange(256)}.{rnd.randrange(256)}"


def _private_key(rnd: Random) -> str:
    kind = rnd.choice(("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "))
    body = base64.b64encode(rnd.randbytes(300)).decode()
    newline = rnd.choice(("\n", "\\n"))
    lines = newline.join(body[at : at + 64] for at in range(0, len(body), 64))
    return (
        f"-----BEGIN {kind}PRIVATE KEY-----{newline}{lines}{newline}-----END {kind}PRIVATE KEY-----"
    )


def _shapes(*shapes: tuple[str, int]) -> Callable[[Random], str]:
    def make(rnd: Random) -> str:
        prefix, size = rnd.choice(shapes)
        return prefix + _until(lambda t: sum(map(str.isdigit, t)) > 1, lambda: _alnum(rnd, size))

    return make


def _cloud_key(rnd: Random) -> str:
    if rnd.random() < 0.4:
        letters = string.ascii_uppercase + "234567"
        digits = lambda t: sum(map(str.isdigit, t)) > 1  # noqa: E731
        return rnd.choice(("AKIA", "ASIA")) + _until(digits, lambda: _alnum(rnd, 16, letters))
    if rnd.random() < 0.3:
        return f"aws_secret_access_key = {_alnum(rnd, 40)}"
    return _shapes(("AIza", 35), ("GOCSPX-", 28), ("ya29.", 60))(rnd)


def _weighbridge_key(rnd: Random) -> str:
    return str(keys.mint("live", id_entropy=rnd.randbytes(8), secret_entropy=rnd.randbytes(32)))


def _jwt(rnd: Random) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    head = {"alg": rnd.choice(("HS256", "RS256", "ES256")), "typ": "JWT"}
    return f"{part(head)}.{part({'sub': _digits(rnd, 8)})}.{_alnum(rnd, 43)}"


def _url_credentials(rnd: Random) -> str:
    scheme = rnd.choice(("postgres", "redis", "amqp", "mongodb+srv", "https"))
    user = rnd.choice(("app", "svc_" + _alnum(rnd, 4), ""))
    return f"{scheme}://{user}:{_alnum(rnd, 14)}@db-{rnd.randrange(9)}.firma.de:5432/main"


MAKERS: dict[str, Callable[[Random], str]] = {
    "card_number": _card,
    "iban": _iban,
    "us_ssn": _ssn,
    "uk_nino": _nino,
    "uk_nhs_number": _nhs,
    "de_tax_id": _tax_id,
    "fr_nir": _nir,
    "es_dni": _dni,
    "it_fiscal_code": _fiscal_code,
    "email": _email,
    "phone": _phone,
    "ip_address": _address,
    "private_key": _private_key,
    "cloud_key": _cloud_key,
    "ai_key": _shapes(("sk-", 48), ("sk-proj-", 64), ("sk-ant-api03-", 93), ("hf_", 34), ("gsk_", 52)),
    "code_host_key": _shapes(("ghp_", 36), ("gho_", 36), ("github_pat_", 82), ("glpat-", 20), ("npm_", 36)),
    "chat_key": _shapes(("xoxb-", 50), ("xoxp-", 60), ("https://hooks.slack.com/services/T0AB12/B0CD34/", 24)),
    "payment_key": _shapes(("sk_live_", 24), ("rk_live_", 99), ("sk_test_", 24), ("whsec_", 32)),
    "weighbridge_key": _weighbridge_key,
    "jwt": _jwt,
    "url_credentials": _url_credentials,
}  # fmt: skip

CARRIERS: tuple[Callable[[str, Random], str], ...] = (
    lambda it, _: it,
    lambda it, _: f"Please book it on {it}, thank you.",
    lambda it, _: f"Bitte überweisen Sie – wie besprochen – an {it}.",
    lambda it, _: json.dumps({"note": f"see {it}", "n": 3}),
    lambda it, _: json.dumps({"arguments": json.dumps({"value": it})}, ensure_ascii=False),
    lambda it, rnd: (
        f"{rnd.randrange(99)};{it};open;2026-11-{rnd.randrange(1, 28):02}\n1;none;closed;"
    ),
    lambda it, _: f'client.send(value="{it}", retry=3)  # prod',
    lambda it, rnd: "lorem ipsum dolor " * rnd.randrange(1, 60) + f"[{it}]",
    lambda it, _: f"<td>{it}</td>",
    lambda it, _: f"VALUE={it}\nOTHER=1",
)


# --- what must not be found ---------------------------------------------------------------------


def _no_card(rnd: Random) -> str:
    text = _until(lambda t: not checksums.luhn(t), lambda: "4" + _digits(rnd, 15))
    return text if rnd.random() < 0.5 else _grouped(text, rnd, 4, 4, 4)


def _table(rnd: Random) -> str:
    return "\n".join(
        " ".join(str(rnd.randrange(1000, 9999)) for _ in range(12))
        for _ in range(rnd.randrange(2, 9))
    )


def _floats(rnd: Random) -> str:
    return json.dumps([rnd.gauss(0, 1) for _ in range(rnd.randrange(5, 40))])


CLEAN: tuple[Callable[[Random], str], ...] = (
    lambda rnd: f"order {_no_card(rnd)} was shipped",
    _table,
    _floats,
    lambda rnd: f"commit {rnd.randbytes(20).hex()} by git@github.com:acme/app.git",
    lambda rnd: f"id: {uuid.UUID(bytes=rnd.randbytes(16))}",
    lambda rnd: f"{1_700_000_000_000_000_000 + rnd.randrange(10**17)} INFO started in {rnd.randrange(999)} ms",
    lambda rnd: f"2026-11-{rnd.randrange(1, 28):02}T10:30:{rnd.randrange(10, 60)}.{_digits(rnd, 6)}Z +0100",
    lambda rnd: base64.b64encode(rnd.randbytes(200)).decode(),
    lambda rnd: f"docker pull registry.local/app@sha256:{rnd.randbytes(32).hex()}",
    lambda rnd: f"npm install @types/node@{rnd.randrange(9)}.{rnd.randrange(99)}.1 react@19.{rnd.randrange(9)}",
    lambda rnd: f"@property\ndef total(self): return self.rows[{rnd.randrange(99)}] * 0x{rnd.randbytes(8).hex()}",
    lambda rnd: f"postgres://user:password@localhost:5432/{_alnum(rnd, 5)} or ${{USER}}:${{PASS}}@host",
    lambda rnd: f"OPENAI_API_KEY=sk-your-key-here-{'x' * rnd.randrange(8, 40)}",
    lambda rnd: "if line.startswith('-----BEGIN RSA PRIVATE KEY-----'): load(line)",
    lambda rnd: f"mail someone@example.com or admin@localhost about ticket {_digits(rnd, 7)}",
    lambda rnd: f"ISBN 978-3-{_digits(rnd, 3)}-{_digits(rnd, 5)}-{rnd.randrange(10)}, tracking {_digits(rnd, 12)}",
    lambda rnd: f"call 555-{_digits(rnd, 4)}; x = a +{rnd.randrange(10**6)}; y+{rnd.randrange(10**5)}",
    lambda rnd: f"192.168.{rnd.randrange(255)}.{rnd.randrange(255)} -> 10.0.0.{rnd.randrange(255)} v1.2.{_digits(rnd, 2)}",
    lambda rnd: f".sk-loading-spinner-with-{_alnum(rnd, 8, string.ascii_lowercase)}-in-the-middle {{ top: 1px }}",
    lambda rnd: f"EAN 40{_digits(rnd, 11)} qty {rnd.randrange(99)} price {rnd.randrange(999)}.{_digits(rnd, 2)}",
    lambda rnd: f"Der Vertrag Nr. {_digits(rnd, 8)} vom {rnd.randrange(1, 28)}.11.2026 läuft über 1.{_digits(rnd, 3)}.000 €.",
    lambda rnd: "Погода сегодня хорошая, а в 2026 году будет ещё лучше. 今日は2026年です。",
)  # fmt: skip


def clean(number: int, seed: int = 11) -> Iterator[str]:
    rnd = Random(seed)
    for _ in range(number):
        yield "\n".join(rnd.choice(CLEAN)(rnd) for _ in range(rnd.randrange(1, 4)))


# --- hiding -------------------------------------------------------------------------------------

CARD = "4539 1488 0343 6467"  # made up; it satisfies the check digit
_BARE = CARD.replace(" ", "")

FOUND: dict[str, object] = {
    "full-width digits": CARD.translate({48 + n: 0xFF10 + n for n in range(10)}),
    "mathematical digits": CARD.translate({48 + n: 0x1D7CE + n for n in range(10)}),
    "Arabic digits": CARD.translate({48 + n: 0x660 + n for n in range(10)}),
    "circled digits": _BARE.translate({48: 0x24EA} | {48 + n: 0x245F + n for n in range(1, 10)}),
    "zero-width spaces": "\u200b".join(CARD),
    "soft hyphens and joiners": "\u00ad\u2060".join(_BARE),
    "Cyrillic letters for digits": CARD.replace("0", "О").replace("3", "З"),
    "no-break spaces": CARD.replace(" ", "\u00a0"),
    "thin spaces": CARD.replace(" ", "\u2009"),
    "dashes": CARD.replace(" ", "–"),
    "dots": CARD.replace(" ", "."),
    "a space after each digit": " ".join(_BARE),
    "pairs": " ".join(_BARE[at : at + 2] for at in range(0, 16, 2)),
    "two halves": f"{_BARE[:8]} {_BARE[8:]}",
    "JSON escapes": "".join(f"\\u00{ord(c):02x}" for c in CARD),
    "amid letters": f"karte{_BARE}danke",
    "behind another number": f"2026 {CARD}",
    "split over parts": [{"type": "text", "text": t} for t in (CARD[:6], CARD[6:11], CARD[11:])],
}
"""Content of a message in which the card number is found."""

MISSED: dict[str, object] = {
    "base64": base64.b64encode(CARD.encode()).decode(),
    "hexadecimal": CARD.encode().hex(),
    "percent-encoding": "".join(f"%{ord(c):02X}" for c in CARD),
    "HTML entities": "".join(f"&#{ord(c)};" for c in CARD),
    "backwards": CARD[::-1],
    "in words": "four five three nine, one four eight eight, zero three four three, six four six seven",
    "uneven groups": "4539148 8034 36467",
    "a letter between digits": "x".join(_BARE),
    "capital O for zero": CARD.replace("0", "O"),
    "as a fraction": f"0.{_BARE}",
    "in a table of numbers": f"1111 2222 3333 {CARD} 4444 5555",
    "one line each": "\n".join(CARD.split()),
    "split behind another digit": [
        {"type": "text", "text": text} for text in ("ref. 77", CARD[:6], CARD[6:])
    ],
    "in a picture": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
}
"""What is known to slip through; the floor of a key or an alias is the answer to all of it."""
