"""Image sets: bundled, real, missing and damaged."""

import ast
import dataclasses
import gzip
import hashlib
import http.server
import io
import os
import re
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from companion.__main__ import main
from companion.data import images
from companion.data.catalogue import catalogue
from companion.data.fetch import fetch
from companion.data.files import open_picture
from companion.data.growth import load_growth
from companion.data.images import (
    CIFAR10_SHA256,
    IMAGE_SETS,
    MNIST_SHA256,
    crop_pad_flip,
    hold_out,
    load_image_folder,
    load_images,
    standardise,
)
from companion.data.root import (
    CorruptDataError,
    IncompleteDataError,
    MissingDataError,
    data_root,
    verify,
)
from companion.data.signals import load_pictures
from companion.data.surveillance import load_pets, load_town_centre
from companion.files import ROOT


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- the bundled set

# sha256 over pixels and labels, which every record of a run on digits carries
DIGITS = "a8cba2d73cbb8f42c0da65fc416b00a26a7b5a127ddc76983b25f93b7309bedd"


def test_digits_are_split_in_a_fixed_way():
    data = load_images("digits")
    assert data.train_x.shape == (1347, 1, 8, 8)
    assert data.test_x.shape == (450, 1, 8, 8)
    assert data.train_y.shape == (1347,)
    assert data.train_x.min() == 0
    assert data.train_x.max() == 1
    assert data.classes == tuple("0123456789")
    assert (data.train_x.dtype, data.train_y.dtype) == (torch.float32, torch.int64)
    assert data.checksum == DIGITS
    assert load_images("digits").checksum == DIGITS


def test_the_split_of_digits_is_a_partition_of_the_original():
    from sklearn.datasets import load_digits

    data = load_images("digits")
    ours = torch.cat([data.train_x, data.test_x]).flatten(1) * 16
    labels = torch.cat([data.train_y, data.test_y])
    rows = sorted((*x, y) for x, y in zip(ours.int().tolist(), labels.tolist(), strict=False))
    images, targets = load_digits(return_X_y=True)
    assert rows == sorted((*map(int, x), int(y)) for x, y in zip(images, targets, strict=True))


def test_digits_are_the_same_wherever_scikit_learn_keeps_them(monkeypatch):
    monkeypatch.setattr(images, "DIGITS_FILE", "elsewhere.csv.gz")
    assert load_images("digits").checksum == DIGITS


def test_digits_are_read_without_scikit_learns_imports():
    code = "import sys; from companion.data.images import load_images as load; load('digits'); "
    code += "assert not {'sklearn', 'pandas', 'scipy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_subset_and_a_copy_keep_everything_else():
    data = load_images("digits")
    few = data.limited(100, seed=1)
    assert few.train_x.shape == (100, 1, 8, 8)
    assert torch.equal(few.test_x, data.test_x)
    assert torch.equal(few.train_x, data.limited(100, seed=1).train_x)
    assert not torch.equal(few.train_x, data.limited(100, seed=2).train_x)
    assert data.limited(0) is data
    with pytest.raises(ValueError, match="count = 1348"):
        data.limited(1348)
    moved = data.to("cpu")
    assert (moved.name, moved.classes) == (data.name, data.classes)


def test_a_held_out_part_and_the_rest_are_a_partition():
    data = load_images("digits")
    rest, (x, y) = hold_out(data, 0.1, seed=0)
    assert len(x) == len(y) == 135
    assert len(rest.train_x) == 1347 - 135
    both = torch.cat([rest.train_x, x]).flatten(1)
    assert sorted(both.tolist()) == sorted(data.train_x.flatten(1).tolist())
    labels = torch.cat([rest.train_y, y])
    assert torch.equal(labels.bincount(), data.train_y.bincount())
    assert torch.equal(hold_out(data, 0.1, seed=0)[1][0], x)


@pytest.mark.parametrize("per_channel", [False, True])
def test_standardised_training_images_have_mean_zero_and_deviation_one(per_channel):
    g = generator()
    data = load_images("digits").replace(
        train_x=torch.rand((50, 3, 4, 4), generator=g)
        * torch.tensor([1.0, 5.0, 9.0])[:, None, None],
        test_x=torch.rand((20, 3, 4, 4), generator=g),
    )
    done = standardise(data, per_channel=per_channel)
    parts = done.train_x.unbind(1) if per_channel else [done.train_x]
    for part in parts:
        assert part.mean().item() == pytest.approx(0, abs=1e-5)
        assert part.std().item() == pytest.approx(1, abs=1e-5)
    # the test images go through the training images' transform, not their own
    dims = (0, 2, 3) if per_channel else (0, 1, 2, 3)
    mean, std = data.train_x.mean(dims, keepdim=True), data.train_x.std(dims, keepdim=True)
    torch.testing.assert_close(done.test_x * std + mean, data.test_x)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7])
