"""What exported folders give for an image, by the programs they were made for, without ft_focalsam.

    python load_exported.py cases.json results.json

A case is {"format": ..., "folder": ..., "image": a PNG file}; its result is a list of logits for each image.
"""

import json
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ft_focalsam":
            raise ImportError("ft_focalsam is not to be used here")


sys.meta_path.insert(0, Blocked())

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import pipeline  # noqa: E402


def by_pipeline(folder, image):
    classify = pipeline("image-classification", model=folder)
    answers = classify(image, top_k=None, function_to_apply="none")
    scores = {answer["label"]: answer["score"] for answer in answers}
    labels = classify.model.config.id2label
    return [[labels[index] for index in range(len(labels))], [scores[labels[index]] for index in range(len(labels))]]


def by_readme(folder, image):
    with open(f"{folder}/README.md", encoding="utf-8") as file:
        code = file.read().split("```python\n")[1].split("```")[0]
    values = {}
    exec(code.replace("path/to/this/folder", folder).replace("image.jpg", image), values)
    return [values["names"], values["logits"][0].tolist()]


def by_onnxruntime(folder, image):
    with open(f"{folder}/model.json", encoding="utf-8") as file:
        note = json.load(file)
    steps, image = note["preprocessing"], Image.open(image).convert(note["preprocessing"]["channels"])
    if steps["resize"] is not None:
        scale = steps["resize"]["shortest_edge"] / min(image.size)
        image = image.resize(
            [round(side * scale) for side in image.size], getattr(Image, steps["interpolation"].upper())
        )
    crop = steps["center_crop"]
    left, top = (image.width - crop["width"]) // 2, (image.height - crop["height"]) // 2
    image = image.crop((left, top, left + crop["width"], top + crop["height"]))
    pixels = np.asarray(image, dtype=np.float32) * steps["rescale_factor"]
    pixels = ((pixels - steps["mean"]) / steps["std"]).transpose(2, 0, 1).astype(np.float32)
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
    name = note["input"]["name"]
    one, three = (session.run(None, {name: np.stack([pixels] * count)})[0] for count in (1, 3))
    return [note["labels"], one[0].tolist(), *three.tolist()]


READERS = {"transformers": by_pipeline, "open_clip": by_readme, "onnx": by_onnxruntime}

with open(sys.argv[1]) as cases:
    results = {name: READERS[case["format"]](case["folder"], case["image"]) for name, case in json.load(cases).items()}
assert "ft_focalsam" not in sys.modules
with open(sys.argv[2], "w") as file:
    json.dump(results, file)
