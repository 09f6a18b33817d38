"""Which files of a folder or archive are read, and that memory and time are bounded."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hmi_api.errors import InvalidInput
from hmi_api.resources.common import DataSource
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.training import data_reader as corpus
from hmi_runtime.training import labelled_data as labelled
from hmi_runtime.training import source_files
from hmi_runtime.training.data_reader import read_rows, read_texts
from hmi_runtime.training.file_selection import DataUse, SourceStats, split_from_name


def read(path: Path, use: DataUse = DataUse.TRAIN, format_: str = "Text") -> tuple[list[object], SourceStats]:
    reading = SourceStats(use)
    source = DataSource.model_validate({"uri": str(path), "format": format_})
    return [row.fields["text"] for row in read_rows(source, reading)], reading


def refused(path: Path, use: DataUse = DataUse.TRAIN, format_: str = "Text") -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        read(path, use, format_)
    return raised.value


def as_folder(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "data"


def as_archive(root: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(root / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return root / "data.zip"


Made = Callable[[Path, dict[str, str]], Path]
both = pytest.mark.parametrize("made", [as_folder, as_archive])


@both
def test_all_files_of_the_format_are_read_and_others_are_reported(made: Made, tmp_path: Path) -> None:
    files = {
        "b.txt": "two\n",
        "sub/a.txt": "three\n",
        "a.txt": "one\n",
        "README.md": "read me\n",
        "LICENSE.txt": "take it\n",
        "picture.png": "no text\n",
        ".hidden.txt": "never\n",
        "__MACOSX/a.txt": "never\n",
    }
    rows, reading = read(made(tmp_path, files))
    assert rows == ["one", "two", "three"]
    assert reading.files == ["a.txt", "b.txt", "sub/a.txt"]
    assert reading.rows == 3
    assert reading.skipped == [
        ".hidden.txt (hidden)",
        "LICENSE.txt (about the data)",
        "README.md (about the data)",
        "picture.png (not Text)",
    ]


SPLITS = {
    "train-00000-of-00002.txt": "one\n",
    "train-00001-of-00002.txt": "two\n",
    "test-00000-of-00001.txt": "three\n",
    "validation/rows.txt": "four\n",
    "more.txt": "five\n",
}


@both
@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (DataUse.TRAIN, ["one", "two"]),
        (DataUse.CORPUS, ["one", "two"]),
        (DataUse.UNLABELLED, ["one", "two"]),
        (DataUse.EVALUATION, ["three"]),
    ],
)
def test_files_are_read_by_the_split_that_they_are_named_for(
    use: DataUse, expected: list[str], made: Made, tmp_path: Path
) -> None:
    rows, reading = read(made(tmp_path, SPLITS), use)
    assert rows == expected
    assert len(reading.files) + len(reading.skipped) == len(SPLITS)


@both
def test_without_files_of_the_wanted_split_others_are_read(made: Made, tmp_path: Path) -> None:
    path = made(tmp_path, {"dev.txt": "one\n", "rows.txt": "two\n"})
    assert read(path, DataUse.EVALUATION)[0] == ["one"]
    rows, reading = read(path, DataUse.TRAIN)
    assert rows == ["two"]
    assert reading.skipped == ["dev.txt (named for validation)"]


@both
def test_a_folder_with_files_of_other_splits_only_is_refused(made: Made, tmp_path: Path) -> None:
    path = made(tmp_path, {"test.txt": "one\n"})
    error = refused(path)
    assert error.reason == "CorpusEmpty"
    assert "named for test only" in error.message
    assert read(path, DataUse.EVALUATION)[0] == ["one"]


def test_a_source_that_is_one_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    folder = as_folder(tmp_path, {"test.txt": "one\n", "README": "two\n"})
    assert read(folder / "test.txt")[0] == ["one"]
    assert read(folder / "README")[0] == ["two"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("train1.csv.gz", "train"),
        ("reviews_test.csv", "test"),
        ("dev/a.jsonl", "validation"),
        ("test/train.jsonl", "train"),
        ("a.jsonl", None),
        ("strain.jsonl", None),
        ("the_test_of_time.jsonl", None),
    ],
)
def test_file_names_can_name_a_split(name: str, split: str | None) -> None:
    assert split_from_name(name) == split


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.txt.gz", gzip.compress),
        ("a.txt.bz2", bz2.compress),
        ("a.txt.xz", lzma.compress),
        ("a.txt.lzma", lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    ],
)
def test_damaged_and_foreign_bytes_are_errors_of_the_user(
    name: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    whole = pack("".join(f"{number**7 % 9973 / 7}\n" for number in range(5000)).encode())
    path = tmp_path / name
    path.write_bytes(whole)
    assert len(read(path)[0]) == 5000
    damaged = bytearray(whole)
    for place in range(len(whole) // 2, len(whole) // 2 + 40):
        damaged[place] ^= 0x5A
    for content in (b"", whole[:20], whole[: len(whole) // 2], bytes(damaged), b"no such thing\n" * 10):
        path.write_bytes(content)
        if content or not name.endswith((".gz", ".bz2")):
            error = refused(path)
            assert error.reason == "CorpusNotText"
            assert name in error.message


def zipped(content: str = "one\n" * 5000) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", content)
        archive.writestr("b.txt", content)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", zipped()[:60], zipped()[:-30], b"not zipped\n" * 9],
    ids=["empty", "tiny", "begin", "cut", "text"],
)
def test_a_bad_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    error = refused(tmp_path / "a.zip")
    assert error.reason == "CorpusNotText"
    assert "a.zip" in error.message


def test_an_archive_with_damaged_or_encrypted_entries_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    damaged = bytearray(zipped())
    damaged[40:60] = b"x" * 20
    encrypted = bytearray(zipped())
    for start in (encrypted.find(b"PK\x01\x02"), encrypted.rfind(b"PK\x01\x02")):
        encrypted[start + 8] |= 1
    unknown = bytearray(zipped())
    unknown[unknown.find(b"PK\x01\x02") + 10] = unknown[8] = 99
    for content, words in (
        (damaged, "cannot be read"),
        (encrypted, "encrypted"),
        (unknown, "cannot be read"),
    ):
        path.write_bytes(bytes(content))
        error = refused(path)
        assert error.reason == "CorpusNotText"
        assert words in error.message


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("a.tar", "zip archive"),
        ("a.tar.gz", "zip archive"),
        ("a.tgz", "zip archive"),
        ("a.jsonl.zst", "gzip"),
        ("a.parquet", "JSON Lines"),
        ("a.arrow", "JSON Lines"),
        ("a.xlsx", "CSV"),
    ],
)
def test_unsupported_kinds_of_files_are_refused_with_advice(name: str, cure: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PAR1\0")
    error = refused(tmp_path / name)
    assert error.reason == "CorpusNotText"
    assert cure in error.message


def test_archives_in_archives_are_not_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inner.zip", zipped())
        archive.writestr("a.txt", "one\n")
    rows, reading = read(tmp_path / "a.zip")
    assert rows == ["one"]
    assert reading.skipped == ["inner.zip (not Text)"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.bz2", "a.txt.xz", "a.zip"])
def test_a_decompression_bomb_is_refused_early(name: str, tmp_path: Path) -> None:
    huge = b"a" * 9999 + b"\n"
    path = tmp_path / name
    if name == "a.zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.txt", huge * 6_000)
    else:
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[name.rpartition(".")[2]]
        path.write_bytes(pack(huge * 6_000))
    reading = SourceStats(DataUse.TRAIN)
    rows = read_rows(DataSource(uri=str(path), format="Text"), reading)
    with pytest.raises(InvalidInput) as raised:
        for _ in rows:
            pass
    assert raised.value.reason == "CorpusTooLarge"
    assert reading.rows * len(huge) < 40 << 20


def test_a_source_with_too_many_files_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source_files, "MOST_FILES", 10)
    many = {f"{number}.txt": "one\n" for number in range(11)}
    for made in (as_folder, as_archive):
        error = refused(made(tmp_path, many))
        assert error.reason == "CorpusTooLarge"
        assert "10 files" in error.message


def test_an_archives_directory_is_counted_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(source_files, "MOST_FILES", 10)
    monkeypatch.setattr(zipfile, "ZipFile", None)  # must not be reached
    (tmp_path / "a.zip").write_bytes(b"PK\x01\x02" * 10_000)
    assert refused(tmp_path / "a.zip").reason == "CorpusTooLarge"


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    folder = as_folder(tmp_path, {"a.txt": "one\n"})
    (folder / "again").symlink_to(folder)
    (folder / "b.txt").symlink_to(folder / "a.txt")
    rows, reading = read(folder)
    assert rows == ["one", "one"]
    assert reading.skipped == ["again (not Text)"]


def test_folders_that_are_too_deep_are_refused_and_not_skipped(tmp_path: Path) -> None:
    deepest = "/".join("d" * (source_files.DEEPEST_FOLDER - 1))
    assert read(as_folder(tmp_path, {f"{deepest}/a.txt": "one\n"}))[0] == ["one"]
    error = refused(as_folder(tmp_path, {f"{deepest}/d/a.txt": "two\n"}))
    assert error.reason == "CorpusTooLarge"
    assert "10 deep" in error.message


def test_labelled_rows_are_bounded_since_they_are_kept_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(labelled, "MOST_LABELLED_CHARACTERS", 1000)
    rows = [
        '{"text": "' + "a" * 100 + '", "label": "x"}\n',
        '{"tokens": ["' + "a" * 100 + '"], "tags": ["O"]}\n',
    ]
    for row, task in zip(
        rows, (TaskType.SEQUENCE_CLASSIFICATION, TaskType.TOKEN_CLASSIFICATION), strict=True
    ):
        (tmp_path / "a.jsonl").write_text(row * 20)
        with pytest.raises(InvalidInput) as raised:
            labelled.read_labelled(DataSource(uri=str(tmp_path / "a.jsonl")), task)
        assert raised.value.reason == "CorpusTooLarge"


def test_a_git_lfs_pointer_is_no_data(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    for name, format_ in (("a.txt", "Text"), ("a.jsonl", "JSONLines"), ("a.csv", "CSV")):
        (tmp_path / name).write_text(pointer)
        assert "git lfs pull" in refused(tmp_path / name, format_=format_).message


def test_too_many_blank_lines_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(corpus, "MOST_BLANK_LINES", 100)
    for name, format_ in (("a.txt", "Text"), ("a.csv", "CSV")):
        (tmp_path / name).write_text("text\n" + "\n" * 200)
        assert "blank lines" in refused(tmp_path / name, format_=format_).message


@pytest.mark.parametrize("content", ["[" * 100_000, '{"text": ' * 50_000, '{"text": ' + "9" * 5000 + "}"])
def test_json_that_is_nested_too_deeply_is_malformed(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    error = refused(tmp_path / "a.jsonl", format_="JSONLines")
    assert error.reason == "RowMalformed"
    assert "line 1" in error.message
    assert len(error.message) < 1000


def test_a_long_csv_cell_is_read(tmp_path: Path) -> None:
    cell = "word " * 100_000
    (tmp_path / "a.csv").write_text(f'id,text\n1,"{cell}"\n2,b\n')
    assert read(tmp_path / "a.csv", format_="CSV")[0] == [cell, "b"]


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ('text,label\n"a\nb",x\n"c" d,y\n', 4, "correct its quotes"),
        ('text,label\na,x\n"b\nc\nd,y\ne,z\n', 3, "correct its quotes"),
        ('text,label\n"a\nb\nc",x\nd\n', 5, "1 fields and the header 2"),
        ("text,text\na,b\n", 1, "names text twice"),
    ],
)
def test_a_bad_csv_row_is_named_by_the_line_in_which_it_begins(
    content: str, line: int, words: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(content)
    error = refused(tmp_path / "a.csv", format_="CSV")
    assert f"a.csv, line {line}:" in error.message
    assert words in error.message


def test_an_endless_csv_row_or_cell_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(corpus, "LONGEST_LINE", 1000)
    monkeypatch.setattr(corpus, "LONGEST_ROW", 5000)
    for content in (
        "text\n" + "a" * 2000 + "\n",
        'text\nfine\n"' + "never closed\n" * 1000,
        "text\n" + "\n".join(['"' + "x\n" * 400 + '"'] * 3),
    ):
        (tmp_path / "a.csv").write_text(content)
        if content.count('"') == 6:
            assert len(read(tmp_path / "a.csv", format_="CSV")[0]) == 3
        else:
            error = refused(tmp_path / "a.csv", format_="CSV")
            assert error.reason == "RowMalformed"
            assert "a.csv, line " in error.message


def test_every_source_of_a_corpus_reports_what_was_read(tmp_path: Path) -> None:
    folder = as_folder(tmp_path, {"a.txt": "one\ntwo\n", "README.md": "x\n"})
    readings: list[SourceStats] = []
    sources = [
        DataSource(uri=str(folder), format="Text"),
        DataSource(uri=str(folder / "a.txt"), format="Text"),
    ]
    assert list(read_texts(sources, DataUse.CORPUS, readings)) == ["one", "two"] * 2
    assert [reading.report().sentence() for reading in readings] == [
        "corpus: 2 rows of 1 files (a.txt); 1 files skipped (README.md (about the data)).",
        "corpus: 2 rows of 1 files (a.txt).",
    ]
