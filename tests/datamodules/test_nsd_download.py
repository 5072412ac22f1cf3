"""Files of NSD are fetched for those who accept the terms, whole or not at all."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts import DataError
from datamodules import NSD
from datamodules.core import download, nsd_download
from datamodules.core.download import fetch_by_size
from tests.datamodules.test_nsd import opened
from tests.formats import nsd as format

CONTENT = bytes(range(256)) * 400


@dataclass
class Server:
    """Files of a folder, with byte ranges as S3 serves them; answers may be cut short.

    Attributes:
        cut: How many bytes each of the next answers sends before the connection breaks.
        requests: Method, path and range of each request.
    """

    folder: Path
    address: str = ""
    cut: list[int] = field(default_factory=list)
    ranges: bool = True
    sized: bool = True
    requests: list[tuple[str, str, str]] = field(default_factory=list)

    def asked(self, method: str = "GET") -> list[str]:
        return [path for kind, path, _ in self.requests if kind == method]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    serving = Server(tmp_path / "server")
    serving.folder.mkdir()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(send=False)

        def do_GET(self) -> None:
            self.answer(send=True)

        def answer(self, *, send: bool) -> None:
            serving.requests.append((self.command, self.path, self.headers.get("Range", "")))
            file = serving.folder / self.path.lstrip("/")
            if not file.is_file():
                return self.send_error(404)
            content = file.read_bytes()
            version = f'"{sha256(content).hexdigest()[:16]}"'
            if self.headers.get("If-Match", version) != version:
                return self.send_error(412)
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if serving.ranges else None
            body = content[int(match[1]) :] if match else content
            self.send_response(206 if match else 200)
            if serving.sized:
                self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", version)
            self.end_headers()
            if send:
                self.wfile.write(body[: serving.cut.pop(0)] if serving.cut else body)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    serving.address = f"http://127.0.0.1:{http.server_port}"
    yield serving
    http.shutdown()
    thread.join()
    http.server_close()


def anything(path: Path) -> None:
    assert path.is_file()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def partials(folder: Path) -> list[Path]:
    return sorted(folder.rglob(".*.partial.*"))


# ---- one file --------------------------------------------------------------------------------------


def test_a_file_is_fetched_once_with_the_size_that_the_server_states(tmp_path: Path, server: Server) -> None:
    (server.folder / "a.hdf5").write_bytes(CONTENT)
    for _ in range(2):
        path = fetch_by_size(tmp_path / "raw", "sub/a.hdf5", f"{server.address}/a.hdf5", anything)
        assert path == tmp_path / "raw" / "sub" / "a.hdf5"
        assert path.read_bytes() == CONTENT
    assert server.asked() == ["/a.hdf5"]
    assert not partials(tmp_path)


def test_a_file_that_is_there_is_never_asked_for(tmp_path: Path, server: Server) -> None:
    (tmp_path / "a.hdf5").write_bytes(b"my own copy")
    fetch_by_size(tmp_path, "a.hdf5", f"{server.address}/a.hdf5", anything)
    assert (tmp_path / "a.hdf5").read_bytes() == b"my own copy"
    assert not server.requests


def test_a_connection_that_breaks_is_resumed_at_once(tmp_path: Path, server: Server) -> None:
    (server.folder / "a.hdf5").write_bytes(CONTENT)
    server.cut = [1000, 500]
    path = fetch_by_size(tmp_path / "raw", "a.hdf5", f"{server.address}/a.hdf5", anything)
    assert path.read_bytes() == CONTENT
    assert [wanted for method, _, wanted in server.requests if method == "GET"] == ["", "bytes=1000-", "bytes=1500-"]


def test_an_interrupted_download_leaves_nothing_half_and_is_resumed_later(tmp_path: Path, server: Server) -> None:
    (server.folder / "a.hdf5").write_bytes(CONTENT)
    server.cut = [1000, 500, 0]
    address = f"{server.address}/a.hdf5"
    with pytest.raises(DataError, match=rf"no file .*raw/a\.hdf5.*1500 of {len(CONTENT)} bytes came.*again to resume"):
        fetch_by_size(tmp_path / "raw", "a.hdf5", address, anything)
    assert visible(tmp_path / "raw") == []
    [partial] = partials(tmp_path)
    assert partial.read_bytes() == CONTENT[:1500]
    server.requests.clear()
    assert fetch_by_size(tmp_path / "raw", "a.hdf5", address, anything).read_bytes() == CONTENT
    assert server.requests[-1][2] == "bytes=1500-"
    assert not partials(tmp_path)


def test_a_download_whose_last_byte_had_come_is_not_asked_for_again(tmp_path: Path, server: Server) -> None:
    (server.folder / "a.hdf5").write_bytes(CONTENT)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_by_size(tmp_path / "raw", "a.hdf5", f"{server.address}/a.hdf5", killed)
    assert visible(tmp_path / "raw") == []
    fetch_by_size(tmp_path / "raw", "a.hdf5", f"{server.address}/a.hdf5", anything)
    assert server.asked() == ["/a.hdf5"]


def test_two_versions_of_a_file_are_never_joined(tmp_path: Path, server: Server) -> None:
    (server.folder / "a.hdf5").write_bytes(CONTENT)
    server.cut = [1000, 0, 0]
    with pytest.raises(DataError):
        fetch_by_size(tmp_path / "raw", "a.hdf5", f"{server.address}/a.hdf5", anything)
    (server.folder / "a.hdf5").write_bytes(CONTENT[::-1])
    path = fetch_by_size(tmp_path / "raw", "a.hdf5", f"{server.address}/a.hdf5", anything)
    assert path.read_bytes() == CONTENT[::-1]
    assert not partials(tmp_path)


def test_a_server_without_ranges_begins_anew(tmp_path: Path, server: Server) -> None:
    (server.folder / "a.hdf5").write_bytes(CONTENT)
    server.ranges, server.cut = False, [1000]
    assert fetch_by_size(tmp_path / "raw", "a.hdf5", f"{server.address}/a.hdf5", anything).read_bytes() == CONTENT
    assert len(server.asked()) == 2


def test_a_file_of_another_format_is_removed(tmp_path: Path, server: Server) -> None:
    (server.folder / "a.hdf5").write_bytes(CONTENT)
    with pytest.raises(DataError, match=r"a\.hdf5 gave a file of another format, which was removed: cannot read"):
        fetch_by_size(tmp_path / "raw", "a.hdf5", f"{server.address}/a.hdf5", nsd_download.check_format)
    assert visible(tmp_path / "raw") == []
    assert not partials(tmp_path)


def test_what_cannot_be_had_is_named_with_its_address(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{server.address}/a.hdf5"

    def reason() -> str:
        with pytest.raises(DataError) as raised:
            fetch_by_size(tmp_path / "raw", "a.hdf5", address, anything)
        assert address in str(raised.value)
        assert visible(tmp_path / "raw") == []
        return str(raised.value)

    assert "404" in reason()
    (server.folder / "a.hdf5").write_bytes(CONTENT)
    server.sized = False
    assert "does not state the size" in reason()
    server.sized = True
    monkeypatch.setattr(download, "disk_usage", lambda folder: type("Usage", (), {"free": 10_000}))
    assert f"{len(CONTENT)} bytes are missing, the disk has 10000 free" in reason()
    assert not server.asked()


# ---- NSD -------------------------------------------------------------------------------------------


@pytest.fixture
def published(server: Server, monkeypatch: pytest.MonkeyPatch) -> format.Experiment:
    """Two people on the server, two sessions each."""
    monkeypatch.setattr(nsd_download, "BUCKET", server.address)
    return format.write(server.folder, people=("01", "02"), sessions=2, train=20, test=4)


def fetched(root: Path, **options: Any) -> NSD:
    return opened(root, **({"sessions": 2, "subjects": ["01"], "file_format": "official"} | options))


def test_nothing_is_fetched_before_the_terms_are_accepted(
    tmp_path: Path, server: Server, published: format.Experiment
) -> None:
    root = tmp_path / "raw"
    with pytest.raises(DataError) as raised:
        fetched(root).store  # noqa: B018
    for part in ("4 of 4 files", "nsd_expdesign.mat", "person 01", nsd_download.TERMS, "accept_terms=true"):
        assert part in str(raised.value)
    assert not server.requests
    assert not root.exists()


def test_accepting_fetches_the_files_of_the_chosen_people_and_is_remembered(
    tmp_path: Path, server: Server, published: format.Experiment
) -> None:
    root = tmp_path / "raw"
    store = fetched(root, accept_terms=True).store
    volumes = [volume[place] for volume in published.volumes["01"] for place in [format.voxels(*format.labels())[0][0]]]
    np.testing.assert_array_equal(store.signals("01")[:, 0], np.concatenate(volumes) / np.float32(300))
    assert store.axes("01").ncsnr is not None
    assert visible(root) == sorted(
        [
            "NSD_TERMS_ACCEPTED",
            "betas_session01.nii.gz",
            "betas_session02.nii.gz",
            "ncsnr.nii.gz",
            "nsd_expdesign.mat",
            "nsd_stimuli.hdf5",
            "nsdgeneral.nii.gz",
            "prf-visualrois.nii.gz",
        ]
    )
    assert not [path for path in server.asked() if "subj02" in path]
    marker = (root / "NSD_TERMS_ACCEPTED").read_text()
    assert re.match(r"accepted: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00\nterms: https://", marker)
    assert nsd_download.TERMS in marker

    # later, without asking again; what is there is not asked for either
    server.requests.clear()
    assert len(fetched(root, subjects=["02"]).store.signals("02")) == 1500
    assert [path for path in server.asked() if "subj02" not in path] == []
    assert (root / "NSD_TERMS_ACCEPTED").read_text() == marker
    assert not partials(root)


def test_an_interrupted_download_of_a_session_is_resumed_by_the_next_run(
    tmp_path: Path, server: Server, published: format.Experiment
) -> None:
    root = tmp_path / "raw"
    size = format.betas(server.folder, "01", "betas_session02.nii.gz").stat().st_size
    # six files come whole before the second session breaks off
    server.cut = [10**9] * 6 + [size // 2, 0, 0]
    with pytest.raises(DataError, match=rf"betas_session02\.nii\.gz.*{size // 2} of {size} bytes came"):
        fetched(root, accept_terms=True).store  # noqa: B018
    assert "betas_session02.nii.gz" not in visible(root)
    assert [path.name for path in (tmp_path / "stores").iterdir() if path.suffix != ".lock"] == []
    server.requests.clear()
    assert len(fetched(root).store.signals("01")) == 1500
    assert [(path.rpartition("/")[2], wanted) for method, path, wanted in server.requests if method == "GET"] == [
        ("betas_session02.nii.gz", f"bytes={size // 2}-")
    ]


def test_sessions_that_are_there_in_either_format_are_not_fetched(
    tmp_path: Path, server: Server, published: format.Experiment
) -> None:
    root = tmp_path / "raw"
    format.save_betas(format.betas(root, "01", "betas_session01.hdf5"), published.volumes["01"][0])
    fetched(root, accept_terms=True).store  # noqa: B018
    assert [path.rpartition("/")[2] for path in server.asked() if "session" in path] == ["betas_session02.nii.gz"]


def test_fewer_sessions_means_those_that_are_there(
    tmp_path: Path, server: Server, published: format.Experiment
) -> None:
    root = tmp_path / "raw"
    format.save_betas(format.betas(root, "01", "betas_session01.hdf5"), published.volumes["01"][0])
    assert len(fetched(root, accept_terms=True, fewer_sessions=True).store.signals("01")) == 750
    assert not [path for path in server.asked() if "session" in path]


def test_people_must_be_named_before_anything_is_fetched(
    tmp_path: Path, server: Server, published: format.Experiment
) -> None:
    with pytest.raises(DataError, match=r"no recordings in .*say whose: --data\.init_args\.subjects="):
        fetched(tmp_path / "raw", accept_terms=True, subjects=None).store  # noqa: B018
    assert not server.requests


def test_a_damaged_file_on_the_server_is_not_kept(tmp_path: Path, server: Server, published: format.Experiment) -> None:
    root = tmp_path / "raw"
    for path, name in ((format.design_path(server.folder), "design"), (format.roi(server.folder, "01"), "nsdgeneral")):
        whole = path.read_bytes()
        path.write_bytes(b"<html>an error page</html>")
        with pytest.raises(DataError, match=rf"{name}.* gave a file of another format, which was removed"):
            fetched(root, accept_terms=True).store  # noqa: B018
        assert path.name not in visible(root)
        path.write_bytes(whole)
    assert len(fetched(root).store.signals("01")) == 1500


def test_addresses_are_those_of_the_public_bucket() -> None:
    assert nsd_download.BUCKET == "https://natural-scenes-dataset.s3.amazonaws.com"
    assert nsd_download.TERMS in nsd_download.HINT
    assert nsd_download.beta_file("05", 7).as_posix() == (
        "nsddata_betas/ppdata/subj05/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session07.nii.gz"
    )
