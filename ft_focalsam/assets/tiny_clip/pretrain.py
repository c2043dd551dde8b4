"""Trains a tiny CLIP on rendered characters, so that the package works without any download.

The model is to scikit-learn's handwritten digits what CLIP is to photographs: never trained on them, it names them all
the same. The training images are rendered here, from the fonts that come with matplotlib and from a few pen strokes.
Each glyph is kept as a signed distance field, which makes the stroke width a free parameter, then rotated, sheared,
wobbled, blurred, inverted and reduced to a handful of pixels. Each class has several captions ("the digit three.").

    python ft_focalsam/assets/tiny_clip/pretrain.py --output ft_focalsam/assets/tiny_clip

No digit of scikit-learn is trained on, and none chooses a checkpoint: they serve for the zero-shot test at the end.
"""

import argparse
import json
import string
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import trange
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers import get_cosine_schedule_with_warmup as cosine_schedule

IMAGE_SIZE = 32
CANVAS = 64
MAX_TOKENS = 32
MEAN, STD = 0.5, 0.5
DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FONTS = ["DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cmb10*", "cmr10*", "cmss10*", "cmti10*", "cmtt10*"]
SYMBOLS = {"?": "question mark", "!": "exclamation mark", "+": "plus sign", "#": "hash sign", "%": "percent sign"}
PEN_STROKES = {  # Ways to write the digits: control points "xy" on a 10 x 10 grid; a point given twice is a corner.
    "0": ["60 20 05 39 69 95 80 50", "50 21 15 49 75 61 40"],
    "1": ["40 49", "23 50 50 59", "23 50 50 59|29 79", "70 39"],
    "2": ["12 20 60 73 46 09 09 89", "12 40 72 45 19 07 37 89", "11 40 63 19 19 79"],
    "3": ["01 30 62 44 44 76 59 08", "00 70 70 34 34 76 59 08", "11 40 72 44 76 49 18"],
    "4": ["10 05 05 85|60 69", "69 60 60 06 06 86", "20 15 75|70 59", "30 06 06 86|54 49"],
    "5": ["80 20 20 14 14 54 76 49 08", "20 14 14 54 76 49 08|20 80", "70 20 14 54 66 39 09"],
    "6": ["70 23 06 39 67 55 15", "40 14 17 39 67 55 16", "60 15 28 59 77 55 26"],
    "7": ["00 70 70 39", "00 70 70 39|25 75", "02 00 00 80 80 39", "11 30 70 45 29|15 75"],
    "8": ["70 20 13 65 78 39 07 25 73 60", "60 30 23 56 78 39 17 35 73 50", "50 22 44 62 50|44 17 49 77 44"],
    "9": [
        "72 40 12 35 73 71 69",
        "72 40 12 35 73 71 71 49 19",
        "71 30 13 45 71 71 75 39 09",
        "60 22 44 72 60 75 28 19",
    ],
}
TEMPLATES = ["a photo of the {}.", "a photo of a {}.", "a handwritten {}.", "a picture of the {}.", "the {}.", "{}"]
TEST_TEMPLATES = ["a photo of the digit {}.", "a photo of a {}.", "{}"]


def build_classes():
    """Lists what is rendered: `(character, names)` pairs, the ten digits first.

    Lower-case letters that are mere small copies of their capitals are left out, as every glyph is scaled to one size.
    """
    digits = [
        (str(i), [f"digit {name}", f"digit {i}", f"number {name}", f"number {i}", name, str(i)])
        for i, name in enumerate(DIGIT_NAMES)
    ]
    capitals = [(c, [f"capital letter {c}", f"letter capital {c}"]) for c in string.ascii_uppercase]
    small = [(c, [f"small letter {c}", f"letter small {c}"]) for c in string.ascii_lowercase if c not in "cosvwxz"]
    return digits + capitals + small + [(c, [name]) for c, name in SYMBOLS.items()]


