"""A node's settings file: valid content, and all problems reported before anything is opened."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from zoomseg.node.settings import (
    Completion,
    DimseDestination,
    Limits,
    NodeSettings,
    Output,
    Peer,
    Retry,
    Rule,
    SettingsError,
    StatusPage,
    Tls,
    WebDestination,
    read_settings,
)

SMALLEST: dict[str, Any] = {
    "folder": "state",
    "peers": [{"ae_title": "PACS", "addresses": ["10.0.0.7", "192.168.1.0/24", "::1"]}],
    "rules": [{"name": "abdomen", "modality": "CT", "model": "abdomen-ct"}],
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "node.yaml"
    path.write_text(yaml.safe_dump({**SMALLEST, **changes}))
    return path


def test_the_smallest_file(tmp_path: Path) -> None:
    found = read_settings(written(tmp_path))
    assert found.ae_title == "ZOOMSEG"
    assert found.folder == tmp_path / "state"
    assert found.rules[0].outputs == (Output.SEG, Output.RTSTRUCT, Output.SR)
    assert found.limits.object_bytes == 2 * 1024**3


def test_all_that_can_be_said(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "model.json").touch()
    rule = {
        "name": "liver",
        "modality": "MR",
        "body_part": ["ABDOMEN", "LIVER"],
        "description": "t1.*vibe",
        "min_slices": 20,
        "max_slices": 200,
        "one_per_study": True,
        "model": "models/mine",
        "organs": ["liver"],
        "outputs": ["seg", "secondary_capture"],
        "send_to": ["pacs", "web"],
    }
    found = read_settings(
        written(
            tmp_path,
            limits={"object_bytes": "500MB", "associations": 3},
            tls={"certificate": "a.pem", "key": "a.key", "authorities": "/ca.pem"},
            destinations={
                "pacs": {"ae_title": "PACS", "host": "pacs", "port": 104, "tls": True},
                "web": {"url": "https://pacs/dicom-web", "user": "me", "password_variable": "SECRET"},
            },
            rules=[rule],
        )
    )
    assert found.limits.object_bytes == 500 * 1024**2
    assert found.tls is not None
    assert (found.tls.key, found.tls.authorities) == (tmp_path / "a.key", Path("/ca.pem"))
    assert isinstance(found.destinations["pacs"], DimseDestination)
    assert isinstance(found.destinations["web"], WebDestination)
    assert found.rules[0].model == str(tmp_path / "models" / "mine")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ae_title": "SEVENTEEN LETTERS"}, "ae_title"),
        ({"ae_title": "BACK\\SLASH"}, "ae_title"),
        ({"peers": []}, "peers"),
        ({"peers": [{"ae_title": "A", "addresses": ["pacs.local"]}]}, "neither an IP address nor a network"),
        ({"rules": [{**SMALLEST["rules"][0], "description": "("}]}, "no regular expression"),
        ({"rules": [{**SMALLEST["rules"][0], "outputs": ["sr"]}]}, "ask for both"),
        (
            {"rules": [{**SMALLEST["rules"][0], "min_slices": 60, "max_slices": 59}]},
            "max_slices is less than min_slices",
        ),
        ({"rules": [{**SMALLEST["rules"][0], "send_to": ["nowhere"]}]}, "sends to 'nowhere'"),
        ({"rules": [{**SMALLEST["rules"][0], "modality": "PT"}]}, "modality"),
        ({"rules": [SMALLEST["rules"][0]] * 2}, "two rules have one name"),
        ({"destinations": {"a": {"ae_title": "A", "host": "b", "port": 1, "tls": True}}}, "no certificate"),
        (
            {"destinations": {"a": {"url": "http://b", "usr": "me"}}},
            r"destinations\.a: unknown key 'usr' .*url",
        ),
        ({"destinations": {"a": {"url": "b"}}}, r"destinations\.a\.url: got 'b', expected text that matches"),
        ({"destinations": {"a": {"ae_title": "A", "port": 1}}}, r"yaml: destinations\.a\.host: is missing$"),
        ({"destinations": {"a": "b"}}, r"destinations\.a: got 'b', expected a mapping"),
        ({"destinations": {"b c": {"url": "http://b"}}}, "destinations"),
        ({"destinations": {"a": {"url": "http://b", "user": "me"}}}, "user needs password_variable"),
        ({"destinations": {"a": {"url": "http://b", "password_variable": "P"}}}, "give both or neither"),
        (
            {"destinations": {"a": {"url": "http://b", "user": "me", "password_variable": "P"}}},
            "a password would be sent in clear; the url must begin with https://",
        ),
        ({"limits": {"object_bytes": "many"}}, "not an amount of memory"),
        ({"keep_hours": float("nan")}, "keep_hours"),
        ({"keep_days": 3}, "keep_days"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        read_settings(written(tmp_path, **changes))


def test_the_documentation_names_every_key_and_its_examples_are_right(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "node.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "node.yaml").write_text(example)
    assert read_settings(tmp_path / "node.yaml").rules[0].send_to == ("pacs",)
    keys = set(NodeSettings.model_fields) | set(Rule.model_fields)
    for part in (Completion, Limits, Retry, Tls, StatusPage, DimseDestination, WebDestination):
        keys |= set(part.model_fields)
    assert sorted(key for key in keys if not re.search(rf"`(\w+\.)?{key}(\.\w+)?`", page, re.M)) == []


@pytest.mark.parametrize("text", ["- a list", "{", "folder: !!python/object:os.system x", "\x00"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"node\.yaml"):
        read_settings(tmp_path / "node.yaml")


def test_a_key_that_is_written_twice_is_named(tmp_path: Path) -> None:
    """The first would be lost."""
    path = written(tmp_path)
    path.write_text(path.read_text() + "peers: [{ae_title: B, addresses: [10.0.0.2]}]\n")
    with pytest.raises(SettingsError, match="key 'peers' is duplicated"):
        read_settings(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_settings(tmp_path / "none.yaml")


def test_a_peer_is_known_by_its_addresses() -> None:
    peer = Peer.model_validate(SMALLEST["peers"][0])
    assert [peer.is_at(a) for a in ("10.0.0.7", "10.0.0.8", "192.168.1.9", "::1")] == [
        True,
        False,
        True,
        True,
    ]


def test_an_ipv4_peer_is_known_at_a_socket_that_listens_for_both() -> None:
    peer = Peer.model_validate(SMALLEST["peers"][0])
    assert [peer.is_at(f"::ffff:{a}") for a in ("10.0.0.7", "10.0.0.8", "192.168.1.9")] == [True, False, True]
