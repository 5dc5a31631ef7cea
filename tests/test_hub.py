"""Rules from the Hub and to it, against a loopback server that fails in all the ways it may."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loopback_hub import TOKEN, Fault, LoopbackHub, Reply, altered, stalled, status, truncated

from learned_optim import hub, publishing, weights
from learned_optim.rules import L2L
from learned_optim.weights import LoadedRule, WeightsError, WeightsUnavailable, save_folder

SMALL = L2L(layers=1, hidden=2)
CARD = "---\nlicense: apache-2.0\n---\n# A rule\n"
REPO = "user/rule"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A rule as it is published."""
    drawn = SMALL.init_weights(torch.Generator().manual_seed(0))
    save_folder(tmp_path / "rule", SMALL, drawn, name="small")
    (tmp_path / "rule" / "README.md").write_text(CARD)
    return tmp_path / "rule"


@pytest.fixture
def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def blobs(cache: Path, large: bool) -> list[Path]:
    """The files of the cache, of which the large ones have the longer names."""
    found = cache.glob("models--user--rule/blobs/*")
    return [path for path in found if (len(path.name) == 64) is large]


def damage(path: Path) -> None:
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))


# -- what a source means ---------------------------------------------------------------------------


def test_a_loaded_rule_comes_back_as_it_is(folder: Path):
    loaded = weights.load_folder(folder)
    assert hub.load_rule(loaded) is loaded


