"""``pipeline connector render``: what Strimzi's CRD and Kubernetes take, by their own rules; and JSON."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from pipeline.cli.main import cli
from pipeline.connect.manifest import APIS
from pipeline.connect.sources import connectors
from pipeline.errors import ConfigError

CONNECTORS = Path(__file__).parents[2] / "connectors"
STATES = ("paused", "running", "stopped")
REFERENCE = {"name?": str}
SPEC: Mapping[str, Any] = {
    "class?": str, "tasksMax?": 1, "config?": {"*": str}, "version?": str, "state?": STATES,
    "autoRestart?": {"enabled?": bool, "maxRestarts?": 0},
    "listOffsets?": {"toConfigMap": REFERENCE}, "alterOffsets?": {"fromConfigMap": REFERENCE},
}  # fmt: skip
"""The spec of a KafkaConnector, as Strimzi's CRD has it: keys with ``?`` may be missing, none may be added; a number is
the least that an integer may be, a tuple what a text may be. The CRD takes any value in ``config``; ours are texts."""
SPECS = {"v1": SPEC, "v1beta2": {**SPEC, "pause?": bool}}
OWN = {"name", "connector.class", "tasks.max", "connector.plugin.version"}  # config may not have them
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")  # RFC 1123


def wrong(value: object, shape: Any, where: str = "") -> list[str]:
    """Say what does not have its shape."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return [f"{where}: no object"]
        names = {key.rstrip("?") for key in shape}
        found = [f"{where}.{key}: missing" for key in shape if key[-1] not in "?*" and key not in value]
        for key, inner in value.items():
            if key not in names and "*" not in shape:
                found.append(f"{where}.{key}: unknown")
            else:
                one = shape.get(key, shape.get(f"{key}?", shape.get("*")))
                found += wrong(inner, one, f"{where}.{key}")
        return found
    if isinstance(shape, tuple):
        fits = value in shape
    elif isinstance(shape, int):
        fits = type(value) is int and value >= shape
    else:
        fits = type(value) is shape
    return [] if fits else [f"{where}: {value!r}"]


def refusals(manifest: dict[str, Any]) -> list[str]:
    """Say what Kubernetes, or Strimzi's operator, would not take."""
    api = manifest["apiVersion"].removeprefix("kafka.strimzi.io/")
    metadata = {"name": str, "labels": {"strimzi.io/cluster": str}}
    shape = {"apiVersion": tuple(f"kafka.strimzi.io/{one}" for one in APIS), "kind": ("KafkaConnector",)}
    found = wrong(manifest, {**shape, "metadata": metadata, "spec": SPECS[api]})
    name, label = manifest["metadata"]["name"], manifest["metadata"]["labels"]["strimzi.io/cluster"]
    found += [] if NAME.fullmatch(name) and len(name) <= 253 else [f"name: {name}"]
    found += [] if NAME.fullmatch(label) and len(label) <= 63 else [f"label: {label}"]
    own = OWN if api == "v1" else OWN - {"connector.plugin.version"}
    return found + sorted(own & manifest["spec"]["config"].keys())


def render(*words: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, ["connector", "render", *words], input=stdin)


def file(folder: Path, name: str = "outbox", **changes: str) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, "config": {"connector.class": "a.B", "slot.name": "s", **changes}}))
    return path


def refused(*words: str) -> str:
    error = render(*words).exception
    assert isinstance(error, ConfigError)
    return str(error)


@pytest.mark.parametrize("api", APIS)
def test_all_our_files_are_documents_that_the_crd_takes(api: str) -> None:
    shown = render(str(CONNECTORS), "--cluster", "my-connect", "--secret", "shop/postgres", "--api", api)
    assert shown.exit_code == 0, shown.output
    found = list(yaml.safe_load_all(shown.stdout))
    assert [(one["metadata"]["name"], refusals(one)) for one in found] == [
        (one["metadata"]["name"], []) for one in found
    ]
    here = {one.name: one.config for one in connectors([str(CONNECTORS)], io.StringIO())}
    del here["outbox-polling"]  # of the native relay
    assert {one["metadata"]["name"] for one in found} == here.keys()
    for one in found:
        config, spec = here[one["metadata"]["name"]], one["spec"]
        assert (spec["class"], str(spec["tasksMax"])) == (config["connector.class"], config["tasks.max"])
        back = {key: value.replace("${secrets:shop/postgres:", "${env:") for key, value in spec["config"].items()}
        assert back == {key: value for key, value in config.items() if key not in OWN}


