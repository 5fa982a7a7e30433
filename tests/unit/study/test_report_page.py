"""A page has the same content in Markdown and in HTML, and names from data sets cannot break either."""

from __future__ import annotations

from zoomseg.study.report_page import Plot, Sheet, StudyReport, html, markdown

PAGE = StudyReport(
    "a <b>study</b>",
    ["rises from 0.1 to 0.2"],
    ["one | note\nover two lines"],
    [Sheet("Dice", ("row", "left|kidney", "*"), (("W + CMA", "0.500", "–"), ("<script>", "1", "2")))],  # noqa: RUF001
    [Plot("liver", b"\x89PNG")],
)


def test_markdown() -> None:
    text = markdown(PAGE)
    assert text.splitlines() == [
        r"# a \<b\>study\</b\>",
        "",
        "- rises from 0.1 to 0.2",
        "",
        "## Dice",
        "",
        r"| row | left\|kidney | \* |",
        "| --- | ---: | ---: |",
        "| W + CMA | 0.500 | – |",  # noqa: RUF001
        r"| \<script\> | 1 | 2 |",
        "",
        "## Notes",
        "",
        r"- one \| note over two lines",
    ]


def test_html_is_one_file_and_escapes() -> None:
    text = html(PAGE)
    assert "<script>" not in text
    assert "<td>&lt;script&gt;</td>" in text
    assert "<h1>a &lt;b&gt;study&lt;/b&gt;</h1>" in text
    assert 'src="data:image/png;base64,iVBORw=="' in text
    assert "http" not in text
    assert text.count("<tr>") == 3
