"""From the bytes of an e-mail to the text that a person would read: the subject, then the body.

All other headers, HTML tags, scripts, attachments and encoded blobs are left out. Parts in
quoted-printable or base64 are decoded; of two alternatives of the same body the plain one is taken.
Every e-mail address becomes name@example.com: it is nobody's business, and would only be learned by heart.
"""

from __future__ import annotations

import email
import re
from email.header import decode_header
from email.message import Message
from html.parser import HTMLParser

SILENT = {"script", "style", "title", "head"}
BREAKS = {
    "p",
    "br",
    "div",
    "tr",
    "li",
    "table",
    "h1",
    "h2",
    "h3",
    "h4",
    "ul",
    "ol",
    "hr",
    "center",
    "blockquote",
}
BLOB = re.compile(r"\S{60,}")  # base64, uuencode, long tracking links: no word is that long
ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")


class _Reader(HTMLParser):
    """Collects the visible text of an HTML page, with a line break wherever a block ends."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SILENT:
            self.silent += 1
        elif tag == "body":
            self.silent = 0  # a <head> that was never closed ends here
        elif tag in BREAKS:
            self.out.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in SILENT:
            self.silent = max(0, self.silent - 1)
        elif tag in BREAKS:
            self.out.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.out.append(re.sub(r"\s+", " ", data))


def html_to_text(html: str) -> str:
    """The visible text of a page; broken markup gives what can be read of it."""
    reader = _Reader()
    try:
        reader.feed(re.sub(r"<!--.*?-->", "", html, flags=re.S))  # spam hides words inside comments
        reader.close()
    except (AssertionError, ValueError):  # the parser gives up on some broken declarations
        pass
    return "".join(reader.out)


def _decode(data: bytes, charset: str | None) -> str:
    """Bytes to text in the declared character set, or in Latin-1 where that is missing, unknown or wrong."""
    for name in (charset, "utf-8"):
        try:
            return data.decode(name or "ascii")
        except (LookupError, UnicodeDecodeError, ValueError):
            continue
    return data.decode("latin-1")


def _subject(message: Message) -> str:
    """The decoded subject on one line, or an empty string."""
    raw = message.get("Subject")
    if raw is None:
        return ""
    try:
        parts = decode_header(str(raw))
    except (email.errors.HeaderParseError, ValueError):
        parts = [(str(raw), None)]
    words = [p if isinstance(p, str) else _decode(p, charset) for p, charset in parts]
    return " ".join("".join(words).split())


def _part_text(part: Message) -> str:
    """The text of one leaf part, or an empty string for attachments and everything that is not text."""
    kind = part.get_content_type()
    if kind not in ("text/plain", "text/html") or part.get_content_disposition() == "attachment":
        return ""
    payload = part.get_payload(decode=True)
    text = _decode(payload, part.get_content_charset()) if isinstance(payload, bytes) else ""
    markup = kind == "text/html" or re.search(r"<(html|body|table|font)\b", text[:2000], re.I)
    return html_to_text(text) if markup else text


def _body(message: Message) -> str:
    """The text of a message; multipart/alternative gives its first part that says something."""
    if not message.is_multipart():
        return _part_text(message)
    texts = [_body(part) for part in message.get_payload() if isinstance(part, Message)]
    texts = [t for t in texts if t.strip()]
    return "\n".join(texts[:1] if message.get_content_type() == "multipart/alternative" else texts)


def tidy(text: str) -> str:
    """Printable characters only, no blobs, single spaces, at most one empty line in a row."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ").replace("\xa0", " ")
    text = "".join(c for c in text if c == "\n" or (c.isprintable() and c != "\ufffd"))
    text = ADDRESS.sub("name@example.com", BLOB.sub(" ", text))
    lines = [re.sub(r" +", " ", line).strip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def mail_to_text(raw: bytes) -> str:
    """'Subject: ...', an empty line and the body; an empty string if there is no body to read."""
    message = email.message_from_bytes(raw)
    body = tidy(_body(message))
    subject = tidy(_subject(message))
    return f"Subject: {subject}\n\n{body}" if body else ""