def test_the_check_finds_what_is_wrong(tmp_path: Path) -> None:
    good = yaml.safe_load(render(str(file(tmp_path))).stdout)
    assert refusals(good) == []
    for path, value in (
        (("spec", "tasksMax"), "1"), (("spec", "tasksMax"), 0), (("spec", "state"), "RUNNING"),
        (("spec", "pause"), True), (("spec", "config", "name"), "x"), (("spec", "config", "port"), 1),
        (("spec", "listOffsets"), {}), (("kind",), "Kafka"), (("metadata", "name"), "a_b"),
        (("metadata", "labels", "strimzi.io/cluster"), "x" * 64),
    ):  # fmt: skip
        bad = json.loads(json.dumps(good))
        *parents, last = path
        inner = bad
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
        assert refusals(bad), path


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("outbox_eu", "outbox-eu"),
        ("Outbox", "outbox"),
        ("-outbox", "outbox"),
        ("a..b", ""),
        ("a.-b", ""),
        ("ä", ""),
        ("x" * 251 + "-.y", ""),
    ],
)
def test_names_that_kubernetes_refuses_are_refused_with_one_that_it_takes(tmp_path: Path, name: str, near: str) -> None:
    standard_input = json.dumps({"name": name, "config": {"connector.class": "a.B"}})
    error = render("-", stdin=standard_input).exception
    assert isinstance(error, ConfigError)
    assert f"-: {name!r} is no name for Kubernetes" in str(error)
    assert (f"rename the file, to {near}.json say" in str(error)) is bool(near)
    assert render("-", "-o", "json", stdin=standard_input).exit_code == 0  # Connect takes any


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--cluster", "My_Connect"), "--cluster My_Connect: is no name of a KafkaConnect"),
        (("--cluster", "x" * 64), "is no name of a KafkaConnect"),
        (("--secret", "postgres"), "--secret postgres: names no Secret"),
        (("--secret", "shop/"), "NAMESPACE/NAME"),
        (("--secret", "a.b/postgres"), "names no Secret"),
        (("--secret", "shop/Postgres"), "names no Secret"),
    ],
)
def test_options_that_kubernetes_refuses(tmp_path: Path, words: Sequence[str], told: str) -> None:
    assert told in refused(str(file(tmp_path)), *words)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks.max": "0"}, "outbox.json: tasks.max: '0' is not a number of tasks"),
        ({"tasks.max": "many"}, "outbox.json: tasks.max: 'many'"),
        ({"connector.class": " "}, "outbox.json: connector.class: is missing"),
        ({"database.password": "hunter2"}, "outbox.json: database.password: a secret in plain text"),
        ({"database.user": "${env:PG USER}"}, "outbox.json: database.user: no Secret can have a key 'PG USER'"),
    ],
)
def test_files_that_strimzi_could_not_run_are_refused_with_file_and_key(
    tmp_path: Path, changes: dict[str, str], told: str
) -> None:
    said = refused(str(file(tmp_path, **changes)), "--secret", "shop/postgres")
    assert told in said
    assert "hunter2" not in said


def test_references_become_those_of_a_secret_or_stay_those_of_the_environment(tmp_path: Path) -> None:
    jaas = 'a.B required username="${env:KUSER}" password="${env:KPASS}";'
    changes = {"producer.override.sasl.jaas.config": jaas, "database.sslcert": "${file:/run/tls:cert}"}
    made = file(tmp_path, **changes)
    assert yaml.safe_load(render(str(made)).stdout)["spec"]["config"] == {"slot.name": "s", **changes}
    config = yaml.safe_load(render(str(made), "--secret", "shop/my.postgres").stdout)["spec"]["config"]
    assert config["database.sslcert"] == "${file:/run/tls:cert}"
    assert config["producer.override.sasl.jaas.config"] == (
        'a.B required username="${secrets:shop/my.postgres:KUSER}" password="${secrets:shop/my.postgres:KPASS}";'
    )


def test_a_plugins_version_has_its_own_place(tmp_path: Path) -> None:
    made = str(file(tmp_path, **{"connector.plugin.version": "[3.7,4)"}))
    new, old = (yaml.safe_load(render(made, "--api", api).stdout) for api in APIS)
    assert (refusals(new), refusals(old)) == ([], [])
    assert (new["spec"]["version"], old["spec"].get("version")) == ("[3.7,4)", None)
    assert old["spec"]["config"]["connector.plugin.version"] == "[3.7,4)"


@pytest.mark.parametrize(
    "text",
    ["1e3", "0o17", "017", "1_000", "12:30:45", ".5e1", "+1", "y", "N", "on", "null", "~", "", "a: b", "#", "ä\n\t"],
)
def test_a_text_stays_a_text_to_every_reader_of_yaml(tmp_path: Path, text: str) -> None:
    """Kubernetes reads it with Go, which takes other things for numbers and truths than PyYAML does."""
    shown = render(str(file(tmp_path, key=text))).stdout
    assert yaml.safe_load(shown)["spec"]["config"]["key"] == text
    assert re.search(r"^    key: ['\"]", shown, re.MULTILINE)


def test_json_is_what_connects_own_api_takes(tmp_path: Path) -> None:
    one = json.loads(render(str(CONNECTORS / "outbox.json"), "-o", "json").stdout)
    assert one == json.loads((CONNECTORS / "outbox.json").read_text())
    several = json.loads(render(str(CONNECTORS), "-o", "json").stdout)
    assert all(one.keys() == {"name", "config"} and "name" not in one["config"] for one in several)
    file(tmp_path, "flat").write_text('{"name": "flat", "connector.class": "a.B", "tasks.max": 1}')
    assert json.loads(render(str(tmp_path / "flat.json"), "-o", "json").stdout) == {
        "name": "flat", "config": {"connector.class": "a.B", "tasks.max": "1"}
    }  # fmt: skip
