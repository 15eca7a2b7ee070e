"""Every part, skeleton and rule for first weights has a test against a reference; what is without
one is listed here, and fails.

`REFERENCES` names the test for each type of each table. It is checked in the syntax trees: that the
test is there and collected, that it (or a helper of its file that it uses) builds this very type,
and that it compares.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from conftest import ROOT

from bigmodel_cli.models import MODELS
from bigmodel_cli.parts import FFNS, HEAD_POSITIONS, MIXERS, NORMS, POSITIONS, CrossAttentionOptions
from bigmodel_cli.parts.position import RotaryOptions

TESTS = ROOT / "tests"
REFERENCES = {
    "mixer attention": "parts/test_crossings.py::test_attention_with_every_option",
    "mixer mla": "parts/test_positions.py::test_latent_attention_with_yarn_equals_deepseek_v3",
    "mixer differential": "parts/test_references.py::test_differential_attention",
    "mixer mamba2": "parts/test_references.py::test_mamba2",
    "mixer gated_deltanet": "parts/test_references.py::test_gated_deltanet",
    "mixer convolution": "parts/test_references.py::test_gated_convolution",
    "mixer retention": "parts/test_recurrence.py::test_retention_equals_the_authors_formula",
    "mixer parallel": "parts/test_parallel.py::test_the_outputs_are_added",
    "cross attention": "parts/test_crossings.py::test_cross_attention_with_every_option",
    "ffn gelu": "parts/test_parts.py::test_feed_forward_networks_equal_their_formulas",
    "ffn relu": "parts/test_parts.py::test_feed_forward_networks_equal_their_formulas",
    "ffn silu": "parts/test_parts.py::test_feed_forward_networks_equal_their_formulas",
    "ffn relu2": "parts/test_parts.py::test_feed_forward_networks_equal_their_formulas",
    "ffn swiglu": "parts/test_parts.py::test_feed_forward_networks_equal_their_formulas",
    "ffn geglu": "parts/test_parts.py::test_feed_forward_networks_equal_their_formulas",
    "ffn moe": "parts/test_references.py::test_experts_of_mixtral",
    "norm layernorm": "parts/test_parts.py::test_norms_equal_their_formulas",
    "norm rmsnorm": "parts/test_parts.py::test_norms_equal_their_formulas",
    "norm none": "parts/test_norm_options.py::test_no_norm_is_nothing",
    "position none": (
        "parts/test_positions.py::test_learned_positions_are_a_table_and_none_is_nothing"
    ),
    "position learned": (
        "parts/test_positions.py::test_learned_positions_are_a_table_and_none_is_nothing"
    ),
    "position sinusoidal": "parts/test_parts.py::test_sinusoidal_positions",
    "position of attention none": (
        "parts/test_positions.py::test_learned_positions_are_a_table_and_none_is_nothing"
    ),
    "position of attention rotary": (
        "parts/test_positions.py::test_attention_turned_in_part_equals_stablelm"
    ),
    "position of attention axial": "parts/test_rotary.py::test_axial_positions_equal_dinov3",
    "position of attention alibi": "parts/test_positions.py::test_alibi_equals_bloom",
    "position of attention t5": (
        "parts/test_positions.py::test_t5_buckets_equal_transformers_or_are_refused"
    ),
    "scaling linear": (
        "parts/test_positions.py::test_linear_and_ntk_scaling_of_a_part_of_the_channels"
    ),
    "scaling ntk": "parts/test_positions.py::test_linear_and_ntk_scaling_of_a_part_of_the_channels",
    "scaling llama3": "parts/test_rotary.py::test_llama3_scaling_equals_transformers",
    "scaling yarn": "parts/test_positions.py::test_yarn_equals_transformers",
    "model decoder": "models/test_decoder.py::test_equals_gpt2_of_transformers",
    "model encoder": "models/test_skeletons.py::test_equals_bert_of_transformers_also_with_padding",
    "model seq2seq": (
        "models/test_skeletons.py::test_equals_marian_of_transformers_also_with_padding"
    ),
    "model vit": "models/test_skeletons.py::test_equals_vit_of_transformers",
    "model cnn": (
        "models/test_cnn.py::test_a_residual_network_written_in_yaml_equals_torchvisions_block"
    ),
    "model torchvision": "models/test_cnn.py::test_logits_of_torchvisions_networks_are_theirs",
}
FIRST = "models/test_first_weights.py::"
FIRST_WEIGHTS = {
    "models/init.py init_normal": [
        ("DecoderOptions", FIRST + "test_a_decoder_starts_as_gpt2_suited_to_its_width"),
        ("EncoderOptions", FIRST + "test_an_encoder_starts_as_bert_suited_to_its_width"),
        (
            "Seq2SeqOptions",
            FIRST + "test_init_normal_of_an_encoder_decoder_scales_each_stack_by_its_own_depth",
        ),
    ],
    "models/init.py init_xavier": [
        ("Seq2SeqOptions", FIRST + "test_an_encoder_decoder_starts_as_tensor2tensor_s")
    ],
    "models/init.py glorot": [
        ("Seq2SeqOptions", FIRST + "test_an_encoder_decoder_starts_as_tensor2tensor_s"),
        ("ViTOptions", FIRST + "test_a_vit_starts_as_its_authors"),
    ],
    "models/vit.py ViT.start": [
        ("ViTOptions", FIRST + "test_a_vit_starts_as_its_authors"),
        ("ViTOptions", FIRST + "test_a_masked_autoencoder_starts_as_its_authors"),
    ],
    "models/mae.py PatchDecoder.__init__": [
        ("ViTOptions", FIRST + "test_a_masked_autoencoder_starts_as_its_authors")
    ],
    "models/encoder.py Encoder.__init__": [
        ("EncoderOptions", FIRST + "test_an_encoder_starts_as_bert_suited_to_its_width")
    ],
    "parts/moe.py MixtureOfExperts.__init__": [
        ("MoEOptions", FIRST + "test_experts_alone_start_as_linear_layers")
    ],
    **{
        f"parts/{rule}": [
            ("DecoderOptions", FIRST + "test_what_recurrent_parts_draw_for_themselves")
        ]
        for rule in (
            "recurrent.py decay_parameters",
            "differential.py Differential.__init__",
            "recurrence.py ShortConvolution.__init__",
        )
    },
    "models/layers.py ConvOptions.build": [
        ("CNNOptions", "models/test_whitening.py::test_convolutions_start_as_the_identity")
    ],
    "torch's own of CNN": [("CNNOptions", FIRST + "test_a_cnn_starts_as_torchs_layers")],
    "torch's own of ConvFrontend": [
        ("EncoderOptions", FIRST + "test_frames_are_read_by_convolutions_that_start_as_torchs")
    ],
}
"""What draws first weights (found in the syntax trees of models/ and parts/) -> who uses it, and
the test for that.
"""
TORCHS = {"torch's own of CNN", "torch's own of ConvFrontend"}
"""Who leaves their weights as torch's layers draw them."""
NOISE = {"parts/dropout.py drop_path"}
"""What draws while a model runs."""
COMPARISONS = {"approx", "close", "assert_close", "equal", "allclose", "agrees", "table_is"}
DISTRIBUTIONS = {"normal", "even", "glorot"}
"""The comparisons of test_first_weights.py."""