@pytest.mark.parametrize("form", ["path", "absolute", "dot", "bare", "nested", "home"])
def test_a_folder_is_found_by_any_path(form: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent if form != "nested" else folder.parent.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    source = {
        "path": folder,
        "absolute": str(folder),
        "dot": "./rule",
        "bare": "rule",
        "nested": f"{folder.parent.name}/rule",
        "home": "~/rule",
    }[form]
    assert hub.load_rule(source).name == "small"


def test_an_existing_folder_goes_before_the_hub(
    folder: Path, server: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    (folder.parent / "user").mkdir()
    folder.rename(folder.parent / "user" / "rule@v1")
    monkeypatch.chdir(folder.parent)
    assert hub.load_rule("user/rule@v1").name == "small"
    assert server.requests == []


def test_a_bundled_name_goes_before_a_folder_and_never_touches_the_network(
    folder: Path, server: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    found = weights.load_folder(folder)
    monkeypatch.setattr(hub, "bundled_names", lambda: ["rule"])
    monkeypatch.setattr(hub, "load_bundled", lambda name: found)
    monkeypatch.chdir(folder.parent)
    (folder / "config.json").unlink()
    assert hub.load_rule("rule") is found
    assert server.requests == []


@pytest.mark.parametrize(
    "source",
    [
        "./rul",
        "../x@y/z",
        "/no/where",
        "~/nowhere",
        "~nosuchuser/x",
        "~\0",
        "a/b/c",
        "a\\b",
        ".",
        "a/b@c d",
        "a@/b",
    ],
)
def test_a_mistyped_path_is_called_a_path(
    source: str, tmp_path: Path, server: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsUnavailable, match=r"does not exist|has no config") as error:
        hub.load_rule(source)
    assert "user/repo" not in str(error.value)
    assert "Hub" not in str(error.value)
    assert server.requests == []


def test_a_path_of_two_parts_may_have_been_meant_for_the_hub(server: LoopbackHub):
    with pytest.raises(WeightsUnavailable, match=r"does not exist.*'user/rule@main'"):
        hub.load_rule("user/rule")
    assert server.requests == []


def test_a_single_word_is_a_bundled_name(server: LoopbackHub):
    with pytest.raises(WeightsUnavailable, match="no bundled rule is called 'nosuch'"):
        hub.load_rule("nosuch")
    assert server.requests == []


@pytest.mark.parametrize("source", [None, 3, b"rule", SMALL])
def test_anything_else_is_a_type_error(source: object):
    with pytest.raises(TypeError, match="a rule is a bundled name"):
        hub.load_rule(source)  # pyright: ignore[reportArgumentType]


# -- download --------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["main", "v1", "commit"])
def test_a_rule_comes_from_the_hub_by_branch_tag_and_commit(
    revision: str, folder: Path, files: dict[str, bytes], server: LoopbackHub
):
    commit = server.put(REPO, files, tag="v1")
    loaded = hub.load_rule(f"{REPO}@{commit if revision == 'commit' else revision}")
    expected = weights.load_folder(folder)
    assert (loaded.rule, loaded.name, loaded.sha256) == (SMALL, "small", expected.sha256)
    assert torch.equal(loaded.weights["head.w"], expected.weights["head.w"])


def test_a_cached_commit_makes_no_request(files: dict[str, bytes], server: LoopbackHub):
    commit = server.put(REPO, files)
    hub.load_rule(f"{REPO}@{commit}")
    server.requests.clear()
    hub.load_rule(f"{REPO}@{commit}")
    assert server.requests == []


def test_a_cached_branch_is_asked_whether_it_moved_but_not_downloaded_again(
    files: dict[str, bytes], server: LoopbackHub
):
    server.put(REPO, files)
    hub.load_rule(f"{REPO}@main")
    server.requests.clear()
    hub.load_rule(f"{REPO}@main")
    assert server.requests
    assert all(request.startswith("HEAD") for request in server.requests)


def test_a_branch_that_moved_is_downloaded(
    folder: Path, files: dict[str, bytes], server: LoopbackHub
):
    server.put(REPO, files, tag="v1")
    first = hub.load_rule(f"{REPO}@main")
    new = save_folder(folder, SMALL, SMALL.init_weights(torch.Generator()), name="new")
    server.put(REPO, {path.name: path.read_bytes() for path in folder.iterdir()})
    assert hub.load_rule(f"{REPO}@main").sha256 == new.sha256
    assert hub.load_rule(f"{REPO}@v1").sha256 == first.sha256


def test_both_files_come_from_one_commit_while_the_branch_moves(
    folder: Path, files: dict[str, bytes], server: LoopbackHub
):
    server.put(REPO, files)
    old = weights.load_folder(folder)
    save_folder(folder, SMALL, SMALL.init_weights(torch.Generator()), name="new")

    def moves(right: Callable[[], Reply]) -> Reply:
        server.put(REPO, {path.name: path.read_bytes() for path in folder.iterdir()})
        return right()

    server.faults = [Fault("GET /storage", moves, times=1)]
    loaded = hub.load_rule(f"{REPO}@main")
    assert (loaded.name, loaded.sha256) == ("small", old.sha256)
    assert hub.load_rule(f"{REPO}@main").name == "new"


def test_a_private_rule_needs_the_token_which_the_storage_host_never_sees(
    files: dict[str, bytes], server: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    server.put(REPO, files)
    server.repos[REPO].private = True
    with pytest.raises(WeightsUnavailable, match=r"or it is private: `hf auth login`"):
        hub.load_rule(f"{REPO}@main")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.load_rule(f"{REPO}@main").name == "small"
    assert server.leaks == []


# -- what is not there -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("user/nosuch@main", "no such repository, or it is private"),
        ("user/rule@v9", "no tag, branch or commit 'v9'"),
        (f"user/rule@{'0' * 40}", "no tag, branch or commit '0000"),
        ("user/empty@main", r"is no rule: it lacks model\.safetensors or config\.json"),
        ("user/half@main", r"is no rule: it lacks model\.safetensors or config\.json"),
        ("a--b/rule@main", "no name that the Hub allows"),
    ],
)
def test_what_is_not_on_the_hub_is_unavailable(
    source: str, message: str, files: dict[str, bytes], server: LoopbackHub
):
    server.put("user/rule", files)
    server.put("user/empty", {"README.md": b""})
    server.put("user/half", {"model.safetensors": files["model.safetensors"]})
    with pytest.raises(WeightsUnavailable, match=message) as error:
        hub.load_rule(source)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (401, None, "or it is private"),
        (403, "GatedRepo", "accept its terms"),
        (403, None, "accept its terms"),
        (404, "RepoNotFound", "no such repository"),
        (400, None, "is not available"),
        (418, None, "is not available"),
    ],
)
def test_a_refusal_is_final_even_with_a_copy_in_the_cache(
    code: int, name: str | None, message: str, files: dict[str, bytes], server: LoopbackHub
):
    server.put(REPO, files)
    hub.load_rule(f"{REPO}@main")
    server.requests.clear()
    server.faults = [status(code, "HEAD", error=name)]
    with pytest.raises(WeightsUnavailable, match=message):
        hub.load_rule(f"{REPO}@main")
    assert len(server.requests) == 1


