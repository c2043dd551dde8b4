"""Image files made to exhaust the memory or the time, to run programs, or to never end: refused by name, at once."""

import io
import os
import socket
import struct
import threading
import time

import pytest
from PIL import Image

from ft_focalsam.data import BadImageError, StoredImage, eval_transform, scan
from ft_focalsam.data.images import FORMATS, MAX_JPEG_SCANS, upright_size
from ft_focalsam.models import load_image_processor


def content(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refuse(made: bytes, message: str) -> None:
    """Nothing of it is decoded: it is refused when it is opened, in a fraction of a second."""
    started = time.monotonic()
    with pytest.raises(BadImageError, match=message) as error:
        StoredImage(made, "'a.x'").open()
    assert time.monotonic() - started < 1 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("format", "mode", "side"),
    [("WEBP", "RGB", 4097), ("PNG", "1", 20000), ("GIF", "L", 6000), ("TIFF", "1", 6000)],
)
def test_more_pixels_than_the_budget_of_a_format(format, mode, side):
    options = {"WEBP": {"lossless": True}, "TIFF": {"compression": "group4"}}.get(format, {})
    made = content(Image.new(mode, (side, side)), format, **options)
    assert len(made) < 200_000
    refuse(made, r"image 'a.x' has (more than )?[\d,]+ pixels.*exhaust the memory; shrink or remove it")


def test_as_many_pixels_as_the_budget_are_read():
    side = 2**12
    assert FORMATS["WEBP"] == side**2
    made = content(Image.new("RGB", (side, side)), "WEBP", lossless=True)
    assert StoredImage(made, "x").decode().shape == (3, side, side)


def test_an_image_so_thin_that_a_resize_makes_it_huge():
    refuse(content(Image.new("L", (20000, 1)), "PNG"), "has 20,000 x 1 pixels, more than 100 times")
    transform = eval_transform(load_image_processor("tiny_clip"))
    assert transform(StoredImage(content(Image.new("L", (1000, 10)), "PNG"), "x")).shape[0] == 3


def test_a_jpeg_of_thousands_of_scans():
    """Of 384 kB, and a minute and a half of work in the version before."""
    made = content(Image.new("L", (8192, 8192), 128), "JPEG", progressive=True)
    assert 4 < made.count(b"\xff\xda") < MAX_JPEG_SCANS
    last, end = made.rindex(b"\xff\xda"), made.rindex(b"\xff\xd9")
    last = made.rindex(b"\xff\xc4", 0, last)  # its table
    refuse(made[:end] + made[last:end] * 1000 + made[end:], "has more than 50 scans")


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_a_jpeg_whose_header_claims_more_than_its_bytes_can_hold(options):
    made = content(Image.effect_noise((64, 64), 50), "JPEG", **options)
    at = made.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
    forged = made[:at] + struct.pack(">HH", 7000, 7000) + made[at + 4 :]
    refuse(forged, r"claims 7,000 x 7,000 pixels, too many for its [\d,]+ bytes")


@pytest.mark.parametrize(
    "made",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n",
        b"\xd7\xcd\xc6\x9a\0\0\0\0\0\0\x64\0\x64\0\x48\0\0\0\0\0\0\0" + b"\0" * 64,
        b"SIMPLE  =                    T" + b" " * 2850,
        b"icns" + b"\0" * 60,
    ],
    ids=["eps", "pdf", "wmf", "fits", "icns"],
)
def test_formats_that_are_programs_or_vectors(made):
    refuse(made, "no image format that is known")


def test_no_interpreter_is_started_for_a_page_of_postscript(monkeypatch, tmp_path):
    """Not even where one is installed: PIL would run `gs`."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    made = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(BadImageError):
        StoredImage(made, "x").decode()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_hundreds_of_frames_one_is_decoded(format):
    frames = [Image.new("RGB", (64, 64), (n % 256, n // 256, 0)) for n in range(500)]
    made = StoredImage(content(frames[0], format, save_all=True, append_images=frames[1:]), "x")
    started = time.monotonic()
    assert made.decode().shape == (3, 64, 64)
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize("value", [9, 0, 2**16 - 1])
def test_an_orientation_that_does_not_exist_is_none(value):
    exif = Image.Exif()
    exif[0x0112] = value
    made = StoredImage(content(Image.new("RGB", (32, 48)), "JPEG", exif=exif), "x")
    assert upright_size(made.open()) == (48, 32)
    assert made.decode().shape == (3, 48, 32)


def test_an_orientation_of_another_type_is_none():
    entry = struct.pack("<HHHI4sI", 1, 0x0112, 2, 2, b"x", 0)  # ASCII
    tiff = b"II*\0" + struct.pack("<I", 8) + entry
    made = content(Image.new("RGB", (32, 48)), "JPEG", exif=b"Exif\0\0" + tiff)
    image = StoredImage(made, "x")
    assert upright_size(image.open()) == (48, 32)
    assert image.decode().shape == (3, 48, 32)


def test_the_size_of_a_file_that_is_cut_off_is_no_error_of_another_kind():
    made = content(Image.effect_noise((64, 64), 50), "PNG")
    image = StoredImage(made[: len(made) // 2], "'a.png'")
    upright_size(image.open())
    with pytest.raises(BadImageError, match=r"image 'a\.png' cannot be read"):
        image.decode()


# ---- files that are none ----


def made_pipe(path):
    os.mkfifo(path)


def made_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def made_link(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [made_pipe, made_socket, made_link], ids=["pipe", "socket", "device"])
def test_what_has_no_end_is_not_waited_for(make, tmp_path):
    make(tmp_path / "a.png")
    found = []
    record = {"bytes": None, "path": str(tmp_path / "a.png")}

    def read():
        with pytest.raises(BadImageError, match=r"a\.png' cannot be read \((it is no regular file|.*No such device)"):
            StoredImage.read(record, row=0)
        found.append(True)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=10)
    assert found


def test_a_file_of_more_bytes_than_the_budget_is_not_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(BadImageError, match=r"a\.png' cannot be read \(it has more than 268,435,456 bytes\)"):
        StoredImage.read({"bytes": None, "path": str(tmp_path / "a.png")}, row=0)


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path):
    name = "a\x1b]0;evil\x07\n\u202e.png"
    for record in ({"bytes": None, "path": f"/gone/{name}"}, {"bytes": b"no", "path": name}):
        with pytest.raises(BadImageError) as error:
            StoredImage.read(record, row=0).decode()
        assert str(error.value).isprintable() and r"a\x1b]0;evil\x07\n\u202e.png" in str(error.value)
    assert scan.record_name({"bytes": b"", "path": "ü \u200d.png"}, row=3) == "in row 3 ('ü \u200d.png')"
