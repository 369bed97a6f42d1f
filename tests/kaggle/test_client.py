"The real kaggle client against a local server: what it sends, and what happens when uploads fail or files are lost."

import importlib.util
import io
import json
import os
import shutil
from contextlib import redirect_stderr, redirect_stdout

import nbformat
import pytest

from tests.kaggle_server import KEY, KaggleServer, counted

from audiotag.cli import main
from audiotag.core.files import read_json, write_json
from audiotag.kaggle.pack import dataset_metadata, write_manifest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("kaggle") is None, reason="the kaggle client is not installed (extra `kaggle`)"
)
REF = "ann/bird-weights"


@pytest.fixture
def server(monkeypatch, tmp_path):
    with KaggleServer() as s:
        home = tmp_path / "home"
        home.mkdir()
        for name in list(os.environ):
            if name.upper().startswith("KAGGLE") or name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        for name, value in s.env(home).items():
            monkeypatch.setenv(name, value)
        yield s


@pytest.fixture
def folder(tmp_path):
    "A packed dataset; one file is empty, because the client uploads empty files in another way."
    f = tmp_path / "bird-weights"
    f.mkdir()
    for name, data in {
        "a.safetensors": b"a" * 5000,
        "b.safetensors": b"b" * 70,
        "empty.bin": b"",
        "README.md": b"# birds\n",
    }.items():
        (f / name).write_bytes(data)
    write_json(f / "dataset-metadata.json", dataset_metadata("bird-weights", owner="ann", description="# birds\n"))
    write_manifest(f, "weights")
    return f


def audiotag(*words):
    "Exit code, stdout and stderr of a command; fast, as it runs in this process (the client is a process of its own)."
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(w) for w in words])
        except SystemExit as e:
            code = e.code
    assert KEY not in out.getvalue() + err.getvalue() and "s3cr3t" not in out.getvalue() + err.getvalue()
    assert "Traceback" not in err.getvalue()
    return code, out.getvalue(), err.getvalue()


def refused(*words, says=()):
    code, out, err = audiotag(*words)
    errors = [line for line in err.splitlines() if line.startswith("audiotag: ")]
    assert code == 2 and len(errors) == 1, (code, out, err)
    for word in [says] if isinstance(says, str) else says:
        assert word in errors[0], errors[0]
    return errors[0]


FAST = ("--every", "0.05", "--wait", "20")


def test_a_new_dataset_and_then_a_version_of_it(server, folder):
    code, out, err = audiotag("publish", folder, *FAST)
    assert code == 0, err
    sent = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "dataset-metadata.json"}
    assert server.datasets[REF]["files"] == sent and REF in out
    (made,) = server.names("CreateDataset")
    assert made["isPrivate"] is True and made["licenseName"] == "CC0-1.0" and made["description"] == "# birds\n"
    assert counted(server.calls)["PUT"] == len(sent) == 5 and server.calls[-1] == "ListDatasetFiles"
    (folder / "b.safetensors").write_bytes(b"c" * 71)
    write_manifest(folder, "weights")
    code, out, err = audiotag("publish", folder, "--message", "longer", *FAST)
    assert code == 0, err
    assert (
        server.datasets[REF]["versions"] == 2
        and server.names("CreateDatasetVersion")[0]["body"]["versionNotes"] == "longer"
    )
    assert server.datasets[REF]["files"]["b.safetensors"] == b"c" * 71


@pytest.mark.parametrize("status", [403, pytest.param(503, marks=pytest.mark.long)])
def test_an_upload_that_fails_is_an_error_though_the_client_exits_0(server, folder, status):
    server.fail_put["b.safetensors"] = status
    # kaggle 2.2.4 makes the dataset all the same, 2.2.5 gives up
    message = refused("publish", folder, *FAST, says="b.safetensors")
    assert "did not arrive" in message or "Upload unsuccessful" in message
    assert "b.safetensors" not in server.datasets.get(REF, {"files": {}})["files"]


@pytest.mark.long
def test_an_upload_that_fails_for_a_moment_is_tried_again(server, folder):
    server.fail_put["b.safetensors"] = (503, 1)
    code, _, err = audiotag("publish", folder, *FAST)
    assert code == 0, err
    assert server.calls.count("PUT b.safetensors") == 3, "no, how much is there, and again"


@pytest.mark.long
@pytest.mark.parametrize("again", [False, True])
def test_a_file_that_is_lost_after_its_upload(server, folder, again):
    if again:
        assert audiotag("publish", folder, *FAST)[0] == 0
    server.lose.add("a.safetensors")
    refused("publish", folder, *FAST, says=("1 of 5 files did not arrive", "a.safetensors"))