# -- servers and networks that fail ----------------------------------------------------------------


@pytest.mark.parametrize(
    "request_", ["HEAD .*safetensors", "HEAD .*json", "GET /storage", "GET .*json"]
)
def test_a_server_that_fails_once_is_asked_again(
    request_: str, files: dict[str, bytes], server: LoopbackHub
):
    server.put(REPO, files)
    server.faults = [status(500, request_, times=1)]
    assert hub.load_rule(f"{REPO}@main").name == "small"
    assert server.faults[0].times == 0


@pytest.mark.parametrize("request_", ["HEAD", "GET /storage", "GET .*json"])
def test_a_server_that_always_fails_leaves_the_rule_unavailable(
    request_: str, files: dict[str, bytes], server: LoopbackHub
):
    server.put(REPO, files)
    server.faults = [status(503, request_)]
    with pytest.raises(WeightsUnavailable, match=f"{server.url} was asked.*give its path"):
        hub.load_rule(f"{REPO}@main")
    # Clients before version 1 ask five times more themselves.
    assert len(server.requests) < 30


@pytest.mark.parametrize("code", [408, 429, 503])
def test_a_server_that_always_fails_does_not_matter_with_a_warm_cache(
    code: int, files: dict[str, bytes], server: LoopbackHub
):
    commit = server.put(REPO, files)
    hub.load_rule(f"{REPO}@main")
    server.faults = [status(code, "")]
    with pytest.warns(UserWarning, match=f"using commit {commit} from the cache"):
        assert hub.load_rule(f"{REPO}@main").name == "small"


def test_a_body_cut_off_once_is_completed(files: dict[str, bytes], server: LoopbackHub):
    server.put(REPO, files)
    server.faults = [truncated("GET /storage", 50, times=1), truncated("GET .*json", 50, times=1)]
    assert hub.load_rule(f"{REPO}@main").name == "small"
    assert [fault.times for fault in server.faults] == [0, 0]


def test_a_body_that_is_always_cut_off_leaves_the_rule_unavailable(
    files: dict[str, bytes], server: LoopbackHub, cache: Path
):
    server.put(REPO, files)
    server.faults = [truncated("GET /storage", 0)]
    with pytest.raises(WeightsUnavailable, match="was asked"):
        hub.load_rule(f"{REPO}@main")
    assert blobs(cache, large=True) == []