def test_a_channel_that_is_the_same_everywhere_is_shifted_only(value):
    x = torch.rand((50, 3, 4, 4), generator=generator())
    x[:, 1] = value
    data = load_images("digits").replace(train_x=x, test_x=x[:20] + 1)
    done = standardise(data, per_channel=True)
    assert done.train_x[:, 1].abs().max() < 1e-6
    torch.testing.assert_close(done.test_x[:, 1], torch.ones(20, 4, 4))
    assert done.train_x[:, 0].std().item() == pytest.approx(1, abs=1e-5)
    assert standardise(data.replace(train_x=x[:, 1:2])).train_x.isfinite().all()


# ---------------------------------------------------------------- missing and damaged sets


def test_an_unknown_set_names_those_there_are():
    with pytest.raises(ValueError, match="dataset = 'minst': expected one of 'digits', 'mnist'"):
        load_images("minst")


@pytest.mark.parametrize("name", [n for n, s in IMAGE_SETS.items() if s.where])
def test_a_missing_set_names_the_folder_and_the_way_to_get_it(name, tmp_path):
    with pytest.raises(MissingDataError) as caught:
        load_images(name, tmp_path)
    message, source = str(caught.value), IMAGE_SETS[name]
    assert f"dataset {name!r} is not in {tmp_path}" in message
    assert f"expected the folder {source.where}/ there" in message
    assert (f"companion data --fetch {name}" if source.download else source.get) in message
    assert "-p data_root PATH, or the variable COMPANION_DATA" in message


def test_every_set_states_its_licence():
    assert all(source.licence and source.title and source.get for source in IMAGE_SETS.values())