@pytest.mark.long
def test_a_file_that_arrives_short(server, folder):
    server.resize["a.safetensors"] = 4999
    refused("publish", folder, *FAST, says=("a.safetensors (4999 bytes instead of 5000)",))


@pytest.mark.long
def test_the_remote_list_may_lag_behind(server, folder):
    assert audiotag("publish", folder, *FAST)[0] == 0
    (folder / "c.bin").write_bytes(b"new")
    write_manifest(folder, "weights")
    server.stale = 2
    code, _, err = audiotag("publish", folder, *FAST)
    assert code == 0 and err.count("still the previous version") == 2, err


@pytest.mark.long
def test_many_files_come_in_pages(server, folder):
    for i in range(45):
        (folder / f"more-{i}.bin").write_bytes(b"x" * i)
    write_manifest(folder, "weights")
    server.page_size = 7
    code, _, err = audiotag("publish", folder, *FAST)
    assert code == 0, err
    (folder / "one-too-many.bin").write_bytes(b"x")
    write_manifest(folder, "weights")
    before = len(server.calls)
    refused("publish", folder, *FAST, says=("51 files", "50"))
    assert len(server.calls) == before, "nothing is sent"


@pytest.mark.long
def test_a_dataset_that_is_slow(server, folder):
    server.states = ["NOT_YET_PERSISTED", "BLOBS_RECEIVED", "READY"]
    assert audiotag("publish", folder, *FAST)[0] == 0
    assert counted(server.calls)["GetDatasetStatus"] >= 4


@pytest.mark.long
@pytest.mark.parametrize("state", ["BLOBS_RECEIVED", "PENDING"])
def test_a_dataset_that_never_gets_ready(server, folder, state):
    "The client does not know the state PENDING and crashes; its traceback is not shown."
    server.states = [state]
    code, out, err = audiotag("publish", folder, "--every", "0.05", "--wait", "1.5")
    assert code == 2 and "did not become ready" in err and "publish again later" in err


@pytest.mark.long
def test_a_dataset_that_fails(server, folder):
    server.states = ["BLOBS_RECEIVED", "FAILED"]
    refused("publish", folder, *FAST, says="failed")


@pytest.mark.long
def test_a_slug_that_exists_and_is_not_ours(server, folder):
    "The status is denied, as for another user's dataset, and creating fails because the title is taken."
    server.datasets[REF] = {"files": {}, "versions": 1, "asked": 0}
    server.errors["GetDatasetStatus"] = 403, {"code": 403, "message": "Permission 'datasets.get' was denied"}
    refused("publish", folder, *FAST, says="already in use")


@pytest.mark.parametrize("method", [pytest.param("StartBlobUpload", marks=pytest.mark.long), "CreateDataset"])
def test_a_server_that_refuses(server, folder, method):
    server.errors[method] = 403, {"code": 403, "message": "Permission denied for Basic YW5uOjBmMWUyZDNjNGI1YTY5Nzg="}
    message = refused("publish", folder, *FAST, says="Permission denied")
    assert "YW5u" not in message


