"""What a new user writes by mistake: each message says where the option belongs, or what the value
must be (rows 25, 26).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from conftest import CNN, DECODER

from bigmodel_cli.catalog import schema
from bigmodel_cli.config import DatasetInfo, Options, typed
from bigmodel_cli.errors import SpecError
from bigmodel_cli.explain.synonyms import SYNONYMS
from bigmodel_cli.explain.tree import classes_in
from bigmodel_cli.models import build
from bigmodel_cli.models.cnn import CNNOptions
from bigmodel_cli.overrides import apply_overrides
from bigmodel_cli.spec import Spec, check, from_dict
from bigmodel_cli.yaml_source import parse_yaml


def message(text: str, *changes: str) -> str:
    """What is said of a spec with these --set."""
    with pytest.raises(SpecError) as error:
        changed(text, *changes)
    return str(error.value)


def changed(text: str, *changes: str) -> Spec:
    root = parse_yaml(text.encode(), "spec.yaml")
    apply_overrides(root, changes, Spec)
    return check(root)


# A word where a mapping is due


@pytest.mark.parametrize(
    ("base", "change", "path"),
    [
        (DECODER, "model.blocks.0.ffn=swiglu", "model.blocks.0.ffn.type"),
        (DECODER, "model.blocks.0.norm=rmsnorm", "model.blocks.0.norm.type"),
        (DECODER, "model.blocks.0.mixer.position=rotary", "model.blocks.0.mixer.position.type"),
        (DECODER, "model.position=sinusoidal", "model.position.type"),
        (DECODER, "data.tokenizer=bytes", "data.tokenizer.type"),
        (DECODER, "task=causal_lm", "task.type"),
        (DECODER, "train.optimizer=muon", "train.optimizer.type"),
        (DECODER, "train.schedule=cosine", "train.schedule.type"),
        (CNN, "data=digits", "data.type"),
        (CNN, "model.layers.2=flatten", "model.layers.2.type"),
        (CNN, "data.augment=[RandomHorizontalFlip]", "data.augment.0.type"),
    ],
    ids=lambda value: value.partition("=")[0] if "=" in str(value) else "",
)
def test_a_type_name_stands_for_a_mapping_and_the_resolved_spec_shows_it(
    base: str, change: str, path: str
) -> None:
    word = change.partition("=")[2].strip("[]")
    value: Any = changed(base, change).to_dict()
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    assert value == word


def test_a_word_whose_type_needs_more_says_what_and_shows_the_mapping() -> None:
    assert message(DECODER, "data.tokenizer=bpe").endswith(
        "data.tokenizer.vocab_size: missing; this option has no default; write tokenizer: {type:"
        " bpe, vocab_size: ...}"
    )
    assert "write mixer: {type: attention, num_heads: ...}" in message(
        DECODER, "model.blocks.0.mixer=attention"
    )
    assert "write {type: conv, channels: ...}" in message(CNN, "model.layers.0=conv")


def test_an_option_below_a_word_is_set() -> None:
    text = DECODER.replace("ffn: {type: gelu}", "ffn: gelu")
    block = changed(text, "model.blocks.0.ffn.hidden=24").to_dict()["model"]["blocks"][0]
    assert (block["ffn"]["type"], block["ffn"]["hidden"]) == ("gelu", 24)


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"train": {"steps": 1, "optimizer": "adamw", "schedule": "cosine"}}, True),
        ({"train": {"steps": 1, "optimizer": {"lr": 1e-4}}}, True),
        ({"train": {"steps": 1, "optimizer": {"lx": 1e-4}}}, False),
        ({"train": {"steps": 1, "optimizer": "adam"}}, False),
        ({"task": "causal_lm"}, True),
        ({"task": {"sample_tokens": 3}}, False),
        ({"data": "text"}, False),
        ({"data": "stdlib"}, False),
    ],
)
def test_the_schema_for_editors_takes_what_a_spec_takes(
    changes: dict[str, Any], good: bool
) -> None:
    values = {**changed(DECODER).to_dict(), **changes}
    assert jsonschema.Draft202012Validator(schema()).is_valid(values) is good
    if good:
        from_dict(values)
    else:
        with pytest.raises(SpecError):
            from_dict(values)


# Options at the wrong place, or under other tools' names

MISPLACED = {
    "train.lr=1": "use train.optimizer.lr",
    "learning_rate=1": "use train.optimizer.lr",
    "weight_decay=0": "use train.optimizer.weight_decay",
    "epochs=3": "use train.epochs (instead of train.steps)",
    "max_steps=3": "use train.steps (12 now)",
    "batch_size=3": "use train.batch_size (4 now)",
    "data.path=x": "use data.files (given already)",
    "dropout=0": (
        "use model.dropout (0.1 now), or model.blocks.0.dropout, or model.blocks.0.mixer.dropout"
        " (0.1 now)"
    ),
    "n_layer=3": "use model.blocks.0.repeat (2 now)",
    "model.n_head=2": "use model.blocks.0.mixer.num_heads (2 now)",
    "hidden_size=3": "use model.dim (16 now)",
    "d_model=3": "use model.dim (16 now)",
    "model.blocks.0.ffn.intermediate_size=3": "use model.blocks.0.ffn.hidden",
    "max_seq_len=3": "use data.context (16 now)",
    "vocab_size=3": "use model.vocab_size; left out, it is the tokenizer's",
    "model.num_classes=3": "the number of classes is that of the data; leave it out",
    "train.warmup=3": "use train.schedule.warmup",
    "train.warmup_ratio=0.1": "use train.schedule.warmup; in steps",
    "gradient_accumulation=2": "use train.micro_batch_size; batch_size is that of a whole step",
    "fp16=true": "use train.precision ('fp32' now); as precision: fp16",
    "early_stopping=3": "use train.patience; a number of validations",
    "device=cuda": "give --device on the command line",
    "shuffle=true": "the training data is shuffled in every epoch; leave it out",
    "train.optimizer.momentum=0.9": "type: sgd, muon have it, and this is adamw",
    "train.optimizer.leraning_rate=1": "did you mean train.optimizer.lr?",
    "train.optimzer=adamw": "did you mean optimizer?",
    "train.batchSize=3": "did you mean batch_size?",
    "nonsense=3": "there are model, data, task, train, init",
}


@pytest.mark.parametrize("change", MISPLACED)
def test_a_misplaced_option_is_shown_its_place(change: str) -> None:
    """Row 25: an unknown key, with what was meant."""
    assert f"unknown option; {MISPLACED[change]}" in message(DECODER, change)


def places(
    options: type[Options], path: str, above: tuple[type[Options], ...] = ()
) -> Iterator[str]:
    """Every path of every type of options, without the numbers of lists."""
    for name, field in options.model_fields.items():
        yield f"{path}.{name}"
        for inner in classes_in(field.annotation):
            if inner not in above:
                yield from places(inner, f"{path}.{name}", (*above, options))


def test_every_synonym_points_at_an_option_that_there_is() -> None:
    paths = set(places(Spec, ""))
    targets = {target for found in SYNONYMS.values() for target in found}
    assert len(targets) > 60
    wrong = [target for target in targets if not any(path.endswith(f".{target}") for path in paths)]
    assert not wrong


@pytest.mark.parametrize("text", [DECODER, CNN], ids=["decoder", "cnn"])
def test_what_is_suggested_is_never_refused_as_unknown(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each synonym is given at the top of a spec; the paths named for it are options that this spec
    may give.
    """
    monkeypatch.setattr("bigmodel_cli.explain.MOST_FAULTS", 10_000)
    lines = message(text, *(f"{word}=1" for word in SYNONYMS)).splitlines()
    uses = [
        line.partition("; use ")[2].split(";")[0].split(", or ")
        for line in lines
        if "; use " in line
    ]
    assert len(uses) > 100
    for path in {part.split(" (")[0] for parts in uses for part in parts}:
        assert works(text, path) or f"{path}: unknown option" not in message(text, f"{path}=1"), (
            path
        )