def find_fonts():
    """Returns the sorted paths of the text fonts shipped with matplotlib."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted({path for pattern in FONTS for path in folder.glob(pattern) if "Display" not in path.name})


def signed_distance(canvas):
    """Computes the distance to the outline in pixels, positive inside the strokes. [CANVAS, CANVAS] of float32."""
    ink = np.asarray(canvas) > 127
    return (distance_transform_edt(ink) - distance_transform_edt(~ink)).astype(np.float32)


def render_glyph(char, font):
    """Draws one character, scaled to fill the middle of the canvas, as a signed distance field.

    Returns:
        Array [CANVAS, CANVAS] of float32: the distance to the outline in pixels, positive inside the strokes.
    """
    x0, y0, x1, y1 = font.getbbox(char)
    glyph = Image.new("L", (x1 - x0, y1 - y0))
    ImageDraw.Draw(glyph).text((-x0, -y0), char, font=font, fill=255)
    scale = 0.75 * CANVAS / max(glyph.size)
    glyph = glyph.resize([max(1, round(side * scale)) for side in glyph.size], Image.Resampling.BICUBIC)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(glyph, ((CANVAS - glyph.width) // 2, (CANVAS - glyph.height) // 2))
    return signed_distance(canvas)


def render_strokes(strokes):
    """Draws pen strokes through their control points as a signed distance field [CANVAS, CANVAS]."""
    canvas = Image.new("L", (CANVAS, CANVAS))
    for stroke in strokes.split("|"):
        points = np.array([[int(x), int(y)] for x, y in stroke.split()]) * 4.7 + 10.0
        points = np.concatenate([points[:1], points, points[-1:]])
        t = np.linspace(0, 1, 12, endpoint=False)[:, None]
        curve = []
        for i in range(len(points) - 3):  # A Catmull-Rom spline.
            a, b, c, d = points[i : i + 4]
            bend = (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
            curve += [tuple(point) for point in b + 0.5 * ((c - a) * t + bend)]
        ImageDraw.Draw(canvas).line([*curve, tuple(points[-1])], fill=255, width=6, joint="curve")
    return signed_distance(canvas)


class Renderer:
    """Renders endless variations of the characters, reproducibly from a seed.

    Args:
        chars (Sequence[str]): The characters, one per class, the ten digits first.
        seed (int): Seed of all the randomness.
    """

    def __init__(self, chars, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        glyphs, labels = [], []
        for path in find_fonts():
            font, known = ImageFont.truetype(str(path), 96), FT2Font(str(path)).get_charmap()
            for label, char in enumerate(chars):
                if ord(char) in known:
                    glyphs.append(render_glyph(char, font))
                    labels.append(label)
        typed = len(glyphs)
        for label, char in enumerate(chars):
            for strokes in PEN_STROKES.get(char, []):
                glyphs.append(render_strokes(strokes))
                labels.append(label)
        self.glyphs, self.labels = torch.from_numpy(np.stack(glyphs)), torch.tensor(labels)
        kind = self.labels * 2 + (torch.arange(len(labels)) >= typed)  # The class, and whether it is typed or penned.
        share = torch.where(self.labels < 10, 0.6 / 20, 0.4 / max(len(chars) - 10, 1))
        self.weights = share / kind.bincount()[kind]

    def uniform(self, low, high, *shape):
        """Draws a tensor of the given shape uniformly from [low, high)."""
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def warp(self, fields):
        """Applies a random affine map and a smooth random wobble. [N, CANVAS, CANVAS] -> [N, 1, SIZE, SIZE]."""
        n = len(fields)
        angle, shear = self.uniform(-0.25, 0.25, n), self.uniform(-0.3, 0.3, n)
        width, height = self.uniform(0.7, 1.5, n), self.uniform(0.72, 1.0, n)
        cos, sin = angle.cos(), angle.sin()
        rows = [cos * width, (shear * cos - sin) * height, sin * width, (shear * sin + cos) * height]
        linear = torch.stack(rows, dim=1).view(n, 2, 2)
        theta = torch.cat([linear, self.uniform(-0.12, 0.12, n, 2, 1)], dim=2)
        grid = F.affine_grid(theta, [n, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
        for nodes, strength in ((3, 0.14), (5, 0.08)):
            wobble = torch.randn(n, 2, nodes, nodes, generator=self.generator) * self.uniform(0, strength, n, 1, 1, 1)
            grid = grid + F.interpolate(wobble, IMAGE_SIZE, mode="bicubic").permute(0, 2, 3, 1)
        return F.grid_sample(fields[:, None], grid, padding_mode="border", align_corners=False)

    def ink(self, fields, warped):
        """Turns distance fields into strokes of random width. Returns [N, 1, SIZE, SIZE] in [0, 1]."""
        half_width = fields.amax(dim=(1, 2))
        change = torch.maximum(self.uniform(3.0, 7.0, len(fields)) - half_width, -0.3 * half_width)
        return torch.sigmoid((warped + change[:, None, None, None]) * 2)

    def degrade(self, images, size):
        """Blurs, re-colours and adds noise at `size` x `size` pixels, then scales up again as the processor does."""
        n = len(images)
        images = F.interpolate(images, size, mode="area")
        images = torch.lerp(images, F.avg_pool2d(images, 3, 1, 1), self.uniform(-0.3, 0.6, n, 1, 1, 1)).clamp(0, 1)
        images = (images * self.uniform(1.0, 1.6, n, 1, 1, 1)).clamp(max=1) ** self.uniform(0.6, 1.2, n, 1, 1, 1)
        light, dark = self.uniform(0.75, 1.1, n, 1, 1, 1), self.uniform(-0.5, 0.3, n, 1, 1, 1).clamp(min=0)
        images = dark + (light - dark) * images
        images = torch.where(self.uniform(0, 1, n, 1, 1, 1) < 0.25, 1 - images, images)
        noise = torch.randn(images.shape, generator=self.generator) * self.uniform(0, 0.06, n, 1, 1, 1)
        images = (images + noise).clamp(0, 1)
        return F.interpolate(images, IMAGE_SIZE, mode="bicubic", antialias=True).clamp(0, 1)

    def sample(self, n):
        """Renders a batch.

        Returns:
            images (Tensor): Grey levels in [0, 1]. [N, 1, SIZE, SIZE].
            labels (Tensor): Class indices. [N].
        """
        index = torch.multinomial(self.weights, n, replacement=True, generator=self.generator)
        fields = self.glyphs[index]
        coarse, medium, fine = self.ink(fields, self.warp(fields)).tensor_split([n * 3 // 4, n * 7 // 8])
        images = [self.degrade(coarse, 8), self.degrade(medium, 14), self.degrade(fine, IMAGE_SIZE)]
        return torch.cat(images), self.labels[index]


def build_tokenizer(captions):
    """Trains a byte-level BPE tokenizer, in which every byte has a token: no name is unknown."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = letters + [letter + "</w>" for letter in letters]
    plain, trained = CLIPTokenizer().backend_tokenizer, Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    # As special tokens, the letters have a fixed order, which settles ties between merges: runs agree.
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 98, special_tokens=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    tokens = alphabet + ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>", "<|pad|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab, merges, pad_token="<|pad|>", model_max_length=MAX_TOKENS)


