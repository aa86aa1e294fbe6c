"""PDFs that cannot be read, or not every page of them."""

from __future__ import annotations

from collections.abc import Iterator

# By the page's id: the code of its error, and a part of the message.
BAD_PAGES = {
    "cut.pdf#1": ("image_unreadable", "corrupt or truncated"),
    "empty.pdf#1": ("image_unreadable", "0 bytes"),
    "encrypted.pdf#1": ("image_unreadable", "encrypted: remove its password"),
    "html.pdf#1": ("image_unreadable", "not a PDF: a web page (HTML)"),
    "huge.pdf#1": ("image_too_large", "2083334 x 2083334"),
    "missing-page.pdf#2": ("image_unreadable", "this page is corrupt or missing"),
    "no-pages.pdf#1": ("image_unreadable", "corrupt or truncated"),
    "picture.pdf#1": ("image_unreadable", "not a PDF: it starts with"),
}


def bad_documents() -> Iterator[tuple[str, bytes]]:
    yield "good.pdf", document()
    yield "cut.pdf", document()[:150]
    yield "empty.pdf", b""
    yield "html.pdf", b"<!doctype html><html><body>Not found</body></html>"
    yield "huge.pdf", document(b"[0 0 1000000 1000000]")
    yield "missing-page.pdf", document(num_pages=2)
    yield "no-pages.pdf", document(num_pages=0)
    yield "picture.pdf", b"\x89PNG\r\n\x1a\n"
    key = b"/Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4" % (b"00" * 32, b"11" * 32)
    yield "encrypted.pdf", document(trailer=b"/Encrypt << %s >> /ID [<00><00>]" % key)


def document(
    box: bytes = b"[0 0 100 200]", num_pages: int = 1, trailer: bytes = b"", pages: int = 1
) -> bytes:
    """A PDF of ``pages`` empty pages of that size in points, which declares ``num_pages``."""
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox %s >>" % box
    numbers = range(3, 3 + (pages if num_pages else 0))
    kids = b" ".join(b"%d 0 R" % number for number in numbers)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, num_pages),
        *(page for _ in numbers),
    ]
    data, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start, size = len(data), len(objects) + 1
    data += b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
    return data + b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (
        size,
        trailer,
        start,
    )
