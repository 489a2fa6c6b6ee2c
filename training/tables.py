"""Chores on tables: CSV, JSON, Markdown tables and SQL."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from training.words import COLOURS, STEMS, Words, pool

_GAPS = "<\n\n|\n\n|\n>"
_NUMBER = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Table:
    """Column names and rows of cells, all text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def csv_to_json(words: Words) -> tuple[str, str]:
    """A CSV text to turn into a JSON list of objects."""
    table = make_table(words)
    instruction = words.spin(
        "<Convert|Turn|Change|Transform|Rewrite|Put> <this|the following|the|these rows of> CSV "
        "<into|to|as> <JSON|a JSON list|a JSON array|a JSON list of objects|JSON objects>"
        "<.|, please.|:|. Keep the order of the rows.>"
        if words.chance(0.8)
        else "<Give me|Show|Write|I need|Please write> <this data|this table|the rows below|this> "
        "<as|in> JSON<.|:|, one object per row.>"
    )
    return lay_out(words, instruction, as_csv(table)), as_json(table)


def json_to_csv(words: Words) -> tuple[str, str]:
    """A JSON list of objects to turn into CSV."""
    table = make_table(words)
    instruction = words.spin(
        "<Convert|Turn|Change|Rewrite> <this|the following|the> <JSON|JSON list|JSON data> "
        "<into|to|as> CSV<.|, please.|:| with a header row.| with a header.>"
        if words.chance(0.8)
        else "<Give me|Show|Write|I need|Please write> <this JSON|these objects|the records below> "
        "<as|in> <CSV|a CSV file|comma-separated values><.|:|, header first.>"
    )
    return lay_out(words, instruction, as_any_json(words, table)), as_csv(table)


def csv_to_markdown(words: Words) -> tuple[str, str]:
    """A CSV text to turn into a Markdown table."""
    table = make_table(words)
    instruction = words.spin(
        "<Convert|Turn|Change|Make|Format|Put> <this|the following|the> <CSV|CSV data|CSV text> "
        "<into|to|as> a <Markdown table|table in Markdown><.|, please.|:>"
        if words.chance(0.8)
        else "<Show|Write|Draw> <these rows|this data|the CSV below> as a Markdown table<.|:>"
    )
    return lay_out(words, instruction, as_csv(table)), as_markdown(table)


def sql_query(words: Words) -> tuple[str, str]:
    """One to three questions to a table, to be written as SELECT statements."""
    name = words.identifier() if words.chance(0.5) else words.pick(STEMS) + "s"
    columns = make_columns(words, words.number(3, 5))
    schema = f"{name}({', '.join(column for column, _ in columns)})"
    asked = [_question(words, name, columns) for _ in range(words.rng.choice((1, 2, 2, 3)))]
    head = words.spin(
        "<Given|Take|I have|There is|Here is> <the|a> <SQL table|table> {schema}<.|:>"
        if words.chance(0.5)
        else "<Table|SQL table|Schema>: {schema}"
    ).replace("{schema}", schema)
    if len(asked) == 1:
        ask = words.spin(
            "<Write|Give me|Write down> <a|the|one> SQL <query|statement> <to|that will> "
        )
        return f"{head}\n{ask}{asked[0][0]}.", asked[0][1]
    ask = words.spin("<Write|Give me|I need> SQL <queries|statements> to<:|>\n")
    listed = "\n".join(f"{i}. {question}" for i, (question, _) in enumerate(asked, 1))
    return f"{head}\n{ask}{listed}", "\n".join(query for _, query in asked)


def make_table(words: Words, max_rows: int = 6) -> Table:
    """Two to four columns and two or more rows of matching cells."""
    columns = make_columns(words, words.rng.choice((2, 3, 3, 3, 4)))
    count = words.number(2, max_rows if len(columns) < 4 else 4)
    rows = tuple(tuple(make() for _, make in columns) for _ in range(count))
    return Table(tuple(column for column, _ in columns), rows)


def make_columns(words: Words, count: int) -> list[tuple[str, Callable[[], str]]]:
    """Different column names, each with a maker of cells."""
    makers = _makers(words)
    found: dict[str, Callable[[], str]] = {}
    while len(found) < count:
        names, make = words.rng.choice(makers)
        name = words.identifier() if words.chance(0.4) else words.rng.choice(pool(names))
        found.setdefault(name, make)
    return list(found.items())


def as_csv(table: Table) -> str:
    """The table as CSV; no cell holds a comma."""
    return "\n".join(",".join(row) for row in (table.columns, *table.rows))


def as_markdown(table: Table) -> str:
    """The table as a Markdown table without spaces."""
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return "\n".join("|" + "|".join(line) + "|" for line in lines)


def as_json(table: Table) -> str:
    """The table as JSON, an object a line; numbers stay as they are written."""
    return "[\n" + ",\n".join(f"  {item}" for item in _objects(table)) + "\n]"


