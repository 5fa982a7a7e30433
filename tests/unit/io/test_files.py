"""Atomic writing: complete files or none, every failure one OutputError that names the path."""

import errno
import json
import os
from pathlib import Path

import pytest

from zoomseg.core.errors import GeometryError, OutputError, ScanError
from zoomseg.io.files import (
    atomic_path,
    check_name,
    folded,
    link_or_copy,
    one_file,
    parse_json,
    printable,
    read_file,
    reading,
    reason_of,
    same_file,
    stays_inside,
    why_unreadable,
    without_library_messages,
    writable_directory,
    write_json_atomic,
    write_text_atomic,
    writing,
)


def test_why_a_file_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "circle").symlink_to("circle")
    assert why_unreadable(tmp_path / "there") is None
    assert why_unreadable(tmp_path / "gone") == "no such file"
    assert why_unreadable(tmp_path / "link") == "no such file (a link to gone)"
    assert why_unreadable(tmp_path / "circle") == "cannot be read (Too many levels of symbolic links)"
    assert why_unreadable(tmp_path / ("x" * 300)) == "cannot be read (File name too long)"
    assert why_unreadable(tmp_path / "there" / "below") == "cannot be read (Not a directory)"
    assert why_unreadable(tmp_path) == "not a file"
    assert str(why_unreadable(Path("a\0b"))).startswith("not a possible name")

    def closed(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "stat", closed)
    assert why_unreadable(tmp_path / "there") == "cannot be read (Permission denied)"


def test_names_of_one_file_on_some_disks() -> None:
    assert folded("Knee_1") == folded("knee_1") == "knee_1"
    assert folded("B\u00c4R") == folded("ba\u0308r")
    assert len({folded(name) for name in ("bar", "b\u00e4r", "baer", "bar ", "b-r")}) == 5


def test_one_file_by_two_names(tmp_path: Path) -> None:
    """By another path, a symbolic and a hard link; equal content or a broken link is not enough."""
    there = tmp_path / "there"
    there.write_text("x")
    (tmp_path / "copy").write_text("x")
    (tmp_path / "symbolic").symlink_to(there)
    (tmp_path / "broken").symlink_to("gone")
    (tmp_path / "hard").hardlink_to(there)
    for same in (there, tmp_path / ".." / tmp_path.name / "there", tmp_path / "symbolic", tmp_path / "hard"):
        assert same_file(there, same)
    for other in ("copy", "broken", "gone", "x" * 300):
        assert not same_file(there, tmp_path / other)
        assert not same_file(tmp_path / other, there)
    assert not same_file(tmp_path / "broken", tmp_path / "broken")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), r"a\.nii: cannot be read \(Permission denied\)"),
        (OSError("not a gzipped file"), r"a\.nii: damaged, truncated or not an image \(not a gzipped"),
        (FileNotFoundError(errno.ENOENT, "gone"), r"a\.nii: no such file"),
    ],
)
def test_what_the_system_says_is_told_from_what_a_parser_says(error: OSError, message: str) -> None:
    with pytest.raises(ScanError, match=message), reading(Path("/nowhere/a.nii"), "an image"):
        raise error


def test_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "case.nii.gz"
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert partial.parent == tmp_path
        assert partial.name.startswith(".case.nii.gz.partial-")
        assert partial.name.endswith(".nii.gz")
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["case.nii.gz"]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("a" * 248 + ".nii.gz"[:7], ".nii.gz"),
        ("ü" * 124 + ".nii.gz"[:7], ".nii.gz"),
        ("1.3.6." * 22 + "7_" + "1.3.6." * 18 + ".nii.gz", ".nii.gz"),
        ("a" * 246 + ".seg.nrrd", ".nrrd"),
        ("a." + "b" * 200, ""),
        (os.fsdecode(b"\xff\xe9" * 124 + b".nii.gz"), ".nii.gz"),
    ],
)
def test_any_name_that_the_folder_takes_can_be_written(tmp_path: Path, name: str, end: str) -> None:
    target = tmp_path / name
    assert len(os.fsencode(name)) <= 255
    check_name(target)
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert partial.name.startswith(".")
        assert ".partial-" in partial.name
        assert partial.name.endswith(end)
        assert len(os.fsencode(partial.name)) <= len(os.fsencode(name))
    assert target.read_text() == "new"
    assert len(os.listdir(tmp_path)) == 1


