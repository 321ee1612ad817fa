"""What is in the picture? `python classify.py MODEL_FILE IMAGE`, with a file that `speedyresnet export` wrote.

The exported net needs PyTorch only; of SpeedyResNet this takes `read_image`, which decodes the picture exactly as those
that the net was trained on. FILE.pt2 is read as --format pt2, any other name as --format torchscript.
"""

import json
import sys
import warnings

import torch

from speedyresnet.engine import read_image

warnings.filterwarnings("ignore", module="torch")  # both loaders warn of PyTorch's own future and insides

model_file, image_file = sys.argv[1:]
files = {"speedyresnet.json": ""}
if model_file.endswith(".pt2"):
    net = torch.export.load(model_file, extra_files=files).module()
else:
    net = torch.jit.load(model_file, _extra_files=files)
metadata = json.loads(files["speedyresnet.json"])

channels, height, width = metadata["input"]["shape"][1:]
image = read_image(image_file, channels=channels, size=(height, width))  # uint8 [H, W, C]
pixels = torch.tensor(image).permute(2, 0, 1)[None] / 255  # float32 [1, C, H, W] in [0, 1]

with torch.no_grad():
    probabilities = net(pixels).softmax(1)[0]
best = probabilities.topk(min(3, len(metadata["classes"])))
for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
    print(f"{metadata['classes'][index]:20s} {probability:.4f}")
