"""Runs the Python that the model card and the report of an output show, in the folder from which the output's path is right.

  python documents.py PIPELINE_DIR

Prints how many weights became semi-structured. Without a GPU the lines run on the processor, and the conversion, which PyTorch has for
GPUs alone, is replaced by one that counts.
"""

import html
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


if not torch.cuda.is_available():
    torch.sparse.to_sparse_semi_structured = counted
names = {}
for block in card:
    code = block if torch.cuda.is_available() else block.replace('"cuda"', '"cpu"')
    exec(compile(code, "card", "exec"), names)
width, height = names["pipeline"]("a yellow ring", num_inference_steps=1).images[0].size
assert os.path.getsize("picture.png") > 0 and width == height
print(converted)