@pytest.mark.parametrize("where", ["before the headers", "in the body"])
def test_a_server_that_hangs_is_given_up(
    where: str, files: dict[str, bytes], server: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    server.put(REPO, files)
    release = threading.Event()
    request = "HEAD" if where == "before the headers" else "GET /storage"
    server.faults = [stalled(request, release)]
    try:
        with pytest.raises(WeightsUnavailable, match=r"was asked.*[Tt]imed? ?out"):
            hub.load_rule(f"{REPO}@main")
    finally:
        release.set()


def test_without_a_network_a_copy_is_used_and_none_is_unavailable(
    files: dict[str, bytes], server: LoopbackHub, connect: Callable[[str], None]
):
    commit = server.put(REPO, files)
    hub.load_rule(f"{REPO}@main")
    connect("http://127.0.0.1:1")
    with pytest.warns(UserWarning, match="from the cache"):
        assert hub.load_rule(f"{REPO}@main").name == "small"
    assert hub.load_rule(f"{REPO}@{commit}").name == "small"
    with pytest.raises(WeightsUnavailable, match="was asked and the cache has no copy"):
        hub.load_rule("user/other@main")


def test_offline_mode_makes_no_request(
    files: dict[str, bytes], server: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    server.put(REPO, files)
    hub.load_rule(f"{REPO}@main")
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.load_rule(f"{REPO}@main").name == "small"
    with pytest.raises(WeightsUnavailable, match="not in the cache and HF_HUB_OFFLINE is set"):
        hub.load_rule("user/other@main")
    assert server.requests == []


# -- contents that are not what was announced ------------------------------------------------------


@pytest.mark.parametrize("request_", ["GET /storage", "GET .*json"])
def test_a_wrong_body_of_the_right_size_is_fetched_again(
    request_: str, files: dict[str, bytes], server: LoopbackHub
):
    server.put(REPO, files)
    server.faults = [altered(request_, times=1)]
    assert hub.load_rule(f"{REPO}@main").name == "small"
    assert server.faults[0].times == 0


@pytest.mark.parametrize("request_", ["GET /storage", "GET .*json"])
def test_a_wrong_body_is_fetched_again_only_once(
    request_: str, files: dict[str, bytes], server: LoopbackHub
):
    server.put(REPO, files)
    server.faults = [altered(request_, times=1000)]
    with pytest.raises(WeightsError, match=r"other contents than the Hub announced.*Fetched again"):
        hub.load_rule(f"{REPO}@main")
    assert server.faults[0].times == 998


def test_a_change_that_only_the_hash_can_see_is_seen(
    files: dict[str, bytes], server: LoopbackHub, cache: Path
):
    commit = server.put(REPO, files)
    hub.load_rule(f"{REPO}@{commit}")
    (config,) = blobs(cache, large=False)
    config.write_bytes(config.read_bytes().replace(b'"scale": 0.1', b'"scale": 0.9'))
    rule = hub.load_rule(f"{REPO}@{commit}").rule
    assert rule.config()["scale"] == 0.1


@pytest.mark.parametrize("large", [True, False])
def test_a_damaged_cache_is_cured(
    large: bool, files: dict[str, bytes], server: LoopbackHub, cache: Path
):
    commit = server.put(REPO, files)
    hub.load_rule(f"{REPO}@{commit}")
    damage(blobs(cache, large)[0])
    assert hub.load_rule(f"{REPO}@{commit}").name == "small"
    server.requests.clear()
    assert hub.load_rule(f"{REPO}@{commit}").name == "small"
    assert server.requests == []


def test_a_damaged_cache_without_a_network_is_an_error_that_says_both(
    files: dict[str, bytes], server: LoopbackHub, cache: Path
):
    commit = server.put(REPO, files)
    hub.load_rule(f"{REPO}@{commit}")
    damage(blobs(cache, large=True)[0])
    server.faults = [status(503, "")]
    with pytest.raises(WeightsError, match=r"other contents.*Fetched again: .* is not available"):
        hub.load_rule(f"{REPO}@{commit}")


def test_a_cache_without_links_is_still_checked_by_the_config(
    files: dict[str, bytes], server: LoopbackHub, cache: Path
):
    commit = server.put(REPO, files)
    hub.load_rule(f"{REPO}@{commit}")
    for link in cache.glob("models--user--rule/snapshots/*/*"):
        data = link.read_bytes()
        link.unlink()
        link.write_bytes(data)
    assert hub.load_rule(f"{REPO}@{commit}").name == "small"
    damage(next(cache.glob("models--user--rule/snapshots/*/model.safetensors")))
    server.faults = [status(503, "")]
    with pytest.raises(WeightsError, match="damaged or replaced"):
        hub.load_rule(f"{REPO}@{commit}")


def test_a_bad_rule_on_the_hub_says_which_check_failed(
    files: dict[str, bytes], server: LoopbackHub
):
    content = json.loads(files["config.json"])
    content["format_version"] = 2
    server.put(REPO, files | {"config.json": json.dumps(content).encode()})
    with pytest.raises(WeightsError, match=r"user/rule@main cannot be used.*upgrade learned_optim"):
        hub.load_rule(f"{REPO}@main")


@pytest.mark.parametrize(
    ("file", "limit"), [("model.safetensors", 16 * 1024 * 1024), ("config.json", 64 * 1024)]
)
def test_a_file_over_its_limit_is_not_downloaded(
    file: str, limit: int, files: dict[str, bytes], server: LoopbackHub
):
    server.put(REPO, files | {file: bytes(limit + 1)})
    message = f"{file} of user/rule@.* has {limit + 1} bytes, over the limit of {limit}; it was not"
    with pytest.raises(WeightsError, match=message):
        hub.load_rule(f"{REPO}@main")
    # Of files: some clients ask the API about themselves, once a process.
    gets = [request for request in server.requests if request.startswith("GET")]
    fetched = [request for request in gets if "/api/" not in request]
    assert len(fetched) == (0 if file == "model.safetensors" else 1)
    # One at its limit is, and refused for what is in it.
    server.put(REPO, files | {file: bytes(limit)})
    with pytest.raises(WeightsError, match="cannot be used"):
        hub.load_rule(f"{REPO}@main")


# -- this machine ----------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_rule_unavailable_and_the_cache_usable(
    files: dict[str, bytes], server: LoopbackHub, cache: Path
):
    resource = pytest.importorskip("resource")
    server.put(REPO, files)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(
            WeightsUnavailable,
            match=r"cannot be written; HF_HOME puts it elsewhere.*File too large",
        ):
            hub.load_rule(f"{REPO}@main")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert blobs(cache, large=True) == []
    assert hub.load_rule(f"{REPO}@main").name == "small"


def test_two_processes_may_download_at_once(
    files: dict[str, bytes], server: LoopbackHub, cache: Path
):
    server.put(REPO, files)
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(hub.__file__).parent.parent),
    }
    script = f"from learned_optim.hub import load_rule; print(load_rule('{REPO}@main').sha256)"
    release = threading.Event()
    server.faults = [stalled("GET /storage", release, times=1)]
    running = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    # The first is held in the middle of its download until both are at work.
    wait = threading.Event()
    for _ in range(600):
        if sum("HEAD" in request and "safetensors" in request for request in server.requests) >= 3:
            break
        wait.wait(0.05)
    release.set()
    printed = {process.communicate(timeout=60)[0].decode().strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert printed == {hub.load_rule(f"{REPO}@main").sha256}


# -- publish ---------------------------------------------------------------------------------------


# The client's own, of the library that it uploads with.
upload = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def writable(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return server


@upload
def test_what_is_published_loads_by_commit_tag_and_branch(folder: Path, writable: LoopbackHub):
    (folder / "recipe.toml").write_text("")
    (folder / "checkpoint.pt").write_bytes(b"not for others")
    source = publishing.publish(folder, REPO, tag="v1")
    assert source.startswith(f"{REPO}@")
    assert set(writable.repos[REPO].commits[source.partition("@")[2]]) == {
        "config.json",
        "model.safetensors",
        "README.md",
        "recipe.toml",
    }
    expected = weights.load_folder(folder)
    for name in (source, f"{REPO}@v1", f"{REPO}@main"):
        loaded: LoadedRule = hub.load_rule(name)
        assert (loaded.sha256, loaded.rule) == (expected.sha256, expected.rule)
    assert not writable.repos[REPO].private


@upload
def test_a_second_version_gets_its_own_tag(folder: Path, writable: LoopbackHub):
    first = publishing.publish(folder, REPO, tag="v1")
    save_folder(folder, SMALL, SMALL.init_weights(torch.Generator()), name="small")
    second = publishing.publish(folder, REPO, tag="v2")
    refs = writable.repos[REPO].refs
    assert (f"{REPO}@{refs['v1']}", f"{REPO}@{refs['v2']}") == (first, second)
    assert hub.load_rule(f"{REPO}@v1").sha256 != hub.load_rule(f"{REPO}@v2").sha256


@upload
def test_a_version_has_no_files_of_the_one_before(folder: Path, writable: LoopbackHub):
    for name in ("recipe.toml", "metrics.json"):
        (folder / name).write_text("{}")
    publishing.publish(folder, REPO)
    for name in ("recipe.toml", "metrics.json"):
        (folder / name).unlink()
    commit = publishing.publish(folder, REPO).partition("@")[2]
    assert set(writable.repos[REPO].commits[commit]) == {
        "config.json",
        "model.safetensors",
        "README.md",
    }


@upload
def test_a_tag_that_exists_is_refused_before_anything_is_uploaded(
    folder: Path, writable: LoopbackHub
):
    publishing.publish(folder, REPO, tag="v1")
    before = dict(writable.repos[REPO].refs)
    save_folder(folder, SMALL, SMALL.init_weights(torch.Generator()), name="small")
    with pytest.raises(WeightsError, match="has a tag 'v1' already"):
        publishing.publish(folder, REPO, tag="v1")
    assert writable.repos[REPO].refs == before


@upload
def test_a_repository_can_be_made_private(folder: Path, writable: LoopbackHub):
    publishing.publish(folder, REPO, private=True)
    assert writable.repos[REPO].private


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (None, r"has no README\.md"),
        ("", "must begin with a header"),
        ("# A rule\n", "must begin with a header"),
        ("---\ntags: [x]\n---\n", "states the licence"),
        ("---\nlicense:\n---\n", "states the licence"),
        ("---\nx: y\n---\nlicense: apache-2.0\n---\n", "states the licence"),
    ],
)
@upload
def test_a_rule_without_a_model_card_is_not_published(
    card: str | None, message: str, folder: Path, writable: LoopbackHub
):
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_text(card)
    with pytest.raises(WeightsError, match=message):
        publishing.publish(folder, REPO)
    assert writable.requests == []