def types_of(union: Any) -> Iterator[Any]:
    """The options classes of a field's annotation."""
    if isinstance(union, type):
        if "type" in getattr(union, "model_fields", {}):
            yield union
        return
    for member in get_args(union):
        yield from types_of(member)


def everything() -> dict[str, str]:
    """'slot type' -> the name of its options class, for all tables there are."""
    tables: dict[str, dict[str, Any]] = {
        "mixer": MIXERS, "ffn": FFNS, "norm": NORMS, "position": POSITIONS, "model": MODELS,
        "position of attention": HEAD_POSITIONS,
    }  # fmt: skip
    scalings = types_of(RotaryOptions.model_fields["scaling"].annotation)
    tables["scaling"] = {t.model_fields["type"].default: t for t in scalings}
    found = {
        f"{slot} {kind}": options.__name__
        for slot, table in tables.items()
        for kind, options in table.items()
    }
    return {**found, "cross attention": CrossAttentionOptions.__name__}


@functools.cache
def definitions(file: str) -> dict[str, ast.AST]:
    """What a test file defines at its top: functions, and constants by their names."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    named: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            named[node.name] = node
        elif isinstance(node, ast.Assign):
            named.update({t.id: node for t in node.targets if isinstance(t, ast.Name)})
    return named


def names_used(file: str, name: str) -> set[str]:
    """All names in a function (its decorators too) and in what it uses of its own file."""
    own, used, waiting = definitions(file), set[str](), [name]
    while waiting:
        for node in ast.walk(own[waiting.pop()]):
            word = (
                node.id
                if isinstance(node, ast.Name)
                else node.attr
                if isinstance(node, ast.Attribute)
                else None
            )
            if word is not None and word not in used:
                used.add(word)
                waiting += [word] if word in own else []
    return used


def faults(
    what: str, options: str, reference: str, comparisons: set[str] = COMPARISONS
) -> list[str]:
    """Why a reference does not hold."""
    file, _, name = reference.partition("::")
    if not name.startswith("test_") or name not in definitions(file):
        return [f"{what}: {reference} is not there"]
    used = names_used(file, name)
    found = [] if options in used else [f"{what}: {reference} does not build {options}"]
    asserts = [
        node.test for node in ast.walk(definitions(file)[name]) if isinstance(node, ast.Assert)
    ]
    if not used & comparisons and not any(isinstance(test, ast.Compare) for test in asserts):
        found.append(f"{what}: {reference} compares nothing")
    if used & {"skip", "skipif", "xfail", "slow"}:
        found.append(f"{what}: {reference} is passed over")
    return found


def test_every_part_and_skeleton_has_a_reference() -> None:
    options = everything()
    assert len(options) >= 32
    assert sorted(options.keys() - REFERENCES.keys()) == [], "these have no reference test"
    assert sorted(REFERENCES.keys() - options.keys()) == [], "these are not there any more"
    assert [
        fault
        for what, reference in REFERENCES.items()
        for fault in faults(what, options[what], reference)
    ] == []


@pytest.mark.parametrize(
    ("options", "reference", "fault"),
    [
        ("Mamba2Options", "parts/test_references.py::test_mamba3", "is not there"),
        ("Mamba2Options", "parts/test_references.py::randomised", "is not there"),
        ("Mamba2Options", "parts/test_references.py::test_gated_convolution",
         "does not build Mamba2Options"),
        ("RetentionOptions",
         "parts/test_recurrence.py::test_retention_of_heads_that_do_not_fit_is_refused",
         "compares nothing"),
    ],
)  # fmt: skip
def test_a_reference_that_is_not_one_is_noticed(options: str, reference: str, fault: str) -> None:
    assert fault in "\n".join(faults("x", options, reference))


def draws(function: ast.AST) -> bool:
    """Whether it calls nn.init, or draws random numbers."""
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    names = [ast.unparse(call) for call in calls if isinstance(call, ast.Attribute)]
    drawing = ("torch.rand", "torch.randn", "torch.normal", "torch.randint")
    return any(name.startswith(("nn.init.", "init.")) or name in drawing for name in names) or any(
        name.endswith((".uniform_", ".normal_", ".trunc_normal_")) for name in names
    )


def rules() -> set[str]:
    """'room/file.py function', or 'room/file.py Class.method', of all in models/ and parts/ that
    draw.
    """
    found = set()
    for room in ("models", "parts"):
        for path in sorted((ROOT / "bigmodel_cli" / room).glob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                inside = node.body if isinstance(node, ast.ClassDef) else [node]
                prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                functions = [f for f in inside if isinstance(f, ast.FunctionDef) and draws(f)]
                found |= {f"{room}/{path.name} {prefix}{f.name}" for f in functions}
    return found


def test_every_rule_for_first_weights_has_a_reference() -> None:
    found = rules() - NOISE
    assert {
        "models/init.py init_normal",
        "models/vit.py ViT.start",
        "parts/recurrent.py decay_parameters",
    } <= found
    assert sorted(found - FIRST_WEIGHTS.keys()) == [], "these have no reference test"
    assert sorted(FIRST_WEIGHTS.keys() - TORCHS - found) == [], "these are not there any more"
    references = [(rule, *used) for rule, uses in FIRST_WEIGHTS.items() for used in uses]
    assert [
        f for rule, used, test in references for f in faults(rule, used, test, DISTRIBUTIONS)
    ] == []


def test_a_rule_without_a_reference_is_noticed() -> None:
    drawn = "def start(self):\n    if self.x:\n        self.table.weight.uniform_(-1, 1)"
    assert draws(ast.parse(drawn))
    assert not draws(ast.parse("def forward(self, x):\n    return self.normal(x).uniform()"))
    (fault,) = faults(
        "x", "CNNOptions", FIRST + "test_experts_alone_start_as_linear_layers", DISTRIBUTIONS
    )
    assert "does not build CNNOptions" in fault
