"""Zero-shot CLIP."""

from dataclasses import dataclass

from harness.method import Classes, Method, published


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Method):
    """CLIP without any training, with the dataset's own prompt template.

        p(y = c | x) = softmax_c( cos(f(x), g(t_c)) / tau )

    f, g: the image and the text tower; t_c: the template with the name of class c; tau: CLIP's
    temperature.

    Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
        section 3.1 (https://arxiv.org/abs/2103.00020); templates of CoOp's trainers/zsclip.py.
    Differs: nothing known.
    """

    epochs: int = published(0, "nothing is trained")

    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(classes.template)
