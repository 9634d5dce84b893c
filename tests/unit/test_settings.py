"""Settings: refused with the nearest name, overridden by options, documented."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from gateway.settings import SecretMissing, Settings, SettingsError, secret


def test_a_mistyped_name_is_refused_with_the_right_one() -> None:
    with pytest.raises(
        SettingsError, match="WEIGHBRIDGE_REDIS_URI: unknown.*WEIGHBRIDGE_REDIS_URL"
    ):
        Settings.load({"WEIGHBRIDGE_REDIS_URI": "x"})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("WEIGHBRIDGE_PORT", "x", "whole number"),
        ("WEIGHBRIDGE_WORKERS", "0", "at least 1"),
        ("WEIGHBRIDGE_AUTO_MIGRATE", "maybe", "true or false"),
        ("WEIGHBRIDGE_UPSTREAM_CLIENT", "curl", "fast or aiohttp"),
    ],
)
def test_a_malformed_value_says_what_is_right(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        Settings.load({name: value})


def test_options_win_over_the_environment_and_none_does_not() -> None:
    env = {"WEIGHBRIDGE_PORT": "5", "WEIGHBRIDGE_HOME": "here", "OTHER": "x"}
    settings = Settings.load(env, port=7, host=None)
    assert (settings.port, settings.host, settings.home) == (7, "127.0.0.1", Path("here"))


def test_every_setting_says_what_it_is() -> None:
    assert [f.name for f in fields(Settings) if not f.metadata.get("about")] == []


def test_secrets_come_by_reference_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").write_text("from-file\n")
    monkeypatch.setenv("A_SECRET", "from-env")
    assert secret("env:A_SECRET") == "from-env"
    assert secret(f"file:{tmp_path / 's'}") == "from-file"
    for missing in ("env:NOT_THERE", "file:/not/there", "sk-inline"):
        with pytest.raises(SecretMissing):
            secret(missing)


def test_every_setting_stands_in_the_documentation_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "settings.md").read_text()
    for spec in fields(Settings):
        default = f"`{spec.default}`" if spec.default not in (None, "") else "–"
        name = f"WEIGHBRIDGE_{spec.name.upper()}"
        assert f"| `{name}` | {default} | {spec.metadata['about']} |" in page
