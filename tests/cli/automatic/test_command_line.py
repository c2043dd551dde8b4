"""Keys and values as words of a command line, and back."""

from ft_focalsam.cli.arguments import TYPES
from ft_focalsam.cli.automatic import as_words, given_keys
from ft_focalsam.cli.config import parse_config


def test_keys_that_are_given_have_the_types_of_their_arguments():
    words = ["--rho", "0.1", "--bf16", "true", "--image-size", "64", "--backbone", "tiny_clip", "--no_such_key", "1"]
    assert given_keys(words) == {"rho": 0.1, "bf16": True, "image_size": 64, "backbone": "tiny_clip"}
    assert given_keys(["--test_fraction", "null", "--tuned_layers", "1", "2"]) == {
        "test_fraction": None,
        "tuned_layers": [1, 2],
    }
    assert given_keys([]) == {}


def test_words_say_the_same_again(tmp_path):
    settings = {
        "dataset": "Meine Bilder",
        "test_fraction": 0.2,
        "image_root": None,
        "fast_decode": False,
        "learning_rate": 5e-5,
        "tuned_layers": [0, 3],
        "peft_config": {"peft_type": "LOHA"},
        "prompt_templates": ["a {}.", "the {}."],
        "output_dir": str(tmp_path),
    }
    options = parse_config(TYPES, as_words(settings))
    values = {key: getattr(each, key) for each in options for key in settings if hasattr(each, key)}
    assert values == settings
    given = given_keys(as_words(settings))
    assert given | {"peft_config": settings["peft_config"]} == settings