@upload
def test_a_rule_that_could_not_be_loaded_is_not_published(folder: Path, writable: LoopbackHub):
    damage(folder / "model.safetensors")
    with pytest.raises(WeightsError, match="damaged or replaced"):
        publishing.publish(folder, REPO)
    with pytest.raises(WeightsUnavailable, match="does not exist"):
        publishing.publish(folder / "no", REPO)
    assert writable.requests == []


@pytest.mark.parametrize(
    "repo", ["rule", "user/", "/rule", "a/b/c", "a b/c", "user/rule@v1", "a--b/c"]
)
@upload
def test_a_malformed_repository_is_refused(repo: str, folder: Path, writable: LoopbackHub):
    with pytest.raises(ValueError, match=r"repo must be 'user/repo'|Cannot have --"):
        publishing.publish(folder, repo)
    assert writable.requests == []


@pytest.mark.parametrize("tag", ["", "v 1", "-v", "a/b", "v1\n"])
@upload
def test_a_malformed_tag_is_refused(tag: str, folder: Path, writable: LoopbackHub):
    with pytest.raises(ValueError, match="tag must be"):
        publishing.publish(folder, REPO, tag=tag)


@pytest.mark.parametrize("request_", ["POST .*create", "POST .*preupload", "POST .*commit"])
@pytest.mark.parametrize("code", [401, 403])
@upload
def test_a_refused_upload_asks_for_a_write_token(
    code: int, request_: str, folder: Path, writable: LoopbackHub
):
    writable.faults = [status(code, request_)]
    with pytest.raises(WeightsUnavailable, match=r"could not be published.*write token"):
        publishing.publish(folder, REPO, tag="v1")
    assert all("v1" not in repo.refs for repo in writable.repos.values())


@upload
def test_an_upload_without_a_token_is_refused(folder: Path, server: LoopbackHub):
    with pytest.raises(WeightsUnavailable, match="write token"):
        publishing.publish(folder, REPO)
