"""Data sets that name what is not theirs: links and pipes in folders, paths and addresses in tables; odd labels."""

import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets
import numpy as np
import pytest
from PIL import Image

from ft_focalsam.data import DataArguments, find_images, load_image_data, read_class_counts, stream_images

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})


@pytest.fixture
def folder(tmp_path):
    """Two classes of two images each, and something beside the folder that is not of it."""
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (number * 99, 0, 0)).save(tmp_path / "set" / name / f"{number}.png")
    (tmp_path / "secret").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret" / "x.png")
    return tmp_path / "set"


def within(seconds, use):
    """Whether it ends in that time; a test that hangs would stop all others."""
    ended = []

    def work():
        try:
            ended.append(use())
        except ValueError as error:
            ended.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert ended, "it hangs"
    return ended[0]


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, make_socket, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused_in_folders_and_lists(make, folder):
    make(folder / "b" / "pipe.png")
    error = within(20, lambda: load_image_data(str(folder), test_fraction=0.5))
    assert "b/pipe.png'" in str(error) and "put a copy of what is meant in its place" in str(error)
    (folder / "list.csv").write_text("path,label\na/0.png,a\nb/pipe.png,b\n")
    error = within(20, lambda: load_image_data(str(folder / "list.csv"), test_fraction=0.5))
    assert "Line 3 of" in str(error) and ("no regular file" in str(error) or "leads out of" in str(error))


def test_links_may_lead_about_in_a_folder_and_not_out_of_it(folder):
    (folder / "a" / "again.png").symlink_to(folder / "b" / "0.png")
    assert len(list(find_images(folder))) == 5
    assert len(load_image_data(str(folder), test_fraction=0.5).class_names) == 2
    for target in (folder.parent / "secret" / "x.png", folder.parent / "secret", "/"):
        (folder / "a" / "out.png").symlink_to(target)
        with pytest.raises(ValueError, match=r"holds '.*a/out\.png', a link that leads out of '.*/set'; put a copy"):
            load_image_data(str(folder), test_fraction=0.5)
        (folder / "a" / "out.png").unlink()


def test_the_folder_itself_may_be_a_link(folder):
    (folder.parent / "link").symlink_to(folder)
    assert len(load_image_data(str(folder.parent / "link"), test_fraction=0.5).class_names) == 2


def test_folders_deeper_than_the_stack_are_walked_through(folder):
    deep = [folder / "a" / "/".join("d" * depth) for depth in range(1, 1101)]
    for path in deep:
        path.mkdir()
    try:
        assert len(list(find_images(folder))) == 4
    finally:
        for path in reversed(deep):  # which `shutil.rmtree` cannot
            path.rmdir()


def test_control_characters_of_a_file_name_are_escaped(folder):
    (folder / "a" / "\x1b[2J.png").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="leads out of") as error:
        load_image_data(str(folder), test_fraction=0.5)
    assert str(error.value).isprintable() and r"\x1b[2J.png" in str(error.value)


# ---- tables ----


