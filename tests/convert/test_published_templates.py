"""Chat templates of folders, rendered as transformers renders them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from bigmodel_cli.convert.assets import read_assets
from bigmodel_cli.data import load_tokenizer
from bigmodel_cli.data.chat.template import Template, find_template
from bigmodel_cli.errors import CheckpointError

transformers = pytest.importorskip("transformers")
MARKS = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
TEMPLATES = {
    "marks": "".join(f"|{{{{ {name}_token }}}}" for name in MARKS)
    + "{% for m in messages %}{{ m.role }}:{{ m['content'] | trim }}{{ eos_token }}{% endfor %}",
    "tools": "{% if tools is not none %}T{% endif %}{% if tools is defined %}t{% endif %}"
    "{% if documents is defined %}d{% endif %}{% if thinking is defined %}x{% endif %}",
    "values": "{{ messages | tojson }}"
    "{{ messages[0] | tojson(indent=2) }}{{ 'caf\u00e9<&>' | tojson }}",
    "blanks": "  {% for m in messages %}\n    {{ m.content[::-1] }}\n  {% endfor %}\nend\n",
    "prompt": "{% if add_generation_prompt %}<go>{% else %}{{ messages[-1].content }}{% endif %}",
}
MESSAGES = [{"role": "user", "content": " caf\u00e9 <b> "}, {"role": "assistant", "content": "ja"}]
NAMED = [
    {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<u>"},
    {"bos_token": None, "eos_token": "</s>", "pad_token": "<u>", "sep_token": "<s>"},
]


def folder(path: Path, named: dict[str, Any]) -> Path:
    path.mkdir()
    tokenizer = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<u>": 2, "a": 3}, unk_token="<u>"))
    tokenizer.add_special_tokens(["<s>", "</s>", "<u>"])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named})
    )
    return path


@pytest.mark.parametrize("place", ["string", "list", "file"])
@pytest.mark.parametrize("named", NAMED, ids=["begins", "does not"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_gives_the_text_that_it_gives_there(
    template: str, named: dict[str, Any], place: str, tmp_path: Path
) -> None:
    """`pad_token` and others were nothing, `bos_token` the end's where there is none, and `tools`
    not there, so that templates took the wrong branch.
    """
    text = TEMPLATES[template]
    values: dict[str, Any] = {"chat_template": text}
    if place == "list":
        others = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": text}]
        values = {"chat_template": others}
    path = folder(tmp_path / "a", {**named, **values})
    if place == "file":
        (path / "chat_template.jinja").write_text(text)
        (path / "additional_chat_templates").mkdir()
        (path / "additional_chat_templates" / "rag.jinja").write_text("no")
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    assets = read_assets(path)
    found, name = find_template(None, assets)
    with Template(found, load_tokenizer(assets), name) as ours:
        for prompt in (False, True):
            want = theirs.apply_chat_template(
                MESSAGES, tokenize=False, add_generation_prompt=prompt
            )
            assert ours.render(MESSAGES, prompt=prompt) == want


def test_a_list_without_a_default_is_not_passed_over(tmp_path: Path) -> None:
    templates = [{"name": "rag", "template": "no"}]
    path = folder(tmp_path / "a", {"eos_token": "</s>", "chat_template": templates})
    with pytest.raises(CheckpointError, match=r"none of rag is called default; write one"):
        find_template(None, read_assets(path))