def works(text: str, path: str) -> bool:
    """Whether 1 can be given there."""
    try:
        changed(text, f"{path}=1")
    except SpecError:
        return False
    return True


# One option instead of another


@pytest.mark.parametrize(
    ("base", "change", "gone", "said"),
    [
        ("", "train.epochs=2", "steps", "train.epochs: 2 is taken instead of train.steps: 12"),
        (
            "",
            "train.validate_epochs=1",
            "validate_every",
            "train.validate_epochs: 1 is taken instead of train.validate_every: 4",
        ),
        (
            "",
            "train.batch_tokens=64",
            "",
            "train.batch_tokens: 64 is taken instead of train.batch_size: 4",
        ),
        (
            "  batch_tokens: 32\n",
            "train.batch_size=8",
            "batch_tokens",
            "train.batch_size: 8 is taken instead of train.batch_tokens",
        ),
    ],
)
def test_set_replaces_the_option_that_it_stands_in_place_of(
    base: str, change: str, gone: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = DECODER.replace("  batch_size: 4\n", base) if base else DECODER
    train = changed(text, change).train
    assert said in capsys.readouterr().err
    assert not gone or getattr(train, gone) is None
    name = change.partition("=")[0].removeprefix("train.")
    assert getattr(train, name) == int(change.partition("=")[2])


def test_set_of_two_exclusive_options_is_refused_and_null_is_silent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "not both" in message(DECODER, "train.steps=1", "train.epochs=1")
    # which is gone again
    assert "train: 0.5 is not" in message(DECODER, "train.steps=1", "train=0.5")
    changed(DECODER, "train.epochs=null")
    assert capsys.readouterr().err == ""


# Values


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.steps=many", "'many' is not a whole number"),
        ("train.steps=1e3", "1000.0 is not a whole number; write 1000"),
        (
            "train.steps='3'",
            "'3' is not a whole number; it is text, since it stands in quotes: write 3",
        ),
        (
            "train.optimizer.lr='1e-3'",
            "'1e-3' is not a number; it is text, since it stands in quotes: write 1e-3",
        ),
        ("train.optimizer.lr=high", "'high' is not a number"),
        ("model.dim=true", "true is not a whole number"),
        ("model.dim=null", "empty (null) is not a whole number"),
        ("model.tie_embeddings=yes", "'yes' is not true or false; write true"),
        ("model.tie_embeddings=off", "'off' is not true or false; write false"),
        ("model.tie_embeddings=0", "0 is not true or false; write false"),
        ("train.compile=true", "true is not one of auto, on, off; write on"),
        ("train.precision=fp64", "'fp64' is not one of auto, fp32, bf16, fp16; did you mean fp16?"),
        ("data.files=a.txt", "'a.txt' is not a list; write [a.txt]"),
        ("data.files=[3]", "data.files.0: 3 is not text; put it in quotes: '3'"),
        ("task.sample_prompt=5", "5 is not text; put it in quotes: '5'"),
        ("model.blocks=gelu", "'gelu' is not a list"),
        ("model.blocks=[]", "model.blocks: empty; give at least 1"),
        ("train=fast", "'fast' is not a mapping of options"),
        ("train.optimizer.betas=[0.9]", "1 item; give at least 2"),
        ("train.seed=-1", "-1 is not at least 0"),
        ("model.norm=batch", "unknown type 'batch'; one of layernorm, rmsnorm, none"),
        ("model.blocks.0.ffn=none", "write null for none"),
        (
            "train.optimizer=adam",
            "unknown type 'adam'; one of adamw, sgd, muon, schedule_free_adamw;"
            " did you mean adamw?",
        ),
        ("train.optimizer={adamw: {lr: 1}}", "unknown option; write type: adamw in its place"),
        (
            "train.schedule=cosin",
            (
                "unknown type 'cosin'; one of constant, linear, cosine, inverse_sqrt, wsd,"
                " multistep; did you mean cosine?"
            ),
        ),
    ],
)
def test_messages_of_wrong_values(change: str, said: str) -> None:
    """Row 26: a wrong type."""
    told = message(DECODER, change)
    assert said in told
    assert "valid" not in told.replace("validat", "")