@pytest.fixture
def web():
    """A server that notes what it is asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def write_table(folder, kind, path):
    """Two rows with bytes, and one that names a path or an address."""
    folder.mkdir()
    content = (folder.parent / "set" / "a" / "0.png").read_bytes()
    images = [{"bytes": content, "path": None}, {"bytes": content, "path": "0.png"}, {"bytes": None, "path": path}]
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 1]}, features=FEATURES)
    if kind == "parquet":  # as it is: `to_parquet` would read the file and store its bytes
        import pyarrow.parquet as pq

        for split in ("train", "test"):
            pq.write_table(table.data.table, folder / f"{split}-00000-of-00001.parquet")
    else:
        import pyarrow as pa

        for split in ("train", "test"):
            with (
                pa.OSFile(str(folder / f"{split}.arrow"), "wb") as file,
                pa.ipc.new_stream(file, table.data.table.schema) as writer,
            ):
                writer.write_table(table.data.table)
    return str(folder)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
def test_a_table_names_no_file_and_no_address(kind, streaming, folder, tmp_path, web):
    url, asked = web
    targets = ["/etc/passwd", str(tmp_path / "secret" / "x.png"), f"{url}/x.png", f"zip://a.png::{url}/x.zip"]
    targets += ["hf://datasets/other/private@main/x.png", "../secret/x.png", "file:///etc/passwd"]
    for number, target in enumerate(targets):
        name = write_table(tmp_path / f"table{number}", kind, target)

        def use(name=name):
            if not streaming:
                return load_image_data(name)
            args = DataArguments(dataset=name, streaming=True)
            return list(stream_images(args, counts_path=tmp_path / "counts.json", recount=True).train)

        with pytest.raises((ValueError, OSError), match=r"Row \d of .* names '.*', which is no file of the data set"):
            use()
    assert asked == []


def test_a_table_may_name_files_of_its_own_folder(folder, tmp_path):
    name = write_table(tmp_path / "table", "parquet", str(tmp_path / "table" / "own.png"))
    Image.new("RGB", (8, 8), "red").save(tmp_path / "table" / "own.png")
    assert load_image_data(name).train[2]["image"].getpixel((0, 0)) == (255, 0, 0)


def test_a_column_of_paths_is_no_way_around(folder, tmp_path):
    (tmp_path / "table").mkdir()
    table = datasets.Dataset.from_dict({"file": ["/etc/passwd", "/etc/group"], "label": ["a", "b"]})
    table.to_parquet(str(tmp_path / "table" / "train.parquet"))
    with pytest.raises(ValueError, match="Row 0 of split 'train' has no image but names '/etc/passwd'"):
        load_image_data(str(tmp_path / "table"), image_column="file", test_fraction=0.5)


# ---- labels, arrays, names ----


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", f"a/0.png 0\na/1.png {10**20}\n"),
        ("list.csv", f"path,label\na/0.png,0\na/1.png,{10**20}\n"),
        ("list.jsonl", f'{{"path": "a/0.png", "label": 0}}\n{{"path": "a/1.png", "label": {10**20}}}\n'),
        ("list.txt", "a/0.png 0\na/1.png " + "9" * 5000),
    ],
)
def test_a_label_that_no_integer_holds_is_refused_by_line(name, text, folder):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=r"Line [23] of '.*' has the label '[19]\d*(\.\.\.)?', .* number") as error:
        load_image_data(str(folder / name), test_fraction=0.5)
    assert len(str(error.value)) < 400


def test_an_array_label_that_no_class_has_is_one_sentence(tmp_path):
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels, y=np.array([0, 1, 0, 2**64 - 1], np.uint64))
    with pytest.raises(ValueError, match=r"'.*a\.npz' has the label 18446744073709551615"):
        load_image_data(str(tmp_path / "a.npz"), test_fraction=0.5)


def test_arrays_that_are_cut_short_forged_or_huge_are_one_sentence(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((4, 8, 8, 3), np.uint8), y=np.arange(4))
    whole = path.read_bytes()
    header = whole.index(b"\x93NUMPY") if b"\x93NUMPY" in whole else None
    assert header is None  # compressed
    for content in (whole[: len(whole) // 2], whole[:-10], b"PK\x03\x04", b"", whole[:200] + bytes(50) + whole[250:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"'.*a\.npz' is no archive of plain NumPy arrays") as error:
            load_image_data(str(path), test_fraction=0.5)
        assert "\n" not in str(error.value)
    np.savez(path, x=np.zeros((4, 8, 8, 3), np.uint8), y=np.arange(4))
    forged = path.read_bytes().replace(b"(4, 8, 8, 3), }", b"(9999999, 9, 9)")
    path.write_bytes(forged)
    with pytest.raises(ValueError, match=r"'.*a\.npz' is no archive of plain NumPy arrays"):
        load_image_data(str(path), test_fraction=0.5)


@pytest.mark.parametrize("damage", ["parquet", "arrow", "features", "deep"])
def test_a_damaged_data_set_is_one_sentence(damage, folder, tmp_path):
    name = tmp_path / "table"
    if damage == "parquet":
        write_table(name, "parquet", "0.png")
        content = (name / "train-00000-of-00001.parquet").read_bytes()
        (name / "train-00000-of-00001.parquet").write_bytes(content[:200] + bytes(200) + content[400:])
    else:
        images = [(folder / "a" / "0.png").read_bytes()] * 2
        table = datasets.Dataset.from_dict({"image": [{"bytes": i, "path": None} for i in images], "label": [0, 1]})
        table.cast(FEATURES).save_to_disk(str(name))
        file = next(name.glob("*.arrow")) if damage == "arrow" else name / "dataset_info.json"
        made = {
            "arrow": b"no arrow",
            "features": b'{"features": {"image": {"_type": "Nothing"}}}',
            "deep": b"[" * 99999,
        }
        file.write_bytes(made[damage])
    with pytest.raises(
        (ValueError, OSError), match=r"The data set '.*table' cannot be read \(.*\); check its files"
    ) as error:
        load_image_data(str(name), test_fraction=0.5)
    assert "\n" not in str(error.value)


def test_a_link_to_itself_and_a_name_that_is_no_text(folder):
    (folder / "a" / "loop.png").symlink_to("loop.png")
    assert len(list(find_images(folder))) == 5  # and the check of the images names it
    os.rename(os.fsencode(folder / "b" / "0.png"), os.fsencode(folder / "b") + b"/\xff.png")
    with pytest.raises(ValueError, match=r"holds '.*b/\\udcff\.png', whose name is no text in UTF-8"):
        load_image_data(str(folder), test_fraction=0.5)


def test_a_table_with_an_endless_field_is_one_sentence(folder):
    (folder / "list.csv").write_text("path,label\na/0.png," + "x" * 200_000)
    with pytest.raises(ValueError, match=r"Line 1 of '.*list\.csv' is no line of a table \(field larger than"):
        load_image_data(str(folder / "list.csv"), test_fraction=0.5)


@pytest.mark.parametrize("ids", [(1, "x"), (None, 2), ([], {})])
def test_class_names_that_cannot_be_ordered_are_one_sentence(ids, tmp_path):
    entries = [{"id": number, "name": name} for number, name in zip(ids, "ab", strict=True)]
    (tmp_path / "names.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"'.*names\.json' has an id that is no whole number"):
        load_image_data("digits", class_names=str(tmp_path / "names.json"))


@pytest.mark.parametrize("count", [-1, 10**30, True, "3"])
def test_counts_that_no_class_has_are_one_sentence(count, tmp_path):
    (tmp_path / "counts.json").write_text(json.dumps({"a": 1, "b": count}))
    with pytest.raises(ValueError, match=r"The class counts '.*counts\.json' are not those of the 2 classes"):
        read_class_counts(tmp_path / "counts.json", ["a", "b"])


def test_arrays_that_are_packed_to_exhaust_the_memory_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((100, 1000, 1000, 3), np.uint8), y=np.arange(100))
    assert path.stat().st_size < 500_000
    with pytest.raises(ValueError, match=r"no archive .*its 300,\d+,\d+ bytes are packed into \d+,\d+, to"):
        load_image_data(str(path), test_fraction=0.5)


def test_class_names_that_a_terminal_would_obey_are_refused(folder):
    (folder / "b").rename(folder / "\x1b[31mb\u202e")
    with pytest.raises(ValueError, match="has control characters; rename the class, or name all") as error:
        load_image_data(str(folder), test_fraction=0.5)
    assert str(error.value).isprintable() and r"\x1b[31mb\u202e" in str(error.value)
    (folder / "names.txt").write_text("cat\ndog\n")
    data = load_image_data(str(folder), test_fraction=0.5, class_names=str(folder / "names.txt"))
    assert data.class_names == ["cat", "dog"]
