import gc
import hashlib
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest
import requests

from contracts import DataError
from datamodules import Miyawaki2008, PublicFile, VanGerven2010
from datamodules.core.download import fetch
from tests.datamodules.contract import leftovers

CONTENT = b"recordings" * 1000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of this machine that has one file."""
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "file.mat").write_bytes(CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "server")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
    with warnings.catch_warnings():
        # the client leaves its connection open where the server has no such file
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_a_missing_file_is_downloaded_and_checked(tmp_path: Path, address: str) -> None:
    path = fetch(tmp_path / "raw", PublicFile("sub/file.mat", f"{address}/file.mat", SHA))
    assert path == tmp_path / "raw" / "sub" / "file.mat"
    assert path.read_bytes() == CONTENT
    assert leftovers(tmp_path / "raw" / "sub") == ["file.mat"]


@pytest.mark.parametrize(("name", "sha256"), [("file.mat", "0" * 64), ("other.mat", SHA)])
def test_a_wrong_checksum_or_address_leaves_nothing_and_says_what_to_do(
    tmp_path: Path, address: str, name: str, sha256: str
) -> None:
    file = PublicFile("file.mat", f"{address}/{name}", sha256)
    with pytest.raises(DataError) as raised:
        fetch(tmp_path / "raw", file)
    for part in (str(tmp_path / "raw" / "file.mat"), file.url, sha256, "--data.init_args.root"):
        assert part in str(raised.value)
    assert not leftovers(tmp_path / "raw")


def test_a_file_that_is_there_is_never_replaced(tmp_path: Path, address: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "file.mat").write_bytes(b"my own copy")
    path = fetch(tmp_path / "raw", PublicFile("file.mat", f"{address}/file.mat", SHA))
    assert path.read_bytes() == b"my own copy"


@pytest.mark.parametrize("message", ["no route to host", ""])
@pytest.mark.parametrize("kind", [VanGerven2010, Miyawaki2008])
def test_without_network_the_message_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[VanGerven2010], message: str
) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise requests.exceptions.ConnectionError(*([message] if message else []))

    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(DataError) as raised:
        kind(str(tmp_path / "raw"), stores=str(tmp_path / "stores")).store  # noqa: B018
    file = kind.files[0]
    for part in (str(tmp_path / "raw" / file.name), file.url, file.sha256, message or "ConnectionError"):
        assert part in str(raised.value)
    assert not leftovers(tmp_path / "stores")


@pytest.mark.parametrize("kind", [VanGerven2010, Miyawaki2008])
def test_addresses_are_pinned(kind: type[VanGerven2010]) -> None:
    for file in kind.files:
        assert file.url.startswith("https://")
        assert file.url.endswith(file.name)
        assert len(bytes.fromhex(file.sha256)) == 32
        commit = file.url.removeprefix("https://raw.githubusercontent.com/").split("/")[2]
        assert len(bytes.fromhex(commit)) == 20, "an address that may change its content"
