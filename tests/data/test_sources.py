"""Every source gives the same two checked columns; every mistake in a data set gives one sentence with a remedy."""

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ft_focalsam.data import (
    SOURCES,
    DataArguments,
    ImageData,
    class_counts,
    exponential_counts,
    label_array,
    load_image_data,
    prepare_images,
    register_source,
)


def grey_images(values):
    return [Image.fromarray(np.full((4, 6, 3), value, dtype=np.uint8)) for value in values]


def image_dataset(labels, feature, column="label", image_column="image"):
    features = datasets.Features({image_column: datasets.Image(), column: feature})
    return datasets.Dataset.from_dict(
        {image_column: grey_images(range(len(labels))), column: labels}, features=features
    )


def save(path, **splits):
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return str(path)


def test_digits():
    data = load_image_data("digits")
    assert data.class_names[0] == "zero" and data.class_names[9] == "nine" and data.num_classes == 10
    assert data.train.column_names == ["image", "labels"]
    image = data.train[0]["image"]
    assert image.mode == "L" and image.size == (8, 8)
    total = class_counts(label_array(data.train), 10) + class_counts(label_array(data.test), 10)
    assert total.tolist() == np.bincount(load_digits().target).tolist()
    assert class_counts(label_array(data.test), 10).tolist() == np.rint(0.3 * total).tolist()
    originals = {image.tobytes(): int(t) for image, t in zip(rounded_digits(), load_digits().target, strict=True)}
    for row in data.test.select(range(50)):
        assert originals[row["image"].tobytes()] == row["labels"]
    assert np.array_equal(label_array(load_image_data("digits").test), label_array(data.test))


def rounded_digits():
    return [
        np.array([[round(x * 255 / 16) for x in row] for row in image], np.uint8) for image in load_digits().images
    ]