def test_the_server_cannot_be_reached(server, folder, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    refused("publish", folder, *FAST, says="cannot be reached")


def test_not_signed_in(server, folder, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    refused("publish", folder, *FAST, says="not signed in")
    monkeypatch.setenv("KAGGLE_KEY", "wrong-key-of-ann-12345")
    message = refused("publish", folder, *FAST, says="not signed in")
    assert "wrong-key" not in message


def test_without_the_client(server, folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    monkeypatch.setenv("PATH", "")
    refused("publish", folder, *FAST, says="pip install 'audiotag[kaggle]'")


@pytest.mark.long
def test_the_placeholder_becomes_the_signed_in_user(server, folder):
    about = read_json(folder / "dataset-metadata.json")
    write_json(folder / "dataset-metadata.json", {**about, "id": "your-kaggle-name/bird-weights"})
    assert audiotag("publish", folder, *FAST)[0] == 0
    assert REF in server.datasets and read_json(folder / "dataset-metadata.json")["id"] == REF


def test_a_folder_that_changed_after_packing_is_not_sent(server, folder):
    (folder / "a.safetensors").write_bytes(b"a" * 4999 + b"x")
    refused("publish", folder, *FAST, says=("a.safetensors", "changed since"))
    assert not server.calls


BAD = {
    "a folder in it": (lambda f: (f / "sub").mkdir(), "flat"),
    "a name": (lambda f: (f / "x@y.bin").write_bytes(b""), "x@y.bin"),
    "a file that is never sent": (lambda f: (f / "datapackage.json").write_text("{}"), "datapackage.json"),
    "no metadata": (lambda f: (f / "dataset-metadata.json").unlink(), "dataset-metadata.json"),
    "a title": (
        lambda f: write_json(f / "dataset-metadata.json", {**dataset_metadata("bird-weights"), "title": "birds"}),
        "title",
    ),
    "an id without an owner": (
        lambda f: write_json(f / "dataset-metadata.json", {**dataset_metadata("bird-weights"), "id": "birds"}),
        "id",
    ),
    "no json": (lambda f: (f / "dataset-metadata.json").write_text("{"), "not valid JSON"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_kaggle_would_refuse_is_not_sent(server, folder, what):
    change, word = BAD[what]
    change(folder)
    refused("publish", folder, *FAST, says=word)
    assert not server.calls


# --- kernels --------------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path):
    cells = [
        "# parameters\nDATA = 'birds-2024'\nWEIGHTS = 'bird-weights'\nWHEELS = 'bob/audiotag-wheels'",
        "print('hello')",
    ]
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(c, outputs=[nbformat.v4.new_output("stream", text="old")]) for c in cells]
    )
    nbformat.write(nb, tmp_path / "infer.ipynb")
    assert audiotag("pack", "kernel", tmp_path / "infer.ipynb", tmp_path / "bird-kernel", "--owner", "ann")[0] == 0
    return tmp_path / "bird-kernel"


def test_push_sends_what_the_notebook_names_without_internet(server, kernel):
    code, out, err = audiotag("push", kernel)
    assert code == 0, err
    (sent,) = server.kernels["ann/bird-kernel"]
    assert sent.get("enableInternet") in (None, False) and sent["isPrivate"] is True
    assert sent["datasetDataSources"] == ["ann/bird-weights", "bob/audiotag-wheels"] and sent[
        "competitionDataSources"
    ] == ["birds-2024"]
    assert "hello" in sent["text"] and "old" not in sent["text"]
    assert "version 1" in out and read_json(kernel / "kernel-metadata.json")["enable_internet"] is False


def test_push_follows_the_notebook(server, kernel):
    "Changing a parameter in the packed notebook changes the sources; sources that the user added stay."
    book = kernel / "infer.ipynb"
    book.write_text(book.read_text().replace("'bird-weights'", "'cat/better-weights'"))
    about = read_json(kernel / "kernel-metadata.json")
    write_json(
        kernel / "kernel-metadata.json",
        {**about, "dataset_sources": ["zoe/noise"], "enable_internet": True, "enable_gpu": "true"},
    )
    assert audiotag("push", kernel)[0] == 0
    (sent,) = server.kernels["ann/bird-kernel"]
    assert sent["datasetDataSources"] == ["cat/better-weights", "bob/audiotag-wheels", "zoe/noise"] and sent.get(
        "enableInternet"
    ) in (None, False)
    assert sent["enableGpu"] is True


@pytest.mark.parametrize(
    "reply,word",
    [
        ({"error": "Kernel title is taken", "versionNumber": 0}, "Kernel title is taken"),
        ({"invalidDatasetSources": ["ann/bird-weights"]}, "ann/bird-weights"),
        pytest.param({"invalidCompetitionSources": ["birds-2024"]}, "birds-2024", marks=pytest.mark.long),
    ],
)
def test_a_push_that_fails_though_the_client_exits_0(server, kernel, reply, word):
    server.push_reply = reply
    refused("push", kernel, says=word)
    assert not (kernel / "pushed.json").exists()
    refused("submit", kernel, says="--version")


@pytest.mark.long
def test_follow_fetches_log_and_output(server, kernel, tmp_path):
    assert audiotag("push", kernel)[0] == 0
    server.kernel_states = ["QUEUED", "RUNNING", "COMPLETE"]
    code, out, err = audiotag("follow", kernel, "--out", tmp_path / "out", "--every", "0.05")
    assert code == 0, err
    assert (tmp_path / "out" / "submission.csv").read_bytes() == server.output["submission.csv"]
    assert "done" in out and "complete" in out and "queued" in err
    # the client alone would keep the newer-looking file at home
    server.output["submission.csv"] = b"fname,Bark\na.wav,0.7\n"
    assert audiotag("follow", "ann/bird-kernel", "--out", tmp_path / "out", "--every", "0.05")[0] == 0
    assert (tmp_path / "out" / "submission.csv").read_bytes() == server.output["submission.csv"]


@pytest.mark.long
def test_follow_a_kernel_that_fails(server, kernel, tmp_path):
    assert audiotag("push", kernel)[0] == 0
    server.kernel_states, server.failure, server.output = (
        ["RUNNING", "ERROR"],
        "Your notebook tried to allocate more memory than is available.",
        {},
    )
    code, out, err = audiotag("follow", kernel, "--out", tmp_path / "out", "--every", "0.05")
    assert code == 2 and "more memory" in out + err and (tmp_path / "out" / "bird-kernel.log").is_file()


def test_follow_does_not_write_into_a_folder_of_the_users(server, kernel, tmp_path):
    assert audiotag("push", kernel)[0] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    refused("follow", kernel, "--out", tmp_path / "mine", "--every", "0.05", says="already there")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "words"


def test_follow_a_kernel_that_does_not_exist(server, kernel, tmp_path):
    server.errors["GetKernelSessionStatus"] = 403, {"code": 403, "message": "denied"}
    refused("follow", "ann/no-such-kernel", "--out", tmp_path / "out", "--every", "0.05", says="cannot read its status")
    refused("follow", "nonsense", "--out", tmp_path / "out", says="neither")


def test_submit_a_version(server, kernel):
    assert audiotag("push", kernel)[0] == 0
    code, out, err = audiotag("submit", kernel, "--message", "first")
    assert code == 0 and "Successfully submitted to birds-2024" in out and "4 submissions remaining" in out
    (sent,) = server.submissions
    assert sent == {
        "competitionName": "birds-2024",
        "kernelOwner": "ann",
        "kernelSlug": "bird-kernel",
        "kernelVersion": 1,
        "fileName": "submission.csv",
        "submissionDescription": "first",
    }
    assert audiotag("submit", "ann/bird-kernel", "--competition", "birds-2024", "--version", "1")[0] == 0
    refused("submit", "ann/bird-kernel", "--version", "1", says="--competition")
    refused("submit", "ann/bird-kernel", "--competition", "birds-2024", says="--version")
    server.errors["CreateCodeSubmission"] = (
        400,
        {"code": 400, "message": "Submission not allowed: the notebook uses internet"},
    )
    refused("submit", kernel, says="uses internet")
    assert len(server.submissions) == 2


def test_packing_a_kernel_again(server, kernel, tmp_path):
    assert audiotag("push", kernel)[0] == 0
    code, _, err = audiotag("pack", "kernel", tmp_path / "infer.ipynb", kernel)
    assert code == 0 and read_json(kernel / "kernel-metadata.json")["id"] == "ann/bird-kernel", err
    (kernel / "notes.txt").write_text("mine")
    refused("pack", "kernel", tmp_path / "infer.ipynb", kernel, says="notes.txt")
    big = json.loads((tmp_path / "infer.ipynb").read_text())
    big["cells"][1]["source"] = "x = '" + "y" * 1_000_000 + "'"
    (tmp_path / "big.ipynb").write_text(json.dumps(big))
    refused("pack", "kernel", tmp_path / "big.ipynb", tmp_path / "big-kernel", says="less than 1")
    assert not (tmp_path / "big-kernel").exists()
    shutil.rmtree(kernel)


def test_a_notebook_that_was_edited_in_its_packed_folder_is_not_overwritten(kernel, tmp_path):
    packed = kernel / "infer.ipynb"
    mine = packed.read_text().replace("hello", "my own words")
    packed.write_text(mine)
    refused("pack", "kernel", tmp_path / "infer.ipynb", kernel, says=["infer.ipynb", "changed since it was packed"])
    assert packed.read_text() == mine
    shutil.copy(packed, tmp_path / "infer.ipynb")
    assert audiotag("pack", "kernel", tmp_path / "infer.ipynb", kernel)[0] == 0 and "my own words" in packed.read_text()


@pytest.mark.long
def test_a_bundle_without_graphs_is_sent_with_a_warning(server, tmp_path):
    from audiotag.infer.bundle import seal
    from audiotag.audio.features import LogMel
    from audiotag.models.cnn import CNNModel1
    from audiotag.infer.windows import Windows

    fe, net, folder = (
        LogMel(sample_rate=16000, n_fft=512, hop_length=128, n_mels=32, f_max=None),
        CNNModel1(width=4),
        tmp_path / "bird-weights",
    )
    seal(
        folder,
        name="birds",
        classes=["a", "b"],
        front_end=fe,
        windows=Windows(frames=64, hop=32),
        activation="sigmoid",
        model=net,
        prior=[0.5, 0.5],
        members=[dict(stage="curated", fold=0, oof={}, state=net.build(2).state_dict())],
    )
    write_json(folder / "dataset-metadata.json", dataset_metadata("bird-weights", owner="ann", description="# birds\n"))
    write_manifest(folder, "weights")
    code, out, err = audiotag("publish", folder, *FAST)
    message = [line for line in err.splitlines() if "graphs" in line]
    assert code == 0 and len(message) == 1 and f"make them with `audiotag export RUN {folder}`" in message[0], err
