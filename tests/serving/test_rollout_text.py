from __future__ import annotations

import logging

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ConfigError
from contract.wire.plumbline_wire import config_pb2
from serving.rollout.config_file import ModelEdit, Policy, edit_text, parse_config

FILE = """# Our models; ask Ada before changing "cnn" } {.
model_config_list {
  config {
    name: "cnn"
    base_path: '/models/cnn'  # on the fast disk
    model_platform: "tensorflow"
    version_labels { key: "stable" value: 7 }
  }
  config: <
    model_platform: "tensorflow",
    name: "ml" "p";
    base_path: "/models/mlp"
    # Two at a time.
    model_version_policy: { specific { versions: 1 versions: 2 } }
    version_labels { key: "canary" value: 2 }
    version_labels: { value: 1 key: "stable" }  # since spring
  >
}
"""


def make_policy(*versions: int) -> Policy:
    policy = Policy()
    policy.specific.versions.extend(versions)
    return policy


def test_an_edit_changes_its_field_and_no_other_character() -> None:
    edit = ModelEdit("mlp", {"stable": 2})
    line = 'version_labels: { value: 1 key: "stable" }'
    assert edit_text(FILE, edit, "f") == FILE.replace(
        line, 'version_labels { key: "stable" value: 2 }'
    )


def test_a_new_label_gets_a_line_after_the_last_field() -> None:
    edited = edit_text(FILE, ModelEdit("mlp", {"next": 3}), "f")
    assert '# since spring\n    version_labels { key: "next" value: 3 }\n  >' in edited


def test_a_label_taken_away_takes_its_line_along() -> None:
    edited = edit_text(FILE, ModelEdit("mlp", {"canary": None}), "f")
    assert edited == FILE.replace('    version_labels { key: "canary" value: 2 }\n', "")


def test_a_policy_is_replaced_added_or_taken_away() -> None:
    replaced = edit_text(FILE, ModelEdit("mlp", policy=make_policy(2, 3)), "f")
    assert "model_version_policy { specific { versions: 2 versions: 3 } }" in replaced
    added = edit_text(FILE, ModelEdit("cnn", policy=make_policy(7)), "f")
    assert "value: 7 }\n    model_version_policy { specific { versions: 7 } }\n  }" in added
    assert edit_text(added, ModelEdit("cnn", policy=Policy()), "f") == FILE


def test_a_model_on_one_line_stays_on_one_line() -> None:
    text = 'model_config_list { config { name: "mlp" base_path: "/m" } } # all\n'
    edited = edit_text(text, ModelEdit("mlp", {"stable": 1}), "f")
    assert edited.count("\n") == 1 and edited.endswith("# all\n")
    assert parse_config(edited, "f").model_config_list.config[0].version_labels["stable"] == 1


def test_a_text_in_an_unknown_manner_is_written_anew_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = 'model_config_list { config: [{ name: "mlp" }, { name: "cnn" }] } # all\n'
    with caplog.at_level(logging.WARNING):
        edited = edit_text(text, ModelEdit("cnn", {"stable": 1}), "f")
    config = parse_config(edited, "f")
    assert [one.name for one in config.model_config_list.config] == ["mlp", "cnn"]
    assert config.model_config_list.config[1].version_labels["stable"] == 1
    assert "comments are lost" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list {", "Error parsing text-format"),
        ("", r"no model 'mlp' \(its models: none\)"),
        ('model_config_list { config { name: "mlp" } config { name: "mlp" } }', "2 times"),
    ],
)
def test_files_that_cannot_be_edited_are_named_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        edit_text(text, ModelEdit("mlp", {"stable": 1}), "models.config")


names = st.text(min_size=1, max_size=8)
versions = st.integers(0, 2**63 - 1)
policies = st.one_of(
    st.just(Policy()),
    st.builds(lambda number: Policy(latest=Policy.Latest(num_versions=number)), st.integers(0, 5)),
    st.just(Policy(all=Policy.All())),
    st.lists(versions, max_size=3).map(lambda found: make_policy(*found)),
)


@st.composite
def configs(draw: st.DrawFn) -> config_pb2.ModelServerConfig:
    config = config_pb2.ModelServerConfig()
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        model = config.model_config_list.config.add(name=name, base_path=draw(names))
        model.version_labels.update(draw(st.dictionaries(names, versions, max_size=3)))
        policy = draw(policies)
        if policy.WhichOneof("policy_choice"):
            model.model_version_policy.CopyFrom(policy)
        model.logging_config.sampling_config.sampling_rate = draw(st.floats(0, 1))
    return config


@given(configs(), st.data(), st.booleans())
def test_an_edit_means_the_same_in_text_as_in_the_message(
    config: config_pb2.ModelServerConfig, data: st.DataObject, is_one_line: bool
) -> None:
    text = text_format.MessageToString(config, as_one_line=is_one_line)
    model = data.draw(st.sampled_from(list(config.model_config_list.config)))
    known = st.sampled_from([*sorted(model.version_labels), "new"])
    labels = data.draw(st.dictionaries(known, st.none() | versions, max_size=2))
    policy = data.draw(st.none() | policies)
    edited = parse_config(edit_text(text, ModelEdit(model.name, labels, policy), "f"), "f")
    for label, version in labels.items():
        if version is None:
            model.version_labels.pop(label, None)
        else:
            model.version_labels[label] = version
    if policy is not None:
        model.ClearField("model_version_policy")
        if policy.WhichOneof("policy_choice"):
            model.model_version_policy.CopyFrom(policy)
    assert edited == config


@given(configs(), versions)
def test_what_our_own_printer_writes_is_edited_in_place(
    config: config_pb2.ModelServerConfig, version: int
) -> None:
    text = "# kept\n" + text_format.MessageToString(config)
    model = config.model_config_list.config[0]
    assert "# kept" in edit_text(text, ModelEdit(model.name, {"stable": version}), "f")
