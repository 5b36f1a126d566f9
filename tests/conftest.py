"""Fixtures for real servers, started when the first test asks for one of them.

``--servers=local`` (default) starts a stack of its own and removes it at the end; with ``--stack-dir DIR`` it uses,
and leaves running, the stack in that folder. ``--servers=external`` takes the servers that PIPELINE_POSTGRES__DSN,
PIPELINE_KAFKA__BOOTSTRAP_SERVERS and PIPELINE_REGISTRY__URL name; ``--servers=containers`` starts those of
docker-compose.yml, by Docker. A test that needs a server that it cannot get fails (what stops servers, and Connect,
need local ones); none is skipped. Several processes (pytest-xdist) share one stack.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from containers import Containers, NoContainers
from figures import figure, pytest_terminal_summary  # noqa: F401
from quick import quick_java
from servers import (
    Database,
    Topics,
    environment,
    external_endpoints,
    migrated_template,
    new_database,
    registry_client_config,
)
from traces import leaves_no_trace  # noqa: F401

from pipeline.local import Endpoints, LocalStack


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("servers")
    group.addoption("--servers", default="local", choices=["local", "external", "containers"])
    group.addoption("--stack-dir", type=Path, default=None, help="use the local stack in DIR and leave it running")


# How long an example takes is the machine's business. `make test` draws the same ones each time, so that it is red for
# what has changed; others: pytest --hypothesis-profile=explore
hypothesis.settings.register_profile("pipeline", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("pipeline")

_EXTERNAL = pytest.StashKey[Endpoints]()
_SHARED = pytest.StashKey[Path]()  # where the stack is that several test processes share
_FOLDER = "shared_stack"
_ENDPOINTS = pytest.StashKey[Endpoints]()  # of the shared servers, once a test has asked for them


def pytest_configure(config: pytest.Config) -> None:
    quick_java()
    servers = config.getoption("--servers")
    if servers != "local" and config.getoption("--stack-dir"):
        raise pytest.UsageError("--stack-dir goes with --servers=local only")
    if servers == "external":
        try:
            config.stash[_EXTERNAL] = external_endpoints()
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
    if hasattr(config, "workerinput"):
        if shared := config.workerinput[_FOLDER]:
            config.stash[_SHARED] = Path(shared)
    else:
        many = bool(config.getoption("numprocesses", 0))
        if servers == "containers" or (many and servers == "local" and not config.getoption("--stack-dir")):
            config.stash[_SHARED] = Path(tempfile.mkdtemp(prefix="pipeline-stack-"))
            config.stash[_SHARED].chmod(0o711)  # as root: PostgreSQL's user has to pass
        if many:
            return  # it runs no test itself; those who do take its environment
    # What the developer has set must not change what a test finds.
    for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
        del os.environ[name]


# A file is one process's from its first test to its last, so one that begins late is waited for by all. The first ones
# must not start stacks of their own all at once.
_LONGEST = ("test_relay_crash.py", "test_faults_short.py", "test_testing_settlement.py", "test_worker_crash.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files begin first; all others stay in their order, fast ones (unit) last."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # xdist's: it has no types
    node.workerinput[_FOLDER] = str(node.config.stash.get(_SHARED, ""))


def pytest_unconfigure(config: pytest.Config) -> None:
    shared = config.stash.get(_SHARED, None)
    if shared is not None and not hasattr(config, "workerinput"):
        if config.getoption("--servers") == "containers":
            with suppress(NoContainers):
                Containers(shared).down()
        else:
            LocalStack(shared / "data", progress=_Lines(config)).down(delete=True)
        shutil.rmtree(shared)


class _Lines:
    """Progress as lines of pytest's own output."""

    def __init__(self, config: pytest.Config) -> None:
        self._reporter = config.pluginmanager.getplugin("terminalreporter")

    def say(self, text: str) -> None:
        if self._reporter is not None:
            self._reporter.write_line(f"servers: {text}")

    def expect(self, total_bytes: int) -> None:
        del total_bytes

    def advance(self, done_bytes: int) -> None:
        del done_bytes


@contextmanager
def own_stack(config: pytest.Config) -> Iterator[LocalStack]:
    """A stack in a folder of its own, removed with all its data at the end."""
    with tempfile.TemporaryDirectory(prefix="pipeline-stack-") as folder:
        Path(folder).chmod(0o711)  # as root: PostgreSQL's user has to pass
        running = LocalStack(Path(folder, "data"), progress=_Lines(config))
        try:
            with starting(config.stash.get(_SHARED, None)):
                running.up()
            yield running
        finally:
            running.down(delete=True)