def test_a_name_that_the_folder_does_not_take_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not" / "yet"):
        with pytest.raises(
            ScanError, match="the result's name would have 256 bytes, too many for its folder"
        ):
            check_name(folder / ("ü" * 128))
        check_name(folder / "new.nii.gz")


def test_names_that_are_no_text_are_written_out() -> None:
    assert printable("scän 1") == "scän 1"
    assert printable(os.fsdecode(b"sc\xe4n\xff")) == "sc\\xe4n\\xff"


def test_error_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_and_fail() -> None:
        with atomic_path(target) as partial:
            partial.write_text("half")
            raise KeyError("anything")

    with pytest.raises(KeyError):
        write_and_fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_full_disk_is_an_output_error_with_the_path(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"

    def fill() -> None:
        with atomic_path(target) as partial:
            partial.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"a\.txt.*No space left on device"):
        fill()
    assert os.listdir(tmp_path) == []


def test_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        write_text_atomic(tmp_path / "nowhere" / "a.txt", "text")


def test_writable_directory_makes_a_private_one_and_does_not_change_others(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o755)
    modes = [writable_directory(tmp_path / name, 0o700).stat().st_mode & 0o777 for name in ("new", "old")]
    assert modes == [0o700, 0o755]


def test_writable_directory_makes_parents_and_leaves_no_probe(tmp_path: Path) -> None:
    made = writable_directory(tmp_path / "a" / "b")
    assert made.is_dir()
    assert os.listdir(made) == []


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        writable_directory(tmp_path / "file")
    with pytest.raises(OutputError, match="file"):
        writable_directory(tmp_path / "file" / "below")