def as_any_json(words: Words, table: Table) -> str:
    """The table as JSON in one of three layouts."""
    layout = words.number(1, 3)
    if layout == 1:
        return as_json(table)
    if layout == 2:
        return "[" + ", ".join(_objects(table)) + "]"
    rows = []
    for row in table.rows:
        cells = zip(table.columns, row, strict=True)
        inner = ",\n".join(f'    "{key}": {json_value(cell)}' for key, cell in cells)
        rows.append("  {\n" + inner + "\n  }")
    return "[\n" + ",\n".join(rows) + "\n]"


def json_value(cell: str) -> str:
    """A cell as a JSON value: a number if it looks like one, else a string."""
    return cell if _NUMBER.fullmatch(cell) else json.dumps(cell, ensure_ascii=False)


def sql_value(cell: str) -> str:
    """A cell as an SQL value."""
    return cell if _NUMBER.fullmatch(cell) else "'" + cell.replace("'", "''") + "'"


def lay_out(words: Words, instruction: str, text: str, fence: str | None = None) -> str:
    """Instruction and text in one prompt, mostly in this order; `fence` is a language or None."""
    body = text if fence is None else f"```{fence}\n{text}\n```"
    if words.chance(0.2):
        return f"{body}\n\n{instruction.rstrip(':').replace('below', 'above')}"
    return f"{instruction}{words.spin(_GAPS)}{body}"


def _objects(table: Table) -> list[str]:
    rows = [zip(table.columns, row, strict=True) for row in table.rows]
    return [
        "{" + ", ".join(f'"{key}": {json_value(cell)}' for key, cell in row) + "}" for row in rows
    ]


def _makers(words: Words) -> list[tuple[str, Callable[[], str]]]:
    def number(low: int, high: int) -> Callable[[], str]:
        return lambda: str(words.number(low, high))

    return [
        ("name first_name person guest member player owner", words.first_name),
        ("name full_name author customer teacher driver", words.full_name),
        ("city town office place home destination", words.city),
        ("item product article thing tool", words.thing),
        ("item product part gift word", words.noun),
        ("age years weeks hours", number(1, 99)),
        ("quantity amount stock count pieces units", number(0, 500)),
        ("year founded built since", number(1850, 2031)),
        ("score points rank level", number(0, 100)),
        ("price cost fee", words.price),
        ("id code order_id sku reference", words.code),
        ("id number no", number(1, 9999)),
        ("date day due start", words.iso_date),
        ("date birthday delivery", words.date),
        ("time opens departure", words.clock),
        ("email contact mail", words.email),
        ("colour color paint", lambda: words.rng.choice(COLOURS)),
        ("word tag label nickname", words.word),
        ("key token code", words.gibberish),
    ]


def _question(
    words: Words, name: str, columns: list[tuple[str, Callable[[], str]]]
) -> tuple[str, str]:
    shown = words.rng.sample([column for column, _ in columns], words.rng.choice((1, 1, 2)))
    where, condition = _condition(words, *words.rng.choice(columns))
    draw = words.number(1, 10)
    by = words.rng.choice(columns)[0]
    if draw == 1:
        count = words.spin("<count|count all|count the>")
        return f"{count} rows where {where}", f"SELECT COUNT(*) FROM {name} WHERE {condition};"
    if draw == 2:
        count = words.spin("<count|count the> rows <per|for each>")
        return f"{count} {by}", f"SELECT {by}, COUNT(*) FROM {name} GROUP BY {by};"
    if draw == 3:
        delete = words.spin("<delete|remove> <the|all> rows where")
        return f"{delete} {where}", f"DELETE FROM {name} WHERE {condition};"
    if draw == 4:
        value = str(words.number(1, 99))
        change = words.spin(f"<set|change> {by} to {value} where {where}")
        return change, f"UPDATE {name} SET {by} = {value} WHERE {condition};"
    ask = words.spin(f"<show|list|find|get|select> <the |>{' and '.join(shown)} where {where}")
    query = f"SELECT {', '.join(shown)} FROM {name} WHERE {condition}"
    if draw > 7:
        return f"{ask}, {words.spin('<sorted by|ordered by>')} {by}", f"{query} ORDER BY {by};"
    return ask, f"{query};"


def _condition(words: Words, column: str, make: Callable[[], str]) -> tuple[str, str]:
    value = make()
    if not _NUMBER.fullmatch(value) or words.chance(0.2):
        return f"{column} is {value}", f"{column} = {sql_value(value)}"
    if words.chance(0.5):
        above = words.spin("<is more than|is greater than|is over|is above>")
        return f"{column} {above} {value}", f"{column} > {value}"
    below = words.spin("<is less than|is under|is below>")
    return f"{column} {below} {value}", f"{column} < {value}"
