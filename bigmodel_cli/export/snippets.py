"""The Python that a card shows for running its graphs: numpy, onnxruntime, and what reads inputs.

The texts between {{ and }} are replaced by what the checkpoint says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

HEAD = """\
import json
import sys

import numpy as np
import onnxruntime
"""

LABELS = """\
labels = json.load(open("config.json"))["id2label"]
"""

PICTURE = """\
from PIL import Image

picture = Image.open(sys.argv[1]).convert("{{mode}}").resize({{size}}, Image.Resampling.BILINEAR)
x = np.asarray(picture, np.float32).reshape({{height}}, {{width}}, -1).transpose(2, 0, 1) / 255
mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in ({{mean}}, {{std}}))
given = {"pixel_values": ((x - mean) / std)[None]}
"""

SOUND = """\
import wave

with wave.open(sys.argv[1]) as file:  # 16 bits, one channel, {{rate}} samples per second
    x = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768.0
window, hop, size = {{window}}, {{hop}}, {{fft}}
length = {{length}} or len(x)
x = np.pad(x[:length], (0, length - len(x[:length])))
count = -(-length // hop)
x = np.pad(x, (size // 2, size // 2 + hop))
hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
hann = np.pad(hann, ((size - window) // 2, size - window - (size - window) // 2))
power = np.abs([np.fft.rfft(x[i * hop : i * hop + size] * hann) for i in range(count)]) ** 2
low, high = (2595 * np.log10(1 + f / 700) for f in ({{low}}, {{high}}))
corners = 700 * (10 ** (np.linspace(low, high, {{mels}} + 2) / 2595) - 1)
bins = np.linspace(0, {{rate}} / 2, size // 2 + 1)
rising = (bins - corners[:-2, None]) / np.diff(corners)[:-1, None]
falling = (corners[2:, None] - bins) / np.diff(corners)[1:, None]
bands = np.maximum(0, np.minimum(rising, falling)) / hann.sum() ** 2
frames = 1 + np.log10(power @ bands.T + 1e-8) / 8
frames = ((frames - {{mean}}) / {{std}}).astype(np.float32)
"""

PICTURE_OF_SOUND = """\
given = {"input_features": frames.T[None, None]}
"""

FRAMES = """\
given = {"input_features": frames[None], "attention_mask": np.ones((1, count), np.int64)}
"""

WHISPER = """\
import wave

from transformers import WhisperFeatureExtractor

with wave.open(sys.argv[1]) as file:  # 16 bits, one channel, {{rate}} samples per second
    x = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
seconds = {{padded}} // {{rate}} or -(-len(x) // {{rate}})
extract = WhisperFeatureExtractor({{mels}}, {{rate}}, {{hop}}, seconds, {{window}})
frames = extract(x, sampling_rate={{rate}}, return_tensors="np").input_features[0].T
count = len(frames)
"""

TEXT = """\
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.no_padding()
tokenizer.no_truncation()
ids = tokenizer.encode({{text}}, add_special_tokens=False).ids[:{{room}}]
ids = np.array([{{before}} + ids + {{after}}])
given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
"""

TYPES = """\
given["token_type_ids"] = np.zeros_like(ids)  # 1 for a second text and the mark after it
"""

RUN = """\
session = onnxruntime.InferenceSession("model.onnx")
output = session.run(["{{output}}"], given)[0][0]
"""

ONE_OF = """\
chances = np.exp(output - output.max()) / np.exp(output - output.max()).sum()
for i in chances.argsort()[::-1][:5]:
    print(labels[str(i)], round(float(chances[i]), 4))
"""

ANY_OF = """\
for i, chance in enumerate(1 / (1 + np.exp(-output))):
    print(labels[str(i)], round(float(chance), 4))
"""

NUMBERS = """\
for i, number in enumerate(output):
    print(labels[str(i)], float(number))
"""

EACH_TOKEN = """\
for token, i in zip(ids[0], output.argmax(1)):
    print(tokenizer.id_to_token(int(token)), labels[str(i)])
"""

LIKELIEST = """\
for token, i in zip(ids[0], output.argmax(1)):
    print(tokenizer.id_to_token(int(token)), tokenizer.id_to_token(int(i)))
"""

VECTOR = """\
print(json.dumps(output.tolist()))
"""

TRANSCRIPT = """\
units, blank = output.argmax(1), len(labels)
kept = [u for u, before in zip(units, [blank, *units]) if u not in (before, blank)]
print("{{joint}}".join(labels[str(u)] for u in kept))
"""

CONTINUE = """\
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.no_padding()
tokenizer.no_truncation()
ids = ({{before}} + tokenizer.encode(sys.argv[1], add_special_tokens=False).ids)[-{{limit}} :]
session, written, past = onnxruntime.InferenceSession("model.onnx"), [], 0
new = np.array([ids])
sizes = {"batch_size": 1, "past_sequence_length": 0}
caches = {
    one.name: np.zeros([sizes.get(n, n) for n in one.shape], np.float32)
    for one in session.get_inputs()
    if one.name.startswith("past")
}
for _ in range(min(64, {{limit}} + 1 - len(ids))):
    mask = np.ones((1, past + new.shape[1]), np.int64)
    logits, *caches_after = session.run(None, {"input_ids": new, "attention_mask": mask, **caches})
    logits[..., {{never}}] = -np.inf
    token = int(logits[0, -1].argmax())
    if token in {{stops}}:
        break
    written.append(token)
    caches, past, new = dict(zip(caches, caches_after)), mask.shape[1], np.array([[token]])
print(tokenizer.decode(written))
"""

SOURCE = """\
from tokenizers import Tokenizer

reader = Tokenizer.from_file("{{source_tokenizer}}")
reader.no_padding()
reader.no_truncation()
ids = reader.encode(sys.argv[1], add_special_tokens=False).ids[:{{room}}]
ids = np.array([{{before}} + ids + {{after}}])
given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
"""

HEARD = """\
heard = run("decoder_model", {**given, "input_ids": np.array([[{{first}}]])})["logits"][0, -1]
language = max({{languages}}, key=lambda token: heard[token])
"""

TRANSLATE = """\
tokenizer = Tokenizer.from_file("tokenizer.json")
sessions = {
    name: onnxruntime.InferenceSession(f"{name}.onnx")
    for name in ("encoder_model", "decoder_model", "decoder_with_past_model")
}


def run(name, given):
    names = [one.name for one in sessions[name].get_outputs()]
    taken = {one.name: given[one.name] for one in sessions[name].get_inputs()}
    return dict(zip(names, sessions[name].run(names, taken)))


found = run("encoder_model", given)
mask = found.get("encoder_attention_mask", given["attention_mask"])
given = {"encoder_hidden_states": found["last_hidden_state"], "encoder_attention_mask": mask}
{{heard}}step, new, written = "decoder_model", {{start}}, []
for number in range({{most}}):
    found = run(step, {**given, "input_ids": np.array([new])})
    logits = found.pop("logits")[0, -1]
    logits[{{never}}] = -np.inf
    if number == 0:
        logits[{{never_first}}] = -np.inf
    new = [int(logits.argmax())]
    if new[0] in {{stops}}:
        break
    written += new
    given |= {n.replace("present", "past_key_values", 1): t for n, t in found.items()}
    step = "decoder_with_past_model"
print(tokenizer.decode(written))
"""


def filled(text: str, values: Mapping[str, object]) -> str:
    """The text with these values in their places, as Python writes them; texts as they are.

    A value is not searched for places again.
    """

    def value(match: re.Match[str]) -> str:
        found = values.get(match[1], match[0])
        return found if isinstance(found, str) else repr(found)

    return re.sub(r"\{\{(\w+)\}\}", value, text)
