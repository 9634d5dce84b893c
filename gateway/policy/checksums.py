"""Check digits and shapes of identifiers: what tells a card number from sixteen digits. Pure.

Each function takes the identifier without separators (upper-case where it has letters) and says
whether it may be one. Sources: ISO/IEC 7812-1 and 7064, ISO 13616 (IBAN) and the IBAN registry,
and the issuing authority's published rule, named where it stands.
"""

from __future__ import annotations

from typing import Final

# --- payment ------------------------------------------------------------------------------------

_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
# (from, to, digits of these bounds, lengths): the ranges that are issued.
_ISSUERS: Final = (
    (4, 4, 1, frozenset({16, 19})),  # Visa; the 13 digits of old are those of bar codes now
    (51, 55, 2, frozenset({16})),  # Mastercard
    (2221, 2720, 4, frozenset({16})),
    (34, 34, 2, frozenset({15})),  # American Express
    (37, 37, 2, frozenset({15})),
    (6011, 6011, 4, frozenset({16, 17, 18, 19})),  # Discover
    (644, 659, 3, frozenset({16, 17, 18, 19})),
    (3528, 3589, 4, frozenset({16, 17, 18, 19})),  # JCB
    (36, 36, 2, frozenset({14, 16, 19})),  # Diners Club
    (300, 305, 3, frozenset({14, 16, 19})),
    (38, 39, 2, frozenset({14, 16, 19})),
    (62, 62, 2, frozenset({16, 17, 18, 19})),  # UnionPay
    (81, 82, 2, frozenset({16})),  # RuPay
    (508, 508, 3, frozenset({16})),
    (2200, 2204, 4, frozenset({16, 17, 18, 19})),  # Mir
    (50, 50, 2, frozenset({16, 18, 19})),  # Maestro
    (56, 58, 2, frozenset({16, 18, 19})),
    (6304, 6304, 4, frozenset({16, 18, 19})),
    (6759, 6763, 4, frozenset({16, 18, 19})),
)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = 0
    for at, character in enumerate(reversed(digits)):
        number = ord(character) - 48
        total += _DOUBLED[number] if at & 1 else number
    return total % 10 == 0


def card(digits: str) -> bool:
    """14 to 19 digits of an issuer's range, with the right check digit."""
    if not 14 <= len(digits) <= 19 or digits[0] not in "234568":
        return False
    lead = int(digits[:4])
    for low, high, width, lengths in _ISSUERS:
        if low <= lead // 10 ** (4 - width) <= high and len(digits) in lengths:
            return luhn(digits)
    return False


_LENGTHS: Final = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
    "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
    "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
    "MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
    "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
IBAN_LENGTHS: Final = {entry[:2]: int(entry[2:]) for entry in _LENGTHS.split()}


def iban(text: str) -> bool:
    """Country, its length, and the remainder by 97 (ISO 13616, ISO/IEC 7064 mod 97-10)."""
    if len(text) != IBAN_LENGTHS.get(text[:2]) or not text[2:4].isdigit():
        return False
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


# --- national -----------------------------------------------------------------------------------


def us_ssn(digits: str) -> bool:
    """No area 000, 666 or 9xx, no group 00, no serial 0000 (SSA); not the two made famous."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    if area in ("000", "666") or area[0] == "9" or group == "00" or serial == "0000":
        return False
    return digits not in ("078051120", "219099999") and len(set(digits)) > 1


_NINO_NEVER: Final = frozenset({"BG", "GB", "KN", "NK", "NT", "TN", "ZZ"})


def uk_nino(text: str) -> bool:
    """Two letters, six digits, a suffix A-D (HMRC, NIM39110)."""
    first, second = text[0], text[1]
    if first in "DFIQUV" or second in "DFIOQUV" or text[:2] in _NINO_NEVER:
        return False
    return text[2:8].isdigit() and text[8] in "ABCD"


def uk_nhs(digits: str) -> bool:
    """Ten digits, modulus 11 with weights 10 to 2 (NHS Data Dictionary)."""
    rest = 11 - sum((10 - at) * int(c) for at, c in enumerate(digits[:9])) % 11
    return rest != 10 and rest % 11 == int(digits[9])


def de_tax_id(digits: str) -> bool:
    """Eleven digits, modulus 11,10 (ISO/IEC 7064); of the first ten one comes twice or thrice."""
    if digits[0] == "0":
        return False
    times = sorted((digits[:10].count(d) for d in set(digits[:10])), reverse=True)
    if times[0] not in (2, 3) or times[1] > 1:
        return False
    product = 10
    for character in digits[:10]:
        product = ((int(character) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def fr_nir(text: str) -> bool:
    """Fifteen characters, key 97 - number mod 97; Corsica counts 2A as 19, 2B as 18 (INSEE)."""
    body = text[:13].replace("2A", "19").replace("2B", "18")
    if not (body + text[13:]).isdigit() or text[0] not in "123478":
        return False
    return 97 - int(body) % 97 == int(text[13:])


def es_dni(text: str) -> bool:
    """Eight digits (for foreigners X, Y, Z and seven) and a letter: modulus 23."""
    number = text[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1]


# What a letter counts in an odd place; a digit counts as the letter of its number, 0 as A.
_ODD: Final = b"\1\0\5\7\11\15\17\21\23\25\2\4\22\24\13\3\6\10\14\16\20\12\26\31\30\27"


def it_fiscal_code(text: str) -> bool:
    """Sixteen characters, the last a check letter (D.M. 23/12/1976, article 4)."""
    total = 0
    for at, character in enumerate(text[:15]):
        number = int(character) if character.isdigit() else ord(character) - 65
        total += number if at & 1 else _ODD[number]
    return chr(65 + total % 26) == text[15]