@pytest.mark.parametrize(("folder", "names"), [("cifar10", ["airplane", "truck"]), ("cifar100", ["apple", "worm"])])
def test_cifar_from_parquet(shared, folder, names):
    data = load_image_data(str(shared / "data" / folder))
    assert data.train.column_names == data.test.column_names == ["image", "labels"]
    assert [data.class_names[0], data.class_names[-1]] == names
    assert np.bincount(label_array(data.test)).tolist() == [10000 // data.num_classes] * data.num_classes
    assert data.test[0]["image"].size == (32, 32)


def test_single_split_needs_a_fraction_and_it_is_cut_class_by_class(shared):
    path = str(shared / "data" / "imagenet_sample")
    with pytest.raises(ValueError, match=r"no split 'train' to train on; set --train_split to one of 'test'"):
        load_image_data(path)
    with pytest.raises(ValueError, match=r"has the split 'test' and no other; set --test_fraction"):
        load_image_data(path, train_split="test")
    with pytest.raises(ValueError, match="largest class has 1 images"):
        load_image_data(path, train_split="test", test_fraction=0.5)  # one image a class: none can be spared


def make_image_folder(root, classes, images=3):
    for name in classes:
        (root / name).mkdir(parents=True)
        for index, image in enumerate(grey_images(range(images))):
            image.save(root / name / f"test {index} ä.png")


def test_image_folder_with_splits_spaces_and_umlauts(tmp_path):
    root = tmp_path / "Vögel und Käfer"
    make_image_folder(root / "train", ["Größe eins", "kleiner Käfer"])
    make_image_folder(root / "test", ["Größe eins", "kleiner Käfer"], images=2)
    data = load_image_data(str(root))
    assert data.class_names == ["Größe eins", "kleiner Käfer"]
    assert label_array(data.train).tolist() == [0, 0, 0, 1, 1, 1]
    assert label_array(data.test).tolist() == [0, 0, 1, 1]
    assert data.train[1]["image"].getpixel((0, 0)) == (1, 1, 1)


def test_image_folder_of_classes_only_may_have_a_class_called_train(tmp_path):
    make_image_folder(tmp_path / "images", ["train", "bus", "validation"], images=4)
    data = load_image_data(str(tmp_path / "images"), test_fraction=0.25)
    assert data.class_names == ["bus", "train", "validation"]
    assert class_counts(label_array(data.train), 3).tolist() == [3, 3, 3]
    assert class_counts(label_array(data.test), 3).tolist() == [1, 1, 1]


def test_image_folder_with_another_class_in_test(tmp_path):
    make_image_folder(tmp_path / "images" / "train", ["a", "b"])
    make_image_folder(tmp_path / "images" / "val", ["b"])
    data = load_image_data(str(tmp_path / "images"))
    assert data.class_names == ["a", "b"]
    assert label_array(data.test).tolist() == [1, 1, 1]


def test_images_deeper_in_a_class_belong_to_it(tmp_path):
    """A class with sub-folders only, one with both, one of a single image; what hides is no image."""
    root = tmp_path / "Meine Bilder"
    make_image_folder(root / "train", ["Bären & Co/Serie 1", "Bären & Co/Serie 2/roh", "Äpfel"], images=2)
    make_image_folder(root / "train" / "Äpfel", ["noch mehr"], images=1)
    make_image_folder(root / "train", ["Einzelstück", ".thumbnails", "__MACOSX"], images=1)
    make_image_folder(root / "test", ["Äpfel", "Bären & Co/neu"], images=1)
    (root / "train" / "Äpfel" / "._test 0.png").write_bytes(b"of a Mac")
    (root / "train" / "Äpfel" / "notes.txt").write_text("no image")
    data = load_image_data(str(root))
    assert data.class_names == ["Bären & Co", "Einzelstück", "Äpfel"]
    assert class_counts(label_array(data.train), 3).tolist() == [4, 1, 3]
    assert class_counts(label_array(data.test), 3).tolist() == [1, 0, 1]
    assert [row["image"].getpixel((0, 0))[0] for row in data.train] == [0, 1, 0, 1, 0, 0, 1, 0]


def test_classes_with_sub_folders_only_are_no_splits(tmp_path):
    make_image_folder(tmp_path, ["cats/1", "cats/2", "dogs/1"], images=2)
    data = load_image_data(str(tmp_path), test_fraction=0.5)
    assert data.class_names == ["cats", "dogs"]
    assert len(data.train) + len(data.test) == 6


def test_a_folder_that_leads_into_itself_is_read_once(tmp_path):
    make_image_folder(tmp_path, ["cats", "dogs"], images=2)
    (tmp_path / "cats" / "again").symlink_to(tmp_path / "cats", target_is_directory=True)
    (tmp_path / "dogs" / "others").symlink_to(tmp_path / "cats", target_is_directory=True)
    data = load_image_data(str(tmp_path), test_fraction=0.5)
    assert class_counts(np.concatenate([label_array(data.train), label_array(data.test)]), 2).tolist() == [2, 4]


def test_a_image_of_no_class_is_named(tmp_path):
    make_image_folder(tmp_path / "train", ["a", "b"])
    make_image_folder(tmp_path / "test", ["a", "b"])
    (tmp_path / "train" / "stray.png").write_bytes((tmp_path / "train" / "a" / "test 0 ä.png").read_bytes())
    with pytest.raises(ValueError, match=r"stray\.png' is in no class; move it"):
        load_image_data(str(tmp_path))


def test_string_labels_become_sorted_classes_and_images_stay(tmp_path):
    train = image_dataset(["owl", "ant", "owl", "bee"], datasets.Value("string"), column="target", image_column="img")
    test = image_dataset(["bee", "owl"], datasets.Value("string"), column="target", image_column="img")
    data = load_image_data(save(tmp_path / "saved", train=train, validation=test))
    assert data.class_names == ["ant", "bee", "owl"]
    assert label_array(data.train).tolist() == [2, 0, 2, 1]
    assert label_array(data.test).tolist() == [1, 2]
    assert data.train.features["labels"].names == data.class_names
    assert [row["image"].getpixel((0, 0))[0] for row in data.train] == [0, 1, 2, 3]


def test_integers_without_names_are_named_by_number(tmp_path):
    split = image_dataset([1, 0, 2], datasets.Value("int32"))
    data = load_image_data(save(tmp_path / "saved", train=split, test=split))
    assert data.class_names == ["0", "1", "2"]
    assert label_array(data.train).tolist() == [1, 0, 2]


def test_dataset_saved_alone_and_a_test_set_cut_from_it(tmp_path):
    image_dataset([0, 0, 1, 1], datasets.ClassLabel(names=["a", "b"])).save_to_disk(str(tmp_path / "one"))
    data = load_image_data(str(tmp_path / "one"), test_fraction=0.5)
    assert label_array(data.train).tolist() == label_array(data.test).tolist() == [0, 1]


def test_parquet_with_image_bytes_that_the_user_names(tmp_path):
    (tmp_path / "bytes").mkdir()
    png = tmp_path / "image.png"
    grey_images([7])[0].save(png)
    table = datasets.Dataset.from_dict({"content": [png.read_bytes()] * 2, "label": ["a", "b"]})
    for split in ("train", "test"):
        table.to_parquet(str(tmp_path / "bytes" / f"{split}.parquet"))
    with pytest.raises(ValueError, match=r"No image column .* 'content', 'label'; name it with --image_column"):
        load_image_data(str(tmp_path / "bytes"))
    data = load_image_data(str(tmp_path / "bytes"), image_column="content")
    assert data.train[0]["image"].getpixel((0, 0)) == (7, 7, 7)


def labelled_twice(first, second):
    features = {"image": datasets.Image(), first: datasets.ClassLabel(names=["a", "b"])}
    features |= {second: datasets.ClassLabel(names=["x", "y", "z"])}
    columns = {"image": grey_images([1, 2]), first: [0, 1], second: [2, 0]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_fine_label_is_preferred_to_coarse_label(tmp_path):
    split = labelled_twice("coarse_label", "fine_label")
    path = save(tmp_path / "saved", train=split, test=split)
    assert load_image_data(path).class_names == ["x", "y", "z"]
    assert load_image_data(path, label_column="coarse_label").class_names == ["a", "b"]


def test_ambiguous_and_missing_columns_name_candidates_and_option(tmp_path):
    split = labelled_twice("colour", "shape")
    path = save(tmp_path / "saved", train=split, test=split)
    with pytest.raises(ValueError, match=r"label column is ambiguous: 'colour', 'shape' could be it.*--label_column"):
        load_image_data(path)
    with pytest.raises(ValueError, match=r"no column 'form'.*'image', 'colour', 'shape'.*--label_column"):
        load_image_data(path, label_column="form")
    with pytest.raises(ValueError, match=r"no column 'img'.*--image_column"):
        load_image_data(path, label_column="shape", image_column="img")
    other = split.remove_columns("shape")
    path = save(tmp_path / "other", train=split, test=other)
    with pytest.raises(ValueError, match="no column 'shape' of split 'test'"):
        load_image_data(path, label_column="shape")


def test_label_errors_name_split_row_value_and_range(tmp_path):
    names = datasets.ClassLabel(names=["a", "b"])
    good = image_dataset([0, 1, 0], names)
    unlabelled = image_dataset([1, -1, -1], names)
    with pytest.raises(ValueError, match=r"Row 1 of split 'test' has the label -1, outside 0\.\.1 .* 2 rows"):
        load_image_data(save(tmp_path / "a", train=good, test=unlabelled))
    strings, unknown = (image_dataset(x, datasets.Value("string")) for x in (["a", "b"], ["a", "c"]))
    with pytest.raises(ValueError, match="Row 1 of split 'test' has the label 'c', which no training image has"):
        load_image_data(save(tmp_path / "b", train=strings, test=unknown))
    gap = image_dataset([1, 2, 4], datasets.Value("int64"))
    with pytest.raises(ValueError, match="without class names from 1 to 4, and no 0; number the classes"):
        load_image_data(save(tmp_path / "c", train=gap, test=gap))
    fractions = image_dataset([0.5, 1.5], datasets.Value("float32"))
    with pytest.raises(ValueError, match="'label' of split 'train' holds float, neither integers nor strings"):
        load_image_data(save(tmp_path / "d", train=fractions, test=fractions))
    missing = image_dataset([0, None], names)
    with pytest.raises(ValueError, match="Row 1 of split 'train' has no label"):
        load_image_data(save(tmp_path / "e", train=missing, test=good))
    swapped = image_dataset([0, 1], datasets.ClassLabel(names=["b", "a"]))
    with pytest.raises(ValueError, match="Split 'test' names other classes"):
        load_image_data(save(tmp_path / "f", train=good, test=swapped))


def test_split_errors_name_splits_and_option(tmp_path):
    split = image_dataset([0, 1], datasets.ClassLabel(names=["a", "b"]))
    path = save(tmp_path / "saved", train=split, holdout=split)
    assert len(load_image_data(path, test_split="holdout").test) == 2
    with pytest.raises(ValueError, match=r"None of the splits 'train', 'holdout' is called .* --test_split"):
        load_image_data(path)
    with pytest.raises(ValueError, match="no split 'dev' to test on; set --test_split to one of 'train', 'holdout'"):
        load_image_data(path, test_split="dev")
    with pytest.raises(ValueError, match="--test_split train is the training split"):
        load_image_data(path, test_split="train")
    with pytest.raises(ValueError, match=r"--test_split holdout and --test_fraction 0\.5 exclude"):
        load_image_data(path, test_split="holdout", test_fraction=0.5)


def test_what_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder '.*/nowhere' does not exist; check the path") as error:
        load_image_data(str(tmp_path / "nowhere"))
    assert "\n" not in str(error.value)
    (tmp_path / "somewhere").mkdir()
    with pytest.raises(FileNotFoundError, match=r"check the path. Did you mean '.*/somewhere'\?"):
        load_image_data(str(tmp_path / "somwhere"))
    with pytest.raises(FileNotFoundError, match=r"'digit' was not found here, and .*Did you mean 'digits'\?") as error:
        load_image_data("digit")
    assert "\n" not in str(error.value)
    (tmp_path / "file.parquet").touch()
    with pytest.raises(ValueError, match=r"file of no known format \(.txt, .csv.*or the folder that holds it"):
        load_image_data(str(tmp_path / "file.parquet"))


def test_a_folder_without_classes_is_refused(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    remedy = "; give a folder with one sub-folder of images per class, or a file that lists paths and labels"
    with pytest.raises(ValueError, match=rf"'{folder}' has nothing in it{remedy}"):
        load_image_data(str(folder))
    for place in (folder, folder / "a"):
        place.mkdir(exist_ok=True)
        (place / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=rf"'{folder}' has 2 files and no image among them .*notes.txt'.{remedy}"):
        load_image_data(str(folder))
    for index in range(3):
        Image.new("RGB", (4, 4)).save(folder / f"{index}.png")
    with pytest.raises(ValueError, match=rf"'{folder}' has 3 images and no sub-folders, which would be .*{remedy}"):
        load_image_data(str(folder), test_fraction=0.5)


def test_splits_one_folder_too_deep_are_named(tmp_path):
    for split in ("train", "val"):
        make_image_folder(tmp_path / "outer" / "inner" / split, ["a", "b"])
    inner = tmp_path / "outer" / "inner"
    with pytest.raises(ValueError, match=rf"has its splits in the folder 'inner'; give '{inner}'"):
        load_image_data(str(tmp_path / "outer"))
    assert len(load_image_data(str(inner)).test) == 6


def test_splits_in_capitals(tmp_path):
    for split in ("Train", "TEST"):
        make_image_folder(tmp_path / split, ["a", "b"])
    data = load_image_data(str(tmp_path))
    assert (len(data.train), len(data.test), data.class_names) == (6, 6, ["a", "b"])
    assert len(load_image_data(str(tmp_path), train_split="Train").train) == 6


def test_classes_to_test_on_need_training_images(tmp_path):
    for split, classes in (("train", ["cat", "dog"]), ("test", ["cat", "Dog"])):
        make_image_folder(tmp_path / split, classes)
    message = (
        r"1 of 3 classes without a training image \('Dog'\); of 'dog' there are training images and no test images"
    )
    with pytest.raises(ValueError, match=message):
        prepare_images(DataArguments(dataset=str(tmp_path)))


@pytest.mark.parametrize("name", ["train.parquet", "train.csv"])
def test_a_damaged_table_is_named(tmp_path, name):
    (tmp_path / name).write_text('a,b\n1\n"')
    with pytest.raises(ValueError, match=rf"The data set '{tmp_path}' cannot be read \(.+\); check its files"):
        load_image_data(str(tmp_path))


def test_a_new_source_is_one_function(request):
    request.addfinalizer(lambda: SOURCES.pop("pair"))
    split = image_dataset([0, 1], datasets.ClassLabel(names=["a", "b"]), column="labels")

    @register_source("pair")
    def pair():
        return ImageData(train=split, test=split, class_names=["a", "b"], name="pair")

    assert load_image_data("pair").name == "pair"
    with pytest.raises(ValueError, match="'pair' has fixed columns and splits; drop --label_column, --train_split"):
        load_image_data("pair", label_column="x", train_split="all")
    with pytest.raises(ValueError, match="source 'pair' is already registered"):
        register_source("pair")(pair)
    with pytest.raises(ValueError, match=r"has the columns \['image', 'label'\], not 'image' and 'labels'"):
        ImageData(train=split.rename_column("labels", "label"), test=split, class_names=["a", "b"], name="pair")
    with pytest.raises(ValueError, match=r"Row 1 of split 'train' has the label 1, outside 0\.\.0"):
        ImageData(train=split, test=split, class_names=["a"], name="pair")


def test_cut_shapes_the_training_set_and_balances_the_test_set():
    data = load_image_data("digits")
    smaller = data.cut(imbalance_factor=10, max_train_per_class=40, max_test_per_class=7, seed=1)
    assert np.bincount(smaller.train["labels"]).tolist() == exponential_counts(10, 40, imbalance_factor=10).tolist()
    assert np.bincount(smaller.test["labels"]).tolist() == [7] * 10
    assert (smaller.name, smaller.class_names) == (data.name, data.class_names)
    assert np.bincount(data.cut(max_train_per_class=30).train["labels"]).tolist() == [30] * 10
    assert len(data.cut().train) == len(data.train) and len(data.cut().test) == len(data.test)
    other = data.cut(imbalance_factor=10, max_train_per_class=40, seed=2)
    images = [[image.tobytes() for image in part.train["image"]] for part in (smaller, other)]
    assert images[0] != images[1]


def test_images_held_out_are_training_images_that_leave(tmp_path):
    make_image_folder(tmp_path / "train", ["a", "b"], images=10)
    make_image_folder(tmp_path / "train", ["single"], images=1)
    make_image_folder(tmp_path / "test", ["a", "b", "single"], images=1)
    data = load_image_data(str(tmp_path))
    held = data.hold_out(0.3, seed=1)
    paths = [set(part.with_format("arrow")["image"].to_pandas().str["path"]) for part in (held.train, held.validation)]
    assert paths[0] | paths[1] == set(data.train.with_format("arrow")["image"].to_pandas().str["path"])
    assert not paths[0] & paths[1]
    assert class_counts(label_array(held.validation), 3).tolist() == [3, 3, 0]  # one of each class stays in training
    assert held.test is data.test
    with pytest.raises(ValueError, match="must be larger than 0 and smaller than 1"):
        data.hold_out(1.0)


def test_a_validation_split_is_neither_trained_nor_tested_on(tmp_path):
    for split in ("train", "test", "val"):
        make_image_folder(tmp_path / "images" / split, ["bus", "cat"], images=3)
    make_image_folder(tmp_path / "images" / "val", ["cow"], images=1)
    name = str(tmp_path / "images")
    (tmp_path / "images" / "train" / "cow").mkdir()
    (tmp_path / "images" / "val" / "bus" / "test 0 ä.png").rename(tmp_path / "images" / "train" / "cow" / "0.png")
    data = prepare_images(DataArguments(dataset=name, validation_split="val"))
    counts = {split: class_counts(label_array(part), 3).tolist() for split, part in data.parts.items()}
    assert counts == {"train": [3, 3, 1], "test": [3, 3, 0], "validation": [2, 3, 1]}
    assert "validation" not in load_image_data(name).parts
    cut = load_image_data(name, validation_split="val", test_fraction=0.3).parts
    assert [len(cut[split]) for split in ("train", "test", "validation")] == [5, 2, 6]
    with pytest.raises(ValueError, match="--validation_split test is the test split"):
        load_image_data(name, validation_split="test", test_split="test")
    with pytest.raises(ValueError, match="no split 'dev' to validate on; set --validation_split to one of 'test', "):
        load_image_data(name, validation_split="dev")
    with pytest.raises(ValueError, match=r"validation_split is 'val' and validation_fraction 0.1; set one"):
        DataArguments(validation_split="val", validation_fraction=0.1)
    (tmp_path / "images" / "train" / "cow" / "0.png").unlink()
    with pytest.raises(ValueError, match="The validation set has 1 of 3 classes without a training image \\('cow'\\)"):
        prepare_images(DataArguments(dataset=name, validation_split="val"))