def write_idx(path, values):
    """A file of unsigned bytes in MNIST's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">i{values.ndim}i", 0x0800 + values.ndim, *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def fake_idx_set(folder, train=6, test=4):
    rng = np.random.default_rng(0)
    for part, n in (("train", train), ("t10k", test)):
        write_idx(folder / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(n))
    return folder


def as_published(monkeypatch, name, root):
    """Take the files that lie there for the published ones of a set."""
    files = {
        path: hashlib.sha256((root / path).read_bytes()).hexdigest()
        for path in IMAGE_SETS[name].files
    }
    sizes = {path: (root / path).stat().st_size for path in files}
    monkeypatch.setitem(
        IMAGE_SETS, name, dataclasses.replace(IMAGE_SETS[name], files=files, sizes=sizes)
    )


def test_idx_files_become_images_and_labels(tmp_path, monkeypatch):
    raw = fake_idx_set(tmp_path / "FashionMNIST" / "raw")
    as_published(monkeypatch, "fashion_mnist", tmp_path)
    data = load_images("fashion_mnist", tmp_path)
    assert data.train_x.shape == (6, 1, 28, 28)
    assert data.test_y.tolist() == [0, 1, 2, 3]
    pixels = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    np.testing.assert_array_equal((data.train_x * 255).round().numpy().ravel(), pixels)


@pytest.mark.parametrize(
    "damage", ["magic", "truncated", "empty", "absent", "labels", "one pixel"]
)
def test_a_damaged_idx_file_is_named_as_such(damage, tmp_path, monkeypatch):
    raw = fake_idx_set(tmp_path / "FashionMNIST" / "raw")
    as_published(monkeypatch, "fashion_mnist", tmp_path)
    images, labels = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    content, named = images.read_bytes(), images
    if damage == "magic":
        images.write_bytes(b"\xff\xff\xff\xff" + content[4:])
    elif damage == "truncated":
        images.write_bytes(content[:-9])
    elif damage == "empty":
        images.write_bytes(b"")
    elif damage == "absent":
        images.unlink()
    elif damage == "one pixel":
        images.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        labels.write_bytes(content)
        named = labels
    with pytest.raises(CorruptDataError, match=named.name):
        load_images("fashion_mnist", tmp_path)
    if damage in ("magic", "truncated", "labels"):  # and the reader finds it as well
        as_published(monkeypatch, "fashion_mnist", tmp_path)
        with pytest.raises(
            CorruptDataError, match=r"'fashion_mnist' in .*FashionMNIST/raw cannot be"
        ):
            load_images("fashion_mnist", tmp_path)


def test_mnist_is_held_to_its_checksums(tmp_path):
    raw = fake_idx_set(tmp_path / "MNIST" / "raw", 60_000, 10_000)
    with pytest.raises(CorruptDataError, match=r"train-images-idx3-ubyte is damaged: sha256 "):
        load_images("mnist", tmp_path)
    (raw / "train-images-idx3-ubyte").unlink()
    with pytest.raises(
        IncompleteDataError, match=r"incomplete, it lacks MNIST/raw/train-images-idx3-ubyte\. "
    ):
        load_images("mnist", tmp_path)
    assert set(MNIST_SHA256) == {f.name for f in raw.iterdir()} | {"train-images-idx3-ubyte"}


def test_cifar_pickles_are_refused_before_they_are_read(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    ran = tmp_path / "ran"
    for name in CIFAR10_SHA256:
        (folder / name).write_bytes(
            f"cos\nsystem\n(S'touch {ran}'\ntR.".encode()
        )  # a pickle that runs a command
    for path, size in IMAGE_SETS["cifar10"].sizes.items():
        os.truncate(tmp_path / path, size)
    with pytest.raises(CorruptDataError, match="data_batch_1 is damaged"):
        load_images("cifar10", tmp_path)
    assert not ran.exists()


# ---------------------------------------------------------------- half a set and a whole one


def test_the_checksums_are_those_of_the_md5_sums_that_torchvision_has(real_data):
    from torchvision.datasets import CIFAR10, MNIST

    root = real_data("MNIST/raw")
    for name, sha256 in MNIST_SHA256.items():
        content = (root / "MNIST" / "raw" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
    assert {name for name, _ in CIFAR10.train_list + CIFAR10.test_list} < set(CIFAR10_SHA256)
    assert {name for name, _ in MNIST.resources} == {f"{name}.gz" for name in MNIST_SHA256}


@pytest.mark.parametrize("name", [n for n, source in catalogue().items() if source.where])
def test_every_set_is_told_missing_from_incomplete_from_there(name, tmp_path):
    source = catalogue()[name]
    assert source.needs
    assert source.state(tmp_path) == "missing"
    files = [
        tmp_path / re.sub(r"\*", f"{i:06d}", pattern.replace("??????", "*"))
        for pattern, count in source.needs.items()
        for i in range(min(count, 3))
    ]
    files = [Path(re.sub(r"\[(.)[^\]]*\]", r"\1", str(file))) for file in files]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert source.state(tmp_path) == "incomplete"  # they are empty
    for file in files:
        os.truncate(file, source.sizes.get(file.relative_to(tmp_path).as_posix(), 9))
    # a pattern with [] stands for several folders, of which one was made
    whole = max(source.needs.values()) <= 3 and "[" not in "".join(source.needs)
    assert source.state(tmp_path) == ("there" if whole else "incomplete")
    if source.sizes:
        os.truncate(files[0], 7)
        assert source.state(tmp_path) == "incomplete"
    files[0].unlink()
    if len(set(files)) > 1:
        assert source.state(tmp_path) == "incomplete"
        assert any(
            pattern in text for pattern in source.needs for text in source.lacking(tmp_path)
        )


def test_an_empty_or_truncated_file_is_told(tmp_path, capsys):
    raw, labels = tmp_path / "MNIST" / "raw", "MNIST/raw/t10k-labels-idx1-ubyte"
    raw.mkdir(parents=True)
    for path, size in IMAGE_SETS["mnist"].sizes.items():
        (tmp_path / path).touch()
        os.truncate(tmp_path / path, size)
    assert IMAGE_SETS["mnist"].lacking(tmp_path) == []
    os.truncate(tmp_path / labels, 10_007)
    (raw / "train-labels-idx1-ubyte").unlink()
    (raw / "train-labels-idx1-ubyte").mkdir()
    assert main(["data", "--root", str(tmp_path)]) == 0
    assert (
        "lacks MNIST/raw/train-labels-idx1-ubyte (0 of 60008 bytes), "
        f"{labels} (10007 of 10008 bytes)\n" in capsys.readouterr().out
    )
    gt, *_ = catalogue()["eth"].needs
    for name in ("eth", "hotel"):
        file = tmp_path / gt.replace("*", name)
        file.parent.mkdir(parents=True)
        file.touch()
    file.write_text("0")
    assert f"{gt} (1 of 2)" in catalogue()["eth"].lacking(tmp_path)


def test_the_real_sets_are_whole_but_for_drone_videos(real_data):
    root = real_data("trajectories")
    states = {name: source.state(root) for name, source in catalogue().items()}
    assert {"eth", "ucy", "trajnet"} <= {
        name for name, state in states.items() if state == "there"
    }
    assert states["sdd"] == "incomplete"
    assert "annotations.txt (23 of 60)" in catalogue()["sdd"].lacking(root)[0]


# ---------------------------------------------------------------- downloads


def test_every_download_is_https_and_has_checksums_before_and_after_unpacking():
    for source in IMAGE_SETS.values():
        assert bool(source.archives) == bool(source.files) == (source.download is not None)
        for url, sha256 in source.archives.items():
            assert url.startswith("https://")
            assert re.fullmatch("[0-9a-f]{64}", sha256)
        assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in source.files.values())
        assert set(source.files) <= set(source.needs)


@pytest.fixture
def served(tmp_path):
    """A folder of archives on a server of this machine: (address, folder, what was asked for)."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            asked.append(self.path)

        def copyfile(self, source, output):
            content = source.read()
            # what breaks off half-way has promised more
            output.write(content[: len(content) // 2] if "broken" in self.path else content)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder, asked
        server.shutdown()


def archives_of(served, files, kind):
    """Pack files by name, as one .gz each or in one .tar.gz; give the sha256 by address."""
    url, folder, _ = served
    packed = {}
    if kind == "tar":
        with tarfile.open(folder / "set.tar.gz", "w:gz") as tar:
            for name, content in {"../../evil": b"no", **files}.items():
                member = tarfile.TarInfo(f"inside/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        packed = ["set.tar.gz"]
    else:
        for name, content in files.items():
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        packed = [f"{name}.gz" for name in files]
    return {f"{url}/{n}": hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in packed}


CONTENT = {"a": b"first" * 999, "b": b"second"}
WANTED = {f"here/{name}": hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


@pytest.mark.parametrize("kind", ["gz", "tar"])
def test_a_download_puts_the_files_there_and_nothing_else(served, tmp_path, kind):
    archives, root = archives_of(served, CONTENT, kind), tmp_path / "root"
    fetch("some", archives, WANTED, root)
    lying = {
        f.relative_to(root).as_posix(): f.read_bytes() for f in root.rglob("*") if f.is_file()
    }
    assert lying == {f"here/{name}": content for name, content in CONTENT.items()}
    assert [f.name for f in root.iterdir()] == ["here"]
    count = len(served[2])
    fetch("some", archives, WANTED, root)  # all there: not asked for again
    assert len(served[2]) == count
    (root / "here" / "b").write_bytes(b"rotten")
    fetch("some", archives, WANTED, root)
    assert (root / "here" / "b").read_bytes() == CONTENT["b"]


@pytest.mark.parametrize(
    "fault", ["broken", "swapped archive", "swapped file", "absent", "no network"]
)
def test_a_download_that_fails_says_so_in_a_line_and_leaves_nothing(served, tmp_path, fault):
    url, folder, _ = served
    archives, wanted, root = archives_of(served, CONTENT, "gz"), dict(WANTED), tmp_path / "root"
    if fault == "broken":
        (folder / "broken.gz").write_bytes((folder / "b.gz").read_bytes())
        archives[f"{url}/broken.gz"] = archives.pop(f"{url}/b.gz")
    elif fault == "swapped archive":
        (folder / "b.gz").write_bytes(gzip.compress(b"evil"))
    elif fault == "swapped file":
        wanted["here/b"] = "0" * 64
    elif fault == "absent":
        (folder / "b.gz").unlink()
    else:
        archives = {"https://127.0.0.1:1/a.gz": "0" * 64}
    with pytest.raises((MissingDataError, CorruptDataError)) as caught:
        fetch("some", archives, wanted, root)
    message = str(caught.value)
    assert "\n" not in message
    assert (
        "b.gz" in message
        or "a.gz" in message
        or "broken.gz" in message
        or "b is damaged" in message
    )
    if fault in ("absent", "no network"):
        assert f"put the unpacked a, b into {root / 'here'} by hand" in message
    assert not list(root.iterdir())


def test_two_downloads_of_a_set_at_once_do_not_meet(served, tmp_path, monkeypatch):
    """Each waits, before it checks what it unpacked, until the other has unpacked as well."""
    archives, root = archives_of(served, CONTENT, "gz"), tmp_path / "root"
    foreign = root / ".some.part" / "notes.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("somebody's")
    gate, failed = threading.Barrier(2, timeout=20), []

    def verified(path, sha256):
        if "here" not in path.parts:  # not in its place yet
            gate.wait()
        verify(path, sha256)

    monkeypatch.setattr("companion.data.fetch.verify", verified)

    def work():
        try:
            fetch("some", archives, WANTED, root)
        except Exception as error:
            failed.append(error)
            gate.abort()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert {name: (root / "here" / name).read_bytes() for name in CONTENT} == CONTENT
    assert foreign.read_text() == "somebody's"
    assert {f.name for f in root.iterdir()} == {"here", ".some.part"}


def test_an_interrupted_download_leaves_nothing(served, tmp_path, monkeypatch):
    archives, root = archives_of(served, CONTENT, "gz"), tmp_path / "root"

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("companion.data.fetch._unpack", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch("some", archives, WANTED, root)
    assert not list(root.iterdir())


def test_a_root_that_cannot_be_written_is_named(served, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data_root = .*file/root': some cannot be written"):
        fetch("some", archives_of(served, CONTENT, "gz"), WANTED, tmp_path / "file" / "root")


def test_the_command_says_what_to_do_without_a_network(tmp_path, monkeypatch, capsys):
    source = dataclasses.replace(
        IMAGE_SETS["fashion_mnist"], archives={"https://127.0.0.1:1/x.gz": "0" * 64}
    )
    monkeypatch.setitem(IMAGE_SETS, "fashion_mnist", source)
    assert main(["data", "--root", str(tmp_path), "--fetch", "fashion_mnist"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("companion: ")]) == 1
    assert "train-images-idx3-ubyte" in lines[-1]
    assert str(tmp_path / "FashionMNIST" / "raw") in lines[-1]
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- where data lies


def test_the_data_root_is_the_argument_then_the_variable_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "variable"))
    assert data_root(tmp_path) == tmp_path
    assert data_root() == tmp_path / "variable"
    monkeypatch.delenv("COMPANION_DATA")
    assert data_root().name == "paper-companion"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root("~/sets") == tmp_path / "sets"


def test_a_data_root_that_is_a_file_raises(tmp_path):
    path = tmp_path / "file"
    path.touch()
    for folder in (path, f"{path}\0", "~nobody-of-this-name/data"):
        with pytest.raises(ValueError, match=r"data_root = "):
            data_root(folder)
    with pytest.raises(ValueError, match="expected a folder"):
        data_root(path)


def test_a_data_root_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # also as root
    with pytest.raises(ValueError, match=rf"data_root = '{tmp_path}': .*can be read"):
        data_root(tmp_path)


def test_a_missing_data_root_is_said(tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    assert main(["data", "--root", str(nowhere)]) == 0
    assert f"{nowhere} (no such folder yet)" in capsys.readouterr().out
    with pytest.raises(MissingDataError, match=r"nowhere \(there is no such folder\)"):
        load_images("mnist", nowhere)


def test_data_needs_no_downloader_where_nothing_is_fetched():
    """Not even the default data root; a GPU box may lack the packages."""
    code = (
        "import sys; sys.modules.update(pooch=None, requests=None, platformdirs=None)\n"
        "from companion.data.root import data_root\n"
        "from companion.data.catalogue import catalogue\n"
        "assert len(catalogue()) > 5\n"
        "print(data_root())"
    )
    environment = {
        k: v for k, v in os.environ.items() if k not in ("COMPANION_DATA", "XDG_CACHE_HOME")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment | {"HOME": "/h"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith("/h/")


def test_the_default_data_root_is_where_pooch_has_it(monkeypatch):
    import pooch

    monkeypatch.delenv("COMPANION_DATA", raising=False)
    for cache in ("", "/somewhere"):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        assert data_root() == Path(pooch.os_cache("paper-companion"))


def test_all_text_is_read_and_written_as_utf8():
    """Under every locale: a call that opens a text says its encoding."""
    wrong = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            of = getattr(getattr(node.func, "value", None), "id", "")
            said = {word.arg for word in node.keywords}
            if name in ("read_text", "write_text"):
                # the function of that name decodes UTF-8 by itself
                text = isinstance(node.func, ast.Attribute)
            elif name == "open" and of not in ("Image", "gzip", "tarfile", "os"):
                modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
                modes += [w.value.value for w in node.keywords if w.arg == "mode"]
                text = not any("b" in str(mode) for mode in modes)
            else:
                text = name in ("fdopen", "NamedTemporaryFile", "TextIOWrapper") and not any(
                    isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args
                )
            if text and "encoding" not in said:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong


# ---------------------------------------------------------------- folders of images


def picture(height=10, width=12, seed=0, mode="RGB"):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def folder_of(root, pictures, ending="png"):
    for i, (kind, image) in enumerate(pictures):
        (root / kind).mkdir(parents=True, exist_ok=True)
        image.save(root / kind / f"{i}.{ending}")
    return root


def test_a_folder_of_images_is_decoded_class_by_class(tmp_path):
    pictures = [("b", picture(seed=0)), ("a", picture(seed=1)), ("b", picture(seed=2))]
    x, y, classes = load_image_folder(folder_of(tmp_path, pictures))
    assert (x.shape, x.dtype) == ((3, 3, 10, 12), torch.float32)
    assert (y.tolist(), classes) == ([0, 1, 1], ("a", "b"))
    for found, (_, image) in zip(x, [pictures[1], pictures[0], pictures[2]], strict=True):
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255.0
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_grey_images_come_as_one_channel_or_three(tmp_path):
    image = picture(mode="L")
    folder_of(tmp_path, [("a", image)])
    grey, *_ = load_image_folder(tmp_path, channels=1)
    colour, *_ = load_image_folder(tmp_path)
    np.testing.assert_array_equal((grey[0, 0] * 255).round().numpy(), np.array(image))
    assert colour.shape == (1, 3, 10, 12)
    assert torch.equal(colour[0, 0], colour[0, 2])


def test_images_of_a_folder_are_decoded_as_they_are_seen(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: the stored picture is to be turned clockwise
    photo, glass = picture(20, 30), picture(30, 20, seed=1).convert("RGBA")
    half = np.arange(30 * 20, dtype=np.uint8).reshape(30, 20)
    glass.putalpha(Image.fromarray(half))
    grey, files = picture(30, 20, mode="L"), [tmp_path / "a" / f"{i}.png" for i in range(3)]
    (tmp_path / "a").mkdir()
    photo.save(files[0], exif=turned)
    glass.save(files[1])
    grey.save(files[2], transparency=7)  # this value of grey
    x, *_ = load_image_folder(tmp_path)
    expected = load_pictures(files[:2], channels=3)
    torch.testing.assert_close(x[:2], expected, rtol=0, atol=1.01 / 255)  # of rounding to bytes
    assert torch.equal(x[0], expected[0])
    whitened = np.where(np.array(grey) == 7, 255, np.array(grey))
    assert torch.equal(x[2, 0], torch.from_numpy(whitened) / 255)


def test_sixteen_bits_with_a_transparent_value_are_not_clipped(tmp_path):
    (tmp_path / "a").mkdir()
    values = (np.arange(16, dtype=np.uint16) * 4000).reshape(4, 4)
    Image.fromarray(values).save(tmp_path / "a" / "x.png", transparency=5)
    x, *_ = load_image_folder(tmp_path, channels=1)
    assert torch.equal((x[0, 0] * 255).round().int(), torch.from_numpy(values >> 8).int())


def test_images_of_different_sizes_need_a_size(tmp_path):
    folder_of(tmp_path, [("a", picture(10, 12)), ("a", picture(20, 9))])
    with pytest.raises(
        ValueError, match=r"1\.png has \(20, 9\) pixels, the first has \(10, 12\): give size"
    ):
        load_image_folder(tmp_path)
    x, *_ = load_image_folder(tmp_path, size=8)
    assert x.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_damaged_picture_is_named(damage, ending, tmp_path):
    folder_of(tmp_path, [("a", picture(64, 64)), ("a", picture(64, 64, seed=1))], ending)
    path = tmp_path / "a" / f"1.{ending}"
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[: len(content) // 2], "text": b"hello", "empty": b""}[damage]
    )
    with pytest.raises(CorruptDataError, match=rf"1\.{ending} cannot be decoded"):
        load_image_folder(tmp_path)


def test_a_folder_without_images_is_missing_data(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MissingDataError, match="one subfolder a class"):
            load_image_folder(folder)
    folder_of(tmp_path, [("a", picture())])
    for name in "bc":
        (tmp_path / name).mkdir()
    with pytest.raises(MissingDataError, match=r"one subfolder a class .* none in 'b', 'c'"):
        load_image_folder(tmp_path)


def test_a_jpeg_set_of_the_wrong_size_raises(tmp_path):
    folder_of(tmp_path / "cifar10" / "train", [("cat", picture(32, 32))], "jpg")
    with pytest.raises(CorruptDataError, match=r"lacks cifar10/train/\*/\* \(1 of 50000\)"):
        load_images("cifar10_jpeg", tmp_path)


def bomb(path, pixels=60_000):
    """A few bytes that claim to be a picture of many pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"P5 {pixels} {pixels} 255\n".encode() + b"x")


@pytest.mark.parametrize("pixels", [10_000, 60_000, 2**31, 10**30])
def test_a_picture_with_an_absurd_header_is_named(tmp_path, pixels):
    bomb(tmp_path / "a" / "1.pgm", pixels)
    with pytest.raises(CorruptDataError, match=r"1\.pgm cannot be decoded"):
        open_picture(tmp_path / "a" / "1.pgm")
    with pytest.raises(CorruptDataError, match=r"1\.pgm cannot be decoded"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_of_grey_in_16_bits_the_upper_8_are_read(tmp_path, ending):
    grey = np.arange(0, 2**16, 257, dtype=np.uint16).reshape(16, 16)  # 0 to 65535
    (tmp_path / "a").mkdir()
    Image.fromarray(grey).save(tmp_path / "a" / f"1.{ending}")
    images, _, _ = load_image_folder(tmp_path, channels=1)
    assert torch.equal(images.flatten(), torch.arange(256) / 255)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_grey_of_any_range_is_refused(tmp_path, mode):
    path = tmp_path / "1.tif"
    Image.new(mode, (2, 2), 3).save(path)
    assert open_picture(path).mode == mode
    with pytest.raises(CorruptDataError, match=f"mode {mode}, expected 8 or 16 bits a channel"):
        open_picture(path, "RGB")


@pytest.mark.parametrize("options", [{"channels": 2}, {"size": 0}])
def test_a_folder_is_not_read_with_options_that_cannot_be(options, tmp_path):
    with pytest.raises(ValueError, match=next(iter(options))):
        load_image_folder(tmp_path, **options)


def test_a_split_and_a_shift_that_cannot_be_are_refused():
    data = load_images("digits")
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="fraction = "):
            hold_out(data, fraction, seed=0)
    with pytest.raises(ValueError, match="pad = -1"):
        crop_pad_flip(data.train_x[:2], generator(), pad=-1)


# ---------------------------------------------------------------- videos and tables

PETS_GT = "1,1,10,20,5,15,1,0.5,0.25,0\n2,1,11,20,5,15,1,0.5,0.25,0\n"


def pets(root, gt=PETS_GT):
    folder = root / "pedestrian-frames" / "PETS09-S2L1"
    for place in ("gt", "img1", "calibration"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "gt" / "gt.txt").write_bytes(gt.encode() if isinstance(gt, str) else gt)
    (folder / "calibration" / "View_001.xml").touch()
    picture(6, 8).save(folder / "img1" / "000001.jpg")
    return folder


def test_a_clip_gives_boxes_and_frames_and_names_the_frame_that_is_missing_or_damaged(tmp_path):
    folder = pets(tmp_path)
    clip = load_pets(tmp_path)
    boxes, ground = clip.truth[1]
    assert boxes.tolist() == [[10, 20, 15, 35]]
    assert ground.tolist() == [[0.5, 0.25]]
    assert clip.frames([1], (4, 3)).shape == (1, 3, 3, 4)
    with pytest.raises(MissingDataError, match=r"000002\.jpg is not there.*img1/000001"):
        clip.frames([1, 2])
    content = (folder / "img1" / "000001.jpg").read_bytes()
    (folder / "img1" / "000002.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptDataError, match=r"000002\.jpg cannot be decoded"):
        clip.frames([1, 2])
    for call, message in (
        (lambda: clip.frames([]), "numbers = "),
        (lambda: clip.frames([1], (0, 3)), "size = "),
        (lambda: clip.background(every=0), "every = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("gt", "message"),
    [
        ("", "is empty"),
        (b"\xff\xfe", "UTF-8"),
        ("1,1,10,20,5\n", "line 1: 5 entries, expected 10"),
        (PETS_GT.replace("11,20", "11,nan"), "line 2: expected finite numbers"),
        (PETS_GT.replace("2,1,", "2.5,1,"), "expected frames 1 to 795"),
        (PETS_GT.replace("2,1,", "900,1,"), "expected frames 1 to 795"),
        (PETS_GT.replace("5,15", "-5,15"), "wider and higher than 0"),
    ],
)
def test_a_damaged_ground_truth_is_named(gt, message, tmp_path):
    pets(tmp_path, gt)
    with pytest.raises(CorruptDataError, match=rf"gt\.txt.*{message}"):
        load_pets(tmp_path)


def test_half_a_clip_says_what_it_lacks(tmp_path):
    (pets(tmp_path) / "calibration" / "View_001.xml").unlink()
    with pytest.raises(IncompleteDataError, match=r"\(1 of 795\), .*calibration/View_001\.xml"):
        load_pets(tmp_path)


BOXES = "filename,xmin,ymin,xmax,ymax\n7,1,2,3,4\n"


def town_centre(root, boxes=BOXES):
    folder = root / "trajectories" / "datasets" / "Town-Center"
    folder.mkdir(parents=True)
    picture(6, 8).save(folder / "reference.jpg")
    (folder / "TownCentre-calibration-ci.txt").write_text("any")
    extra = root / "trajectories" / "extra"
    extra.mkdir()
    (extra / "towncentre-boxes-5percent.csv").write_bytes(boxes.encode("utf-8-sig"))
    return folder


def test_a_view_gives_its_boxes_at_full_size(tmp_path):
    folder = town_centre(tmp_path)
    assert load_town_centre(tmp_path).boxes.tolist() == [[4, 6, 8, 10]]
    (folder / "reference.jpg").write_bytes(b"no picture")
    with pytest.raises(CorruptDataError, match=r"reference\.jpg cannot be decoded"):
        load_town_centre(tmp_path)
    (folder / "reference.jpg").unlink()
    with pytest.raises(IncompleteDataError, match=r"lacks .*Town-Center/reference\.jpg\."):
        load_town_centre(tmp_path)


@pytest.mark.parametrize(
    "boxes", ["", "a,b\n1,2\n", BOXES + "8,1,2\n", BOXES + "8,1,2,3,x\n", BOXES + "8,1,2,3,nan\n"]
)
def test_a_damaged_table_of_boxes_is_named(boxes, tmp_path):
    town_centre(tmp_path, boxes)
    with pytest.raises(CorruptDataError, match=r"towncentre-boxes-5percent\.csv"):
        load_town_centre(tmp_path)


@pytest.mark.parametrize("text", [b"", b"\xff", b"hours,A1\nstrain,\x00\n1,2\n2,3\n3,4\n"])
def test_a_damaged_plate_is_named(text, tmp_path):
    (tmp_path / "growth.csv").write_bytes(text)
    with pytest.raises(CorruptDataError, match=r"growth\.csv"):
        load_growth(tmp_path)


# ---------------------------------------------------------------- augmentation


def augmented_twin(image, flipped, dy, dx, pad):
    """One image, pixel by pixel."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                row, column = i + dy, j + dx
                if 0 <= row < height and 0 <= column < width:
                    out[c, i, j] = image[c, row, width - 1 - column if flipped else column]
    return out


def recover(image, result, pad):
    """The (flip, dy, dx) that turn an image of distinct nonzero pixels into the result."""
    hits = [
        (flipped, dy, dx)
        for flipped in (False, True)
        for dy in range(-pad, pad + 1)
        for dx in range(-pad, pad + 1)
        if torch.equal(augmented_twin(image, flipped, dy, dx, pad), result)
    ]
    assert len(hits) == 1, "not a flip and a shift with zero fill"
    return hits[0]


def test_every_augmented_image_is_a_flip_and_a_bounded_shift_with_zero_fill():
    pad = 2
    batch = torch.arange(1.0, 1 + 40 * 2 * 4 * 5).view(40, 2, 4, 5)
    result = crop_pad_flip(batch, generator(1), pad=pad)
    assert result.shape == batch.shape
    moves = [recover(a, b, pad) for a, b in zip(batch, result, strict=True)]
    assert {True, False} == {flipped for flipped, *_ in moves}
    for axis in (1, 2):  # all five shifts occur in 40 images, and rows move apart from columns
        assert {move[axis] for move in moves} == {-2, -1, 0, 1, 2}
    assert any(dy != dx for _, dy, dx in moves)


def test_a_quarter_is_flipped_and_half_is_shifted():
    n, pad = 20_000, 4
    batch = torch.zeros(n, 1, 9, 9)
    batch[:, :, 4, 4], batch[:, :, 4, 5] = (
        1.0,
        0.5,
    )  # the bright pixel tells the shift, its dim neighbour's side the flip
    result = crop_pad_flip(batch, generator(2), pad=pad)[:, 0]
    place = (result == 1).flatten(1).float()
    seen = place.sum(1) == 1
    assert seen.all()  # shifts of up to 4 never lose the centre
    where = place.argmax(1)
    rows, columns = where // 9 - 4, where % 9 - 4
    partner = torch.nn.functional.pad(result, (1, 1))
    left = partner[torch.arange(n), rows + 4, columns + 4] == 0.5
    right = partner[torch.arange(n), rows + 4, columns + 6] == 0.5
    inner = left | right  # the partner may have left the image
    # binomial deviations: 0.0031 and 0.0035, four of them
    assert left[inner].double().mean().item() == pytest.approx(0.25, abs=0.013)
    still = ((rows == 0) & (columns == 0)).double().mean().item()
    assert still == pytest.approx(0.5 + 0.5 / 81, abs=0.014)
    assert rows.abs().max() == columns.abs().max() == pad
    counts = torch.bincount(rows[rows != 0] + 4, minlength=9).double()
    expected = n * 0.5 / 9
    assert ((counts[counts > 0] - expected).abs() < 5 * expected**0.5).all()


def test_augmentation_is_determined_by_its_generator_and_leaves_its_input():
    batch = torch.rand((10, 3, 8, 8), generator=generator())
    before = batch.clone()
    a, b, c = (crop_pad_flip(batch, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(batch, before)


def test_without_padding_nothing_is_shifted():
    batch = torch.rand((30, 1, 4, 4), generator=generator())
    result = crop_pad_flip(batch, generator(), pad=0)
    assert all(
        torch.equal(b, a) or torch.equal(b, a.flip(-1)) for a, b in zip(batch, result, strict=True)
    )


# ---------------------------------------------------------------- real sets


def test_mnist_has_its_known_moments(real_data):
    data = load_images("mnist", real_data("MNIST/raw"))
    assert (data.train_x.shape, data.test_x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert data.train_x.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert data.train_x.std().item() == pytest.approx(0.3081, abs=5e-5)
    assert data.train_y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # fmt: skip
    assert len(data.classes) == 10


def test_cifar10_as_jpeg_has_its_counts_and_names(real_data, tmp_path):
    root = real_data("cifar10") / "cifar10"
    names = sorted(
        ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    )
    for split, count in (("train", 5000), ("test", 1000)):
        assert sorted(f.name for f in (root / split).iterdir()) == names
        for name in names:
            files = sorted((root / split / name).iterdir())
            assert len(files) == count
            if split == "test":  # decoding all takes a minute: a few of each class
                (tmp_path / name).mkdir()
                for file in files[:20]:
                    (tmp_path / name / file.name).symlink_to(file)
    x, y, classes = load_image_folder(tmp_path)
    assert (x.shape, classes) == ((200, 3, 32, 32), tuple(names))
    assert y.bincount().tolist() == [20] * 10
    assert 0.4 < x.mean().item() < 0.55


def test_pixels_that_never_change_are_not_blown_up_by_their_round_off():
    still, other = torch.full((1000, 1, 8, 8), 0.1), torch.full((2, 1, 8, 8), 0.9)
    data = images.ImageSet("still", still, torch.zeros(1000), other, torch.zeros(2), ("a",), "")
    assert still.std() > 0  # of round-off
    torch.testing.assert_close(standardise(data).test_x, other - 0.1, rtol=0, atol=1e-5)
