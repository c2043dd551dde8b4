"""A demo of a classifier: an image in, its most probable classes out."""

import gradio as gr

from ft_focalsam import ImageClassifier

MODEL = "user/name"  # a repository of the Hub, or a folder

classify = ImageClassifier.from_pretrained(MODEL)


def predict(image):
    """Probabilities by class, for the label of gradio."""
    if image is None:
        raise gr.Error("Choose an image first.")
    return {guess["label"]: guess["score"] for guess in classify(image, top_k=5)}


demo = gr.Interface(
    predict,
    gr.Image(type="pil", label="image"),
    gr.Label(num_top_classes=5, label="classes"),
    title=MODEL,
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
