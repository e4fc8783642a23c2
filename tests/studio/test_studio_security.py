"""Who gets nothing from the studio: no token, another host, another page, a path outside the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from micro import micro_predictor, one_thread, pictures  # noqa: F401
from studio_client import HOST, TOKEN, save_video

from sam2_mem.studio.security import BODY_LIMIT, HEADERS, OutsideFolderError, confined, new_token
from sam2_mem.studio.server import Studio, studio_app


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    save_video(tmp_path / "work" / "clip")
    save_video(tmp_path / "outside" / "clip")
    studio = Studio(micro_predictor(), tmp_path / "work", config="micro")
    yield TestClient(studio_app(studio, TOKEN, [HOST]), base_url=f"http://{HOST}")
    studio.close()


PATHS = ("/", "/static/app.js", "/api/start", "/api/files", "/api/sessions/s1/frame/0")


@pytest.mark.parametrize("path", PATHS)
def test_nothing_without_the_token(client: TestClient, path: str) -> None:
    client.post(f"/{TOKEN}/api/sessions", json={"path": "clip"})
    assert client.get(f"/{TOKEN}{path}").status_code == 200, "the control: with the token it is there"
    for prefix in ("", "/wrong-token", f"/{TOKEN[:-1]}", f"/{TOKEN}x", f"/{TOKEN.upper()}"):
        answer = client.get(f"{prefix}{path}")
        assert answer.status_code == 403 and "token" in answer.text, prefix
    assert client.get(path, params={"token": TOKEN}).status_code == 403
    assert client.get(path, headers={"cookie": f"token={TOKEN}"}).status_code == 403


def test_nothing_can_be_done_without_the_token(client: TestClient) -> None:
    body = {"path": "clip"}
    assert client.post("/api/sessions", json=body).status_code == 403
    assert client.delete("/x/api/sessions/s1").status_code == 403
    assert client.get(f"/{TOKEN}/api/start").json()["sessions"] == {}
    assert client.post(f"/{TOKEN}/api/sessions", json=body).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example:8765", "localhost:9999", "localhost", "127.0.0.1.evil.example:8765", ""]
)
def test_a_name_that_points_here_gets_nothing(client: TestClient, host: str) -> None:
    """A page of another site whose name is made to point to this machine sends its own name as Host."""
    assert client.get(f"/{TOKEN}/", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "https://localhost:8765", "http://localhost:9999", "null"])
def test_another_page_gets_nothing(client: TestClient, origin: str) -> None:
    headers = {"origin": origin}
    assert client.post(f"/{TOKEN}/api/sessions", json={"path": "clip"}, headers=headers).status_code == 403
    assert client.get(f"/{TOKEN}/api/start", headers=headers).status_code == 403
    assert client.get(f"/{TOKEN}/api/start", headers={"origin": f"http://{HOST}"}).status_code == 200


@pytest.mark.parametrize("path", ["..", "../outside/clip", "clip/../../outside/clip", "/etc", "link", "link/clip", "~"])
def test_nothing_outside_the_folder(client: TestClient, tmp_path: Path, path: str) -> None:
    (tmp_path / "work" / "link").symlink_to(tmp_path / "outside")
    opened = client.post(f"/{TOKEN}/api/sessions", json={"path": path})
    listed = client.get(f"/{TOKEN}/api/files", params={"path": path})
    expected = 400 if path == "~" else 403  # no such folder; the home folder it is not
    assert (opened.status_code, listed.status_code) == (expected, expected)
    assert str(tmp_path) not in opened.text + listed.text or path == "~"
    assert client.get(f"/{TOKEN}/api/start").json()["sessions"] == {}


def test_absolute_path_of_the_folder_itself(tmp_path: Path) -> None:
    assert confined(tmp_path, "a/../b") == (tmp_path / "b").resolve()
    assert confined(tmp_path, str(tmp_path / "b")) == (tmp_path / "b").resolve()
    for path in ("/", f"{tmp_path}x", "a/../../b"):
        with pytest.raises(OutsideFolderError, match="inside the working folder"):
            confined(tmp_path, path)


def test_links_out_of_the_folder_are_not_listed(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "work" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "work" / ".hidden").mkdir()
    names = [item["name"] for item in client.get(f"/{TOKEN}/api/files").json()["items"]]
    assert names == ["clip"]


def test_exports_stay_in_the_folder(client: TestClient, tmp_path: Path) -> None:
    client.post(f"/{TOKEN}/api/sessions", json={"path": "clip"})
    order = {"kinds": ["script"], "folder": "../outside/new"}
    assert client.post(f"/{TOKEN}/api/sessions/s1/export", json=order).status_code == 403
    assert not (tmp_path / "outside" / "new").exists()
    answer = client.post(f"/{TOKEN}/api/sessions/s1/export", json=order | {"folder": "new"})
    assert answer.status_code == 200 and (tmp_path / "work" / "new" / "clip.py").is_file()


@pytest.mark.parametrize(
    "name", ["..%2fserver.py", "%2e%2e%2fserver.py", "../server.py", "server.py", "..", ".", "nothing.js"]
)
def test_static_files_are_those_of_the_page(client: TestClient, name: str) -> None:
    assert client.get(f"/{TOKEN}/static/{name}").status_code in (403, 404)
    assert client.get(f"/{TOKEN}/static/studio.css").status_code == 200


def test_requests_are_small(client: TestClient) -> None:
    large = client.post(f"/{TOKEN}/api/sessions", content=b"x" * (BODY_LIMIT + 1))
    assert large.status_code == 413
    unknown = client.post(f"/{TOKEN}/api/sessions", content=iter([b"{}"]))
    assert unknown.status_code == 413


def test_answers_forbid_what_the_page_does_not_need(client: TestClient) -> None:
    headers = client.get(f"/{TOKEN}/").headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert (
        "unsafe-eval" not in HEADERS["content-security-policy"]
        and "script-src" not in HEADERS["content-security-policy"]
    )
    assert "set-cookie" not in headers


def test_tokens_differ() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100 and min(map(len, tokens)) >= 32


def test_the_page_loads_nothing_from_elsewhere() -> None:
    static = Path(__file__).resolve().parents[2] / "sam2_mem" / "studio" / "static"
    texts = {path.name: path.read_text() for path in static.iterdir()}
    assert {"index.html", "app.js", "studio.css"} <= texts.keys()
    for name, text in texts.items():
        addresses = text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in addresses and "https://" not in addresses and "eval(" not in addresses, name
    assert all(os.path.getsize(static / name) < 16_000 for name in texts), "modules of readable size"