def build_model(tokenizer):
    """Builds the untrained model, matched to the tokenizer."""
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 448,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": 64,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def image_features(model, pixel_values):
    """Embeds images. [N, 3, SIZE, SIZE] -> [N, 64], of unit length."""
    return F.normalize(model.get_image_features(pixel_values).pooler_output, dim=-1)


def text_features(model, tokenizer, texts):
    """Embeds texts. N strings -> [N, 64], of unit length."""
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)


def contrastive_loss(logits, labels):
    """Computes CLIP's two-way contrastive loss with the equal captions of a batch merged into one.

    Args:
        logits (Tensor): Scaled similarities of the images and the class captions. [N, C].
        labels (Tensor): Class indices of the images. [N].
    """
    counts = labels.bincount(minlength=logits.shape[1])
    matches = logits.log_softmax(dim=0).gather(1, labels[:, None]).squeeze(1)
    text_to_image = -(matches / counts[labels]).sum() / counts.count_nonzero()
    return (F.cross_entropy(logits, labels, label_smoothing=0.05) + text_to_image) / 2


def train(model, tokenizer, classes, args):
    """Trains the model in place on freshly rendered batches."""
    renderer = Renderer([char for char, _ in classes], args.seed)
    choose = np.random.default_rng(args.seed).choice
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = cosine_schedule(optimizer, args.steps // 20, args.steps)
    model.train()
    for step in (progress := trange(args.steps, desc="training", mininterval=2)):
        images, labels = renderer.sample(args.batch_size)
        captions = [choose(TEMPLATES).format(choose(names)) for _, names in classes]
        pixel_values = ((images - MEAN) / STD).expand(-1, 3, -1, -1)
        similarity = image_features(model, pixel_values) @ text_features(model, tokenizer, captions).T
        loss = contrastive_loss(similarity * model.logit_scale.exp().clamp(max=100), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            accuracy = (similarity.argmax(dim=1) == labels).float().mean()
            progress.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{accuracy:.3f}")
    model.eval()


def save(model, tokenizer, folder):
    """Writes the model, the tokenizer and the image processor in the format of transformers."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    mean, std = [MEAN] * 3, [STD] * 3
    images = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False, image_mean=mean, image_std=std)
    model.save_pretrained(folder)
    (Path(folder) / "model.safetensors").chmod(0o644)  # It is created readable by its owner alone.
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


@torch.no_grad()
def zero_shot(folder, template=TEST_TEMPLATES[0]):
    """Classifies scikit-learn's 1797 digits by their names with a saved model. Returns [10, 10] confusion counts."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    digits = load_digits()
    images = [Image.fromarray((image * 255 / 16).astype(np.uint8)).convert("RGB") for image in digits.images]
    pixel_values = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    texts = text_features(model, processor.tokenizer, [template.format(name) for name in DIGIT_NAMES])
    predicted = (image_features(model, pixel_values) @ texts.T).argmax(dim=1)
    return torch.bincount(torch.from_numpy(digits.target) * 10 + predicted, minlength=100).view(10, 10)


def main(argv=None):
    """Trains, saves and tests the model, as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="ft_focalsam/assets/tiny_clip", help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=2500, help="training steps")
    parser.add_argument("--batch_size", type=int, default=256, help="images per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of all the rendering")
    parser.add_argument("--eval_only", action="store_true", help="only test the model that is in the folder")
    args = parser.parse_args(argv)

    if not args.eval_only:
        torch.manual_seed(args.seed)
        classes = build_classes()
        names = [name for _, names in classes for name in names]
        tokenizer = build_tokenizer([template.format(name) for name in names for template in TEMPLATES])
        model = build_model(tokenizer)
        start = time.time()
        train(model, tokenizer, classes, args)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"trained {parameters:,} parameters in {time.time() - start:.0f} s")
        save(model, tokenizer, args.output)

    for template in TEST_TEMPLATES:
        confusion = zero_shot(args.output, template)
        print(f"zero-shot accuracy with {template!r}: {confusion.trace() / confusion.sum():.2%}")


if __name__ == "__main__":
    main()
