"""Files as people have them: NaN, separators, encodings, single objects, broken lines; every place named is true."""

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from qlora_gui.config import make
from qlora_gui.data import load
from qlora_gui.data.bad_rows import FaultyRows
from qlora_gui.errors import UserError
from qlora_gui.runs.event_text import data_remarks, data_warnings
from qlora_gui.runs.training_rows import rows_of

ROW = {"instruction": "Hi", "output": "Hello"}
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def texts(found: load.Dataset) -> list[list[str]]:
    return [[turn["content"] for turn in row["messages"]] for row in found.train]


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load.load(str(path))
    return str(error.value)


def faults(path: Path) -> list[tuple[int, int | None, str]]:
    with pytest.raises(FaultyRows) as error:
        load.load(str(path))
    return [(fault.row, fault.line, fault.reason) for fault in error.value.named]


@pytest.mark.parametrize("empty", ["NaN", "Infinity", "-Infinity", "1e999", "null", '""'])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_no_number_is_an_empty_cell(tmp_path: Path, suffix: str, empty: str) -> None:
    path = tmp_path / f"a.{suffix}"
    row = f'{{"instruction": "Hi", "input": {empty}, "output": "Hello", "system": {empty}}}'
    path.write_text(f"[{row}]" if suffix == "json" else row)
    assert texts(load.load(str(path))) == [["Hi", "Hello"]]
    path.write_text(path.read_text().replace('"Hello"', empty))
    [(row_number, _, reason)] = faults(path)
    assert row_number == 1 and reason in ("'output' is null", "'output' is empty")


