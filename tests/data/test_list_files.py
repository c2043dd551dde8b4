"""Lists, tables, iNaturalist's JSON and arrays give what they name; mistakes name the file and the line."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

from ft_focalsam.data import FILE_FORMATS, label_array, load_image_data, register_file_format

NAMES = ["train/große Eule/a 1.png", "train/große Eule/a 2.png", "train/wren/b.png", "val/c.png"]


@pytest.fixture
def images(tmp_path):
    """A folder of four images, each of one grey: 0, 10, 20, 30."""
    root = tmp_path / "images ü"
    for index, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (10 * index,) * 3).save(root / name)
    return root


def greys(dataset) -> list[int]:
    return [row["image"].getpixel((0, 0))[0] for row in dataset]


def write(path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def lists(images, train: str, test: str = f"{NAMES[3]} 1\n") -> dict:
    folder = images.parent
    return {
        "name": write(folder / "X_LT_train.txt", train),
        "test_dataset": write(folder / "X_LT_test.txt", test),
        "image_root": str(images),
    }


def test_lists_of_the_literature(images):
    data = load_image_data(**lists(images, f"{NAMES[0]} 1\n{NAMES[2]} 0\n\n{NAMES[1]} 1\n"))
    assert label_array(data.train).tolist() == [1, 0, 1] and label_array(data.test).tolist() == [1]
    assert greys(data.train) == [0, 20, 10] and greys(data.test) == [30]
    assert data.class_names == ["0", "1"]


def test_root_is_the_folder_of_the_list_by_default(images):
    path = write(images / "all.txt", "".join(f"{name} {index % 2}\n" for index, name in enumerate(NAMES)))
    data = load_image_data(path, test_fraction=0.5)
    assert sorted(greys(data.train) + greys(data.test)) == [0, 10, 20, 30]


def test_class_names_from_a_file_also_for_a_class_without_a_training_image(images):
    names = write(images.parent / "names.txt", "wren\ngreat grey owl\nauk\n")
    data = load_image_data(**lists(images, f"{NAMES[0]} 1\n", f"{NAMES[3]} 2\n"), class_names=names)
    assert data.class_names == data.train.features["labels"].names == ["wren", "great grey owl", "auk"]
    assert label_array(data.test).tolist() == [2]
    for text in ('["wren", "great grey owl", "auk"]', '[{"id": 7, "name": "auk"}, {"id": 1, "name": "wren"}]'):
        names = write(images.parent / "names.json", text)
        if "id" in text:
            with pytest.raises(ValueError, match=r"label 2, outside 0\.\.1 for the 2 classes"):
                load_image_data(**lists(images, f"{NAMES[0]} 1\n", f"{NAMES[3]} 2\n"), class_names=names)
        else:
            data = load_image_data(**lists(images, f"{NAMES[0]} 1\n", f"{NAMES[3]} 2\n"), class_names=names)
            assert data.class_names[1] == "great grey owl"


def test_class_names_of_a_source_that_has_some(images):
    names = write(images.parent / "names.txt", "\n".join("abcdefghij"))
    data = load_image_data("digits", class_names=names)
    assert data.class_names == data.test.features["labels"].names == list("abcdefghij")
    with pytest.raises(ValueError, match=r"--class_names has 2 names and the data set 10 classes"):
        load_image_data("digits", class_names=write(images.parent / "two.txt", "a\nb\n"))
    with pytest.raises(ValueError, match=r"names the classes 0 and 2 'a'; give each its own name"):
        load_image_data("digits", class_names=write(images.parent / "same.txt", "a\nb\na\n"))
    with pytest.raises(FileNotFoundError, match=r"gone.txt' does not exist; check --class_names"):
        load_image_data("digits", class_names="gone.txt")


def test_missing_images_are_counted_and_the_first_is_named(images):
    (images / "train" / "gone.jpg").mkdir()
    options = lists(images, f"{NAMES[0]} 0\n\n{NAMES[1]} 0\ntrain/gone.jpg 1\n{NAMES[2]} 1\nno folder/x.jpg 0\n")
    with pytest.raises(FileNotFoundError, match=r"Line 4 of '.*X_LT_train.txt' names 'train/gone.jpg'") as error:
        load_image_data(**options)
    assert "2 of 5 images are missing); set --image_root" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"folder '.*nowhere' of the images in '.*train.txt' does not exist"):
        load_image_data(**options | {"image_root": str(images / "nowhere")})
    options = lists(images, f"{NAMES[0]} 0\n") | {"test_dataset": "gone.txt"}
    with pytest.raises(FileNotFoundError, match=r"The file 'gone.txt' to test on does not exist; check --test_data"):
        load_image_data(**options)
    with pytest.raises(FileNotFoundError, match=r"data set file 'gone/list.txt' does not exist"):
        load_image_data("gone/list.txt")


@pytest.mark.parametrize("name", ["../secret.png", "train/../../secret.png", "/etc/passwd", "{outside}"])
def test_paths_stay_inside_their_root(images, name):
    outside = images.parent / "secret.png"
    Image.new("RGB", (4, 4)).save(outside)
    name = name.format(outside=outside)
    with pytest.raises(ValueError, match=r"Line 2 of '.*' names '.*', which leads out of '.*'; write paths relative"):
        load_image_data(**lists(images, f"{NAMES[0]} 0\n{name} 1\n"))


def test_links_may_lead_about_inside_the_root_and_not_out_of_it(images):
    secret = images.parent / "elsewhere"
    secret.mkdir()
    Image.new("RGB", (4, 4)).save(secret / "x.png")
    os.symlink(images / NAMES[2], images / "inside.png")
    os.symlink(images / "train", images / "also train")
    data = load_image_data(**lists(images, "inside.png 0\nalso train/wren/b.png 1\n"))
    assert greys(data.train) == [20, 20]
    os.symlink(secret / "x.png", images / "file.png")
    os.symlink(secret, images / "folder")
    for name in ("file.png", "folder/x.png"):
        with pytest.raises(ValueError, match=rf"Line 2 of '.*' names '{name}', a link that leads out of"):
            load_image_data(**lists(images, f"{NAMES[0]} 0\n{name} 1\n"))
    link = images.parent / "link to the root"
    os.symlink(images, link)
    assert greys(load_image_data(**lists(images, f"{NAMES[1]} 1\n{NAMES[2]} 0\n") | {"image_root": str(link)}).train)


@pytest.mark.parametrize("line", ["no_label.jpg", "a.jpg x", "a.jpg -1", "a.jpg 1.5", "7"])
def test_lines_without_a_class_number(images, line):
    with pytest.raises(ValueError, match=rf"Line 2 of '.*' is '{line}'; write a path, a space and the class number"):
        load_image_data(**lists(images, f"{NAMES[0]} 0\n{line}\n"))


def test_list_that_is_empty_or_no_text(images):
    with pytest.raises(ValueError, match=r"train.txt' lists no image"):
        load_image_data(**lists(images, "\n"))
    (images / "bad.txt").write_bytes(b"a.jpg 0\n\xff\xfe 1\n")
    with pytest.raises(ValueError, match=r"bad.txt' is no text in UTF-8 \(.* at byte 8\); convert it"):
        load_image_data(str(images / "bad.txt"))


def tabled(images, suffix: str, rows: list[dict]) -> str:
    path = images / f"all{suffix}"
    if suffix == ".jsonl":
        return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_tables_with_names_splits_and_other_columns(images, suffix):
    species = ["Größe, eins", "Größe, eins", "wren", "wren"]
    splits = ["train", "train", "train", "test"]
    rows = [
        {"id": i, "path": n, "label": s, "split": p}
        for i, (n, s, p) in enumerate(zip(NAMES, species, splits, strict=True))
    ]
    data = load_image_data(tabled(images, suffix, rows))
    assert data.class_names == ["Größe, eins", "wren"]
    assert label_array(data.train).tolist() == [0, 0, 1] and label_array(data.test).tolist() == [1]
    assert greys(data.train) == [0, 10, 20] and greys(data.test) == [30]
    renamed = [{"where": row["path"], "mask": row["path"], "species": row["label"]} for row in rows]
    columns = "the columns 'where', 'mask', 'species', not one called"
    with pytest.raises(ValueError, match=rf"{columns} path, .*; set --image_column"):
        load_image_data(tabled(images, suffix, renamed))
    with pytest.raises(ValueError, match=rf"{columns} labels, .*; set --label_column"):
        load_image_data(tabled(images, suffix, renamed), image_column="where")
    data = load_image_data(
        tabled(images, suffix, renamed), image_column="where", label_column="species", test_fraction=0.5
    )
    assert data.class_names == ["Größe, eins", "wren"] and len(data.train) == len(data.test) == 2


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_columns_of_a_table_that_leaves_no_doubt_need_no_usual_names(images, suffix):
    rows = [{"species": f"s{i % 2}", "where": name, "split": "train"} for i, name in enumerate(NAMES)]
    data = load_image_data(tabled(images, suffix, rows), test_fraction=0.5)
    assert data.class_names == ["s0", "s1"]
    assert sorted(greys(data.train) + greys(data.test)) == [0, 10, 20, 30]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_tables_with_numbers_and_gaps_in_them(images, suffix):
    rows = [{"file_name": name, "label": index % 2} for index, name in enumerate(NAMES)]
    data = load_image_data(tabled(images, suffix, rows), test_fraction=0.5)
    assert data.class_names == ["0", "1"]
    rows[2]["label"] = ""
    with pytest.raises(
        ValueError, match=rf"Line {4 if suffix == '.csv' else 3} of '.*all{suffix}' has no file_name or"
    ):
        load_image_data(tabled(images, suffix, rows), test_fraction=0.5)
    rows[2] |= {"label": 0, "file_name": "../x.png"}
    with pytest.raises(ValueError, match=rf"Line {4 if suffix == '.csv' else 3} of '.*all{suffix}' names '../x.png'"):
        load_image_data(tabled(images, suffix, rows), test_fraction=0.5)


def test_json_lines_that_are_none(images):
    with pytest.raises(ValueError, match=r"Line 2 of '.*' is not valid JSON"):
        load_image_data(write(images / "a.jsonl", '{"path": "val/c.png", "label": 0}\n{"path": \n'))
    with pytest.raises(ValueError, match=r"Line 1 of '.*' is no JSON object"):
        load_image_data(write(images / "a.jsonl", "[1]\n"))


def inat(folder, name: str, chosen: list[int], **changes) -> str:
    content = {
        "images": [{"id": 100 + i, "file_name": NAMES[i], "width": 5} for i in chosen],
        "annotations": [{"id": i, "image_id": 100 + i, "category_id": (40, 7)[i % 2]} for i in reversed(chosen)],
        "categories": [{"id": 40, "name": "Aves"}, {"id": 7, "name": "Fungi"}, {"id": 9, "name": "Plantae"}],
    }
    return write(folder.parent / name, json.dumps(content | changes))


def test_inaturalist(images):
    train, test = inat(images, "train2018.json", [0, 1, 2]), inat(images, "val2018.json", [3])
    data = load_image_data(train, test_dataset=test, image_root=str(images))
    assert data.class_names == ["Fungi", "Plantae", "Aves"]  # in the order of their ids
    assert label_array(data.train).tolist() == [2, 0, 2] and label_array(data.test).tolist() == [0]
    assert greys(data.train) == [0, 10, 20] and greys(data.test) == [30]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": []}, r"image 'train/große Eule/a 1.png' of '.*' has no category \(2 of 2 have none\)"),
        ({"categories": None}, "has no lists images, annotations, categories"),
        ({"images": [{"id": 1}]}, "An entry of '.*' has no 'file_name'"),
        ({"images": [{"id": [1], "file_name": "a.png"}]}, r"An entry .* cannot be read \(its id is no number or text"),
        ({"annotations": [{"image_id": {}, "category_id": 7}]}, r"cannot be read \(its image_id is no number"),
        ({"annotations": [{"image_id": 1, "category_id": [7]}]}, r"cannot be read \(its category_id is no number"),
        ({"images": [{"id": 5, "file_name": 3}], "annotations": []}, "The image '3' of '.*' has no category"),
        ({"annotations": [{"image_id": 100, "category_id": c} for c in (7, 8)]}, "an annotation of the category 8, "),
        ({"categories": [{"id": i, "name": "x"} for i in (40, 7)]}, "names the classes 0 and 1 'x'"),
    ],
    ids=[
        *("unlabelled", "other_json", "no_file", "image_id_list", "annotation_id_object", "category_id_list"),
        *("file_number", "several", "same_name"),
    ],
)
def test_inaturalist_that_is_not_whole(images, changes, message):
    with pytest.raises(ValueError, match=message):
        load_image_data(inat(images, "x.json", [0, 1], **changes), image_root=str(images), test_fraction=0.5)


def test_arrays(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
    labels = np.array([0, 1, 1, 0, 1, 1])
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=labels, x_test=pixels[:2, ..., 0], y_test=labels[:2])
    data = load_image_data(str(tmp_path / "a.npz"))
    assert all(np.array_equal(np.asarray(row["image"]), image) for row, image in zip(data.train, pixels, strict=True))
    assert np.array_equal(np.asarray(data.test[1]["image"]), pixels[1, ..., 0])
    assert label_array(data.train).tolist() == labels.tolist()
    np.savez(tmp_path / "b.npz", x=pixels, y=labels)
    assert len(load_image_data(str(tmp_path / "b.npz"), test_fraction=0.5).test) == 3


def test_arrays_that_are_none(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    np.savez(tmp_path / "pickle.npz", x=np.array([Bomb()], dtype=object), y=np.array([0]))
    with pytest.raises(ValueError, match=r"pickle.npz' is no archive of plain NumPy arrays"):
        load_image_data(str(tmp_path / "pickle.npz"))
    assert not (tmp_path / "boom").exists()
    np.savez(tmp_path / "names.npz", images=np.zeros((2, 4, 4), np.uint8), y=np.array([0, 1]))
    with pytest.raises(ValueError, match=r"holds images, y; name its arrays x and y"):
        load_image_data(str(tmp_path / "names.npz"))
    for x, y in ((np.zeros((2, 4, 4)), [0, 1]), (np.zeros((2, 4, 4), np.uint8), [0]), (np.zeros(2, np.uint8), [0, 1])):
        np.savez(tmp_path / "shapes.npz", x=x, y=np.array(y))
        with pytest.raises(ValueError, match=r"has x of .* give uint8 \(N, H, W\)"):
            load_image_data(str(tmp_path / "shapes.npz"))


def test_options_that_do_not_go_with_a_file(images):
    options = lists(images, f"{NAMES[0]} 0\n{NAMES[2]} 1\n")
    with pytest.raises(ValueError, match=r"is a file; drop --dataset_config"):
        load_image_data(**options, config_name="x")
    with pytest.raises(ValueError, match=r"'digits' has fixed columns and splits; drop --image_root, --test_dataset"):
        load_image_data(**options | {"name": "digits"})
    with pytest.raises(ValueError, match=r"is no file that lists images; drop --test_dataset"):
        load_image_data(**options | {"name": str(images)})
    del options["test_dataset"]
    with pytest.raises(ValueError, match=r"is no file that lists images; drop --image_root"):
        load_image_data(**options | {"name": str(images)})
    with pytest.raises(ValueError, match=r"has the split 'train' and no other; set --test_fraction"):
        load_image_data(**options)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", ", "], ids=["comma", "semicolon", "tab", "comma_and_space"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("begin", ["", "\ufeff", "\n\n"], ids=["plain", "bom", "empty_lines"])
def test_tables_as_other_programs_write_them(images, delimiter, end, begin):
    rows = [("path", "label"), (NAMES[0], "owl"), (f'"{NAMES[1]}"', '"owl"'), (NAMES[2], "wren"), (NAMES[3], "wren")]
    text = begin + end + (end + end).join(delimiter.join(row) for row in rows) + end + end
    (images / "all.csv").write_bytes(text.encode("utf-8"))
    data = load_image_data(str(images / "all.csv"), test_fraction=0.5)
    assert data.class_names == ["owl", "wren"]
    assert sorted(greys(data.train) + greys(data.test)) == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na.png\n", r"has the columns 'path', not one called labels, .* or target; set --label_column to one"),
        ("train/a.png,owl\n", r"begins with 'train/a.png' where its header should be; write 'path,label' above"),
        ("path,label\n\na,b.png,owl\n", r"Line 3 of .* has 3 fields and the header 2; put a field that holds ','"),
        ("", "lists no image"),
    ],
    ids=["no_labels", "no_header", "comma_in_a_path", "empty"],
)
def test_tables_that_cannot_be_read(images, text, message):
    with pytest.raises(ValueError, match=message):
        load_image_data(write(images / "all.csv", text))


def test_a_new_format_is_one_function(request, images):
    request.addfinalizer(lambda: FILE_FORMATS.pop(".tabs"))

    @register_file_format(".tabs")
    def tabs(file, options):
        spaced = file.with_suffix(".txt")
        spaced.write_text(file.read_text(encoding="utf-8").replace("\t", " "), encoding="utf-8")
        return FILE_FORMATS[".txt"](spaced, options)

    data = load_image_data(write(images / "a.tabs", f"{NAMES[0]}\t0\n{NAMES[1]}\t0\n"), test_fraction=0.5)
    assert len(data.train) == 1
