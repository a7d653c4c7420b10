"""What a fit costs once it is exported: images a second, seconds to the first answer, bytes."""

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.bench.process import called
from harness.records.tables import format_table

DATASET, SIZE, BATCH = "emoji_food", 48, 64
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
FORMS = {"lora": ("merged", "onnx", "pt2"), "coop": ("classifier", "onnx", "pt2")}
FIT = ("--tasks", "few_shot", "--datasets", DATASET, "--shots", "2", "--jobs", "1",
       "--set", "engine.max_steps=6", "--cache-limit", "0")  # fmt: skip
# each defines `answer`, from pixels [B, 3, S, S] to logits; `place` is the file or the folder
LOAD = {
    "the fit itself": """
import torch, harness
model = harness.load(place, device="cpu")
answer = lambda x: model.logits(torch.from_numpy(x))
""",
    "merged": """
import torch, torch.nn.functional as F
from harness.towers import backbone
clip = backbone.load("local-dir:" + place)
texts = [each[0] for each in json.load(open(place + "/texts.json")).values()]
with torch.no_grad():
    text = F.normalize(clip.text(clip.tokenize(texts)), dim=-1) * clip.logit_scale.exp()
answer = torch.no_grad()(lambda x: F.normalize(clip.image(torch.from_numpy(x)), dim=-1) @ text.T)
""",
    "classifier": """
import torch, torch.nn.functional as F
from harness.towers import backbone
from safetensors.torch import load_file
clip, kept = backbone.load("emoji-mini"), load_file(place + "/classifier.safetensors")
answer = torch.no_grad()(
    lambda x: F.linear(F.normalize(clip.image(torch.from_numpy(x)), dim=-1), kept["weight"]))
""",
    "pt2": """
import torch
module = torch.export.load(place + "/model.pt2").module()
answer = torch.no_grad()(lambda x: module(torch.from_numpy(x)))
""",
    "onnx": """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(place + "/model.onnx", options)
answer = lambda x: session.run(None, {"pixels": x})
""",
}
TIMED = """
import numpy
x = numpy.random.default_rng(0).standard_normal((BATCH, 3, SIZE, SIZE)).astype("float32")
answer(x[:1])
first, seconds = time.time() - begun, []
for _ in range(repeats + 1):
    start = time.perf_counter()
    for _ in range(5):
        answer(x)
    seconds.append(time.perf_counter() - start)
print(json.dumps([first, 5 * BATCH / min(seconds[1:])]))
"""


def measured(repeats: int) -> Mapping[str, Any]:
    """For two methods and each of their forms what it costs, in processes of one thread.

    Raises:
        HarnessError: a command failed, with its last line.
    """
    rows, load = list[dict[str, Any]](), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = ["--results", str(folder / "results")]
        called("-m", "harness", "run", "--methods", ",".join(FORMS), *FIT, *results, **ONE_THREAD)
        for method, forms in FORMS.items():
            (record,) = (folder / "results").glob(f"few_shot/{DATASET}/{method}-*.json")
            fit = json.loads(record.read_text(encoding="utf-8"))["fit"]
            weights = folder / "results" / "fits" / f"{fit}.weights.safetensors"
            rows.append({"method": method, **_timed("the fit itself", weights, repeats)})
            for form in forms:
                if form == "onnx" and find_spec("onnxruntime") is None:
                    continue
                out = folder / f"{method}-{form}"
                called("-m", "harness", "export", method, "--form", form, "--out", str(out),
                       *results, **ONE_THREAD)  # fmt: skip
                rows.append({"method": method, **_timed(form, out, repeats)})
    return {
        "repeats": repeats, "batch": BATCH, "processors": os.cpu_count(), "load": load,
        "rows": rows,
    }  # fmt: skip


def _timed(form: str, place: Path, repeats: int) -> dict[str, Any]:
    names = f"BATCH, SIZE, repeats, place = {BATCH}, {SIZE}, {repeats}, {str(place)!r}"
    code = f"import json, sys, time\nbegun = float(sys.argv[1])\n{names}\n{LOAD[form]}{TIMED}"
    firsts, rates = list[float](), list[float]()
    for _ in range(repeats):
        output = called("-c", code, str(time.time()), **ONE_THREAD).output
        first, rate = json.loads(output.splitlines()[-1])
        firsts.append(first)
        rates.append(rate)
    files = [place] if place.is_file() else [*place.iterdir()]
    size = sum(file.stat().st_size for file in files)
    return {"form": form, "images_a_second": max(rates), "first_seconds": min(firsts),
            "bytes": size}  # fmt: skip


def table(content: Mapping[str, Any]) -> str:
    """The measurements as a table."""
    rows: Sequence[Mapping[str, Any]] = content["rows"]
    shown = [
        {
            "method": row["method"],
            "form": row["form"],
            "images/s": f"{row['images_a_second']:.0f}",
            "first answer s": f"{row['first_seconds']:.2f}",
            "MB": f"{row['bytes'] / 1e6:.3f}",
        }
        for row in rows
    ]
    title = f"Exported fits on emoji-mini, {DATASET}."
    return (
        f"{format_table(shown, 'markdown', title)}\n\nThe best of {content['repeats']} processes "
        f"of one thread each: images in batches of {content['batch']}, already resized and "
        "normalised; seconds from the start of Python to the first answer. The fit itself and the "
        "classifier need the backbone beside them (16.3 MB); theirs and merged are loaded through "
        "this harness, pt2 with torch alone, onnx with onnxruntime alone. When it began, "
        f"the load of the {content['processors']} processors was {content['load']:.1f}: above 1, "
        "rates are rough."
    )