def test_nan_in_parquet_also_inside_and_fields_that_arrow_fills_in(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "Hi", "weight": float("nan")}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "Hi", "weight": None}, {"role": "assistant", "content": "b", "weight": 0.0}]},
    ]  # fmt: skip
    rows[0]["messages"][1]["tool_calls"] = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    rows[1]["messages"][1]["tool_calls"] = [{"function": {"name": "g", "arguments": {"y": 2}}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = load.load(str(tmp_path / "a.parquet"))
    first, second = (row["messages"][1] for row in found.train)
    assert first["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}} and "learn" not in first
    assert second["tool_calls"][0]["function"] == {"name": "g", "arguments": {"y": 2}} and second["learn"] is False
    assert not found.ignored


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        ({**ROW, "history": [["a", "b"]]}, [["a", "b", "Hi", "Hello"]]),
        ({"messages": CHAT, "tools": []}, [["Hi", "Hello"]]),
        ({"conversations": CHAT}, [["Hi", "Hello"]]),
        ({"data": [ROW, ROW]}, [["Hi", "Hello"]] * 2),
        ({"version": 1, "rows": [ROW]}, [["Hi", "Hello"]]),
        (ROW, [["Hi", "Hello"]]),
    ],
)
def test_an_object_is_a_row_or_what_stands_around_the_rows(tmp_path: Path, value: Any, rows: list[list[str]]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert texts(load.load(str(tmp_path / "a.json"))) == rows


def test_several_lists_in_an_object_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": [ROW], "test": [ROW]}))
    assert "holds several lists (train, test)" in refused(tmp_path / "a.json")


def test_a_list_under_the_name_of_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps([ROW, ROW], indent=1))
    assert len(load.load(str(tmp_path / "a.jsonl")).train) == 2


def test_lines_that_are_no_json_are_faulty_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"oops"\n{json.dumps(ROW)}\n\n{{"a": {"9" * 5000}}}\n[1]\n{json.dumps(ROW)}')
    found = faults(path)
    assert [row for row, _, _ in found] == [1, 4, 5] and all(line is None for _, line, _ in found)
    assert found[0][2].startswith("it is not JSON: ") and found[2][2] == "it is not an object with named fields"
    kept = load.load(str(path), skip_bad_rows=True)
    assert [row["row"] for row in kept.train] == [2, 6] and kept.skipped == 3


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_separators_are_told_by_the_header(tmp_path: Path, separator: str, suffix: str) -> None:
    cells = [["instruction", "output", "note"], ["Hi, you; there", '"Hel""lo\n|x\ty"', "1,5"], ["Hi", "Hello", ""]]
    cells[1] = [f'"{cells[1][0]}"', cells[1][1], f'"{cells[1][2]}"']
    path = tmp_path / f"a.{suffix}"
    path.write_text("\n".join(separator.join(row) for row in cells))
    found = load.load(str(path))
    assert found.separator == separator and found.ignored == {"note": 1}
    assert texts(found) == [["Hi, you; there", 'Hel"lo\n|x\ty'], ["Hi", "Hello"]]


def test_what_excel_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffsep=;\r\ninstruction;output;;\r\nHi;Hello;;\r\n\r\nHi;;;x\r\n".encode())
    assert faults(path) == [(2, 5, "'output' is empty")]
    assert load.load(str(path), skip_bad_rows=True).separator == ";"
    path.write_text('instruction, output\nHi,  Hello\nHi, "a, b"\n')
    assert texts(load.load(str(path))) == [["Hi", "Hello"], ["Hi", "a, b"]]
    path.write_text("instruction,output\nHi,  Hello\n")
    assert texts(load.load(str(path))) == [["Hi", "  Hello"]]


def test_csv_places_after_cells_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('instruction,output\n"a\nb","c\n\nd"\n\nx,y,z\n"e\nf",\n')
    assert faults(path) == [
        (2, 7, "it has more cells than the header (3, not 2): quote cells that hold commas"),
        (3, 8, "'output' is empty"),
    ]
    assert texts(load.load(str(path), skip_bad_rows=True)) == [["a\nb", "c\n\nd"]]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert [line for _, line, _ in faults(path)] == [7, 8]
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\r"))
    assert [line for _, line, _ in faults(path)] == [7, 8]


def test_a_header_that_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,text\na,b\n")
    assert "has the column 'text' twice" in refused(path)
    path.write_text('"text"x,a\nb,c\n')
    assert "The header of the data file" in refused(path) and "line 1" in refused(path)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_a_bad_byte_is_named_where_it_is_in_the_file(tmp_path: Path, suffix: str, mark: bytes) -> None:
    rows = [{"instruction": f"süß {number}", "output": "Hello " * 20} for number in range(2000)]
    if suffix == "csv":
        body = "instruction,output\n" + "".join(f"{row['instruction']},{row['output']}\n" for row in rows)
    else:
        body = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        body = "[" + body.replace("\n", ",\n") + "]" if suffix == "json" else body
    data = bytearray(mark + body.encode())
    place = data.rindex(b"Hello", 0, len(data) * 3 // 4)
    data[place] = 0xFF
    line = data[:place].count(b"\n") + 1
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    if suffix == "json":
        assert f"is not UTF-8 at byte {place} (line {line})" in refused(path)
        return
    row = line - 1 if suffix == "csv" else line
    assert faults(path) == [(row, line if suffix == "csv" else None, f"byte {place} of the file is not UTF-8")]
    assert len(load.load(str(path), skip_bad_rows=True).train) == 1999


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_other_encodings_are_named(tmp_path: Path, suffix: str) -> None:
    row = json.dumps({"instruction": "süß", "output": "x"}, ensure_ascii=False)
    body = {"json": f"[\n{row}]", "jsonl": f"\n{row}", "csv": "instruction,output\nsüß,x\n"}[suffix]
    path = tmp_path / f"a.{suffix}"
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        path.write_bytes(body.encode(encoding))
        assert f"is {encoding[:6].upper()}, not UTF-8: save it as UTF-8" in refused(path)
    path.write_bytes(body.encode("cp1252"))
    place = path.read_bytes().index(b"\xfc")
    assert f"is not UTF-8 at byte {place}, line 2 (in Windows-1252 that byte is 'ü')" in refused(path)


def test_no_more_than_twenty_faulty_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(ROW if number % 2 else {**ROW, "output": ""}) + "\n" for number in range(100)))
    told = refused(path)
    assert told.count("'output' is empty") == 20 and "and 30 more. 50 of 100 rows" in told and "\n" not in told
    kept = load.load(str(path), skip_bad_rows=True)
    assert (len(kept.train), kept.skipped, len(kept.skipped_rows)) == (50, 50, 20)