@contextmanager
def starting(shared: Path | None) -> Iterator[None]:
    """Let one test process after the other start servers, which takes all cores; those of a stack that is shared are
    started by the first, and found by the others."""
    with ExitStack() as stack:
        if shared is not None:
            lock = stack.enter_context((shared / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> Iterator[LocalStack]:
    """The shared local stack, running. Do not stop its servers: see private_stack."""
    if pytestconfig.getoption("--servers") != "local":
        pytest.fail("this test needs servers of the local stack: run it with --servers=local")
    shared = pytestconfig.stash.get(_SHARED, None)
    lasting = shared / "data" if shared else pytestconfig.getoption("--stack-dir")
    if lasting:
        running = LocalStack(lasting, progress=_Lines(pytestconfig))
        with starting(shared):
            running.up()
        yield running
        return
    with own_stack(pytestconfig) as running:
        yield running


@pytest.fixture(scope="session")
def endpoints(request: pytest.FixtureRequest) -> Endpoints:
    """Where the shared servers are."""
    if request.config.getoption("--servers") == "containers":
        shared = request.config.stash[_SHARED]
        try:
            with starting(shared):
                found: Endpoints | None = Containers(shared).up()
        except NoContainers as error:
            pytest.fail(str(error), pytrace=False)
    else:
        found = request.config.stash.get(_EXTERNAL, None) or request.getfixturevalue("stack").endpoints()
    assert found is not None
    request.config.stash[_ENDPOINTS] = found
    return found


@pytest.fixture(scope="session")
def connect_url(request: pytest.FixtureRequest, endpoints: Endpoints) -> str:
    """Kafka Connect with Debezium, started when the first test asks for it."""
    url = endpoints.connect
    if url is None and request.config.getoption("--servers") == "local":
        stack = request.getfixturevalue("stack")
        with starting(request.config.stash.get(_SHARED, None)):
            url = stack.up(connect=True).connect
    if url is None:
        pytest.fail("this test needs Kafka Connect: --servers=local, or external with PIPELINE_CONNECT__URL")
    return url


@pytest.fixture(scope="session")
def bootstrap_servers(endpoints: Endpoints) -> str:
    """The shared broker."""
    return endpoints.kafka


@pytest.fixture(scope="session")
def registry_config(endpoints: Endpoints) -> dict[str, str]:
    """Settings of confluent-kafka's SchemaRegistryClient for the shared registry."""
    return registry_client_config(endpoints)


@pytest.fixture(scope="session")
def registry_client(registry_config: dict[str, str]) -> Iterator[SchemaRegistryClient]:
    """A client of the shared registry."""
    with SchemaRegistryClient(registry_config) as client:
        yield client


@pytest.fixture(scope="session")
def _template(endpoints: Endpoints) -> Iterator[str]:
    with migrated_template(endpoints.postgres_dsn) as name:
        yield name


@pytest.fixture
def database(endpoints: Endpoints, _template: str) -> Iterator[Database]:
    """A fresh database with the newest schema ``pipeline``."""
    with new_database(endpoints.postgres_dsn, _template) as fresh:
        yield fresh


@pytest.fixture
def empty_database(endpoints: Endpoints) -> Iterator[Database]:
    """A fresh database with nothing in it."""
    with new_database(endpoints.postgres_dsn) as fresh:
        yield fresh


@pytest.fixture(scope="session")
def _prefixes(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """All prefixes of this run; on servers that outlive it, their topics are deleted at the end."""
    used: list[str] = []
    yield used
    lasting = request.config.getoption("--stack-dir") or request.config.getoption("--servers") != "local"
    if lasting and _ENDPOINTS in request.config.stash:
        topics = Topics(request.config.stash[_ENDPOINTS].kafka)
        topics.delete(name for name in topics.names() if name.startswith(tuple(used)))


@pytest.fixture
def prefix(_prefixes: list[str]) -> str:
    """A short unique prefix for the names of topics, groups and slots, such as ``t1a2b3c``."""
    fresh = f"t{secrets.token_hex(3)}"
    _prefixes.append(fresh)
    return fresh


@pytest.fixture
def topics(endpoints: Endpoints) -> Topics:
    """Creates topics on the shared broker: ``topics.create(f"{prefix}.orders", partitions=3)``."""
    return Topics(endpoints.kafka)


@pytest.fixture
def cli_environment(endpoints: Endpoints, database: Database) -> dict[str, str]:
    """The environment for a subprocess that runs the CLI against this test's database and the shared servers."""
    return environment(endpoints, database)


@pytest.fixture(scope="module")
def _module_stack(pytestconfig: pytest.Config) -> Iterator[LocalStack]:
    with own_stack(pytestconfig) as running:
        yield running


@pytest.fixture
def private_stack(_module_stack: LocalStack) -> LocalStack:
    """A local stack of this module's own, whose servers a test may kill; all of them run when it begins."""
    _module_stack.up()
    return _module_stack


@pytest.fixture
def private_endpoints(private_stack: LocalStack) -> Endpoints:
    """Where the servers of the private stack are; they keep their ports when they are started again."""
    found = private_stack.endpoints()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def _private_template(_module_stack: LocalStack) -> Iterator[str]:
    dsn = _module_stack.up().postgres_dsn
    with migrated_template(dsn) as name:
        yield name
        _module_stack.up()


@pytest.fixture
def private_database(
    private_stack: LocalStack, private_endpoints: Endpoints, _private_template: str
) -> Iterator[Database]:
    """A fresh database with the newest schema ``pipeline`` in the private stack."""
    with new_database(private_endpoints.postgres_dsn, _private_template) as fresh:
        yield fresh
        private_stack.up()


@pytest.fixture
def private_cli_environment(private_endpoints: Endpoints, private_database: Database) -> dict[str, str]:
    """As cli_environment, for the private stack."""
    return environment(private_endpoints, private_database)
