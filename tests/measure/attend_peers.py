"""A page of all heads of a network of GPT-2's smallest size, beside BertViz's model view.

Run alone: python tests/measure/attend_peers.py [64 128 256 512 1024]. Both read the same folder of
drawn weights, in a process of their own for each length: from the start of Python to the bytes of
the page. BertViz is installed from PyPI into an environment of its own. A process that takes more
than 5 minutes, or more memory than GIGABYTES in the environment says (16), is stopped; its tool is
not tried with more.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import venv
from pathlib import Path

LENGTHS = ("64", "128", "256", "512", "1024")
MOST_SECONDS = 300
MOST_BYTES = int(float(os.environ.get("GIGABYTES", "16")) * 1e9)
WORDS = 50257
PEER = """
import sys, torch, transformers
from bertviz import model_view
folder, text, page = sys.argv[1:]
words = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
given = words(open(text).read(), return_tensors="pt")["input_ids"]
with torch.no_grad():
    attention = model(given, output_attentions=True).attentions
tokens = words.convert_ids_to_tokens(given[0])
html = model_view(attention, tokens, html_action="return")
with open(page, "w") as file:
    file.write(html.data)
"""


def network(folder: Path) -> None:
    """A folder of transformers: 12 layers of 12 heads, and a word for each of its tokens."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def peer(folder: Path) -> Path:
    """The Python of an environment with BertViz, which sees what this one has installed."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = subprocess.check_output(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], text=True
    )
    here = [path for path in sys.path if path.endswith("site-packages")]
    (Path(site.strip()) / "here.pth").write_text("\n".join(here))
    subprocess.run([python, "-m", "pip", "install", "-qq", "--no-deps", "bertviz"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-qq", "ipython"], check=True)
    return python


def measured(command: list[str]) -> str | None:
    """Seconds, those of CPU and the most memory of a process; None where it failed."""
    began = time.perf_counter()

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))

    child = subprocess.Popen(
        command, preexec_fn=limited, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    late = threading.Timer(MOST_SECONDS, child.kill)
    late.start()
    assert child.stderr is not None
    said = child.stderr.read().decode(errors="replace")
    _, status, used = os.wait4(child.pid, 0)
    late.cancel()
    child.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - began
    if child.returncode:
        last = (said.strip().splitlines() or [""])[-1]
        print(f"    stopped after {took:.0f} s, {used.ru_maxrss / 1e6:.1f} GB: {last}")
        return None
    cpu = used.ru_utime + used.ru_stime
    return f"{took:.1f} s ({cpu:.1f} s of CPU), {used.ru_maxrss / 1000:,.0f} MB of memory"


def main() -> None:
    """Both tools by length."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, text, page = folder / "model", folder / "text", folder / "page.html"
        network(model)
        code = folder / "peer.py"
        code.write_text(PEER)
        ours = [sys.executable, "-m", "bigmodel_cli", "attend", model, "--file", text]
        tools = {
            "bigmodel": [*ours, "--html", page],
            "BertViz": [peer(folder / "environment"), code, model, text, page],
        }
        for length in sys.argv[1:] or LENGTHS:
            text.write_text(" ".join(f"w{(i * 7919) % WORDS}" for i in range(int(length))))
            for tool, command in list(tools.items()):
                page.unlink(missing_ok=True)
                found = measured([str(word) for word in command])
                if found is None:
                    del tools[tool]
                size = f", a page of {page.stat().st_size / 1e6:.1f} MB" if found else ""
                print(f"T = {length}, {tool}: {found or 'failed'}{size}", flush=True)


if __name__ == "__main__":
    main()
