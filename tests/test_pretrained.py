"""Ready-made policies: of the package, and of a hub (a stand-in for it on this machine)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import constants

from qwr_rllib.cli import qwr
from qwr_rllib.cli.policies import POLICY_FILE, PRETRAINED
from qwr_rllib.deployment import read

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.name for path in PRETRAINED.iterdir())
COMMIT = "0123456789" * 4


def run(*arguments: object) -> Result:
    return CliRunner().invoke(qwr, [str(each) for each in arguments])


def mean_return(result: Result) -> float:
    assert result.exit_code == 0, result.output
    return float(re.search(r"mean +(-?[\d.]+)", result.output)[1])


def test_a_policy_of_the_package_is_played_and_filmed(tmp_path):
    result = run("evaluate", "pretrained:pendulum", "--episodes", 2, "--video", tmp_path / "films")
    assert mean_return(result) > -400, "which a policy that has not learned is far below"
    assert "QWR on Pendulum-v1" in result.output
    assert [path.suffix for path in sorted((tmp_path / "films").iterdir())] == [".mp4"] * 2


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_of_the_package_is_small_and_its_card_tells_of_it(name):
    about = read(PRETRAINED / name / POLICY_FILE).about
    text = (PRETRAINED / name / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    [result] = yaml.safe_load(head)["model-index"][0]["results"]
    assert result["dataset"]["name"] == about["env"]
    assert f"{about['env_steps']} environment steps, seed {about['seed']}" in body
    assert re.search(r"\| evaluation \| \*\*-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]\*\*", body)
    assert f"--seed {about['seed']}" in body, "the command that trained it"
    assert about["versions"]["commit"] in body
    assert f"rllib evaluate pretrained:{name}" in body
    [gif] = re.findall(r"\((\S+\.gif)\)", body)
    size = sum(each.stat().st_size for each in (PRETRAINED / name).iterdir())
    assert size < 1_500_000
    assert (PRETRAINED / name / gif).resolve().stat().st_size < 1_000_000


def test_an_unknown_policy_is_refused_with_those_that_there_are():
    result = run("evaluate", "pretrained:pendulun")
    assert result.exit_code == 2
    assert "no policy pretrained:pendulun; did you mean 'pendulum'?; there are " in result.output


def test_an_installation_has_the_policies(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    source = tmp_path / "source"  # setuptools writes into the folder that it builds
    subprocess.run(
        ["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(source)], check=True, timeout=120
    )
    subprocess.run(
        [*command, "-w", str(tmp_path), str(source)], check=True, capture_output=True, timeout=300
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        inside = set(file.namelist())
    for name in NAMES:
        assert {f"qwr_rllib/pretrained/{name}/{each}" for each in (POLICY_FILE, "README.md")} <= (
            inside
        )


class Hub(BaseHTTPRequestHandler):
    """The Hub's answers to a client that creates, fills and reads a model repository."""

    files: dict[str, bytes]
    url: str

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer hf_mine":
            return self.answer(401)
        if self.path == "/api/repos/create":
            return self.answer(200, json.dumps({"url": f"{self.url}/me/pendulum"}).encode())
        if self.path == "/api/validate-yaml":  # of the card
            head = json.loads(sent)["content"].split("---\n")[1]
            assert yaml.safe_load(head)["library_name"] == "qwr-rllib"
            return self.answer(200, b'{"errors": [], "warnings": []}')
        if self.path == "/api/models/me/pendulum/preupload/main":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(sent)["files"]
            ]
            return self.answer(200, json.dumps({"files": files}).encode())
        if self.path == "/api/models/me/pendulum/commit/main":
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            made = {"commitUrl": f"{self.url}/me/pendulum/commit/{COMMIT}", "commitOid": COMMIT}
            return self.answer(200, json.dumps(made).encode())
        return self.answer(404)

    def do_GET(self) -> None:
        found = re.fullmatch(r"/me/pendulum/resolve/(?:main|v1)/(.*)", self.path)
        if found and found[1] in self.files:
            body = self.files[found[1]]
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            self.answer(200, body, ETag=etag, X_Repo_Commit=COMMIT)
        else:
            self.answer(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.files = {}
    Hub.url = url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_policy_is_pushed_with_its_card_and_played_from_there(hub):
    result = run("push", "pretrained:pendulum", "me/pendulum", "--episodes", 2, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert f"{hub.url}/me/pendulum" in result.output
    assert hub.files.keys() == {POLICY_FILE, "README.md"}
    card = hub.files["README.md"].decode()
    assert "reset seeds 3 to 4" in card
    assert "rllib evaluate hf:me/pendulum" in card

    own = mean_return(run("evaluate", "pretrained:pendulum", "--episodes", 2))
    for name in "hf:me/pendulum", "hf:me/pendulum@v1":
        assert mean_return(run("evaluate", name, "--episodes", 2)) == own


def test_a_film_of_the_first_episode_is_pushed(hub):
    result = run("push", "pretrained:pendulum", "me/pendulum", "--episodes", 2, "--video")
    assert result.exit_code == 0, result.output
    assert hub.files.keys() == {POLICY_FILE, "README.md", "replay.mp4"}


def test_what_the_hub_refuses_is_said_in_a_line(hub, monkeypatch):
    def error(*arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 2
        assert len(result.output.splitlines()) == 1
        return result.output

    assert "cannot get policy.safetensors of hf:me/other" in error("evaluate", "hf:me/other")
    assert "cannot get policy.safetensors of hf:a b" in error("evaluate", "hf:a b")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    refused = error("push", "pretrained:pendulum", "me/pendulum", "--episodes", 2)
    assert "cannot push to 'me/pendulum'" in refused
    assert "401" in refused
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for arguments in ("evaluate", "hf:me/pendulum"), ("push", "pretrained:pendulum", "me/pendulum"):
        assert "pip install 'qwr-rllib[hub]'" in error(*arguments)
