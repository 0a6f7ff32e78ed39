"""What an SMTP server says to a recipient."""

from __future__ import annotations

import smtplib

import attrs


@attrs.frozen
class Reply:
    """An SMTP server's reply: the code, and the text without it."""

    code: int
    text: str


def ask_recipient(port: int, recipient: str, sender: str = "sender@elsewhere.example") -> Reply:
    """Return what the server on 127.0.0.1 answers to RCPT TO, without sending a mail.

    :raises smtplib.SMTPException: the session did not come as far as that.
    """
    return ask_recipients(port, [recipient], sender)[0]


def ask_recipients(port: int, recipients: list[str], sender: str = "sender@elsewhere.example") -> list[Reply]:
    """Return the answers to several RCPT TO in one session, which one smtpd process serves."""
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.elsewhere.example", timeout=120) as session:
        session.ehlo()
        code, text = session.mail(sender)
        if code != 250:
            raise smtplib.SMTPResponseException(code, text)
        answers = [session.rcpt(recipient) for recipient in recipients]
        return [Reply(code, text.decode("ascii", "replace")) for code, text in answers]


def deliver(port: int, recipient: str, text: str, sender: str = "sender@elsewhere.example") -> None:
    """Send a mail.

    :raises smtplib.SMTPException: it was not accepted.
    """
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.elsewhere.example", timeout=120) as session:
        session.sendmail(sender, [recipient], text)
