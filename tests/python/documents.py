"""Runs the Python that the model card and the report of an output show, in the folder from which the output's path is right, and other
Python that loads the output.

  python documents.py PIPELINE_DIR SCRIPT...

Each SCRIPT is a file of code that leaves a `pipeline`. All of them must make a picture, as the card's must. Prints how many weights became
semi-structured. Without a GPU the lines run on the processor. The conversion, which PyTorch has for GPUs alone, then has to say so; afterwards
it is run again, with a GPU that stands in and a conversion that counts.
"""

import contextlib
import html
import io
import os
import re
import sys

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
directory = sys.argv[1]
with open(os.path.join(directory, "README.md"), encoding="utf-8") as file:
    card = re.findall(r"^```py\n(.*?)^```$", file.read(), flags=re.DOTALL | re.MULTILINE)
with open(os.path.join(directory, "report.html"), encoding="utf-8") as file:
    blocks = re.findall(r'<pre [^>]*aria-label="Python[^>]*><code>(.*?)</code>', file.read(), flags=re.DOTALL)
report = [html.unescape(block) for block in blocks]
assert card and [block.strip() for block in report] == [block.strip() for block in card], (card, report)

converted = 0


def counted(weight):
    global converted
    converted += 1
    return weight


on_gpu = torch.cuda.is_available()
names = {}
for block in card:
    code = compile(block if on_gpu else block.replace('"cuda"', '"cpu"'), "card", "exec")
    if on_gpu or "to_sparse_semi_structured" not in block:
        exec(code, names)
        continue
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, names)
    assert said.getvalue().endswith("the weights stay as they are\n"), said.getvalue()
    cuda = torch.cuda.is_available, torch.cuda.get_device_capability
    torch.cuda.is_available, torch.cuda.get_device_capability = lambda: True, lambda: (8, 0)
    torch.sparse.to_sparse_semi_structured = counted
    exec(code, names)
    torch.cuda.is_available, torch.cuda.get_device_capability = cuda
assert os.path.getsize("picture.png") > 0
pipelines = {"card": names["pipeline"]}
for script in sys.argv[2:]:
    names = {}
    with open(script, encoding="utf-8") as file:
        exec(compile(file.read(), script, "exec"), names)
    pipelines[script] = names["pipeline"]
for script, pipeline in pipelines.items():
    width, height = pipeline("a yellow ring", num_inference_steps=1).images[0].size
    assert width == height, script
print(converted)
