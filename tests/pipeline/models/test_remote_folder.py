from __future__ import annotations

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import InvalidInput
from persres.pipeline.models.names import check_model_uri, is_uri
from persres.pipeline.models.remote_folder import RemoteFile, RemoteFolder, listing_key
from persres.pipeline.spec.run_spec import RunSpec

FILES = st.dictionaries(
    st.text("ab/.", min_size=1), st.builds(RemoteFile, st.integers(0, 9), st.sampled_from("xyz")), max_size=5
)


@given(FILES, FILES)
def test_listing_key_differs_for_different_listings(one, other):
    assert (listing_key(one, one) == listing_key(other, other)) == (one == other)


@given(FILES)
def test_listing_key_without_tags_is_none(files):
    assert listing_key({**files, "x": RemoteFile(1, None)}, [*files, "x"]) is None


def test_is_uri_recognizes_addresses():
    assert is_uri("s3://bucket/model") and is_uri("memory://model")
    assert not any(map(is_uri, ("spriteworld", "team/drawings", "/models/m", "file:///models/m")))


@pytest.mark.parametrize("uri", ["s3://AKIA:hunter22@bucket/m", "gs://bucket/m?token=hunter22", "az://c/m#hunter22"])
def test_spec_with_a_secret_is_refused_without_showing_it(uri):
    for refused in (
        lambda: check_model_uri(uri, "model"),
        lambda: RunSpec.from_yaml(f"base_model: '{uri}'"),
        lambda: RunSpec.from_yaml(f"scorer: '{uri}'"),
    ):
        with pytest.raises(InvalidInput, match="credentials or a query") as caught:
            refused()
        assert "hunter22" not in str(caught.value)


def test_interrupt_ends_running_downloads(tmp_path):
    fs = fsspec.filesystem("memory")
    names = [f"part-{number}.safetensors" for number in range(8)]
    for name in names:
        fs.pipe_file(f"/interrupted/{name}", bytes(1 << 20))
    remote = RemoteFolder("memory://interrupted", what="base_model", retry_s=0)

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote.fetch(remote.list(names[0]), tmp_path, interrupt)
    assert not list(tmp_path.glob("*.safetensors"))


def test_remote_folder_works_on_any_file_system(tmp_path):
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/of-a-test/model_index.json", b"{}")
    fs.pipe_file("/of-a-test/unet/config.json", b"[1]")
    remote = RemoteFolder("memory://of-a-test/", what="base_model", retry_s=0)
    seen: list[tuple[int, int]] = []

    files = remote.list("model_index.json")
    remote.fetch(files, tmp_path, lambda done, total: seen.append((done, total)))

    assert {name: file.size for name, file in files.items()} == {"model_index.json": 2, "unet/config.json": 3}
    assert (tmp_path / "unet" / "config.json").read_bytes() == b"[1]"
    assert seen[-1] == (5, 5) and all(done <= total for done, total in seen)
