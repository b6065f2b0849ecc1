"""Which weights diffusers and transformers load from folders that hold several.

which_weights.py diffusers|transformers MARKER FOLDER...: loads each folder, and prints a line for each: the first number of the tensor
MARKER, or `refused`.
"""

import sys

library, marker, *folders = sys.argv[1:]
if library == "diffusers":
    from diffusers import SD3Transformer2DModel as Model
else:
    from transformers import CLIPTextModelWithProjection as Model

for folder in folders:
    try:
        print(Model.from_pretrained(folder).state_dict()[marker].flatten()[0].item())
    except (OSError, ValueError) as error:
        print("refused")
        print(f"{folder}: {error}", file=sys.stderr)
