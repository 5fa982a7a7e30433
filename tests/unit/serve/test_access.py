"""Access to the server."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from helpers.servers import serving
from zoomseg.serve import access as guard
from zoomseg.serve.access import access, needs_token
from zoomseg.serve.server import address, listening

TOKEN = "correct-horse-battery-staple"
ANYWHERE = access("0.0.0.0", (), TOKEN)
COOKIE = "zoomseg-8000"
"""Of a server at port 8000."""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    with serving(tmp_path_factory.mktemp("local") / "jobs") as server:
        yield server.client


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(guard, "WRONG_TOKEN_SECONDS", 0.0)
    with serving(tmp_path / "jobs", who=ANYWHERE) as server:
        server.client.cookies.clear()
        yield server.client


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "[::1]:9", "LOCALHOST"])
def test_this_machine_is_answered_to_by_its_own_names(local: TestClient, host: str) -> None:
    assert local.get("/jobs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_other_names_are_not_answered_to(local: TestClient, host: str) -> None:
    assert local.get("/jobs", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "host",
    [
        "[",
        "[::1",
        "::1]",
        "[v1.x]",
        "[fe80::1%eth0]",
        "localhost@evil.example",
        "localhost/evil",
        "localhost:99999999",
        "localhost:x",
        "localhost#",
        "localhost?a",
        "localhost\\@evil.example",
        "local host",
        "\u2100.example".encode(),
        b"\xff\xfe",
        "a" * 5000,
    ],
)
def test_what_is_no_host_is_refused_also_where_all_names_are_answered_to(
    local: TestClient, guarded: TestClient, host: str | bytes
) -> None:
    headers = {b"host": host.encode() if isinstance(host, str) else host}
    assert local.get("/jobs", headers=headers).status_code == 400
    headers[b"authorization"] = f"Bearer {TOKEN}".encode()
    for path in ("/jobs", "/jobs/", "/static", "/docs/"):
        assert guarded.get(path, headers=headers).status_code == 400


def test_no_header_breaks_it(local: TestClient, guarded: TestClient) -> None:
    """This client raises exceptions that a server would only log."""
    rng = random.Random(0)
    names = (
        b"host",
        b"origin",
        b"referer",
        b"cookie",
        b"authorization",
        b"x-forwarded-proto",
        b"sec-fetch-site",
    )
    bits = [
        b"http://",
        b"[",
        b"]",
        b"::1",
        b"localhost",
        b"%zz",
        f"{COOKIE}=".encode(),
        b";",
        b'"',
        b"\xff",
        b"@",
        b":",
        b"Bearer ",
    ]
    for _ in range(300):
        chosen = rng.sample(names, rng.randint(1, 3))
        headers = {name: b"".join(rng.choices(bits, k=rng.randint(0, 5))).strip() for name in chosen}
        for client in (local, guarded):
            assert client.get("/jobs", headers=headers).status_code in (200, 400, 401, 421)
            assert client.post("/jobs", headers=headers).status_code in (400, 401, 403, 421, 422)


@pytest.mark.parametrize(
    "origin",
    ["http://[", "http://[::1", "http://", "//localhost", "http:///", "x", "http://localhost:x", "a" * 5000],
)
def test_what_is_no_origin_is_another(local: TestClient, origin: str) -> None:
    given = {"origin": origin, "referer": origin}
    assert local.post("/jobs?name=a.nii.gz", content=b"x", headers=given).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 415),
        ({}, 415),
    ],
)
def test_pages_of_other_origins_change_nothing(
    local: TestClient, headers: dict[str, str], status: int
) -> None:
    assert local.post("/jobs?name=a.txt", content=b"x", headers=headers).status_code == status


def test_every_answer_forbids_what_the_page_does_not_need(local: TestClient) -> None:
    for path in ("/", "/jobs", "/nothing", "/static/style.css"):
        headers = local.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval';")
        assert "http" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("path", ["/", "/jobs", "/models", "/openapi.json", "/static/style.css"])
def test_without_the_token_nothing_is_told(guarded: TestClient, path: str) -> None:
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": TOKEN},
        {"cookie": f"{COOKIE}=1"},
    ):
        answer = guarded.get(path, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert guarded.get(f"{path}?token=wrong").status_code == 401


def test_wrong_tokens_are_answered_one_after_the_other_and_the_right_one_at_once(
    guarded: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(guard, "WRONG_TOKEN_SECONDS", 60.0)
    monkeypatch.setattr(guard, "sleep", sleep)
    for headers in ({"authorization": "Bearer wrong"}, {"cookie": f"{COOKIE}=1"}):
        assert guarded.get("/jobs", headers=headers).status_code == 401
    assert guarded.get("/?token=wrong").status_code == 401
    assert [round(seconds / 60) for seconds in slept] == [1, 2, 3]
    assert guarded.get("/jobs").status_code == 401  # nothing was tried
    for cookie in ("other=1", "zoomseg-8001=1", "zoomseg=1", f"other={COOKIE}"):  # not this server's
        assert guarded.get("/jobs", headers={"cookie": cookie}).status_code == 401
    assert guarded.get("/jobs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert len(slept) == 3


def test_wrong_tokens_beyond_a_minute_s_answers_are_refused_at_once(
    guarded: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(guard, "MAX_WRONG_TOKENS", 2)
    monkeypatch.setattr(guard, "WRONG_TOKEN_SECONDS", 60.0)
    monkeypatch.setattr(guard, "sleep", sleep)
    wrong = {"authorization": "Bearer wrong"}
    assert [guarded.get("/jobs", headers=wrong).status_code for _ in range(4)] == [401, 401, 429, 429]
    assert len(slept) == 2
    assert guarded.get("/jobs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_token_opens_by_header_and_for_the_page_by_a_cookie(guarded: TestClient) -> None:
    assert guarded.get("/jobs", headers={"authorization": f"Bearer {TOKEN}"}).json() == []
    assert guarded.get(f"/jobs?token={TOKEN}").status_code == 401  # the page alone
    entered = guarded.get(f"/?token={TOKEN}", follow_redirects=False)
    assert (entered.status_code, entered.headers["location"]) == (303, "./")
    cookie = entered.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert "HttpOnly; SameSite=Lax" in cookie
    assert TOKEN not in cookie
    assert guarded.get("/jobs").json() == []  # by the cookie


@pytest.mark.parametrize(
    "other", ['consent={"a":"b","c":1}', 'a={"x":1}', "name=J\u00f6", "=", "zoomseg-8001=1"]
)
def test_cookies_of_other_programs_do_not_hide_the_right_one(guarded: TestClient, other: str) -> None:
    entered = guarded.get(f"/?token={TOKEN}", follow_redirects=False)
    own = entered.headers["set-cookie"].split(";")[0]
    guarded.cookies.clear()
    for cookies in (f"{other}; {own}", f"{own};{other}"):
        headers = {"cookie": cookies.encode("latin-1")}
        assert guarded.get("/jobs", headers=headers).status_code == 200


def test_the_printed_address_works_with_any_token(tmp_path: Path) -> None:
    token = "abcd+efgh/ij&k#l%41=;m n"
    with listening("127.0.0.1", 0) as sock:
        printed = address(sock, token)
    with serving(tmp_path / "jobs", who=access("0.0.0.0", (), token)) as running:
        path = printed[printed.index("/?") :]
        assert running.client.get(path, follow_redirects=False).status_code == 303
        assert running.client.get("/jobs").status_code == 200


def test_a_proxy_is_known_by_its_name(tmp_path: Path) -> None:
    who = access("127.0.0.1", ("seg.hospital.example",), TOKEN)
    with serving(tmp_path / "jobs", who=who) as server:
        known = {"host": "seg.hospital.example", "authorization": f"Bearer {TOKEN}"}
        assert server.client.get("/jobs", headers=known).status_code == 200
        assert server.client.get("/jobs", headers=known | {"host": "evil.example"}).status_code == 421
        by_page = {"authorization": f"Bearer {TOKEN}", "origin": "https://seg.hospital.example"}
        assert server.client.post("/jobs?name=a.txt", content=b"x", headers=by_page).status_code == 415
        entered = server.client.get(
            f"/?token={TOKEN}", headers={"x-forwarded-proto": "https"}, follow_redirects=False
        )
        assert entered.headers["set-cookie"].endswith("; Secure")


def test_a_token_is_needed_where_others_can_come() -> None:
    assert not needs_token("127.0.0.1", ())
    assert needs_token("0.0.0.0", ())
    assert needs_token("127.0.0.1", ("seg.hospital.example",))
