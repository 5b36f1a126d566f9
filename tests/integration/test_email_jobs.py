"""E-mail jobs against a real SMTP server with TLS and sign-in, from the outbox row to the mail."""

from __future__ import annotations

import datetime as dt
import email
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email import policy
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jobbing import Desk, OpenDesk
from pydantic import SecretStr
from servers import Database
from working import wait_until

from pipeline import Pipeline, RetryPolicy
from pipeline.errors import ConfigError
from pipeline.jobs_library import email as library
from pipeline.jobs_library.email import Attachment, SendEmail, Smtp, SmtpUnavailable, send_emails
from pipeline.jobs_library.report import scheduled_report
from pipeline.metrics import SilentMeter
from pipeline.postgres.due import DueStore
from pipeline.probes import Readiness
from pipeline.scheduler import Moved, Scheduler
from pipeline.testing import Harness

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Requiring AUTH while not requiring TLS")


class Mailbox:
    """Takes mail; answers what ``answers`` says for a recipient, once for each entry."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self.answers: dict[str, list[str]] = {}
        self.accepts_sign_in = True

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if self.answers.get(address):
            return self.answers[address].pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        assert session.ssl is not None
        assert session.authenticated
        self.mails.append(email.message_from_bytes(envelope.content, policy=policy.default))
        return "250 taken"

    def check(self, server: Any, session: Any, envelope: Any, mechanism: str, data: LoginPassword) -> AuthResult:
        good = self.accepts_sign_in and (data.login, data.password) == (b"me", b"secret")
        return AuthResult(success=good, handled=False)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = tmp_path / "server.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM) + secret)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@contextmanager
def serving(mailbox: Mailbox, **options: Any) -> Iterator[int]:
    """Run an SMTP server; give its port."""
    controller = Controller(
        mailbox, hostname="localhost", port=0, authenticator=mailbox.check, auth_required=True, **options
    )
    connect = controller._trigger_server

    def trigger() -> None:
        controller.port = controller.server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        connect()

    controller._trigger_server = trigger  # type: ignore[method-assign]  # else it would connect to port 0
    controller.start()
    yield controller.port
    controller.stop(no_assert=True)


@pytest.fixture
def smtp(mailbox: Mailbox, certificate: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[Smtp]:
    with serving(mailbox, tls_context=certificate[0], require_starttls=True, auth_require_tls=True) as port:
        yield Smtp("localhost", port, "me", SecretStr("secret"), context=certificate[1], timeout_s=5)


QUICK = RetryPolicy(attempts=4, first_s=0.2, factor=1, cap_s=0.2, jitter=0, uncounted=(SmtpUnavailable,))


@pytest.fixture
def desk(prefix: str, open_desk: OpenDesk, smtp: Smtp, tmp_path: Path) -> Desk:
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "receipt.txt").write_text("Dear $name, thank you for order $order.")
    (folder / "receipt.html").write_text("<p title='$name'>Dear $name</p>")
    app = Pipeline(prefix, topic_prefix="", partitions=1)
    send_emails(app, smtp, templates=folder, retry=QUICK)
    return open_desk(app)


def mail(**given: Any) -> SendEmail:
    return SendEmail(**{"sender": "Shop <shop@example.org>", "to": "a@example.org", "subject": "Hi", **given})


def test_a_mail_arrives_with_template_and_attachment_over_tls_and_signed_in(desk: Desk, mailbox: Mailbox) -> None:
    job_id = desk.put(
        mail(
            template="receipt",
            values={"name": "Ünal <b>' x='", "order": "7"},
            attachments=[Attachment(name="r.pdf", content_type="application/pdf", content=b"%PDF-x")],
        )
    )
    desk.carry()
    with desk.working():
        desk.until(job_id, "done")
    (got,) = mailbox.mails
    assert (got["to"], got["subject"], got["message-id"]) == ("a@example.org", "Hi", f"<{job_id}@example.org>")
    assert got.get_body(("plain",)).get_content().strip() == "Dear Ünal <b>' x=', thank you for order 7."
    name = "Ünal &lt;b&gt;&#x27; x=&#x27;"  # nothing of it is markup
    assert got.get_body(("html",)).get_content().strip() == f"<p title='{name}'>Dear {name}</p>"
    (file,) = got.iter_attachments()
    assert (file.get_filename(), file.get_content()) == ("r.pdf", b"%PDF-x")


def test_a_session_that_is_tls_from_its_first_byte_signs_in_and_an_unknown_authority_is_refused(
    certificate: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    mailbox = Mailbox()
    # its server sees no STARTTLS, and takes the session for an open one
    with serving(mailbox, ssl_context=certificate[0], auth_require_tls=False) as port:
        given: dict[str, Any] = {"username": "me", "password": SecretStr("secret"), "tls": "implicit", "timeout_s": 5}
        with Smtp("localhost", port, context=certificate[1], **given).session() as session:
            assert session.sock.version().startswith("TLS")  # type: ignore[union-attr]
            assert session.noop()[0] == 250
        with (
            pytest.raises(SmtpUnavailable, match="SSLCertVerificationError"),
            Smtp("localhost", port, **given).session(),
        ):
            pass


def test_4xx_is_retried_and_5xx_is_dead_at_once(desk: Desk, mailbox: Mailbox) -> None:
    mailbox.answers = {"busy@example.org": ["451 later", "451 later"], "gone@example.org": ["550 nobody"] * 9}
    busy, gone = (desk.put(mail(to=f"{who}@example.org")) for who in ("busy", "gone"))
    desk.carry()
    with desk.working():
        assert desk.until(gone, "dead")["attempts"] == 1
        assert desk.until(busy, "done")["attempts"] == 3
    assert [got["to"] for got in mailbox.mails] == ["busy@example.org"]


def test_a_refused_sign_in_waits_and_burns_no_attempt(desk: Desk, mailbox: Mailbox) -> None:
    mailbox.accepts_sign_in = False
    job_id = desk.put(mail())
    desk.carry()
    with desk.working():
        row = desk.until(job_id, "retrying")
        assert (row["attempts"], row["error"]) == (0, f"{library.__name__}.SmtpUnavailable")
        mailbox.accepts_sign_in = True
        assert desk.until(job_id, "done")["attempts"] == 1
    wait_until(lambda: len(mailbox.mails) == 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"template": "nothing"},
        {"template": "../receipt"},
        {"template": "receipt", "values": {"name": "x"}},
        {"to": "nobody"},
        {"subject": "a\r\nBcc: b@example.org"},
        {"attachments": [Attachment(name="x", content_type="pdf", content=b"")]},
    ],
)
def test_what_cannot_be_a_mail_is_dead_and_nothing_is_sent(desk: Desk, mailbox: Mailbox, wrong: dict[str, Any]) -> None:
    job_id = desk.put(mail(**wrong))
    desk.carry()
    with desk.working():
        assert desk.until(job_id, "dead")["error"] == "pipeline.retry.Reject"
    assert mailbox.mails == []


def test_a_mail_that_was_taken_is_not_sent_again_for_what_is_answered_to_quit(smtp: Smtp, mailbox: Mailbox) -> None:
    async def overloaded(*_: Any) -> str:
        return "421 too many connections"

    mailbox.handle_QUIT = overloaded  # type: ignore[attr-defined]
    app = Pipeline("shop", topic_prefix="")
    send_emails(app, smtp, retry=QUICK)
    harness = Harness(app)
    job = harness.enqueue(SendEmail(sender="shop@example.org", to="ada@example.org", subject="s", text="t"))
    harness.run_until_idle()
    assert (harness.job(job).state, len(mailbox.mails)) == ("done", 1)


def test_a_sign_in_without_tls_is_refused_at_definition() -> None:
    with pytest.raises(ConfigError, match="without TLS"):
        Smtp("localhost", 25, "me", SecretStr("x"), tls="none")


def test_a_scheduled_report_is_mailed_to_each_recipient_once_for_each_tick(
    prefix: str, database: Database, open_desk: OpenDesk, smtp: Smtp, mailbox: Mailbox
) -> None:
    app = Pipeline(prefix, topic_prefix="", partitions=1)
    send_emails(app, smtp, retry=QUICK)
    scheduled_report(
        app,
        "nightly",
        cron="0 3 * * *",
        timezone="Europe/Berlin",
        query="SELECT n AS id, 'a<b' AS name, %(tick)s::date AS day FROM generate_series(1, 60) AS n",
        sender="Shop <shop@example.org>",
        to=["a@example.org", "b@example.org"],
        subject="Sales",
    )
    desk = open_desk(app)
    store = DueStore(database.dsn, app.outbox, Moved)
    scheduler = Scheduler(
        store, app.schedules, tidy=store.tidy, meter=SilentMeter(), health=Readiness("scheduler"), clock=lambda: 1e9
    )
    scheduler.step()
    desk.conn.execute("UPDATE pipeline.schedule SET last_at = now() - interval '2 days'")
    scheduler._next_read = 0
    scheduler.step()  # nobody ran at the two nights' hours: the latest is made up for
    store.close()
    (tick,) = desk.conn.execute("SELECT job_id, at FROM pipeline.tick").fetchall()
    job_id, day = str(tick["job_id"]), f"{tick['at'].astimezone(dt.UTC):%Y-%m-%d}"
    desk.carry()
    with desk.working():
        assert desk.until(job_id, "done")["result"] == {"rows": 60, "mails": 2}
        desk._seq -= 1  # the tick is delivered again
        desk.carry()
        desk.carry()
        wait_until(lambda: len(mailbox.mails) == 2, why="the mails")
    assert sorted(str(got["to"]) for got in mailbox.mails) == ["a@example.org", "b@example.org"]
    got = mailbox.mails[0]
    assert got["subject"] == f"Sales, {day}"
    assert f"1   a<b   {day}" in got.get_body(("plain",)).get_content()
    assert "<td>a&lt;b</td>" in got.get_body(("html",)).get_content()
    (file,) = got.iter_attachments()
    assert file.get_filename() == f"nightly-{day}.csv"
    assert len(file.get_content().splitlines()) == 61


def test_a_report_that_nobody_gets_is_refused(smtp: Smtp) -> None:
    with pytest.raises(ConfigError, match="nobody gets it"):
        scheduled_report(Pipeline("r"), "n", cron="* * * * *", timezone="UTC", query="", sender="", to=[], subject="")