def test_json_round_trip_and_no_nan(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "a.json", {"dice": 0.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"dice": 0.5}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json_atomic(tmp_path / "a.json", {"dice": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"dice": 0.5}


def test_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a crash of the machine could leave the new name on an empty file."""
    done: list[str] = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("flushed"), flush(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("renamed"), rename(a, b)))
    write_text_atomic(tmp_path / "a.txt", "text")
    assert done == ["flushed", "renamed"]


def test_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text_atomic(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_what_the_system_refuses_names_the_path() -> None:
    def refuse(error: Exception) -> None:
        with writing(Path("out/log.csv")):
            raise error

    with pytest.raises(OutputError, match=r"^out/log\.csv: cannot be written \(No space left on device\); "):
        refuse(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(KeyError):
        refuse(KeyError("a bug stays a bug"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ScanError("as it is"), "as it is"),
        (GeometryError("voxels of no size"), "x.dcm: voxels of no size"),
        (FileNotFoundError(), "x.dcm: no such file"),
        (MemoryError(), "x.dcm: does not fit in memory"),
        (KeyError(), "x.dcm: damaged, truncated or not DICOM (KeyError)"),
        (ValueError("a\n  b" + "c" * 200), f"x.dcm: damaged, truncated or not DICOM (a b{'c' * 157})"),
    ],
)
def test_whatever_goes_wrong_in_reading_is_one_line(error: Exception, message: str) -> None:
    with pytest.raises(ScanError) as found, reading(Path("x.dcm"), "DICOM"):
        raise error
    assert str(found.value) == message


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": NaN}',
        b"[Infinity]",
        b"[-Infinity]",
        b"[1e999]",
        b"[-1e999]",
        b'["\\ud800"]',
        b'{"\\udfff": 1}',
        b'["\\uD834\\uD834\\uDD1E"]',
        b'["\\udd1e\\ud834"]',
        b'["\\\\\\ud834"]',
        b'["\xed\xa0\x80"]',
        '["\ud800"]'.encode("utf-16", "surrogatepass"),
    ],
)
def test_what_could_not_be_written_again_is_no_json(content: bytes) -> None:
    json.loads(content)  # Python accepts it
    with pytest.raises(ValueError, match="NaN, an infinite number or a lone surrogate"):
        parse_json(content)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'["\\uD834\\udd1e"]', "\U0001d11e"),
        ('["\U0001d11e"]'.encode(), "\U0001d11e"),
        ('["\U0001d11e"]'.encode("utf-16"), "\U0001d11e"),
        (b'\xef\xbb\xbf["a"]', "a"),
        (b'["\\\\ud834"]', "\\ud834"),
        (b'["\\\\\\\\ud834\\n"]', "\\\\ud834\n"),
    ],
)
def test_what_looks_like_a_lone_surrogate_and_is_none_is_read(content: bytes, text: str) -> None:
    assert parse_json(content) == [text]


def test_a_whole_number_beyond_floating_point_is_refused() -> None:
    most = "9" * 300
    assert parse_json(most) == int(most)
    assert float(parse_json(most)) == pytest.approx(1e300)
    for digits in (most + "9", "-" + most, "1" + "0" * 400, "1" + "0" * 5000):
        with pytest.raises(ValueError, match=f"a whole number of {len(digits)} digits, 300 at most are read"):
            parse_json(f'{{"seconds": {digits}}}')


def test_json_is_parsed_or_refused_in_one_line() -> None:
    assert parse_json(b'{"a": [1, 2.5, null, "\\u00e9"]}') == {"a": [1, 2.5, None, "é"]}
    for content in (b"[" * 100_000, b"{", b"\xff\xfe\x00{", b"1" * 5000, b""):
        with pytest.raises(ValueError) as refusal:  # noqa: PT011
            parse_json(content)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [".a.nii.gz", "..a.nii.gz"])
def test_no_result_is_a_hidden_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ScanError, match="the result would be a hidden file; rename the scan"):
        check_name(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a", True),
        ("weights/a.pth", True),
        ("./a", True),
        ("..a/b..", True),
        ("/a", False),
        ("//a", False),
        ("..", False),
        ("../a", False),
        ("a/../../b", False),
        ("a/..", False),
    ],
)
def test_a_path_stays_inside_its_folder_or_may_leave_it(name: str, inside: bool) -> None:
    assert stays_inside(name) == inside


def test_messages_of_libraries_can_be_left_out() -> None:
    """They may quote a header."""
    error = ValueError("no number: 'Secret^Name'")
    assert reason_of(error) == "no number: 'Secret^Name'"
    with without_library_messages():
        assert reason_of(error) == "ValueError"
        with pytest.raises(ScanError, match=r"not an image \(ValueError\)"), reading(Path("a"), "an image"):
            raise error
    assert reason_of(error) == "no number: 'Secret^Name'"


def test_a_file_is_linked_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("content")
    link_or_copy(tmp_path / "a", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(tmp_path / "a")

    def none(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    link_or_copy(tmp_path / "a", tmp_path / "copied")
    assert (tmp_path / "copied").read_text() == "content"
    assert not (tmp_path / "copied").samefile(tmp_path / "a")


def test_only_files_of_a_known_size_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"12345")
    assert read_file(file, 5) == b"12345"
    with pytest.raises(OSError, match="has 5 bytes, 4 at most are read"):
        read_file(file, 4)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for other in ("pipe", "zero"):
        with pytest.raises(OSError, match="not a file"):
            read_file(tmp_path / other)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["a", "b", "A", "b"], ("a", "A")),
        (["a", "b", "b"], ("b", "b")),
        (["u\u0308", "x", "\u00fc"], ("u\u0308", "\u00fc")),
        (["a", "b", "ab"], None),
        ([], None),
    ],
)
def test_names_that_are_one_file_are_found(names: list[str], alike: tuple[str, str] | None) -> None:
    assert one_file(names) == alike