def test_a_value_that_may_be_of_several_kinds_has_one_message() -> None:
    told = message(CNN, "model.layers.0.padding=x")
    assert told.endswith(
        "model.layers.0.padding: 'x' is not a whole number, nor one of same, valid"
    )
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model:\n\tdim: 3\n", "2:1: not valid YAML: a tab; indent with blanks alone"),
        (
            "train:\n  steps:12\n",
            (
                "2:3: train: 'steps:12' is not a mapping of options; write a blank after the colon:"
                " steps: 12"
            ),
        ),
        (
            "train: {lr:1e-3}\n",
            "1:9: train.lr:1e-3: unknown option; write a blank after the colon: lr: 1e-3",
        ),
        ("a: 'x\nb: 3\n", "a quote is opened (it begins in line 1) and not closed"),
        (
            "a: [1, 2\nb: 3\n",
            "2:2: not valid YAML: a list or mapping in brackets goes on where it should have ended",
        ),
        ("a: [1, 2]]\n", "a closing ] without an opening one"),
        ("a: @x\n", "1:4: not valid YAML: a value cannot begin with @; put it in quotes"),
        (
            "a:\n  b: 1\n c: 2\n",
            "3:2: not valid YAML: this line is not indented as the other lines of its mapping",
        ),
        ("a: b: c\n", "1:5: not valid YAML: a colon cannot stand here"),
        ("a:\n  - 1\n  b: 2\n", "3:3: not valid YAML: this line stands in a list"),
        ("a: 'it's'\n", "a quote within quotes is written twice"),
        ('a: "c:\\d"\n', "a backslash in double quotes must be written twice"),
        (
            "model:3",
            (
                "1:1: a spec is a mapping with the keys model, data, task, train; write a blank"
                " after each colon"
            ),
        ),
    ],
)
def test_yaml_errors_are_reported_with_the_remedy(text: str, said: str) -> None:
    assert said in message(text)


