"""Who may ask the dashboard, and for what: hosts, origins, methods, paths, names, tokens."""

import os
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.command import refused
from tests.dashboard.conftest import ask, open_client

SECRET = "only for the owner"
SAME = {"Origin": "http://localhost"}


def test_pages_carry_a_strict_policy_and_no_cors_header(client: TestClient) -> None:
    for path in ("/", "/static/app.js", "/nothing"):
        headers = client.get(path, headers=SAME).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": "user@localhost"},
        {"Host": ""},
        {"Host": "10.0.0.1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://localhost:1"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_b39_other_hosts_and_origins_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get("/", headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:8000", "[::1]:8000"])
def test_the_own_names_work_with_any_port_as_a_tunnel_needs(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200
    assert client.get("/", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200


def test_a_link_from_another_site_may_be_followed(client: TestClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_b39_reading_only(client: TestClient, method: str) -> None:
    assert client.request(method, "/", headers=SAME).status_code == 405
    assert client.request(method, "/").status_code == 403  # not even a page of ours has sent it


def test_b39_long_headers_and_bodies(client: TestClient) -> None:
    assert client.get("/", headers={"X-Long": "a" * 1_000_000}).status_code == 431
    assert client.post("/", content=b"a" * 1_000_000, headers=SAME).status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/..%5c..%5csecret.txt",
        "/static/../secret.txt",
        "/static/%2e%2e/secret.txt",
        "/static/..%2f..%2fapp.py",
        "/static//etc/passwd",
        "/runs/../secret.txt",
        "/runs/%2e%2e",
        "/runs/first%00",
        "/runs/first/%00.json",
        "/runs//etc",
        "/runs/first/../../outside",
        "/runs/.",
        "/runs/" + "a" * 300,
        "/runs/" + "a/" * 50,
        "/runs/%ff%fe",
    ],
)
def test_b37_paths_lead_nowhere_else(client: TestClient, runs: Path, path: str) -> None:
    (runs.parent / "secret.txt").write_text(SECRET)
    (runs.parent / "outside").mkdir()
    (runs.parent / "outside" / "run.toml").write_text(SECRET)
    status, text = ask(client.app, path.encode())
    assert status == 404 and SECRET not in text and "root:" not in text


def test_b13_a_run_that_is_a_link_out_of_the_folder_is_refused(client: TestClient, runs: Path) -> None:
    outside = runs.parent / "elsewhere"
    (runs / "first").rename(outside)
    (runs / "first").symlink_to(outside)
    (runs / "inner").symlink_to(runs / "stopped")
    page = client.get("/").text
    assert "is a link out of the folder of runs" in page
    assert 'href="/runs/first"' not in page and 'href="/runs/inner"' in page


def test_b37_a_run_with_a_link_out_of_the_folder_or_a_pipe_is_refused(client: TestClient, runs: Path) -> None:
    (runs.parent / "secret.json").write_text(SECRET)
    (runs / "first" / "evaluations").mkdir(exist_ok=True)
    (runs / "first" / "evaluations" / "loss.json").symlink_to(runs.parent / "secret.json")
    (runs / "stopped" / "metrics.jsonl").unlink()
    os.mkfifo(runs / "stopped" / "metrics.jsonl")
    page = client.get("/").text
    assert "evaluations/loss.json is a link out of the folder of runs" in page and SECRET not in page
    assert "metrics.jsonl is neither a file nor a folder" in page


def test_b38_names_are_text(client: TestClient, runs: Path) -> None:
    (runs / "no-dropout").rename(runs / "<img src=x onerror=alert(1)>")
    (runs / "stopped").rename(os.fsdecode(os.fsencode(runs) + b"/not-utf8-\xff"))
    answer = client.get("/")
    assert answer.status_code == 200 and "<img" not in answer.text and "&lt;img src=x" in answer.text
    assert r"not-utf8-\udcff" in answer.text and "/runs/not-utf8-%FF" in answer.text


def test_a_token_is_needed_once_where_others_can_connect(runs: Path) -> None:
    client = open_client(runs, names=("box.example",), token="s3cret")
    assert client.get("/", headers={"Host": "box.example"}).status_code == 401
    assert client.get("/?token=wrong", headers={"Host": "box.example"}).status_code == 401
    assert client.get("/?token=s3cret", headers={"Host": "evil.example"}).status_code == 403
    first = client.get("/?token=s3cret&x=1", headers={"Host": "192.0.2.7:8000"})
    assert first.status_code == 303 and first.headers["location"] == "/?x=1"
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    assert client.get("/", headers={"Host": "192.0.2.7:8000", "Cookie": cookie.partition(";")[0]}).status_code == 200


def test_the_folder_must_be_one_of_runs(runs: Path) -> None:
    refused("dashboard", runs / "nothing", code=2, says="no such folder")
    refused("dashboard", runs / "first", code=2, says="is a run; name the folder that it is in")
    refused("dashboard", runs, "--host", "host.invalid", code=2, says="cannot be listened on")
