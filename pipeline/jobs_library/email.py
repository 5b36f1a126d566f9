"""E-mails to be sent in, an SMTP server's acceptance out.

One job is one recipient, so that no retry sends a mail twice to somebody who has it. At least once: a crash between the
server's answer and settlement sends it again, under the same Message-ID, which is the job's id. An answer of 4xx is
retried by the queue's policy, 5xx is dead at once; a server that is down or refuses the sign-in burns no attempt.
"""

from __future__ import annotations

import smtplib
import ssl
import string
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate, parseaddr
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, SecretStr

from pipeline.app import Pipeline
from pipeline.errors import ConfigError
from pipeline.event import Job, Personal
from pipeline.retry import Reject, RetryPolicy

if TYPE_CHECKING:
    from pipeline.context import Context

__all__ = ["Attachment", "SendEmail", "Smtp", "SmtpUnavailable", "send_emails"]

_PERMANENT = 500


class Attachment(BaseModel):
    """A file that goes with a mail. ``content_type`` is like ``application/pdf``."""

    name: str
    content_type: str
    content: bytes


class SendEmail(Job, queue="email"):
    """One mail to one recipient.

    ``template`` names files ``<template>.txt`` and, where there is one, ``<template>.html``, in which ``$name`` stands
    for ``values``; without it ``text`` (and ``html``) are sent as they are.
    """

    sender: str
    to: Personal[str]
    subject: str
    text: str = ""
    html: str | None = None
    template: str | None = None
    values: Personal[dict[str, str]] = Field(default_factory=dict)
    attachments: list[Attachment] = Field(default_factory=list)


class SmtpUnavailable(Exception):
    """The server is down, or refuses the sign-in: not the mail's fault."""


@dataclass(frozen=True, slots=True)
class Smtp:
    """A server. ``tls`` is ``starttls`` (port 587), ``implicit`` (465) or ``none``; certificates are checked.

    ``context`` is for a certificate authority of your own.
    """

    host: str
    port: int = 587
    username: str | None = None
    password: SecretStr | None = None
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    timeout_s: float = 30.0
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)

    def __post_init__(self) -> None:
        if self.username is not None and self.tls == "none":
            raise ConfigError(
                f"Smtp {self.host}: a sign-in without TLS shows the password to everybody", remedy='tls="starttls"'
            )

    @contextmanager
    def session(self) -> Iterator[smtplib.SMTP]:
        """Give a session, signed in. Raises SmtpUnavailable."""
        try:
            server = self._connect()
        except (OSError, smtplib.SMTPException) as error:
            raise SmtpUnavailable(f"{self.host}:{self.port}: {type(error).__name__}") from error
        try:
            yield server
        finally:
            with suppress(smtplib.SMTPException, OSError):  # a mail that was taken stays taken, whatever it answers now
                server.quit()
            server.close()

    def _connect(self) -> smtplib.SMTP:
        if self.tls == "implicit":
            server: smtplib.SMTP = smtplib.SMTP_SSL(self.host, self.port, timeout=self.timeout_s, context=self.context)
        else:
            server = smtplib.SMTP(self.host, self.port, timeout=self.timeout_s)
        try:
            if self.tls == "starttls":
                server.starttls(context=self.context)
            if self.username is not None:
                server.login(self.username, self.password.get_secret_value() if self.password else "")
        except BaseException:
            server.close()
            raise
        return server


def send_emails(
    app: Pipeline, smtp: Smtp, *, templates: Path | None = None, retry: RetryPolicy | None = None
) -> type[SendEmail]:
    """Declare the handler of SendEmail on an application; return the job type."""
    policy = retry or RetryPolicy(uncounted=(SmtpUnavailable,))

    @app.job(SendEmail, retry=policy)
    def send_email(job: SendEmail, ctx: Context) -> None:
        message = _message(job, ctx.event_id, templates)
        with smtp.session() as server:
            try:
                server.send_message(message)
            except smtplib.SMTPRecipientsRefused as error:
                raise _refused(*next(iter(error.recipients.values()))) from None
            except smtplib.SMTPResponseException as error:
                raise _refused(error.smtp_code, error.smtp_error) from None
            except (OSError, smtplib.SMTPServerDisconnected) as error:
                raise SmtpUnavailable(f"{smtp.host}: lost while sending: {type(error).__name__}") from error

    return SendEmail


def _refused(code: int, answer: bytes | str) -> Exception:
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else answer
    if code >= _PERMANENT:
        return Reject(f"SMTP {code}: {text}")
    return RuntimeError(f"SMTP {code}, for now: {text}")


def _message(job: SendEmail, job_id: str, templates: Path | None) -> EmailMessage:
    """Return the mail. Rejects the job where it cannot be one."""
    text, html = job.text, job.html
    if job.template is not None:
        text, html = _filled(job.template, job.values, templates)
    domain = parseaddr(job.sender)[1].rpartition("@")[2]
    if not domain or "@" not in parseaddr(job.to)[1]:
        raise Reject("sender or recipient is not an address")
    message = EmailMessage()
    try:
        message["From"], message["To"], message["Subject"] = job.sender, job.to, job.subject
    except ValueError:
        raise Reject("a line break in sender, recipient or subject") from None
    message["Date"] = formatdate()
    message["Message-ID"] = f"<{job_id}@{domain}>"
    message.set_content(text)
    if html is not None:
        message.add_alternative(html, subtype="html")
    for attachment in job.attachments:
        main, slash, sub = attachment.content_type.partition("/")
        if not slash:
            raise Reject(f"content_type {attachment.content_type!r} is not one")
        message.add_attachment(attachment.content, maintype=main, subtype=sub, filename=attachment.name)
    return message


def _filled(name: str, values: dict[str, str], templates: Path | None) -> tuple[str, str | None]:
    """Return text and HTML of a template. Rejects the job where it or one of its values is missing."""
    if templates is None or Path(name).name != name:
        raise Reject(f"template {name!r}: no such template")
    found: list[str | None] = []
    for suffix in (".txt", ".html"):
        file = templates / f"{name}{suffix}"
        try:
            raw = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            found.append(None)
            continue
        given = values if suffix == ".txt" else {key: escape(value) for key, value in values.items()}
        try:
            found.append(string.Template(raw).substitute(given))
        except (KeyError, ValueError) as error:
            raise Reject(f"template {file.name}: {type(error).__name__}: {error}") from None
    text, html = found
    if text is None:
        raise Reject(f"template {name!r}: no file {name}.txt")
    return text, html