def refusal(text: str, info: DatasetInfo, *changes: str) -> str:
    """What is said when the model is built for data as `info` describes it."""
    with pytest.raises(SpecError) as error:
        build(changed(text, *changes).model, info)
    return str(error.value)


@pytest.mark.parametrize("layers", ["", "{type: dropout}"], ids=["last", "before dropout"])
def test_a_cnn_that_ends_with_a_number_of_its_own_prints_the_set_that_mends_it(layers: str) -> None:
    info = DatasetInfo(image_shape=(1, 8, 8), classes=tuple("0123456789"))
    text = CNN.replace(
        "    - {type: dense, units: classes}\n",
        f"    - {{type: dense, units: 3}}\n    {layers and '- ' + layers}\n",
    )
    said = refusal(text, info)
    assert said.startswith(
        "model.layers.4.units: the network ends with 3 values, and the data has 10 classes; give"
        " --set "
    )
    build(changed(text, said.rpartition("--set ")[2]).model, info)


@pytest.mark.parametrize("name", ["vocab_size", "max_len"])
def test_a_vocabulary_or_length_below_the_datas_prints_the_set_that_mends_it(name: str) -> None:
    info = DatasetInfo(vocab_size=20, context=16)
    said = refusal(DECODER, info, f"model.{name}=3")
    assert said.endswith(f"give --set model.{name}=null")
    build(changed(DECODER, said.rpartition("--set ")[2]).model, info)


def test_typed_tells_lists_unions_and_shapes_of_one_class_alike() -> None:
    """The one rule for words: `Options` finds them by annotation, for plugins' options too."""

    class Own(Options):
        several: dict[str, int] | None = None

    assert typed(Own) == {}
    assert set(typed(CNNOptions.model_fields["layers"].annotation)) >= {"conv", "flatten", "dense"}