def test_a_reason_that_quotes_the_data_is_one_short_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    call = {"role": "assistant", "tool_calls": [{"name": "a\n" + "b" * 5000, "arguments": 1}]}
    path.write_text(json.dumps({"messages": CHAT}) + "\n" + json.dumps({"messages": [call]}))
    [(_, _, reason)] = faults(path)
    assert "the arguments of the call of 'a bbb" in reason and "\n" not in reason and len(reason) <= 301
    path.write_text(json.dumps({"a\n" * 500: 1}))
    assert "\n" not in refused(path) and len(refused(path)) < 1000


def test_a_file_without_a_single_good_row_stays_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**ROW, "output": ""}))
    with pytest.raises(FaultyRows, match="fix it, or set dataset_format") as error:
        load.load(str(path), skip_bad_rows=True)
    assert not error.value.some_left


def test_faulty_held_out_rows_are_named_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(ROW))
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "output": 3.0}) + "\noops")
    told = refused(tmp_path)
    assert told.startswith("test.jsonl row 3: it is not JSON")
    found = load.load(str(tmp_path), skip_bad_rows=True)
    assert len(found.held_out or []) == 2 and found.skipped_rows[0].file == "test.jsonl"


def test_the_format_is_that_of_the_first_row_that_has_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("oops\n" + json.dumps({"question": "?"}) + "\n" + json.dumps(ROW))
    assert [row for row, _, _ in faults(path)] == [1, 2]
    assert load.load(str(path), skip_bad_rows=True).format == "alpaca"


def test_a_survey_sees_the_whole_of_what_loading_sees(tmp_path: Path) -> None:
    rows = [ROW, ROW, {**ROW, "output": ""}, {**ROW, "input": "x", "label": 1}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, [ROW, {**ROW, "output": "Bye"}])))
    seen = load.survey(str(tmp_path))
    assert (seen.format, seen.rows, seen.faulty, seen.duplicates, seen.known) == ("alpaca", 6, 1, 1, 1)
    assert seen.ignored == {"label": 1} and seen.named[0].row == 3


def test_half_a_character_is_marked_wherever_it_stands(tmp_path: Path) -> None:
    lines = r'{"messages": [{"role": "user", "content": "q \ud83d"}, {"role": "assistant", "content": "a \ud83d\ude00"}], "x\ud83d": 1}'
    inner = json.dumps([{"role": "user", "content": "q \ud83d"}, {"role": "assistant", "content": "a \U0001f600"}])
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(f"[{lines}]")
    (tmp_path / "c.csv").write_text('messages\n"' + inner.replace('"', '""') + '"\n')
    for name in ("a.jsonl", "b.json", "c.csv"):
        found = load.load(str(tmp_path / name))
        assert texts(found) == [["q \ufffd", "a \U0001f600"]]
        "".join(found.ignored).encode()


def test_a_quote_that_is_never_closed_is_a_fault_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\none\n"two\n' + "more\n" * 50)
    with pytest.raises(UserError, match=r"is broken at line 3: a quoted cell is not closed.*line 53") as error:
        load.load(str(path), skip_bad_rows=True)
    assert not isinstance(error.value, FaultyRows)


@pytest.mark.parametrize("name", ["valid", "val", "dev"])
def test_rows_to_measure_on_by_their_other_names(tmp_path: Path, name: str) -> None:
    for stem in ("train", name):
        (tmp_path / f"{stem}.jsonl").write_text('{"text": "x"}\n')
    assert load.find(str(tmp_path)).held_out == tmp_path / f"{name}.jsonl"


def test_files_of_a_folder_that_are_not_read_are_told_and_two_to_train_on_refused(tmp_path: Path) -> None:
    row = json.dumps({"instruction": "Say A.", "output": "A"}) + "\n"
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(row)
    source = load.find(str(tmp_path))
    assert source.held_out == tmp_path / "dev.jsonl" and source.unused_files == ("test.jsonl",)
    told = rows_of(make({"dataset": str(tmp_path)})).event_fields()
    assert data_remarks(told)[-1] == "Files of the data's folder that are not read: test.jsonl."
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "rows.csv").write_text("text\na\n")
    for name in ("val.jsonl.gz", "README.md", "train.jsonl~", ".gitattributes"):
        (tmp_path / name).write_text("x")
    assert load.find(str(tmp_path)).unused_files == ("test.jsonl", "more/", "val.jsonl.gz")
    (tmp_path / "train.csv").write_text("instruction,output\nSay B.,B\n")
    with pytest.raises(UserError, match=r"holds train\.csv and train\.jsonl: take one of them out"):
        load.find(str(tmp_path))


def test_another_format_is_offered_only_where_rows_were_understood(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("{]\n")
    with pytest.raises(FaultyRows) as error:
        load.load(str(tmp_path / "broken.jsonl"))
    assert "dataset_format" not in str(error.value)


def test_a_faulty_row_of_csv_names_all_the_lines_that_it_took(tmp_path: Path) -> None:
    """Two stray quotation marks: what stands between them may have been rows."""
    lines = ["instruction,output", *(f"Say {number}.,{number}" for number in range(8))]
    lines[2], lines[6] = 'Say 1.,"1', 'Say "5.,5'
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    ((number, line, reason),) = faults(tmp_path / "rows.csv")
    assert (number, line) == (2, 3) and "it spans lines 3 to 7, all of which are read as one row" in reason


def test_a_row_of_csv_with_too_few_cells_says_so_where_one_is_missed(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("instruction,output,input\nSay 1.\nSay 2.,2\n")
    assert faults(tmp_path / "rows.csv") == [(1, 2, "'output' is null; it has fewer cells than the header (1, not 3)")]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_list_a_line_is_no_broken_json(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_text(f"{json.dumps(CHAT)}\n{json.dumps(CHAT)}\n")
    assert "row 1 fits no known format: it has no named fields" in refused(path)
    path.write_text("[\n" + json.dumps(ROW) + "\n]\n]\n")
    assert "is not JSON: Extra data at line 4, column 1" in refused(path)


def test_what_stands_beside_the_rows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"system": "Talk like a pirate.", "version": "1.0", "tools": [], "data": [ROW, ROW]}))
    found = load.load(str(path))
    assert found.ignored == {"system beside the rows": 2, "version beside the rows": 2}
    assert data_warnings(vars(found)) == [
        "Not used, though it may change what the rows mean: system beside the rows (2 rows)."
    ]
    path.write_text(json.dumps(ROW))
    assert not load.load(str(path)).ignored


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (gzip.compress(b'{"text": "a"}\n', mtime=0), r"is compressed \(gzip\): unpack it first"),
        (bz2.compress(b'{"text": "a"}\n'), r"is compressed \(bzip2\): unpack it first"),
        (b"PK\x03\x04\x14\x00\x06\x00\x08\x00", "is a ZIP archive or an Excel file"),
        (b"PAR1\x15\x04\x15", r"is Parquet: give it the ending \.parquet"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "is only a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html></html>", "is a web page: download the file itself"),
    ],
    ids=["gzip", "bzip2", "zip", "parquet", "lfs", "html"],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_files_that_only_bear_the_name_of_data_are_told(tmp_path: Path, suffix: str, body: bytes, said: str) -> None:
    if suffix == "parquet" and body.startswith(b"PAR1"):
        said = r"is not Parquet: [^.]*\.$"
    (tmp_path / f"a.{suffix}").write_bytes(body)
    with pytest.raises(UserError, match=said):
        load.load(str(tmp_path / f"a.{suffix}"))


def test_one_row_with_a_list_of_texts_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    path.write_text(json.dumps({"question": "q", "answer": "a", "tags": ["x"]}))
    assert "it has question, answer, tags" in refused(path)
    path.write_text(json.dumps({"data": []}))
    assert "is empty" in refused(path)


def test_a_column_of_parquet_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "has the column 'text' twice" in refused(tmp_path / "a.parquet")
